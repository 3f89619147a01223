"""Cancelling pending, running and finished items, on every backend that is not immediate."""

from __future__ import annotations

import concurrent.futures
import threading
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import elsewhere
from tests.support.waiting import is_alive, wait_until

if TYPE_CHECKING:
    from slurmlaunch import Executor, Future, FutureArray
    from tests.support.waiting import Gate


def words(future: Future[Any]) -> tuple[bool, bool, bool]:
    """Return whether a future is cancelled, done and running."""
    return future.cancelled(), future.done(), future.running()


class TestTooLate:
    """Cancelling does not change finished items."""

    def test_done(self, finished: FutureArray[int]) -> None:
        """A finished future cannot be cancelled, nor can an array whose items are all done."""
        before = finished.counts()

        assert [False, False] == [finished[0].cancel(), finished[2].cancel()]
        assert (False, False) == (finished.cancel(), finished[2:3].cancel())
        assert (before, 0) == (finished.counts(), finished[0].result())

    def test_empty(self, executor: Executor) -> None:
        """Cancelling an empty array succeeds and changes nothing."""
        assert executor.map_array(int, []).cancel()


@elsewhere
class TestFuture:
    """One item."""

    def test_pending(self, executor: Executor, gate: Gate) -> None:
        """A pending item is cancelled at once and never runs; the other items continue."""
        array = executor.map_array(gate.enter, "abc", throttle=1)
        gate.await_arrival("a")

        assert array[1].cancel()

        assert (True, True, False) == words(array[1])
        gate.open()
        assert ["a", "c"] == [array[0].result(), array[2].result()]
        assert {"a", "c"} == gate.arrived
        assert ["COMPLETED", "CANCELLED", "COMPLETED"] == [future.state for future in array]

    def test_running(self, executor: Executor, gate: Gate) -> None:
        """Cancelling a running item ends its process; another process runs the rest of its slice."""
        array = executor.map_array(gate.enter, "abc", tasks=1)
        gate.open("a", "c")
        gate.await_arrival("b")
        process = gate.process_of("b")

        assert array[1].cancel()

        assert (True, True, False) == words(array[1])
        assert ["a", "c"] == [array[0].result(), array[2].result()]
        assert (False, False) == (is_alive(process), gate.process_of("c") == process)
        assert {"pending": 0, "running": 0, "done": 2, "failed": 0, "cancelled": 1} == array.counts()

    def test_waiters(self, executor: Executor, gate: Gate) -> None:
        """A cancellation notifies all waiters: results, exceptions, callbacks and the standard library's functions."""
        future = executor.submit(gate.enter)
        called: list[Future[str]] = []
        future.add_done_callback(called.append)
        with concurrent.futures.ThreadPoolExecutor() as threads:
            asked = threading.Barrier(2)

            def ask() -> None:
                asked.wait()
                future.result()

            waiting = threads.submit(ask)
            asked.wait()
            assert future.cancel()
            assert isinstance(waiting.exception(), CancelledError)

        for question in (future.result, future.exception):
            with pytest.raises(CancelledError, match=r"item \d of .* was cancelled"):
                question(timeout=0)
        assert ({future}, set()) == concurrent.futures.wait([future], timeout=0)
        assert [future] == list(concurrent.futures.as_completed([future], timeout=0))
        assert [future] == called

    def test_twice(self, executor: Executor, gate: Gate) -> None:
        """A cancelled item stays cancelled: a second cancel returns True, and a late outcome is ignored."""
        array = executor.map_array(gate.enter, "ab", tasks=1)
        future = array[0]
        gate.await_arrival("a")

        assert [True, True] == [future.cancel(), future.cancel()]

        gate.open()
        assert "b" == array[1].result()
        assert (True, True, False) == words(future)
        assert [future] == [each for each in array.as_completed() if each.cancelled()]

    def test_results(self, executor: Executor, gate: Gate) -> None:
        """Among the results of its array a cancelled item is a CancelledError."""
        array = executor.map_array(gate.enter, "ab", tasks=1)
        array[0].cancel()
        gate.open()

        results = array.results(return_exceptions=True)
        assert (CancelledError, "b") == (type(results[0]), results[1])
        with pytest.raises(CancelledError) as caught:
            array.results()
        assert ["item 0 of enter; 1 of 2 items cancelled"] == getattr(caught.value, "__notes__", None)
        assert repr(array[0]).endswith(" cancelled>")

    def test_repr(self, executor: Executor, gate: Gate) -> None:
        """Printed, a future whose item runs says so."""
        future = executor.submit(gate.enter, "a")
        gate.await_arrival("a")
        wait_until(future.running)

        assert repr(future).endswith(" running>")
        future.cancel()


@elsewhere
class TestArray:
    """Many items."""

    def test_all(self, executor: Executor, gate: Gate) -> None:
        """Cancelling an array cancels all open items, and ends their processes."""
        array = executor.map_array(gate.enter, range(4), chunksize=2, throttle=1)
        gate.await_arrival(0)

        assert array.cancel()

        assert (True, 4) == (array.done(), array.counts()["cancelled"])
        wait_until(lambda: not is_alive(gate.process_of(0)))
        assert {"0"} == gate.arrived
        assert {"CANCELLED"} == {future.state for future in array}

    def test_some_done(self, executor: Executor, gate: Gate) -> None:
        """Finished items keep their outcomes, and cancel returns that not all items were cancelled."""
        array = executor.map_array(gate.enter, "abc", tasks=1)
        gate.open("a")
        array[0].result()

        assert not array.cancel()

        assert ("a", True, True) == (array[0].result(), array[1].cancelled(), array[2].cancelled())

    def test_slice(self, executor: Executor, gate: Gate) -> None:
        """A slice cancels its own items, and no others."""
        array = executor.map_array(gate.enter, "abcd", tasks=2, throttle=1)

        assert array[1:3].cancel()

        assert [False, True, True, False] == [future.cancelled() for future in array]
        gate.open()
        assert ["a", "d"] == array[::3].results()
        assert {"a", "d"} == gate.arrived

    def test_race(self, executor: Executor) -> None:
        """In a race of outcome and cancellation, an item settles once, and its callbacks are called once."""
        calls: list[int] = []
        array = executor.map_array(lambda x: x, range(400), tasks=2)
        for future in array:
            future.add_done_callback(lambda done: calls.append(done.index))
        won = [future.cancel() for future in array[::7]]
        array.wait()

        assert won == [future.cancelled() for future in array[::7]]
        assert not any(future.cancelled() for future in array if future.index % 7)
        counts = array.counts()
        assert (sum(won), 400 - sum(won)) == (counts["cancelled"], counts["done"])
        wait_until(lambda: len(calls) >= 400)
        assert list(range(400)) == sorted(calls)
