"""Failures in the user's function, on every backend: they reach the client unchanged."""

from __future__ import annotations

import concurrent.futures
import os
import pickle
import re
import shutil
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch import FunctionExited, ResultLost, TaskState, TimeLimitExceeded, UnpicklableResult, WorkerDied, attach
from tests.conftest import elsewhere
from tests.support.deeds import DEEDS, HoldsLockError, MuteError, TwoArgumentsError, Unloadable
from tests.support.frames import own_frames
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slurmlaunch import Executor, Future, FutureArray
    from tests.conftest import ExecutorFactory
    from tests.support.waiting import Gate

Deeds = dict[str, "Future[Any]"]


@pytest.fixture(scope="module")
def done_deeds() -> dict[str, tuple[Deeds, FutureArray[Any]]]:
    """Cache the run of `deeds` for each backend."""
    return {}


@pytest.fixture
def deeds(
    backend: str,
    done_deeds: dict[str, tuple[Deeds, FutureArray[Any]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Deeds:
    """Return the futures of all deeds, done in one run of two tasks; the same for all tests of a backend."""
    from slurmlaunch import Executor

    if backend not in done_deeds:
        with Executor(tmp_path_factory.mktemp(backend), cluster=backend) as executor:
            array = executor.map_array(lambda deed: deed(), DEEDS.values(), tasks=2)
        done_deeds[backend] = dict(zip(DEEDS, array, strict=True)), array
    return done_deeds[backend][0]


def failure(future: Future[Any], expected: type[BaseException]) -> Any:
    """Return the exception of a future, and check its exact class."""
    error = future.exception()
    assert expected is type(error)
    with pytest.raises(expected) as caught:
        future.result()
    assert caught.value is error
    return error


class TestExceptions:
    """Exceptions that the function raises."""

    def test_others(self, deeds: Deeds) -> None:
        """Failing items do not affect the values of earlier and later items."""
        assert [1, 2] == [deeds["value"].result(), deeds["last value"].result()]

    def test_plain(self, deeds: Deeds) -> None:
        """An exception arrives with its class and its arguments."""
        assert ("a", 1) == failure(deeds["plain"], ValueError).args

    def test_remote_traceback(self, deeds: Deeds) -> None:
        """The cause is the remote traceback, which begins in the user's code and shows none of slurmlaunch's frames."""
        text = str(failure(deeds["plain"], ValueError).__cause__)

        assert "in throw\n    raise error\n" in text
        assert text.rstrip(' \n"').endswith("ValueError: ('a', 1)")
        assert own_frames(text) == []

    @pytest.mark.parametrize(
        ("deed", "expected"),
        [
            ("os", (FileNotFoundError, 2, "/no/such/file")),
            ("unicode", (UnicodeDecodeError, "utf-8", 0)),
            ("two arguments", (TwoArgumentsError, 1, "two")),
        ],
    )
    def test_attributes(self, deeds: Deeds, deed: str, expected: tuple[Any, ...]) -> None:
        """An exception keeps its class and attributes, also if its class takes unusual arguments."""
        error = failure(deeds[deed], expected[0])
        names = {"os": ("errno", "filename"), "unicode": ("encoding", "start"), "two arguments": ("number", "word")}

        assert expected[1:] == tuple(getattr(error, name) for name in names[deed])

    def test_unpicklable_attribute(self, deeds: Deeds) -> None:
        """An attribute of an exception that does not pickle becomes its repr; the others arrive unchanged."""
        error = failure(deeds["lock"], HoldsLockError)

        assert (("locked",), 1) == (error.args, error.kept)
        assert "lock" in error.lock
        assert "Mute object" in error.mute

    def test_mute(self, deeds: Deeds) -> None:
        """An exception that cannot be printed arrives all the same."""
        assert () == failure(deeds["mute"], MuteError).args

    def test_chain(self, deeds: Deeds) -> None:
        """The traceback shows the exception's cause, and its notes are kept."""
        text = str(failure(deeds["chain"], ValueError).__cause__)
        assert "KeyError: 'missing'" in text
        assert "direct cause" in text
        assert failure(deeds["note"], ValueError).__notes__[0] == "a note of the user's"

    @pytest.mark.parametrize(
        ("deed", "expected", "arguments"),
        [
            ("interrupt", KeyboardInterrupt, ()),
            ("stop", StopIteration, (1,)),
            ("generator exit", GeneratorExit, ()),
            ("cancelled", concurrent.futures.CancelledError, ()),
            ("timeout", concurrent.futures.TimeoutError, ()),
        ],
    )
    def test_odd_classes(self, deeds: Deeds, deed: str, expected: type[BaseException], arguments: tuple[Any]) -> None:
        """Exceptions such as SystemExit or CancelledError are outcomes too, and end nothing else."""
        assert arguments == failure(deeds[deed], expected).args
        assert (True, False) == (deeds[deed].done(), deeds[deed].cancelled())

    @pytest.mark.parametrize(("deed", "code"), [("exit 3", 3), ("exit with words", "words")])
    def test_exit(self, deeds: Deeds, deed: str, code: object) -> None:
        """A function that calls sys.exit() fails with the code and the traceback, and does not end the client."""
        error = failure(deeds[deed], FunctionExited)

        assert (code, deeds[deed].index) == (error.code, error.item)
        assert f"sys.exit({code!r})" in str(error)
        assert "SystemExit" in str(error.__cause__)

    def test_recursion(self, deeds: Deeds) -> None:
        """A traceback of a thousand frames arrives shortened."""
        text = str(failure(deeds["recursion"], RecursionError).__cause__)

        assert "Previous line repeated" in text

    def test_huge(self, deeds: Deeds) -> None:
        """A very long exception arrives whole."""
        assert 5_000_000 == len(failure(deeds["huge exception"], ValueError).args[0])

    def test_group(self, deeds: Deeds) -> None:
        """A group of exceptions keeps its members."""
        error: Any = deeds["group"].exception()
        plain, two_arguments = error.exceptions

        assert ("ExceptionGroup", "both") == (type(error).__name__, error.message)
        assert (ValueError, (1,)) == (type(plain), plain.args)
        assert (TwoArgumentsError, "in it") == (type(two_arguments), two_arguments.word)

    def test_local_class(self, executor: Executor) -> None:
        """An exception whose class was pickled with the function has that very class at the client."""

        class LocalError(Exception):
            pass

        def fail() -> None:
            raise LocalError(1)

        assert (1,) == failure(executor.submit(fail), LocalError).args


class TestResults:
    """Values that the function returns."""

    @pytest.mark.parametrize(
        ("deed", "type_name"), [("unpicklable result", "builtins.list"), ("generator", "builtins.generator")]
    )
    def test_unpicklable(self, deeds: Deeds, deed: str, type_name: str) -> None:
        """A result that does not pickle is an error that names its type and the remedy."""
        error = failure(deeds[deed], UnpicklableResult)

        assert (type_name, deeds[deed].index, deeds[deed].job_id) == (error.type_name, error.item, error.job_id)
        assert type_name in str(error)
        assert "Return plain data" in str(error)

    def test_unloadable(self, deeds: Deeds) -> None:
        """A result that does not unpickle at the client is an error with its own type, and a cause."""
        error = failure(deeds["unloadable result"], UnpicklableResult)

        assert isinstance(error.__cause__, ValueError)
        assert deeds["unloadable result"].index == error.item

    def test_huge(self, deeds: Deeds) -> None:
        """A large result arrives."""
        assert b"x" * 50_000_000 == deeds["huge result"].result()

    def test_class_of_there(self, deeds: Deeds) -> None:
        """An object whose class was created in the task arrives with its class."""
        assert "made there" == deeds["class of there"].result().word


def test_errors_pickle(deeds: Deeds) -> None:
    """The errors of slurmlaunch keep their data when they are pickled, including item, task, log and advice."""
    error: Any = deeds["unpicklable result"].exception()
    again = pickle.loads(pickle.dumps(error))

    assert (type(error), str(error), error.place) == (type(again), str(again), again.place)


@elsewhere
class TestDeaths:
    """Signals, crashes and exits that end the process of an item."""

    def test_deaths(self, executor: Executor) -> None:
        """A death fails only the item that ran; the error names the signal or the exit status."""
        deaths: dict[int, Callable[[], object]] = {
            1: lambda: os._exit(7),
            3: lambda: os.kill(os.getpid(), signal.SIGKILL),
            4: lambda: os.kill(os.getpid(), signal.SIGSEGV),
            6: os.abort,
            9: lambda: os._exit(0),
            10: lambda: os.kill(os.getpid(), signal.SIGXCPU),
        }
        array = executor.map_array(lambda i: deaths.get(i, lambda: i)(), range(12), tasks=1)
        results = array.results(return_exceptions=True)

        assert [i for i in range(12) if i not in deaths] == [each for each in results if isinstance(each, int)]
        errors: dict[int, Any] = {i: results[i] for i in deaths}
        assert {WorkerDied} == set(map(type, errors.values()))
        expected = {1: (None, 7), 3: (9, None), 4: (11, None), 6: (6, None), 9: (None, 0), 10: (24, None)}
        assert expected == {i: (error.signal, error.exit_code) for i, error in errors.items()}
        words = ["exit status 7", "SIGKILL (9)", "SIGSEGV (11)", "SIGABRT (6)", "exit status 0", "`ulimit -t`"]
        assert all(word in str(errors[i]) for i, word in zip(deaths, words, strict=True))

    def test_place(self, executor: Executor) -> None:
        """The error names the item, the task, the job and the log."""
        array = executor.map_array(lambda i: os._exit(1) if i == 2 else os.write(2, b"alive\n"), range(3), tasks=2)
        error: Any = array[2].exception()

        assert (2, 1, array[2].job_id) == (error.item, error.task, error.job_id)
        assert f"(item 2, task 1, job {array[2].job_id}" in str(error)
        assert f"log: {error.log}" in str(error)
        assert (6, 6) == (array[0].result(), array[1].result())
        assert ("alive\n", "alive\nalive\n") == (array[0].stderr(), array.logs(0))

    def test_processes_beside(self, make_executor: ExecutorFactory) -> None:
        """Items in other processes of the same task continue."""
        executor = make_executor(cpus_per_task=2, processes=2)
        array = executor.map_array(lambda i: os._exit(1) if i == 0 else i, range(6), tasks=1)

        assert [1, 2, 3, 4, 5] == array[1:].results()
        assert isinstance(array[0].exception(), WorkerDied)

    def test_every_item(self, executor: Executor) -> None:
        """If every item kills its process, each has its own error, and the task ends."""
        array = executor.map_array(os._exit, range(4), tasks=1)
        errors: Iterator[Any] = (future.exception() for future in array)

        assert [(i, i) for i in range(4)] == [(error.item, error.exit_code) for error in errors]


@elsewhere
def test_folder_is_gone(executor: Executor, gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """If the run folder is removed, unread outcomes are lost, and no waiter blocks for ever."""
    array = executor.map_array(gate.enter, "ab", tasks=1)
    gate.await_arrival("a")
    shutil.rmtree(array.folder)

    errors: list[Any] = array.results(timeout=90, return_exceptions=True)
    assert [ResultLost, ResultLost] == [type(error) for error in errors]
    assert f"the run folder is gone: {array.folder}" in str(errors[0])
    assert f"cannot look into {array.folder}" in caplog.text


def test_function_that_does_not_load(executor: Executor) -> None:
    """A function that does not unpickle on the node fails its items with the reason."""

    class Unwelcome:
        def __reduce__(self) -> tuple[Any, ...]:
            return __import__, ("no_such_package.inside",)

        def __call__(self, *_: object) -> None:
            """Never run."""

    array = executor.map_array(Unwelcome(), range(3), tasks=2)
    errors: list[Any] = [future.exception() for future in array]

    assert ["NodeStartError"] * 3 == [type(error).__name__ for error in errors]
    assert [0, 1, 2] == [error.item for error in errors]
    assert all("no_such_package" in str(error) for error in errors)


def test_arguments_that_do_not_load(executor: Executor) -> None:
    """Arguments that cannot be unpickled fail their item alone."""
    array = executor.map_array(lambda x: x, [1, Unloadable(), 3], tasks=1)

    assert (1, ValueError, 3) == (array[0].result(), type(array[1].exception()), array[2].result())


def test_attempts_of_items_that_share_a_task(executor: Executor) -> None:
    """An attempt failed for the item that raised, and completed for the items of its task that returned."""
    array = executor.map_array(lambda i: 1 // (i - 1), range(3), tasks=1)
    array.wait()

    states = [TaskState.COMPLETED, TaskState.FAILED, TaskState.COMPLETED]
    assert states == [future.attempts[-1].state for future in array]
    wait_until(lambda: array[0].attempts[0].exit_code is not None)  # the end mark comes after the outcomes
    assert states == [future.attempts[-1].state for future in array]


def test_attempts(executor: Executor) -> None:
    """Every backend reports the end of each attempt, over retries, and to another process too."""
    array = executor.map_array(lambda i: 1 // i, range(2), tasks=2)
    array.wait()
    failed, fine = array
    # The end marks come after the outcomes.
    wait_until(lambda: all(future.attempts[0].exit_code is not None for future in array))
    for future, state, status in ((failed, TaskState.FAILED, 1), (fine, TaskState.COMPLETED, 0)):
        (attempt,) = future.attempts
        assert (state, status, future.job_id) == (attempt.state, attempt.exit_code, attempt.job_id)
        assert attempt.node
        assert attempt.duration is not None
    again = array.retry()
    again.wait()
    assert [2, 1] == [len(future.attempts) for future in again]
    assert [again[0].attempts[0], *fine.attempts] == [future.attempts[0] for future in attach(array.folder)]


@pytest.mark.parametrize("backend", ["local"], indirect=True)
def test_time_limit(make_executor: ExecutorFactory) -> None:
    """The error of an item that takes too long names the limit, how far the task came, and the line with more time."""
    error = make_executor(time="1s", max_time="1s").map_array(time.sleep, [0, 600], tasks=1)[1].exception()

    assert isinstance(error, TimeLimitExceeded)
    assert error.limit == 1.0
    assert "the time limit of 0:00:01 was hit" in str(error)
    assert ".retry(time=...)" in str(error)
    assert re.search("[01] of the task's 2 items (was|were) done by then", str(error))
    assert "sleep(600)" in error.__notes__[-1]
    assert error.__notes__[-1].endswith(".retry(time='0:02')")
