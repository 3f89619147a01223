"""The future, on every backend: the standard library's contract and our additions."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import logging
import pickle
import re
import threading
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION
from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch import Future, TaskState
from tests.conftest import elsewhere, several_cpus
from tests.support import scripts
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from slurmlaunch import Executor, FutureArray
    from tests.support.waiting import Gate

SOON = 0.01
"""Seconds after which a time-out is over that is to be over."""


class TestDone:
    """A future whose item has an outcome."""

    def test_value(self, finished: FutureArray[int]) -> None:
        """A value is the result, and there is no exception."""
        future = finished[3]

        assert (9, 9, None, None) == (
            future.result(),
            future.result(timeout=0),
            future.exception(),
            future.exception(0),
        )

    def test_exception(self, finished: FutureArray[int]) -> None:
        """`exception` returns the function's exception, and `result` raises it, each time."""
        future = finished[4]

        for _ in range(2):
            with pytest.raises(ValueError, match="4"):
                future.result()
            assert (ValueError, (4,)) == (type(future.exception()), getattr(future.exception(0), "args", None))

    def test_words(self, finished: FutureArray[int]) -> None:
        """The future is done, and neither running nor cancelled; a late cancel changes nothing."""
        for future in finished[3:5]:
            assert not future.cancel()
            assert (True, False, False) == (future.done(), future.running(), future.cancelled())

    def test_is_a_future(self, finished: FutureArray[int]) -> None:
        """A Future is an instance of concurrent.futures.Future, and can be a key."""
        assert isinstance(finished[0], concurrent.futures.Future)
        assert {finished[0]: 0, finished[1]: 1}[finished[1]] == 1


class TestPlace:
    """Where the item ran."""

    def test_index_and_run(self, finished: FutureArray[int]) -> None:
        """A future has its index and its array."""
        future = finished[3]

        assert (3, 6, finished.folder) == (future.index, len(future.run), future.run.folder)
        assert future is future.run[3]

    def test_job_id(self, finished: FutureArray[int], backend: str) -> None:
        """The job id is the task's in Slurm's notation: the job's, an underscore, and the element's index."""
        job_ids = [future.job_id for future in finished]

        assert [f"{finished.job_ids[0]}_{element}" for element in (0, 0, 1, 1, 2, 2)] == job_ids
        if backend == "slurm":
            assert re.fullmatch(r"\d+_0", str(job_ids[0]))

    def test_state(self, finished: FutureArray[int]) -> None:
        """The state is the task's, as text: COMPLETED if all items have values, else FAILED."""
        assert ["COMPLETED"] * 2 + ["FAILED"] * 4 == [future.state for future in finished]
        assert {TaskState.COMPLETED, TaskState.FAILED} == {future.state for future in finished}

    @elsewhere
    def test_logs(self, finished: FutureArray[int]) -> None:
        """The standard output and error of an item, and those of its task, can be read."""
        assert [f"out {item}\n" for item in range(6)] == [future.stdout() for future in finished]
        assert [f"err {item}\n" for item in range(6)] == [future.stderr() for future in finished]
        assert "out 4\nout 5\n" == finished[5].log("out").read_text(encoding="utf-8")
        assert finished.logs(2).startswith("out 4\nout 5\nerr 4\n")
        errors = finished.logs(2).splitlines()[2:]
        assert ["err 4", "err 5"] == [line for line in errors if line.startswith("err")]
        assert errors == finished[5].log("err").read_text(encoding="utf-8").splitlines()
        assert "slurmlaunch: item 4 failed" in errors

    def test_repr(self, finished: FutureArray[int]) -> None:
        """Printed, it names its item, its run and its job."""
        assert f"<Future item 3 of square {finished[3].job_id} returned int>" == repr(finished[3])
        assert f"<Future item 4 of square {finished[4].job_id} raised ValueError>" == repr(finished[4])


class TestWaiting:
    """A future whose item is not done yet."""

    @elsewhere
    def test_timeout(self, executor: Executor, gate: Gate) -> None:
        """At the timeout `result` and `exception` raise the standard library's TimeoutError, and nothing changes."""
        future = executor.submit(gate.enter, "it")

        for question in (future.result, future.exception):
            for timeout in (0, SOON):
                with pytest.raises(concurrent.futures.TimeoutError, match=rf"item 0 of enter .* within {timeout} s"):
                    question(timeout=timeout)

        assert not future.done()
        gate.open()
        assert "it" == future.result(timeout=90)

    @elsewhere
    def test_running(self, executor: Executor, gate: Gate) -> None:
        """A future is running from the start of its task to its outcome, and pending while its task is queued."""
        first, second = executor.map_array(gate.enter, range(2), throttle=1)
        wait_until(first.running)

        assert (False, False, False) == (first.done(), second.running(), second.done())
        assert ("RUNNING", "PENDING") == (first.state, second.state)
        gate.open()
        assert ["0", "1"] == [first.result(), second.result()]
        assert (False, False) == (first.running(), second.running())

    @elsewhere
    def test_many_waiters(self, executor: Executor, gate: Gate) -> None:
        """Any number of threads may wait for one future."""
        future = executor.submit(gate.enter, "it")
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            waiting = [threads.submit(future.result) for _ in range(8)]
            gate.open()

        assert {"it"} == {each.result() for each in waiting}


class TestCallbacks:
    """Functions that a future calls when it is done."""

    def test_order(self, executor: Executor) -> None:
        """Callbacks are called once each, with the future, in the order in which they were added."""
        calls: list[tuple[int, Future[int]]] = []
        ended = threading.Event()
        future = executor.submit(int)
        for number in range(3):
            future.add_done_callback(lambda done, number=number: calls.append((number, done)))  # type: ignore[misc]
        future.add_done_callback(lambda _: ended.set())

        assert ended.wait(90)
        assert [(0, future), (1, future), (2, future)] == calls

    def test_already_done(self, finished: FutureArray[int]) -> None:
        """A callback added to a finished future is called at once, in the thread that adds it."""
        threads: list[threading.Thread] = []

        finished[0].add_done_callback(lambda _: threads.append(threading.current_thread()))

        assert [threading.current_thread()] == threads

    def test_exception(self, executor: Executor, caplog: pytest.LogCaptureFixture) -> None:
        """An exception in a callback is logged, as in the standard library, and stops no other callback."""
        ended = threading.Event()
        future = executor.submit(int)
        with caplog.at_level(logging.ERROR, "concurrent.futures"):
            future.add_done_callback(lambda _: 1 // 0)
            future.add_done_callback(lambda _: ended.set())
            assert ended.wait(90)
            wait_until(lambda: caplog.records)

        assert 0 == future.result()
        assert [ZeroDivisionError] == [record.exc_info[0] for record in caplog.records if record.exc_info]

    def test_submits_more(self, executor: Executor) -> None:
        """A callback may submit, and call everything that does not wait."""
        more: list[Future[int]] = []
        first = executor.submit(lambda: 20)

        def go_on(done: Future[int]) -> None:
            assert {"done": 1}.items() <= done.run.counts().items()
            assert done.run.wait(0)
            more.append(executor.submit(lambda x: x + 1, done.result()))

        first.add_done_callback(go_on)
        wait_until(lambda: more)

        assert 21 == more[0].result()

    @elsewhere
    def test_dropped(self, executor: Executor, gate: Gate) -> None:
        """A callback is called even if nothing refers to the future, its array or its executor any more."""
        called = threading.Event()
        executor.submit(gate.enter).add_done_callback(lambda _: called.set())
        gc.collect()

        gate.open()

        assert called.wait(90)


class TestTogether:
    """Several futures, waited for by the standard library's functions."""

    def test_all_completed(self, executor: Executor) -> None:
        """Futures of several runs, and of other executors, can be waited for together."""
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            futures: set[concurrent.futures.Future[int]] = {executor.submit(int), *executor.map_array(int, "12")}
            futures.add(threads.submit(int))
            done, not_done = concurrent.futures.wait(futures, timeout=90, return_when=ALL_COMPLETED)

        assert (futures, set()) == (done, not_done)

    @elsewhere
    def test_return_when(self, executor: Executor, gate: Gate) -> None:
        """The wait ends with the first finished future, the first failure, or the timeout."""

        def enter(number: int) -> float:
            return 1 / int(gate.enter(number))

        futures = executor.map_array(enter, range(3), tasks=1)
        future_0, future_1, future_2 = futures
        assert (set(), set(futures)) == concurrent.futures.wait(futures, timeout=SOON)

        gate.open(0)
        assert ({future_0}, {future_1, future_2}) == concurrent.futures.wait(futures, 90, FIRST_EXCEPTION)
        assert ({future_0}, {future_1, future_2}) == concurrent.futures.wait(futures, 90, FIRST_COMPLETED)
        gate.open(1)
        assert ({future_1}, {future_2}) == concurrent.futures.wait([future_1, future_2], 90, FIRST_COMPLETED)
        gate.open(2)
        assert (set(futures), set()) == concurrent.futures.wait(futures, 90, ALL_COMPLETED)

    def test_as_completed(self, finished: FutureArray[int]) -> None:
        """Futures that are done are yielded, each once."""
        assert set(finished) == set(concurrent.futures.as_completed([*finished, finished[0]], timeout=90))

    @several_cpus
    @elsewhere
    def test_as_completed_order(self, executor: Executor, gate: Gate) -> None:
        """Futures are yielded as they complete, and TimeoutError is raised at the timeout."""
        gate.open("b")
        first, second = (executor.submit(gate.enter, name) for name in "ab")
        assert "b" == next(concurrent.futures.as_completed([first, second], timeout=90)).result()

        with pytest.raises(concurrent.futures.TimeoutError):
            list(concurrent.futures.as_completed([first, second], timeout=SOON))


class TestAsyncio:
    """Futures in coroutines."""

    def test_await(self, finished: FutureArray[int]) -> None:
        """A future can be awaited, gathered and wrapped; it gives its result or raises its exception."""

        async def main() -> list[Any]:
            gathered = await asyncio.gather(*finished, return_exceptions=True)
            wrapped = asyncio.wrap_future(finished[1])
            return [await finished[5], *gathered, await wrapped, await asyncio.wait_for(finished[3], 90)]

        results = asyncio.run(main())

        assert [25, 0, 1, "ValueError(2)", 9, "ValueError(4)", 25, 1, 9] == [
            repr(result) if isinstance(result, Exception) else result for result in results
        ]

    @elsewhere
    def test_other_coroutines_go_on(self, executor: Executor, gate: Gate) -> None:
        """While a coroutine awaits a future, others run."""

        async def main() -> str:
            waiting = asyncio.ensure_future(executor.submit(gate.enter, "it"))
            await asyncio.sleep(0)
            gate.open()  # by another coroutine than the one that waits
            return await waiting

        assert "it" == asyncio.run(main())

    @elsewhere
    def test_cancel(self, executor: Executor, gate: Gate) -> None:
        """A cancelled coroutine cancels the future that it awaits."""
        future = executor.submit(gate.enter)

        async def main() -> None:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(future, SOON)

        asyncio.run(main())

        assert future.cancelled()


class TestPickle:
    """Pickled futures."""

    def test_same_process(self, finished: FutureArray[int]) -> None:
        """A pickled future has the same index, run and outcome."""
        futures = pickle.loads(pickle.dumps(finished[3:5], pickle.HIGHEST_PROTOCOL))

        assert [3, 4] == [future.index for future in futures]
        assert 9 == futures[0].result()
        assert (ValueError, (4,)) == (type(futures[1].exception()), futures[1].exception().args)

    @elsewhere
    def test_other_process(self, executor: Executor, gate: Gate, tmp_path: Path) -> None:
        """An open future can be pickled to another process, which gets the same result."""
        future = executor.map_array(gate.enter, "ab", tasks=1)[1]
        (tmp_path / "pickled").write_bytes(pickle.dumps(future))
        script = scripts.start(
            tmp_path,
            """
            import pathlib, pickle, sys

            future = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())
            print(future.index, future.done(), future.job_id, flush=True)
            print(future.result(timeout=90), len(future.run))
            """,
            tmp_path / "pickled",
        )
        assert script.stdout
        first = script.stdout.readline()
        gate.open()

        assert f"1 False {future.job_id}\n" == first
        assert (0, "b 2\n") == scripts.finish(script)[:2]
        assert "b" == future.result()

    @elsewhere
    def test_as_argument(self, executor: Executor) -> None:
        """A future may be an argument of another call, which waits for its result."""
        first = executor.submit(lambda: 20)
        first.result()

        assert 21 == executor.submit(lambda future: future.result(timeout=90) + 1, first).result()
