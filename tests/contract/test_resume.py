"""A call that goes on with the run of its name: which items run, which results it has, and what it says."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from slurmlaunch import Executor, OptionError, RunFolderError, attach, current_task
from slurmlaunch.client.resuming import place_of
from tests.support.waiting import PATIENCE, Story

if TYPE_CHECKING:
    from collections.abc import Callable

    from slurmlaunch import FutureArray
    from tests.conftest import ExecutorFactory

fast = pytest.mark.parametrize("backend", ["inline", "local"], indirect=True)
local = pytest.mark.parametrize("backend", ["local"], indirect=True)

SCALE = 10


def goes_on(executor: Executor, work: Callable[..., Any], items: list[Any], **how: Any) -> FutureArray[Any]:
    """Return the finished run of a name, which is made or resumed."""
    array = executor.map_array(work, items, name="sweep", **{"resume": True, **how})
    array.wait(PATIENCE)
    return array


def counting(story: Story, *bad: object) -> Callable[[Any], Any]:
    """Return a function that logs its item, and raises for some as long as nobody has mended the file."""

    def counted(item: Any) -> Any:
        story.tell(item)
        if item in bad and "mended" not in story.lines:
            raise ValueError(item)
        return item * 2

    return counted


class TestItems:
    """Which items run."""

    def test_goes_on(self, executor: Executor, story: Story, capfd: pytest.CaptureFixture[str]) -> None:
        """What is done is taken, what failed runs again, new items are added; futures are in the order of the call."""
        work = counting(story, 2)
        first = goes_on(executor, work, [0, 1, 2, 3], tasks=2)
        story.tell("mended")
        second = goes_on(executor, work, [5, 3, 2, 1, 0, 4], tasks=2)
        third = goes_on(executor, work, [0, 4, 5])

        assert isinstance(first[2].exception(), ValueError)
        assert [10, 6, 4, 2, 0, 8] == second.results()
        assert [0, 8, 10] == third.results()
        assert ["0", "1", "2", "2", "3", "4", "5", "mended"] == sorted(story.lines)
        assert first.folder == second.folder == third.folder == place_of("sweep", executor.folder)
        assert second.job_ids == third.job_ids
        assert [0, 2, 4, 6, 10, 8] == attach(first.folder).results(PATIENCE)
        lines = [line for line in capfd.readouterr().err.splitlines() if "resumes" in line]
        assert [
            "slurmlaunch: sweep resumes: 3 of 6 items are done, 3 submitted now",
            "slurmlaunch: sweep resumes: 3 of 3 items are done",
        ] == lines

    @fast
    def test_duplicates(self, executor: Executor, story: Story) -> None:
        """Equal items are matched in order, each once."""
        work = counting(story)
        goes_on(executor, work, ["a", "b", "a"])

        array = goes_on(executor, work, ["b", "a", "a", "a"])

        assert [1, 0, 2, 3] == [future.index for future in array]
        assert ["bb", "aa", "aa", "aa"] == array.results()
        assert 4 == len(story.lines)

    @fast
    def test_a_run_that_was_not_made_for_it(self, executor: Executor, story: Story) -> None:
        """The newest run of the name is resumed, also if a call without ``resume=`` made it; no other name's is."""
        work = counting(story)
        goes_on(executor, work, [1])
        newest = goes_on(executor, work, [1], resume=False)
        executor.map_array(work, [1], name="sweeping").wait(PATIENCE)
        executor.submit(work, 1).result(PATIENCE)

        assert newest.folder == goes_on(executor, work, [1]).folder
        assert 4 == len(story.lines)

    @fast
    def test_arrays_and_sets(self, executor: Executor, story: Story) -> None:
        """NumPy arrays, large ones too, and sets are matched; what == does not decide is new, and a line counts it."""

        def total(item: Any) -> float:
            story.tell("x")
            return float(sum(item)) if isinstance(item, set) else float(np.sum(item))

        items = [np.arange(3), {1, 2}, np.ones(1 << 17)]
        goes_on(executor, total, items)

        array = goes_on(executor, total, [np.ones(1 << 17), {2, 1}, np.arange(3), np.arange(4)])

        assert [float(1 << 17), 3.0, 3.0, 6.0] == array.results()
        assert 4 == len(story.lines)
        assert 0 == len(goes_on(executor, total, []))

    @local
    def test_not_comparable(self, executor: Executor, capfd: pytest.CaptureFixture[str]) -> None:
        """Functions without a name are new each time, and a line says how many."""
        goes_on(executor, lambda call: call(), [lambda: 1, lambda: 2])

        assert [1, 2] == goes_on(executor, lambda call: call(), [lambda: 1, lambda: 2]).results()
        assert "2 submitted now; 2 could not be compared with earlier items, and count as new" in capfd.readouterr().err

    @fast
    @pytest.mark.parametrize("how", [{"schedule": "dynamic"}, {"cost": float}, {"chunksize": 2}], ids=str)
    def test_schedules(self, executor: Executor, story: Story, how: dict[str, Any]) -> None:
        """A round of a resumed run shares its items as the call says."""
        work = counting(story, 3)
        goes_on(executor, work, list(range(6)), **how)
        story.tell("mended")

        assert [2 * item for item in range(9)] == goes_on(executor, work, list(range(9)), **how).results()
        assert 11 == len(story.lines)

    @local
    def test_options(self, make_executor: ExecutorFactory, story: Story) -> None:
        """Ranks, automatic retries and the random streams of items are those of any run."""
        ranks = make_executor(ntasks=2)

        def of_ranks(item: int) -> tuple[int, int]:
            story.tell(item)
            return item, current_task().ranks

        goes_on(ranks, of_ranks, [1])
        array = goes_on(ranks, of_ranks, [1, 2])

        assert ([(1, 2), (2, 2)], ["1", "1", "2", "2"]) == (array.results(), sorted(story.lines))
        assert [(2, 2), (2, 2)] == array[1].ranks()

        def dies(item: int) -> float:
            story.tell("begun")
            if story.lines.count("begun") == 2:
                os._exit(1)
            return float(current_task().rng().random())

        retried = make_executor(retries=1)
        (drawn,) = retried.map_array(dies, [1], name="dies", resume=True).results(PATIENCE)
        assert drawn == retried.map_array(dies, [1, 2], name="dies", resume=True).results(PATIENCE)[0]
        assert 3 == story.lines.count("begun")

    @local
    def test_by_value(self, make_executor: ExecutorFactory, beside: Callable[[str], Any], story: Story) -> None:
        """Items of classes that travel by value are matched by their names and content."""
        module = beside(
            "class Point:\n    def __init__(self, x): self.x = x\n"
            "def run(point, story): story.tell(point.x); return point.x\n"
        )
        executor = make_executor(by_value=["lies_beside"])
        for number in (2, 3):
            points = [module.Point(x) for x in range(number)]
            assert list(range(number)) == goes_on(executor, module.run, points, kwargs={"story": story}).results()
        assert ["0", "1", "2"] == sorted(story.lines)


@fast
class TestWhichRun:
    """Calls that are not of the run."""

    def test_no_name(self, executor: Executor) -> None:
        """A name is needed, and the mode is one of three."""
        with pytest.raises(OptionError, match="resume: needs name="):
            executor.map_array(abs, [1], resume=True)
        with pytest.raises(OptionError, match="resume: must be True, False or 'strict', not 'yes'"):
            executor.starmap_array(abs, [(1,)], resume="yes", name="a")
        assert not executor.folder.exists()

    def test_another_call(self, make_executor: ExecutorFactory) -> None:
        """Another function, other keyword arguments or another seed are errors, and nothing is submitted."""
        executor = make_executor(name="sweep")
        run = executor.starmap_array(round, [(1.26,)], kwargs={"ndigits": 1}, resume=True)
        run.wait(PATIENCE)

        with pytest.raises(OptionError, match=r"name: the run 'sweep' in .* is of builtins.round, .* of builtins.abs"):
            executor.map_array(abs, [1], resume=True)
        for kwargs in ({"ndigits": 2}, None, {}):
            with pytest.raises(OptionError, match=r"kwargs: the run 'sweep' in .* has other keyword arguments"):
                executor.map_array(round, [1.26], kwargs=kwargs, resume=True)
        with pytest.raises(OptionError, match=r"seed: the run 'sweep' in .* has seed=0, and this call 1"):
            executor.options(seed=1).map_array(round, [1.26], kwargs={"ndigits": 1}, resume=True)
        with pytest.raises(OptionError, match=r"resume: .* was submitted with cluster='(inline|local)'"):
            Executor(executor.folder, cluster="inline" if executor.cluster == "local" else "local").map_array(
                round, [1.26], kwargs={"ndigits": 1}, resume=True, name="sweep"
            )
        assert [1.3] == executor.map_array(round, [1.26], kwargs={"ndigits": 1}, resume=True).results(PATIENCE)
        assert run.job_ids == attach(run.folder).job_ids

    def test_place(self, executor: Executor) -> None:
        """Something else in the place of the run is an error; what a removal has left there is removed."""
        place = place_of("sweep", executor.folder)
        (place / "mine").mkdir(parents=True)
        place.chmod(0o700)
        with pytest.raises(RunFolderError, match="is no run folder, and is the place of the run 'sweep'"):
            goes_on(executor, abs, [1])
        (place / "mine").rename(place / "clients")
        assert [1] == goes_on(executor, abs, [1]).results()
        manifest = place / "manifest.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"name": "another"}))
        with pytest.raises(RunFolderError, match="is of the run 'another', and is the place of the run 'sweep'"):
            goes_on(executor, abs, [1])


@local
class TestCode:
    """What a line says of code that has changed."""

    def test_a_function(self, executor: Executor, capfd: pytest.CaptureFixture[str]) -> None:
        """A function that travels by value is compared with what it refers to; ``"strict"`` takes what is unchanged."""

        def make(step: int) -> Callable[[int], int]:
            return lambda item: item + step

        assert [2] == goes_on(executor, make(1), [1]).results()
        assert [2] == goes_on(executor, make(1), [1], resume="strict").results()
        assert "changed" not in capfd.readouterr().err
        assert [2, 4] == goes_on(executor, make(2), [1, 2]).results()
        said = capfd.readouterr().err
        assert re.search(
            r"1 of 2 items are done, 1 submitted now; step changed since \d\d:\d\d: results from before are kept, "
            r"another name= runs all items again\n",
            said,
        )
        with pytest.raises(OptionError, match=r"resume: step changed since .*another name= runs all items again"):
            goes_on(executor, make(2), [1, 2], resume="strict")
        assert [4] == goes_on(executor, make(2), [2], resume="strict").results()

    def test_a_module(
        self, executor: Executor, beside: Callable[[str], Any], capfd: pytest.CaptureFixture[str]
    ) -> None:
        """Modules are compared by their source; results of several versions stay known as such."""
        module = beside("def run(item):\n    return item + 1\n")
        goes_on(executor, module.run, [1])
        module = beside("def run(item):\n    return item + 22\n")

        assert [2, 24] == goes_on(executor, module.run, [1, 2]).results()
        assert re.search(r"lies_beside.py changed since \d\d:\d\d \(line 2\): results", capfd.readouterr().err)
        with pytest.raises(OptionError, match=r"lies_beside.py changed since"):
            goes_on(executor, module.run, [1, 2], resume="strict")

    def test_a_function_that_does_not_load(
        self, executor: Executor, beside: Callable[[str], Any], capfd: pytest.CaptureFixture[str]
    ) -> None:
        """A stored function that does not load here has changed; its results are kept."""
        module = beside("def run(item):\n    return item + 1\n")
        run = goes_on(executor, module.run, [1])
        (run.folder / "function").write_bytes(b"damaged")

        assert [2] == goes_on(executor, module.run, [1]).results()
        assert re.search(r"the function of \d\d:\d\d does not load here \(NodeStartError: ", capfd.readouterr().err)
