"""The state machine of a run in everyday life, and its reports on tasks and errors.

Races are in test_state_races.py. Nothing runs here: no folder, no thread, no clock.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurmlaunch.backends.base import TaskState
from slurmlaunch.client.events import (
    AttemptSeen,
    CancellationsRecorded,
    EndsRead,
    JobsSeen,
    OutcomesSeen,
    ReadEnds,
    RecordCancellations,
    RunLost,
    Settle,
    SubmitRound,
    Tick,
)
from slurmlaunch.client.ledger import ItemStatus
from slurmlaunch.client.retries import Cause
from slurmlaunch.errors import ItemError, NodeStartError, OutOfMemory, ResultLost, SubmissionError, WorkerDied
from slurmlaunch.runfolder.files import Location
from slurmlaunch.runfolder.layout import Status
from slurmlaunch.runfolder.outcomes import Recorded
from slurmlaunch.runfolder.records import Header, Kind
from tests.support.state_tables import (
    ANY,
    Law,
    Player,
    added,
    at,
    attempt,
    cancel,
    cancelled,
    claims,
    damaged,
    items,
    law,
    made,
    mark,
    new_state,
    notes,
    play,
    played,
    raised,
    refused,
    retry_ended,
    scheduler,
    submitted,
    unsafe,
    values,
)

if TYPE_CHECKING:
    from slurmlaunch.client.events import Event
    from slurmlaunch.client.state import RunState
    from tests.support.state_tables import Happening

KILLED = 128 + 9


def checkpoint(item: int) -> Recorded:
    """Return the record of a checkpoint, each at another place."""
    return Recorded(Location("0.0"), next(_OFFSETS), Header(Kind.CHECKPOINT, 1, item, 0, 0))


_OFFSETS = itertools.count()

EVERYDAY = [
    law(
        "items settle from records as they come, values and exceptions alike",
        at(0, attempt(0)),
        at(1, values(0, 0), settles={0: "VALUE"}),
        at(2, values(2, 4, 5), raised(0, 1, ValueError()), settles={1: "FAILURE"} | items("VALUE", 4, 5)),
        at(3, values(1, 2, 3), settles=items("VALUE", 2, 3)),
    ),
    law(
        "a client that attaches to a run that has ended knows all at once",
        at(
            0,
            cancelled(5),
            *(values(0, 0), raised(0, 1, ValueError()), mark(0, Status.FAILURES)),
            *(values(1, 2, 3), mark(1, Status.VALUES)),
            *(attempt(2), mark(2, KILLED)),
            settles={0: "VALUE", 1: "FAILURE", 2: "VALUE", 3: "VALUE", 4: "WorkerDied", 5: "CANCELLED"},
        ),
    ),
    law(
        "a client that attaches between two rounds goes on with the second",
        at(0, added(1, 3, tasks=2), values(0, 0), values(1, 2), values(2, 4, 5), settles=items("VALUE", 0, 2, 4, 5)),
        at(1, mark(0, KILLED), mark(1, KILLED)),
        at(2, values(3, 1), values(4, 3), settles=items("VALUE", 1, 3)),
    ),
    law(
        "a run without items is over before it begins",
        at(0),
        at(100),
        number=0,
        tasks=0,
        arrays=(),
    ),
    law(
        "a time limit without requeues costs what was not done",
        at(0, values(0, 0), settles={0: "VALUE"}),
        at(50, mark(0, Status.STOPPED)),
        at(60, scheduler({0: "TIMEOUT"})),
        at(130, settles={1: "TimeLimitExceeded"}, records={0: "TIMEOUT"}),
    ),
    law(
        "a refused requeue costs what was not done, at once",
        at(0, values(0, 0), settles={0: "VALUE"}),
        at(50, notes(0, ended=49.0), mark(0, Status.NOT_REQUEUED), settles={1: "TimeLimitExceeded"}),
    ),
    law(
        "what a node without scontrol left is submitted again, as after a requeue",
        at(0, values(0, 0), settles={0: "VALUE"}),
        at(50, notes(0, ended=49.0), mark(0, Status.RESUBMIT)),
        at(111, submits=[1]),
    ),
    law(
        "a throttled round runs task by task, and a queued task is no end",
        at(0, scheduler({0: "RUNNING", 1: "PENDING", 2: "PENDING"}, reason="JobArrayTaskLimit")),
        at(1000, values(0, 0, 1), mark(0, Status.VALUES), settles=items("VALUE", 0, 1)),
        at(1001, scheduler({0: "COMPLETED", 1: "RUNNING", 2: "PENDING"}, reason="JobArrayTaskLimit")),
        at(2000, values(1, 2, 3), settles=items("VALUE", 2, 3)),
        at(3000, values(2, 4, 5), settles=items("VALUE", 4, 5)),
    ),
    law(
        "tasks of a dynamic round share the items",
        at(0, claims(0, 0), claims(1, 1), values(0, 0), settles={0: "VALUE"}),
        at(1, claims(1, 2), values(1, 1, 2), settles=items("VALUE", 1, 2)),
        at(2, claims(0, 3, 4, 5), values(0, 3, 4, 5), settles=items("VALUE", 3, 4, 5)),
        at(3, mark(0, Status.VALUES), mark(1, Status.VALUES)),
        tasks=2,
        dynamic=True,
    ),
    law(
        "when a static round is over no task of it is cancelled",
        at(0, values(0, *range(6)), settles=items("VALUE", *range(6))),
    ),
]


@pytest.mark.parametrize("each", EVERYDAY)
def test_everyday(each: Law) -> None:
    """Outcomes settle items; marks and states settle the rest."""
    play(each)


class TestTasks:
    """The state's report on tasks."""

    @pytest.mark.parametrize(
        ("state", "started"),
        [
            ("PENDING", False),
            ("CONFIGURING", False),
            ("REQUEUED", False),
            ("RUNNING", True),
            ("SUSPENDED", True),
            ("UNKNOWN", False),
        ],
    )
    def test_started(self, state: str, *, started: bool) -> None:
        """A task has started once it is past the queue."""
        view = played(at(0, scheduler({0: state}))).tasks.view(0)

        assert (started, TaskState(state)) == (view.started, view.state)

    def test_started_before(self) -> None:
        """A requeued task has started, according to its outcome file."""
        assert played(at(0, attempt(0)), at(1, scheduler({0: "REQUEUED"}))).tasks.view(0).started

    @pytest.mark.parametrize(
        ("happenings", "state"),
        [
            ([], "PENDING"),
            ([attempt(0)], "RUNNING"),
            ([scheduler({0: "SUSPENDED"})], "RUNNING"),
            ([scheduler({0: "CONFIGURING"})], "CONFIGURING"),
            ([values(0, 0, 1)], "COMPLETED"),
            ([values(0, 0), raised(0, 1, ValueError())], "FAILED"),
            ([cancelled(0, 1)], "CANCELLED"),
            ([cancelled(0), values(0, 1)], "COMPLETED"),
            ([values(0, 0, 1), scheduler({0: "TIMEOUT"})], "TIMEOUT"),
            ([scheduler({0: "RUNNING"}), values(0, 0, 1)], "COMPLETED"),
        ],
    )
    def test_states(self, happenings: list[Happening], state: str) -> None:
        """Settled items give the state of a task, unless the scheduler has reported it."""
        found = new_state()
        for happening in happenings:
            for event in happening(found):
                found.handle(event, 0.0)

        assert TaskState(state) is found.tasks.state_of(0)

    def test_a_late_answer(self) -> None:
        """A task that has ended with all its outcomes stays completed, whatever a late answer reports."""
        found = played(
            at(0, values(0, 0, 1), mark(0, Status.VALUES), settles=items("VALUE", 0, 1)),
            at(1, scheduler({0: "RUNNING"})),
            at(2, scheduler({0: "NODE_FAIL"})),
        )

        assert TaskState.COMPLETED is found.tasks.state_of(0)

    def test_one_cause_for_each_task(self) -> None:
        """All items of a task that wait for a retry have the known end of its last attempt as their cause."""
        found = played(
            at(0, attempt(0), notes(0, 0, started=100.0, node="n1", peak=5)),
            at(1, attempt(0, 1), notes(0, 1, started=200.0, node="n2", peak=7)),
            at(2, notes(0, 1, ended=230.0), mark(0, Status.OUT_OF_MEMORY, start=1)),
            retries=1,
        )
        causes = found.pending

        assert [0, 1] == list(causes)
        assert causes[0] is causes[1]
        assert Cause(causes[0].error, "n2", 7, 30.0) == causes[0]
        assert isinstance(causes[0].error, OutOfMemory)

    def test_the_first_cause_counts(self) -> None:
        """A later failure of an item that waits for its retry does not change the retry's cause."""
        found = played(at(0, mark(0, Status.OUT_OF_MEMORY)), at(10, raised(0, 0, WorkerDied())), retries=1)

        assert [OutOfMemory, OutOfMemory] == [type(each.error) for each in found.pending.values()]

    def test_claims(self) -> None:
        """An unclaimed item has the task that it would have in a static round, and waits; then it has its claimant."""
        before, after = new_state(tasks=2, dynamic=True), played(at(0, claims(1, 0)), tasks=2, dynamic=True)
        assert [0, 0, 0, 1, 1, 1] == [before.tasks.task_of(item) for item in range(6)]
        assert {TaskState.PENDING} == {before.tasks.state_of_item(item) for item in range(6)}

        assert [1, 0, 0, 1, 1, 1] == [after.tasks.task_of(item) for item in range(6)]
        assert [1, *[None] * 5] == [after.tasks.claimant_of(item) for item in range(6)]

    def test_recorded_items_are_claimed(self) -> None:
        """A task's recorded items are claimed, although the claim may become visible later."""
        found = played(at(0, values(1, 2), claims(0, 2), settles={2: "VALUE"}), tasks=2, dynamic=True)

        assert (1, 1, None) == (found.tasks.task_of(2), found.tasks.claimant_of(2), found.tasks.claimant_of(1))
        assert 5 == found.tasks.rounds[0].claims.unclaimed  # type: ignore[union-attr]

    def test_running(self) -> None:
        """Open items of tasks that have started are running."""
        found = played(at(0, values(0, 0), attempt(1), cancelled(2), settles=ANY))

        assert (2, 1) == (found.tasks.count_running(), found.tasks.count_running([0, 1, 2, 4]))

    def test_checkpoints(self) -> None:
        """The last checkpoint of an item counts: that of the latest attempt of the latest round."""
        first, second, third = (checkpoint(item) for item in (0, 0, 0))
        found = played(
            at(0, lambda _: [AttemptSeen(0, 1, checkpoints={0: second, 1: second})]),
            at(0, lambda _: [AttemptSeen(0, 0, checkpoints={0: first})]),
            at(1, added(0), lambda _: [AttemptSeen(3, 0, checkpoints={0: third})]),
        )

        assert {0: third, 1: second} == found.tasks.last_checkpoints([0, 1, 4])

    @pytest.mark.parametrize(
        ("happenings", "retries", "wanted"),
        [
            ([], 0, True),
            ([attempt(0)], 0, True),
            ([raised(0, 0, NodeStartError())], 0, True),
            ([raised(0, 0, ValueError())], 0, False),
            ([values(0, 0)], 0, False),
            ([values(0, 0), raised(0, 1, ValueError())], 1, True),
        ],
    )
    def test_wants_errors(self, happenings: list[Happening], retries: int, *, wanted: bool) -> None:
        """Failures are unpickled until the function is known to run, and as long as they may be retried."""
        assert wanted == played(at(0, *happenings, settles=ANY), retries=retries).wants_errors

    def test_jobs(self) -> None:
        """Jobs are in the order of their submission, also those of other clients."""
        found = played(at(0, submitted(0, 0)), at(1, added(1)), at(2, submitted(0, 1)), arrays=(2, 1))

        assert ("7", "7", "8") == found.tasks.job_ids
        assert ["7_0", "7_1", "7_0", "8_0"] == [found.tasks.view(task).full_id for task in range(4)]


class TestErrors:
    """The errors of items without outcomes."""

    @staticmethod
    def error(state: object, item: int) -> ItemError:
        """Return the error of an item."""
        found = state.ledger.error_of(item)  # type: ignore[attr-defined]
        assert isinstance(found, ItemError)
        return found

    def test_places(self) -> None:
        """One cause ends many items: the error of each names the item, the task, the job and the log."""
        found = played(at(0, mark(1, KILLED), settles=items("WorkerDied", 2, 3)))
        errors = [self.error(found, item) for item in (2, 3)]

        assert [(2, 1, "7_1"), (3, 1, "7_1")] == [(each.item, each.task, each.job_id) for each in errors]
        assert all(str(each.log).endswith("0-0-1.err") for each in errors)

    def test_unclaimed(self) -> None:
        """No task has claimed an unclaimed item; its error is the tasks' end."""
        found = played(
            at(0, attempt(0), attempt(1), mark(0, KILLED), mark(1, KILLED)),
            at(70, settles=items("WorkerDied", *range(6))),
            tasks=2,
            dynamic=True,
        )
        error = self.error(found, 5)

        assert (5, None, None) == (error.item, error.task, error.job_id)
        assert "no task was left to take the item: the task's supervisor was killed" in str(error)

    def test_lost(self) -> None:
        """The loss of an outcome names the file that should hold it, or the damaged record that did."""
        found = played(
            at(0, attempt(0), mark(0, Status.FAILURES), attempt(1), damaged(1), mark(1, Status.VALUES)),
            at(70, settles=items("ResultLost", 0, 1, 2, 3)),
        )
        lost = [self.error(found, item) for item in (0, 2)]

        assert [("/nowhere/outcomes/0.0", 0), ("/nowhere/outcomes/1.0", 33)] == [
            (each.file, each.offset) for each in lost if isinstance(each, ResultLost)
        ]

    def test_not_started(self) -> None:
        """Items not started after the first tasks failed to start have that reason in their error."""
        found = played(
            *(
                at(task, mark(task, Status.SETUP), settles=items("NodeStartError", 2 * task, 2 * task + 1))
                for task in range(2)
            ),
            at(2, mark(2, Status.SETUP), settles=items("NodeStartError", 4, 5, 6, 7), cancels=[("7", None)]),
            number=8,
            tasks=4,
        )
        first, last = self.error(found, 0), self.error(found, 7)

        assert "the set-up lines failed" in str(first)
        assert "not started" not in str(first)
        assert "not started, since the first 3 tasks died in the same way: the set-up lines failed" in str(last)
        assert 7 == last.item

    def test_a_refused_retry(self) -> None:
        """The error of an item whose retry was refused mentions this once, however often it is read."""
        found = played(
            at(0, mark(0, KILLED)),
            at(61, submits=[0, 1]),
            at(62, retry_ended(SubmissionError("no account")), settles=items("WorkerDied", 0, 1)),
            retries=1,
            slow=True,
        )

        for item in (0, 1, 0):
            error = self.error(found, item)
            assert ["it could not be run again: no account"] == error.__notes__
            error.add_note(f"my note on item {item}")  # on this one alone

    def test_a_fault(self) -> None:
        """A fault in slurmlaunch is the error of all open items, so no waiter blocks for ever."""
        fault = RuntimeError("a fault")
        found = played(at(0, lambda _: [RunLost(fault)], settles=items("RuntimeError", *range(6))), retries=1)

        assert fault is found.ledger.error_of(3)

    def test_recorded_ends_that_cannot_be_read(self) -> None:
        """They are requested again after each tick, and no more once they were read."""
        state = new_state()
        found = [state.handle(Tick(), second) for second in (0.0, 29.0, 30.0, 31.0)]
        state.handle(EndsRead(()), 31.0)

        assert [[], [], [ReadEnds()], [ReadEnds()], []] == [*found, state.handle(Tick(), 32.0)]

    def test_a_fault_in_between(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Items that settled before a fault are reported with the next event: their futures wait for that."""
        state, fault = new_state(), RuntimeError("a fault")

        def fail(*_: object) -> NoReturn:
            raise fault

        monkeypatch.setattr(state, "_count_death", fail)
        failure = Recorded(Location("/nowhere/0.0"), 0, Header(Kind.FAILURE, 1, 0, 0, 0))
        with pytest.raises(RuntimeError, match="a fault"):
            state.handle(OutcomesSeen(0, failure, ValueError()), 0.0)

        effects = state.handle(RunLost(fault), 0.0)
        assert [Settle(range(1), ItemStatus.FAILURE), Settle(range(1, 6), ItemStatus.ENDED)] == effects


NOT_LOADED, DIED = NodeStartError("the function cannot be loaded"), WorkerDied("it was killed")
STATES = ("PENDING", "RUNNING", "REQUEUED", "COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")
STATUSES = (Status.VALUES, Status.FAILURES, Status.SETUP, Status.REQUEUE, Status.STOPPED, Status.OUT_OF_MEMORY, KILLED)

tasks, numbers, attempts = st.integers(0, 2), st.integers(0, 5), st.integers(0, 1)
happenings = st.one_of(
    st.builds(attempt, tasks, attempts),
    st.builds(values, tasks, numbers, attempt=attempts),
    st.builds(raised, tasks, numbers, st.sampled_from([ValueError(), NOT_LOADED, DIED]), attempts),
    st.builds(damaged, tasks, numbers),
    st.builds(unsafe, tasks),
    st.builds(mark, tasks, st.sampled_from(STATUSES), attempts),
    st.builds(claims, tasks, numbers),
    st.builds(scheduler, st.dictionaries(tasks, st.sampled_from(STATES))),
    st.builds(cancelled, numbers),
    st.builds(cancel, numbers, only_queued=st.booleans()),
    st.builds(lambda some: added(*sorted(some)), st.sets(numbers, min_size=1)),
    st.just(refused(0)),
)


@settings(max_examples=200)
@given(
    steps=st.lists(st.tuples(st.sampled_from([0.1, 10.0, 70.0]), st.lists(happenings, max_size=4)), max_size=12),
    retries=st.integers(0, 2),
    dynamic=st.booleans(),
)
def test_any_order(steps: list[tuple[float, list[Happening]]], *, retries: int, dynamic: bool) -> None:
    """For any events in any order, an item settles once, and at the latest when all tasks have ended.

    Retries end, too: each round of an item is counted.
    """
    state = new_state(dynamic=dynamic, retries=retries)
    player = Player(state)  # which checks that no item settles twice
    seconds = itertools.accumulate(pause for pause, _ in steps)
    for second, (_, some) in zip(seconds, steps, strict=True):
        player.play(at(second, *some))
    assert sum(state.ledger.count(status) for status in ItemStatus) == state.ledger.items

    now = sum(pause for pause, _ in steps)
    for _ in range(3 * (retries + 2)):
        now += 100.0
        tasks = [task for each in state.tasks.rounds for task in each.plan.tasks]
        player.play(at(now, *(mark(task, KILLED, start=9) for task in tasks)))
    assert not state.ledger.open


class Slow(Player):
    """Answers the state's requests only when the test says so, in any order."""

    def __init__(self, state: RunState) -> None:
        super().__init__(state, slow=True)
        self.unwritten: list[Any] = []
        self.retry: SubmitRound | None = None
        self.made = False

    def send(self, event: Event) -> None:
        """Send an event, and keep the state's requests."""
        super().send(event)
        self.unwritten += [each.ranges for each in self.effects if isinstance(each, RecordCancellations)]
        for each in self.effects:
            if isinstance(each, SubmitRound):
                assert self.retry is None
                self.retry = each
        self.effects = []

    def answer(self, word: str) -> None:
        """Execute one word's answer, if a request is waiting for it."""
        first, last = self.state.tasks.rounds[0], self.state.tasks.rounds[-1]
        if word == "refused" and 0 in first.missing_arrays:
            self._happen(refused(0))
        elif word == "accepted":
            self.send(JobsSeen(0, {number: f"9{number}" for number in first.missing_arrays}))
        elif word in {"written", "unwritten"} and self.unwritten:
            ranges = self.unwritten.pop(0)
            self.send(CancellationsRecorded(*((ranges, ()) if word == "written" else ((), ranges))))
        elif word == "made" and self.retry and not self.made:
            self._happen(made(*self.retry.items))
            self.made = True
        elif (word == "submitted" and self.made) or (word == "not submitted" and self.retry):
            if word == "submitted":
                self._happen(submitted(last.number))
            self.retry, self.made = None, False
            self._happen(retry_ended(None if word == "submitted" else OSError("disk full")))


WORDS = ("refused", "accepted", "written", "unwritten", "made", "submitted", "not submitted")


@settings(max_examples=300)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from([0.1, 70.0]),
            st.one_of(st.builds(cancel, numbers, numbers), st.builds(mark, tasks, st.just(KILLED))),
            st.lists(st.sampled_from(WORDS), max_size=2),
        ),
        max_size=12,
    ),
    retries=st.integers(0, 2),
)
def test_any_answers(steps: list[tuple[float, Happening, list[str]]], *, retries: int) -> None:
    """Everything settles for any order and delay of writes and submissions, successful or not."""
    state = new_state(arrays=[1, 2], retries=retries)
    player, now = Slow(state), 0.0
    for pause, happening, words in steps:
        now += pause
        player.play(at(now, happening))
        for word in words:
            player.answer(word)

    for _ in range(3 * (retries + 2)):
        now += 100.0
        for word in ("accepted", *["written"] * len(player.unwritten), "made", "submitted"):
            player.answer(word)
        ran = [task for each in state.tasks.rounds for number in each.jobs for task in each.tasks_of(number)]
        player.play(at(now, *(mark(task, KILLED, start=9) for task in ran)))
    assert not state.ledger.open
