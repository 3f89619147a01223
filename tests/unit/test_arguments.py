"""The checks of a call's function and arguments, and keyword arguments that all items have in common."""

from __future__ import annotations

import functools
import os
import re
from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch import Executor, attach, task_pool
from slurmlaunch.errors import OptionError, RunFolderError, UnknownOption

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


@pytest.fixture
def executor(tmp_path: Path) -> Executor:
    """Return an executor that runs everything in this thread."""
    return Executor(tmp_path / "runs", cluster="inline")


def scaled(value: float, offset: float = 0, *, factor: float = 1) -> float:
    """Return the value in another unit."""
    return value * factor + offset


class TestIterables:
    """Values where iterables belong."""

    @pytest.mark.parametrize(
        ("iterables", "expected"),
        [
            ((5,), ["number 1 ('value') is 5", "kwargs={'value': 5}", "partial(scaled, value=5)"]),
            (([1, 2], 5), ["number 2 ('offset') is 5", "kwargs={'offset': 5}", "partial(scaled, offset=5)"]),
            (([1, 2], None), ["number 2 ('offset') is None", "kwargs={'offset': None}"]),
        ],
    )
    def test_constants(self, executor: Executor, iterables: tuple[Any, ...], expected: list[str]) -> None:
        """A value that is no iterable is named, with its parameter and the two ways to give it to all items."""
        for call in (executor.map_array, executor.script):
            with pytest.raises(TypeError, match="not iterable") as caught:
                call(scaled, *iterables)

            assert [] == [each for each in expected if each not in str(caught.value)]
        with pytest.raises(TypeError, match="map takes iterables") as caught:
            executor.map(scaled, *iterables)

        assert [] == [each for each in expected if each not in str(caught.value)]
        assert not executor.folder.exists()

    @pytest.mark.parametrize(
        ("iterables", "short", "constant"),
        [
            (([1, 2, 3], [5]), 2, "kwargs={'offset': [5]}"),
            (([1, 2], "mode"), 1, "kwargs={'offset': 'mode'}"),
            ((["a", "b", "c"], "ab"), 2, "kwargs={'offset': 'ab'}"),
            (([1, 2], {"a": 1}), 2, "kwargs={'offset': {'a': 1}}"),
        ],
    )
    def test_unequal_constants(self, executor: Executor, iterables: tuple[Any, ...], short: int, constant: str) -> None:
        """Of unequal iterables the short one is named, and how to give all items the one that looks like a constant."""
        with pytest.raises(ValueError, match=f"not equally long: number {short}") as caught:
            executor.map_array(scaled, *iterables)

        assert constant in str(caught.value)
        assert "functools.partial" in str(caught.value)

    def test_an_error_of_an_iterable_is_its_own(self, executor: Executor) -> None:
        """A ValueError that an iterable raises is not taken for one about lengths."""
        with pytest.raises(ValueError, match="could not convert"):
            executor.map_array(scaled, (float(each) for each in ["1", "x"]))

    def test_none(self, executor: Executor) -> None:
        """A call without any iterable is an error that names submit; an empty one is none."""
        with pytest.raises(TypeError, match=re.escape("submit(fn)")):
            executor.map_array(scaled)
        with pytest.raises(TypeError, match=re.escape("submit(fn)")):
            executor.map_array(scaled, kwargs={"value": 1})

        assert [] == executor.map_array(scaled, []).results()

    def test_rows(self, executor: Executor) -> None:
        """An item of starmap_array that is no tuple is named, and so is a value in place of the items."""
        with pytest.raises(TypeError, match=re.escape("item 1 is 2, and starmap_array takes a tuple")):
            executor.starmap_array(scaled, [(1,), 2])  # type: ignore[list-item]
        with pytest.raises(TypeError, match=r"starmap_array takes an iterable .*, not 5"):
            executor.starmap_array(scaled, 5)  # type: ignore[arg-type]


class TestKeywords:
    """Keyword arguments that all items have in common."""

    @pytest.mark.parametrize(
        ("kwargs", "said"),
        [
            ({"power": 1}, "unexpected keyword argument 'power'"),
            ({"value": 1}, "multiple values for argument 'value'"),
            ([1], "must be a dict"),
            ({1: 2}, "must be a dict"),
            (5, "must be a dict"),
        ],
    )
    def test_refused(self, executor: Executor, kwargs: Any, said: str) -> None:
        """What the function would refuse for every item is refused at the call."""
        for call in (executor.map_array, executor.script):
            with pytest.raises(TypeError, match=said):
                call(scaled, [1], kwargs=kwargs)

    def test_a_function_without_a_signature(self, executor: Executor) -> None:
        """A built-in function that tells nothing of its parameters is not checked."""
        assert [{"a": 1, "b": 2}] == executor.starmap_array(dict, [([("a", 1)],)], kwargs={"b": 2}).results()

    def test_a_decorated_function(self, executor: Executor) -> None:
        """What a decorator takes counts, not what the function inside takes."""

        @functools.wraps(scaled)
        def given(*args: float, unit: str, **kwargs: float) -> str:
            return f"{scaled(*args, **kwargs)} {unit}"

        assert ["6 m"] == executor.map_array(given, [3], kwargs={"factor": 2, "unit": "m"}).results()

    @pytest.mark.parametrize("name", ["time", "partition", "cpus_per_task", "retries", "env"])
    def test_an_option_of_the_executor(self, executor: Executor, name: str) -> None:
        """An option that was given to a call is told where it belongs."""
        calls: list[Callable[..., Any]] = [executor.map_array, executor.starmap_array, executor.map, executor.script]
        for call in calls:
            with pytest.raises(UnknownOption, match=re.escape(f"ex.options({name}=...)")) as caught:
                call(scaled, [(1,)], **{name: "1"})

            assert (name, isinstance(caught.value, TypeError)) == (caught.value.option, True)
        with pytest.raises(UnknownOption, match=re.escape(f"ex.options({name}=...).submit(...)")):
            executor.submit(scaled, 1, **{name: "1"})  # type: ignore[arg-type]

    def test_a_parameter_that_is_called_like_an_option(self, executor: Executor) -> None:
        """A keyword that the function of submit takes is the function's."""

        def timed(time: str, **others: str) -> tuple[str, dict[str, str]]:
            return time, others

        assert ("1", {"mem": "2"}) == executor.submit(timed, time="1", mem="2").result()
        assert {"mem": 3} == executor.submit(dict, mem=3).result()

    @pytest.mark.parametrize(
        ("name", "said"),
        [("factor", "kwargs={'factor': 2}"), ("chunk_size", "chunksize"), ("array", "throttle=")],
    )
    def test_an_argument_of_the_function(self, executor: Executor, name: str, said: str) -> None:
        """Any other keyword is told to go into kwargs, and the parameter that may be meant is named."""
        with pytest.raises(UnknownOption, match=re.escape(said)):
            executor.map_array(scaled, [1], **{name: 2})  # type: ignore[arg-type]


class TestAsync:
    """Asynchronous functions."""

    def test_told_at_the_call(self, executor: Executor) -> None:
        """In every call an async function, generator or object is refused, and asyncio.run named."""

        async def wait(item: int) -> int:
            return item

        async def stream(item: int) -> AsyncIterator[int]:
            yield item

        class Waiting:
            async def __call__(self, item: int) -> int:
                return item

        calls: list[Callable[..., Any]] = [
            executor.submit, executor.map_array, executor.starmap_array, executor.map, executor.script,
            task_pool(1).submit,
        ]  # fmt: skip
        for function in (wait, stream, Waiting(), functools.partial(wait, item=1), functools.cache(wait)):
            for call in calls:
                with pytest.raises(TypeError, match=r"asynchronous.*asyncio\.run"):
                    call(function, [(1,)])


class TestFolder:
    """Folders that cannot hold run folders."""

    @pytest.mark.parametrize("folder", [scaled, 5, ["runs"], b"runs", "runs\0", "~no-such-user/runs"])
    def test_no_path(self, folder: Any) -> None:
        """What is no path is refused when the executor is made."""
        with pytest.raises(OptionError, match="folder for the run folders"):
            Executor(folder)

    def test_no_folder(self, tmp_path: Path) -> None:
        """A path that cannot be made a folder is explained, and $SLURMLAUNCH_FOLDER named."""
        (tmp_path / "file").touch()
        with pytest.raises(RunFolderError, match=r"(?s)folder for the run folders.*SLURMLAUNCH_FOLDER") as caught:
            Executor(tmp_path / "file" / "runs", cluster="inline").submit(os.getpid)

        assert (str(tmp_path / "file" / "runs"), NotADirectoryError) == (
            caught.value.path,
            type(caught.value.__cause__),
        )

    def test_links(self, tmp_path: Path) -> None:
        """A link that leads nowhere, or to itself, is named with its target; attach takes neither for a folder."""
        for name, target in (("dangling", "nowhere"), ("ring", "ring")):
            link = tmp_path / name
            link.symlink_to(target)
            with pytest.raises(RunFolderError, match=f"link to {target}, which is no folder.*SLURMLAUNCH_FOLDER"):
                Executor(link, cluster="inline").submit(os.getpid)
        for no_folder in (tmp_path / "dangling", tmp_path / "ring", "runs\0"):
            with pytest.raises(RunFolderError):
                attach(no_folder)
