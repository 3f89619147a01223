"""The end of the client: at the end of a script, at Ctrl-C, and inside a task."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from slurmlaunch import Executor, attach, current_task
from tests.conftest import SLURM, elsewhere
from tests.support import scripts
from tests.support.waiting import Gate, is_alive, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SUBMIT = """
    import pathlib, sys, time
    import slurmlaunch
    from tests.support.waiting import Gate

    def called(future):
        time.sleep(0.3)
        print("called", future.result(), flush=True)

    gate = Gate.__new__(Gate)
    gate.folder = pathlib.Path(sys.argv[2])
    array = slurmlaunch.Executor("runs", cluster=sys.argv[1]).map_array(gate.enter, "abc", tasks=1)
    array[2].add_done_callback(called)
    print(array.folder, flush=True)
"""


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """Return a gate that items of scripts wait at."""
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()


class TestEndOfAScript:
    """A script that submits and ends."""

    @pytest.mark.parametrize("backend", ["local"], indirect=True)
    def test_local(self, backend: str, gate: Gate, tmp_path: Path) -> None:
        """A script waits at its end for local items, and until their callbacks have returned."""
        script = scripts.start(tmp_path, SUBMIT, backend, gate.folder)
        assert script.stdout
        folder = script.stdout.readline().strip()
        gate.await_arrival("a")
        assert script.poll() is None
        gate.open()

        assert (0, "called c\n", "") == scripts.finish(script)
        assert ["a", "b", "c"] == attach(folder).results(timeout=0)

    @pytest.mark.parametrize("backend", [SLURM], indirect=True)
    def test_slurm(self, backend: str, gate: Gate, tmp_path: Path) -> None:
        """A script neither waits for its Slurm jobs nor cancels them."""
        folder = scripts.run(tmp_path, SUBMIT, backend, gate.folder).strip()

        array = attach(folder)
        assert not array.done()
        gate.open()
        assert ["a", "b", "c"] == array.results(timeout=90)

    def test_with(self, backend: str, tmp_path: Path) -> None:
        """A with block waits on every backend, also if it ends with an exception."""
        script = scripts.start(
            tmp_path,
            """
            import sys
            from slurmlaunch import Executor

            with Executor("runs", cluster=sys.argv[1]) as executor:
                future = executor.submit(pow, 2, 10)
            print(future.done(), future.result(timeout=0))
            sys.exit(3)
            """,
            backend,
        )

        assert (3, "True 1024\n", "") == scripts.finish(script)


class TestInterrupt:
    """Ctrl-C while a script waits for results."""

    WAIT = """
    print("waiting", flush=True)
    {wait}
    """

    @pytest.mark.parametrize("backend", [SLURM], indirect=True)
    @pytest.mark.parametrize("wait", ["array.results()", "array[0].result()"])
    def test_slurm(self, backend: str, gate: Gate, tmp_path: Path, wait: str) -> None:
        """Slurm jobs continue after the client's exit; a message says how to attach to them or cancel them."""
        script = scripts.start(tmp_path, SUBMIT + self.WAIT.format(wait=wait), backend, gate.folder)
        assert script.stdout
        folder = script.stdout.readline().strip()
        assert "waiting\n" == script.stdout.readline()
        gate.await_arrival("a")
        script.send_signal(signal.SIGINT)
        status, _, said = scripts.finish(script)

        array = attach(folder)
        assert -signal.SIGINT == status
        assert f"slurmlaunch.attach({folder!r})" in said
        assert f"The jobs {array.job_ids[0]} go on" in said
        assert "cancel()" in said
        assert said.rstrip().endswith("KeyboardInterrupt")
        assert is_alive(gate.process_of("a"))
        gate.open()
        assert ["a", "b", "c"] == array.results(timeout=90)

    @pytest.mark.parametrize("backend", ["local"], indirect=True)
    def test_local(self, backend: str, gate: Gate, tmp_path: Path) -> None:
        """After the first Ctrl-C the script waits for local items; a second one ends them and all their processes."""
        script = scripts.start(tmp_path, SUBMIT + self.WAIT.format(wait="array.results()"), backend, gate.folder)
        assert script.stdout
        script.stdout.readline()
        assert "waiting\n" == script.stdout.readline()
        gate.await_arrival("a")

        def interrupted() -> bool:
            script.send_signal(signal.SIGINT)
            try:
                return script.wait(1) is not None
            except scripts.TimeoutExpired:
                return False

        wait_until(interrupted)

        assert "slurmlaunch.attach" not in scripts.finish(script)[2]
        assert 0 != script.returncode
        assert not is_alive(gate.process_of("a"))


@elsewhere
def test_client_in_a_task(executor: Executor, tmp_path: Path) -> None:
    """A task may submit a run, which is a job of its own and no part of the outer one."""
    cluster = executor.cluster

    def outer(number: int) -> tuple[int, list[tuple[int, int, str]]]:
        def inner(number: int) -> tuple[int, int, str]:
            return number * number, current_task().task, os.environ.get("SLURM_JOB_NAME", "")[:5]

        inside = Executor(tmp_path / "inside", cluster=cluster)
        return current_task().task, inside.map_array(inner, [number, -1], tasks=1, name="inner").results()

    results = executor.map_array(outer, [2, 3], chunksize=1).results()

    name = "inner" if cluster == "slurm" else ""
    assert [(0, [(4, 0, name), (1, 0, name)]), (1, [(9, 0, name), (1, 0, name)])] == results
