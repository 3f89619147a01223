"""The text output: a line per bar, and a line per system and workload."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from harness.series import Series

_BARS = ("work", "slurmlaunch", "against", "comes to", "bar", "met")
_MEASURED = (
    "work",
    "system",
    "time",
    "of which to submit, s",
    "and Slurm's wait, s",
    "client's CPU, s",
    "µs per item",
    "files",
    "MB",
    "scheduler calls",
    "client's memory, MB",
)
_MEGA = 1e6


@dataclass(frozen=True)
class Row:
    """One line of the table of bars.

    Attributes:
        key: its name on the command line.
        work: the work, in words.
        ours: slurmlaunch's figure, with median, minimum and maximum where there are several.
        theirs: the peer, and its figure.
        comparison: the ratio or difference.
        bar: the required figure.
        met: whether the bar is met; None without a bar or a peer.
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


def bars(rows: Iterable[Row]) -> str:
    """Return the table of the bars."""
    return _markdown(_BARS, (row.cells for row in rows))


def measured(series: Iterable[Series]) -> str:
    """Return the table of all measurements, and of the systems that did not run, with the reason."""
    return _markdown(_MEASURED, map(_cells, series))


def _cells(series: Series) -> tuple[str, ...]:
    work = series.entry.work
    about = f"{work.items:,} × {work.name}", series.entry.name
    if not series.samples:
        return *about, plain(series.spread), *[""] * (len(_MEASURED) - 3)
    last = series.samples[-1]
    return (
        *about,
        series.spread,
        _seconds([sample.submitting for sample in series.samples]),
        _seconds([sample.waited for sample in series.samples]),
        _seconds([sample.cpu for sample in series.samples]),
        f"{1e6 * series.median() / work.items:,.1f}",
        f"{series.median(lambda sample: sample.files):.0f}",
        f"{series.median(lambda sample: sample.bytes) / _MEGA:.2f}",
        calls_as_text(last.calls),
        f"{series.median(lambda sample: sample.memory) / _MEGA:.0f}",
    )


def calls_as_text(calls: dict[str, int]) -> str:
    """Return the number of calls of each command, as text."""
    return ", ".join(f"{count} {name}" for name, count in calls.items()) or "none"


def _seconds(each: list[float | None]) -> str:
    """Return the median as text, if all values are known."""
    known = [seconds for seconds in each if seconds is not None]
    return f"{statistics.median(known):.2f}" if known and len(known) == len(each) else ""


def plain(text: str) -> str:
    """Shorten a peer's message to one line that fits into a table."""
    return " ".join(text.replace("|", "/").split())[:200]


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
