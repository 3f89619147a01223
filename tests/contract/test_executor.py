"""The executor, on every backend: the arguments that its calls accept, their results, and the errors they raise."""

from __future__ import annotations

import concurrent.futures
import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch import Executor, Future, FutureArray, OptionError, SubmissionError, UnknownOption, attach, current_task
from slurmlaunch.client.plan import LongSlices
from tests.conftest import elsewhere, several_cpus
from tests.support.deeds import SlowToLoad
from tests.support.waiting import show_to_nodes, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import ExecutorFactory
    from tests.support.waiting import Gate, Story


def the_run(executor: Executor) -> FutureArray[Any]:
    """Return the only run in an executor's folder."""
    (folder,) = executor.folder.iterdir()
    return attach(folder)


class TestSubmit:
    """One call."""

    def test_arguments(self, executor: Executor) -> None:
        """The function gets its arguments unchanged, also if their names are those of our own parameters."""
        names = {"time": 1, "name": "n", "tasks": 2, "self": 3, "fn": 4, "folder": 5, "cluster": 6, "throttle": 7}
        call: Callable[..., Any] = lambda *args, **kwargs: (args, kwargs)  # noqa: E731
        futures = [executor.submit(call, 1, [2], **names), executor.submit(call)]

        assert [((1, [2]), names), ((), {})] == [future.result() for future in futures]

    def test_run_of_one(self, executor: Executor) -> None:
        """A call is a run of one item and one task."""
        future = executor.submit(lambda: current_task().task)

        assert (0, 0, 1) == (future.result(), future.index, len(future.run))
        assert future is future.run[0]

    def test_threads(self, executor: Executor) -> None:
        """Any number of threads may submit at once; each call runs in a task of its own."""

        def run_folder(number: int) -> tuple[int, str]:
            return number, str(current_task().run_folder)

        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            futures = list(threads.map(lambda number: executor.submit(run_folder, number), range(8)))

        assert [(i, str(future.run.folder)) for i, future in enumerate(futures)] == [each.result() for each in futures]


class TestMapArray:
    """Many calls."""

    def test_items(self, executor: Executor) -> None:
        """Items come from any iterables, and results keep their order; a single item is no special case."""
        arrays: list[FutureArray[Any]] = [
            executor.map_array(lambda x: x + 1, [3, 1, 2]),
            executor.map_array(lambda x: x + 1, (x for x in (3, 1, 2))),
            executor.map_array(lambda a, b, c: (a, b, c), "ab", {1: 2, 3: 4}, range(2)),
            executor.map_array(lambda x: x, [None]),
            executor.starmap_array(divmod, [(7, 2), [9, 4]]),
        ]

        expected = [[4, 2, 3], [4, 2, 3], [("a", 1, 0), ("b", 3, 1)], [None], [(3, 1), (2, 1)]]
        assert expected == [array.results() for array in arrays]

    def test_empty(self, executor: Executor) -> None:
        """An empty array is done at once, and submits no job."""
        array = executor.map_array(lambda x: x, [])

        assert (0, [], [], [], ()) == (
            len(array),
            list(array),
            array.results(),
            list(array.as_completed()),
            array.job_ids,
        )
        assert array.done()
        assert array.wait(0)
        assert [] == array.retry().results()
        assert {0} == set(array.counts().values())

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"tasks": 3}, [0, 0, 0, 1, 1, 2, 2]),
            ({"tasks": 9}, [0, 1, 2, 3, 4, 5, 6]),
            ({"chunksize": 3}, [0, 0, 0, 1, 1, 1, 2]),
            ({"chunksize": 100}, [0] * 7),
        ],
    )
    def test_slices(self, executor: Executor, options: dict[str, Any], expected: list[int]) -> None:
        """Each task has consecutive items: the requested number of tasks, or of items per task, and no empty task."""
        array = executor.map_array(lambda item: (item, current_task().task), range(7), **options)

        assert list(enumerate(expected)) == array.results()

    @several_cpus
    def test_default_slices(self, make_executor: ExecutorFactory) -> None:
        """A static slice has one item per process by default, so that no item waits for another."""
        executor = make_executor(cpus_per_task=2)
        arrays = [
            executor.map_array(lambda _: current_task().task, range(4), schedule="static"),
            executor.options(processes=1).map_array(lambda _: current_task().task, range(2), schedule="static"),
        ]

        assert [[0, 0, 1, 1], [0, 1]] == [array.results() for array in arrays]

    def test_common_keywords(self, executor: Executor) -> None:
        """Keyword arguments in common reach every item, are stored once, and stay through attach and retry."""
        table = bytes(range(256)) * 1000

        def look_up(place: int, *, table: bytes, fail: str) -> int:
            if place and not Path(fail).exists():
                raise KeyError(place)
            return table[place]

        fail = executor.folder / "mended"
        array = executor.map_array(look_up, range(3), kwargs={"table": table, "fail": str(fail)}, tasks=1)
        found = array.results(return_exceptions=True)
        fail.touch()
        show_to_nodes()

        assert [0, KeyError, KeyError] == [found[0], *map(type, found[1:])]
        assert [0, 1, 2] == attach(array.folder).retry().results()
        assert array.folder.name.split("-")[2].startswith("look_up")
        assert sum(table in file.read_bytes() for file in array.folder.rglob("*") if file.is_file()) == 1
        assert [2] == executor.starmap_array(pow, [(2,)], kwargs={"exp": 3, "mod": 6}).results()

    @pytest.mark.parametrize(
        ("iterables", "number"),
        [(([1, 2], [1]), 2), (([1], itertools.count()), 1), (([], "a"), 1), (([1, 2], [1, 2], [1]), 3)],
    )
    def test_unequal_lengths(self, executor: Executor, iterables: tuple[Any, ...], number: int) -> None:
        """Iterables of unequal length raise an error that names the short one, and leave nothing behind."""
        with pytest.raises(ValueError, match=f"number {number} is shorter"):
            executor.map_array(lambda *row: row, *iterables)

        assert [] == list(executor.folder.iterdir())

    def test_failing_iterable(self, executor: Executor) -> None:
        """The call raises the exception of a failing iterable, and leaves nothing behind."""
        with pytest.raises(ZeroDivisionError):
            executor.map_array(lambda x: x, (1 / x for x in (1, 0)))

        assert [] == list(executor.folder.iterdir())

    @pytest.mark.parametrize(
        "options", [{"tasks": 2, "chunksize": 2}, {"tasks": 0}, {"chunksize": 0}, {"tasks": -1}, {"throttle": 0}]
    )
    def test_refused(self, executor: Executor, options: dict[str, Any]) -> None:
        """Contradicting numbers, or numbers below 1, raise ValueError before an item is consumed."""
        items = iter([1, 2, 3])

        with pytest.raises(ValueError, match=r"tasks|chunksize|throttle"):
            executor.map_array(lambda x: x, items, **options)

        assert [1, 2, 3] == list(items)
        assert not executor.folder.exists()

    @pytest.mark.parametrize("call", ["map_array", "script"])
    def test_long_slices(self, executor: Executor, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Slices that grew to limit the number of tasks cause a warning at the line of the call."""
        monkeypatch.setattr("slurmlaunch.client.plan.DEFAULT_TASKS", 2)

        with pytest.warns(LongSlices, match="5 items go into 2 tasks with up to 3") as caught:
            getattr(executor, call)(lambda x: x, range(5), schedule="static")

        assert [__file__] == [warning.filename for warning in caught]


class TestMap:
    """The standard library's map."""

    def test_results(self, executor: Executor) -> None:
        """Results come in order, up to the end of the shortest iterable, from an iterator."""
        maps = [
            executor.map(lambda a, b: a * b, [2, 3, 4], itertools.count(10)),
            executor.map(str, [], itertools.count()),
            executor.map(str, range(5), chunksize=2),
        ]

        assert [[20, 33, 48], [], ["0", "1", "2", "3", "4"]] == [list(each) for each in maps]

    def test_submits_at_the_call(self, executor: Executor, story: Story) -> None:
        """The calls are made before the first result is requested, and each once."""
        results = executor.map(story.tell, [1, 2], chunksize=2)
        the_run(executor).wait()

        assert ["1", "2"] == story.lines
        assert [None, None] == list(results)
        assert ["1", "2"] == story.lines

    def test_failure(self, executor: Executor) -> None:
        """A failure is raised at its position, after the results before it."""
        results = executor.map(lambda x: 1 // x, [1, 0, 1], chunksize=3)

        assert 1 == next(results)
        with pytest.raises(ZeroDivisionError):
            next(results)
        assert [] == list(results)

    @pytest.mark.parametrize("chunksize", [0, -1])
    def test_refused(self, executor: Executor, chunksize: int) -> None:
        """A chunk size below 1 is a ValueError at the call."""
        with pytest.raises(ValueError, match="chunksize"):
            executor.map(str, [1], chunksize=chunksize)

    @elsewhere
    def test_timeout(self, executor: Executor, gate: Gate) -> None:
        """A late result raises the standard library's TimeoutError, and the remaining items are cancelled."""
        results = executor.map(gate.enter, range(2), timeout=0.01, chunksize=1)

        with pytest.raises(concurrent.futures.TimeoutError):
            next(results)

        assert 2 == the_run(executor).counts()["cancelled"]

    @elsewhere
    def test_close(self, executor: Executor, gate: Gate) -> None:
        """Closing the iterator cancels the remaining items and keeps the finished ones."""
        gate.open(0)
        results = executor.map(gate.enter, range(3), chunksize=3)
        assert "0" == next(results)

        results.close()  # type: ignore[attr-defined]

        assert [1, 2] == [the_run(executor).counts()[word] for word in ("done", "cancelled")]


class TestScript:
    """`script` returns the batch script of a call without submitting it."""

    def test_writes_nothing(self, executor: Executor) -> None:
        """The script is returned, and neither submitted nor written anywhere."""
        scripts = [executor.script(lambda x: x, range(4), throttle=2), executor.script(lambda: 1)]

        assert all(scripts)
        assert not executor.folder.exists()

    @pytest.mark.parametrize("backend", [pytest.param("slurm", marks=pytest.mark.slurm)], indirect=True)
    def test_array(self, executor: Executor) -> None:
        """`script` returns the batch script with the array of the same call."""
        script = executor.script(lambda x: x, range(4), throttle=2, name="it")

        assert script.startswith("#!/bin/bash\n")
        assert "#SBATCH --array=0-3%2\n" in script
        assert "--job-name=it-" in script

    def test_refused(self, executor: Executor) -> None:
        """`script` refuses the same arguments as the call."""
        with pytest.raises(ValueError, match="not equally long"):
            executor.script(divmod, [1], [])


class TestOptions:
    """Executors made from executors."""

    def test_changes(self, executor: Executor) -> None:
        """Changed options apply to the new executor alone; the folder and the backend are the same."""
        other = executor.options(partition="small")

        assert ("partition='small'" in repr(executor), "partition='small'" in repr(other)) == (False, True)
        assert (executor.folder, executor.cluster) == (other.folder, other.cluster)
        assert type(executor) is type(other)
        assert repr(executor) == repr(other.options(partition=None))

    def test_unknown(self, executor: Executor) -> None:
        """`options`, too, raises a TypeError for an unknown option, and names the nearest one."""
        with pytest.raises(UnknownOption, match="partition"):
            executor.options(partitoin="small")

    @pytest.mark.parametrize("first", [0, 1])
    def test_shared_shutdown(self, executor: Executor, first: int) -> None:
        """Shutting down an executor also shuts down those made from it, and the one that it was made from."""
        both = [executor, executor.options(threads=1)]

        both[first].shutdown()

        for each in both:
            with pytest.raises(RuntimeError):
                each.submit(int)

    @elsewhere
    def test_shared_wait(self, executor: Executor, gate: Gate) -> None:
        """Shutting down one executor waits for the arrays that the other one submitted."""
        future = executor.options(name="other").submit(gate.enter)
        gate.open()

        executor.shutdown()

        assert future.done()


class TestShutdown:
    """The end of an executor."""

    def test_no_more_calls(self, executor: Executor) -> None:
        """After shutdown every call raises RuntimeError, consumes no item and writes nothing; another is allowed."""
        items = iter([1])
        executor.shutdown()
        executor.shutdown(wait=False, cancel_futures=True)

        calls: list[Callable[[], object]] = [
            lambda: executor.submit(int),
            lambda: executor.map(int, items),
            lambda: executor.map_array(int, items),
            lambda: executor.starmap_array(int, items),  # type: ignore[arg-type]
        ]
        for call in calls:
            with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
                call()
        assert [1] == list(items)
        assert not executor.folder.exists()

    def test_with(self, make_executor: ExecutorFactory) -> None:
        """A with block ends when all futures are done, also those of slow results; its exception propagates."""
        futures: list[Future[SlowToLoad]] = []

        def submit_and_fail() -> None:
            with make_executor() as executor:
                futures.extend([executor.submit(SlowToLoad), *executor.map_array(SlowToLoad, range(2), tasks=1)])
                raise KeyError

        with pytest.raises(KeyError):
            submit_and_fail()

        assert [True] * 3 == [future.done() for future in futures]

    @elsewhere
    def test_no_wait(self, executor: Executor, gate: Gate) -> None:
        """Without waiting, shutdown returns at once and submitted items continue."""
        future = executor.submit(gate.enter, "it")

        executor.shutdown(wait=False)

        assert not future.done()
        gate.open()
        assert "it" == future.result()

    @elsewhere
    def test_cancel_futures(self, executor: Executor, gate: Gate) -> None:
        """Pending items are cancelled; shutdown waits for the running ones."""
        running, waiting = executor.map_array(gate.enter, ["a", "b"], throttle=1)
        wait_until(running.running)

        executor.shutdown(wait=False, cancel_futures=True)

        assert (False, True) == (running.done(), waiting.cancelled())
        gate.open()
        executor.shutdown()
        assert ("a", {"a"}) == (running.result(), gate.arrived)

    @elsewhere
    def test_refused_submission(self, executor: Executor) -> None:
        """A refused submission raises SubmissionError and leaves no folder, and shutdown does not wait for it."""
        bad: dict[str, Any] = {"python": ["no-such-python"]} if executor.cluster == "local" else {"partition": "none"}

        with pytest.raises(SubmissionError) as caught:
            executor.options(**bad).map_array(int, range(3))

        assert caught.value.command
        assert caught.value.stderr
        assert [] == list(executor.folder.iterdir())
        executor.shutdown()


class TestConstruction:
    """The arguments of an executor's constructor; nothing runs."""

    def test_defaults(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """The default folder is in the current working directory, and the default cluster follows from PATH."""
        programs = tmp_path / "bin"
        programs.mkdir()
        for name in ("SLURMLAUNCH_FOLDER", "SLURMLAUNCH_CLUSTER"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("PATH", str(programs))
        monkeypatch.chdir(tmp_path)
        without = Executor()
        (programs / "sbatch").touch(0o755)
        with_sbatch = Executor()
        monkeypatch.chdir("/")

        assert ["local", "slurm"] == [without.cluster, with_sbatch.cluster]
        assert {tmp_path / "slurmlaunch-runs"} == {without.folder, with_sbatch.folder}
        assert not without.folder.exists()

    def test_environment(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Environment variables give the options that the call leaves out."""
        monkeypatch.setenv("SLURMLAUNCH_FOLDER", str(tmp_path / "there"))
        monkeypatch.setenv("SLURMLAUNCH_CLUSTER", "inline")
        executors = [Executor(), Executor(tmp_path / "here", cluster="local")]

        expected = [(tmp_path / "there", "inline"), (tmp_path / "here", "local")]
        assert expected == [(executor.folder, executor.cluster) for executor in executors]

    def test_folder_of_the_user(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """A relative folder is relative to the current working directory."""
        monkeypatch.chdir(tmp_path)
        executor = Executor("runs", cluster="inline")
        monkeypatch.chdir("/")

        assert tmp_path == executor.submit(int).run.folder.parent.parent
        assert executor.folder == executor.submit(int).run.folder.parent

    @pytest.mark.parametrize("given", ["argument", "variable"])
    def test_unknown_cluster(self, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """An unknown cluster is refused, and the error names clusters=, in case it is a Slurm cluster."""
        monkeypatch.setenv("SLURMLAUNCH_CLUSTER", "lumi")

        with pytest.raises(OptionError, match=r"clusters='lumi'"):
            Executor(cluster="lumi" if given == "argument" else None)

    def test_unknown_option(self) -> None:
        """An unknown option raises a TypeError that names the nearest one."""
        with pytest.raises(TypeError, match="cpus_per_task"):
            Executor(cluster="inline", cpu_per_task=2)

    def test_repr(self, tmp_path: Path) -> None:
        """The repr of an executor shows its folder, its cluster and its options."""
        executor = Executor(tmp_path, cluster="inline", partition="small", mem="2G")

        expected = f"Executor({str(tmp_path)!r}, cluster='inline', partition='small', mem='2G')"
        assert expected == repr(executor)

    def test_is_an_executor(self, tmp_path: Path) -> None:
        """An Executor is an instance of concurrent.futures.Executor."""
        assert isinstance(Executor(tmp_path, cluster="inline"), concurrent.futures.Executor)


def test_folders_are_private(executor: Executor) -> None:
    """Run folders and their files are private for any umask, logs included."""
    before = os.umask(0)
    try:
        array = executor.map_array(lambda x: x, [1])
        array.results()
    finally:
        os.umask(before)

    paths = [array.folder, *array.folder.rglob("*")]
    assert {(True, 0o700), (False, 0o600)} == {(path.is_dir(), path.stat().st_mode & 0o777) for path in paths}
