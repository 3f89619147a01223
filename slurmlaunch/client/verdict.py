"""What an end without an outcome means: from end marks and states to errors."""

from __future__ import annotations

from pathlib import Path
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

_SIGNALLED = 128
_NOT_FOUND = 127
"""The status of a shell that has not found what it was to start."""

_TAIL_LINES = 12


def names_a_cause(record: TaskRecord | None) -> bool:
    """Whether a state says by itself what ended the task."""
    return record is not None and record.state in _BY_STATE


def of_state(record: TaskRecord, place: Place, *, began: bool = False) -> ItemError:
    """Return the error for a task that the scheduler calls ended, with items that have no outcome.

    *began* says that its node had started.
    """
    kind = _BY_STATE.get(record.state)
    if kind is not None:
        reason = f" ({record.reason})" if record.reason and record.reason != "None" else ""
        where = {"state": record.state.value, "exit_code": record.exit_code}
        return kind(f"{kind.what}{reason}", place=place, **where)
    if record.state is TaskState.COMPLETED:
        return ResultLost("the task ended well, but the item's outcome is not on disk", place=place)
    if began and record.exit_code is None:
        # The queue tells no exit status. A batch script that had lived would have left an end mark.
        return WorkerDied("the task's batch script was killed", state=record.state.value, place=place)
    code, _, signal = (record.exit_code or "0:0").partition(":")
    if signal.isdigit() and int(signal):
        return _supervisor_killed(int(signal), place, record.state)
    return of_status(int(code), place) if code.isdigit() and int(code) else _not_started(None, place)


def of_status(status: int, place: Place) -> ItemError:
    """Return the error for a task that ended with this status, with items that have no outcome."""
    if status > _SIGNALLED:
        return _supervisor_killed(status - _SIGNALLED, place, TaskState.FAILED)
    if status == Status.OUT_OF_MEMORY:
        return OutOfMemory(
            "the task's supervisor hit the memory limit", state=TaskState.OUT_OF_MEMORY.value, place=place
        )
    if status == Status.NOT_REQUEUED:
        what = "the time limit was near, and the scheduler would not start the task again for the items that were left"
        return TimeLimitExceeded(what, state=TaskState.TIMEOUT.value, place=place)
    if status == Status.VALUES:
        return ResultLost("the task ended well, but the item's outcome is not on disk", place=place)
    return _not_started(status, place)


def _supervisor_killed(number: int, place: Place, state: TaskState) -> ItemError:
    error = WorkerDied.of(number, None, state=state.value, place=place)
    error.what = error.what.replace("the process that ran the item", "the task's supervisor")
    return error


def _not_started(status: int | None, place: Place) -> ItemError:
    what = "the node ended" if status is None else f"the node ended with status {status}"
    if status == Status.SETUP:
        what = "the set-up lines failed"
    tail = _tail(place.log)
    said = f"; the end of its log:\n{tail}\n" if tail else ", and its log is empty"
    return NodeStartError(f"{what}{said}", exit_code=status, place=place, advice=_advice(status, tail, place.image))


def _advice(status: int | None, tail: str, image: str | None) -> str:
    for module in ("slurmlaunch", "cloudpickle"):
        if f"No module named {module!r}" in tail or f"No module named {module}" in tail:
            where = f"for the Python in the image {image}" if image else "for the Python that runs on the node"
            return f"Install {module} {where}, or name another: python=[...]."
    if status == _NOT_FOUND:
        named = "Container(..., runtime=...), and python=[...] in the image" if image else "python=[...]"
        return f"Name what the node has: {named}; or load what is missing, with modules=[...]."
    return ""


def _tail(log: str | None) -> str:
    if not log:
        return ""
    try:
        with Path(log).open(encoding="utf-8", errors="replace") as file:
            return "".join(file.readlines()[-_TAIL_LINES:]).rstrip()
    except OSError:  # no log: then there is no tail
        return ""
