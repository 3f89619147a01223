"""The objects that a client process has once: a forked child gets new ones, and inherited futures say so."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import pytest

from slurmlaunch import Executor, SlurmlaunchError, attach
from slurmlaunch.backends.inline import InlineBackend
from slurmlaunch.client.futures import Future, FutureArray
from slurmlaunch.client.futures_registry import FuturesRegistry
from slurmlaunch.client.ledger import ItemStatus
from slurmlaunch.client.run import Run
from slurmlaunch.client.submission import Submission
from slurmlaunch.client.watcher import SAVED_VISITS, RateLimit, Watch, Watcher, current_client
from slurmlaunch.errors import WorkerDied
from slurmlaunch.outcome import Failure
from slurmlaunch.runfolder.layout import EndMark, Manifest
from slurmlaunch.runfolder.outcomes import OutcomeFile, OutcomeWriter
from slurmlaunch.runfolder.rounds import read_rounds, write_cancellations
from tests.support.tasks import OneRun, rows
from tests.support.waiting import PATIENCE, Gate, wait_until
from tests.unit.test_collector import poll, write_value

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """Return a gate that items wait at."""
    return Gate(tmp_path / "gate")


def in_a_forked_child(work: Callable[[], object]) -> Any:
    """Return a function's result in a forked child, or the text of its exception."""
    here, there = multiprocessing.Pipe(duplex=False)

    def run(answer: Connection) -> None:
        try:
            answer.send(work())
        except Exception as error:  # noqa: BLE001 - the parent looks at it
            answer.send(f"{type(error).__name__}: {error}")

    process = multiprocessing.get_context("fork").Process(target=run, args=(there,))
    process.start()
    try:
        assert here.poll(PATIENCE), "the child waits"
        return here.recv()
    finally:
        process.kill()
        process.join()


WAITS: dict[str, Callable[[FutureArray[str]], object]] = {
    "result": lambda array: array[0].result(),
    "exception": lambda array: array[0].exception(),
    "a future that is made there": lambda array: array[1].result(),
    "callback": lambda array: array[0].add_done_callback(print),
    "results": lambda array: array.results(),
    "wait": lambda array: array.wait(),
    "as_completed": lambda array: next(array.as_completed()),
    "wait of the standard library": lambda array: concurrent.futures.wait([array[0]]).done.pop().result(),
}


@pytest.mark.parametrize("wait", WAITS)
def test_inherited_futures(tmp_path: Path, gate: Gate, wait: str) -> None:
    """A forked child has no thread that settles inherited futures: waiting raises an error that names the remedy."""
    array = Executor(tmp_path / "runs", cluster="local").map_array(gate.enter, "ab", tasks=1)
    held = array[0]
    error = in_a_forked_child(lambda: WAITS[wait](array))
    gate.open()

    assert error.startswith(SlurmlaunchError.__name__)
    assert "forked this process" in error
    assert f"slurmlaunch.attach('{array.folder}')" in error
    assert ["a", "b"] == array.results(timeout=PATIENCE)
    assert "a" == held.result()


def test_a_forked_child_is_a_client(tmp_path: Path, gate: Gate) -> None:
    """A forked child submits its own runs, attaches to its parent's runs, and keeps inherited results."""
    executor = Executor(tmp_path / "runs", cluster="local")
    array, done = executor.map_array(gate.enter, "ab", tasks=1), executor.map_array(abs, [-1, -2])
    done.wait()
    parents = current_client()

    def work() -> tuple[Any, ...]:
        again = attach(array.folder)
        gate.open()
        assert current_client() is not parents
        return done.results(), executor.map_array(abs, [-3]).results(PATIENCE), again.results(PATIENCE)

    assert ([1, 2], [3], ["a", "b"]) == in_a_forked_child(work)


def test_a_child_of_a_forked_child(tmp_path: Path, gate: Gate) -> None:
    """The child of a forked child waits for no lock that a thread of its parent held."""
    array = Executor(tmp_path / "runs", cluster="local").map_array(gate.enter, "ab", tasks=1)

    def work() -> object:
        locked, done = threading.Event(), threading.Event()

        def hold() -> None:
            with array._run.changed:  # noqa: SLF001
                locked.set()
                done.wait()

        threading.Thread(target=hold, daemon=True).start()
        locked.wait()
        return in_a_forked_child(lambda: len(array.job_ids))

    found = in_a_forked_child(work)
    gate.open()
    array.wait()

    assert 1 == found


def watch_of(path: Path, **options: Any) -> Watch:
    """Return the watch of a run of four items in two tasks."""
    folder = OneRun(path, len, rows(range(4)), tasks=2, options=options).folder
    return Watch(Run(folder, Manifest.read(folder), InlineBackend(), list(read_rounds(folder))))


def test_a_cancel_that_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends the waiting for a cancellation that is being recorded, and not the cancellation."""
    run = watch_of(tmp_path / "run").run
    ledger, goes_on = run.ledger, threading.Event()

    def interrupt(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        goes_on.wait()
        write_cancellations(*arguments)

    monkeypatch.setattr("slurmlaunch.client.run.write_cancellations", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run.cancel(range(4))
    goes_on.set()

    wait_until(lambda: not ledger.open)
    assert 4 == ledger.count(ItemStatus.CANCELLED)


TWICE_AT_ONCE = """
import signal
import sys

from slurmlaunch import Executor

pressed = []


def press_again(frame, event, _):
    if event == "call" and len(pressed) < 20:
        pressed.append(frame)
        signal.raise_signal(signal.SIGINT)


def press_while_it_is_handled():
    sys.setprofile(press_again)
    signal.raise_signal(signal.SIGINT)


signal.signal(signal.SIGINT, lambda *_: None)
Executor(sys.argv[1], cluster="inline").submit(press_while_it_is_handled)
"""


def test_ctrl_c_within_the_handling_of_ctrl_c(tmp_path: Path) -> None:
    """A second Ctrl-C, wherever it interrupts the handler of the first, ends an inline call as one does."""
    program = [sys.executable, "-c", TWICE_AT_ONCE, str(tmp_path)]
    done = subprocess.run(program, check=False, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stderr.splitlines()[-1].startswith("KeyboardInterrupt")


def test_a_cancel_in_a_signal_handler(tmp_path: Path) -> None:
    """A handler may cancel, even where it interrupts slurmlaunch while that changes the same run."""
    run = watch_of(tmp_path / "run").run
    before = signal.signal(signal.SIGUSR1, lambda *_: run.cancel(range(4)))
    try:
        with run.changed:
            signal.raise_signal(signal.SIGUSR1)
            assert 4 == run.ledger.open
    finally:
        signal.signal(signal.SIGUSR1, before)

    wait_until(lambda: not run.ledger.open)
    assert 4 == run.ledger.count(ItemStatus.CANCELLED)


def late(value: Any) -> Any:
    """Unpickle, when the event allows it."""
    GO_ON.wait()
    return value


GO_ON = threading.Event()


class LateValue:
    """A value that takes long to unpickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return late, ("late",)


def late_error() -> LateError:
    """Unpickle a `LateError`, when the event allows it."""
    GO_ON.wait()
    return LateError()


class LateError(Exception):
    """An exception that takes long to unpickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return late_error, ()


def test_a_slow_result_delays_no_poll(tmp_path: Path) -> None:
    """The thread that watches all runs unpickles neither values nor exceptions of the function."""
    watch = watch_of(tmp_path / "run")
    futures: list[Future[Any]] = [watch.run.future(item, Future) for item in range(2)]
    GO_ON.set()
    failure = Failure(LateError()).dump()
    GO_ON.clear()
    with OutcomeWriter(watch.run.folder, 0) as writer:
        write_value(writer, 0, LateValue())
        writer.failure(1, failure)

    poll(watch)

    assert not any(future.done() for future in futures)
    GO_ON.set()
    assert futures[0].result(PATIENCE) == "late"
    assert isinstance(futures[1].exception(PATIENCE), LateError)


def test_callbacks_of_one_run_delay_no_other(tmp_path: Path) -> None:
    """A callback that hangs delays only the futures behind it, and no other run."""
    goes_on = threading.Event()
    watches = [watch_of(tmp_path / name) for name in "ab"]
    futures: list[Future[str]] = [watch.run.future(0, Future) for watch in watches]
    first, second = futures
    first.add_done_callback(lambda _: goes_on.wait())
    for watch in watches:
        with OutcomeWriter(watch.run.folder, 0) as writer:
            write_value(writer, 0, "value")
        poll(watch)

    assert [first.result(PATIENCE), second.result(PATIENCE)] == ["value"] * 2
    goes_on.set()


@pytest.mark.parametrize("wait", [Future.result, lambda future, _: future.run[:2].results(PATIENCE)[1]])
def test_a_callback_may_wait_for_its_own_run(tmp_path: Path, wait: Callable[[Future[str], float], str]) -> None:
    """A callback that asks for another future of its run gets it, also if that would be notified later."""
    watch, found = watch_of(tmp_path / "run"), []
    futures: list[Future[str]] = [watch.run.future(item, Future) for item in range(2)]
    first, second = futures
    first.add_done_callback(lambda _: found.append(wait(second, PATIENCE)))
    with OutcomeWriter(watch.run.folder, 0) as writer:
        write_value(writer, 0, "first")
        write_value(writer, 1, "second")

    poll(watch)

    wait_until(lambda: found)
    assert found == ["second"]


def test_a_callback_waits_for_an_item_that_has_not_ended(tmp_path: Path) -> None:
    """The other future gets its outcome, also if its item ends while the callback waits."""
    watch, begun = watch_of(tmp_path / "run"), threading.Event()
    found: list[str] = []
    futures: list[Future[str]] = [watch.run.future(item, Future) for item in range(2)]
    first, second = futures

    def wait_for_second(_: Future[str]) -> None:
        begun.set()
        found.append(second.result(PATIENCE))

    first.add_done_callback(wait_for_second)
    with OutcomeWriter(watch.run.folder, 0) as writer:
        write_value(writer, 0, "first")
        poll(watch)
        begun.wait(PATIENCE)
        write_value(writer, 1, "second")
        poll(watch)

    wait_until(lambda: found)
    assert found == ["second"]


def test_ctrl_c_while_an_array_is_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C while sbatch runs says how to come back to the job that may have been submitted."""
    run = watch_of(tmp_path / "run").run

    def interrupted(_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(run.backend, "name", "slurm")
    monkeypatch.setattr(run.backend, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Submission(run).submit(run.rounds[0])
    said = capsys.readouterr().err
    assert "sbatch may have submitted a job" in said
    assert f"slurmlaunch.attach({str(run.folder.path)!r})" in said


def test_an_error_in_a_with_block(tmp_path: Path, gate: Gate, capsys: pytest.CaptureFixture[str]) -> None:
    """An error in the block says at once that it waits, for what, and how to end that."""
    said: list[str] = []

    def read_then_open() -> None:
        wait_until(lambda: said.append(capsys.readouterr().err) or "".join(said))  # type: ignore[func-returns-value]
        gate.open()

    def raise_in_the_block() -> None:
        with Executor(tmp_path / "runs", cluster="local") as executor:
            folders.append(executor.map_array(gate.enter, "ab", tasks=1).folder)
            thread.start()
            raise ValueError("mine")

    folders: list[Path] = []
    thread = threading.Thread(target=read_then_open)
    with pytest.raises(ValueError, match="mine"):
        raise_in_the_block()
    thread.join()
    assert "ValueError was raised in a with block: mine" in "".join(said)
    assert "2 items" in "".join(said)
    assert f"slurmlaunch.attach({str(folders[0])!r})" in "".join(said)


def test_no_thread_for_a_retry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If no thread can be started, the items of a retry end as their tasks have, and nothing else ends."""
    watch = watch_of(tmp_path / "run", retries=1)
    for task in range(2):
        Path(watch.run.folder.ended / EndMark(task, 0, 128 + 9).filename).touch(0o600)

    def refuse(_: object) -> NoReturn:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    for _ in range(2):
        poll(watch)

    outcome = watch.run.outcome(0)
    assert isinstance(outcome, Failure)
    assert isinstance(outcome.error, WorkerDied)
    assert "it could not be run again: can't start new thread" == outcome.error.__notes__[0]


def test_a_fault_in_one_run(tmp_path: Path) -> None:
    """A fault in one run does not stop the watching of another run."""
    watcher, faulty, sound = Watcher(), watch_of(tmp_path / "faulty"), watch_of(tmp_path / "sound")
    failed = threading.Event()

    def fail(*_: object) -> NoReturn:
        failed.set()
        raise RuntimeError("a fault")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faulty.run, "handle", fail)
        watcher.keep_watching(faulty)
        assert failed.wait(PATIENCE)
        watcher.keep_watching(sound)
        with OutcomeWriter(sound.run.folder, 0) as writer:
            write_value(writer, 0, "a")
        wait_until(lambda: not sound.run.ledger.is_open(0))
    for watch in (faulty, sound):
        watch.run.cancel(range(4))


def test_watching_after_too_many_threads(tmp_path: Path) -> None:
    """If no thread can be started, the next run to be watched tries again, and the first one is watched, too."""
    watcher, first, second = Watcher(), watch_of(tmp_path / "first"), watch_of(tmp_path / "second")

    def refuse(_: object) -> NoReturn:
        raise RuntimeError("can't start new thread")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            watcher.keep_watching(first)
    watcher.keep_watching(second)
    with OutcomeWriter(first.run.folder, 0) as writer:
        write_value(writer, 0, "a")
    wait_until(lambda: not first.run.ledger.is_open(0))
    for watch in (first, second):
        watch.run.cancel(range(4))


def test_a_retry_without_work_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a retry has nothing to run, the run is still watched while its array is referenced."""
    watch = watch_of(tmp_path / "run")
    wanted = []
    keep = current_client().watcher.keep_watching

    def note(watch: Watch) -> None:
        wanted.append(watch.run.is_wanted)
        keep(watch)

    monkeypatch.setattr(current_client().watcher, "keep_watching", note)
    monkeypatch.setattr("slurmlaunch.client.rerun.unfinished", lambda *_: [])
    again: FutureArray[int] = FutureArray(watch.run).retry()

    assert [True] == wanted
    assert again._run.on_demand  # noqa: SLF001
    again.cancel()


def test_the_registry_while_it_is_swept() -> None:
    """A future can be looked up without the lock while another thread replaces the dictionary."""
    registry = FuturesRegistry()

    class Swept(dict[int, Any]):
        def __contains__(self, item: object) -> bool:
            registry._settled = {}  # noqa: SLF001
            return super().__contains__(item)

    registry._settled = Swept({0: lambda: None})  # noqa: SLF001
    assert registry.find(0) is None


def test_a_debt_ends() -> None:
    """However many tasks died at once, the files of those that end later are read after a minute."""
    clock = [100.0]
    limit = RateLimit(lambda: clock[0])
    limit.spend({"ended": 100_000})
    assert limit.left("ended") < 0

    clock[0] += 61
    assert limit.left("ended") > 0


def test_a_local_disk_is_polled_often(tmp_path: Path) -> None:
    """However much other runs have read, a result on a local disk is seen within 20 ms, also after a quiet minute."""
    folder = OneRun(tmp_path / "run", len, rows(range(400))).folder
    clock = [100.0]
    run = Run(folder, Manifest.read(folder), InlineBackend(), list(read_rounds(folder)), clock=lambda: clock[0])
    limit, watch = RateLimit(lambda: clock[0]), Watch(run, network=False)
    limit.spend({kind: 2 * number for kind, number in SAVED_VISITS.items()})
    writer = OutcomeWriter(folder, 0)
    pauses = []
    for item in range(200):
        write_value(writer, item, item)
        watch.poll(limit)
        pauses.append(watch.due - clock[0])
        clock[0] = watch.due
    quiet_since = clock[0]
    while clock[0] < quiet_since + 60:
        watch.poll(limit)
        pauses.append(watch.due - clock[0])
        clock[0] = watch.due

    assert 200 == 400 - run.ledger.open
    assert max(pauses) <= 0.02


def test_visits_in_vain_take_little_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one of many running tasks has news, the visits of the others take a twentieth of the time at most."""
    tasks = 300
    folder = OneRun(tmp_path / "run", len, rows(range(tasks * 100)), tasks=tasks).folder
    clock, visit = [100.0], 0.0001
    run = Run(folder, Manifest.read(folder), InlineBackend(), list(read_rounds(folder)), clock=lambda: clock[0])
    has_grown = cast("property", OutcomeFile.has_grown).fget
    assert has_grown

    def visited(file: OutcomeFile) -> bool:
        clock[0] += visit
        return bool(has_grown(file))

    monkeypatch.setattr(OutcomeFile, "has_grown", property(visited))
    limit, watch = RateLimit(), Watch(run, network=False)
    writers = [OutcomeWriter(folder, task) for task in range(tasks)]
    watch.poll(limit)
    for item in range(20):
        write_value(writers[0], item, item)
        watch.poll(limit)
        assert item + 1 == run.manifest.items - run.state.ledger.open
        assert watch.due - clock[0] >= 19 * tasks * visit
        clock[0] = watch.due
