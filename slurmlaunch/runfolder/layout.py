"""Where everything lies in a run folder: the one place that spells file names."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

STARTED_VARIABLE = "SLURMLAUNCH_STARTED"
"""When the task began, in seconds since the epoch: set-up lines take of the time limit, too."""

LIFELINE_VARIABLE = "SLURMLAUNCH_LIFELINE"
"""Names the descriptor of a node's lifeline: the read end of a pipe whose write end the client
alone holds and never writes to. Its end of file says that the client is gone."""

YOUNG = 2.0
"""Seconds within which a folder may change again without its time showing it: file systems keep
time in steps of up to that."""

FOLDERS = ("rounds", "outcomes", "ended", "cancelled", "logs")


class RunFolder:
    """The paths of one run folder.

    Attributes:
        path: the folder itself, absolute.
        salt: what the headers of its records are salted with (see `records`):
            known once its manifest is, 0 before.
    """

    __slots__ = ("path", "salt")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.salt = 0

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def manifest(self) -> Path:
        """The manifest: what the run is, complete before anything is submitted."""
        return self.path / "manifest.json"

    @property
    def function(self) -> Path:
        """The pickled function."""
        return self.path / "function"

    @property
    def function_buffers(self) -> Path:
        """The large buffers that the function refers to; there only where it does."""
        return self.path / "function.buffers"

    @property
    def items(self) -> Path:
        """The pickled arguments, in blocks."""
        return self.path / "items"

    @property
    def items_index(self) -> Path:
        """Where each block of arguments begins."""
        return self.path / "items.index"

    @property
    def rounds(self) -> Path:
        """One folder per submission round."""
        return self.path / "rounds"

    @property
    def outcomes(self) -> Path:
        """One file of records per attempt of a task."""
        return self.path / "outcomes"

    @property
    def ended(self) -> Path:
        """One empty file per ended start of a task; its name says how it ended."""
        return self.path / "ended"

    @property
    def cancelled(self) -> Path:
        """One file of records per client that cancelled items."""
        return self.path / "cancelled"

    @property
    def logs(self) -> Path:
        """Standard output and error of the tasks."""
        return self.path / "logs"

    def round(self, number: int) -> Path:
        """Return the folder of a submission round."""
        return self.rounds / str(number)

    def claims(self, number: int) -> Path:
        """Return the folder of the claims of a dynamic round."""
        return self.round(number) / "claims"

    def outcome_file(self, task: int, attempt: int) -> Path:
        """Return the record file of one attempt of a task."""
        return self.outcomes / f"{task}.{attempt}"

    def ranks(self, number: int) -> Path:
        """Return the folder of the ranks' files of a round whose tasks have ranks."""
        return self.round(number) / "ranks"

    def rank_file(self, number: int, task: int, attempt: int, rank: int) -> Path:
        """Return the record file of one rank in one attempt of a task of a round."""
        return self.ranks(number) / f"{task}.{attempt}.{rank}"

    def log(self, round_: int, array: int, element: int | str, stream: str) -> Path:
        """Return the log of an element, *stream* being ``out`` or ``err``.

        The element may be the scheduler's pattern for one.
        """
        return self.logs / f"{round_}-{array}-{element}.{stream}"


class EndMark(NamedTuple):
    """How one start of a task ended, as its file name says.

    Attributes:
        task: the index of the task.
        start: 0 for its first start, 1 after one requeue, and so on.
        status: the exit status, 128 + n for signal n.
    """

    task: int
    start: int
    status: int

    @property
    def filename(self) -> str:
        """The name of the (empty) file in the folder `RunFolder.ended`."""
        return f"{self.task}.{self.start}.{self.status}"

    @classmethod
    def parse(cls, filename: str) -> EndMark | None:
        """Read a file name; None for what is no end mark."""
        parts = filename.split(".")
        if len(parts) == len(cls._fields) and all(part.isascii() and part.isdigit() for part in parts):
            return cls(*map(int, parts))
        return None


class Status(IntEnum):
    """The exit status of a task, which is also what `sacct` and mail show."""

    VALUES = 0
    """All items have values."""
    FAILURES = 1
    """An item failed; its outcome is on disk."""
    SETUP = 3
    """The set-up lines or ``module load`` failed: Python was not started."""
    NODE = 4
    """The node itself failed; the log says why."""
    REQUEUE = 75
    """Items are left at the time limit, and the task is started again."""
    NOT_REQUEUED = 76
    """Items are left at the time limit, and the scheduler would not start the task again."""
    OUT_OF_MEMORY = 77
    """The kernel ended the node for want of memory: what its end mark says, while Slurm is told 137."""
    STOPPED = 143
    """Something from outside ended the task: the scheduler knows what."""
