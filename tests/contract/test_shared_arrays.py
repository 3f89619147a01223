"""Large arrays, on every backend: shared with the function, passed to items, and returned."""

from __future__ import annotations

import os
import pickle
import shutil
import struct
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from slurmlaunch import NodeStartError, attach
from slurmlaunch.runfolder import records
from slurmlaunch.runfolder.function import read_function
from slurmlaunch.runfolder.layout import Manifest, Status
from slurmlaunch.runfolder.plan import Blocks
from slurmlaunch.runfolder.records import Kind
from tests.support import scripts
from tests.support.tasks import OneRun, finish, rows
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from slurmlaunch import Executor
    from tests.conftest import ExecutorFactory

pytestmark = pytest.mark.anywhere  # the files are read and mapped in the same way

NUMBERS = 1 << 18
"""Of an array of 2 MiB."""


def look_up(field: Any, item: int) -> tuple[float, bool]:
    """Return the array's element, and whether the array is writable."""
    return float(field[item]), field.flags.writeable


def change(field: Any, item: int) -> Any:
    """Change an array in place."""
    field[item] = -1
    return field


class TestFunction:
    """The arrays that the function refers to are one file, mapped by all processes."""

    def test_partial(self, executor: Executor) -> None:
        """An array bound by functools.partial is read-only, and has a file of its own."""
        futures = executor.map_array(partial(look_up, np.arange(float(NUMBERS))), range(6), tasks=2)

        assert [(float(i), False) for i in range(6)] == futures.results()
        shared = futures.folder / "function.buffers"
        assert (NUMBERS * 8, 0o600) == (shared.stat().st_size, shared.stat().st_mode & 0o777)
        assert (futures.folder / "function").stat().st_size < 10_000

    def test_closure(self, executor: Executor) -> None:
        """Several arrays in a closure arrive in their places; small ones stay writable."""
        first, second = np.arange(float(NUMBERS)), np.arange(NUMBERS)[::-1].copy()
        small = np.zeros(10)

        def look(item: int) -> tuple[float, int, float]:
            small[item] += 1
            return float(first[item]), int(second[item]), float(small[item])

        assert [(float(i), NUMBERS - 1 - i, 1.0) for i in range(6)] == executor.map_array(look, range(6)).results()

    def test_read_only_arrays(self, executor: Executor) -> None:
        """A function that writes to a shared array fails, and the error names the remedy."""
        futures = executor.map_array(partial(change, np.zeros(NUMBERS)), range(2))

        error = futures[0].exception()
        assert isinstance(error, ValueError)
        assert "read-only" in str(error)
        assert "array.copy()" in "".join(getattr(error, "__notes__", []))
        assert "array.copy()" in str(error.__cause__)

    @pytest.mark.parametrize(
        "call",
        [
            lambda array, _: array.resize(3),
            lambda array, _: array.setflags(write=True),
            lambda array, _: setattr(array.flags, "writeable", True),
            lambda array, _: array.sort(),
            lambda array, _: np.add(array, 1, out=array),
            lambda array, _: np.copyto(array, 1),
            lambda array, _: array.byteswap(inplace=True),
        ],
        ids=["resize", "setflags", "flags", "sort", "out", "copyto", "byteswap"],
    )
    @pytest.mark.parametrize("backend", ["inline"], indirect=True)
    def test_every_way_to_write(self, executor: Executor, call: Callable[[Any, int], object]) -> None:
        """Whatever NumPy says of a change to a shared array, the error names the remedy."""
        error = executor.map_array(partial(call, np.zeros(NUMBERS)), [0])[0].exception()

        assert "array.copy()" in "".join(getattr(error, "__notes__", []))

    def test_other_errors_have_no_hint(self, executor: Executor) -> None:
        """Unrelated errors get no hint."""
        (error,) = executor.map_array(partial(look_up, np.zeros(NUMBERS)), [NUMBERS]).results(return_exceptions=True)

        assert isinstance(error, IndexError)
        assert "array.copy()" not in "".join(getattr(error, "__notes__", []))

    def test_bytes_through_a_buffer(self, executor: Executor) -> None:
        """NumPy is not needed: a function's `pickle.PickleBuffer` arrives as read-only memory."""
        data = os.urandom(1 << 21)

        def look(buffer: Any, item: int) -> tuple[str, bool, bytes]:
            return type(buffer).__name__, buffer.readonly, bytes(buffer[item : item + 10])

        found = executor.map_array(partial(look, pickle.PickleBuffer(data)), [0, 1000]).results()
        assert [("memoryview", True, data[i : i + 10]) for i in (0, 1000)] == found

    def test_a_view_of_it_as_a_result(self, executor: Executor) -> None:
        """A view of a shared array may be returned, large or small."""
        field = np.arange(float(NUMBERS))

        small, large = executor.map_array(lambda n: field[:n], [10, NUMBERS // 2]).results()

        assert np.array_equal(field[:10], small)
        assert np.array_equal(field[: NUMBERS // 2], large)

    @pytest.mark.parametrize("blocks", [None, Blocks(3, 1, "dynamic", 3)])
    @pytest.mark.parametrize("spoil", ["flip", "cut", "remove", "writable"])
    def test_damage(self, tmp_path: Path, spoil: str, blocks: Blocks | None) -> None:
        """A task whose shared arrays are damaged runs nothing, and the error names the file."""
        field = np.zeros(NUMBERS)
        run = OneRun(tmp_path / "run", lambda item: look_up(field, item), rows(range(3)), processes=2, blocks=blocks)
        path = run.folder.path / "function.buffers"
        if spoil == "flip":
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        elif spoil == "cut":
            os.truncate(path, NUMBERS)
        elif spoil == "remove":
            path.unlink()
        else:
            path.chmod(0o666)

        assert run.run().status == 1

        errors = run.errors()
        assert (set(range(3)), {NodeStartError}) == (set(errors), set(map(type, errors.values())))
        assert all(str(path) in str(each) for each in errors.values())

    def test_an_end_from_outside_meanwhile(self, tmp_path: Path) -> None:
        """A task that is ended while it checks its arrays stops checking, and records nothing."""
        field = np.zeros(NUMBERS)
        run = OneRun(tmp_path / "run", lambda item: look_up(field, item), rows(range(3)))
        pickled = read_function(run.folder.function).pickled
        buffers = run.folder.path / "function.buffers"
        with buffers.open("r+b") as file:
            file.truncate(1 << 40)  # a sparse file: reading it takes a quarter of an hour
        table = records.encode(Kind.SHARED, struct.pack("<QQI", 0, 1 << 40, 0))
        Path(run.folder.function).write_bytes(records.encode(Kind.FUNCTION, bytes(pickled)) + table)
        Manifest.read(run.folder)._replace(sha256={}).write(run.folder)

        node = run.start()
        opened = Path(f"/proc/{node.pid}/fd")
        wait_until(lambda: str(buffers) in {os.path.realpath(each) for each in opened.iterdir()})
        node.terminate()

        assert Status.STOPPED == finish(node).status
        assert [] == run.recorded()


class TestCalls:
    """Arguments that belong to a single call."""

    def test_submit(self, executor: Executor) -> None:
        """A task may write to a large argument of submit, and the caller's array does not change."""
        field = np.zeros(NUMBERS)

        changed = executor.submit(change, field, item=3).result()

        assert (0.0, -1.0, 0.0) == (field[3], changed[3], changed[4])

    def test_items(self, executor: Executor) -> None:
        """Each item has its own copy of its large arrays, and may write to it."""
        fields = [np.full(NUMBERS, float(i)) for i in range(3)]

        changed = executor.map_array(change, fields, [0, 1, 2], tasks=1).results()

        assert [[-1.0 if i == j else float(i) for j in range(3)] for i in range(3)] == [
            each[:3].tolist() for each in changed
        ]
        assert [0.0, 1.0, 2.0] == [each[i] for i, each in enumerate(fields)]

    def test_not_contiguous(self, executor: Executor) -> None:
        """A non-contiguous array, or one of objects, arrives unchanged."""
        gaps, objects = np.arange(4.0 * NUMBERS)[::2], np.array([None, "x"] * NUMBERS)

        found = executor.submit(lambda a, b: (a, b), gaps, objects).result()

        assert np.array_equal(gaps, found[0])
        assert objects.tolist() == found[1].tolist()


def make(size: int) -> Any:
    """Return an array, in a dictionary, with bytes beside it."""
    return {"array": np.full(size, size, "i4"), "bytes": b"x" * size, "text": "beside"}


class TestResults:
    """Large results belong to the caller."""

    def test_all_sizes(self, executor: Executor) -> None:
        """Results of any size are in order, and writable."""
        sizes = [1, 300_000, 2, 3_000_000, 1_500_000, 3]

        results = executor.map_array(make, sizes, tasks=2).results()

        for size, each in zip(sizes, results, strict=True):
            assert (size, b"x" * size, "beside") == (len(each["array"]), each["bytes"], each["text"])
            assert (each["array"] == size).all()
            each["array"][0] = 0

    def test_they_outlive_the_folder(self, executor: Executor) -> None:
        """A result that was read no longer needs the run folder."""
        futures = executor.map_array(make, [2_000_000])
        (result,) = futures.results()

        shutil.rmtree(futures.folder)

        assert (result["array"] == 2_000_000).all()

    def test_each_time_anew(self, executor: Executor) -> None:
        """Changing a result does not change the next `result()`."""
        futures = executor.map_array(make, [2_000_000])
        (first,) = futures.results()
        first["array"][:] = 0

        assert (futures.results()[0]["array"] == 2_000_000).all()

    def test_large_bytes(self, executor: Executor) -> None:
        """Bytes and bytearrays come back with their type."""
        results = executor.map_array(lambda kind: kind(b"y" * 1_000_000), [bytes, bytearray]).results()

        assert [b"y" * 1_000_000, bytearray(b"y" * 1_000_000)] == results
        assert [bytes, bytearray] == list(map(type, results))

    def test_from_another_process(self, make_executor: ExecutorFactory, tmp_path: Path) -> None:
        """Any process that attaches to the run can read large results, without NumPy if they are bytes."""
        futures = make_executor().map_array(lambda n: pickle.PickleBuffer(b"z" * n), [10, 1_000_000])
        futures.wait()

        text = """
            import sys
            sys.modules["numpy"] = None
            import slurmlaunch
            print([(type(each), len(each), set(each)) for each in slurmlaunch.attach(sys.argv[1]).results(60)])
        """
        printed = scripts.run(tmp_path, text, futures.folder)
        assert "[(<class 'bytes'>, 10, {122}), (<class 'bytes'>, 1000000, {122})]" == printed.strip()

    def test_a_retry_keeps_them(self, executor: Executor) -> None:
        """A large value needs no retry: only failed items run again."""
        futures = executor.map_array(lambda n: np.ones(NUMBERS // n), [1, 0, 2])
        futures.wait()

        again = attach(futures.folder).retry()

        kinds = [type(each) for each in again.results(return_exceptions=True)]
        assert [np.ndarray, ZeroDivisionError, np.ndarray] == kinds
        assert {"pending": 0, "running": 0, "done": 2, "failed": 1, "cancelled": 0} == again.counts()
