"""A retry by a person: what runs again, and which function runs."""

from __future__ import annotations

import functools
import importlib
import os
import pickle
import random
import re
import signal
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from slurmlaunch import NotPicklable, OptionError, attach, current_task
from slurmlaunch.client.code import ModuleChanged
from slurmlaunch.runfolder.buffers import SHARED
from slurmlaunch.runfolder.layout import Manifest, RunFolder
from slurmlaunch.runfolder.records import Entry, Kind, RecordWriter
from tests.conftest import elsewhere
from tests.support import scripts
from tests.support.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from slurmlaunch import Executor, FutureArray
    from tests.conftest import ExecutorFactory


def reciprocals(executor: Executor, **options: Any) -> FutureArray[float]:
    """Return a finished run of four items, of which 0 and 2 fail."""

    def reciprocal(number: int) -> float:
        return 1 / (number % 2)

    array = executor.map_array(reciprocal, range(4), tasks=2, **options)
    array.wait(PATIENCE)
    return array


def notes_of(error: BaseException | None) -> str:
    """Return the notes on an error."""
    return "\n".join(getattr(error, "__notes__", ()))


class TestAnotherFunction:
    """``retry(fn)`` runs another function for what is missing."""

    def test_what_failed_runs_again_by_it(self, executor: Executor) -> None:
        """The items that failed run by the new function, the others stay; every process sees the same."""
        array = reciprocals(executor)

        again = array.retry(lambda number: number + 0.5)

        assert [0.5, 1.0, 2.5, 1.0] == again.results(PATIENCE)
        assert again.results() == attach(array.folder).results() == pickle.loads(pickle.dumps(again)).results()
        states = [[attempt.state.value for attempt in future.attempts] for future in again]
        assert [["FAILED", "COMPLETED"], ["COMPLETED"]] * 2 == states
        assert isinstance(array[0].exception(), ZeroDivisionError)

    def test_it_stays_for_further_retries(self, executor: Executor) -> None:
        """A retry without a function runs the one that was given last."""
        array = reciprocals(executor)

        def second(number: int) -> float:
            raise LookupError(number)

        array = array.retry(second)
        array.wait(PATIENCE)
        array = array.retry()

        assert [LookupError, float, LookupError, float] == [
            type(each) for each in array.results(PATIENCE, return_exceptions=True)
        ]
        assert [0.0, 1.0, -2.0, 1.0] == array.retry(lambda number: -float(number)).results(PATIENCE)

    def test_a_part(self, executor: Executor) -> None:
        """A retry of a slice runs the function for its items only."""
        again = reciprocals(executor)[:2].retry(float)

        assert [0.0, 1.0] == again.results(PATIENCE)
        assert isinstance(attach(again.folder)[2].exception(PATIENCE), ZeroDivisionError)

    def test_a_dynamic_schedule(self, executor: Executor) -> None:
        """The tasks of a dynamic round run the new function, too."""
        assert [0.0, 1.0, 2.0, 1.0] == reciprocals(executor, schedule="dynamic").retry(float).results(PATIENCE)

    def test_a_single_call(self, executor: Executor) -> None:
        """The new function gets the arguments of `submit`."""

        def fail(*args: Any, **kwargs: Any) -> Any:
            raise LookupError

        future = executor.submit(functools.partial(fail, "own"), 1, second="b")
        future.exception(PATIENCE)

        again = future.run.retry(lambda *args, **kwargs: (args, kwargs))

        assert ((1,), {"second": "b"}) == again[0].result(PATIENCE)

    def test_a_generator(self, executor: Executor) -> None:
        """The new function's warnings point to the caller."""
        generator = random.Random(1)

        with pytest.warns(UserWarning, match="random generator") as caught:
            reciprocals(executor).retry(lambda number: number + generator.random()).wait(PATIENCE)

        assert __file__ == caught[0].filename

    def test_arguments_in_common(self, executor: Executor) -> None:
        """The new function gets the keyword arguments that all items have in common."""
        array = executor.map_array(lambda number, *, divisor: number / divisor, range(2), kwargs={"divisor": 0})
        array.wait(PATIENCE)

        assert [0, 1] == array.retry(lambda number, *, divisor: number + divisor).results(PATIENCE)

    def test_a_call_without_arguments(self, executor: Executor) -> None:
        """A partial that was submitted is replaced as a whole."""
        future = executor.submit(functools.partial(int, "x"))
        future.exception(PATIENCE)

        assert [3] == future.run.retry(functools.partial(int, "3")).results(PATIENCE)

    def test_large_arrays(self, executor: Executor) -> None:
        """The new function has large arrays of its own; those of a single call's arguments stay."""
        before, field = np.zeros(SHARED), np.ones(SHARED)
        future = executor.submit(lambda array: array[-1:] // "", before)
        future.exception(PATIENCE)

        again = future.run.retry(lambda array: float(array.sum() + field.sum()))

        assert [SHARED] == again.results(PATIENCE)

    @elsewhere
    def test_automatic_retries(self, make_executor: ExecutorFactory, tmp_path: Path) -> None:
        """``retries=`` runs the function that was given last."""
        mark = str(tmp_path / "mark")

        def die_once(number: int) -> float:
            if not os.path.exists(mark):  # noqa: PTH110
                open(mark, "w").close()  # noqa: PTH123
                os.kill(os.getpid(), signal.SIGKILL)
            return number + 0.5

        array = reciprocals(make_executor(retries=1))

        assert [0.5, 1.0, 2.5, 1.0] == array.retry(die_once).results(PATIENCE)

    @pytest.mark.parametrize("backend", ["local"], indirect=True)
    def test_checkpoints(self, executor: Executor) -> None:
        """The new function does not resume what the other one began; the same one does."""

        class Resuming:
            def __call__(self, item: int) -> int:
                if item == 0:
                    raise LookupError(item)
                return item

            def checkpoint(self, _: int) -> None:
                """Return no checkpoint: that of item 0 is written below."""

        for functions, value in (((), 7.0), ((Resuming(),), LookupError)):
            array = executor.map_array(Resuming(), range(1))
            array.wait(PATIENCE)
            folder = RunFolder(array.folder)
            Manifest.read(folder)
            with RecordWriter(folder.outcome_file(0, 0), salt=folder.salt, flags=0) as file:
                file.append(Entry.of(Kind.CHECKPOINT, [pickle.dumps((float, (7,), {}))], first=0, number=1))
            again = attach(array.folder).retry(*functions)
            result = again.results(PATIENCE, return_exceptions=True)[0]
            assert value in (result, type(result))

    @elsewhere
    def test_ranks(self, make_executor: ExecutorFactory) -> None:
        """All ranks of a task call the new function."""

        def fail(item: int) -> Any:
            raise LookupError(item)

        array = make_executor(ntasks=2).map_array(fail, range(1))
        array.wait(PATIENCE)
        again = array.retry(lambda item: (item, current_task().rank))

        assert [(0, 0), (0, 1)] == again[0].ranks(PATIENCE)

    def test_by_value(self, make_executor: ExecutorFactory, beside: Callable[[str], Any]) -> None:
        """The modules of ``by_value=`` travel with the new function, too."""
        module = beside("def double(x): return 2 * x\ndef fail(x): raise LookupError(x)\n")
        array = make_executor(by_value=[module]).map_array(module.fail, range(2))
        array.wait(PATIENCE)

        assert [0, 2] == array.retry(module.double).results(PATIENCE)

    @pytest.mark.parametrize("function", [3, "reciprocal"])
    def test_no_function(self, finished: FutureArray[int], function: Any) -> None:
        """What cannot be called is refused, whatever is missing."""
        with pytest.raises(TypeError, match="not callable"):
            finished.retry(function)
        with pytest.raises(TypeError, match="not callable"):
            finished[:1].retry(function)

    def test_one_that_does_not_pickle(self, executor: Executor) -> None:
        """A function that does not pickle is refused, and the run is as it was."""
        array = reciprocals(executor)
        lock = threading.Lock()

        with pytest.raises(NotPicklable, match="lock"):
            array.retry(lambda number: number + lock.locked())

        assert ["0"] == os.listdir(array.folder / "rounds")  # noqa: PTH208


class TestTheSameFunction:
    """A retry without a function runs the stored one; where that came by value, a renewed failure says so."""

    def test_a_function_of_the_script(self, executor: Executor) -> None:
        """The note says which function ran, and what runs another; a first failure has no such note."""
        array = reciprocals(executor)
        again = array.retry()

        assert "ran the function as it was submitted at 20" in notes_of(again[0].exception(PATIENCE))
        assert "retry(fn) runs another" in notes_of(again[2].exception(PATIENCE))
        assert "retry(fn)" not in notes_of(array[0].exception())

    def test_another_function(self, executor: Executor) -> None:
        """The failure of a function that was just given has no such note."""
        again = reciprocals(executor).retry(lambda number: 1 / (number % 2))

        assert "retry(fn)" not in notes_of(again[0].exception(PATIENCE))

    def test_a_function_of_a_module(self, executor: Executor, beside: Callable[[str], Any]) -> None:
        """The failure of a function that the node imports has no such note."""
        module = beside("class A:\n    def __call__(self, x): raise LookupError(x)\n    def fail(self, x): self(x)\n")
        for function in (module.A(), module.A().fail, functools.partial(module.A().fail)):
            array = executor.map_array(function, range(1))
            array.wait(PATIENCE)
            error = array.retry()[0].exception(PATIENCE)
            assert isinstance(error, LookupError)
            assert "retry(fn)" not in notes_of(error)


OLD = "import os\ndef work(x):\n    raise LookupError(x)\ndef place(x):\n    raise KeyError(os.environ.get('PLACE'))\n"
NEW = OLD.replace("raise LookupError(x)", "return x + 100")


class TestTheCode:
    """A retry runs the user's modules and the environment of now, or those of the submission."""

    pytestmark = pytest.mark.parametrize("backend", ["local"], indirect=True)

    def edit(self, module: Any, text: str) -> None:
        """Edit a module's file, without importing it again."""
        Path(module.__file__).write_text(text, encoding="utf-8")

    def test_of_now(self, executor: Executor, beside: Callable[[str], Any], capsys: pytest.CaptureFixture[str]) -> None:
        """A plain retry runs the edited module, and a line says what changed; each attempt tells its code."""
        module = beside(OLD)
        array = executor.map_array(module.work, range(2))
        array.wait(PATIENCE)
        self.edit(module, NEW)
        capsys.readouterr()

        again = array.retry()

        assert [100, 101] == again.results(PATIENCE)
        assert re.fullmatch(
            r"slurmlaunch: 2 items; lies_beside\.py changed since \d\d:\d\d \(line 3\)\n", capsys.readouterr().err
        )
        first, second = (attempt.code for attempt in again[0].attempts)
        assert first is not None
        assert second is not None
        assert first == array.code
        assert second == again.code
        assert first.modules["lies_beside"] != second.modules["lies_beside"]
        assert first.recorded < second.recorded

    def test_of_the_submission(
        self, executor: Executor, beside: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A retry runs the module as it was at the submission, also after another that did not."""
        module = beside(NEW.replace("x + 100", "x / 0"))
        array = executor.map_array(module.work, range(1))
        array.wait(PATIENCE)
        self.edit(module, OLD)
        array = array.retry()
        assert isinstance(array[0].exception(PATIENCE), LookupError)
        capsys.readouterr()

        array = array.retry(code="submitted")

        assert isinstance(array[0].exception(PATIENCE), ZeroDivisionError)
        assert "1 item; code and environment as submitted at" in capsys.readouterr().err
        codes = [attempt.code for attempt in array[0].attempts]
        assert codes[0] == codes[2] != codes[1]

    def test_the_functions_of_the_submission(self, executor: Executor) -> None:
        """The record includes the function."""
        array = reciprocals(executor).retry(lambda number: [][number])
        array.wait(PATIENCE)

        assert isinstance(array[0].exception(), IndexError)
        assert isinstance(array.retry(code="submitted")[0].exception(PATIENCE), ZeroDivisionError)

    def test_the_environment(
        self, executor: Executor, beside: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The variables are the caller's, or those of the submission."""
        module = beside(OLD)
        monkeypatch.setenv("PLACE", "before")
        array = executor.map_array(module.place, range(1))
        assert array[0].exception(PATIENCE).args == ("before",)  # type: ignore[union-attr]
        monkeypatch.setenv("PLACE", "after")
        array = array.retry()
        assert array[0].exception(PATIENCE).args == ("after",)  # type: ignore[union-attr]
        array = array.retry(code="submitted")
        assert array[0].exception(PATIENCE).args == ("before",)  # type: ignore[union-attr]

    def test_a_run_without_a_recorded_environment(self, executor: Executor, capsys: pytest.CaptureFixture[str]) -> None:
        """The line about a retry of a run of 0.1.0 does not promise the environment of its submission."""
        array = reciprocals(executor)
        (array.folder / "environment").unlink()

        array.retry(code="submitted").wait(PATIENCE)

        assert re.search(
            r"2 items; function as submitted at .*; no environment was recorded\n", capsys.readouterr().err
        )

    def test_secrets_beside_the_environment_of_the_submission(
        self, executor: Executor, beside: Callable[[str], Any]
    ) -> None:
        """A secret that a retry adds reaches it and the next one, and no file, also with the recorded environment."""
        module = beside(OLD)
        array = executor.options(env_secret=["PLACE"]).map_array(module.place, range(1))
        array.wait(PATIENCE)
        for changes in ({"env": {"PLACE": "hidden place"}}, {}):
            array = array.retry(code="submitted", **changes)
            assert array[0].exception(PATIENCE).args == ("hidden place",)  # type: ignore[union-attr]

        files = [path.read_bytes() for path in (array.folder / "rounds").glob("*/*") if path.is_file()]
        assert not any(b"hidden place" in content for content in files)

    @pytest.mark.parametrize("reload", [False, True])
    def test_another_function(self, executor: Executor, beside: Callable[[str], Any], *, reload: bool) -> None:
        """A function of a module is that of the file, whether or not it was imported again."""
        module = beside(OLD)
        array = executor.map_array(module.work, range(2))
        array.wait(PATIENCE)
        self.edit(module, NEW)
        with nullcontext() if reload else pytest.warns(ModuleChanged, match=r"lies_beside\.py changed after"):
            again = array.retry(importlib.reload(module).work if reload else module.work)

        assert [100, 101] == again.results(PATIENCE)

    def test_another_process(self, executor: Executor, beside: Callable[[str], Any], tmp_path: Path) -> None:
        """A process that has imported nothing retries the modules of the run, in its own environment."""
        module = beside(OLD)
        array = executor.map_array(module.work, range(2))
        array.wait(PATIENCE)
        self.edit(module, NEW)

        text = f"import slurmlaunch\nprint(slurmlaunch.attach({str(array.folder)!r}).retry().results(60))"
        (tmp_path / "elsewhere").mkdir()

        assert scripts.run(tmp_path / "elsewhere", text) == "[100, 101]\n"
        assert attach(array.folder).code.modules.keys() == array.code.modules.keys()

    def test_attach(self, executor: Executor, beside: Callable[[str], Any], capsys: pytest.CaptureFixture[str]) -> None:
        """The first `attach` in a process says which modules have changed."""
        module = beside(NEW)
        array = executor.map_array(module.work, range(1))
        array.wait(PATIENCE)
        attach(array.folder)
        assert capsys.readouterr().err == ""
        self.edit(module, OLD)

        attach(array.folder)
        attach(array.folder)

        (line,) = capsys.readouterr().err.splitlines()
        assert re.fullmatch(r"slurmlaunch: lies_beside\.py changed since \d\d:\d\d \(line 3\)", line)

    def test_a_result_whose_module_is_gone(
        self, executor: Executor, beside: Callable[[str], Any], tmp_path: Path
    ) -> None:
        """The error about a result that needs a module says what became of it."""
        module = beside("class A: pass\ndef work(x): return A()\n")
        array = executor.map_array(module.work, range(1))
        array.wait(PATIENCE)
        Path(module.__file__).unlink()

        text = f"import slurmlaunch\nprint(slurmlaunch.attach({str(array.folder)!r})[0].exception(60).__notes__)"

        assert "lies_beside.py was deleted since" in scripts.run(tmp_path, text)

    @pytest.mark.parametrize("late", [False, True])
    @pytest.mark.parametrize("gone", [False, True])
    def test_a_module_that_is_gone(
        self, executor: Executor, beside: Callable[[str], Any], *, late: bool, gone: bool
    ) -> None:
        """The error of a retry names the way to run a module that is gone, or lacks what it had, all the same."""
        module = beside("def work(x):\n    return 1 / x\n")

        def call(x: int) -> float:
            import lies_beside  # type: ignore[import-not-found]

            found: float = lies_beside.work(x)
            return found

        array = executor.map_array(call if late else module.work, [0])
        array.wait(PATIENCE)
        if gone:
            Path(module.__file__).unlink()
        else:
            Path(module.__file__).write_text("def other(x):\n    return 1 / x\n", encoding="utf-8")

        again = array.retry()

        notes = notes_of(again[0].exception(PATIENCE))
        assert 'the run has lies_beside as it was submitted: retry(code="submitted") runs that' in notes
        assert isinstance(again.retry(code="submitted")[0].exception(PATIENCE), ZeroDivisionError)

    def test_what_another_process_does_not_store(
        self, make_executor: ExecutorFactory, beside: Callable[[str], Any], tmp_path: Path
    ) -> None:
        """A retry by a process that has not imported them names the modules of which nothing is stored."""
        module = beside(OLD)
        array = make_executor(code="live").map_array(module.work, range(2))
        array.wait(PATIENCE)

        scripts.run(tmp_path, f"import slurmlaunch\nslurmlaunch.attach({str(array.folder)!r}).retry().wait(60)")

        assert "lies_beside" in array.code.live
        assert "lies_beside" in attach(array.folder).code.live

    def test_wrong_words(self, finished: FutureArray[int]) -> None:
        """Another word for the code is refused."""
        with pytest.raises(OptionError, match="'current' or 'submitted'"):
            finished.retry(code="old")


@pytest.mark.parametrize("backend", ["inline"], indirect=True)
def test_modules_of_inline_items(
    executor: Executor, beside: Callable[[str], Any], recwarn: pytest.WarningsRecorder
) -> None:
    """Items that run in this process run the module that it has imported, and no warning says otherwise."""
    module = beside(OLD)
    Path(module.__file__).write_text(NEW, encoding="utf-8")

    array = executor.map_array(module.work, range(1))
    again = array.retry(module.work)

    assert [LookupError] * 2 == [type(each[0].exception(PATIENCE)) for each in (array, again)]
    assert [] == [each for each in recwarn if each.category is ModuleChanged]
