"""From the end of a task to an exception: the reasons of missing outcomes, by end marks and scheduler states.

Pure functions, used by `RunState`. Files are the truth; a state only explains why an
outcome is missing. To treat a new scheduler state, add it to `_BY_STATE`.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from slurmlaunch.backends.base import TaskState
from slurmlaunch.errors import (
    ItemError,
    NodeFailure,
    NodeStartError,
    OutOfMemory,
    Place,
    Preempted,
    ResultLost,
    TaskCancelled,
    TaskEnded,
    TimeLimitExceeded,
    WorkerDied,
)
from slurmlaunch.runfolder.layout import Status

if TYPE_CHECKING:
    from slurmlaunch.backends.base import TaskRecord
    from slurmlaunch.runfolder.layout import EndMark

_BY_STATE: dict[TaskState, type[TaskEnded]] = {
    TaskState.OUT_OF_MEMORY: OutOfMemory,
    TaskState.TIMEOUT: TimeLimitExceeded,
    TaskState.DEADLINE: TimeLimitExceeded,
    TaskState.NODE_FAIL: NodeFailure,
    TaskState.BOOT_FAIL: NodeFailure,
    TaskState.LAUNCH_FAILED: NodeFailure,
    TaskState.PREEMPTED: Preempted,
    TaskState.CANCELLED: TaskCancelled,
    TaskState.REVOKED: TaskCancelled,
}

_EXPLAINED_BY_THE_SCHEDULER = frozenset({Status.STOPPED, Status.REQUEUE})
"""After these statuses the scheduler knows why the start ended, or another start follows."""

_SIGNALLED = 128
_NOT_FOUND = 127
"""The status of a shell that has not found the command."""


def explains_end(mark: EndMark | None, attempts: int) -> bool:
    """Whether an end mark says how its task ended; *attempts* is how many of its attempts are known."""
    return mark is not None and mark.status not in _EXPLAINED_BY_THE_SCHEDULER and attempts <= mark.start + 1


def recorded_everything(mark: EndMark) -> bool:
    """Whether the node said that all outcomes were on disk before the mark, so that a missing one may yet appear.

    Its words are the exit statuses of Python, too: FAILURES also comes from a Python that did not start.
    """
    return mark.status in {Status.VALUES, Status.FAILURES}


def names_cause(record: TaskRecord) -> bool:
    """Whether a scheduler state says by itself why the task ended."""
    return record.state in _BY_STATE


def error_of_state(record: TaskRecord, place: Place, *, started: bool = False, log_tail: str = "") -> ItemError:
    """Return the error of items without outcomes whose task has ended, as the scheduler reports.

    *started* says whether its node is known to have started; *log_tail* are the last lines of its log.
    """
    kind = _BY_STATE.get(record.state)
    if kind is not None:
        reason = f" ({record.reason})" if record.reason and record.reason != "None" else ""
        where = {"state": record.state.value, "exit_code": record.exit_code}
        return kind(f"{kind.what}{reason}", place=place, **where)
    if record.state is TaskState.COMPLETED:
        return ResultLost("the task ended well, but the item's outcome is not on disk", place=place)
    if started and record.exit_code is None:
        # squeue gives no exit status. A batch script that ended by itself would have left an end mark.
        return WorkerDied("the task's batch script was killed", state=record.state.value, place=place)
    code, _, number = (record.exit_code or "0:0").partition(":")
    if number.isdigit() and int(number):
        return _supervisor_killed(int(number), place, record.state)
    status = int(code) if code.isdigit() and int(code) else None
    return _not_started(None, place, log_tail) if status is None else error_of_status(status, place, log_tail)


def error_of_status(status: int, place: Place, log_tail: str = "") -> ItemError:
    """Return the error of items without outcomes whose task ended with this exit status."""
    if status > _SIGNALLED:
        return _supervisor_killed(status - _SIGNALLED, place, TaskState.FAILED)
    if status == Status.OUT_OF_MEMORY:
        what, state = "the task's supervisor hit the memory limit", TaskState.OUT_OF_MEMORY.value
        return OutOfMemory(what, state=state, place=place)
    if status == Status.NOT_REQUEUED:
        what = "the time limit was near, and the scheduler would not start the task again for the items that were left"
        return TimeLimitExceeded(what, state=TaskState.TIMEOUT.value, place=place)
    if status == Status.VALUES:
        return ResultLost("the task ended well, but the item's outcome is not on disk", place=place)
    return _not_started(status, place, log_tail)


def _supervisor_killed(number: int, place: Place, state: TaskState) -> ItemError:
    return WorkerDied.of(number, None, "the task's supervisor", state=state.value, place=place)


def _not_started(status: int | None, place: Place, log_tail: str) -> ItemError:
    what = "the node ended" if status is None else f"the node ended with status {status}"
    if status == Status.SETUP:
        what = "the set-up lines failed"
    end = f"; the end of its log:\n{log_tail}\n" if log_tail else ", and its log is empty"
    advice = _advice(status, log_tail, place.image)
    return NodeStartError(f"{what}{end}", exit_code=status, place=place, advice=advice)


def _advice(status: int | None, log_tail: str, image: str | None) -> str:
    for module in ("slurmlaunch", "cloudpickle"):
        if f"No module named {module!r}" in log_tail or f"No module named {module}" in log_tail:
            where = f"for the Python in the image {image}" if image else "for the Python that runs on the node"
            return f"Install {module} {where}, or name another: python=[...]."
    if status == _NOT_FOUND:
        named = "Container(..., runtime=...), and python=[...] in the image" if image else "python=[...]"
        return f"Name what the node has: {named}; or load what is missing, with modules=[...]."
    return ""


def error_of_unclaimed(error: BaseException | None) -> BaseException:
    """Return the error of items that no task has claimed although all have ended, perhaps one with this error."""
    if error is None:
        return ResultLost("all tasks ended, and none had claimed the item")
    if not isinstance(error, ItemError):
        return error
    copy = error.for_item(-1)
    copy.place, copy.what = Place(), f"no task was left to take the item: {copy.what}"
    return copy


# The states of attempts.


def exit_code_of(status: int) -> int:
    """Return the exit status of a node from its end mark."""
    return _SIGNALLED + signal.SIGKILL if status == Status.OUT_OF_MEMORY else status


def state_of_status(status: int | None, *, requeued: bool) -> TaskState | None:
    """Return the final state that an end mark stands for; None where it does not tell.

    *requeued* says that the scheduler has the task in its queue again.
    """
    if status == Status.REQUEUE or (status is not None and requeued):
        return TaskState.REQUEUED
    if status is None or status == Status.STOPPED:
        return None
    return _STATES.get(status, TaskState.FAILED)


_STATES: dict[int, TaskState] = {Status.VALUES: TaskState.COMPLETED, Status.OUT_OF_MEMORY: TaskState.OUT_OF_MEMORY}
