"""What is shown: one line per bar."""

from __future__ import annotations

from dataclasses import dataclass

_COLUMNS = ("work", "slurmlaunch", "against", "comes to", "bar", "met")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        key: what it is chosen by.
        work: what was done.
        ours: slurmlaunch's figure, with median, minimum and maximum where there are several.
        theirs: who it is compared with, and their figure.
        comparison: the ratio or difference.
        bar: what it has to be.
        met: whether it is; None where there is no bar.
    """

    key: str
    work: str
    ours: str
    theirs: str
    comparison: str = ""
    bar: str = ""
    met: bool | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        """The line, cell by cell."""
        met = {True: "yes", False: "**no**", None: ""}[self.met]
        return self.work, self.ours, self.theirs, self.comparison, self.bar, met


def markdown(rows: list[Row]) -> str:
    """Return the table."""
    lines = [_COLUMNS, tuple("---" for _ in _COLUMNS), *(row.cells for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
