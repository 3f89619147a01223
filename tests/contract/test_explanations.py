"""Arguments and failures of items, and what an error says of its item, on every backend."""

from __future__ import annotations

import asyncio
import functools
import threading
import traceback
from typing import TYPE_CHECKING, Any

import pytest

import slurmlaunch
from slurmlaunch import Executor
from slurmlaunch.errors import RunFolderError
from tests.support.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from slurmlaunch import FutureArray


def results_by_map(array: FutureArray[int]) -> None:
    """Raise from the iterator of a map."""
    list(slurmlaunch.Executor(array.folder.parent, cluster="inline").map(fail, [2]))


def fail(number: int) -> None:
    """Raise."""
    raise ValueError(number)


async def wait_for(awaitable: Any) -> Any:
    """Await."""
    return await awaitable


CALLS: dict[str, Callable[[FutureArray[int]], object]] = {
    "result": lambda array: array[2].result(),
    "results": lambda array: array.results(),
    "iter_results": lambda array: list(array.iter_results()),
    "as_completed": lambda array: [future.result() for future in array.as_completed()],
    "map": results_by_map,
    "await a future": lambda array: asyncio.run(wait_for(array[2])),
    "await an array": lambda array: asyncio.run(wait_for(array)),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_a_person_sees(finished: FutureArray[int], call: Callable[[FutureArray[int]], object]) -> None:
    """The traceback has no frame of slurmlaunch's, and notes with the call, the log and how to run it again."""
    with pytest.raises(ValueError, match=r"[24]") as caught:
        call(finished)
    text = "".join(traceback.format_exception(caught.value))
    assert "slurmlaunch/client" not in text
    assert "slurmlaunch/node" not in text
    assert "concurrent/futures" not in text
    assert "raise ValueError(number)" in text
    notes = "\n".join(caught.value.__notes__)
    assert any(each in notes for each in ("square(2)", "square(4)", "fail(2)"))
    assert ".err" in notes
    assert "slurmlaunch.attach('" in notes
    assert notes.count("to run again") == 1


def test_arguments(finished: FutureArray[int]) -> None:
    """The arguments of an item are read from the run folder, also after attach."""
    assert ((3,), {}) == (finished[3].args, finished[3].kwargs)
    assert slurmlaunch.attach(finished.folder)[4].args == (4,)


def test_failures(finished: FutureArray[int]) -> None:
    """The failures of a run are those of its items; printed, equal causes are one line with an example."""
    failures = finished.failures()
    assert [(each.index, each.args, each.kwargs) for each in failures] == [(2, (2,), {}), (4, (4,), {})]
    assert [type(each.error) for each in failures] == [ValueError, ValueError]
    assert failures[0].log == finished[2].log("err")
    first = str(failures).splitlines()[0]
    assert first.startswith("2 items: ValueError(2) at conftest.py:")
    assert first.endswith(", e.g. item 2 (2)")
    assert str(finished[:2].failures()) == repr(finished[:2].failures()) == "no item has failed"
    assert "item 2 (2): ValueError(2)" in str(finished.status())


@pytest.fixture
def inline(tmp_path: Path) -> Executor:
    """Return an executor that runs items in this thread."""
    return Executor(tmp_path / "runs", cluster="inline", time="00:10:00")


def test_bound_arguments(inline: Executor) -> None:
    """The arguments are those that the user gave: what a partial holds is not among them."""
    part: Any = functools.partial(dict, [], a=1)
    single = inline.submit(part, b=2)
    assert (single.args, single.kwargs) == ((), {"b": 2})
    mapped = inline.map_array(functools.partial(pow, 2), [3, 4], kwargs={"mod": 5})[1]
    assert (mapped.args, mapped.kwargs) == ((4,), {"mod": 5})
    assert inline.submit(pow, 2, 3).args == (2, 3)


def test_arguments_that_do_not_load(inline: Executor, beside: Callable[[str], Any]) -> None:
    """The error of arguments that need a missing module names the module."""
    module = beside("class A:\n    def fail(self): raise KeyError('v')\n")
    array = inline.map_array(module.A.fail, [module.A()])
    beside("")
    with pytest.raises(RunFolderError, match=r"item 0 of fail do not load here: AttributeError.*lies_beside"):
        _ = array[0].args
    assert "arguments that do not load here" in str(array.failures())


def test_long_arguments(inline: Executor) -> None:
    """Arguments are shortened in an error, and large ones are not read for it."""
    error = inline.map_array(int, ["x" * 10_000])[0].exception(PATIENCE)
    assert error is not None
    assert "int('xxx" in error.__notes__[-1]
    assert len(error.__notes__[-1]) < 2000
    large = inline.map_array(int, [b"x" * (2 << 20)])[0]
    note = large.exception(PATIENCE).__notes__[-1]  # type: ignore[union-attr]
    assert "int(large arguments, which future.args reads)" in note
    assert len(large.args[0]) == 2 << 20


def test_calls_that_are_refused(inline: Executor) -> None:
    """The traceback of an error in the call itself ends at the call."""
    with pytest.raises(slurmlaunch.NotPicklable) as caught:
        inline.map_array(str, [threading.Lock()])
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert [frame.filename for frame in frames] == [__file__]


def test_a_missing_module(inline: Executor) -> None:
    """The error of a module that a task does not find says where to install it."""
    error = inline.map_array(__import__, ["no_such_module"])[0].exception()
    assert error is not None
    assert "install no_such_module for the Python of the tasks" in error.__notes__[0]


def test_html(inline: Executor) -> None:
    """The HTML of executors, runs, futures and failures shows text as it is: no argument or error runs a script."""
    array = inline.map_array(int, ["<script>", "7"])
    shown = (inline, array, array[0], array[1], array.failures(), array.status())
    pages = [each._repr_html_() for each in shown]
    assert all("<div" in page and "<script>" not in page for page in pages)
    assert all("&lt;script&gt;" in page for page in (pages[1], pages[2], pages[4], pages[5]))
    assert "time=" in pages[0]


def test_async_iteration(finished: FutureArray[int]) -> None:
    """`as_completed` serves `for` and `async for`; `await` of a run returns its results."""

    async def collect() -> list[int]:
        return [future.index async for future in finished.as_completed()]

    assert sorted(asyncio.run(collect())) == list(range(6))
    assert asyncio.run(wait_for(finished[:2])) == [0, 1]
