"""The errors of slurmlaunch, as one tree.

::

    SlurmlaunchError
    ├── UnknownOption (TypeError)      neither sbatch nor slurmlaunch has this option
    ├── OptionError (ValueError)       an option with an impossible value
    ├── NotPicklable (PicklingError)   the function or an argument does not pickle
    ├── SubmissionError                the scheduler refused the run
    ├── SchedulerError                 a scheduler command failed, or timed out
    ├── MissingPackage (ImportError)   a feature needs a package that is not installed
    ├── RunFolderError                 a run folder that cannot be used
    │   ├── UnsafeRunFolder            another user owns it, or may write to it
    │   └── UnknownProtocol            written by a newer slurmlaunch
    └── ItemError                      an item without a value or an exception of its function
        ├── ResultLost                 a recorded outcome cannot be read
        ├── UnpicklableResult          the result does not pickle, or not here
        ├── FunctionExited             the function called sys.exit()
        ├── NodeStartError             the node could not start the function
        └── TaskEnded                  something from outside ended the task or the process
            ├── WorkerDied             the process that ran the item died
            ├── OutOfMemory            the memory limit was hit
            ├── TimeLimitExceeded      the time limit was hit
            ├── NodeFailure            the machine failed
            ├── StorageFailure         the run folder could not be written or read
            ├── Preempted              a job of higher priority took the place
            └── TaskCancelled          someone else cancelled it

An exception of the user's function is none of these: it is raised unchanged. Every error carries its data as fields
and pickles with them. Failures in run folders refer to this module's classes, `Place` and `_rebuild` by name: these
names are part of the format. All layers raise these errors.
"""

from __future__ import annotations

import os
import signal as signals
import sys
from pickle import PicklingError
from typing import Any, NamedTuple, TypeVar


class SlurmlaunchError(Exception):
    """The root of slurmlaunch's own errors.

    Subclasses are plain classes whose keyword arguments become fields; the message is made from them, so that an error
    can be completed on the way to the user, with its job id for example.
    """

    def __init__(self, message: str = "", /, **fields: Any) -> None:
        super().__init__(message)
        self.__dict__.update(fields)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the class, the message and the fields, without the arguments of ``__init__``."""
        return (_rebuild, (type(self), self.args, self.__dict__))


_Error = TypeVar("_Error", bound=SlurmlaunchError)


def _rebuild(cls: type[_Error], args: tuple[object, ...], fields: dict[str, Any]) -> _Error:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(fields)
    return error


class UnknownOption(SlurmlaunchError, TypeError):
    """An option that neither sbatch nor slurmlaunch has, or that slurmlaunch sets itself.

    Attributes:
        option: the given name.
        suggestions: the nearest valid names, best first.
    """

    option: str = ""
    suggestions: tuple[str, ...] = ()


class OptionError(SlurmlaunchError, ValueError):
    """An option with an impossible value (a line break, more threads than CPUs, ...)."""

    option: str = ""  # its name


class NotPicklable(SlurmlaunchError, PicklingError):
    """The function or one of its arguments does not pickle; nothing was submitted.

    Attributes:
        path: the part that does not pickle, as ``"closure variable 'lock'"`` or
            ``"argument 0, attribute 'connection'"``.
    """

    path: str = ""


class MissingPackage(SlurmlaunchError, ImportError):
    """A feature needs a package that is not installed here.

    Attributes:
        package: its name on PyPI.
        python: the Python in which it is missing.
    """

    package: str = ""
    python: str = ""

    @classmethod
    def of(cls, feature: str, package: str) -> MissingPackage:
        """Return the error of a feature that needs a package, with the command that installs it."""
        import shlex  # here, because a node must start fast

        message = f"{feature} needs {package}: install it with {sys.executable} -m pip install {shlex.quote(package)}"
        return cls(message, package=package, python=sys.executable)


class SubmissionError(SlurmlaunchError):
    """The scheduler refused the job.

    Attributes:
        command: the refused command line.
        stderr: its standard error.
        returncode: its exit status, or None if it did not end in time.
        job_name: the unique name of the job.
        ambiguous: whether the job may be in the queue nevertheless.
        no_room: whether a limit on the number of queued jobs was hit.
        limit: that limit, if it is known; each task of an array counts.
        transient: whether the scheduler was unavailable, so that it may accept the same job later.
    """

    command: tuple[str, ...] = ()
    stderr: str = ""
    returncode: int | None = None
    job_name: str = ""
    ambiguous: bool = False
    no_room: bool = False
    limit: int | None = None
    transient: bool = False


class SchedulerError(SlurmlaunchError):
    """A scheduler command other than a submission failed or did not end in time.

    Attributes: as of `SubmissionError`.
    """

    command: tuple[str, ...] = ()
    stderr: str = ""
    returncode: int | None = None


class RunFolderError(SlurmlaunchError):
    """A folder that cannot be used as a run folder."""

    path: str = ""  # the folder or file
    is_removed: bool = False  # another process removes it, or began to
    offset: int | None = None  # the damaged position in the file, in bytes, if known


class UnsafeRunFolder(RunFolderError):
    """A folder or file that another user owns or may write to: nothing in it is unpickled."""


class UnknownProtocol(RunFolderError):
    """A run folder written in a protocol that this version does not know."""


class Place(NamedTuple):
    """The task, job and machine of an item, for the message of an `ItemError`."""

    item: int | None = None
    task: int | None = None
    job_id: str | None = None
    node: str | None = None
    log: str | None = None
    image: str | None = None

    def __str__(self) -> str:
        """Return ``item 3, task 1, job 123_1, node n1``, as far as these are known."""
        named = {"item": self.item, "task": self.task, "job": self.job_id, "node": self.node, "image": self.image}
        return ", ".join(f"{word} {value}" for word, value in named.items() if value is not None)


class ItemError(SlurmlaunchError):
    """An item ended without a value and without an exception of the user's function.

    Attributes:
        what: one sentence that says what happened.
        advice: a sentence that says what to do.
        place: item, task, job, node, log and container image, as far as they are known.
    """

    what: str = "the item ended without an outcome"
    advice: str = ""
    place: Place = Place()

    def __init__(self, what: str = "", /, **fields: Any) -> None:
        super().__init__(what, **fields)
        if what:
            self.what = what

    @property
    def item(self) -> int | None:
        """The index of the item in its run."""
        return self.place.item

    @property
    def task(self) -> int | None:
        """The index of the task in its run."""
        return self.place.task

    @property
    def job_id(self) -> str | None:
        """The Slurm job id of the task, as ``"123_4"``."""
        return self.place.job_id

    @property
    def node(self) -> str | None:
        """The name of the machine."""
        return self.place.node

    @property
    def log(self) -> str | None:
        """The path of the task's standard error."""
        return self.place.log

    def for_item(self, item: int) -> ItemError:
        """Return a copy for one item, because one cause may end many items."""
        copy = _rebuild(type(self), self.args, self.__dict__)
        copy.__notes__ = [*getattr(self, "__notes__", ())]
        copy.place = self.place._replace(item=item)
        copy.__cause__ = self.__cause__  # the remote traceback
        return copy

    def located(self, **known: Any) -> ItemError:
        """Fill in the fields of the place that are still missing; return the error itself."""
        missing = {k: v for k, v in known.items() if getattr(self.place, k) is None}
        self.place = self.place._replace(**missing)
        return self

    def __str__(self) -> str:
        """Return the cause, the place, the advice and the log, as far as they are known."""
        where = str(self.place)
        lines = [f"{self.what} ({where})" if where else self.what]
        if self.advice:
            lines.append(self.advice)
        if self.log:
            lines.append(f"log: {self.log}")
        return "\n".join(lines)


class ResultLost(ItemError):
    """An outcome that was or should have been recorded cannot be read.

    Attributes:
        file: the file that should hold it, if known.
        offset: the position in it, in bytes.
    """

    what = "the outcome is not on disk"
    advice = (
        "A fault of the storage or another program may have damaged or removed the file; .retry() runs the item again."
    )
    file: str | None = None
    offset: int | None = None

    def __str__(self) -> str:
        """Return the message of every `ItemError`, and the position in the file."""
        said = super().__str__()
        return f"{said}\nfile: {self.file}, at byte {self.offset or 0}" if self.file else said


class UnpicklableResult(ItemError):
    """The function returned something that does not pickle, or does not unpickle here."""

    what = "the result does not pickle"
    type_name: str = ""  # the type of the result


class FunctionExited(ItemError):
    """The function called `sys.exit`: the `SystemExit` itself would end the program that asks for the result."""

    what = "the function called sys.exit()"
    advice = "Return a value, or raise an exception that says what is wrong."
    code: object = None  # the argument: a status, a message, or None


class NodeStartError(ItemError):
    """The node could not start the function."""

    what = "the node could not start"
    exit_code: int | None = None  # the node's exit status, if it ended by itself


class TaskEnded(ItemError):
    """Something from outside ended the task, or the process that ran the item.

    Attributes:
        state: Slurm's state of the task, if Slurm reported one.
        exit_code: Slurm's ``code:signal``, if known.
    """

    state: str | None = None
    exit_code: str | int | None = None


_REST = "Finished items keep their results: .retry() runs only the others again."


class WorkerDied(TaskEnded):
    """The process that ran the item died: a signal, ``os._exit``, a crash.

    Attributes:
        signal: the number of the signal, or None.
        exit_code: the exit status, or None.
        rank: the number of the rank, if several ran the item (``ntasks=``).
    """

    signal: int | None = None
    rank: int | None = None

    @classmethod
    def of(
        cls, signal: int | None, exit_code: int | None, who: str = "the process that ran the item", **fields: Any
    ) -> WorkerDied:
        """Return the error for a signal or an exit status."""
        cause = f"ended with exit status {exit_code}" if signal is None else f"was killed by {signal_name(signal)}"
        return cls(
            f"{who} {cause}",
            signal=signal,
            exit_code=exit_code,
            **{"advice": _DEATH_ADVICE.get(signal or 0, ""), **fields},
        )


_DEATH_ADVICE: dict[int, str] = {
    signals.SIGSEGV: "This is a crash in compiled code, or a recursion too deep for the C stack: "
    "run the item alone with cluster='local' and PYTHONFAULTHANDLER=1 to see where.",
    signals.SIGKILL: "Something outside killed it: most often the kernel, for want of memory (then ask for more with "
    "mem=..., or run fewer items side by side), else an administrator, a clean-up of the node, or a `kill` by another "
    "job or program of yours.",
    signals.SIGXCPU: "It used up the CPU time of a process (`ulimit -t` shows the limit): raise the limit where you "
    "make the call, since tasks inherit it, or in setup=[...].",
    signals.SIGXFSZ: "It wrote more to a file than a process may (`ulimit -f` shows the limit): raise the limit where "
    "you make the call, since tasks inherit it, or in setup=[...].",
    signals.SIGBUS: "This is often a full file system behind mapped memory, such as /dev/shm or /tmp.",
    signals.SIGILL: "Compiled code was built for another kind of CPU: build it on such a node, or choose nodes with "
    "constraint=...",
}


SIGNALLED = 128
"""What a shell, or a launcher, adds to the number of a signal that ended a program for its exit status."""

LOG_LINES = 12
"""How many of the last lines of a log an error shows."""


def signal_name(number: int) -> str:
    """Return ``SIGKILL (9)`` for 9, or ``signal 99`` for a signal without a name."""
    try:
        return f"{signals.Signals(number).name} ({number})"
    except ValueError:
        return f"signal {number}"


class OutOfMemory(TaskEnded):
    """The task, or one of its processes, used more memory than it requested."""

    what = "the memory limit was hit"
    advice = "Ask for more with mem=... or mem_per_cpu=..., or run fewer items side by side."


class TimeLimitExceeded(TaskEnded):
    """The task ran into its time limit.

    Attributes:
        limit: the limit in seconds, if it was given.
    """

    what = "the time limit was hit"
    advice = (
        "Run the missing items again with more time, with .retry(time=...), or give each task fewer items with "
        "chunksize=..."
    )
    limit: float | None = None

    def with_limit(self, seconds: float | None) -> TimeLimitExceeded:
        """Name the limit in the message; return the error itself."""
        from datetime import timedelta  # here, because a node must start fast

        self.limit = seconds
        if seconds is not None:
            self.what = self.what.replace("the time limit", f"the time limit of {timedelta(seconds=seconds)}", 1)
        return self


_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")


def amount(size: float) -> str:
    """Return a number of bytes with a unit: ``1.5 GiB``."""
    power = min(max(int(size).bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    return f"{size / 1024**power:.4g} {_UNITS[power]}"


class NodeFailure(TaskEnded):
    """The machine that ran the task failed."""

    what = "the node failed"
    advice = f"The machine crashed, was switched off or was taken out of service. {_REST}"


class StorageFailure(TaskEnded):
    """The run folder could not be written or read: a full disk, a quota, a file server that is away.

    Attributes:
        errno: the system's number of the error, such as `errno.ENOSPC`, if known.
    """

    what = "the run folder could not be written or read"
    advice = "Free space or have the storage mended, then run the missing items again with .retry()."
    errno: int | None = None

    @classmethod
    def of(cls, number: int | None, what: str = "", **fields: Any) -> StorageFailure:
        """Return the error for one of the system's errors, whose words come first."""
        words = os.strerror(number) if number else ""
        return cls(": ".join(filter(None, (words, what or cls.what))), errno=number, **fields)


class Preempted(TaskEnded):
    """The task was stopped in favour of a job of higher priority."""

    what = "the task was preempted"
    advice = f"A job of higher priority got its place. {_REST}"


class TaskCancelled(TaskEnded):
    """Someone else cancelled the task; our own cancel is `concurrent.futures.CancelledError`."""

    what = "the task was cancelled from outside"
    advice = (
        "Someone called scancel for the job (you in a shell, another program of yours, an administrator), or Slurm "
        f"cancelled it for a limit or a dependency. {_REST}"
    )
