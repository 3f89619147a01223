"""Ranks: several processes, perhaps on several nodes, that call the function of a task together.

A round of tasks with ranks has one more file per rank and attempt, made by the
task's supervisor before it launches the ranks (so that no file system takes its
name for absent), and appended to by that rank alone. The supervisor reads them:
what all ranks have finished it records as the item's outcome. What each rank
returned stays there, for who asks for it.

A launch is one start of all ranks of a task; after a failure the items that are
left have another. Which items it has stands in a note of the supervisor's own
outcome file, which is on disk before the launch: the ranks agree on it, whatever
is cancelled meanwhile.
"""

from __future__ import annotations

import os
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from slurmlaunch.runfolder.outcomes import OutcomeFile, OutcomeWriter

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from slurmlaunch.runfolder.layout import RunFolder


class RanksPlan(NamedTuple):
    """How many ranks the tasks of a round have, and how they are launched.

    Attributes:
        number: how many.
        launcher: the words that start the command once for each rank, such as ``srun --ntasks=20``;
            none where the supervisor starts them itself, on its own machine.
        command: the words that start one rank, less run folder, task, attempt and launch at their end.
    """

    number: int
    launcher: tuple[str, ...]
    command: tuple[str, ...]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> RanksPlan:
        """Read what a plan holds."""
        return cls(content["number"], tuple(content["launcher"]), tuple(content["command"]))


class Launch(NamedTuple):
    """One start of all ranks of a task.

    Attributes:
        number: its number among those of the attempt, from 0.
        items: the items that each rank runs, in this order.
        host: the machine that the supervisor runs on.
        port: a port that was free there, for the ranks to meet at.
    """

    number: int
    items: tuple[int, ...]
    host: str
    port: int

    def note(self, writer: OutcomeWriter) -> None:
        """Write it down, for the ranks to read."""
        ranges = [[items.start, items.stop] for items in _ranges(self.items)]
        writer.note(launch=self.number, items=ranges, host=self.host, port=self.port)
        writer.flush()

    @classmethod
    def read(cls, file: OutcomeFile, number: int) -> Launch | None:
        """Read a launch from the supervisor's outcome file; None where it is not there (yet)."""
        for _ in file.read():
            pass  # what the items came to is not asked
        for note in file.notes:
            if note.get("launch") == number:
                items = chain.from_iterable(range(*each) for each in note["items"])
                return cls(number, tuple(items), note["host"], note["port"])
        return None


def _ranges(items: Iterable[int]) -> Iterator[range]:
    start = stop = -1
    for item in items:
        if item != stop:
            if stop > start:
                yield range(start, stop)
            start = item
        stop = item + 1
    if stop > start:
        yield range(start, stop)


class RankWriter(OutcomeWriter):
    """Appends the outcomes of one rank to the file that its supervisor has made."""

    def __init__(self, path: Path, attempt: int, salt: int) -> None:
        self._begin(path, attempt, os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC), salt)


def make_rank_files(folder: RunFolder, number: int, task: int, attempt: int, ranks: int) -> list[Path]:
    """Make the files of the ranks of an attempt; return their paths, by rank."""
    paths = [folder.rank_file(number, task, attempt, rank) for rank in range(ranks)]
    for path in paths:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    return paths
