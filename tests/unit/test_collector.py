"""The collector: the events that it reads from a run folder, and when a missing outcome means an end.

Nothing runs here: the tests write the files of nodes, and give the answers of a scheduler. With a latency of zero a
missing outcome counts at the next poll, with an infinite one it never does.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import pickle
import sys
from array import array
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from slurmlaunch.backends.base import Snapshot, TaskRecord, TaskState
from slurmlaunch.client.events import JobsSeen, ReadTasks, RecordEnds, SchedulerReported, Tick
from slurmlaunch.client.futures import Future
from slurmlaunch.client.ledger import ItemStatus
from slurmlaunch.client.plan import pack
from slurmlaunch.client.run import Run
from slurmlaunch.client.watcher import Watch
from slurmlaunch.errors import (
    ItemError,
    NodeFailure,
    NodeStartError,
    OutOfMemory,
    ResultLost,
    TaskCancelled,
    TimeLimitExceeded,
    WorkerDied,
)
from slurmlaunch.outcome import Failure, Value
from slurmlaunch.runfolder.changes import latency_of
from slurmlaunch.runfolder.layout import EndMark, Manifest, RunFolder, Status
from slurmlaunch.runfolder.outcomes import OutcomeWriter
from slurmlaunch.runfolder.plan import Slices
from slurmlaunch.runfolder.records import Kind
from slurmlaunch.runfolder.rounds import Round, SchedulerEnd, read_rounds, write_cancellations
from tests.support.tasks import OneRun, rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slurmlaunch.backends.base import Backend


class Watched:
    """A run of six items in three tasks, and a client that watches it."""

    def __init__(self, path: Path, backend: Backend | None = None) -> None:
        self._begin(OneRun(path, len, rows(range(6)), tasks=3).folder, backend)

    @classmethod
    def of(cls, folder: RunFolder) -> Watched:
        """Return another client that watches the same run."""
        other = object.__new__(cls)
        other._begin(folder, None)
        return other

    def _begin(self, folder: RunFolder, backend: Backend | None) -> None:
        self.folder, self.now = folder, 0.0
        rounds = list(read_rounds(self.folder))
        self.run = Run(self.folder, Manifest.read(self.folder), backend, rounds, clock=lambda: self.now)  # type: ignore[arg-type]
        self.run.handle(JobsSeen(0, {0: "7"}))
        self.run.state.latency = math.inf
        self.watch = Watch(self.run)

    def end(self, task: int, status: int, start: int = 0) -> None:
        """Write the end mark of a task."""
        Path(self.folder.ended / EndMark(task, start, status).filename).touch(0o600)

    def report(self, state: TaskState, task: int = 0, **said: Any) -> None:
        """Have the scheduler report the state of a task."""
        self.watch.handle(SchedulerReported(Snapshot(0.0, {"7": {task: TaskRecord(state, **said)}.get})))

    def wait(self) -> None:
        """Let an hour pass."""
        self.now += 3600.0

    def poll(self) -> None:
        """Poll twice, a second apart: some changes take two polls."""
        for _ in range(2):
            poll(self.watch)
            self.now += 1.0

    def poll_late(self) -> None:
        """Poll after the latency, when every file must be visible."""
        self.run.state.latency = 0
        self.poll()

    @property
    def started(self) -> set[int]:
        """Return the tasks that are known to have started."""
        return {task for task, view in self.run.tasks.views.items() if view.started}

    @property
    def statuses(self) -> dict[int, str]:
        """The status of each settled item."""
        statuses = {item: self.run.ledger.status(item) for item in range(6)}
        return {item: status.name for item, status in statuses.items() if status != ItemStatus.OPEN}

    def error(self, item: int) -> Any:
        """Return an item's error."""
        outcome = self.run.outcome(item)
        assert not isinstance(outcome, Value)
        return outcome.error


def poll(watch: Watch, **most: float) -> None:
    """Handle new events, up to a limit."""
    for event in watch.collector.poll(**most):
        watch.handle(event)


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    """Return a run without any events so far."""
    return Watched(tmp_path / "run")


@contextlib.contextmanager
def counted_events() -> Iterator[list[str]]:
    """Count each call, and each step of a generator."""
    events: list[str] = []
    before = sys.getprofile()
    sys.setprofile(lambda _frame, event, _arg: events.append(event))
    try:
        yield events
    finally:
        sys.setprofile(before)


def write_value(writer: OutcomeWriter, item: int, value: object) -> None:
    """Record an item's value."""
    writer.value(item, pickle.dumps(value))


class TestOutcomes:
    """Outcomes that nodes have written."""

    def test_appended_outcomes_are_collected(self, watched: Watched) -> None:
        """Outcomes are collected as they are appended, and mark their tasks as started."""
        watched.poll()
        assert (set(), {}) == (watched.started, watched.statuses)

        first, third = OutcomeWriter(watched.folder, 0), OutcomeWriter(watched.folder, 2)
        watched.poll()
        assert ({0, 2}, {}) == (watched.started, watched.statuses)
        write_value(first, 1, "b")
        watched.poll()
        assert {1: "VALUE"} == watched.statuses
        third.packed(Kind.VALUES, 4, array("I", [len(pickle.dumps(1))] * 2), pickle.dumps(1) + pickle.dumps(2))
        first.failure(0, Failure(ValueError("a")).dump())
        watched.poll()

        assert {0: "FAILURE", 1: "VALUE", 4: "VALUE", 5: "VALUE"} == watched.statuses
        assert ["b", 1, 2] == [watched.run.outcome(item).unwrap() for item in (1, 4, 5)]
        assert ("a",) == watched.error(0).args

    @pytest.mark.parametrize("retries", [0, 1])
    def test_failures_are_read_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, retries: int) -> None:
        """Many exceptions cost as little as many values: no file is opened and no object kept for each."""
        options = {"retries": retries, "retry_exceptions": ["builtins.OSError"]}
        folder = OneRun(tmp_path / "run", len, rows(range(200)), options=options).folder
        run = Run(folder, Manifest.read(folder), None, list(read_rounds(folder)))  # type: ignore[arg-type]
        writer = OutcomeWriter(folder, 0)
        for item in range(200):
            writer.failure(item, Failure(ValueError(item)).dump())
        opened, really = [], os.open
        monkeypatch.setattr(os, "open", lambda path, *rest, **at: opened.append(path) or really(path, *rest, **at))  # type: ignore[func-returns-value]
        poll(Watch(run))
        monkeypatch.undo()

        assert (200, 0) == (run.ledger.count(ItemStatus.FAILURE), run.ledger.count(ItemStatus.ENDED))
        assert 0 < len(opened) < 10
        assert [(item,) for item in range(200)] == [run.outcome(item).error.args for item in range(200)]  # type: ignore[union-attr]

    @pytest.mark.parametrize("way", ["static", "packed", "retried"])
    def test_a_poll_costs_nothing_for_each_item(self, tmp_path: Path, way: str) -> None:
        """A poll without news costs the same for many items as for few, however they are sliced."""
        plan: dict[str, Any] = {"items": array("Q", range(0, 20_000, 2))} if way == "retried" else {}
        folder = OneRun(tmp_path / "run", len, rows(range(20_000)), **plan).folder
        (first,) = read_rounds(folder)
        if way == "packed":
            slices, items = pack(array("d", range(20_000)), 1, longest_first=True)
            first.plan = first.plan._replace(slices=slices, items=items)
        rounds = [first]
        if way == "retried":
            later = first.plan._replace(items=array("Q", [0]), first_task=1, slices=Slices(1, 1))
            rounds.append(Round.make(folder, 1, later))
        run = Run(folder, Manifest.read(folder), None, rounds)  # type: ignore[arg-type]
        watch, writer = Watch(run), OutcomeWriter(folder, 0)
        for item in first.plan.items_of(0)[way == "retried" : 5000]:
            write_value(writer, item, item)
        poll(watch)
        with counted_events() as events:
            poll(watch)

        assert run.tasks.has_open(0)
        assert len(events) < 1000

    def test_pending_retries_have_one_cause(self, tmp_path: Path) -> None:
        """All pending retries of a dead task share one object with their cause."""
        folder = OneRun(tmp_path / "run", len, rows(range(200)), tasks=2, options={"retries": 1}).folder
        run = Run(folder, Manifest.read(folder), None, list(read_rounds(folder)))  # type: ignore[arg-type]
        watch = Watch(run)
        OutcomeWriter(folder, 0).close()
        Path(folder.ended / EndMark(0, 0, 128 + 9).filename).touch(0o600)
        poll(watch)

        causes = run.state.pending
        assert list(range(100)) == list(causes)  # the other task continues
        assert 1 == len({id(cause) for cause in causes.values()})

    def test_foreign_files(self, watched: Watched) -> None:
        """Files with foreign names, and files of tasks that the run does not have, are ignored."""
        for name in ("9.0", "x.0", "0", "0.0.new", ".0", "0.x"):
            Path(watched.folder.outcomes / name).touch(0o600)
        for name in ("9.0.0", "0.0", "0.0.137.new", "x.0.1"):
            Path(watched.folder.ended / name).touch(0o600)

        watched.poll_late()

        assert (set(), {}, {}) == (watched.started, watched.statuses, watched.run.tasks.views)

    def test_torn_tail(self, watched: Watched) -> None:
        """An incomplete record is still being written; it is read once it is complete."""
        writer = OutcomeWriter(watched.folder, 0)
        write_value(writer, 0, "a")
        write_value(writer, 1, "b")
        content = Path(writer.path).read_bytes()
        Path(writer.path).write_bytes(content[:-1])
        watched.poll_late()
        assert {0: "VALUE"} == watched.statuses

        Path(writer.path).write_bytes(content)
        watched.poll()
        assert {0: "VALUE", 1: "VALUE"} == watched.statuses

    def test_an_effect_after_one_that_failed(self, watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
        """If files cannot be read, the other effects are executed all the same, because they may come only once."""
        ends = [SchedulerEnd(0, 0, "NODE_FAIL", None, None, "")]
        monkeypatch.setattr(watched.run, "handle", lambda _: [ReadTasks((0,)), RecordEnds(0, tuple(ends))])

        def refuse(_: object) -> NoReturn:
            raise OSError("stale")

        monkeypatch.setattr(watched.watch.collector, "read_tasks", refuse)
        with pytest.raises(OSError, match="stale"):
            watched.watch.handle(Tick())

        assert ends == list(watched.run.rounds[0].ends())

    def test_the_last_reading_is_counted(self, watched: Watched) -> None:
        """The final reading of a task that ended without its outcomes counts towards the rate limit."""
        OutcomeWriter(watched.folder, 0).close()
        watched.poll()
        watched.report(TaskState.NODE_FAIL)
        watched.poll_late()

        assert 1 == watched.watch.collector.visits["ended"]

    def test_damage(self, watched: Watched) -> None:
        """A damaged record fails only its own items, with its file and offset in the error, once the task has ended."""
        writer = OutcomeWriter(watched.folder, 0)
        write_value(writer, 0, "a" * 50)
        length = Path(writer.path).stat().st_size
        write_value(writer, 1, "b")
        content = bytearray(Path(writer.path).read_bytes())
        content[length - 3] ^= 1
        Path(writer.path).write_bytes(content)
        watched.poll()
        assert {} == {item: fate for item, fate in watched.statuses.items() if item == 0}

        watched.end(0, Status.VALUES)
        watched.poll_late()

        assert {0: "ENDED", 1: "VALUE"} == watched.statuses
        error = watched.error(0)
        assert (ResultLost, str(writer.path), 0) == (type(error), error.file, error.offset)

    def test_two_attempts(self, watched: Watched) -> None:
        """If two attempts recorded one item, the record of the lower attempt counts."""
        first, second = OutcomeWriter(watched.folder, 0), OutcomeWriter(watched.folder, 0)
        write_value(second, 0, "second")
        write_value(first, 0, "first")
        write_value(second, 1, "second")
        watched.poll()

        assert ["first", "second"] == [watched.run.outcome(item).unwrap() for item in (0, 1)]

    def test_unsafe(self, watched: Watched) -> None:
        """Files that others may write to are not read: the items of that task fail with the reason."""
        writer = OutcomeWriter(watched.folder, 0)
        write_value(writer, 0, "a")
        Path(writer.path).chmod(0o622)

        watched.poll()

        assert {0: "ENDED", 1: "ENDED"} == watched.statuses
        assert "may be written by others" in str(watched.error(0))

    def test_cancelled(self, watched: Watched) -> None:
        """A cancellation that was read first stands, also if there is an outcome."""
        writer = OutcomeWriter(watched.folder, 0)
        write_value(writer, 0, "a")
        write_value(writer, 1, "b")
        write_cancellations(watched.folder, 0, "another client", [range(1, 3)])
        futures: list[Future[Any]] = [watched.run.future(item, Future) for item in range(3)]

        watched.poll()

        assert {0: "VALUE", 1: "CANCELLED", 2: "CANCELLED"} == watched.statuses
        assert [False, True, True] == [future.cancelled() for future in futures]

    def test_budget(self, tmp_path: Path) -> None:
        """A poll stays within its budget, and repeated polls read every file."""
        watched = Watched(tmp_path / "run")
        poll(watched.watch, growing=0)
        for task in range(3):
            write_value(OutcomeWriter(watched.folder, task), 2 * task, task)

        seen = []
        for _ in range(3):
            poll(watched.watch, growing=1)
            seen.append(len(watched.statuses))

        assert [1, 2, 3] == seen
        assert {0, 2, 4} == set(watched.statuses)

    def test_collecting(self, tmp_path: Path) -> None:
        """The files of ended tasks have a read budget of their own; missing outcomes are decided after the read."""
        watched = Watched(tmp_path / "run")
        for task in range(3):
            write_value(OutcomeWriter(watched.folder, task), 2 * task, task)
            watched.end(task, Status.NODE)

        settled = []
        for _ in range(4):
            poll(watched.watch, growing=0, ended=1)
            settled.append(len(watched.statuses))

        assert [2, 4, 6, 6] == settled
        assert {0: "VALUE", 1: "ENDED", 2: "VALUE", 3: "ENDED", 4: "VALUE", 5: "ENDED"} == watched.statuses


class TestStates:
    """The states that the scheduler reports."""

    @pytest.mark.parametrize(
        ("state", "expected"),
        [
            (TaskState.TIMEOUT, TimeLimitExceeded),
            (TaskState.NODE_FAIL, NodeFailure),
            (TaskState.OUT_OF_MEMORY, OutOfMemory),
            (TaskState.CANCELLED, TaskCancelled),
            (TaskState.COMPLETED, ResultLost),
        ],
    )
    def test_final(self, watched: Watched, state: TaskState, expected: type[ItemError]) -> None:
        """When a task has ended, its items without an outcome fail after the latency; items of other tasks do not."""
        write_value(OutcomeWriter(watched.folder, 0), 0, "a")
        watched.report(state)
        watched.poll()
        assert {0: "VALUE"} == watched.statuses

        watched.poll_late()

        assert {0: "VALUE", 1: "ENDED"} == watched.statuses
        error = watched.error(1)
        assert (expected, 1, 0, "7_0") == (type(error), error.item, error.task, error.job_id)
        assert str(watched.folder.log(0, 0, 0, "err")) == error.log

    def test_an_outcome_that_becomes_visible_late(self, watched: Watched) -> None:
        """An outcome that becomes visible after the end of its task counts."""
        watched.report(TaskState.COMPLETED)
        watched.poll()
        writer = OutcomeWriter(watched.folder, 0)
        write_value(writer, 0, "a")
        write_value(writer, 1, "b")

        watched.poll_late()

        assert {0: "VALUE", 1: "VALUE"} == watched.statuses

    @pytest.mark.parametrize("state", [TaskState.RUNNING, TaskState.PENDING, TaskState.REQUEUED, TaskState.UNKNOWN])
    def test_alive_again(self, watched: Watched, state: TaskState) -> None:
        """A task that the scheduler reports as running again loses no items."""
        watched.report(TaskState.PREEMPTED)
        watched.poll()
        watched.report(state)

        watched.poll_late()

        assert {} == watched.statuses

    @pytest.mark.parametrize(
        ("state", "started"),
        [
            (TaskState.PENDING, set()),
            (TaskState.CONFIGURING, set()),
            (TaskState.RUNNING, {0}),
            (TaskState.SUSPENDED, {0}),
        ],
    )
    def test_started(self, watched: Watched, state: TaskState, started: set[int]) -> None:
        """A task has started once its state is no longer a queued one."""
        watched.report(state)

        assert started == watched.started
        assert state == watched.run.tasks.view(0).state

    def test_a_held_job_causes_one_warning(self, watched: Watched) -> None:
        """A held job causes one warning, issued while no lock is held, so a logging handler may use the run."""
        messages, free = [], []

        def reads_run() -> bool:
            if not watched.run.changed.acquire(timeout=1.0):
                return False
            watched.run.changed.release()
            return True

        class Reading(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                messages.append(record.getMessage())
                with ThreadPoolExecutor(1) as thread:
                    free.append(thread.submit(reads_run).result())

        handler = Reading()
        logging.getLogger("slurmlaunch").addHandler(handler)
        try:
            for _ in range(2):
                watched.report(TaskState.PENDING, reason="JobHeldUser")
                watched.report(TaskState.PENDING, reason="Priority")
        finally:
            logging.getLogger("slurmlaunch").removeHandler(handler)

        assert [True] == free
        assert ["scontrol release 7" in message for message in messages] == [True]

    def test_missing_from_the_answer(self, watched: Watched) -> None:
        """A task that is missing from the scheduler's answer loses no items."""
        watched.watch.handle(SchedulerReported(Snapshot(0.0, {})))
        watched.poll_late()

        assert ({}, {}) == (watched.statuses, {})


class TestRecordedEnds:
    """Recorded ends, for clients that attach after the scheduler has forgotten the job."""

    @pytest.fixture(autouse=True)
    def recorded(self, watched: Watched) -> None:
        """Report the ends of two tasks to a client; one of the tasks had started before."""
        OutcomeWriter(watched.folder, 0)
        watched.report(TaskState.NODE_FAIL, 0, node="n3", exit_code="1:0")
        watched.poll_late()
        watched.report(TaskState.CANCELLED, 2)
        watched.poll_late()

    def attach_later(self, watched: Watched, *, answered: bool = False) -> Watched:
        """Return a client that attaches later, and has waited for the scheduler for a long time."""
        later = Watched.of(watched.folder)
        if answered:
            later.watch.handle(SchedulerReported(Snapshot(0.0, {})))
        later.wait()
        later.poll_late()
        return later

    @pytest.mark.parametrize("answered", [False, True])
    def test_without_a_scheduler(self, watched: Watched, *, answered: bool) -> None:
        """If the scheduler is silent or has forgotten the job, the recorded ends count."""
        later = self.attach_later(watched, answered=answered)

        assert dict.fromkeys((0, 1, 4, 5), "ENDED") == later.statuses
        assert [NodeFailure, TaskCancelled] == [type(later.error(item)) for item in (0, 4)]
        assert ("n3", "NODE_FAIL", "1:0") == (later.error(0).node, later.error(0).state, later.error(0).exit_code)

    def test_not_at_once(self, watched: Watched) -> None:
        """A recorded end counts only after the scheduler had time to answer."""
        later = Watched.of(watched.folder)
        later.poll_late()
        assert {} == later.statuses

        later.report(TaskState.RUNNING, 0)
        later.wait()
        later.poll()
        assert dict.fromkeys((4, 5), "ENDED") == later.statuses

    def test_started_again(self, watched: Watched) -> None:
        """A recorded end does not count if the task was started again since."""
        OutcomeWriter(watched.folder, 0)

        assert dict.fromkeys((4, 5), "ENDED") == self.attach_later(watched).statuses

    def test_outcomes_first(self, watched: Watched) -> None:
        """Recorded outcomes count, whatever the scheduler reported."""
        write_value(OutcomeWriter(watched.folder, 2), 5, "late")

        assert {0: "ENDED", 1: "ENDED", 5: "VALUE"} == self.attach_later(watched).statuses

    def test_a_folder_that_may_only_be_read(self, watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
        """In a folder that is read-only, the present client uses the ends all the same."""

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError

        monkeypatch.setattr(Round, "record_ends", refuse)
        watched.report(TaskState.TIMEOUT, 1)
        watched.poll_late()

        assert {TimeLimitExceeded} == {type(watched.error(item)) for item in (2, 3)}


class TestEndMarks:
    """The end marks of tasks."""

    @pytest.mark.parametrize(
        ("status", "expected"),
        [(128 + 9, WorkerDied), (Status.SETUP, NodeStartError), (Status.NODE, NodeStartError), (127, NodeStartError)],
    )
    def test_at_once(self, watched: Watched, status: int, expected: type[ItemError]) -> None:
        """The mark of a failed start ends its items at once, without a scheduler and without the latency."""
        watched.end(1, status)
        watched.poll()

        assert {2: "ENDED", 3: "ENDED"} == watched.statuses
        assert {expected} == {type(watched.error(item)) for item in (2, 3)}
        assert [2, 3] == [watched.error(item).item for item in (2, 3)]

    @pytest.mark.parametrize(("status", "expected"), [(Status.VALUES, ResultLost), (Status.FAILURES, NodeStartError)])
    def test_in_the_end(self, watched: Watched, status: int, expected: type[ItemError]) -> None:
        """A task that ended well has recorded everything: missing outcomes are only not visible yet."""
        watched.end(1, status)
        watched.poll()
        assert {} == watched.statuses

        watched.poll_late()
        assert {expected} == {type(watched.error(item)) for item in (2, 3)}

    @pytest.mark.parametrize("status", [Status.STOPPED, Status.REQUEUE])
    def test_from_outside(self, watched: Watched, status: int) -> None:
        """For a task that was ended from outside, the scheduler gives the cause."""
        watched.end(1, status)
        watched.poll_late()
        assert {} == watched.statuses

        watched.report(TaskState.TIMEOUT, 1)
        watched.poll()
        assert {TimeLimitExceeded} == {type(watched.error(item)) for item in (2, 3)}

    @pytest.mark.parametrize("attempts", [1, 2])
    def test_the_mark_of_an_earlier_start(self, watched: Watched, attempts: int) -> None:
        """The end mark of an earlier start does not explain the end of a later one."""
        for _ in range(attempts):
            OutcomeWriter(watched.folder, 1)
        watched.end(1, Status.REQUEUE)
        watched.poll()
        watched.report(TaskState.FAILED, 1, exit_code="0:9")
        watched.poll_late()

        assert {WorkerDied} == {type(watched.error(item)) for item in (2, 3)}

    def test_started_again(self, watched: Watched) -> None:
        """The end of an earlier start does not end the items of a later one."""
        first, second = OutcomeWriter(watched.folder, 1), OutcomeWriter(watched.folder, 1)
        watched.end(1, 128 + 9)
        write_value(first, 2, "first")
        watched.poll_late()
        assert {2: "VALUE"} == watched.statuses

        write_value(second, 3, "second")
        watched.end(1, Status.VALUES, start=1)
        watched.poll()
        assert {2: "VALUE", 3: "VALUE"} == watched.statuses

    def test_outcomes_first(self, watched: Watched) -> None:
        """Outcomes recorded before the end count, however the task ended."""
        writer = OutcomeWriter(watched.folder, 0)
        write_value(writer, 0, "a")
        watched.end(0, 128 + 9)
        watched.poll()

        assert {0: "VALUE", 1: "ENDED"} == watched.statuses


class TestLatency:
    """The latency: how long a file may exist and not be visible."""

    def test_variable(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The environment variable overrides the latency that is found."""
        monkeypatch.setenv("SLURMLAUNCH_LATENCY", "12.5")

        assert 12.5 == latency_of(tmp_path)

    def test_unknown(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file system of unknown type counts as a network file system."""
        monkeypatch.delenv("SLURMLAUNCH_LATENCY", raising=False)
        monkeypatch.setattr("slurmlaunch.runfolder.changes._LOCAL_FILE_SYSTEMS", frozenset())

        assert latency_of(tmp_path) >= 70
