"""What can go wrong, as one tree.

::

    SlurmlaunchError
    ├── UnknownOption (TypeError)      an option that sbatch and we do not have
    ├── OptionError (ValueError)       an option whose value cannot be
    ├── NotPicklable (PicklingError)   what was submitted does not pickle
    ├── SubmissionError                the scheduler refused the run
    ├── SchedulerError                 a scheduler command failed, or timed out
    ├── MissingPackage (ImportError)   a feature needs a package that is not installed
    ├── RunFolderError                 a run folder that cannot be used
    │   ├── UnsafeRunFolder            another user owns it, or may write to it
    │   └── UnknownProtocol            written by a newer slurmlaunch
    └── ItemError                      an item that came to no outcome of its own
        ├── ResultLost                 what was recorded cannot be read
        ├── UnpicklableResult          the result does not pickle, or not here
        ├── NodeStartError             the node could not start the function
        └── TaskEnded                  the task, or the process, was ended
            ├── WorkerDied             the process that ran the item died
            ├── OutOfMemory            the memory limit was hit
            ├── TimeLimitExceeded      the time limit was hit
            ├── NodeFailure            the machine failed
            ├── Preempted              a job with more right took the place
            └── TaskCancelled          someone else cancelled it

What the user's function raised is none of these: it comes back as itself.
Every error carries its data as fields and pickles with them.
"""

from __future__ import annotations

import signal as signals
import sys
from pickle import PicklingError
from typing import Any, NamedTuple


class SlurmlaunchError(Exception):
    """The root of everything that slurmlaunch raises by itself.

    Subclasses are plain classes whose keyword arguments become fields; the
    message is made from them, so that an error can be completed (with its job
    id, say) on the way to the user.
    """

    def __init__(self, message: str = "", /, **fields: Any) -> None:
        super().__init__(message)
        self.__dict__.update(fields)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the class, the message and the fields, whatever ``__init__`` takes."""
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(cls: type[SlurmlaunchError], args: tuple[object, ...], fields: dict[str, Any]) -> SlurmlaunchError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(fields)
    return error


class UnknownOption(SlurmlaunchError, TypeError):
    """An option name that neither sbatch nor slurmlaunch knows, or that is ours to set.

    Attributes:
        option: the name that was given.
        suggestions: the nearest valid names, best first.
    """

    option: str = ""
    suggestions: tuple[str, ...] = ()


class OptionError(SlurmlaunchError, ValueError):
    """An option whose value cannot be (a line break, more threads than CPUs, ...).

    Attributes:
        option: the name of the option.
    """

    option: str = ""


class NotPicklable(SlurmlaunchError, PicklingError):
    """The function or one of its arguments does not pickle; nothing was submitted.

    Attributes:
        path: where the culprit is, as ``"closure variable 'lock'"`` or
            ``"argument 0, attribute 'connection'"``.
    """

    path: str = ""


class MissingPackage(SlurmlaunchError, ImportError):
    """A feature needs a package that is not installed here.

    Attributes:
        package: what to install, as pip names it.
        python: the Python that it is missing from.
    """

    package: str = ""
    python: str = ""

    @classmethod
    def of(cls, feature: str, package: str) -> MissingPackage:
        """Return the error of a feature that needs a package, saying how it is installed."""
        import shlex  # here, as a node is to start soon

        message = f"{feature} needs {package}: install it with {sys.executable} -m pip install {shlex.quote(package)}"
        return cls(message, package=package, python=sys.executable)


class SubmissionError(SlurmlaunchError):
    """The scheduler refused the job.

    Attributes:
        command: the command line that was refused.
        stderr: what it printed.
        returncode: its exit status, or None where it did not end in time.
        job_name: the unique name of the job.
        ambiguous: whether the job may be in the queue all the same.
        no_room: whether a limit on what one may have in the queue was hit.
        transient: whether the scheduler was away, so that the same may be accepted later.
    """

    command: tuple[str, ...] = ()
    stderr: str = ""
    returncode: int | None = None
    job_name: str = ""
    ambiguous: bool = False
    no_room: bool = False
    transient: bool = False


class SchedulerError(SlurmlaunchError):
    """A scheduler command other than a submission failed or did not end in time.

    Attributes: as of `SubmissionError`.
    """

    command: tuple[str, ...] = ()
    stderr: str = ""
    returncode: int | None = None


class RunFolderError(SlurmlaunchError):
    """A run folder that cannot be used as one.

    Attributes:
        path: the folder or file.
    """

    path: str = ""


class UnsafeRunFolder(RunFolderError):
    """A folder or file that another user owns or may write to: nothing in it is unpickled."""


class UnknownProtocol(RunFolderError):
    """A run folder written in a protocol that this version does not know."""


class Place(NamedTuple):
    """Where an item ran: what an `ItemError` says after its first sentence."""

    item: int | None = None
    task: int | None = None
    job_id: str | None = None
    node: str | None = None
    log: str | None = None
    image: str | None = None

    def __str__(self) -> str:
        """Return ``item 3, task 1, job 123_1, node n1``, as far as it is known."""
        named = (
            ("item", self.item),
            ("task", self.task),
            ("job", self.job_id),
            ("node", self.node),
            ("image", self.image),
        )
        return ", ".join(f"{word} {value}" for word, value in named if value is not None)


class ItemError(SlurmlaunchError):
    """An item ended without a value and without an exception of the user's function.

    Attributes:
        what: one sentence: what happened.
        advice: what to do about it.
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
        """Return a copy that names an item: one cause may end many."""
        copy = type(self).__new__(type(self), *self.args)
        copy.args = self.args
        copy.__dict__.update(self.__dict__)
        copy.place = self.place._replace(item=item)
        copy.__cause__ = self.__cause__  # the remote traceback
        return copy

    def located(self, **known: Any) -> ItemError:
        """Fill in what is not yet known of the place; return the error itself."""
        missing = {k: v for k, v in known.items() if getattr(self.place, k) is None}
        self.place = self.place._replace(**missing)
        return self

    def __str__(self) -> str:
        """Return what happened, where, and what to do."""
        where = str(self.place)
        lines = [f"{self.what} ({where})" if where else self.what]
        if self.advice:
            lines.append(self.advice)
        if self.log:
            lines.append(f"log: {self.log}")
        return "\n".join(lines)


class ResultLost(ItemError):
    """An outcome that was recorded, or should have been, cannot be read.

    Attributes:
        file: the file that should hold it, if one is known.
        offset: the position in it, in bytes.
    """

    what = "the outcome is not on disk"
    file: str | None = None
    offset: int | None = None

    def __str__(self) -> str:
        """Return what happened, and where in which file."""
        said = super().__str__()
        return f"{said}\nfile: {self.file}, at byte {self.offset or 0}" if self.file else said


class UnpicklableResult(ItemError):
    """The function returned something that does not pickle, or does not unpickle here.

    Attributes:
        type_name: the type of the result.
    """

    what = "the result does not pickle"
    type_name: str = ""


class NodeStartError(ItemError):
    """The node could not get as far as calling the function.

    Attributes:
        exit_code: the node's exit status, where it ended by itself.
    """

    what = "the node could not start"
    exit_code: int | None = None


class TaskEnded(ItemError):
    """Something from outside ended the task, or the process that ran the item.

    Attributes:
        state: Slurm's word for it, where Slurm said one.
        exit_code: Slurm's ``code:signal``, where it is known.
    """

    state: str | None = None
    exit_code: str | int | None = None


class WorkerDied(TaskEnded):
    """The process that ran the item died: a signal, ``os._exit``, a crash.

    Attributes:
        signal: the number of the signal, or None.
        exit_code: the exit status, or None.
        rank: which rank it was, where the item was run by several (``ntasks=``).
    """

    signal: int | None = None
    rank: int | None = None

    @classmethod
    def of(
        cls, signal: int | None, exit_code: int | None, who: str = "the process that ran the item", **fields: Any
    ) -> WorkerDied:
        """Return the error that names the signal or the exit status."""
        cause = f"ended with exit status {exit_code}" if signal is None else f"was killed by {signal_name(signal)}"
        return cls(
            f"{who} {cause}",
            signal=signal,
            exit_code=exit_code,
            **{"advice": _DEATH_ADVICE.get(signal or 0, ""), **fields},
        )


_DEATH_ADVICE: dict[int, str] = {
    signals.SIGSEGV: "A crash in compiled code or a recursion too deep for the C stack: "
    "run the item alone with cluster='local' and PYTHONFAULTHANDLER=1 to see where.",
    signals.SIGKILL: "Often the memory limit: give the task more with mem=...",
}


def signal_name(number: int) -> str:
    """Return ``SIGKILL (9)`` for 9, or ``signal 99`` for what has no name."""
    try:
        return f"{signals.Signals(number).name} ({number})"
    except ValueError:
        return f"signal {number}"


class OutOfMemory(TaskEnded):
    """The task, or one of its processes, used more memory than was asked for."""

    what = "the memory limit was hit"
    advice = "Ask for more with mem=... or mem_per_cpu=..., or run fewer items side by side."


class TimeLimitExceeded(TaskEnded):
    """The task ran into its time limit."""

    what = "the time limit was hit"
    advice = "Ask for more with time=..., or give each task fewer items with chunksize=..."


class NodeFailure(TaskEnded):
    """The machine that ran the task failed."""

    what = "the node failed"
    advice = "Run what is missing again with .retry()."


class Preempted(TaskEnded):
    """The task was stopped for a job with more right to the machine."""

    what = "the task was preempted"
    advice = "Run what is missing again with .retry()."


class TaskCancelled(TaskEnded):
    """Someone else cancelled the task; our own cancel is `concurrent.futures.CancelledError`."""

    what = "the task was cancelled from outside"
    advice = "Run what is missing again with .retry()."
