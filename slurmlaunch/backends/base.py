"""What every backend is given and what it answers.

A backend knows how to start the tasks of one array, to stop them, and to say
what has become of them. It knows nothing of functions, items and outcomes:
these lie in the run folder.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from slurmlaunch.backends.container import asks_for_gpus
from slurmlaunch.errors import SchedulerError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from slurmlaunch.backends.container import Container


class TaskState(StrEnum):
    """What the scheduler says of a task, in Slurm's words.

    Source: the section JOB STATE CODES of squeue(1) and sacct(1).
    """

    PENDING = "PENDING"
    CONFIGURING = "CONFIGURING"
    RUNNING = "RUNNING"
    COMPLETING = "COMPLETING"
    SUSPENDED = "SUSPENDED"
    STOPPED = "STOPPED"
    REQUEUED = "REQUEUED"
    REQUEUE_FED = "REQUEUE_FED"
    REQUEUE_HOLD = "REQUEUE_HOLD"
    RESV_DEL_HOLD = "RESV_DEL_HOLD"
    SPECIAL_EXIT = "SPECIAL_EXIT"
    RESIZING = "RESIZING"
    SIGNALING = "SIGNALING"
    STAGE_OUT = "STAGE_OUT"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMEOUT = "TIMEOUT"
    DEADLINE = "DEADLINE"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    NODE_FAIL = "NODE_FAIL"
    BOOT_FAIL = "BOOT_FAIL"
    LAUNCH_FAILED = "LAUNCH_FAILED"
    PREEMPTED = "PREEMPTED"
    REVOKED = "REVOKED"
    UNKNOWN = "UNKNOWN"

    # The same on every Python, and what one would write: 3.11 changed what an f-string shows.
    def __str__(self) -> str:
        return self.value

    def __format__(self, spec: str) -> str:
        return format(self.value, spec)

    @property
    def is_final(self) -> bool:
        """Whether a task in this state never runs again by itself."""
        return self in _FINAL

    @property
    def is_queued(self) -> bool:
        """Whether a task in this state has yet to start."""
        return self in _QUEUED

    @classmethod
    def parse(cls, text: str) -> TaskState:
        """Read a state as squeue or sacct print it, ``CANCELLED by 1000`` included.

        A word that is not known (a newer Slurm's) is `UNKNOWN`, which is not final.
        """
        words = text.split()
        word = words[0].rstrip("+") if words else ""
        return cls._value2member_map_.get(word, cls.UNKNOWN)  # type: ignore[return-value]


_FINAL = frozenset({
    TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED, TaskState.TIMEOUT,
    TaskState.DEADLINE, TaskState.OUT_OF_MEMORY, TaskState.NODE_FAIL, TaskState.BOOT_FAIL,
    TaskState.LAUNCH_FAILED, TaskState.PREEMPTED, TaskState.REVOKED,
})  # fmt: skip
_QUEUED = frozenset({
    TaskState.PENDING, TaskState.CONFIGURING, TaskState.REQUEUED, TaskState.REQUEUE_FED,
    TaskState.REQUEUE_HOLD, TaskState.RESV_DEL_HOLD, TaskState.SPECIAL_EXIT,
})  # fmt: skip


@dataclass(frozen=True)
class ArrayJob:
    """One array to submit: all that a scheduler is told, and nothing else.

    Attributes:
        run_folder: absolute path of the run folder.
        name: the job's name, unique to this array: ``[A-Za-z0-9._-]``, at most 64 characters.
        round: the submission round that the array belongs to.
        array: the number of the array within its round.
        first_task: the task index of the array's element 0.
        length: the number of elements.
        throttle: how many elements may run at once (``%N``), or None.
        cwd: the folder in which the tasks run.
        python: how to start Python: the first words of the node's command line.
        cpus_per_task: CPUs of each task, at least 1.
        threads: CPUs of each pool process (see `slurmlaunch.caps`).
        options: sbatch's long option names (with underscores) and their values,
            where True is a bare flag; values are text without line breaks.
        flags: further sbatch arguments, passed on as they are.
        env: variables to set for the tasks, beside the client's own environment.
        modules: what is given to ``module load``, in order.
        setup: shell lines that run before Python starts.
        after: id of a job that must have ended before this one starts, or None.
        warning: seconds before the time limit at which the node is warned, or None.
        may_requeue: whether a task may be started again.
        container: the image in which the node runs, or None.
        folders: what of the client's folders it must see there.
        ranks: how many processes with *cpus_per_task* CPUs each call the function of a task together.
    """

    run_folder: Path
    name: str
    round: int = 0
    array: int = 0
    first_task: int = 0
    length: int = 1
    throttle: int | None = None
    cwd: Path | None = None
    python: tuple[str, ...] = ("python3",)
    cpus_per_task: int = 1
    threads: int = 1
    options: Mapping[str, str | bool] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    after: str | None = None
    warning: int | None = None
    may_requeue: bool = False
    container: Container | None = None
    folders: tuple[Path, ...] = ()
    ranks: int = 1

    def command(self, task: str) -> tuple[str, ...]:
        """Return the node's command line for a task index (or the shell word for one), which is its last word.

        Raises:
            OptionError: its container cannot bind one of the folders.
        """
        return self.inside((*self.python, "-m", "slurmlaunch.node", str(self.run_folder), task))

    def inside(self, words: tuple[str, ...]) -> tuple[str, ...]:
        """Return the command line that runs another where the node is to run: in the container, if there is one.

        Raises:
            OptionError: the container cannot bind one of the folders.
        """
        if self.container is None:
            return words
        gpus = asks_for_gpus(self.options, self.flags)
        return self.container.command(words, cwd=self.cwd or Path.cwd(), folders=self.folders, gpus=gpus)


@dataclass(frozen=True)
class TaskRecord:
    """What the scheduler says of one element of an array.

    Attributes:
        state: its state.
        exit_code: Slurm's ``code:signal``, where it is known.
        node: the machine, where it is known.
        reason: why it waits or was ended, where the scheduler says so.
    """

    state: TaskState
    exit_code: str | None = None
    node: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Limits:
    """What the cluster allows.

    Attributes:
        max_array_size: elements of one array (Slurm's ``MaxArraySize``, whose
            largest index is one less), or None for no limit.
        cpus: CPUs of the machine, where the backend clips to it; None elsewhere.
    """

    max_array_size: int | None = None
    max_array_tasks: int | None = None
    max_submit: int | None = None
    cpus: int | None = None


class Snapshot(Protocol):
    """What the scheduler said at one moment."""

    @property
    def taken(self) -> float:
        """When, in seconds since the epoch (`time.time`)."""

    def get(self, job_id: str, element: int) -> TaskRecord | None:
        """Return what is known of an element; None means not yet, never gone."""


OF_THE_CLIENT = frozenset({"local", "allocation"})
"""The backends whose tasks the client runs itself, waits for when it exits, and takes along when it is killed."""


class Backend(Protocol):
    """Where tasks run. All methods may be called from any thread."""

    name: str

    query_every: float
    """How often `query` is worth a call, in seconds."""

    def limits(self) -> Limits:
        """Return what the cluster allows; asked once, then remembered."""

    def launcher(self, ranks: int, cpus_per_task: int, options: Mapping[str, str | bool]) -> tuple[str, ...] | None:
        """Return the words that start a command once for each of so many ranks of a task, each with these CPUs.

        *options* are sbatch's, as of an `ArrayJob`.
        No words where the node is to start the ranks itself; None where a task has one rank.
        """

    def script(self, job: ArrayJob) -> str:
        """Return what `submit` would hand over, as a person reads it."""

    def submit(self, job: ArrayJob) -> str:
        """Start the array; return its job id.

        Raises:
            SubmissionError: the scheduler refused it.
        """

    def find(self, name: str, since: float) -> str | None:
        """Return the id of the job of that unique name, submitted after *since*, or None."""

    def cancel(self, job_id: str, elements: Collection[int] | None = None) -> None:
        """End a job, or these of its elements, pending or running, in one call."""

    def requeue(self, job_id: str, element: int) -> None:
        """End a running element and start it again.

        Raises:
            SchedulerError: the scheduler failed, or is not Slurm.
        """
        raise SchedulerError(f"element {element} of {job_id} cannot be requeued: only Slurm requeues tasks")

    def set_throttle(self, job_id: str, throttle: int | None, *, after: str | None = None) -> None:
        """Change how many elements run at once, while they run; *after* is a job to wait for first."""

    def query(self, job_ids: Collection[str]) -> Snapshot | None:
        """Return the newest snapshot that covers these jobs, asking if the last is too old.

        Where *job_ids* is a mapping, its values are the times of submission (`time.time`).
        May block for as long as the scheduler's commands are allowed to take, and
        never raises for a scheduler that is away: then the last answer, or None.
        """


_MEMORY = re.compile(r"(?P<number>\d+)(?P<unit>[KMGT]?)B?", re.IGNORECASE)
_POWER = {"K": 1, "": 2, "M": 2, "G": 3, "T": 4}

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<clock>\d+(?::\d+){0,2})")
_UNITS = {1: (60,), 2: (60, 1), 3: (3600, 60, 1)}
_UNITS_AFTER_DAYS = (3600, 60, 1)
_NO_TIME_LIMIT = ("UNLIMITED", "INFINITE")


def parse_time(text: str) -> float:
    """Return the seconds of a time in one of sbatch's formats.

    Unlike Slurm, which rounds up to minutes, a laptop has seconds.
    """
    if text.upper() in _NO_TIME_LIMIT:
        return math.inf
    found = _TIME.fullmatch(text)
    if not found:
        raise ValueError(text)
    fields = found["clock"].split(":")
    units = _UNITS_AFTER_DAYS if found["days"] else _UNITS[len(fields)]
    seconds = sum(int(value) * unit for value, unit in zip(fields, units, strict=False))
    # A limit of zero is none, in Slurm's words.
    return int(found["days"] or 0) * 86400 + seconds or math.inf


def parse_memory(text: str) -> float:
    """Return the bytes of an amount of memory as sbatch reads it: in megabytes by default."""
    found = _MEMORY.fullmatch(text)
    if not found:
        raise ValueError(text)
    # `--mem=0` asks for all there is.
    return int(found["number"]) * 1024 ** _POWER[found["unit"].upper()] or math.inf
