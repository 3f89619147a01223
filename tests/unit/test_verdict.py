"""What an end without an outcome means."""

from __future__ import annotations

import pickle
import signal
from typing import TYPE_CHECKING

import pytest

from slurmlaunch.backends.base import TaskRecord, TaskState
from slurmlaunch.client import verdict
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
    from pathlib import Path

PLACE = Place(task=3, job_id="12_3")

BY_STATE: dict[TaskState, type[ItemError]] = {
    TaskState.COMPLETED: ResultLost,
    TaskState.FAILED: NodeStartError,
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
    """Every final state has its own kind of error, which says where it was and pickles."""
    error = verdict.of_state(TaskRecord(state), PLACE)
    again = pickle.loads(pickle.dumps(error))

    assert BY_STATE[state] is type(error)
    assert "task 3, job 12_3" in str(error)
    assert (type(error), str(error), PLACE) == (type(again), str(again), again.place)


def test_what_slurm_said() -> None:
    """What Slurm says of the end is kept, and a reason is passed on."""
    record = TaskRecord(TaskState.OUT_OF_MEMORY, exit_code="0:125", reason="OutOfMemory")
    error = verdict.of_state(record, PLACE)

    assert isinstance(error, TaskEnded)
    assert ("OUT_OF_MEMORY", "0:125") == (error.state, error.exit_code)
    assert "(OutOfMemory)" in str(error)
    assert "(None)" not in str(verdict.of_state(TaskRecord(TaskState.TIMEOUT, reason="None"), PLACE))


@pytest.mark.parametrize(
    ("exit_code", "kind", "expected"),
    [
        ("0:9", WorkerDied, "supervisor was killed by SIGKILL (9)"),
        ("1:0", NodeStartError, "the node ended with status 1"),
        ("3:0", NodeStartError, "the set-up lines failed"),
        (None, NodeStartError, "the node ended, and its log is empty"),
        ("?", NodeStartError, "the node ended, and its log is empty"),
    ],
)
def test_failed(exit_code: str | None, kind: type[ItemError], expected: str) -> None:
    """FAILED is told apart by its exit code."""
    error = verdict.of_state(TaskRecord(TaskState.FAILED, exit_code=exit_code), PLACE)

    assert kind is type(error)
    assert expected in str(error)


@pytest.mark.parametrize(
    ("status", "kind", "expected"),
    [
        (Status.VALUES, ResultLost, "the task ended well, but"),
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
    error = verdict.of_status(status, PLACE)

    assert kind is type(error)
    assert expected in str(error)


def test_log(tmp_path: Path) -> None:
    """Where the node did not come up, the end of its log is shown, and what its words mean."""
    log = tmp_path / "0-0-3.err"
    log.write_bytes(b"line\n" * 50 + b"\xffcaf\xe9\n/usr/bin/python3: No module named slurmlaunch\n")
    error = verdict.of_status(Status.FAILURES, Place(log=str(log)))

    assert 10 == str(error).count("line\n")
    assert "No module named slurmlaunch\n" in str(error)
    assert "Install slurmlaunch for the Python that runs on the node" in str(error)
    assert "its log is empty" in str(verdict.of_status(Status.FAILURES, Place(log=str(tmp_path / "nothing"))))


def test_a_program_that_is_not_there() -> None:
    """Where a node did not find what was to be started, the error says which options name it."""
    assert "python=[...]" in str(verdict.of_status(127, Place()))
    assert "Container(..., runtime=...)" in str(verdict.of_status(127, Place(image="/images/python.sif")))


@pytest.mark.parametrize("state", list(TaskState))
def test_names_a_cause(state: TaskState) -> None:
    """A state names a cause where it says more than that the task ended."""
    expected = issubclass(BY_STATE.get(state, ResultLost), TaskEnded)

    assert expected == verdict.names_a_cause(TaskRecord(state))
    assert not verdict.names_a_cause(None)
