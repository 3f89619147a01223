"""A client's view of a dynamic round: the owners of blocks, and the remaining items after the last task.

Nothing runs here, as in the tests of the collector.
"""

from __future__ import annotations

import math
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from slurmlaunch.backends.base import TaskState
from slurmlaunch.backends.inline import InlineBackend
from slurmlaunch.client.events import (
    ArrayRefused,
    AttemptSeen,
    CancelJobs,
    ClaimsSeen,
    JobsSeen,
    Tick,
    Warn,
    WatchEnded,
)
from slurmlaunch.client.run import Run
from slurmlaunch.client.state import RunState
from slurmlaunch.client.submission import Submission
from slurmlaunch.client.watcher import Watch
from slurmlaunch.errors import (
    NodeFailure,
    NodeStartError,
    ResultLost,
    SubmissionError,
    TaskCancelled,
    TimeLimitExceeded,
    WorkerDied,
)
from slurmlaunch.outcome import Failure
from slurmlaunch.runfolder.claims import Claimer
from slurmlaunch.runfolder.layout import Manifest, Status
from slurmlaunch.runfolder.outcomes import OutcomeWriter
from slurmlaunch.runfolder.plan import ArrayPlan, Blocks, RoundPlan, Slices
from slurmlaunch.runfolder.rounds import Round, read_rounds
from tests.support.tasks import OneRun, rows
from tests.unit.test_collector import Watched, poll, write_value

if TYPE_CHECKING:
    from pathlib import Path


class Shared(Watched):
    """A run of six items that two tasks share, item by item."""

    def __init__(self, path: Path) -> None:
        self.folder = OneRun(path, len, rows(range(6)), tasks=2, blocks=Blocks(6, 2, "dynamic", 1)).folder
        self.run = Run(self.folder, Manifest.read(self.folder), None, list(read_rounds(self.folder)))  # type: ignore[arg-type]
        self.run.handle(JobsSeen(0, {0: "7"}))
        self.run.state.latency = math.inf
        self.watch = Watch(self.run)
        self.writers: dict[int, OutcomeWriter] = {}

    def claim(self, task: int, blocks: int = 1) -> None:
        """Start a task, and have it claim some blocks."""
        self.writers.setdefault(task, OutcomeWriter(self.folder, task))
        claimer = Claimer(self.folder.claims(0), task, 0, 6)
        for _ in range(blocks):
            claimer.claim()

    def poll(self) -> None:
        """Poll, including the claims."""
        for _ in range(2):
            self.watch.collector._claims_at = 0.0  # noqa: SLF001 - or the clock would decide
            poll(self.watch)

    @property
    def errors(self) -> list[type]:
        """The types of the items' errors; NoneType for open items."""
        return [
            type(self.error(item) if self.statuses.get(item) in {"FAILURE", "ENDED"} else None) for item in range(6)
        ]


OPEN = type(None)


@pytest.fixture
def shared(tmp_path: Path) -> Shared:
    """Return a run without any events so far."""
    return Shared(tmp_path / "run")


def test_the_task_of_an_item(shared: Shared) -> None:
    """An unclaimed item is pending, in the task that it would have in a static round; a claim gives it its task."""
    assert [shared.run.tasks.task_of(item) for item in range(6)] == [0, 0, 0, 1, 1, 1]
    assert {shared.run.tasks.state_of_item(item) for item in range(6)} == {TaskState.PENDING}
    shared.claim(1, 2)
    shared.poll()

    assert [shared.run.tasks.task_of(item) for item in range(6)] == [1, 1, 0, 1, 1, 1]
    assert [shared.run.tasks.is_started(item) for item in range(6)] == [True, True, False, False, False, False]
    assert (shared.run.tasks.open_items(1), shared.run.tasks.open_items(0)) == ([0, 1], [])
    assert shared.run.tasks.count_running() == shared.run.tasks.count_running(range(6)) == 1  # of its one process
    assert [shared.run.tasks.state_of_item(item).value for item in (0, 5)] == ["RUNNING", "PENDING"]


def test_an_outcome_implies_a_claim(shared: Shared) -> None:
    """A listing may be out of date: recorded items count as claimed by their task."""
    writer = OutcomeWriter(shared.folder, 1)
    write_value(writer, 2, "x")
    shared.poll()

    tasks = shared.run.tasks
    assert (1, 1, None) == (tasks.task_of(2), tasks.claimant_of(2), tasks.claimant_of(1))


def test_one_task_is_over(shared: Shared) -> None:
    """The claimed items of an ended task end with it; unclaimed items wait for the other task."""
    shared.claim(0)
    shared.claim(1)
    shared.end(0, 137)
    shared.poll_late()

    assert shared.errors == [WorkerDied, OPEN, OPEN, OPEN, OPEN, OPEN]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (TaskState.TIMEOUT, TimeLimitExceeded),
        (TaskState.NODE_FAIL, NodeFailure),
        (TaskState.CANCELLED, TaskCancelled),
        (TaskState.COMPLETED, ResultLost),
    ],
)
def test_all_are_over(shared: Shared, state: TaskState, expected: type) -> None:
    """Unclaimed items end with the cause of the tasks, and name no task; each item ends once."""
    shared.claim(0)
    shared.claim(1)
    shared.report(state)
    shared.report(state, 1)
    shared.poll()
    assert shared.errors == [OPEN] * 6
    shared.poll_late()

    assert shared.errors == [expected] * 6
    assert [shared.error(item).task for item in range(6)] == [0, 1, None, None, None, None]
    assert [shared.error(item).item for item in range(6)] == list(range(6))
    first = [str(shared.error(item)) for item in range(6)]
    shared.poll_late()
    assert first == [str(shared.error(item)) for item in range(6)]


def test_the_worst_end_is_reported(shared: Shared) -> None:
    """If one task completed and another failed, the error of the unclaimed items names the failure."""
    shared.claim(0)
    shared.end(0, Status.VALUES)
    shared.end(1, Status.SETUP)
    write_value(shared.writers[0], 0, "x")
    shared.poll()
    assert shared.errors[5] is OPEN
    shared.poll_late()

    assert shared.statuses[0] == "VALUE"
    assert isinstance(shared.error(5), NodeStartError)
    assert "no task was left to take the item: the set-up lines failed" in str(shared.error(5))


def test_why_tasks_gave_up(shared: Shared) -> None:
    """If tasks record that they cannot load the function, their unclaimed items get that error."""
    for task in range(2):
        shared.claim(task)
        shared.writers[task].failure(task, Failure(NodeStartError("cannot be loaded")).dump())
        shared.end(task, Status.FAILURES)
    shared.poll_late()

    assert shared.errors == [NodeStartError] * 6
    assert "no task was left to take the item: cannot be loaded" in str(shared.error(5))


def test_a_claim_that_becomes_visible_late(shared: Shared) -> None:
    """Claims of a dead task that become visible late end with it too."""
    shared.claim(0)
    shared.end(0, 137)
    shared.poll_late()
    shared.claim(0, 1)
    shared.poll_late()

    assert shared.errors == [WorkerDied, WorkerDied, OPEN, OPEN, OPEN, OPEN]


def test_cancelled_before_any_task_started(shared: Shared) -> None:
    """If all tasks were cancelled before they started, the items end as soon as that is certain."""
    shared.report(TaskState.CANCELLED)
    shared.report(TaskState.CANCELLED, 1)
    shared.poll_late()

    assert shared.errors == [TaskCancelled] * 6


def test_alive_again(shared: Shared) -> None:
    """A task that the scheduler later reports as running may continue to claim."""
    shared.claim(0)
    for task in range(2):
        shared.report(TaskState.NODE_FAIL, task)
    shared.run.state.latency = 0
    poll(shared.watch)
    assert shared.errors[0] is NodeFailure
    shared.run.state.latency = math.inf
    shared.report(TaskState.RUNNING, 1)
    shared.poll_late()
    assert shared.run.tasks.has_open(1)


def test_refused(shared: Shared) -> None:
    """A refused array ends no items while other tasks may claim them, and all items if there are none."""
    shared.run.handle(ArrayRefused(0, 0, SubmissionError("no")))
    shared.poll()

    assert shared.errors == [SubmissionError] * 6


def test_memory_of_open_items(tmp_path: Path) -> None:
    """A million open items take at most sixteen bytes each in the client, with every schedule."""
    items = 1_000_000
    folder = OneRun(tmp_path / "run", len, rows([1])).folder
    plan = RoundPlan(Slices(items, 1000), 1, (ArrayPlan("test", 1, 1000),), 1, 1, 1)
    its_round = Round(folder, 0, plan._replace(blocks=Blocks(items, 1000, "dynamic")))
    folder.claims(0).mkdir()
    manifest = Manifest.read(folder)._replace(items=items)
    tracemalloc.start()
    run = Run(folder, manifest, None, [its_round])  # type: ignore[arg-type]
    for _ in range(3):
        poll(Watch(run))
    assert run.tasks.task_of(items - 1) == 1000
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert held <= 16 * items


@pytest.mark.parametrize(("seconds", "said"), [(0.05, True), (2.0, False)])
def test_tasks_that_are_too_short(tmp_path: Path, *, seconds: float, said: bool) -> None:
    """After a run with one item per task, a line says that the tasks worked for less time than their start takes."""
    folder = OneRun(tmp_path / "run", len, rows([1])).folder
    plan = RoundPlan(Slices(60, 60, 1), 0, (ArrayPlan("test", 0, 60),), 1, 1, 1)
    state = RunState(folder, 60, [(0, plan)])
    for task in range(60):
        state.handle(AttemptSeen(task, 0, {"started": 100.0, "ended": 100.0 + seconds}), 0.0)

    warnings = [effect.message for effect in state.handle(WatchEnded(), 1.0) if isinstance(effect, Warn)]
    assert [f"{seconds:.2f} s each" in message for message in warnings] == [True] * said


def test_surplus_tasks(shared: Shared) -> None:
    """Once all items are taken, tasks that have not begun are cancelled, once and by their numbers."""
    state = shared.run.state
    state.handle(ClaimsSeen(0, ((range(5), 0),)), 0.0)
    assert [] == [each for each in state.handle(Tick(), 0.0) if isinstance(each, CancelJobs)]
    state.handle(ClaimsSeen(0, ((range(5, 6), 0),)), 0.0)

    assert [(("7", (1,)),)] == [each.jobs for each in state.handle(Tick(), 0.0) if isinstance(each, CancelJobs)]
    assert [] == state.handle(WatchEnded(), 1.0)


def test_an_array_without_items(shared: Shared) -> None:
    """An array that waits for room while others take all items is not submitted, and every client can read that."""
    shared.run.handle(ClaimsSeen(0, ((range(6), 0),)))
    shared.run.handle(Tick())
    shared.run.backend = InlineBackend()
    Submission(shared.run).submit(shared.run.rounds[0], ended=lambda _: None)

    assert next(iter(read_rounds(shared.folder))).journal().not_needed == {0}
    assert shared.run.tasks.rounds[0].given_up == {0}
