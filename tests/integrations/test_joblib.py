"""joblib's calls on slurmlaunch: the registered name, few arrays, the same results, and nothing left running."""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import joblib
import pytest

import slurmlaunch
from slurmlaunch import Executor, NotPicklable, UnknownOption, WorkerDied, attach
from slurmlaunch.caps import usable_cpus
from tests.conftest import elsewhere, several_cpus
from tests.support import scripts
from tests.support.waiting import is_alive, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slurmlaunch import FutureArray
    from tests.conftest import ExecutorFactory
    from tests.support.waiting import Gate

locally = pytest.mark.parametrize("backend", ["local"], indirect=True)
"""For tests that do not depend on the backend."""


slurmlaunch.register_joblib()


def runs_of(executor: Executor) -> list[FutureArray[Any]]:
    """Return the runs of an executor."""
    return [attach(folder) for folder in sorted(executor.folder.iterdir())]


class TestName:
    """joblib knows the backend's name once it is registered, and needs no name for a backend object."""

    USES = (
        'with joblib.parallel_config(backend="slurmlaunch"):\n    print(joblib.Parallel()(calls()))',
        'print(joblib.Parallel(backend="slurmlaunch")(calls()))',
    )
    SCRIPT = """
import joblib
import slurmlaunch

def calls():
    return (joblib.delayed(abs)(number) for number in range(-2, 2))

"""

    @pytest.mark.slow
    @pytest.mark.parametrize("use", USES, ids=["config", "argument"])
    def test_registered(self, use: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The name works in a parallel_config and as an argument, also if it is registered twice."""
        monkeypatch.setenv("SLURMLAUNCH_CLUSTER", "local")
        text = self.SCRIPT + "slurmlaunch.register_joblib()\nslurmlaunch.register_joblib()\n" + use

        assert scripts.run(tmp_path, text).splitlines() == ["[2, 1, 0, 1]"]

    @pytest.mark.slow
    @pytest.mark.parametrize("use", USES, ids=["config", "argument"])
    def test_not_registered(self, use: str, tmp_path: Path) -> None:
        """Without a registration joblib raises its own error for an unknown backend."""
        text = self.SCRIPT + "try:\n    " + use.replace("\n", "\n    ") + "\nexcept (KeyError, ValueError) as error:"
        text += "\n    print('slurmlaunch' in str(error), type(error).__module__)"

        assert scripts.run(tmp_path, text) == "True builtins\n"

    def test_backend_of_an_executor(self, make_executor: ExecutorFactory) -> None:
        """An executor's own backend works without a registration, with the options of map_array."""
        executor = make_executor()
        with joblib.parallel_config(backend=executor.joblib_backend(tasks=2)):
            assert [0, 1, 2, 3] == joblib.Parallel()(joblib.delayed(abs)(-number) for number in range(4))

        (run,) = runs_of(executor)
        assert len({future.job_id for future in run}) == 2

    def test_joblib_is_left_alone(self) -> None:
        """To import slurmlaunch imports no joblib, changes no import and registers nothing."""
        program = """
import sys
before = list(sys.meta_path)
import slurmlaunch
print("joblib" in sys.modules, sys.meta_path == before)
import joblib
print("slurmlaunch" in joblib.parallel.BACKENDS, [name for name in sys.modules if name.startswith("slurmlaunch.")])
"""
        printed = subprocess.check_output([sys.executable, "-c", program], text=True)

        assert printed.splitlines() == ["False True", "False []"]

    @pytest.mark.parametrize(
        "use", ["slurmlaunch.register_joblib()", "slurmlaunch.Executor(cluster='inline').joblib_backend()"]
    )
    def test_without_joblib(self, use: str) -> None:
        """Without joblib, slurmlaunch can be imported, and its backend's error names the package to install."""
        program = f"""
import sys
sys.modules["joblib"] = None
import slurmlaunch
try:
    {use}
except slurmlaunch.MissingPackage as error:
    print(error)
"""
        printed = subprocess.check_output([sys.executable, "-c", program], text=True)

        assert printed == (
            f'joblib\'s backend "slurmlaunch" needs joblib>=1.4: install it with {sys.executable} '
            "-m pip install 'joblib>=1.4'\n"
        )


class TestHowMany:
    """The number of calls that run at once, as joblib and its callers query it."""

    def effective(self, executor: Executor, n_jobs: int | None, **options: Any) -> int:
        """Return joblib's own answer below a parallel_config."""
        with joblib.parallel_config(backend="slurmlaunch", executor=executor, **options):
            return int(joblib.effective_n_jobs(n_jobs))

    def test_on_a_cluster(self, tmp_path: Path) -> None:
        """On Slurm the throttle or the number of tasks decides, else a guess; never 1, which runs locally."""
        executor = Executor(tmp_path, cluster="slurm")

        assert self.effective(executor.options(throttle=5, processes=4), -1) == 20
        assert self.effective(executor.options(throttle=5, processes=4), -2) == 19
        assert self.effective(executor.options(throttle=1), -1) == 2
        assert self.effective(executor, -1) == self.effective(executor, None) == 100
        assert self.effective(executor, -1, tasks=7) == 7
        assert [self.effective(executor, number) for number in (1, 2, 300)] == [1, 2, 300]

    def test_on_this_machine(self, tmp_path: Path) -> None:
        """On this machine the CPUs decide."""
        executor = Executor(tmp_path, cluster="local")

        assert self.effective(executor, -1) == max(2, usable_cpus())
        assert self.effective(executor.options(cpus_per_task=2), -1) == max(2, usable_cpus() // 2 * 2)

    def test_of_a_list(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Joblib's message names at most as many workers as calls, and no number where their number is unknown."""
        executor = Executor(tmp_path, cluster="local")
        monkeypatch.setattr(Executor, "_max_workers", 200)  # as on a cluster
        calls = [joblib.delayed(abs)(-number) for number in range(4)]
        with joblib.parallel_config(backend="slurmlaunch", executor=executor, chunksize=4):
            joblib.Parallel(verbose=1)(calls)
            listed = capsys.readouterr().err
            joblib.Parallel(verbose=1)(iter(calls))
            streamed = capsys.readouterr().err

        assert "with 4 concurrent workers" in listed
        assert "with as many tasks as the calls need" in streamed
        assert "200" not in streamed

    def test_misplaced_options(self, tmp_path: Path) -> None:
        """An option of the executor is told where it belongs, in a parallel_config, a Parallel and a backend."""
        executor = Executor(tmp_path, cluster="local")
        told = pytest.raises(UnknownOption, match=r"executor=ex\.options\(time=\.\.\.\)")
        with told, joblib.parallel_config("slurmlaunch", time="1h"):
            pass
        with told:
            joblib.Parallel(backend="slurmlaunch", executor=executor, time="1h")([joblib.delayed(abs)(1)] * 2)
        with told:
            executor.joblib_backend(time="1h")

    def test_invalid_numbers_and_executors(self, tmp_path: Path) -> None:
        """None at all, and something that is no executor, are refused."""
        with pytest.raises(ValueError, match=r"n_jobs == 0 in Parallel has no meaning"):  # joblib's own words
            self.effective(Executor(tmp_path), 0)
        with (
            pytest.raises(TypeError, match=r"slurmlaunch\.Executor"),
            joblib.parallel_config("slurmlaunch", executor=4),
        ):
            pass
        with pytest.raises(TypeError, match="no_such"), joblib.parallel_config("slurmlaunch", no_such=4):
            pass


@elsewhere
class TestCalls:
    """Results and failures of calls."""

    def test_progress_that_cannot_be_printed(self, executor: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
        """If joblib's callback fails for one result, the others still arrive."""
        broken = [OSError("the terminal is gone")]

        def print_progress(_: joblib.Parallel) -> None:
            if broken:
                raise broken.pop()

        monkeypatch.setattr(joblib.Parallel, "print_progress", print_progress)
        with joblib.parallel_config(backend="slurmlaunch", executor=executor, tasks=1):
            assert [0, 1, 2] == joblib.Parallel(verbose=1)(joblib.delayed(abs)(number) for number in range(3))

    def test_one_array(self, executor: Executor) -> None:
        """A batch of dispatched calls is one array, whose items are the calls; results are in order."""
        with joblib.parallel_config(backend="slurmlaunch", executor=executor, tasks=3):
            found = joblib.Parallel()(joblib.delayed(divmod)(number, 7) for number in range(100))

        assert [divmod(number, 7) for number in range(100)] == found
        (run,) = runs_of(executor)
        assert (100, 1) == (len(run), len(run.job_ids))

    def test_keywords_of_parallel(self, executor: Executor) -> None:
        """Keywords of `Parallel` itself are used, too, and a misspelt one is refused."""
        parallel = joblib.Parallel(n_jobs=2, backend="slurmlaunch", executor=executor, tasks=1)
        assert [0, 2, 4] == parallel(joblib.delayed(int.__mul__)(number, 2) for number in range(3))
        assert 1 == len(runs_of(executor))
        with pytest.raises(TypeError, match="task"):
            joblib.Parallel(backend="slurmlaunch", task=1)(joblib.delayed(abs)(number) for number in range(3))

    def test_jobs_are_processes(self, make_executor: ExecutorFactory) -> None:
        """``n_jobs`` is the number of processes, in as few tasks as possible."""
        executor = make_executor(processes=2)
        with joblib.parallel_config(backend="slurmlaunch", executor=executor, n_jobs=3):
            found = joblib.Parallel()(
                joblib.delayed(lambda _: slurmlaunch.current_task().task)(number) for number in range(8)
            )

        assert [0] * 4 + [1] * 4 == found

    @several_cpus
    def test_generators(self, executor: Executor, gate: Gate) -> None:
        """With ``return_as`` results come as they are there, in order or not; two at a time do not mix."""
        calls = [joblib.delayed(gate.enter)(name) for name in "ab"]
        with joblib.parallel_config(backend="slurmlaunch", executor=executor, tasks=1):
            ordered = joblib.Parallel(return_as="generator")(calls)
            unordered = joblib.Parallel(return_as="generator_unordered")(joblib.delayed(abs)(-n) for n in range(3))
            gate.await_arrival("a")
            assert {0, 1, 2} == set(unordered)
            gate.open()

            assert ["a", "b"] == list(ordered)

    @several_cpus
    def test_the_fastest_comes_first(self, executor: Executor, gate: Gate) -> None:
        """An unordered generator yields each result once it is there: no call waits behind a slow one."""

        def run(number: int) -> int:
            if number == 0:
                gate.enter()
            return number

        calls = (joblib.delayed(run)(number) for number in range(6))
        with joblib.parallel_config(backend="slurmlaunch", executor=executor, n_jobs=2):
            found = joblib.Parallel(return_as="generator_unordered")(calls)
            first = {next(found) for _ in range(5)}
            gate.open()

        assert [{1, 2, 3, 4, 5}, 0] == [first, next(found)]

    def test_initializer(self, executor: Executor) -> None:
        """A function that joblib's caller names runs once in each process, before its calls."""

        def initialize(*values: int) -> None:
            os.environ["INITIALIZED"] = os.environ.get("INITIALIZED", "") + str(values)

        call = joblib.delayed(lambda: os.environ["INITIALIZED"])
        parallel = joblib.Parallel(
            backend="slurmlaunch", executor=executor, tasks=1, initializer=initialize, initargs=(1, 2)
        )

        assert ["(1, 2)"] * 3 == parallel(call() for _ in range(3))

    def test_async(self, executor: Executor) -> None:
        """An async function is told at the call to be wrapped."""

        async def wait() -> None: ...

        with (
            joblib.parallel_config(backend="slurmlaunch", executor=executor),
            pytest.raises(TypeError, match=r"asyncio\.run"),
        ):
            joblib.Parallel()(joblib.delayed(wait)() for _ in range(2))

    @several_cpus
    def test_errors_are_themselves(self, executor: Executor, gate: Gate) -> None:
        """The exception of a call is raised with the remote traceback as its cause; the other calls are cancelled."""

        def run(name: str) -> None:
            if name == "bad":
                gate.await_arrival("a")
                raise KeyError(name)
            gate.enter(name)

        calls = [joblib.delayed(run)(name) for name in ("a", "bad", "b")]
        with (
            joblib.parallel_config(backend="slurmlaunch", executor=executor.options(processes=2), tasks=1),
            pytest.raises(KeyError, match="bad") as caught,
        ):
            joblib.Parallel()(calls)

        assert "raise KeyError(name)" in str(caught.value.__cause__)
        (run_,) = runs_of(executor)
        assert (2, 1) == (run_.counts()["cancelled"], run_.counts()["failed"])
        wait_until(lambda: not is_alive(gate.process_of("a")))

    def test_a_death_is_reported(self, executor: Executor) -> None:
        """A call whose process dies has our error, which names the call."""
        with (
            joblib.parallel_config(backend="slurmlaunch", executor=executor),
            pytest.raises(WorkerDied, match="status 3"),
        ):
            joblib.Parallel()([joblib.delayed(os._exit)(3)])

    @pytest.mark.slow
    @pytest.mark.anywhere
    def test_grid_search(self, make_executor: ExecutorFactory) -> None:
        """A scikit-learn search runs unchanged, with the same result as with two local processes."""
        from sklearn.datasets import load_iris
        from sklearn.model_selection import GridSearchCV
        from sklearn.svm import SVC

        features, classes = load_iris(return_X_y=True)
        grid = {"C": [0.01, 1, 100], "kernel": ["linear", "rbf"]}
        here = GridSearchCV(SVC(), grid, n_jobs=2, cv=3).fit(features, classes)
        executor = make_executor(processes=2)

        with joblib.parallel_config(backend="slurmlaunch", executor=executor):
            there = GridSearchCV(SVC(), grid, n_jobs=2, cv=3).fit(features, classes)

        assert here.best_params_ == there.best_params_
        assert list(here.cv_results_["mean_test_score"]) == list(there.cv_results_["mean_test_score"])
        (run,) = runs_of(executor)
        assert (18, 1) == (len(run), len(run.job_ids))


@pytest.mark.parametrize("backend", ["inline"], indirect=True)
def test_inline_is_no_exception(executor: Executor) -> None:
    """On the inline backend the calls are pickled and run like elsewhere, in this process."""
    with joblib.parallel_config(backend="slurmlaunch", executor=executor):
        assert [os.getpid()] * 3 == joblib.Parallel()(joblib.delayed(os.getpid)() for _ in range(3))


@locally
@pytest.mark.anywhere
class TestWindows:
    """Which calls become a run."""

    def test_an_endless_supply_is_fed_by_windows(self, executor: Executor) -> None:
        """The user's pre_dispatch limits the submitted calls; unneeded ones are cancelled at the end."""
        taken = []

        def supply() -> Iterator[Any]:
            for number in itertools.count():
                taken.append(number)
                yield joblib.delayed(abs)(-number)

        with joblib.parallel_config(backend="slurmlaunch", executor=executor, n_jobs=2):
            results = joblib.Parallel(return_as="generator", pre_dispatch=8, batch_size=1)(supply())
            assert list(range(20)) == list(itertools.islice(results, 20))
            with pytest.warns(UserWarning, match="cancelled"):
                results.close()

        sizes = [len(run) for run in runs_of(executor)]
        assert max(sizes) <= 8  # fewer where a call comes late
        assert len(sizes) < len(taken) / 3
        assert not threads_of_ours()

    @pytest.mark.parametrize("given", ["2*n_jobs", "2 * n_jobs", "all"])
    def test_a_default_is_one_window(self, executor: Executor, given: str) -> None:
        """By default joblib and scikit-learn dispatch all calls ahead, as one run."""
        with joblib.parallel_config(backend="slurmlaunch", executor=executor, n_jobs=2):
            joblib.Parallel(pre_dispatch=given)(joblib.delayed(abs)(number) for number in range(30))

        assert [30] == [len(run) for run in runs_of(executor)]

    def test_a_slow_supply_holds_nothing_up(self, executor: Executor) -> None:
        """While the next call is still being made, other runs are watched."""

        def supply() -> Iterator[Any]:
            yield joblib.delayed(abs)(-1)
            yield joblib.delayed(abs)(-2)
            yield joblib.delayed(abs)(-3)  # dispatched ahead, so that one of the others is called back
            assert executor.submit(abs, -4).result(60) == 4
            yield joblib.delayed(abs)(-5)

        with joblib.parallel_config(backend="slurmlaunch", executor=executor, n_jobs=2):
            assert [1, 2, 3, 5] == joblib.Parallel(pre_dispatch=3, batch_size=1)(supply())

    def test_one_object_for_many_calls(self, executor: Executor) -> None:
        """An open `Parallel` runs one set of calls after the other, also after an error."""
        with (
            joblib.parallel_config(backend="slurmlaunch", executor=executor),
            joblib.Parallel(n_jobs=2) as parallel,
        ):
            assert [1, 2] == parallel(joblib.delayed(abs)(-number) for number in (1, 2))
            with pytest.raises(ZeroDivisionError):
                parallel([joblib.delayed(divmod)(1, 0)])
            assert [3] == parallel([joblib.delayed(abs)(-3)])
        assert not threads_of_ours()


@locally
@pytest.mark.anywhere
class TestWhatTravels:
    """Functions and arguments, on their way."""

    def test_shared_data_is_stored_once(self, executor: Executor) -> None:
        """Data that many calls share is in the run folder once."""
        data = bytes(200_000)
        closure = [data[1:]]
        with joblib.parallel_config(backend="slurmlaunch", executor=executor, tasks=2):
            found = joblib.Parallel()(
                joblib.delayed(lambda part, number, whole: len(part) + number + len(whole) + len(closure[0]))(
                    data, number, whole=closure
                )
                for number in range(50)
            )

        assert [400_000 + number for number in range(50)] == found
        (run,) = runs_of(executor)
        assert sum(path.stat().st_size for path in run.folder.rglob("*") if path.is_file()) < 1_500_000

    def test_each_call_has_a_copy(self, executor: Executor) -> None:
        """A call's changes to its arguments reach no other call; one object given twice is one object in the call."""
        shared: list[int] = []

        def append(first: list[int], second: list[int]) -> tuple[bool, int]:
            first.append(0)
            return first is second, len(second)

        with joblib.parallel_config(backend="slurmlaunch", executor=executor, tasks=1):
            found = joblib.Parallel()(joblib.delayed(append)(shared, shared) for _ in range(5))

        assert [(True, 1)] * 5 == found

    def test_modules_that_travel(self, make_executor: ExecutorFactory, beside: Callable[[str], Any]) -> None:
        """``by_value=`` applies to joblib's calls."""
        module = beside("def double(number): return 2 * number")
        Path(module.__file__).unlink()

        with joblib.parallel_config(backend="slurmlaunch", executor=make_executor(by_value=module)):
            assert [0, 2, 4] == joblib.Parallel()(joblib.delayed(module.double)(number) for number in range(3))

    def test_a_node_needs_no_client(self, executor: Executor) -> None:
        """Where a call runs, nothing is imported for it that only a client needs."""
        with joblib.parallel_config(backend="slurmlaunch", executor=executor):
            (found,) = joblib.Parallel()([joblib.delayed(lambda: [*sys.modules])()])

        assert {"slurmlaunch.client", "slurmlaunch.backends", "distributed"} & {*found} == set()
        assert "slurmlaunch.integrations.joblib" in found

    def test_unpicklable_parts_are_named(self, executor: Executor) -> None:
        """Nothing is submitted, and the error names the culprit."""
        with (
            joblib.parallel_config(backend="slurmlaunch", executor=executor),
            pytest.raises(NotPicklable, match="lock"),
        ):
            joblib.Parallel()(joblib.delayed(print)(number, threading.Lock()) for number in range(3))
        assert runs_of(executor) == []

    def test_refusals_are_raised(self, executor: Executor) -> None:
        """The error of an executor that is shut down reaches the caller through joblib."""
        executor.shutdown()
        with (
            joblib.parallel_config(backend="slurmlaunch", executor=executor),
            pytest.raises(RuntimeError, match="after shutdown"),
        ):
            joblib.Parallel()([joblib.delayed(abs)(1)])

    def test_nested_calls_stay_in_their_task(self, make_executor: ExecutorFactory) -> None:
        """A `Parallel` inside a call uses threads, as many as the item has CPUs."""

        def inner() -> tuple[int, set[str]]:
            names = joblib.Parallel(n_jobs=-1)(
                joblib.delayed(lambda: threading.current_thread().name)() for _ in range(3)
            )
            return int(joblib.effective_n_jobs(-1)), {name.partition("-")[0] for name in names}

        def ask(**options: Any) -> tuple[int, set[str]]:
            found: tuple[int, set[str]]
            with joblib.parallel_config(backend="slurmlaunch", executor=make_executor(**options)):
                (found,) = joblib.Parallel()([joblib.delayed(inner)()])
            return found

        assert (1, {"MainThread"}) == ask()
        if usable_cpus() > 1:
            assert (2, {"Thread"}) == ask(cpus_per_task=2, threads=2)


def test_a_cancel_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """If a cancellation fails, the error that ended the calls is raised, and the log names the run."""
    from slurmlaunch import SchedulerError
    from slurmlaunch.integrations import joblib as ours

    class Unreachable:
        folder = "the folder"

        def __init__(self) -> None:
            self.future = Future[int]()

        def __iter__(self) -> Iterator[Any]:
            return iter([self.future])

        def cancel(self) -> None:
            raise SchedulerError("it is away")

    submitted = threading.Event()

    def submit(_: object) -> Any:
        submitted.set()
        return Unreachable()

    dispatcher = ours._Dispatcher(submit)  # noqa: SLF001 - no scheduler fails when it is asked to
    dispatcher.add(None, print)
    assert submitted.wait(60)
    with caplog.at_level(logging.WARNING, "slurmlaunch"):
        dispatcher.abort()

    assert caplog.messages == ["slurmlaunch could not cancel the folder: it is away"]


def threads_of_ours() -> list[str]:
    """Return the threads that wait for joblib's calls."""
    return [thread.name for thread in threading.enumerate() if thread.name == "slurmlaunch-joblib"]
