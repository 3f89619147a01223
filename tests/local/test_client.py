"""The objects that a client process has once: a forked child gets new ones, and inherited futures say so."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch import Executor, SlurmlaunchError, attach
from slurmlaunch.backends.inline import InlineBackend
from slurmlaunch.client.run import Run
from slurmlaunch.client.watcher import SAVED_VISITS, RateLimit, Watch, current_client
from slurmlaunch.runfolder.journal import read_rounds
from slurmlaunch.runfolder.layout import Manifest
from slurmlaunch.runfolder.outcomes import OutcomeWriter
from tests.support.tasks import OneRun, rows
from tests.support.waiting import PATIENCE, Gate
from tests.unit.test_collector import write_value

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from pathlib import Path

    from slurmlaunch import FutureArray


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """Return a gate that items wait at."""
    return Gate(tmp_path / "gate")


def in_a_forked_child(work: Callable[[], object]) -> Any:
    """Return what a function returned in a forked child, or the text of what it raised."""
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
    """A forked child has no thread that settles what it inherits: whoever waits there is told so, and how to go on."""
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
    """It submits runs of its own, gets those of its parent by their folders, and keeps the results that it inherits."""
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
