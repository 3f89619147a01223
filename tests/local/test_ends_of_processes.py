"""The end of a process that ran items: as Python ends, and nothing that happens then changes an outcome."""

from __future__ import annotations

import os
import re
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch import Executor
from tests.support.tasks import OneRun, finish, rows
from tests.support.waiting import PATIENCE, Gate, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

RANKS = {"ntasks": 2}


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """Return a gate for items to wait at; it opens when the test is over."""
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()


def leave_open(folder: Path, number: int) -> int:
    """Write a line into a file that stays open, and register a function of atexit, once per process."""
    import atexit
    import tempfile

    kept = vars(sys)
    if "log" not in kept:
        kept["log"] = (folder / f"log-{os.getpid()}").open("w", encoding="utf-8")
        kept["temporary"] = tempfile.TemporaryDirectory(dir=folder)
        atexit.register((folder / f"atexit-{os.getpid()}").touch)
    print(number, file=kept["log"])
    if number == 3:
        raise ValueError(number)
    return number


def left_in(folder: Path) -> tuple[list[str], int, int]:
    """Return the lines of all logs, how many functions of atexit were called, and how many folders are left."""
    lines = [line for path in folder.glob("log-*") for line in path.read_text(encoding="utf-8").split()]
    return sorted(lines), len([*folder.glob("atexit-*")]), sum(path.is_dir() for path in folder.iterdir())


def test_a_worker_ends_as_python_ends(tmp_path: Path) -> None:
    """Functions of atexit run, files that were left open are complete, and temporary folders are removed."""
    (tmp_path / "left").mkdir()
    run = OneRun(tmp_path / "run", leave_open, [(tmp_path / "left", number) for number in range(6)], processes=2)

    ended = run.run()

    lines, called, folders = left_in(tmp_path / "left")
    assert (ended.status, lines, folders) == (1, ["0", "1", "2", "3", "4", "5"], 0)
    assert called == len([*(tmp_path / "left").glob("log-*")])
    assert run.values() == {item: item for item in (0, 1, 2, 4, 5)}


def test_a_rank_ends_as_python_ends(tmp_path: Path) -> None:
    """The same holds for ranks, also for one that fails an item and for those that are ended because of it."""
    (tmp_path / "left").mkdir()
    executor = Executor(tmp_path / "runs", cluster="local", ntasks=2)
    array = executor.starmap_array(leave_open, [(tmp_path / "left", number) for number in range(2, 5)], tasks=1)

    errors = [future.exception(PATIENCE) for future in array]
    executor.shutdown()

    assert [type(error) for error in errors] == [type(None), ValueError, type(None)]
    wait_until(lambda: left_in(tmp_path / "left") == (["2", "2", "3", "3", "4", "4"], 4, 0))


def test_a_pool_of_a_task_ends_as_python_ends(tmp_path: Path) -> None:
    """The same holds for processes of `task_pool`, which do not repeat what their worker left open."""
    (tmp_path / "left").mkdir()

    def work(folder: Path) -> list[int]:
        import atexit

        from slurmlaunch import task_pool

        atexit.register((folder / f"atexit-{os.getpid()}-worker").touch)
        vars(sys)["mine"] = mine = (folder / "log-worker").open("w", encoding="utf-8")
        print("worker", file=mine)
        with task_pool(2) as pool:
            return list(pool.map(leave_open, [folder] * 2, range(2)))

    run = OneRun(tmp_path / "run", work, [(tmp_path / "left",)])

    assert run.run() == (0, "", "")

    lines, called, folders = left_in(tmp_path / "left")
    assert (lines, folders) == (["0", "1", "worker"], 0)
    assert called == len([*(tmp_path / "left").glob("log-*")])
    assert run.values() == {0: [0, 1]}


def crash() -> None:
    """Crash after the last item."""
    import atexit

    atexit.register(os.kill, os.getpid(), signal.SIGSEGV)


def fail() -> None:
    """Raise after the last item."""
    import atexit

    atexit.register(lambda: 1 / 0)


def leave() -> None:
    """Exit with another status after the last item."""
    import atexit

    atexit.register(os._exit, 9)


DEEDS: dict[str, tuple[Callable[[], None], str]] = {
    "crash": (crash, r"{who} was killed by SIGSEGV \(11\) while it ended: this changes no outcome"),
    "fail": (fail, r"ZeroDivisionError: division by zero"),
    "leave": (leave, r"{who} ended with exit status 9: this changes no outcome"),
}


def test_what_a_rank_leaves_running_delays_no_end(tmp_path: Path) -> None:
    """A program that an item left, whose output mpiexec waits for, ends with its rank."""

    def work(number: int) -> int:
        import subprocess

        subprocess.Popen(["sleep", "600"])
        return number

    executor = Executor(tmp_path / "runs", cluster="local", ntasks=2)
    future = executor.submit(work, 8)

    assert future.result(PATIENCE) == 8
    executor.shutdown()
    assert "did not end" not in future.run.logs(0)


@pytest.mark.parametrize("deed", DEEDS)
def test_a_bad_end_changes_no_outcome(tmp_path: Path, deed: str) -> None:
    """A crash, an exception or another status at the end of a process changes nothing but the log."""
    do, said = DEEDS[deed]

    def work(number: int) -> int:
        do()
        return number

    run = OneRun(tmp_path / "run", work, rows([7]))
    ended = run.run()
    executor = Executor(tmp_path / "runs", cluster="local", ntasks=2)
    array = executor.map_array(work, [8, 9], tasks=1)

    assert (ended.status, run.values()) == (0, {0: 7})
    assert re.search(said.format(who="process 0 of the task"), ended.err)
    assert array.results(PATIENCE) == [8, 9]
    executor.shutdown()
    mark = array.folder / "ended" / "0.0.0"
    wait_until(mark.exists)
    assert re.search(said.format(who="rank [01]"), array.logs(0))


@pytest.mark.slow
def test_a_hang_at_the_end_changes_no_outcome(tmp_path: Path) -> None:
    """A process that does not end, for a function of atexit or a thread, is killed after ten seconds."""

    def work(way: str) -> str:
        import atexit
        import threading
        import time

        if way == "atexit":
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            atexit.register(time.sleep, 600)
        else:
            threading.Thread(target=time.sleep, args=(600,)).start()
        return way

    runs = [OneRun(tmp_path / way, work, rows([way])) for way in ("atexit", "thread")]
    nodes = [run.start() for run in runs]
    executor = Executor(tmp_path / "runs", cluster="local", ntasks=2)
    array = executor.map_array(work, ["thread"])

    assert array.results(PATIENCE) == ["thread"]
    for run, node, way in zip(runs, nodes, ("atexit", "thread"), strict=True):
        ended = finish(node)
        assert (ended.status, run.values()) == (0, {0: way})
        assert ended.err.count("\n") == 1
        assert "process 0 of the task did not end within 10 s" in ended.err
    executor.shutdown()
    wait_until(lambda: any((array.folder / "ended").iterdir()))
    assert "did not end within 10 s" in array.logs(0)


def test_a_task_that_is_stopped_waits_for_no_end(tmp_path: Path, gate: Gate) -> None:
    """After SIGTERM a process that does not end is killed soon: the scheduler would kill the whole task."""

    def work(number: int) -> int:
        import atexit
        import time

        if number == 0:
            atexit.register(time.sleep, 600)
            return number
        gate.enter(number)
        return number

    run = OneRun(tmp_path / "run", work, rows(range(2)), processes=2)
    node = run.start()
    gate.await_arrival(1)
    os.killpg(node.pid, signal.SIGTERM)

    ended = finish(node)

    assert (ended.status, ended.err, run.values()) == (143, "", {0: 0})


# Descriptors.


def use_up(kept: list[Any]) -> None:
    """Open files until no descriptor is left."""
    while True:
        kept.append(os.open("/dev/null", os.O_RDONLY))


class Awkward(Exception):
    """An exception that only cloudpickle can pickle, of a class of this module."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.what = lambda: args


def run_out(way: str) -> object:
    """Use up all descriptors, and end in some way."""
    kept: list[Any] = []
    vars(sys)["kept"] = kept
    if way == "raises":
        use_up(kept)
    try:
        use_up(kept)
    except OSError as error:
        if way == "raises another":
            raise Awkward(way) from error
        if way == "returns a lambda":
            return lambda: way
        if way == "returns much":
            return b"x" * 1_000_000
    return way


WAYS = ("raises", "raises another", "returns a lambda", "returns much", "returns")


@pytest.mark.parametrize("way", WAYS)
def test_an_item_that_uses_up_all_descriptors_has_its_own_outcome(tmp_path: Path, way: str) -> None:
    """When no descriptor is left, an item still has its value or its own exception, in a worker and in a rank."""
    run = OneRun(tmp_path / "run", run_out, rows([way]))
    run.run()
    executor = Executor(tmp_path / "runs", cluster="local", ntasks=2, by_value=["tests.local.test_ends_of_processes"])
    future = executor.submit(run_out, way)

    outcomes = run.outcomes()[0], future.exception(PATIENCE) or future.result()
    seen: list[Any] = [outcomes[0].error if hasattr(outcomes[0], "error") else outcomes[0].value, outcomes[1]]

    for each in seen:
        if way == "raises":
            assert isinstance(each, OSError)
            assert each.errno == 24
        elif way == "raises another":
            assert type(each).__name__ == "Awkward"
            assert each.what() == (way,)
        elif way == "returns a lambda":
            assert each() == way
        else:
            assert each == {"returns much": b"x" * 1_000_000}.get(way, way)


def test_files_of_the_user_get_nothing_of_ours(tmp_path: Path) -> None:
    """After an item has closed all descriptors, files that it opens have its own bytes, and others run as usual."""
    (tmp_path / "mine").mkdir()

    def work(folder: Path, number: int) -> Any:
        if number == 2:
            os.closerange(0, 1000)
            files = vars(sys)["files"] = [(folder / f"{os.getpid()}-{i}").open("w+b", buffering=0) for i in range(40)]
            for file in files:
                file.write(b"mine")
        return number if number % 2 else bytes(100_000)

    items = [(tmp_path / "mine", number) for number in range(6)]
    run = OneRun(tmp_path / "run", work, items)
    ended = run.run()
    executor = Executor(tmp_path / "runs", cluster="local", ntasks=2, by_value=["tests.local.test_ends_of_processes"])
    array = executor.starmap_array(work, items, tasks=1)
    results = array.results(PATIENCE)
    executor.shutdown()

    assert ended.status == 0
    assert run.values() == dict(enumerate(results)) == {n: n if n % 2 else bytes(100_000) for n in range(6)}
    files = [*(tmp_path / "mine").iterdir()]
    assert {path.read_bytes() for path in files} == {b"mine"}
    assert len(files) == 3 * 40


# The log.


def test_the_log_has_the_traceback_of_a_failed_item(tmp_path: Path) -> None:
    """The traceback of an item that raised is in the log of its task, with the index of the item."""

    def work(number: int) -> Any:
        if number == 3:
            raise KeyError("no such column")
        return (each for each in "generator") if number == 4 else number

    run = OneRun(tmp_path / "run", work, rows(range(5)), processes=2)

    ended = run.run()

    assert re.search(
        r"slurmlaunch: item 3 failed\nTraceback.*, in work\n.*KeyError: 'no such column'\n", ended.err, re.DOTALL
    )
    assert "slurmlaunch: item 4 failed\n" in ended.err
    assert "UnpicklableResult" in ended.err


def test_the_log_of_a_task_stays_small(tmp_path: Path) -> None:
    """Failures take a bounded part of the log, however many and however long they are."""

    def work(number: int) -> None:
        raise ValueError(str(number) * 100_000)

    run = OneRun(tmp_path / "run", work, rows(range(300)), processes=2)

    ended = run.run()

    assert len(ended.err) < 200_000
    assert ended.err.count("shows no more failures") in {1, 2}
    assert len(run.errors()) == 300
