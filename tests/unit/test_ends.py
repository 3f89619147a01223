"""From the end of a task to an exception: the meaning of end marks and scheduler states for missing outcomes."""

from __future__ import annotations

import os
import pickle
import signal
from dataclasses import replace

import pytest

from slurmlaunch.backends.base import TaskRecord, TaskState
from slurmlaunch.client import ends
from slurmlaunch.errors import (
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
from slurmlaunch.runfolder.layout import EndMark, Status

PLACE = Place(task=3, job_id="12_3")

BY_STATE: dict[TaskState, type[ItemError]] = {
    TaskState.COMPLETED: ResultLost,
    TaskState.FAILED: WorkerDied,
    TaskState.CANCELLED: TaskCancelled,
    TaskState.REVOKED: TaskCancelled,
    TaskState.TIMEOUT: TimeLimitExceeded,
    TaskState.DEADLINE: TimeLimitExceeded,
    TaskState.OUT_OF_MEMORY: OutOfMemory,
    TaskState.NODE_FAIL: NodeFailure,
    TaskState.BOOT_FAIL: NodeFailure,
    TaskState.LAUNCH_FAILED: NodeFailure,
    TaskState.PREEMPTED: Preempted,
}


@pytest.mark.parametrize("state", [state for state in TaskState if state.is_final])
def test_states(state: TaskState) -> None:
    """Every final state has its own error class, which names the place and pickles."""
    error = ends.error_of_state(TaskRecord(state), PLACE)
    again = pickle.loads(pickle.dumps(error))

    assert BY_STATE[state] is type(error)
    assert "task 3, job 12_3" in str(error)
    assert (type(error), str(error), PLACE) == (type(again), str(again), again.place)


def test_the_error_quotes_slurm() -> None:
    """The exception keeps Slurm's state of the end, and passes its reason on."""
    record = TaskRecord(TaskState.OUT_OF_MEMORY, exit_code="0:125", reason="OutOfMemory")
    error = ends.error_of_state(record, PLACE)

    assert isinstance(error, TaskEnded)
    assert ("OUT_OF_MEMORY", "0:125") == (error.state, error.exit_code)
    assert "(OutOfMemory)" in str(error)
    assert "(None)" not in str(ends.error_of_state(TaskRecord(TaskState.TIMEOUT, reason="None"), PLACE))


@pytest.mark.parametrize(
    ("exit_code", "kind", "expected"),
    [
        ("0:9", WorkerDied, "the task was killed by SIGKILL (9) before the start of its node"),
        ("0:53", StorageFailure, "Slurm could not open the task's log"),
        ("0:53", StorageFailure, "Put run folders on storage that all nodes see"),
        ("81:0", StorageFailure, "Read-only file system: the task could not write into the run folder"),
        ("78:0", StorageFailure, "the task could not write into the run folder"),
        ("1:0", NodeStartError, "the node ended with status 1"),
        ("3:0", NodeStartError, "the set-up lines failed"),
        (None, WorkerDied, "the task was killed before the start of its node"),
        ("?", NodeStartError, "the node ended, and its log is empty"),
    ],
)
def test_failed(exit_code: str | None, kind: type[ItemError], expected: str) -> None:
    """The exit code tells the causes of FAILED apart."""
    error = ends.error_of_state(TaskRecord(TaskState.FAILED, exit_code=exit_code), PLACE)

    assert kind is type(error)
    assert expected in str(error)


@pytest.mark.parametrize(
    ("status", "kind", "expected"),
    [
        (Status.VALUES, ResultLost, "the task ended well, but"),
        (Status.DISK_FULL, StorageFailure, "No space left on device: the task could not"),
        (Status.INPUT_OUTPUT, StorageFailure, "Input/output error: the task could not"),
        (Status.QUOTA, StorageFailure, "quota exceeded: the task could not"),
        (Status.FAILURES, NodeStartError, "the node ended with status 1, and its log is empty"),
        (Status.SETUP, NodeStartError, "the set-up lines failed"),
        (Status.NODE, NodeStartError, "the node ended with status 4"),
        (127, NodeStartError, "the node ended with status 127"),
        (Status.NOT_REQUEUED, TimeLimitExceeded, "the scheduler would not start the task again"),
        (128 + signal.SIGKILL, WorkerDied, "the task's supervisor was killed by SIGKILL (9)"),
        (128 + signal.SIGSEGV, WorkerDied, "the task's supervisor was killed by SIGSEGV (11)"),
    ],
)
def test_statuses(status: int, kind: type[ItemError], expected: str) -> None:
    """So is an exit status that the task itself left."""
    error = ends.error_of_status(status, PLACE)

    assert kind is type(error)
    assert expected in str(error)


def test_log() -> None:
    """If the node did not start, the error shows the end of its log, with advice on known messages."""
    log_tail = "line\n/usr/bin/python3: No module named slurmlaunch"
    error = ends.error_of_status(Status.FAILURES, PLACE, log_tail)

    assert log_tail in str(error)
    assert "Install slurmlaunch for the Python that runs on the node" in str(error)
    assert "its log is empty" in str(ends.error_of_status(Status.FAILURES, PLACE))


OVER = "50%slurmstepd-n1: error: StepId=7.batch exceeded memory limit (320274432 > 104857600), being killed\n"
"""What a newer Slurm leaves in a log, here behind a line without an end."""


@pytest.mark.parametrize(
    ("log_tail", "kind"),
    [
        (OVER, OutOfMemory),
        (OVER.replace("slurmstepd-n1", "slurmstepd"), OutOfMemory),
        (OVER.replace("slurmstepd-n1:", "[2026-11-29T06:18:28.360]"), OutOfMemory),  # Slurm 26.05
        (OVER.replace("7.batch", "7.0"), WorkerDied),  # a step that the user's function has started
        (OVER.replace("slurmstepd-n1: ", ""), WorkerDied),
        ("", WorkerDied),
    ],
)
def test_killed_for_its_memory(log_tail: str, kind: type[ItemError]) -> None:
    """The end of the log tells why Slurm killed a task, also where an end mark came through; no other step's does."""
    killed = TaskRecord(TaskState.FAILED, exit_code="0:9")
    errors = [
        ends.error_of_state(killed, PLACE, started=True, log_tail=log_tail),
        ends.error_of_status(128 + signal.SIGKILL, PLACE, log_tail),
    ]
    assert [type(each) for each in errors] == [kind] * 2
    assert all("305 MiB of memory and may use 100 MiB" in str(each) for each in errors) == (kind is OutOfMemory)
    ended = TaskRecord(TaskState.FAILED, exit_code="1:0")
    assert type(ends.error_of_state(ended, PLACE, started=True, log_tail=log_tail)) is NodeStartError


def test_a_program_that_is_not_there() -> None:
    """If a node did not find the command to start, the error names the options that give it."""
    assert "python=[...]" in str(ends.error_of_status(127, Place()))
    assert "Container(..., runtime=...)" in str(ends.error_of_status(127, Place(image="/images/python.sif")))


@pytest.mark.parametrize("state", list(TaskState))
def test_names_cause(state: TaskState) -> None:
    """A state names a cause if it means more than the end of the task."""
    expected = state is not TaskState.FAILED and issubclass(BY_STATE.get(state, ResultLost), TaskEnded)

    assert expected == ends.names_cause(TaskRecord(state))


@pytest.mark.parametrize(
    ("status", "start", "attempts", "expected"),
    [
        (Status.VALUES, 0, 0, True),
        (Status.VALUES, 0, 1, True),
        (Status.VALUES, 0, 2, False),
        (137, 1, 2, True),
        (137, 0, 2, False),
        (Status.STOPPED, 0, 1, False),
        (Status.REQUEUE, 0, 1, False),
        (Status.NOT_REQUEUED, 0, 1, True),
    ],
)
def test_explains_end(status: int, start: int, attempts: int, *, expected: bool) -> None:
    """Only the mark of the last start describes a task's end, unless it refers to the scheduler."""
    assert expected == ends.explains_end(EndMark(0, start, status), attempts)


@pytest.mark.parametrize(("state", "expected"), [(TaskState.FAILED, True), (TaskState.TIMEOUT, False)])
def test_a_signal_that_the_scheduler_knows_nothing_of(state: TaskState, *, expected: bool) -> None:
    """After a SIGTERM that somebody sent, the scheduler only knows that the task failed; the mark names the signal."""
    mark = EndMark(0, 0, Status.STOPPED)

    assert expected == ends.explains_end(mark, 1, TaskRecord(state))
    assert not ends.explains_end(mark, 2, TaskRecord(state))
    assert "the task's supervisor was killed by SIGTERM (15)" in str(ends.error_of_status(mark.status, PLACE))


def test_batch_script_killed() -> None:
    """FAILED without an exit code, from the queue alone: the batch script left no end mark, so it was killed."""
    record = TaskRecord(TaskState.FAILED)

    assert "batch script was killed" in str(ends.error_of_state(record, PLACE, started=True))
    reported = replace(record, exit_code="1:0", reason="JobLaunchFailure")
    assert "before the start of its node (JobLaunchFailure)" in str(ends.error_of_state(reported, PLACE))
    assert "if the node does not see the run folder" in str(ends.error_of_state(reported, PLACE))


def test_the_signal_in_a_reason() -> None:
    """Where squeue gives no exit code, a newer Slurm's reason names the signal."""
    error = ends.error_of_state(TaskRecord(TaskState.FAILED, reason="RaisedSignal:9(Killed)"), PLACE)
    assert isinstance(error, WorkerDied)
    assert error.signal == 9


@pytest.mark.parametrize(("exit_code", "who"), [("0:9", "the task's batch script"), ("137:0", "the task's supervisor")])
def test_killed_after_its_start(exit_code: str, who: str) -> None:
    """Slurm's signal is that of the batch script, whose exit status tells the supervisor's."""
    record = TaskRecord(TaskState.FAILED, exit_code=exit_code)
    assert f"{who} was killed by SIGKILL (9)" in str(ends.error_of_state(record, PLACE, started=True))


def test_unclaimed() -> None:
    """The error of unclaimed items names no task, and describes how the tasks ended."""
    lost = ends.error_of_unclaimed(None)
    ended = ends.error_of_unclaimed(NodeFailure(place=PLACE))

    assert (ResultLost, "all tasks ended, and none had claimed the item") == (type(lost), lost.args[0])
    assert isinstance(ended, NodeFailure)
    assert (None, "no task was left to take the item: the node failed") == (ended.task, ended.what)
    refused = ValueError()
    assert refused is ends.error_of_unclaimed(refused)


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (f"CANCELLED by {os.getuid()}", "from outside by you"),
        ("CANCELLED by 4000000000", "from outside by the user 4000000000"),
        ("QOSGrpCpuLimit", "from outside (QOSGrpCpuLimit)"),
        ("None", "from outside"),
    ],
)
def test_who_cancelled(reason: str, said: str) -> None:
    """The error of a task that somebody cancelled says who did, as far as Slurm tells."""
    error = ends.error_of_state(TaskRecord(TaskState.CANCELLED, reason=reason), PLACE)

    assert isinstance(error, TaskCancelled)

    assert f"the task was cancelled {said}" == error.what
    assert "scancel" in error.advice
