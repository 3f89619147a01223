"""Races between nodes, clients and the scheduler, as tables: each was a bug once, or could become one.

Events of a run may come in any order, late or twice. Each law gives their order and their seconds, and
the effects of the state machine. Nothing runs here: no folder, no thread, no clock.
"""

from __future__ import annotations

from functools import partial

import pytest

from slurmlaunch.client.events import AttemptSeen, SchedulerReported, TaskFiles, TasksRead, Tick
from slurmlaunch.errors import NodeStartError, SubmissionError, WorkerDied
from slurmlaunch.runfolder.layout import Status
from slurmlaunch.runfolder.rounds import SchedulerEnd
from tests.support.state_tables import (
    ANY,
    Law,
    added,
    again,
    at,
    attempt,
    began_again,
    cancel,
    cancelled,
    claims,
    damaged,
    items,
    law,
    lost,
    made,
    mark,
    new_state,
    notes,
    play,
    raised,
    recorded,
    refused,
    reopened,
    retry_ended,
    scheduler,
    snapshot,
    submitted,
    unsafe,
    values,
)

KILLED = 128 + 9
NOT_LOADED = NodeStartError("the function cannot be loaded")
DIED = WorkerDied("the process that ran the item was killed")


# Recorded outcomes count, whenever they become visible.

OUTCOMES = [
    law(
        "an outcome that becomes visible after the end of its task counts",
        at(0, scheduler({0: "COMPLETED"})),
        at(30, values(0, 0, 1), settles=items("VALUE", 0, 1)),
        at(70, records=ANY),
        at(500),
    ),
    law(
        "an outcome that only the last read finds counts",
        at(0, attempt(0), scheduler({0: "TIMEOUT"})),
        at(70, late=(values(0, 0),), settles={0: "VALUE", 1: "TimeLimitExceeded"}, records={0: "TIMEOUT"}),
    ),
    law(
        "an outcome that the read after an end mark finds counts",
        at(0, attempt(0)),
        at(5, mark(0, KILLED), late=(values(0, 1),), settles={0: "WorkerDied", 1: "VALUE"}),
    ),
    law(
        "of a task that ended well, or with failures, the missing outcomes are lost only after the latency",
        at(0, attempt(1), mark(1, Status.VALUES), attempt(2), mark(2, Status.FAILURES)),
        at(40, values(1, 2), settles={2: "VALUE"}),
        at(69.9),
        at(70, settles=items("ResultLost", 3, 4, 5)),
    ),
    law(
        "an outcome of a task that left items at its limit counts, also if the end mark is visible first",
        at(0, attempt(0), attempt(1)),
        at(5, mark(0, Status.NOT_REQUEUED), mark(1, Status.NOT_REQUEUED)),
        at(15, values(0, 0), notes(0, ended=4.0), settles={0: "VALUE", 1: "TimeLimitExceeded"}),
        at(74.9),
        at(75, settles=items("TimeLimitExceeded", 2, 3)),
    ),
    law(
        "of two records of an item the first that is seen counts",
        at(0, values(0, 0), raised(0, 0, DIED, attempt=1), settles={0: "VALUE"}),
        at(1, raised(0, 1, ValueError()), values(0, 1, attempt=1), settles={1: "FAILURE"}),
    ),
    law(
        "a later attempt may be seen before an earlier one",
        at(0, attempt(1, 1)),
        at(1, mark(1, KILLED, start=0)),
        at(10, values(1, 2, attempt=0), settles={2: "VALUE"}),
        at(5000),
    ),
    law(
        "a damaged record costs its own items and no others",
        at(0, values(0, 0), damaged(0, 1), settles={0: "VALUE", 1: "ResultLost"}),
        at(1, values(1, 2), settles={2: "VALUE"}),
    ),
    law(
        "a damaged record whose header is unreadable costs nothing until its task has ended",
        at(0, attempt(0), damaged(0)),
        at(500, mark(0, Status.VALUES)),
        at(569),
        at(570, settles=items("ResultLost", 0, 1)),
    ),
    law(
        "a damaged record of an earlier round says nothing about items that run again",
        at(0, added(0)),
        at(1, damaged(0, 0, 1), settles={1: "ResultLost"}),
    ),
    law(
        "an outcome file that others may write costs the open items of its task",
        at(0, values(0, 0), settles={0: "VALUE"}),
        at(1, unsafe(0), settles={1: "ResultLost"}),
        at(2, values(1, 2), settles={2: "VALUE"}),
    ),
    law(
        "a record that names items beyond the last one settles those that exist",
        at(0, raised(2, (5, 6, 7), ValueError()), settles={5: "FAILURE"}),
        at(1, damaged(2, 4, 5, 6), settles={4: "ResultLost"}),
    ),
]


@pytest.mark.parametrize("each", OUTCOMES)
def test_outcomes(each: Law) -> None:
    """A recorded outcome counts, whenever it becomes visible."""
    play(each)


# End marks describe the end of one start; only the last start's mark describes the task's.

END_MARKS = [
    *(
        law(
            f"a task with end mark {status} has ended at once, without the scheduler and without a wait",
            at(0, attempt(1), notes(1, ended=5.0)),
            at(5, mark(1, status), settles=items(error, 2, 3)),
        )
        for status, error in [
            (KILLED, "WorkerDied"),
            (128 + 6, "WorkerDied"),
            (127, "NodeStartError"),
            (Status.SETUP, "NodeStartError"),
            (Status.NODE, "NodeStartError"),
            (Status.OUT_OF_MEMORY, "OutOfMemory"),
            (Status.NOT_REQUEUED, "TimeLimitExceeded"),
        ]
    ),
    *(
        law(
            f"end mark {status} leaves the word to the scheduler, however long that takes",
            at(0, attempt(1), mark(1, status)),
            at(5000),
            at(5001, scheduler({1: "TIMEOUT"})),
            at(5070),
            at(5071, settles=items("TimeLimitExceeded", 2, 3), records={1: "TIMEOUT"}),
        )
        for status in (Status.STOPPED, Status.REQUEUE)
    ),
    law(
        "status 1 without an attempt comes from a Python that did not start",
        at(0, mark(1, Status.FAILURES)),
        at(69),
        at(70, settles=items("NodeStartError", 2, 3)),
    ),
    law(
        "the end mark of an earlier start does not end a later one",
        at(0, attempt(1, 0), attempt(1, 1), mark(1, KILLED)),
        at(5000),
    ),
    *(
        law(
            f"the end mark of a requeue does not explain the end of what followed, with {seen} attempts seen",
            at(0, *(attempt(1, number) for number in range(seen)), mark(1, Status.REQUEUE)),
            at(10, scheduler({1: "FAILED"}, exit_code="0:9")),
            at(79),
            at(80, settles=items("WorkerDied", 2, 3), records={1: "FAILED"}),
        )
        for seen in (1, 2)
    ),
    law(
        "the end mark of an earlier start does not outdo the state of the last one",
        at(0, attempt(1, 0), attempt(1, 1), mark(1, Status.NODE)),
        at(1, scheduler({1: "FAILED"}, exit_code="0:11")),
        at(71, settles=items("WorkerDied", 2, 3), records={1: "FAILED"}),
    ),
    law(
        "the end mark of a later start counts, although that of an earlier one is seen after it",
        at(0, attempt(1, 0), attempt(1, 1), mark(1, Status.VALUES, start=1)),
        at(10, mark(1, KILLED, start=0)),
        at(69),
        at(70, settles=items("ResultLost", 2, 3)),
    ),
    law(
        "a requeued task ends with its last start",
        at(0, attempt(1), mark(1, Status.REQUEUE)),
        at(100, attempt(1, 1)),
        at(200, values(1, 2, attempt=1), mark(1, KILLED, start=1), settles={2: "VALUE", 3: "WorkerDied"}),
    ),
    law(
        "a start that recorded nothing, not even an attempt, ends the task by its mark",
        at(0, attempt(1), mark(1, Status.STOPPED, start=0)),
        at(10, mark(1, KILLED, start=1), settles=items("WorkerDied", 2, 3)),
    ),
    law(
        "an end mark that says how the task ended outdoes a state that names no cause",
        at(0, attempt(1), scheduler({1: "FAILED"}, exit_code="1:0")),
        at(40, mark(1, KILLED), settles=items("WorkerDied", 2, 3)),
    ),
    law(
        "a state that names a cause outdoes an end mark that waits for outcomes",
        at(0, attempt(1), mark(1, Status.VALUES)),
        at(10, scheduler({1: "OUT_OF_MEMORY"})),
        at(69),
        at(70, settles=items("OutOfMemory", 2, 3), records={1: "OUT_OF_MEMORY"}),
    ),
    law(
        "after an end mark that promises outcomes these are lost, whatever state without a cause comes",
        at(0, attempt(1), mark(1, Status.VALUES)),
        at(10, scheduler({1: "FAILED"}, exit_code="1:0")),
        at(70, settles=items("ResultLost", 2, 3), records={1: "FAILED"}),
    ),
    law(
        "an end mark that is seen after the state of a good end begins the wait again",
        at(0, attempt(1), scheduler({1: "COMPLETED"})),
        at(40, mark(1, Status.VALUES)),
        at(109),
        at(110, settles=items("ResultLost", 2, 3)),
    ),
    law(
        "the death of a supervisor costs the open items of its own task",
        at(0, values(0, 0), settles={0: "VALUE"}),
        at(1, mark(0, KILLED), settles={1: "WorkerDied"}),
        at(2, scheduler({0: "FAILED", 1: "RUNNING"}, exit_code="0:9")),
        at(500),
    ),
]


@pytest.mark.parametrize("each", END_MARKS)
def test_end_marks(each: Law) -> None:
    """The end mark of the last start describes its task's end; that of an earlier start does not."""
    play(each)


# Scheduler states explain missing outcomes, after the latency.

STATES = [
    *(
        law(
            f"{state} explains the missing outcomes of its task after the latency, and is written down",
            at(0, values(0, 0), settles={0: "VALUE"}),
            at(1, scheduler({0: state})),
            at(70.9),
            at(71, settles={1: error}, records={0: state}),
            at(500),
        )
        for state, error in [
            ("TIMEOUT", "TimeLimitExceeded"),
            ("DEADLINE", "TimeLimitExceeded"),
            ("NODE_FAIL", "NodeFailure"),
            ("BOOT_FAIL", "NodeFailure"),
            ("LAUNCH_FAILED", "NodeFailure"),
            ("OUT_OF_MEMORY", "OutOfMemory"),
            ("CANCELLED", "TaskCancelled"),
            ("REVOKED", "TaskCancelled"),
            ("PREEMPTED", "Preempted"),
            ("COMPLETED", "ResultLost"),
        ]
    ),
    *(
        law(
            f"a task that is {state} after a final state has not ended",
            at(0, scheduler({0: "PREEMPTED"})),
            at(30, scheduler({0: state})),
            at(70),
            at(500),
        )
        for state in ("RUNNING", "PENDING", "REQUEUED", "REQUEUE_HOLD", "COMPLETING", "SUSPENDED", "UNKNOWN")
    ),
    law(
        "after a state that is not final the next end waits for the whole latency",
        at(0, scheduler({0: "PREEMPTED"})),
        at(30, scheduler({0: "REQUEUED"})),
        at(60, scheduler({0: "FAILED"}, exit_code="0:9")),
        at(129),
        at(130, settles=items("WorkerDied", 0, 1), records={0: "FAILED"}),
    ),
    law(
        "a task that is alive again while its files are read to the end has not ended",
        at(0, scheduler({0: "NODE_FAIL"})),
        at(70, late=(scheduler({0: "RUNNING"}),)),
        at(500),
    ),
    law(
        "a final state that is repeated does not begin the wait again, and the last one counts",
        at(0, scheduler({0: "FAILED"}, exit_code="1:0")),
        at(30, scheduler({0: "FAILED"}, exit_code="1:0")),
        at(60, scheduler({0: "TIMEOUT"})),
        at(70, settles=items("TimeLimitExceeded", 0, 1), records={0: "TIMEOUT"}),
    ),
    law("a task of which the scheduler says nothing has not ended", at(0, scheduler({})), at(5000)),
    law(
        "a task that is started again while its first outcomes are awaited has not ended",
        at(0, attempt(0), mark(0, Status.FAILURES)),
        at(30, attempt(0, 1)),
        at(200),
    ),
    law(
        "one answer says how all tasks are",
        at(0, scheduler({0: "NODE_FAIL", 1: "RUNNING", 2: "NODE_FAIL"})),
        at(70, settles=items("NodeFailure", 0, 1, 4, 5), records={0: "NODE_FAIL", 2: "NODE_FAIL"}),
    ),
    law(
        "FAILED from the queue alone: the batch script was killed",
        at(0, attempt(0)),
        at(1, scheduler({0: "FAILED", 1: "FAILED"})),
        at(71, settles=items("WorkerDied", 0, 1, 2, 3), records={0: "FAILED", 1: "FAILED"}),
    ),
    law(
        "a task that Slurm holds after a failed launch has ended, and is cancelled",
        at(0, scheduler({0: "PENDING"}, reason="launch failed requeued held")),
        at(30, scheduler({0: "PENDING"}, reason="launch failed requeued held")),
        at(70, settles=items("NodeFailure", 0, 1), records={0: "LAUNCH_FAILED"}, cancels=[("7", (0,))]),
        at(100, scheduler({0: "CANCELLED"})),
        at(500),
    ),
    law(
        "a state that comes after all items of its task have settled changes nothing",
        at(0, values(0, 0, 1), settles=items("VALUE", 0, 1)),
        at(1, scheduler({0: "TIMEOUT"})),
        at(100),
    ),
    law(
        "a task that has ended with all outcomes is asked about no more",
        at(0, values(0, 0, 1), mark(0, Status.VALUES), settles=items("VALUE", 0, 1)),
        at(10, scheduler({0: "NODE_FAIL"}, node="n1")),
        at(500),
    ),
    law(
        "a task that vanished from the queue was cancelled",
        at(0, scheduler({0: "CANCELLED"}, reason="it left the queue without a trace")),
        at(70, settles=items("TaskCancelled", 0, 1), records={0: "CANCELLED"}),
    ),
    law(
        "a preemption that requeues is no end",
        at(0, attempt(0)),
        at(1, mark(0, Status.STOPPED)),
        at(10, scheduler({0: "PREEMPTED"})),
        at(40, scheduler({0: "PENDING"})),
        at(200, scheduler({0: "RUNNING"})),
        at(201, values(0, 0, 1, attempt=1), settles=items("VALUE", 0, 1)),
    ),
    law(
        "a state stays the explanation although the mark of a stopped start is read after it",
        at(0, attempt(0), scheduler({0: "NODE_FAIL"})),
        at(40, mark(0, Status.STOPPED)),
        at(70, settles=items("NodeFailure", 0, 1), records={0: "NODE_FAIL"}),
    ),
    law(
        "a later start that was stopped or requeued makes the mark of an earlier one that ended well void",
        at(0, attempt(1), mark(1, Status.VALUES)),
        at(40, mark(1, Status.REQUEUE, start=1)),
        at(5000),
        at(5001, scheduler({1: "TIMEOUT"})),
        at(5071, settles=items("TimeLimitExceeded", 2, 3), records={1: "TIMEOUT"}),
    ),
    law(
        "a preemption that cancels is an end",
        at(0, attempt(0)),
        at(1, mark(0, Status.STOPPED)),
        at(10, scheduler({0: "PREEMPTED"})),
        at(79),
        at(80, settles=items("Preempted", 0, 1), records={0: "PREEMPTED"}),
    ),
    law(
        "a requeue keeps what was recorded, and the next start adds what is missing",
        at(0, values(0, 0), settles={0: "VALUE"}),
        at(1, mark(0, Status.REQUEUE)),
        at(2, scheduler({0: "REQUEUED"})),
        at(40, scheduler({0: "RUNNING"})),
        at(41, values(0, 1, attempt=1), mark(0, Status.VALUES, start=1), settles={1: "VALUE"}),
        at(42, scheduler({0: "COMPLETED"})),
        at(500),
    ),
    law(
        "a suspended task goes on, however long it was suspended",
        at(0, attempt(0), scheduler({0: "SUSPENDED"})),
        at(3600, scheduler({0: "RUNNING"})),
        at(3601, values(0, 0, 1), settles=items("VALUE", 0, 1)),
    ),
    law(
        "a held job is warned of once for each reason, and has not ended",
        at(0, scheduler({0: "PENDING"}, reason="JobHeldUser"), warns="scontrol release 7"),
        at(30, scheduler({0: "PENDING", 1: "PENDING"}, reason="JobHeldUser")),
        at(60, scheduler({1: "PENDING"}, reason="Priority")),
        at(61, scheduler({1: "RUNNING"}, reason="InvalidAccount")),
        at(90, scheduler({1: "PENDING"}, reason="JobHeldAdmin"), warns="JobHeldAdmin"),
        at(5000),
    ),
]


@pytest.mark.parametrize("each", STATES)
def test_states(each: Law) -> None:
    """A scheduler state explains missing outcomes once they must be visible, unless the task is alive after all."""
    play(each)


# Ends recorded by an earlier client count where the scheduler is silent.

FAILED_NODE = SchedulerEnd(0, 0, "NODE_FAIL", "1:0", "n3", None)
CANCELLED_TASK = SchedulerEnd(2, 0, "CANCELLED", None, None, None)

RECORDED_ENDS = [
    law(
        "recorded ends count for tasks of which the scheduler has said nothing for 30 seconds",
        at(0),
        at(29),
        at(30),
        at(99),
        at(100, settles=items("NodeFailure", 0, 1)),
        ends=[FAILED_NODE],
    ),
    law(
        "what the scheduler says outdoes recorded ends, be it early",
        at(0),
        at(10, scheduler({0: "RUNNING"})),
        at(30),
        at(100, settles=items("TaskCancelled", 4, 5)),
        at(5000),
        ends=[FAILED_NODE, CANCELLED_TASK],
    ),
    law(
        "what the scheduler says outdoes recorded ends, be it late",
        at(0),
        at(30),
        at(60, scheduler({0: "RUNNING"})),
        at(5000),
        ends=[FAILED_NODE],
    ),
    law(
        "a final state that comes after a recorded end is written down",
        at(0),
        at(30),
        at(60, scheduler({0: "TIMEOUT"})),
        at(100, settles=items("TimeLimitExceeded", 0, 1), records={0: "TIMEOUT"}),
        ends=[FAILED_NODE],
    ),
    law(
        "a task that has started again since its end was recorded has not ended",
        at(0, attempt(0, 0), attempt(0, 1)),
        at(30),
        at(5000),
        ends=[FAILED_NODE._replace(attempts=1)],
    ),
    law(
        "the recorded end of the attempts that are known counts",
        at(0, attempt(0, 0)),
        at(30),
        at(100, settles=items("NodeFailure", 0, 1)),
        ends=[FAILED_NODE._replace(attempts=1)],
    ),
    law(
        "outcomes outdo recorded ends",
        at(0),
        at(30),
        at(50, values(0, 1), settles={1: "VALUE"}),
        at(100, settles={0: "NodeFailure"}),
        ends=[FAILED_NODE],
    ),
    law(
        "a recorded end counts although the mark of a stopped start is read after it",
        at(0, attempt(0)),
        at(30),
        at(40, mark(0, Status.STOPPED)),
        at(100, settles=items("NodeFailure", 0, 1)),
        ends=[FAILED_NODE._replace(attempts=1)],
    ),
    law(
        "the recorded end of a task that the view does not have is ignored",
        at(0),
        at(30),
        at(5000),
        ends=[FAILED_NODE._replace(task=9)],
    ),
]


@pytest.mark.parametrize("each", RECORDED_ENDS)
def test_recorded_ends(each: Law) -> None:
    """The ends recorded by an earlier client count where the scheduler has forgotten them."""
    play(each)


# Cancellations.

CANCELLATIONS = [
    law(
        "a cancellation that is seen before an outcome stands",
        at(0, cancelled(1, 2), values(0, 0, 1), settles={0: "VALUE"} | items("CANCELLED", 1, 2)),
        at(1, mark(0, KILLED), mark(1, KILLED), settles={3: "WorkerDied"}),
    ),
    law(
        "an item that has settled is not cancelled",
        at(0, values(0, 0), settles={0: "VALUE"}),
        at(1, cancelled(0, 1), settles={1: "CANCELLED"}),
        at(2, cancel(0, 1)),
    ),
    law(
        "a cancellation speaks of its own round",
        at(0, added(1, 4, tasks=2)),
        at(1, cancelled(0, 1, round_=0), settles={0: "CANCELLED"}),
        at(2, cancelled(4, round_=1), settles={4: "CANCELLED"}),
    ),
    law(
        "while a cancellation is being written no outcome settles its items",
        at(0, cancel(0, 1)),
        at(1, values(0, 0), mark(0, KILLED)),
        at(2, recorded(0, 1), settles=items("CANCELLED", 0, 1), cancels=[("7", (0,))]),
        slow=True,
    ),
    law(
        "an item whose cancellation could not be written settles as it would have without",
        at(0, cancel(0, 1)),
        at(1, values(0, 0)),
        at(2, recorded(failed=(0, 1)), settles={0: "VALUE"}),
        at(3, values(0, 1), settles={1: "VALUE"}),
        slow=True,
    ),
    law(
        "the end of a task counts for an item whose cancellation could not be written",
        at(0, attempt(0), cancel(0)),
        at(1, mark(0, KILLED)),
        at(2, recorded(failed=(0,)), settles=items("WorkerDied", 0, 1)),
        slow=True,
    ),
    law(
        "a state that came before a cancellation that could not be written counts after it",
        at(0, attempt(0), scheduler({0: "TIMEOUT"})),
        at(69, cancel(0)),
        at(70),
        at(71, recorded(failed=(0,)), settles=items("TimeLimitExceeded", 0, 1), records={0: "TIMEOUT"}),
        slow=True,
    ),
    law(
        "a recorded end that came before a cancellation that could not be written counts after it",
        at(0),
        at(30),
        at(99, cancel(0)),
        at(100),
        at(101, recorded(failed=(0,)), settles=items("NodeFailure", 0, 1)),
        slow=True,
        ends=[SchedulerEnd(0, 0, "NODE_FAIL", None, None, None)],
    ),
    law(
        "the end of a task is read again if a cancellation was requested while it was read",
        at(0, attempt(0)),
        at(1, mark(0, KILLED), late=(cancel(0),)),
        at(2, recorded(0), settles={0: "CANCELLED", 1: "WorkerDied"}, cancels=ANY),
        slow=True,
    ),
    law(
        "a refused array counts for an item whose cancellation could not be written",
        at(0, cancel(0)),
        at(1, refused(0), settles=items("SubmissionError", 1)),
        at(2, recorded(failed=(0,)), settles={0: "SubmissionError"}),
        arrays=[1, 2],
        slow=True,
    ),
    law(
        "of two cancellations that are being written each counts by itself",
        at(0, cancel(0), cancel(1), cancel(2)),
        at(1, values(0, 0, 1), values(1, 2)),
        at(2, recorded(failed=(0,)), settles={0: "VALUE"}),
        at(3, recorded(2), settles={2: "CANCELLED"}),
        at(4, recorded(failed=(1,)), settles={1: "VALUE"}),
        slow=True,
    ),
    law(
        "another client's cancellation settles an item whose own is being written",
        at(0, cancel(0)),
        at(1, cancelled(0), settles={0: "CANCELLED"}),
        at(2, recorded(0)),
        slow=True,
    ),
    law(
        "cancelling all items cancels all jobs",
        at(0, added(0)),
        at(1, cancel(*range(6)), settles=items("CANCELLED", *range(6)), cancels=[("7", None), ("8", None)]),
    ),
    law(
        "cancelling all items of a task cancels its element",
        at(0, cancel(2, 3, 4, 5), settles=items("CANCELLED", 2, 3, 4, 5), cancels=[("7", (1, 2))]),
    ),
    law("cancelling some items of a task leaves it", at(0, cancel(2, 4), settles=items("CANCELLED", 2, 4))),
    law(
        "a task whose other items have settled is cancelled with its last one",
        at(0, values(0, 0), settles={0: "VALUE"}),
        at(1, cancel(1), settles={1: "CANCELLED"}, cancels=[("7", (0,))]),
    ),
    law(
        "cancelling what is queued leaves tasks that have started",
        at(0, attempt(0), scheduler({0: "RUNNING", 1: "RUNNING", 2: "PENDING"})),
        at(1, cancel(*range(6), only_queued=True), settles=items("CANCELLED", 4, 5), cancels=[("7", (2,))]),
    ),
    law(
        "an array that is accepted after all its items were cancelled is cancelled",
        at(0, cancel(*range(6)), settles=items("CANCELLED", *range(6))),
        at(1, submitted(0, 0), cancels=[("7", None)]),
        at(2, submitted(0, 1), cancels=[("7", None)]),
        arrays=(2, 1),
    ),
    law(
        "an array that is accepted while items are open is left alone",
        at(0, cancel(0, 1), settles=items("CANCELLED", 0, 1)),
        at(1, submitted(0, 0)),
        arrays=(2, 1),
    ),
]


@pytest.mark.parametrize("each", CANCELLATIONS)
def test_cancellations(each: Law) -> None:
    """An item settles once: as cancelled, or with its outcome; tasks without work are cancelled."""
    play(each)


# Rounds.

ROUNDS = [
    law(
        "a failure that several items share stays with those that were not retried",
        at(0, added(1)),
        at(1, raised(0, (0, 1), NOT_LOADED), settles={0: "FAILURE"}),
        at(100),
    ),
    law(
        "a late failure of an earlier round does not settle what runs again",
        at(0, added(0)),
        at(1, raised(0, 0, ValueError())),
        at(2, values(3, 0), settles={0: "VALUE"}),
    ),
    law(
        "a late value of an earlier round settles what runs again",
        at(0, added(0, 1)),
        at(1, values(0, 1), settles={1: "VALUE"}),
        at(2, values(3, 0, 1), settles={0: "VALUE"}),
    ),
    law(
        "the end of a task leaves alone what a later round runs",
        at(0, added(0)),
        at(1, mark(0, KILLED), settles={1: "WorkerDied"}),
        at(2, scheduler({0: "TIMEOUT"})),
        at(500),
    ),
    law(
        "failures of an earlier round do not stop what is retried",
        at(0, added(*range(6), automatic=False)),
        at(1, *(raised(task, (2 * task, 2 * task + 1), NOT_LOADED) for task in range(3))),
        at(2, values(3, *range(6)), settles=items("VALUE", *range(6))),
    ),
    law(
        "a task of a later round ends its own items",
        at(0, added(0, 3, 5, tasks=2)),
        at(1, attempt(4), mark(4, KILLED), settles={5: "WorkerDied"}),
        at(2, scheduler({3: "NODE_FAIL"})),
        at(72, settles=items("NodeFailure", 0, 3), records={3: "NODE_FAIL"}),
    ),
]


@pytest.mark.parametrize("each", ROUNDS)
def test_rounds(each: Law) -> None:
    """An item belongs to the last round that has it; only a value counts from an earlier one."""
    play(each)


# Manual retries: a new view of the same run, in which the items of the new round are open again.

MANUAL_RETRIES = [
    law(
        "a manual retry opens its items again, and nothing of an earlier round settles them but a value",
        at(0, values(0, 0), raised(0, 1, ValueError()), cancelled(2), mark(1, KILLED), settles=ANY),
        at(1, reopened(1, 2, 3)),
        at(2, raised(0, 1, ValueError()), cancelled(2), mark(1, KILLED, start=1), scheduler({1: "TIMEOUT"})),
        at(100, values(1, 3), settles={3: "VALUE"}),
        at(101, values(3, 1, 2), settles=items("VALUE", 1, 2)),
    ),
    law(
        "a manual retry may be cancelled, and its items may end again",
        at(0, mark(0, KILLED), settles=items("WorkerDied", 0, 1)),
        at(1, reopened(0, 1, tasks=2)),
        at(2, cancel(0), settles={0: "CANCELLED"}, cancels=[("8", (0,))]),
        at(3, mark(4, Status.OUT_OF_MEMORY), settles={1: "OutOfMemory"}),
    ),
    law(
        "tasks that could not start before a manual retry are not counted after it",
        at(0, raised(0, (0, 1), NOT_LOADED), raised(1, (2, 3), NOT_LOADED), settles=items("FAILURE", 0, 1, 2, 3)),
        at(1, reopened(0, 1, 2, 3, tasks=4)),
        at(2, raised(4, 0, NOT_LOADED), settles={0: "FAILURE"}),
        at(3, raised(5, 1, NOT_LOADED), settles={1: "FAILURE"}),
        at(
            4,
            raised(6, 2, NOT_LOADED),
            settles={2: "FAILURE"} | items("NodeStartError", 3, 4, 5, 6, 7),
            cancels=[("7", None), ("8", None)],
        ),
        number=8,
        tasks=4,
    ),
    law(
        "the rest of a manual retry is cancelled as the rest of a run is",
        *(
            at(
                task,
                raised(task, (2 * task, 2 * task + 1), NOT_LOADED),
                settles=items("FAILURE", 2 * task, 2 * task + 1),
            )
            for task in range(2)
        ),
        at(
            2,
            raised(2, (4, 5), NOT_LOADED),
            settles=items("FAILURE", 4, 5) | items("NodeStartError", 6, 7),
            cancels=[("7", None)],
        ),
        at(3, reopened(*range(8), tasks=4)),
        at(4, raised(4, (0, 1), NOT_LOADED), raised(5, (2, 3), NOT_LOADED), settles=items("FAILURE", 0, 1, 2, 3)),
        at(
            6,
            raised(6, (4, 5), NOT_LOADED),
            settles=items("FAILURE", 4, 5) | items("NodeStartError", 6, 7),
            cancels=[("7", None), ("8", None)],
        ),
        number=8,
        tasks=4,
    ),
    law(
        "items that no task had claimed run again in a manual retry",
        at(0, attempt(0), attempt(1), claims(0, 0), mark(0, KILLED), mark(1, KILLED), settles={0: "WorkerDied"}),
        at(70, settles=items("WorkerDied", 1, 2, 3, 4, 5)),
        at(71, reopened(*range(6), tasks=2)),
        at(72, claims(2, 0, 1, round_=1), values(2, 0), settles={0: "VALUE"}),
        at(500),
        at(501, mark(2, KILLED), settles={1: "WorkerDied"}),
        tasks=2,
        dynamic=True,
    ),
]


@pytest.mark.parametrize("each", MANUAL_RETRIES)
def test_manual_retries(each: Law) -> None:
    """A manual retry resets its items, and the counts of failures."""
    play(each)


# Arrays that are refused, or never submitted.

REFUSALS = [
    law(
        "a refused array costs its own items, once",
        at(0, refused(1), settles=items("SubmissionError", 4, 5)),
        at(1, refused(1)),
        arrays=(2, 1),
    ),
    law(
        "items of a refused array that a later round has are left alone",
        at(0, added(4)),
        at(1, refused(1), settles={5: "SubmissionError"}),
        arrays=(2, 1),
    ),
    law(
        "a refused array is not retried automatically",
        at(0, refused(0), settles=items("SubmissionError", 0, 1, 2, 3)),
        at(100),
        arrays=(2, 1),
        retries=1,
    ),
    law(
        "in a dynamic round other arrays may claim what a refused one would have",
        at(0, refused(1)),
        at(500),
        number=6,
        tasks=2,
        arrays=(1, 1),
        dynamic=True,
    ),
    law(
        "in a dynamic round all items end when all arrays are refused",
        at(0, refused(0)),
        at(1, refused(1), settles=items("SubmissionError", *range(6))),
        number=6,
        tasks=2,
        arrays=(1, 1),
        dynamic=True,
    ),
]


@pytest.mark.parametrize("each", REFUSALS)
def test_refusals(each: Law) -> None:
    """The items of an array that nobody will submit end at once."""
    play(each)


# Automatic retries.

RETRIES = [
    law(
        "an item that ended externally is retried at once if nothing else is open",
        at(0, values(0, 0, 1), values(1, 2, 3), values(2, 4), settles=items("VALUE", *range(5))),
        at(1, mark(2, KILLED), submits=[5]),
        retries=1,
    ),
    law(
        "while other items are open it waits for a minute, so that others join it",
        at(0, mark(0, KILLED)),
        at(30, mark(1, KILLED)),
        at(60),
        at(60.5, submits=[0, 1, 2, 3]),
        retries=1,
    ),
    law(
        "it is retried as soon as all that is open waits",
        at(0, mark(0, KILLED)),
        at(20, mark(1, KILLED)),
        at(25, values(2, 4, 5), settles=items("VALUE", 4, 5), submits=[0, 1, 2, 3]),
        retries=1,
    ),
    law(
        "what a person cancelled and what cannot start is not retried",
        at(0, mark(0, Status.SETUP), settles=items("NodeStartError", 0, 1)),
        at(1, scheduler({1: "CANCELLED"})),
        at(71, settles=items("TaskCancelled", 2, 3), records={1: "CANCELLED"}),
        at(500),
        retries=1,
    ),
    law(
        "an exception is retried if its class or a base of it was named",
        at(0, raised(0, 0, ConnectionError()), raised(0, 1, ValueError()), settles={1: "FAILURE"}),
        at(61, submits=[0]),
        retries=1,
        retry_exceptions=["builtins.OSError"],
    ),
    law(
        "an item is retried as often as asked, and then fails as it did last",
        at(0, mark(0, KILLED)),
        at(61, submits=[0, 1]),
        at(70, raised(3, (0, 1), WorkerDied("again"))),
        at(131, submits=[0, 1]),
        at(132, mark(4, Status.OUT_OF_MEMORY), settles=items("OutOfMemory", 0, 1)),
        at(500),
        retries=2,
    ),
    law(
        "rounds that other clients made count as tries",
        at(0, added(0, 1)),
        at(2, mark(3, KILLED), settles=items("WorkerDied", 0, 1)),
        retries=1,
    ),
    law(
        "a manual retry lets its items begin anew",
        at(0, added(0, 1)),
        at(1, added(0, 1, automatic=False)),
        at(2, mark(4, KILLED)),
        at(63, submits=[0, 1]),
        retries=1,
    ),
    law(
        "the options of the last round say what is retried",
        at(0, added(0, 1, automatic=False, retries=1)),
        at(1, mark(3, KILLED)),
        at(2, mark(1, KILLED)),
        at(3, values(2, 4, 5), settles=items("VALUE", 4, 5), submits=[0, 1, 2, 3]),
    ),
    law(
        "of items that share a failure those without a try left end",
        at(0, added(0)),
        at(1, added(0, 1)),
        at(2, raised(4, (0, 1), DIED), settles={0: "FAILURE"}),
        at(63, submits=[1]),
        retries=2,
    ),
    law(
        "a late value of an item that waits for its retry settles it, and no round is made",
        at(0, mark(0, KILLED)),
        at(30, values(0, 0, 1), settles=items("VALUE", 0, 1)),
        at(500),
        retries=1,
    ),
    law(
        "a late failure of an item that waits for its retry changes nothing",
        at(0, mark(0, KILLED)),
        at(10, raised(0, 0, ValueError())),
        at(61, submits=[0, 1]),
        retries=1,
    ),
    law(
        "a cancellation of an item that waits for its retry settles it, and no round is made",
        at(0, mark(0, KILLED)),
        at(30, cancelled(0, 1), settles=items("CANCELLED", 0, 1)),
        at(500),
        retries=1,
    ),
    law(
        "an item whose cancellation is being written is not retried",
        at(0, mark(0, KILLED)),
        at(30, cancel(0, 1)),
        at(100),
        at(101, recorded(0, 1), settles=items("CANCELLED", 0, 1), cancels=[("7", (0,))]),
        at(500),
        retries=1,
        slow=True,
    ),
    law(
        "a refused retry counts for an item whose cancellation could not be written",
        at(0, mark(0, KILLED)),
        at(61, submits=(0, 1)),
        at(62, cancel(0)),
        at(63, retry_ended(SubmissionError("no account"))),
        at(64, recorded(failed=(0,)), settles=items("WorkerDied", 0, 1)),
        retries=1,
        slow=True,
    ),
    law(
        "a refused retry counts once the last of two cancellations is written",
        at(0, mark(0, KILLED)),
        at(61, submits=(0, 1)),
        at(62, made(0, 1), cancel(0), cancel(1)),
        at(63, retry_ended(SubmissionError("no account"))),
        at(64, recorded(failed=(0,), round_=1)),
        at(65, recorded(1, round_=1), settles={0: "WorkerDied", 1: "CANCELLED"}, cancels=ANY),
        retries=1,
        slow=True,
    ),
    law(
        "the round of another client is used, and no other is made",
        at(0, mark(0, KILLED)),
        at(30, added(0, 1)),
        at(100),
        at(101, values(3, 0, 1), settles=items("VALUE", 0, 1)),
        retries=1,
    ),
    law(
        "what the round of another client leaves out goes on waiting",
        at(0, mark(0, KILLED)),
        at(30, added(0)),
        at(60),
        at(61, submits=[1]),
        retries=1,
    ),
    law(
        "a round that two threads report counts once",
        at(0, mark(0, KILLED)),
        at(61, submits=[0, 1]),
        at(62, made(0, 1), again(1, 0, 1), retry_ended()),
        at(63, mark(3, KILLED)),
        at(124, submits=[0, 1]),
        retries=2,
        slow=True,
    ),
    law(
        "while a retry is being submitted no other is",
        at(0, mark(0, KILLED)),
        at(61, submits=[0, 1]),
        at(62, mark(1, KILLED)),
        at(500),
        at(501, made(0, 1)),
        at(502, submitted()),
        at(503, retry_ended(), submits=[2, 3]),
        retries=1,
        slow=True,
    ),
    law(
        "another client that makes the round first ends the submission, and nothing is lost",
        at(0, mark(0, KILLED)),
        at(61, submits=[0, 1]),
        at(62, added(0, 1), retry_ended()),
        at(500),
        at(501, values(3, 0, 1), settles=items("VALUE", 0, 1)),
        retries=1,
        slow=True,
    ),
    law(
        "a submission that another client was quicker than is repeated for what its round leaves out",
        at(0, mark(0, KILLED)),
        at(61, submits=[0, 1]),
        at(62, retry_ended(), added(0), submits=[1]),
        retries=1,
        slow=True,
    ),
    law(
        "items whose retry is refused end as they did, and those that joined meanwhile are retried",
        at(0, cancelled(2, 3, 4, 5), settles=items("CANCELLED", 2, 3, 4, 5)),
        at(1, raised(0, 0, DIED)),
        at(62, submits=[0]),
        at(63, made(0)),
        at(64, raised(0, 1, DIED)),
        at(65, retry_ended(SubmissionError("no")), settles={0: "WorkerDied"}, submits=[1]),
        retries=1,
        slow=True,
    ),
    law(
        "items settle also if not even the round of their retry could be made",
        at(0, mark(0, KILLED)),
        at(61, submits=[0, 1]),
        at(62, values(0, 0), settles={0: "VALUE"}),
        at(63, retry_ended(OSError("disk full")), settles={1: "WorkerDied"}),
        at(500),
        retries=1,
        slow=True,
    ),
    law(
        "a retry that is accepted after all its items have settled is cancelled",
        at(0, values(1, 2, 3), values(2, 4, 5), settles=items("VALUE", 2, 3, 4, 5)),
        at(1, mark(0, KILLED), submits=[0, 1]),
        at(2, made(0, 1)),
        at(3, cancelled(0, 1, round_=1), settles=items("CANCELLED", 0, 1)),
        at(4, submitted(), retry_ended(), cancels=[("8", None)]),
        retries=1,
        slow=True,
    ),
    law(
        "a task that has begun again runs what it had left, and a retry what it recorded as failed",
        at(0, attempt(0), raised(0, 0, DIED), mark(0, KILLED)),
        at(61, submits=[0, 1]),
        at(62, began_again(0, 2), retry_ended(), submits=[0]),
        at(63, made(0), retry_ended()),
        at(64, values(0, 1, attempt=1), settles={1: "VALUE"}),
        retries=1,
        slow=True,
    ),
    law(
        "a task that has begun again is retried when that attempt has ended, too",
        at(0, attempt(0), mark(0, KILLED)),
        at(61, submits=[0, 1]),
        at(62, began_again(0, 2), retry_ended()),
        at(500, attempt(0, 1)),
        at(501, mark(0, KILLED, start=1)),
        at(562, submits=[0, 1]),
        retries=1,
        slow=True,
    ),
    law(
        "a task of a dynamic round that has begun again claims what nobody had claimed",
        at(0, attempt(0), claims(0, 0), mark(0, KILLED)),
        at(70, submits=[0, 1]),
        at(71, began_again(0, 2), retry_ended()),
        at(200, claims(0, 1), values(0, 0, 1, attempt=1), settles=items("VALUE", 0, 1)),
        number=2,
        tasks=1,
        dynamic=True,
        retries=1,
        slow=True,
    ),
    law(
        "an end that the scheduler said is written down also if its items are retried",
        at(0, attempt(0), scheduler({0: "NODE_FAIL"}, node="n3")),
        at(70, records={0: "NODE_FAIL"}),
        at(130),
        at(131, submits=[0, 1]),
        retries=1,
    ),
    law(
        "a run folder that is gone ends also what waits for a retry",
        at(0, mark(0, KILLED)),
        at(30, lost(), settles=items("ResultLost", *range(6))),
        at(500),
        retries=1,
    ),
    law("without retries nothing waits", at(0, mark(0, KILLED), settles=items("WorkerDied", 0, 1)), at(500)),
]


@pytest.mark.parametrize("each", RETRIES)
def test_retries(each: Law) -> None:
    """Each item that ended from outside is in one retry, made by one client, as often as requested."""
    play(each)


def test_a_task_that_is_queued_again_does_not_keep_its_items() -> None:
    """Whatever is said of a task while its items wait for a retry, it is closed behind the attempts that left them."""
    state = new_state(retries=1)
    record = partial(snapshot, state=state)
    for event in (
        AttemptSeen(0, 0),
        SchedulerReported(record({0: "FAILED"})),
        Tick(),
        TasksRead((TaskFiles(0),)),
        SchedulerReported(record({0: "PENDING"})),
        AttemptSeen(0, 1),
        SchedulerReported(record({0: "RUNNING"})),
        Tick(),
    ):
        state.handle(event, 100.0 if isinstance(event, Tick) else 0.0)

    assert [0, 1] == sorted(state.pending)
    assert {0: 1} == state.tasks.left_by([0, 1])


# A run whose first tasks all fail to start in the same way.

SAME_DEATHS = [
    law(
        "when three tasks fail to start in the same way the rest of the run is cancelled",
        at(0, mark(0, Status.SETUP), settles=items("NodeStartError", 0, 1)),
        at(1, mark(1, Status.SETUP), settles=items("NodeStartError", 2, 3)),
        at(2, mark(2, Status.SETUP), settles=items("NodeStartError", 4, 5, 6, 7), cancels=[("7", None)]),
        at(3, scheduler({3: "CANCELLED"})),
        at(500),
        number=8,
        tasks=4,
    ),
    law(
        "a function that cannot be loaded counts as well",
        at(0, raised(0, (0, 1), NOT_LOADED), settles=items("FAILURE", 0, 1)),
        at(1, raised(1, (2, 3), NOT_LOADED), settles=items("FAILURE", 2, 3)),
        at(
            2,
            raised(2, (4, 5), NOT_LOADED),
            settles=items("FAILURE", 4, 5) | items("NodeStartError", 6, 7),
            cancels=[("7", None)],
        ),
        at(3, raised(3, (6, 7), NOT_LOADED)),
        number=8,
        tasks=4,
    ),
    law(
        "a task that fails twice counts once",
        at(0, raised(0, 0, NOT_LOADED), settles={0: "FAILURE"}),
        at(1, raised(0, 1, NOT_LOADED), settles={1: "FAILURE"}),
        at(2, raised(1, (2, 3), NOT_LOADED), settles=items("FAILURE", 2, 3)),
        number=8,
        tasks=4,
    ),
    law(
        "different failures are not the same",
        at(0, mark(0, Status.SETUP), settles=items("NodeStartError", 0, 1)),
        at(1, mark(1, Status.NODE), settles=items("NodeStartError", 2, 3)),
        at(2, mark(2, 127), settles=items("NodeStartError", 4, 5)),
        number=8,
        tasks=4,
    ),
    law(
        "a run that has a value goes on",
        at(0, values(3, 7), settles={7: "VALUE"}),
        *(
            at(task + 1, mark(task, Status.SETUP), settles=items("NodeStartError", 2 * task, 2 * task + 1))
            for task in range(3)
        ),
        number=8,
        tasks=4,
    ),
    law(
        "a run whose function has raised something goes on",
        at(0, raised(3, 7, ValueError()), settles={7: "FAILURE"}),
        *(
            at(task + 1, mark(task, Status.SETUP), settles=items("NodeStartError", 2 * task, 2 * task + 1))
            for task in range(3)
        ),
        number=8,
        tasks=4,
    ),
    law(
        "the end of the run ends what waits for a retry too",
        at(0, mark(3, KILLED)),
        at(1, mark(0, Status.SETUP), settles=items("NodeStartError", 0, 1)),
        at(2, mark(1, Status.SETUP), settles=items("NodeStartError", 2, 3)),
        at(3, mark(2, Status.SETUP), settles=items("NodeStartError", 4, 5, 6, 7), cancels=[("7", None)]),
        at(500),
        number=8,
        tasks=4,
        retries=1,
    ),
]


@pytest.mark.parametrize("each", SAME_DEATHS)
def test_same_deaths(each: Law) -> None:
    """If three tasks cannot call the function for one cause, no task can."""
    play(each)


# Dynamic rounds: six items, which two tasks claim one by one.

DYNAMIC = [
    law(
        "a task that ends loses what it has claimed, and the rest waits for the other",
        at(0, attempt(0), attempt(1), claims(0, 0), claims(1, 1)),
        at(5, mark(0, KILLED), settles={0: "WorkerDied"}),
        at(500),
    ),
    law(
        "claims that become visible together with the end of their task count",
        at(0, attempt(0)),
        at(5, claims(0, 0, 1), mark(0, KILLED), settles=items("WorkerDied", 0, 1)),
    ),
    law(
        "a claim that becomes visible after the end of its task ends with it",
        at(0, attempt(0), claims(0, 0), mark(0, KILLED), settles={0: "WorkerDied"}),
        at(20, claims(0, 1), settles={1: "WorkerDied"}),
    ),
    law(
        "an outcome says which task has its item, before the claim is visible",
        at(0, values(1, 2), settles={2: "VALUE"}),
        at(1, claims(0, 2), mark(1, KILLED)),
        at(2, claims(1, 3), settles={3: "WorkerDied"}),
    ),
    law(
        "the first claim of a block counts, and claims of other tasks and blocks are ignored",
        at(0, attempt(0), claims(0, 0), claims(1, 0), claims(9, 1), claims(0, 6)),
        at(1, mark(1, KILLED)),
        at(2, mark(0, KILLED), settles={0: "WorkerDied"}),
    ),
    law(
        "when all tasks have ended, unclaimed items end after the latency, as their tasks did",
        at(0, attempt(0), attempt(1), claims(0, 0)),
        at(1, mark(0, KILLED), settles={0: "WorkerDied"}),
        at(2, mark(1, KILLED)),
        at(71),
        at(72, settles=items("WorkerDied", 1, 2, 3, 4, 5)),
        at(500),
    ),
    law(
        "a claim that becomes visible when all tasks have ended belongs to its task",
        at(0, attempt(0), attempt(1), claims(0, 0), mark(0, KILLED), mark(1, Status.NODE), settles={0: "WorkerDied"}),
        at(10, claims(0, 1), settles={1: "WorkerDied"}),
        at(70, settles=items("NodeStartError", 2, 3, 4, 5)),
    ),
    law(
        "an outcome that becomes visible when all tasks have ended counts",
        at(0, attempt(0), attempt(1), mark(0, KILLED), mark(1, KILLED)),
        at(30, values(0, 0), settles={0: "VALUE"}),
        at(70, settles=items("WorkerDied", 1, 2, 3, 4, 5)),
    ),
    law(
        "unclaimed items end at once if no task has ever started",
        at(0, scheduler({0: "CANCELLED", 1: "CANCELLED"})),
        at(69),
        at(
            70,
            settles=items("TaskCancelled", *range(6)),
            records={0: "CANCELLED", 1: "CANCELLED"},
            cancels=ANY,
        ),
    ),
    law(
        "the task that did not end well says why items are unclaimed",
        at(0, attempt(0), claims(0, 0), mark(0, Status.VALUES), mark(1, Status.SETUP)),
        at(10, values(0, 0), settles={0: "VALUE"}),
        at(69),
        at(70, settles=items("NodeStartError", 1, 2, 3, 4, 5), cancels=ANY),
    ),
    law(
        "tasks that could not load the function say why items are unclaimed",
        at(0, attempt(0), attempt(1), claims(0, 0), claims(1, 1)),
        at(1, raised(0, 0, NOT_LOADED), raised(1, 1, NOT_LOADED), settles=items("FAILURE", 0, 1)),
        at(2, mark(0, Status.FAILURES), mark(1, Status.FAILURES)),
        at(71),
        at(72, settles=items("NodeStartError", 2, 3, 4, 5)),
    ),
    law(
        "a task that is alive after all may claim again",
        at(0, attempt(0), claims(0, 0), scheduler({1: "NODE_FAIL"})),
        at(50, scheduler({0: "NODE_FAIL"})),
        at(70, records={1: "NODE_FAIL"}),
        at(100, scheduler({1: "RUNNING"})),
        at(120, settles={0: "NodeFailure"}, records={0: "NODE_FAIL"}),
        at(150, claims(1, 1), values(1, 1), settles={1: "VALUE"}),
        at(5000),
    ),
    law(
        "the wait for claims begins again when a task is alive after all",
        at(0, attempt(0), attempt(1), scheduler({1: "NODE_FAIL"})),
        at(50, scheduler({0: "NODE_FAIL"})),
        at(70, records={1: "NODE_FAIL"}),
        at(100, scheduler({1: "RUNNING"})),
        at(120, records={0: "NODE_FAIL"}),
        at(200, scheduler({1: "TIMEOUT"})),
        at(269),
        at(270, settles=items("TimeLimitExceeded", *range(6)), records={1: "TIMEOUT"}),
    ),
    law(
        "a task that is alive after all, and leaves an end mark then, ends by that",
        at(0, attempt(0), attempt(1), claims(1, 1), scheduler({1: "NODE_FAIL"})),
        at(70, settles={1: "NodeFailure"}, records={1: "NODE_FAIL"}),
        at(100, scheduler({1: "RUNNING"})),
        at(150, claims(1, 2), mark(1, KILLED), settles={2: "WorkerDied"}),
    ),
    law(
        "a task with unclaimed blocks before it is open although all it has claimed has settled",
        at(0, values(0, 0), settles={0: "VALUE"}),
        at(1, mark(0, Status.VALUES)),
        at(100),
        at(200, mark(1, KILLED)),
        at(269),
        at(270, settles=items("WorkerDied", 1, 2, 3, 4, 5), cancels=ANY),
    ),
    law(
        "when nothing is open, tasks that have not started are cancelled",
        at(0, claims(0, *range(6)), values(0, *range(6)), settles=items("VALUE", *range(6)), cancels=[("7", (1,))]),
    ),
    law(
        "cancelling unclaimed items cancels no task while others may be claimed",
        at(0, attempt(0), attempt(1), cancel(3, 4, 5), settles=items("CANCELLED", 3, 4, 5)),
        at(1, cancel(0, 1, 2), settles=items("CANCELLED", 0, 1, 2), cancels=[("7", None)]),
    ),
    law(
        "claimed items and unclaimed items of tasks that ended are retried",
        at(0, attempt(0), claims(0, 0), mark(0, KILLED), mark(1, KILLED)),
        at(60),
        at(61, submits=[0]),
        at(69),
        at(70),
        at(130),
        at(131, submits=[1, 2, 3, 4, 5]),
        retries=1,
    ),
]


@pytest.mark.parametrize("each", DYNAMIC)
def test_dynamic(each: Law) -> None:
    """Each item ends with the task that has claimed it; unclaimed ones end when no task is left."""
    play(each._replace(run={"tasks": 2, "dynamic": True, **each.run}))
