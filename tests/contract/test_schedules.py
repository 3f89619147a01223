"""Dynamic schedules and packed slices: each item gets one outcome, whichever task claims it and however tasks end."""

from __future__ import annotations

import collections
import errno
import os
import pickle
import signal
import time
import warnings
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch import Executor, NodeStartError, TaskState, TimeLimitExceeded, WorkerDied, attach
from slurmlaunch.client.plan import LongSlices
from slurmlaunch.errors import OptionError
from slurmlaunch.runfolder.claims import Claimer, ClaimReader
from slurmlaunch.runfolder.layout import STARTED_VARIABLE, RunFolder, Status
from slurmlaunch.runfolder.plan import AUTO, SCHEDULES, Blocks, Measured
from tests.conftest import elsewhere
from tests.support.tasks import OneRun, finish, rows
from tests.support.waiting import PATIENCE, Gate, Story, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import ExecutorFactory

each_schedule = pytest.mark.parametrize("schedule", SCHEDULES)


def square(number: int) -> int:
    """Return the square."""
    return number * number


def claimed(run: OneRun) -> dict[int, int]:
    """Return the owner of each claimed block."""
    return {claim.block: claim.task for claim in ClaimReader(run.folder.claims(0)).new()}


class TestNode:
    """One node, without a client."""

    @pytest.fixture
    def gate(self, tmp_path: Path) -> Iterator[Gate]:
        """Return a gate for items to wait at; it opens when the test is over."""
        gate = Gate(tmp_path / "gate")
        yield gate
        gate.open()

    def shared(
        self, path: Path, function: Any, items: int, *, chunksize: int | None = None, tasks: int = 2, **changes: Any
    ) -> OneRun:
        """Write a run whose tasks share its items."""
        blocks = Blocks(items, tasks, "dynamic", chunksize)
        return OneRun(path, function, rows(range(items)), tasks=tasks, blocks=blocks, **changes)

    def test_alone(self, tmp_path: Path) -> None:
        """A task that is alone runs all items; a late one finds nothing to claim, and succeeds."""
        run = self.shared(tmp_path / "run", square, 50, processes=2)

        assert run.run(0).status == Status.VALUES
        assert run.recorded() == list(range(50))
        assert run.run(1) == (Status.VALUES, "", "")
        assert set(claimed(run).values()) == {0}
        assert run.values() == {item: item * item for item in range(50)}

    def test_side_by_side(self, tmp_path: Path, gate: Gate) -> None:
        """Each task claims blocks that the other has not claimed, and none waits for the slow one."""
        run = self.shared(tmp_path / "run", WaitsFor(gate, 0), 40, chunksize=1)
        slow = run.start(0)
        gate.await_arrival(0)
        quick = run.run(1)
        gate.open()

        assert (quick.status, finish(slow).status) == (Status.VALUES, Status.VALUES)
        assert run.recorded() == list(range(40))
        assert claimed(run) == {block: int(block > 0) for block in range(40)}

    def test_next_attempt(self, tmp_path: Path, gate: Gate) -> None:
        """A killed task's next attempt runs its claimed blocks, less recorded items; any task claims the rest."""
        story = Story(tmp_path / "story")
        run = self.shared(tmp_path / "run", WaitsFor(gate, 5, story), 20, chunksize=4)
        first = run.start(0)
        gate.await_arrival(5)
        wait_until(lambda: run.recorded() == [0, 1, 2, 3, 4])
        first.kill()
        finish(first)
        other = run.run(1)
        assert (other.status, run.recorded()) == (Status.VALUES, [0, 1, 2, 3, 4, *range(8, 20)])
        gate.open()
        again = run.run(0)

        assert (again.status, run.recorded()) == (Status.VALUES, list(range(20)))
        assert collections.Counter(story.lines) == collections.Counter({str(i): 1 for i in range(20)} | {"5": 2})
        assert claimed(run) == {0: 0, 1: 0, 2: 1, 3: 1, 4: 1}

    def test_ended_from_outside(self, tmp_path: Path, gate: Gate) -> None:
        """After SIGTERM a task claims nothing more."""
        run = self.shared(tmp_path / "run", WaitsFor(gate, 1), 20, chunksize=2)
        node = run.start(0)
        gate.await_arrival(1)
        node.send_signal(signal.SIGTERM)

        assert finish(node).status == Status.STOPPED
        assert claimed(run) == {0: 0}

    @pytest.mark.parametrize(("others", "status"), [(0, Status.REQUEUE), (9, Status.VALUES)])
    def test_time_limit(self, tmp_path: Path, gate: Gate, others: int, status: Status) -> None:
        """At its time limit a task requests a requeue only if blocks are left for it."""

        def warned(number: int) -> None:
            if number == 1:
                gate.enter(number)
                os.kill(os.getppid(), signal.SIGUSR1)

        run = self.shared(tmp_path / "run", warned, 20, chunksize=2, warning=1, requeues=1)
        node = run.start(0)
        gate.await_arrival(1)
        rival = Claimer(run.folder.claims(0), 1, 0, 20)
        for _ in range(others):
            rival.claim(lambda _: 2)
        gate.open(1)

        assert finish(node).status == status
        assert run.recorded() == [0, 1]

    def test_a_function_that_cannot_be_loaded(self, tmp_path: Path) -> None:
        """The task claims one block to record the error, and leaves the others to other tasks."""
        run = self.shared(tmp_path / "run", square, 20, chunksize=4, python="3.9")

        assert run.run(0).status == Status.FAILURES
        assert {item: type(error) for item, error in run.errors().items()} == dict.fromkeys(range(4), NodeStartError)
        assert claimed(run) == {0: 0}

    def test_a_list_of_items(self, tmp_path: Path) -> None:
        """In a later round, blocks consist of the missing items."""
        from array import array

        missing = array("Q", range(0, 60, 3))
        blocks = Blocks(20, 2, "guided")
        run = OneRun(tmp_path / "run", square, rows(range(60)), tasks=2, blocks=blocks, items=missing)
        run.run(1)

        assert run.recorded() == list(missing)

    def test_cancelled_before_its_claim(self, tmp_path: Path, gate: Gate) -> None:
        """No task runs an item that was cancelled while unclaimed."""
        from slurmlaunch.runfolder.rounds import write_cancellations

        run = self.shared(tmp_path / "run", WaitsFor(gate, 0), 20, chunksize=2)
        node = run.start(0)
        gate.await_arrival(0)
        write_cancellations(run.folder, 0, "test", [range(3, 5), range(10, 15)])
        gate.open()

        assert finish(node).status == Status.VALUES
        assert run.recorded() == [0, 1, 2, *range(5, 10), *range(15, 20)]


class TestTimeLimit:
    """A node whose task shares items, and whose time limit is that of each item."""

    @pytest.mark.parametrize(("processes", "tries"), [(1, 2), (2, 1)])
    def test_each_item_has_the_limit(self, tmp_path: Path, processes: int, tries: int) -> None:
        """An item that began late runs again; one that had the limit for itself fails alone; the others have values."""
        story = Story(tmp_path / "story")

        def work(seconds: float) -> float:
            story.tell(seconds)
            time.sleep(seconds)
            return seconds

        seconds = [0.9, 9.0, 0.1, 0.2]
        run = OneRun(
            tmp_path / "run", work, rows(seconds), blocks=Measured(4, 1), requeues=1, time_limit=3.0, warning=1,
            processes=processes, cpus_per_task=processes,
        )  # fmt: skip
        started = [run.run()]
        while started[-1].status == Status.REQUEUE:
            started.append(run.run())

        assert started[-1].status == Status.FAILURES
        assert run.values() == {item: seconds[item] for item in (0, 2, 3)}
        errors = run.errors()
        assert [(item, type(error), error.limit) for item, error in errors.items()] == [(1, TimeLimitExceeded, 3.0)]  # type: ignore[attr-defined]
        assert collections.Counter(story.lines) == {"0.9": 1, "9.0": tries, "0.1": 1, "0.2": 1}

    def test_a_further_item_needs_time(self, tmp_path: Path) -> None:
        """A task begins an item only if one and a half times the longest would fit, and asks for a requeue."""
        run = OneRun(
            tmp_path / "run", time.sleep, rows([1.2] * 3), blocks=Measured(3, 1), requeues=1, time_limit=3.0, warning=1
        )

        assert run.run().status == Status.REQUEUE
        assert run.recorded() == [0]
        assert claimed(run) == {0: 0}

    def test_a_start_without_time(self, tmp_path: Path) -> None:
        """A start that can begin no item is not followed by another one."""
        run = OneRun(
            tmp_path / "run", abs, rows(range(3)), blocks=Measured(3, 1), requeues=1, time_limit=3.0, warning=1
        )

        assert run.run(env={STARTED_VARIABLE: str(int(time.time()) - 3)}).status == Status.NOT_REQUEUED
        assert run.recorded() == []


class WaitsFor:
    """A function that waits at a gate for one of its items, and may log each."""

    def __init__(self, gate: Gate, item: int, story: Story | None = None) -> None:
        self.gate, self.item, self.story = gate, item, story

    __module__ = __name__
    __qualname__ = "WaitsFor"

    def __call__(self, number: int) -> int:
        """Run an item."""
        if self.story:
            self.story.tell(number)
        if number == self.item:
            self.gate.enter(number)
        return number * number


class TestCalls:
    """Results of dynamic schedules, on every backend."""

    @each_schedule
    @pytest.mark.parametrize(
        "chunksize", [None, *(pytest.param(size, marks=pytest.mark.anywhere) for size in (1, 7, 1000))]
    )
    def test_results(self, make_executor: ExecutorFactory, schedule: str, chunksize: int | None) -> None:
        """All results arrive in order; each item has its task; the number of files depends on tasks and blocks only."""
        executor = make_executor()
        futures = executor.map_array(square, range(100), tasks=2, schedule=schedule, chunksize=chunksize)

        assert futures.results(PATIENCE) == [number * number for number in range(100)]
        assert futures.counts() == {"pending": 0, "running": 0, "done": 100, "failed": 0, "cancelled": 0}
        assert attach(futures.folder).results() == futures.results()
        assert all(future.job_id and future.state is TaskState.COMPLETED for future in attach(futures.folder))
        assert [len(future.attempts) for future in futures[::30]] == [1, 1, 1, 1]

    @pytest.mark.parametrize("backend", ["local"], indirect=True)
    def test_nothing_is_started_for_nothing(self, make_executor: ExecutorFactory) -> None:
        """When all items are done, pending tasks are cancelled."""
        array = make_executor().map_array(square, range(300), schedule="dynamic", tasks=150)
        assert [number * number for number in range(300)] == array.results(timeout=PATIENCE)
        backend = array._run.backend  # noqa: SLF001

        def is_over(element: int) -> bool:
            snapshot = backend.query(array.job_ids)
            record = snapshot.get(array.job_ids[0], element) if snapshot else None
            return record is not None and record.state.is_final

        wait_until(lambda: all(map(is_over, range(150))))
        assert len(list((array.folder / "outcomes").iterdir())) < 150

    @pytest.mark.parametrize("backend", ["local"], indirect=True)
    def test_the_plain_call(self, make_executor: ExecutorFactory, gate: Gate) -> None:
        """Without numbers, tasks share the items: an item has no job before one takes it, and few tasks start."""
        array = make_executor().map_array(gate.enter, range(300), throttle=1)
        gate.await_arrival(0)
        wait_until(lambda: array[0].job_id)

        assert (array[0].job_id, array[299].job_id) == (f"{array.job_ids[0]}_0", None)
        assert [array[0].state, array[299].state] == [TaskState.RUNNING, TaskState.PENDING]
        gate.open()
        assert array.results(PATIENCE) == list(map(str, range(300)))
        assert len(list((array.folder / "outcomes").iterdir())) <= 2
        claims = [path.name for path in (array.folder / "rounds" / "0" / "claims").iterdir()]
        assert sum(name.isdigit() for name in claims) < 250

    @pytest.mark.parametrize("backend", ["local", "slurm"], indirect=True)
    def test_the_script_of_a_plain_call(self, make_executor: ExecutorFactory, monkeypatch: pytest.MonkeyPatch) -> None:
        """A comment at the head of the script says how many tasks share the items, why, and what each takes first."""
        script = make_executor(processes=2, cpus_per_task=2).script(square, range(9)).splitlines()
        assert script[1] == "# 9 items are shared by 5 tasks (one for 2 items)."
        assert script[2].startswith("# A task takes 2 items, one for each of its processes first")
        monkeypatch.setattr("slurmlaunch.client.plan.DEFAULT_TASKS", 3)
        script = make_executor(processes=1).script(square, range(9)).splitlines()
        assert script[1] == "# 9 items are shared by 3 tasks (not 9: that is the largest number by default)."
        assert not any("shared" in line for line in make_executor().script(square, range(9), tasks=3).splitlines())

    @pytest.mark.parametrize("backend", ["local"], indirect=True)
    def test_every_plain_call(self, make_executor: ExecutorFactory, tmp_path: Path) -> None:
        """Tasks of several processes, a retry, `map` and joblib's calls share their items."""
        joblib = pytest.importorskip("joblib")
        executor = make_executor(processes=2, cpus_per_task=2, retries=1)
        once = executor.map_array(DiesOnce(tmp_path), range(6))
        assert once.results(PATIENCE) == list(range(6))
        rounds = [*once._run.rounds]  # noqa: SLF001
        claims = list(ClaimReader(RunFolder(once.folder).claims(0)).new())
        assert next(each for each in claims if each.block == 0).positions == range(2)

        assert list(executor.map(square, range(3))) == [0, 1, 4]
        calls = [joblib.delayed(square)(number) for number in range(3)]
        assert joblib.Parallel(n_jobs=-1, backend=executor.joblib_backend())(calls) == [0, 1, 4]
        for path in tmp_path.glob("runs/*square*"):
            rounds += attach(path)._run.rounds  # noqa: SLF001
        assert [each.plan.blocks and each.plan.blocks.schedule for each in rounds] == [AUTO] * 4

    @pytest.mark.parametrize("backend", ["local"], indirect=True)
    def test_without_hard_links(self, make_executor: ExecutorFactory, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where tasks cannot share items, a plain call gives each its slice, and says so; nothing else changes."""

        def refuse(_source: str, _target: str, **_: int) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
        executor = make_executor()
        with pytest.warns(LongSlices, match="makes no hard links") as said:
            array = executor.map_array(square, range(3))
        assert array.results(PATIENCE) == [0, 1, 4]
        assert (len(said), said[0].filename, array._run.rounds[0].plan.blocks) == (1, __file__, None)  # noqa: SLF001
        with pytest.warns(LongSlices):
            assert "no hard links" in executor.script(square, range(3)).splitlines()[1]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert executor.map_array(square, range(3), tasks=2).results(PATIENCE) == [0, 1, 4]
            assert executor.submit(square, 3).result(PATIENCE) == 9

    @pytest.mark.parametrize("how", [{"tasks": 2}, {"chunksize": 2}, {"cost": abs}, {"schedule": "static"}])
    def test_slices_on_demand(self, make_executor: ExecutorFactory, how: dict[str, Any]) -> None:
        """A number of tasks or items, costs, or the schedule give each task its slice from the start."""
        assert make_executor().map_array(square, range(4), **how)._run.rounds[0].plan.blocks is None  # noqa: SLF001

    @pytest.mark.parametrize("backend", ["local"], indirect=True)
    def test_requeued_here(self, make_executor: ExecutorFactory) -> None:
        """On one machine, too, a task near its time limit starts again for the items that are left."""
        array = make_executor(time="00:00:03").map_array(time.sleep, [1.2] * 3, throttle=1)

        assert array.results(PATIENCE) == [None] * 3
        assert len(list((array.folder / "ended").glob("*.75"))) >= 1

    def test_default_tasks(self, make_executor: ExecutorFactory) -> None:
        """By default there are no more tasks than can have work."""
        array = make_executor().map_array(square, range(400), schedule="dynamic")
        assert 1 <= len(array._run.tasks.rounds[0].plan.tasks) <= 20  # noqa: SLF001
        array.wait()

    def test_arguments(self, make_executor: ExecutorFactory) -> None:
        """The call, starmap_array and script accept both options."""
        executor = make_executor()
        futures = executor.starmap_array(pow, [(2, n) for n in range(9)], tasks=2, schedule="guided")
        packed = executor.starmap_array(pow, [(2, n) for n in range(9)], tasks=2, cost=lambda _, n: n)

        assert futures.results(PATIENCE) == packed.results(PATIENCE) == [2**n for n in range(9)]
        assert executor.script(square, range(9), tasks=2, schedule="dynamic")
        assert executor.script(square, range(3), cost=[1, 2, 3])

    @pytest.mark.parametrize(
        "cost",
        [
            lambda number: number,
            pytest.param(list(range(30)), marks=pytest.mark.anywhere),
            pytest.param(dict.fromkeys(range(30)).keys(), marks=pytest.mark.anywhere),
        ],
    )
    def test_packed(self, make_executor: ExecutorFactory, cost: Any) -> None:
        """Slices have about the same cost, results are in order, and a retry finds its items."""
        executor = make_executor()
        futures = executor.map_array(square, range(30), tasks=3, cost=cost)

        assert futures.results(PATIENCE) == [number * number for number in range(30)]
        loads = collections.Counter[str | None]()
        for number, future in enumerate(futures):
            loads[future.job_id] += number
        assert sorted(loads.values()) == [145, 145, 145]
        assert attach(futures.folder)[7].job_id == futures[7].job_id
        assert futures.retry().results() == futures.results()

    @pytest.mark.parametrize(
        "how", [{}, {"cost": []}, {"cost": abs}, {"cost": [], "chunksize": 3}, {"schedule": "dynamic"}]
    )
    def test_no_items(self, make_executor: ExecutorFactory, how: dict[str, Any]) -> None:
        """An empty array is done at once, with every schedule."""
        assert [] == make_executor().map_array(square, [], **how).results(PATIENCE)

    def test_failures(self, make_executor: ExecutorFactory) -> None:
        """A failing item fails alone; a retry keeps the schedule and runs the failed items."""
        executor = make_executor()
        futures = executor.map_array(reciprocal, [2, 0, 4, 0, 8], tasks=2, schedule="dynamic", chunksize=2)
        found = futures.results(PATIENCE, return_exceptions=True)
        again = futures.retry()

        assert [type(each) for each in found] == [float, ZeroDivisionError, float, ZeroDivisionError, float]
        assert [type(each) for each in again.results(PATIENCE, return_exceptions=True)] == [type(e) for e in found]
        assert again._run.tasks.rounds[1].plan.blocks == Blocks(2, 1, "dynamic", 2)  # noqa: SLF001
        assert [len(future.attempts) for future in again] == [1, 2, 1, 2, 1]

    @pytest.mark.parametrize("backend", ["inline"], indirect=True)
    def test_a_retry_of_a_part(self, make_executor: ExecutorFactory) -> None:
        """After a retry of one item, a retry of the others has as many tasks as the call had."""
        futures = make_executor().map_array(reciprocal, [0, 0, 0, 0], tasks=3)
        futures.wait(PATIENCE)
        futures[:1].retry().wait(PATIENCE)
        again = futures.retry()

        assert [each.plan.slices.tasks for each in again._run.rounds] == [3, 1, 3]  # noqa: SLF001
        again.wait(PATIENCE)

    @pytest.mark.parametrize(
        ("given", "option"),
        [
            ({"schedule": "fair"}, "schedule"),
            ({"schedule": "dynamic", "tasks": 0}, "tasks"),
            ({"schedule": "guided", "chunksize": 0}, "chunksize"),
            ({"schedule": "dynamic", "cost": [1, 2]}, "cost"),
            ({"cost": [1]}, "cost"),
            ({"cost": [1, -1]}, "cost"),
            ({"cost": 3}, "cost"),
        ],
    )
    def test_refused(self, tmp_path: Path, given: dict[str, Any], option: str) -> None:
        """Impossible options are refused by name, and leave nothing behind."""
        executor = Executor(tmp_path / "runs", cluster="inline")
        with pytest.raises(OptionError) as caught:
            executor.map_array(square, range(2), **given)

        assert option == caught.value.option
        assert not list((tmp_path / "runs").glob("*"))

    def test_interrupted(self, tmp_path: Path) -> None:
        """Ctrl-C while the items are read leaves no files behind."""

        def items() -> Iterator[int]:
            yield 1
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Executor(tmp_path / "runs", cluster="inline").map_array(square, items())
        assert not list((tmp_path / "runs").glob("*"))

    @elsewhere
    def test_while_it_runs(self, make_executor: ExecutorFactory, gate: Gate) -> None:
        """An unclaimed item is pending and has no task; a claimed one has its task and its log."""
        executor = make_executor()
        futures = executor.map_array(gate.enter, range(6), tasks=1, schedule="dynamic", chunksize=1)
        gate.await_arrival(0)
        wait_until(lambda: futures.counts()["running"] == 1)

        assert futures.counts() == {"pending": 5, "running": 1, "done": 0, "failed": 0, "cancelled": 0}
        assert ([f.running() for f in futures], futures[0].state) == ([True] + [False] * 5, TaskState.RUNNING)
        assert (futures[5].state, futures[5].stdout()) == (TaskState.PENDING, "")
        assert pickle.loads(pickle.dumps(futures[5])) is not None
        other = attach(futures.folder)
        assert futures[3].cancel()
        wait_until(other[3].cancelled)
        gate.open()
        assert [type(each) for each in other.results(PATIENCE, return_exceptions=True)] == [
            CancelledError if item == 3 else str for item in range(6)
        ]
        assert "3" not in gate.arrived

    @elsewhere
    def test_cancelled(self, make_executor: ExecutorFactory, gate: Gate) -> None:
        """All items are cancelled: running, claimed and unclaimed ones."""
        futures = make_executor().map_array(gate.enter, range(9), tasks=2, schedule="dynamic", chunksize=2)
        gate.await_arrival(0)

        assert futures.cancel()
        assert futures.counts()["cancelled"] == 9
        assert attach(futures.folder).counts()["cancelled"] == 9

    @elsewhere
    def test_a_supervisor_that_dies(self, make_executor: ExecutorFactory, gate: Gate) -> None:
        """Each item claimed by a dead supervisor fails once, for every client; unclaimed items are not lost."""
        executor = make_executor()
        futures = executor.map_array(gate.enter, range(8), tasks=1, schedule="dynamic", chunksize=2)
        gate.await_arrival(0)
        os.kill(_parent(gate.process_of(0)), signal.SIGKILL)
        found = futures.results(PATIENCE, return_exceptions=True)

        assert {type(each) for each in found} == {WorkerDied}
        taken, free = found[0], found[7]
        assert isinstance(taken, WorkerDied)
        assert isinstance(free, WorkerDied)
        assert (taken.item, taken.task, free.item, free.task) == (0, 0, 7, None)
        assert "no task was left to take the item" in str(free)
        later = attach(futures.folder)
        assert [type(each) for each in later.results(PATIENCE, return_exceptions=True)] == [WorkerDied] * 8
        gate.open()
        assert futures.retry().results(PATIENCE) == [str(item) for item in range(8)]

    @elsewhere
    def test_retries(self, make_executor: ExecutorFactory, gate: Gate) -> None:
        """With retries, the next round runs the dead tasks' claimed items and the unclaimed ones."""
        executor = make_executor(retries=1)
        futures = executor.map_array(gate.enter, range(8), tasks=1, schedule="dynamic", chunksize=2)
        gate.await_arrival(0)
        process = gate.process_of(0)
        gate.open()
        os.kill(_parent(process), signal.SIGKILL)

        assert futures.results(PATIENCE) == [str(item) for item in range(8)]

    @elsewhere
    def test_nothing_can_be_loaded(self, make_executor: ExecutorFactory) -> None:
        """If no task can load the function, all items have the reason, also unclaimed ones."""
        executor = make_executor()
        futures = executor.map_array(Unloadable(), range(40), tasks=2, schedule="dynamic", chunksize=2)
        found = futures.results(PATIENCE, return_exceptions=True)

        assert {type(each) for each in found} == {NodeStartError}
        assert all("cannot be loaded" in str(each) for each in found)


class DiesOnce:
    """A function whose process ends at the first run of two of its items."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    __module__ = "__main__"

    def __call__(self, number: int) -> int:
        """Return the number the second time."""
        begun = self.folder / f"begun-{number}"
        if number in {3, 5} and not begun.exists():
            begun.touch()
            os._exit(1)
        return number


class Unloadable:
    """A function that unpickles only in the process that pickled it."""

    __module__ = "__main__"

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)

    def __call__(self, number: int) -> int:
        """Never be called."""
        return number


def reciprocal(number: int) -> float:
    """Fail for 0."""
    return 1 / number


def _parent(process: int) -> int:
    with open(f"/proc/{process}/stat", encoding="utf-8") as stat:  # noqa: PTH123 - as in tests.support.waiting
        return int(stat.read().rpartition(")")[2].split()[1])
