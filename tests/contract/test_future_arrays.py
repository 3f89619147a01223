"""The array of futures, on every backend: a sequence, its results, and how it is waited for."""

from __future__ import annotations

import collections.abc
import concurrent.futures
import gc
import pickle
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch import FutureArray
from tests.conftest import elsewhere, several_cpus
from tests.support import scripts
from tests.support.deeds import SlowToLoad
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from slurmlaunch import Executor
    from tests.support.waiting import Gate

SOON = 0.01
"""Seconds after which a time-out is over that is to be over."""


def notes(error: BaseException) -> list[str]:
    """Return the notes of an exception."""
    return list(getattr(error, "__notes__", []))


class TestSequence:
    """An array is a sequence of futures."""

    def test_protocol(self, finished: FutureArray[int]) -> None:
        """An array has all methods of a sequence."""
        assert isinstance(finished, collections.abc.Sequence)
        assert [0, 1, 2, 3, 4, 5] == [future.index for future in finished]
        assert [5, 4, 3, 2, 1, 0] == [future.index for future in reversed(finished)]
        assert (6, 2, 1) == (len(finished), finished.index(finished[2]), finished.count(finished[2]))
        assert finished[2] in finished
        assert (5, 0) == (finished[-1].index, finished[-6].index)

    @pytest.mark.parametrize("index", [6, -7])
    def test_index_error(self, finished: FutureArray[int], index: int) -> None:
        """An index out of range raises IndexError."""
        with pytest.raises(IndexError):
            finished[index]

    @pytest.mark.parametrize(
        "part", [slice(2, 4), slice(None, None, 2), slice(None, None, -1), slice(9, 12), slice(-2, None)]
    )
    def test_slices(self, finished: FutureArray[int], part: slice) -> None:
        """A slice is an array of the same futures, and of the same run."""
        chosen = finished[part]

        assert isinstance(chosen, FutureArray)
        assert list(finished)[part] == list(chosen)
        assert (finished.folder, finished.job_ids) == (chosen.folder, chosen.job_ids)

    def test_identity(self, finished: FutureArray[int]) -> None:
        """An item has one future, however it is reached, as long as a reference to it exists."""
        assert all(future is again for future, again in zip(list(finished), finished, strict=True))
        assert finished[3] is finished[1:][2] is finished[3].run[3]

    @elsewhere
    def test_identity_of_open_futures(self, executor: Executor, gate: Gate) -> None:
        """The future of an open item stays the same when the item is done."""
        array = executor.map_array(gate.enter, range(2), tasks=1)
        before = list(array)

        assert all(future is again for future, again in zip(before, array, strict=True))
        gate.open()
        array.wait()
        assert all(future is again for future, again in zip(before, array, strict=True))

    def test_repr(self, finished: FutureArray[int]) -> None:
        """The repr names the run, the counts of its items, and the folder."""
        assert f"<FutureArray square: 4 done, 2 failed; slurmlaunch.attach({str(finished.folder)!r})>" == repr(finished)


class TestRun:
    """The run's properties that an array exposes."""

    def test_folder(self, finished: FutureArray[int]) -> None:
        """The run folder is an absolute path, and exists."""
        assert isinstance(finished.folder, Path)
        assert finished.folder.is_absolute()
        assert finished.folder.is_dir()

    def test_job_ids(self, finished: FutureArray[int]) -> None:
        """One array is one job."""
        (job_id,) = finished.job_ids

        assert isinstance(job_id, str)
        assert isinstance(finished.job_ids, tuple)

    def test_counts(self, finished: FutureArray[int]) -> None:
        """The counts are those of the array's own items, in five kinds."""
        expected = {"pending": 0, "running": 0, "done": 4, "failed": 2, "cancelled": 0}

        assert expected == finished.counts()
        assert list(expected) == list(finished.counts())
        assert {**expected, "done": 1, "failed": 1} == finished[4:].counts()

    @elsewhere
    def test_counts_of_open_items(self, executor: Executor, gate: Gate) -> None:
        """An open item counts as running while it is in the hands of a process, and as pending before."""
        array = executor.map_array(gate.enter, range(5), tasks=2, throttle=1)
        gate.open(0)
        wait_until(lambda: array.counts() == {"pending": 3, "running": 1, "done": 1, "failed": 0, "cancelled": 0})

        assert [{"running": 1, "pending": 1}, {"pending": 2}] == [
            {word: number for word, number in part.counts().items() if number} for part in (array[1:3], array[3:])
        ]

    def test_throttle(self, executor: Executor) -> None:
        """The throttle is the call's, else the executor's, else None."""
        throttled = executor.options(throttle=3)
        arrays = [
            executor.map_array(int, [1]),
            throttled.map_array(int, [1]),
            throttled.map_array(int, [1], throttle=2),
        ]

        assert [None, 3, 2] == [array.throttle for array in arrays]
        concurrent.futures.wait([array[0] for array in arrays])

    @pytest.mark.parametrize("throttle", [0, -1, "many", True])
    def test_bad_throttle(self, executor: Executor, throttle: Any) -> None:
        """An invalid throttle is refused, and changes nothing."""
        array = executor.map_array(int, [1], throttle=2)

        with pytest.raises(ValueError, match="throttle"):
            array.throttle = throttle

        assert 2 == array.throttle


class TestResults:
    """All results of an array."""

    def test_failure(self, finished: FutureArray[int]) -> None:
        """The failure with the lowest index is raised, with a note that gives the index and the number of failures."""
        with pytest.raises(ValueError, match="2") as caught:
            finished.results()

        assert (2,) == caught.value.args
        assert notes(caught.value)[0] == "item 2 of square; 2 of 6 items failed"

    def test_failure_of_a_slice(self, finished: FutureArray[int]) -> None:
        """A slice reports only its own items, in their own order."""
        with pytest.raises(ValueError, match="4") as caught:
            finished[:1:-1].results()

        assert notes(caught.value)[0] == "item 4 of square; 2 of 4 items failed"
        assert [9, 25] == finished[3::2].results()

    def test_return_exceptions(self, finished: FutureArray[int]) -> None:
        """With return_exceptions, exceptions are in their items' places."""
        results = finished.results(return_exceptions=True)

        assert [0, 1, "ValueError(2)", 9, "ValueError(4)", 25] == [
            repr(each) if isinstance(each, Exception) else each for each in results
        ]

    @elsewhere
    def test_failure_before_the_end(self, executor: Executor, gate: Gate) -> None:
        """A failure is raised as soon as all earlier items are done, and its note names the items that are not."""
        array = executor.map_array(lambda i: 1 // int(gate.enter(i)), range(2), tasks=1)
        gate.open(0)

        with pytest.raises(ZeroDivisionError) as caught:
            array.results()

        assert notes(caught.value)[0] == "item 0 of lambda; 1 of 2 items failed, 1 are not done yet"

    @elsewhere
    def test_timeout(self, executor: Executor, gate: Gate) -> None:
        """A timeout raises the standard library's TimeoutError, which gives the number of finished items."""
        array = executor.map_array(gate.enter, range(2), tasks=1)
        gate.open(0)
        assert "0" == array[0].result()

        with pytest.raises(concurrent.futures.TimeoutError, match="1 of 2 items"):
            array.results(timeout=SOON)
        with pytest.raises(concurrent.futures.TimeoutError):
            array.results(0, return_exceptions=True)

        assert ["0"] == array[:1].results(timeout=0)

    @elsewhere
    def test_streaming(self, executor: Executor, gate: Gate) -> None:
        """Results are yielded in order, each as soon as it is available."""
        array = executor.map_array(gate.enter, "abc", tasks=1)
        results = array.iter_results()

        seen = []
        for name in "abc":
            gate.open(name)
            seen.append(next(results))
            assert array.counts()["done"] == len(seen)

        assert list("abc") == seen
        with pytest.raises(StopIteration):
            next(results)

    def test_iter_results_failure(self, finished: FutureArray[int]) -> None:
        """The results before a failure are yielded, then it is raised."""
        results = finished.iter_results()

        assert [0, 1] == [next(results), next(results)]
        with pytest.raises(ValueError, match="2"):
            next(results)

    @elsewhere
    def test_iter_results_timeout(self, executor: Executor, gate: Gate) -> None:
        """The timeout is for all results together."""
        results = executor.map_array(gate.enter, "ab").iter_results(timeout=SOON)

        with pytest.raises(concurrent.futures.TimeoutError):
            next(results)

    def test_many(self, executor: Executor) -> None:
        """Ten thousand results arrive in order, also as futures."""
        array = executor.map_array(lambda x: -x, range(10_000), tasks=2)

        assert [-x for x in range(10_000)] == array.results()
        assert list(range(10_000)) == sorted(future.index for future in array.as_completed())
        assert -9_999 == array[-1].result()


class TestWaiting:
    """How an array is waited for."""

    def test_done(self, finished: FutureArray[int]) -> None:
        """An array is done once all of its items have settled, failures included."""
        assert finished.done()
        assert finished.wait()
        assert finished.wait(timeout=0)

    @elsewhere
    def test_open(self, executor: Executor, gate: Gate) -> None:
        """An array waits for all of its items, a slice for its own, up to the timeout."""
        array = executor.map_array(gate.enter, "ab", tasks=1)
        gate.open("a")

        assert (True, True) == (array[:1].wait(), array[:1].done())
        assert (False, False) == (array.wait(SOON), array.done())
        assert (False, False) == (array[::-1].wait(0), array[::-1].done())
        gate.open()
        assert (True, True) == (array[::-1].wait(), array.done())

    def test_futures_are_done(self, executor: Executor) -> None:
        """When an array is done its futures are done, even if their results are slow to load."""
        array = executor.map_array(SlowToLoad, range(2), tasks=1)
        futures = list(array)

        assert array.wait()
        assert [True, True] == [future.done() for future in futures]

    @several_cpus
    @elsewhere
    def test_as_completed(self, executor: Executor, gate: Gate) -> None:
        """Futures are yielded as they settle, the earliest first, and are done."""
        array = executor.map_array(gate.enter, "ab")
        order = []
        completed = array.as_completed()
        for name in "ba":
            gate.open(name)
            future = next(completed)
            order.append((future.index, future.done(), future.result(timeout=0)))

        assert [(1, True, "b"), (0, True, "a")] == order
        assert [1, 0] == [future.index for future in array.as_completed()]

    def test_as_completed_when_done(self, finished: FutureArray[int]) -> None:
        """as_completed of a finished array yields all futures, failures included; of a slice its own."""
        assert set(finished) == set(finished.as_completed(timeout=0))
        assert {finished[1], finished[4]} == set(finished[1::3].as_completed())

    @elsewhere
    def test_as_completed_timeout(self, executor: Executor, gate: Gate) -> None:
        """At the timeout, finished items have been yielded, and TimeoutError is raised for the rest."""
        array = executor.map_array(gate.enter, "ab", tasks=1)
        gate.open("a")
        array[0].result()
        completed = array.as_completed(timeout=SOON)

        assert array[0] is next(completed)
        with pytest.raises(concurrent.futures.TimeoutError):
            next(completed)

    @elsewhere
    def test_dropped_array(self, executor: Executor, gate: Gate) -> None:
        """A future keeps its run watched after the array is dropped; so does a callback after the future is."""
        called = threading.Event()
        future = executor.map_array(gate.enter, "ab", tasks=1)[1]
        future.run[0].add_done_callback(lambda _: called.set())
        gc.collect()

        gate.open()

        assert "b" == future.result(timeout=90)
        assert called.wait(90)


class TestPickle:
    """Pickled arrays."""

    @pytest.mark.parametrize("part", [slice(None), slice(1, 5), slice(None, None, -2)])
    def test_same_process(self, finished: FutureArray[int], part: slice) -> None:
        """A pickled array has the same items and outcomes, and a pickled slice its own."""
        array = finished[part]
        again = pickle.loads(pickle.dumps(array, pickle.HIGHEST_PROTOCOL))

        assert [future.index for future in array] == [future.index for future in again]
        assert list(map(repr, array.results(return_exceptions=True))) == list(
            map(repr, again.results(return_exceptions=True))
        )

    def test_other_process(self, finished: FutureArray[int], tmp_path: Path) -> None:
        """Another process finds the run again."""
        (tmp_path / "pickled").write_bytes(pickle.dumps([finished[3:], finished[0]]))
        printed = scripts.run(
            tmp_path,
            """
            import pathlib, pickle, sys

            array, future = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())
            print(array.results(return_exceptions=True), future.result(), array.folder)
            """,
            tmp_path / "pickled",
        )

        assert f"[9, ValueError(4), 25] 0 {finished.folder}\n" == printed

    @elsewhere
    def test_open_array(self, executor: Executor, gate: Gate) -> None:
        """An unfinished array can be pickled; both copies get the same outcomes."""
        array = executor.map_array(gate.enter, "ab", tasks=1)
        again = pickle.loads(pickle.dumps(array))

        assert not again.done()
        gate.open()
        assert ["a", "b"] == again.results() == array.results()
