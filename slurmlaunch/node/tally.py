"""What the ranks of one launch have recorded so far."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from slurmlaunch.runfolder.records import Damage, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from slurmlaunch.runfolder.outcomes import OutcomeFile, Recorded


class Tally:
    """What the ranks of one launch have recorded so far.

    Attributes:
        death: what the rank said of itself that died first, or None; the others may have died of that.
        ending: whether the ranks are being ended: then a death is nothing of their own.
    """

    def __init__(self, files: list[OutcomeFile], launch: int) -> None:
        """Begin; the files are read on from where they have been read before."""
        self._files = files
        self._launch = launch
        self.death: dict[str, Any] | None = None
        self.ending = False
        self._outcomes: list[dict[int, Recorded]] = [{} for _ in files]

    def read(self, *, final: bool = False) -> None:
        """Take in what is new; *final* says that nothing comes after it."""
        for file, outcomes in zip(self._files, self._outcomes, strict=True):
            for found in file.read(final=final):
                if not isinstance(found, Damage):
                    outcomes.update(dict.fromkeys(range(found.header.first, found.header.stop), found))
        if self.death is None and not self.ending:
            self.death = self._first_death()

    def _notes(self) -> Iterable[dict[str, Any]]:
        return (note for file in self._files for note in file.notes if note["launch"] == self._launch)

    @property
    def began(self) -> int:
        """How many ranks have got as far as their own files."""
        return sum("started" in note for note in self._notes())

    @property
    def peak(self) -> int:
        """The most memory that the ranks of one node held together, in bytes, as far as they could say."""
        peaks: Counter[str] = Counter()
        for file in self._files:
            notes = [note for note in file.notes if note["launch"] == self._launch]
            where = next((note["node"] for note in notes if "node" in note), "")
            peaks[where] += sum(note.get("peak", 0) for note in notes)
        return max(peaks.values(), default=0)

    def _first_death(self) -> dict[str, Any] | None:
        deaths = [note["died"] for note in self._notes() if "died" in note]
        return min(deaths, key=lambda died: died["time"], default=None)

    def is_complete(self, item: int) -> bool:
        """Whether all ranks have come to the end of an item."""
        return all(item in outcomes for outcomes in self._outcomes)

    def failure(self, item: int) -> Recorded | None:
        """Return what the lowest rank recorded that failed an item."""
        found = (outcomes[item] for outcomes in self._outcomes if item in outcomes)
        return next((each for each in found if each.header.kind == Kind.FAILURE), None)

    def value(self, item: int) -> Recorded:
        """Return what rank 0 recorded of an item."""
        return self._outcomes[0][item]

    def is_running(self, item: int, before: Iterable[int]) -> bool:
        """Whether some rank has begun an item, having come to the end of all *before* it in its launch."""
        before = list(before)
        return any(item not in each and all(other in each for other in before) for each in self._outcomes)
