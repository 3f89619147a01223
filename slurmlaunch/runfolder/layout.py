"""Where everything lies in a run folder: the one place that spells file names."""

from __future__ import annotations

import json
import sys
import zlib
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from slurmlaunch.errors import NodeStartError, RunFolderError, UnknownProtocol
from slurmlaunch.runfolder.records import check_folder, read_owned, write_whole

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


# The manifest.

PROTOCOL = 1


def python_version() -> str:
    """Return the part of Python's version that a pickled function depends on: ``3.11``."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


class Manifest(NamedTuple):
    """What a run is.

    Attributes:
        protocol: the version of the run folder's layout.
        run: a random token that names the run: part of its jobs' names.
        name: what the user calls it, or the function's name.
        function: module and qualified name of the function, for messages.
        items: how many items there are.
        single: whether `submit` made it, so that its one future is the result.
        created: when, in seconds since the epoch.
        backend: where its tasks run.
        clusters: the cluster of ``-M``, or None.
        cwd: the client's working directory, in which the tasks run.
        sys_path: the client's module search path.
        python: the client's Python version, as ``3.11``.
        cloudpickle: the client's version of cloudpickle.
        client: the machine of the client.
        seed: what the random streams of its items follow from (`slurmlaunch.context.Task.rng`).
        shared: bytes of the buffers that the function refers to, beside it on disk.
    """

    run: str
    name: str
    function: str
    items: int
    backend: str
    cwd: str
    python: str
    cloudpickle: str
    client: str
    created: float
    sys_path: list[str] = []  # noqa: RUF012  (it is never changed)
    single: bool = False
    clusters: str | None = None
    seed: int = 0
    shared: int = 0
    protocol: int = PROTOCOL

    def write(self, folder: RunFolder) -> None:
        """Write it: from then on the folder is a run."""
        write_whole(folder.manifest, [json.dumps(self._asdict(), indent=1).encode()])

    @classmethod
    def read(cls, folder: RunFolder) -> Manifest:
        """Read the manifest of a run folder, keys that are not known left out.

        Raises:
            RunFolderError: there is none, or it cannot be read.
            UnsafeRunFolder: another user owns the folder, or one in it, or may write to it.
            UnknownProtocol: a newer slurmlaunch wrote it.
        """
        check_folder(folder.path)
        path = folder.manifest
        try:
            content = json.loads(read_owned(path))
            _check_protocol(content["protocol"], folder)
            manifest = cls(**{key: value for key, value in content.items() if key in cls._fields})
            folder.salt = salt_of(manifest.run)
        except (OSError, ValueError, KeyError, TypeError) as error:
            msg = f"{folder.path} is no run folder: its manifest.json cannot be read ({error})"
            raise RunFolderError(msg, path=str(path)) from error
        for name in FOLDERS:
            check_folder(folder.path / name)
        return manifest

    def check_versions(self, cloudpickle: str) -> None:
        """Refuse to unpickle what another Python, or another cloudpickle, pickled.

        A pickled function holds bytecode, which is that of one minor version of
        Python, and calls functions of cloudpickle, which change with its major version.

        Args:
            cloudpickle: the version that is here.

        Raises:
            NodeStartError: the versions do not fit together.
        """
        if self.python != python_version():
            raise NodeStartError(
                f"the function was pickled by Python {self.python}, and the node runs "
                f"Python {python_version()} ({sys.executable})",
                advice=f"Start Python {self.python} on the node: python=[...], modules=[...].",
            )
        if self.cloudpickle.partition(".")[0] != cloudpickle.partition(".")[0]:
            raise NodeStartError(
                f"the function was pickled by cloudpickle {self.cloudpickle}, and the node has {cloudpickle}",
                advice=f"Install cloudpickle {self.cloudpickle} for {sys.executable} on the node.",
            )


def salt_of(token: str) -> int:
    """Return what the headers of a run's records are salted with."""
    return zlib.crc32(token.encode())


def _check_protocol(protocol: object, folder: RunFolder) -> None:
    if protocol != PROTOCOL:
        msg = (
            f"{folder.path} is written in protocol {protocol}, and this slurmlaunch knows "
            f"{PROTOCOL}: use the slurmlaunch that wrote it"
        )
        raise UnknownProtocol(msg, path=str(folder.manifest))
