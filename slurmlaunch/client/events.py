"""The events that the state machine of a run handles, and the effects that it returns.

The collector makes events from the run folder, `Run`, `Submission` and the watcher those of this process and of the
scheduler. `RunState` handles events and returns effects, which the watcher and `Run` execute while nothing is locked.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from slurmlaunch.backends.base import Snapshot
    from slurmlaunch.client.ledger import ItemStatus
    from slurmlaunch.client.options import Options
    from slurmlaunch.runfolder.files import Location
    from slurmlaunch.runfolder.layout import EndMark
    from slurmlaunch.runfolder.outcomes import Recorded
    from slurmlaunch.runfolder.plan import RoundPlan
    from slurmlaunch.runfolder.rounds import SchedulerEnd

# Events from the run folder.


class AttemptSeen(NamedTuple):
    """A task has started: the outcome file of an attempt exists.

    *notes* are new notes of the attempt about itself (``started``, ``ended``, ``node``, ``peak``), *checkpoints* all
    that it has recorded so far, by item.
    """

    task: int
    attempt: int
    notes: Mapping[str, Any] = MappingProxyType({})
    checkpoints: Mapping[int, Recorded] = MappingProxyType({})


class OutcomesSeen(NamedTuple):
    """A record of outcomes of consecutive items; *error* stands for the failure that it holds, if that was read."""

    task: int
    recorded: Recorded
    error: BaseException | None = None


class DamageSeen(NamedTuple):
    """A damaged record; *items* are those whose outcomes it held, if its header is readable."""

    task: int
    file: Location
    offset: int
    items: range | None = None


class UnsafeSeen(NamedTuple):
    """The outcome file of a task may have been written by others, and is not read."""

    task: int
    file: Location
    reason: str


class EndMarkSeen(NamedTuple):
    """A start of a task has ended, and everything that it recorded has been read."""

    mark: EndMark


class ClaimsSeen(NamedTuple):
    """The claims folder of a dynamic round was read; *claims* are new positions and the tasks that have them."""

    round: int
    claims: tuple[tuple[range, int], ...] = ()


class CancellationSeen(NamedTuple):
    """Items of a round were cancelled, by whichever client."""

    round: int
    items: range


class JobsSeen(NamedTuple):
    """Job ids of arrays of a round, as its journal says; or *ours*: this client has submitted them."""

    round: int
    jobs: Mapping[int, str]
    ours: bool = False


class RoundAdded(NamedTuple):
    """A round was added to the run, by a manual or an automatic retry.

    *reopen*: its items, which have failed or are new, are open; only for a view of which nobody holds futures yet.
    Other views have no items that are new.
    """

    round: int
    plan: RoundPlan
    reopen: bool = False


class TaskFiles(NamedTuple):
    """A task whose files were read to the end: the size of the last file, and the end of its log."""

    task: int
    size: int = 0
    log_tail: str = ""


class TasksRead(NamedTuple):
    """Answer to `ReadTasks`: everything that these tasks recorded has been reported."""

    tasks: tuple[TaskFiles, ...]


class EndsRead(NamedTuple):
    """Answer to `ReadEnds`: the ends that earlier clients recorded."""

    ends: tuple[SchedulerEnd, ...]


class RunLost(NamedTuple):
    """The run cannot be watched any more: its folder is gone, or there is a fault in slurmlaunch."""

    error: BaseException


class Tick(NamedTuple):
    """Time has passed, and everything in the run folder has been reported."""


# Events from this process and the scheduler.


class SchedulerReported(NamedTuple):
    """One answer of the scheduler, about all tasks at once."""

    snapshot: Snapshot


class ArrayRefused(NamedTuple):
    """Nobody will submit an array any more."""

    round: int
    array: int
    error: BaseException


class TasksBeganAgain(NamedTuple):
    """Another attempt of these tasks has begun, after the given number, although they were taken for ended."""

    attempts: Mapping[int, int]


class ArrayNotNeeded(NamedTuple):
    """No item is left for an array that was not submitted."""

    round: int
    array: int


class RetryEnded(NamedTuple):
    """Answer to `SubmitRound`: it was submitted, or another client made the round; or *error* says why not."""

    error: Exception | None = None


RangesByRound: TypeAlias = tuple[tuple[int, tuple[range, ...]], ...]


class CancelRequested(NamedTuple):
    """The user cancels items; *only_queued* leaves out those whose tasks have started."""

    items: Sequence[int]
    only_queued: bool = False


class CancellationsRecorded(NamedTuple):
    """Answer to `RecordCancellations`: which of the ranges are on disk, by round, and which could not be written."""

    written: RangesByRound
    failed: RangesByRound = ()


class WatchEnded(NamedTuple):
    """Nothing is open any more, and the watcher stops watching the run."""


Event: TypeAlias = tuple[Any, ...]
"""One of the classes above. The method of `RunState` that handles it has the same name."""


# Effects.


class Settle(NamedTuple):
    """Items have settled with this status: notify their futures."""

    items: range
    status: ItemStatus


class ReadTasks(NamedTuple):
    """Read the files of tasks that have ended to the end, and the end of the log of some; answer `TasksRead`."""

    tasks: tuple[int, ...]
    logs: tuple[int, ...] = ()


class ReadEnds(NamedTuple):
    """Read the ends that earlier clients recorded; answer `EndsRead`."""


class RecordEnds(NamedTuple):
    """Write ends that the scheduler reported to a round: it forgets them, and a copied folder has no scheduler."""

    round: int
    ends: tuple[SchedulerEnd, ...]


class RecordCancellations(NamedTuple):
    """Write the cancellation of items to disk, by round; answer `CancellationsRecorded`."""

    ranges: RangesByRound


class SubmitRound(NamedTuple):
    """Make and submit a round that retries items; report `RoundAdded`, then `RetryEnded`."""

    items: tuple[int, ...]
    options: Options


Jobs: TypeAlias = tuple[tuple[str, tuple[int, ...] | None], ...]
"""Jobs, each with elements of it; None stands for all elements."""


class CancelJobs(NamedTuple):
    """Cancel jobs, or elements of jobs; *why* is for the log."""

    jobs: Jobs
    why: str


class Warn(NamedTuple):
    """Log a warning."""

    message: str


Effect: TypeAlias = tuple[Any, ...]
"""One of the classes above, from `Settle` on."""


def ranges_in(by_round: RangesByRound) -> list[range]:
    """Return the ranges of items of all rounds."""
    return [each for _, ranges in by_round for each in ranges]
