"""Inside a task: the context that the user's function can query, and the pool that it can open."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from numpy.random import SeedSequence, default_rng

from slurmlaunch import (
    Executor,
    MissingPackage,
    OptionError,
    SlurmlaunchError,
    Task,
    attach,
    caps,
    cpu_count,
    current_task,
    task_pool,
)
from tests.support import scripts
from tests.support.tasks import OneRun, rows
from tests.support.waiting import Story, is_alive, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import ExecutorFactory


def in_task(path: Path, function: Callable[..., Any], items: Any = (0,), **plan: Any) -> dict[int, Any]:
    """Run a function in a task of its own; return the values of its items."""
    run = OneRun(path / "run", function, rows(items), **plan)
    ended = run.run()
    assert (ended.status, run.errors()) == (0, {}), ended.err
    return run.values()


# Which task this is.


def test_there_is_no_task_outside_one() -> None:
    """Outside a task there is no current task, and the error explains this."""
    with pytest.raises(SlurmlaunchError, match="in the function that you submit"):
        current_task()


def test_no_index_is_taken_for_that_of_the_item(executor: Executor) -> None:
    """The current task has no index: the error names the index of the item and that of the task."""
    error = executor.submit(lambda: current_task().index).exception()

    assert isinstance(error, AttributeError)
    assert ".item" in str(error)
    assert ".task" in str(error)


def describe(_: int) -> tuple[Any, ...]:
    """Return all fields of the current task."""
    task = current_task()
    return (
        task.run_folder,
        task.task,
        task.attempt,
        task.item,
        task.process,
        task.processes,
        task.threads,
    )


def test_a_task_knows_itself(tmp_path: Path) -> None:
    """The function can read its run folder, task, attempt, item, and its index in the pool."""
    run = OneRun(tmp_path / "run", describe, rows(range(5)), tasks=2, cpus_per_task=6, processes=2, threads=3)

    for task in (0, 1):
        assert run.run(task).status == 0

    found = run.values()
    assert [found[i][:4] for i in range(5)] == [
        (tmp_path / "run", task, 0, i) for i, task in enumerate([0, 0, 0, 1, 1])
    ]
    assert {found[i][4:] for i in range(5)} <= {(0, 2, 3), (1, 2, 3)}


@pytest.mark.parametrize("backend", ["inline", "local"], indirect=True)
def test_a_run_of_a_client_knows_itself_too(make_executor: ExecutorFactory) -> None:
    """The same holds for an executor's tasks, also in the calling thread, where the context is reset afterwards."""
    array = make_executor().map_array(describe, range(3), tasks=2)

    assert [found[:4] for found in array.results()] == [
        (array.folder, task, 0, item) for item, task in enumerate([0, 0, 1])
    ]
    with pytest.raises(SlurmlaunchError):
        current_task()


@pytest.mark.parametrize("backend", ["inline"], indirect=True)
def test_a_task_inside_a_task_is_the_inner_one(make_executor: ExecutorFactory) -> None:
    """If a function runs another run inline, each has its own current task."""

    def outer(item: int) -> tuple[int, int, int]:
        before = current_task().item
        with Executor(current_task().run_folder / "inner", cluster="inline") as inner:
            (found,) = inner.map_array(lambda _: current_task().item, [0]).results()
        return before, found, current_task().item

    assert make_executor().map_array(outer, range(3)).results() == [(i, 0, i) for i in range(3)]


# CPUs.


def test_outside_a_task_the_mask_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside a task cpu_count is the number of CPUs that the process may run on."""
    monkeypatch.delenv(caps.SHARE, raising=False)

    assert cpu_count() == caps.usable_cpus()


def test_in_a_task_the_share_counts(tmp_path: Path) -> None:
    """A task and its child processes see the CPUs of the process's share of the grant, whatever the machine has."""

    def count(_: int) -> tuple[int, int]:
        program = "import slurmlaunch; print(slurmlaunch.cpu_count())"
        return cpu_count(), int(subprocess.check_output([sys.executable, "-c", program]))

    values = in_task(tmp_path, count, range(4), cpus_per_task=600, processes=2, threads=300)

    assert set(values.values()) == {(300, 300)}


# The pool.


def test_a_pool_accepts_everything_that_cloudpickle_accepts(tmp_path: Path) -> None:
    """Lambdas, closures and local classes go in and out, through submit and map."""

    def use(item: int) -> list[Any]:
        class Local:
            def __init__(self, value: int) -> None:
                self.value = value

        with task_pool(2) as pool:
            squares = list(pool.map(lambda x: x * x + item, range(50), chunksize=7))
            local = pool.submit(Local, item).result()
            add: Any = pool.submit(lambda: lambda x: x + item).result()
        return [squares, type(local).__name__, local.value, add(1)]

    assert in_task(tmp_path, use, [5]) == {0: [[x * x + 5 for x in range(50)], "Local", 5, 6]}


def processes_of(pool: Any) -> int:
    """Return the number of a pool's processes, from calls that wait for each other."""
    barrier = Path(tempfile.mkdtemp(dir=current_task().run_folder))
    size = pool._max_workers  # noqa: SLF001 - what is said of itself, to be checked against what runs

    def meet(number: int) -> int:
        (barrier / str(number)).touch()
        wait_until(lambda: len(list(barrier.iterdir())) >= size)
        return os.getpid()

    return len(set(pool.map(meet, range(size))))


def test_a_pool_fills_its_process(tmp_path: Path) -> None:
    """A pool has one process for each CPU of its task's process, fewer with several threads each, or as requested."""

    def sizes(_: int) -> list[int]:
        found = []
        for options in ({}, {"threads": 2}, {"threads": 3}, {"threads": 9}, {"max_workers": 5}):
            with task_pool(**options) as pool:
                found.append(processes_of(pool))
        return found

    assert in_task(tmp_path, sizes, cpus_per_task=4, threads=4) == {0: [4, 2, 1, 1, 5]}


def test_a_pools_processes_are_capped(tmp_path: Path) -> None:
    """In a pool, cpu_count and the thread variables are those of one process; variables set by the user are kept."""

    def ask(_: int) -> list[Any]:
        with task_pool(threads=2) as pool:
            inner = pool.submit(lambda: (cpu_count(), os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]))
            return [cpu_count(), os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"], *inner.result()]

    run = OneRun(tmp_path / "run", ask, rows([0]), cpus_per_task=4, threads=4)
    ended = run.run(env={"MKL_NUM_THREADS": "3"})

    assert (run.values(), ended.err) == ({0: [4, "4", "3", 2, "2", "3"]}, "")


class TwoArguments(Exception):
    """Does not unpickle with the standard library."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def raise_two_arguments() -> None:
    """Raise it."""
    raise TwoArguments(7, "text")


def test_a_pool_survives_awkward_outcomes(tmp_path: Path) -> None:
    """An argument, value or exception that does not pickle is an error of its call alone."""

    def use(_: int) -> list[Any]:
        found: list[Any] = []
        with task_pool(1) as pool:
            calls: list[Callable[[], Any]] = [raise_two_arguments, threading.Lock, lambda: 1 // 0]
            for call in calls:
                error = pool.submit(call).exception(60)
                assert error is not None
                found.append(f"{type(error).__name__} {getattr(error, 'code', '')}")
                if call is raise_two_arguments:
                    found.append("in raise_two_arguments" in str(error.__cause__))
            try:
                pool.submit(print, threading.Lock())
            except TypeError as error:
                found.append(type(error).__name__)
            found.append(str(pool.submit(abs, -5).result(60)))
        return found

    assert in_task(tmp_path, use)[0] == [
        "TwoArguments 7",
        True,
        "UnpicklableResult ",
        "ZeroDivisionError ",
        "TypeError",
        "5",
    ]


def test_a_pool_whose_process_dies_says_so(tmp_path: Path) -> None:
    """A dead process of a pool breaks the pool, as in the standard library, but not the task's process."""

    def use(_: int) -> str:
        with task_pool(2) as pool:
            return type(pool.submit(os._exit, 3).exception(60)).__name__

    assert in_task(tmp_path, use, range(2)) == dict.fromkeys(range(2), BrokenProcessPool.__name__)


def test_a_pool_ends_with_its_process(tmp_path: Path) -> None:
    """If the process that opened a pool is killed, the pool's processes end, busy ones too."""
    story = Story(tmp_path / "story")

    def hang() -> None:
        story.tell(os.getpid())
        time.sleep(600)

    def use(_: int) -> None:
        pool = task_pool(2)
        for _ in range(2):
            pool.submit(hang)
        wait_until(lambda: len(story.lines) == 2)
        os.kill(os.getpid(), signal.SIGKILL)

    run = OneRun(tmp_path / "run", use, rows([0]))

    assert run.run().status == 1

    assert "SIGKILL" in str(run.errors()[0])
    wait_until(lambda: not any(is_alive(int(line)) for line in story.lines))


def test_a_pool_works_outside_a_task(tmp_path: Path) -> None:
    """A pool can be opened anywhere: a script that runs in a task also runs by itself."""
    program = """
from slurmlaunch import task_pool, cpu_count
with task_pool() as pool:
    print(list(pool.map(lambda x: x + 1, range(3))), pool.submit(cpu_count).result())
"""
    env = {name: value for name, value in os.environ.items() if name != caps.SHARE}

    assert subprocess.check_output([sys.executable, "-c", program], env=env, text=True) == "[1, 2, 3] 1\n"


# Random streams.


def draw(_: object) -> list[int]:
    """Draw from the stream of this item."""
    return [int(number) for number in current_task().rng().integers(1 << 62, size=3)]


def draws(path: Path, items: int, tasks: int, **changes: Any) -> dict[int, list[int]]:
    """Draw in each item of a run, sliced into so many tasks."""
    run = OneRun(path, draw, rows(range(items)), tasks=tasks, **changes)
    assert [run.run(task).status for task in range(tasks)] == [0] * tasks
    return run.values()


def test_a_stream_is_the_same_whatever_the_slicing(tmp_path: Path) -> None:
    """An item's stream depends only on the run's seed and the item's index."""
    expected = {
        item: default_rng(SeedSequence(7, spawn_key=(item,))).integers(1 << 62, size=3).tolist() for item in range(4)
    }

    found = draws(tmp_path / "one", 4, 1, seed=7, cpus_per_task=2, processes=2)

    assert expected == found
    assert expected == draws(tmp_path / "four", 4, 4, seed=7)
    assert not {*map(tuple, expected.values())} & {*map(tuple, draws(tmp_path / "other", 4, 1, seed=8).values())}


def test_plain_pools_find_definitions_of_the_script(tmp_path: Path) -> None:
    """A pool of the standard library, which pickles by name, accepts a function of the client's script."""
    script = """
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context
        from slurmlaunch import Executor

        def square(number):
            return number * number

        def main():
            with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
                return list(pool.map(square, range(5)))

        print(Executor("runs", cluster="local").submit(main).result())
        """
    assert f"{[0, 1, 4, 9, 16]}\n" == scripts.run(tmp_path, script)


@pytest.mark.slow
def test_streams_are_the_same_on_every_backend(make_executor: ExecutorFactory) -> None:
    """Two runs with one seed have the same streams, wherever they run; without one it is 0."""
    expected = [default_rng(SeedSequence(11, spawn_key=(i,))).integers(1 << 62, size=3).tolist() for i in range(3)]

    assert expected == make_executor(seed=11).map_array(draw, range(3), tasks=2).results()
    ours, theirs, named = (
        make_executor(**options).map_array(draw, range(3), tasks=tasks).results()
        for options, tasks in (({}, 1), ({}, 3), ({"seed": 0}, 2))
    )
    assert ours == theirs == named
    assert len({*map(tuple, [*ours, *expected])}) == 6


def test_a_retry_and_an_attach_keep_the_streams(tmp_path: Path) -> None:
    """A retried item draws the same random numbers, whichever items run with it; another seed is refused."""
    marker = tmp_path / "may succeed"

    def draw_or_fail(item: int) -> list[int]:
        if item == 2 and not marker.exists():
            raise RuntimeError
        return draw(item)

    with Executor(tmp_path / "runs", cluster="inline") as executor:
        first = executor.map_array(draw_or_fail, range(3))
    seed = json.loads((first.folder / "manifest.json").read_text())["seed"]
    marker.touch()
    again = attach(first.folder).retry()

    expected = [default_rng(SeedSequence(seed, spawn_key=(i,))).integers(1 << 62, size=3).tolist() for i in range(3)]
    assert expected == again.results()
    with pytest.raises(OptionError, match="keeps its seed"):
        first.retry(seed=1)


def test_a_stream_starts_anew_at_each_call_and_a_key_names_another(tmp_path: Path) -> None:
    """Each call returns a new generator at its start; a key gives another stream of the item, in its pools too."""

    def ask(_: int) -> list[Any]:
        task = current_task()
        streams = [task.rng(), task.rng(), task.rng(0), task.rng(1), task.rng(0, 1)]
        with task_pool(1) as pool:
            pooled = [pool.submit(lambda key: current_task().rng(*key).random(), key).result() for key in [(), (1,)]]
        return [stream.random() for stream in streams] + pooled

    plain, same, first, second, deeper, pooled, pooled_second = in_task(tmp_path, ask)[0]

    assert plain == same == pooled
    assert second == pooled_second
    assert len({plain, first, second, deeper}) == 4


def test_a_stream_belongs_to_an_item(tmp_path: Path) -> None:
    """Outside an item there is no random stream, and the error says where there is one."""
    with pytest.raises(SlurmlaunchError, match="before an item began"):
        Task(tmp_path, 0, 0).rng()


def test_without_numpy_a_stream_names_the_package_to_install(tmp_path: Path) -> None:
    """On a node without NumPy, asking for a stream names the package and the Python that lacks it."""

    def ask(_: int) -> str:
        sys.modules["numpy.random"] = None  # type: ignore[assignment]  # as an import of what is not there sees it
        try:
            current_task().rng()
        except MissingPackage as error:
            return f"{error.package}: {error}"
        return ""

    found = in_task(tmp_path, ask)[0]

    assert found == (f"numpy: current_task().rng() needs numpy: install it with {sys.executable} -m pip install numpy")
