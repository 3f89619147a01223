"""The protocol of a backend: its input, an `ArrayJob`, and its reports, a `Snapshot`.

The client uses every backend through `Backend`, and each backend implements it. A backend starts, stops and requeues
the tasks of one array and reports their states. It must not know functions, items and outcomes: these lie in the run
folder.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from slurmlaunch.backends.container import asks_for_gpus
from slurmlaunch.errors import SchedulerError
from slurmlaunch.runfolder.environment import Environment
from slurmlaunch.runfolder.layout import RunFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from slurmlaunch.backends.container import Container


class TaskState(StrEnum):
    """The state of a task in the scheduler, in Slurm's words.

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

    @property
    def is_final(self) -> bool:
        """Whether a task in this state never runs again by itself."""
        return self in _FINAL

    @property
    def is_queued(self) -> bool:
        """Whether a task in this state waits to start."""
        return self in _QUEUED

    @property
    def has_begun(self) -> bool:
        """Whether a task in this state has started; an unknown state says nothing of that."""
        return not self.is_queued and self is not TaskState.UNKNOWN

    @classmethod
    def parse(cls, text: str) -> TaskState:
        """Read a state as squeue or sacct print it, ``CANCELLED by 1000`` included.

        An unknown word (of a newer Slurm) is `UNKNOWN`, which is not final.
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
    """One job array to submit: everything that a backend needs to know, and nothing else."""

    run_folder: Path  # absolute
    name: str  # unique to this array: ``[A-Za-z0-9._-]``, at most 64 characters
    round: int = 0  # the submission round that the array belongs to
    array: int = 0  # its number within the round
    first_task: int = 0  # the task index of element 0
    length: int = 1
    throttle: int | None = None  # how many elements may run at once (``%N``)
    cwd: Path | None = None
    python: tuple[str, ...] = ("python3",)
    module: str = "slurmlaunch.node"  # that Python runs, with the run folder and the task index
    cpus_per_task: int = 1
    threads: int = 1  # CPUs of each pool process (see `slurmlaunch.caps`)
    # sbatch's long option names (with underscores): text without line breaks, or True for a bare flag.
    options: Mapping[str, str | bool] = field(default_factory=dict)
    flags: tuple[str, ...] = ()  # further sbatch arguments, passed on unchanged
    env: Mapping[str, str] = field(default_factory=dict)  # in addition to the environment
    secret_env: Mapping[str, str] = field(default_factory=dict)  # the same; a script must not hold them
    environment: Environment = field(default_factory=Environment.of_this_process)  # of the submission
    modules: tuple[str, ...] = ()  # the arguments of ``module load``, in order
    setup: tuple[str, ...] = ()  # shell lines that run before Python starts
    after: str | None = None  # the id of a job that must have ended before this one starts
    warning: int | None = None  # seconds before the time limit at which the node receives USR1
    may_requeue: bool = False
    container: Container | None = None
    folders: tuple[Path, ...] = ()  # the client's folders that must be visible in the container
    shares: bool = False  # whether its tasks share the items, so that some may find none
    ranks: int = 1  # the processes, with *cpus_per_task* CPUs each, that call the function of a task together
    alone: bool = False  # a single job of one task, since the cluster has no arrays
    recognized_by: str = ""  # in the run folder: nobody else knows its name (`RunFolder.secret_file`)
    exposed: bool = False  # whether another user may exchange the run folder, or a folder above it
    held: RunFolder | None = field(default=None, compare=False, repr=False)  # the folder as the client holds it

    @property
    def folder(self) -> RunFolder:
        """The run folder, for a backend of this process: by its path it may be another one by now."""
        return self.held or RunFolder(self.run_folder)

    def command(self, task: str) -> tuple[str, ...]:
        """Return the node's command line; its last word is *task*, a task index or the shell word for one.

        Raises:
            OptionError: the container cannot bind one of the folders.
        """
        words = (*self.python, "-P", "-m", self.module, str(self.run_folder), task)
        if self.container is None:
            return words
        gpus = asks_for_gpus(self.options, self.flags)
        return self.container.command(words, cwd=self.cwd or Path.cwd(), folders=self.folders, gpus=gpus)


@dataclass(frozen=True)
class TaskRecord:
    """The scheduler's record of one element of an array; None is not known."""

    state: TaskState
    exit_code: str | None = None  # Slurm's ``code:signal``
    node: str | None = None
    reason: str | None = None  # why it is pending or was ended, in the scheduler's words
    starts: float | None = None  # of a pending one: its expected start, in seconds since the epoch


@dataclass(frozen=True)
class Limits:
    """The limits of a cluster; None is no limit."""

    max_array_size: int | None = None  # elements of one array, by Slurm's ``MaxArraySize``: the largest index + 1
    max_array_tasks: int | None = None  # the same, by Slurm's ``max_array_tasks``
    max_submitted: int | None = None  # tasks of the user in the queue; known after a refusal
    cpus: int | None = None  # of the machine, if a task gets no more
    side_by_side: bool = True  # whether tasks run at the same time


class Snapshot(NamedTuple):
    """One answer of the scheduler: the records of tasks at one moment."""

    taken: float  # in seconds since the epoch (`time.time`)
    jobs: Mapping[str, Callable[[int], TaskRecord | None]]  # by job id: the record of an element

    def get(self, job_id: str, element: int) -> TaskRecord | None:
        """Return the record of an element; None means "not listed yet", never "ended"."""
        return self.jobs[job_id](element) if job_id in self.jobs else None


OF_THE_CLIENT = frozenset({"local", "allocation"})
"""The backends whose tasks belong to the client: it waits for them at exit, and they end if it is killed."""


class Backend(Protocol):
    """A place where tasks run. All methods may be called from any thread."""

    name: str

    query_every: float
    """Seconds between two calls of `query`; more frequent ones return nothing new."""

    def limits(self) -> Limits:
        """Return the limits of the cluster; asked once, then remembered."""

    def cluster_name(self) -> str | None:
        """Return Slurm's name of the cluster, or None: tasks run elsewhere, or on the first of several that has room.

        Raises:
            SchedulerError: Slurm does not say.
        """
        return None

    def launcher(self, ranks: int, cpus_per_task: int, options: Mapping[str, str | bool]) -> tuple[str, ...] | None:
        """Return the words that start a command once per rank, each with *cpus_per_task* CPUs.

        *options* are sbatch's, as in an `ArrayJob`. No words if the node must start the ranks
        itself; None if a task always has one rank.
        """

    def script(self, job: ArrayJob) -> str:
        """Return the script that `submit` would pass on, as text for a person."""

    def submit(self, job: ArrayJob) -> str:
        """Submit the array; return its job id.

        Raises:
            OptionError: a value cannot stand in a batch script.
            SubmissionError: the array was refused, cannot run here, or was not confirmed in time.
        """

    def find(self, name: str, since: float) -> str | None:
        """Return the id of the job of that unique name, submitted after *since* (`time.time`), or None.

        Raises:
            SchedulerError: the scheduler failed.
        """

    def cancel(self, job_id: str, elements: Collection[int] | None = None) -> None:
        """Cancel a job, or some of its elements, pending or running, in one call.

        An element that has ended is no error.

        Raises:
            SchedulerError: the scheduler failed.
        """

    def disown(self) -> None:
        """Leave the tasks that this process runs itself, if any, to the parent of this forked child."""
        return

    def requeue(self, job_id: str, element: int) -> None:
        """End a running element and start it again.

        Raises:
            SchedulerError: the scheduler failed, or is not Slurm.
        """
        raise SchedulerError(f"element {element} of {job_id} cannot be requeued: only Slurm requeues tasks")

    def set_throttle(self, job_id: str, throttle: int | None, *, after: str | None = None) -> None:
        """Change how many elements run at once (None: all), unless the job has ended.

        With *after* the job also waits for that job, unless it has started.

        Raises:
            SchedulerError: the scheduler failed, or another living process runs the job.
        """

    def query(self, job_ids: Collection[str]) -> Snapshot | None:
        """Return the newest snapshot of these jobs, asking the scheduler if the last is too old.

        If *job_ids* is a mapping, its values are the times of submission (`time.time`).
        May block for as long as the scheduler's commands may take. Never raises if the
        scheduler is unreachable: then it returns the last snapshot, or None.
        """

    def listed(self, job_ids: Collection[str]) -> set[str]:
        """Return those of the jobs that may still run, asking the scheduler now.

        Raises:
            SchedulerError: it does not answer.
        """
        del job_ids
        return set()


_MEMORY = re.compile(r"(?P<number>\d+)(?P<unit>[KMGT]?)B?", re.IGNORECASE)
_POWER = {"K": 1, "": 2, "M": 2, "G": 3, "T": 4}

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<clock>\d+(?::\d+){0,2})")


def parse_time(text: str) -> float:
    """Return the seconds of a time in one of sbatch's formats; `math.inf` for no limit.

    Slurm rounds up to minutes; this does not, so that a laptop can use seconds.

    Raises:
        ValueError: *text* has none of the formats.
    """
    if text.upper() in {"UNLIMITED", "INFINITE"}:
        return math.inf
    found = _TIME.fullmatch(text)
    if not found:
        raise ValueError(text)
    fields = found["clock"].split(":")
    units = (60, 1) if len(fields) < 3 and not found["days"] else (3600, 60, 1)  # noqa: PLR2004
    seconds = sum(int(value) * unit for value, unit in zip(fields, units, strict=False))
    # For Slurm a limit of zero is no limit.
    return int(found["days"] or 0) * 86400 + seconds or math.inf


def parse_memory(text: str) -> float:
    """Return the bytes of an amount of memory as sbatch reads it: in megabytes by default; `math.inf` for all.

    Raises:
        ValueError: *text* is no amount of memory.
    """
    found = _MEMORY.fullmatch(text)
    if not found:
        raise ValueError(text)
    # `--mem=0` asks for all memory of the node.
    return int(found["number"]) * 1024 ** _POWER[found["unit"].upper()] or math.inf
