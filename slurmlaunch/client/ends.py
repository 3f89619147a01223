"""From the end of a task to an exception: the reasons of missing outcomes, by end marks and scheduler states.

Pure functions, used by `RunState`. Files are the truth; a state only explains why an
outcome is missing. To treat a new scheduler state, add it to `TaskState` in `backends/base.py` first.
"""

from __future__ import annotations

import os
import pwd
import re
import signal
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from slurmlaunch.backends.base import TaskState
from slurmlaunch.errors import (
    SIGNALLED,
    ItemError,
    NodeFailure,
    NodeStartError,
    OutOfMemory,
    Place,
    Preempted,
    ResultLost,
    StorageFailure,
    TaskCancelled,
    TaskEnded,
    TimeLimitExceeded,
    WorkerDied,
)
from slurmlaunch.runfolder.layout import Status
from slurmlaunch.runfolder.storage import STORAGE, errno_of

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

_NO_LOG = 53
"""The number of the signal that Slurm reports if it cannot open a log."""
_LAUNCH_FAILURE = "JobLaunchFailure"
"""Slurm's reason for the end of a batch script by a signal, too."""
_NO_LAUNCH = "the node could not start the task, as after a failed prolog"
_OVER_MEMORY = re.compile(
    r"(?:slurmstepd\S*:|\[\S+\]) error: StepId=[\d+]+\.batch exceeded memory limit \((\d+) > (\d+)\), being killed"
)
"""The message, with both amounts in bytes, that slurmstepd leaves in the log when it kills a task for its memory.

Slurm 26.05 has the time in place of the program. A step that the user's function starts with srun leaves such a
message, too, without the end of the task: it is not the batch step.
"""
_EXCHANGED = (
    "the batch script did not find the run folder at its path, or could not open the log there: another user may have "
    "moved it, or a folder above it, or the node does not see that storage"
)
_SHARED_FOLDER = "Put run folders on storage that all nodes see and can write to: Executor(folder=...)."
_OWN_FOLDER = "Put the run folders where nobody else may write to a folder above them: Executor(folder)."
_NOT_FOUND = 127
"""The status of a shell that has not found the command."""


def explains_end(mark: EndMark | None, attempts: int, record: TaskRecord | None = None) -> bool:
    """Whether an end mark says how its task ended; *attempts* is how many of its attempts are known.

    *record* is the scheduler's report, if there is one: it does not know who sent a signal to the node.
    """
    if mark is None or attempts > mark.start + 1:
        return False
    signalled = mark.status == Status.STOPPED and record is not None and record.state is TaskState.FAILED
    return signalled or mark.status not in _EXPLAINED_BY_THE_SCHEDULER


def recorded_everything(mark: EndMark) -> bool:
    """Whether the node said that all outcomes were on disk before the mark, so that a missing one may yet appear.

    Its words are the exit statuses of Python, too: FAILURES also comes from a Python that did not start.
    """
    return mark.status in {Status.VALUES, Status.FAILURES}


def left_items(mark: EndMark) -> bool:
    """Whether the node left items in good time, after it had recorded the others and the time of its end."""
    return mark.status in {Status.RESUBMIT, Status.REQUEUE, Status.NOT_REQUEUED}


def as_ended(record: TaskRecord) -> TaskRecord:
    """Return the record of a task as ended if Slurm holds it, until somebody releases it, after a failed launch."""
    return replace(record, state=TaskState.LAUNCH_FAILED) if record.state.is_queued and is_held(record) else record


def is_held(record: TaskRecord) -> bool:
    """Whether Slurm holds a task after a failed launch, as of a failed prolog."""
    return "launch failed" in (record.reason or "")


def names_cause(record: TaskRecord) -> bool:
    """Whether a scheduler state says by itself why the task ended."""
    return record.state in _BY_STATE


def error_of_state(record: TaskRecord, place: Place, *, started: bool = False, log_tail: str = "") -> ItemError:
    """Return the error of items without outcomes whose task has ended, as the scheduler reports.

    *started* says whether its node is known to have started; *log_tail* are the last lines of its log.
    """
    kind = _BY_STATE.get(record.state)
    if kind is not None:
        reason = _in_words(record.reason)
        where = {"state": record.state.value, "exit_code": record.exit_code}
        what = _NO_LAUNCH if record.state is TaskState.LAUNCH_FAILED else kind.what
        return kind(f"{what}{reason}", place=place, **where)
    if record.state is TaskState.COMPLETED:
        return ResultLost("the task ended well, but the item's outcome is not on disk", place=place)
    return _unless_over_memory(_error_of_exit(record, place, log_tail, started=started), record.exit_code, log_tail)


def _unless_over_memory(error: ItemError, exit_code: str | None, log_tail: str) -> ItemError:
    """Return the error, but for a kill that Slurm's own sampling of memory explains, in the log alone."""
    over = _OVER_MEMORY.search(log_tail) if isinstance(error, WorkerDied) else None
    if over is None:
        return error
    used, limit = (int(amount) >> 20 for amount in over.groups())
    what = f"Slurm killed the task, which used {used} MiB of memory and may use {limit} MiB"
    return OutOfMemory(what, state=TaskState.OUT_OF_MEMORY.value, exit_code=exit_code, place=error.place)


def _error_of_exit(record: TaskRecord, place: Place, log_tail: str, *, started: bool) -> ItemError:
    """Return the error of a task whose state says no more than that its batch script failed."""
    raised = re.match(r"RaisedSignal:(\d+)", record.reason or "")  # a newer Slurm's squeue
    code, _, number = (record.exit_code or (f"0:{raised[1]}" if raised else "0:0")).partition(":")
    if number.isdigit() and int(number):
        return _killed(int(number), place, record.state, "the task's batch script" if started else None)
    if record.state is TaskState.FAILED and (record.exit_code is None or record.reason == _LAUNCH_FAILURE):
        # squeue gives no exit status. A batch script that ended by itself would have left an end mark.
        what = "the task's batch script was killed" if started else "the task was killed before the start of its node"
        reason = f" ({record.reason})" if record.reason not in {None, "NonZeroExitCode"} else ""  # which would mislead
        advice = "" if started else f"This happens if the node does not see the run folder. {_SHARED_FOLDER}"
        return WorkerDied(f"{what}{reason}", state=record.state.value, place=place, advice=advice)
    if code.isdigit() and int(code):
        return error_of_status(int(code), place, log_tail, started=started)
    return _not_started(None, place, log_tail)


def _in_words(reason: str | None) -> str:
    """Return a reason as the end of a sentence; who cancelled a task, by name."""
    if reason in {None, "None"}:
        return ""
    found = re.fullmatch(r"CANCELLED by (\d+)", reason)
    if found is None:
        return f" ({reason})"
    user = int(found[1])
    with suppress(KeyError):
        return f" by {'you' if user == os.getuid() else pwd.getpwuid(user).pw_name}"
    return f" by the user {user}"


def error_of_status(status: int, place: Place, log_tail: str = "", *, started: bool = True) -> ItemError:
    """Return the error of items without outcomes whose task ended with this exit status."""
    if status > SIGNALLED:
        error = _killed(status - SIGNALLED, place, TaskState.FAILED, "the task's supervisor" if started else None)
        return _unless_over_memory(error, None, log_tail)
    if status in STORAGE:
        what = "the task could not write into the run folder, or read from it"
        end = f"; the end of its log:\n{log_tail}" if log_tail else ""
        return StorageFailure.of(errno_of(status), f"{what}{end}", exit_code=status, place=place)
    if status == Status.OUT_OF_MEMORY:
        what, state = "the task's supervisor hit the memory limit", TaskState.OUT_OF_MEMORY.value
        return OutOfMemory(what, state=state, place=place)
    if status in {Status.NOT_REQUEUED, Status.RESUBMIT}:
        who = "the scheduler would not" if status == Status.NOT_REQUEUED else "the node has no scontrol to"
        what = f"the time limit was near, and {who} start the task again for the items that were left"
        return TimeLimitExceeded(what, state=TaskState.TIMEOUT.value, exit_code=f"{status}:0", place=place)
    if status == Status.VALUES:
        return ResultLost("the task ended well, but the item's outcome is not on disk", place=place)
    return _not_started(status, place, log_tail)


def _killed(number: int, place: Place, state: TaskState, who: str | None) -> ItemError:
    if number == _NO_LOG:
        what = "Slurm could not open the task's log or working directory on the node"
        return StorageFailure(what, state=state.value, place=place, advice=_SHARED_FOLDER)
    error = WorkerDied.of(number, None, who or "the task", state=state.value, place=place)
    if who is None:
        error.what += " before the start of its node"
    return error


def _not_started(status: int | None, place: Place, log_tail: str) -> ItemError:
    if status == Status.EXCHANGED:
        return NodeStartError(_EXCHANGED, exit_code=status, place=place, advice=_OWN_FOLDER)
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
    if status == Status.SETUP:
        return "Run these lines on a node, such as in `srun --pty bash`, and correct modules=[...] or setup=[...]."
    if "Unknown option: -P" in log_tail:
        return "The Python on the node is older than 3.11; name a newer one: python=[...]."
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
    return SIGNALLED + signal.SIGKILL if status == Status.OUT_OF_MEMORY else status


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
