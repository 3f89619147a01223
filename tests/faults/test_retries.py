"""Automatic retries, and the end of a run where nothing can start."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch import NodeFailure, TaskState, attach
from tests.faults.deeds import Deed, Exits, Fails, parent
from tests.faults.test_killed import ONCE, outcomes, squares
from tests.support.cluster import ClusterSpec
from tests.support.waiting import PATIENCE, is_alive, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.faults.conftest import Launch
    from tests.support.cluster import Cluster

pytestmark = pytest.mark.slurm


def test_a_process_that_died(faulty: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
    """Only the missing item runs again, and with the same options."""
    work = deed(Deed, 1)
    futures = launch(faulty, retries=1, mem="100M").map_array(work, range(6), tasks=2)
    work.gate.await_arrival(1)
    process = work.gate.process_of(1)
    work.forget(1)
    os.kill(process, signal.SIGKILL)
    work.gate.await_arrival(1)
    work.gate.open()
    assert outcomes(futures) == squares()
    assert work.runs == {**ONCE, 1: 2}
    assert len(futures.job_ids) == 2
    assert "MinMemoryNode=100M" in faulty.run("scontrol", "show", "job", futures.job_ids[1])
    first, second = futures[1].attempts
    assert (first.job_id, second.job_id) == tuple(f"{job}_0" for job in futures.job_ids)


def test_as_often_as_asked(faulty: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
    """An item that always dies fails after the given number of retries, also for a client that attaches later."""
    work = deed(Exits, 1)
    futures = launch(faulty, retries=2).map_array(work, range(6), tasks=3)
    assert outcomes(futures) == squares(1)
    assert work.runs == {**ONCE, 1: 3}
    assert len(futures[1].attempts) == 3
    again = attach(futures.folder)
    assert outcomes(again) == squares(1)
    assert len(again.job_ids) == 3


def test_from_a_retry_on(faulty: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
    """The retries set by a manual retry hold from there on, not those of the first round."""
    work = deed(Exits, 1)
    futures = launch(faulty).map_array(work, range(6), tasks=3)
    assert outcomes(futures) == squares(1)
    again = futures.retry(retries=1)
    assert outcomes(again) == squares(1)
    assert work.runs == {**ONCE, 1: 3}
    assert outcomes(again.retry(retries=0)) == squares(1)
    assert work.runs == {**ONCE, 1: 4}


def test_errors_of_the_function(faulty: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
    """An item that raised is retried only if `retries` names its class, or a base of it."""
    work = deed(Fails, 1, 4)
    executor = launch(faulty, retries=1)
    assert outcomes(executor.options(retry_exceptions=(OSError,)).map_array(work, range(6), tasks=2)) == squares()
    assert work.runs == {**ONCE, 1: 2, 4: 2}
    (work.story.path).write_text("", encoding="utf-8")
    refused = executor.options(retry_exceptions=(ValueError,)).map_array(work, range(6), tasks=2)
    assert outcomes(refused) == squares(1, 4, kind=ConnectionError)
    assert work.runs == ONCE


WATCHES = """
    import sys
    import slurmlaunch

    futures = slurmlaunch.attach(sys.argv[1])
    print("here", flush=True)
    print(futures.results(60), len(futures.job_ids), flush=True)
"""


def test_two_clients(faulty: Cluster, launch: Launch, deed: Callable[..., Any], tmp_path: Path) -> None:
    """Of two clients that see missing items one retries them, and both get the results, also a stopped one."""
    work = deed(Deed, 1)
    futures = launch(faulty, retries=3).map_array(work, range(6), tasks=2)
    work.gate.await_arrival(1)
    command = [sys.executable, "-c", textwrap.dedent(WATCHES), str(futures.folder)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as other,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as sleeper,
    ):
        for client in (other, sleeper):
            assert client.stdout
            assert client.stdout.readline() == "here\n"
        sleeper.send_signal(signal.SIGSTOP)
        process = work.gate.process_of(1)
        work.forget(1)
        os.kill(process, signal.SIGKILL)
        work.gate.await_arrival(1)
        work.gate.open()
        assert outcomes(futures) == squares()
        sleeper.send_signal(signal.SIGCONT)
        for client in (other, sleeper):
            assert client.stdout
            assert client.stdout.read() == f"{squares()} 2\n"
    assert len(list((futures.folder / "rounds").iterdir())) == 2
    assert work.runs == {**ONCE, 1: 2}


class TestNode:
    """A node that fails, on a cluster of its own."""

    @pytest.fixture
    def fragile(self, start_cluster: Callable[[ClusterSpec], Cluster]) -> Cluster:
        """Start a cluster that declares a node failed after a few seconds."""
        return start_cluster(ClusterSpec(lines=("SlurmdTimeout=5", "TreeWidth=2")))

    @pytest.mark.slow
    def test_fails(self, fragile: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
        """Without a requeue the error is NodeFailure; a retry runs the missing items on other nodes."""
        work = deed(Deed, 1, 3)
        executor = launch(fragile, no_requeue=True, requeues=0, retries=1, exclusive=True)
        futures = executor.map_array(work, range(6), tasks=2)
        work.gate.await_arrival(1, 3)
        assert futures[0].result(PATIENCE) == 0
        time.sleep(1.5)  # the outcome is then on disk, also for other machines
        node = environment_of(work.supervisor(1))["SLURMD_NODENAME"]
        break_node(fragile, work, 1)
        work.forget(1)
        work.gate.open(3)
        work.gate.await_arrival(1)
        assert environment_of(work.supervisor(1))["SLURMD_NODENAME"] != node
        assert f"ExcNodeList={node}" in fragile.run("scontrol", "show", "job", futures.job_ids[-1])
        work.gate.open()
        assert outcomes(futures) == squares()
        assert work.runs == {**ONCE, 1: 2}
        assert futures[1].attempts[0].state is TaskState.NODE_FAIL
        assert futures[1].attempts[0].node == node
        fragile.start_daemon(f"slurmd-{node}")

    @pytest.mark.slow
    def test_requeued(self, fragile: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
        """With requeues the task restarts by itself; without a retry the error says what happened."""
        work = deed(Deed, 1, 3)
        again = launch(fragile, exclusive=True).map_array(work, range(3), tasks=1)
        work.gate.await_arrival(1)
        assert again[0].result(PATIENCE) == 0
        never = launch(fragile, no_requeue=True, requeues=0, exclusive=True).map_array(work, range(3, 6), tasks=1)
        work.gate.await_arrival(3)
        nodes = [environment_of(work.supervisor(item))["SLURMD_NODENAME"] for item in (1, 3)]
        for item in (1, 3):
            break_node(fragile, work, item)
        work.forget(1)
        assert outcomes(never) == [NodeFailure] * 3
        error = never[0].exception()
        assert isinstance(error, NodeFailure)
        assert error.node == nodes[1]
        for node in nodes:
            fragile.start_daemon(f"slurmd-{node}")
        work.gate.open()
        assert outcomes(again) == squares(items=3)
        assert work.runs == {0: 1, 1: 2, 2: 1, 3: 1}

    @pytest.mark.slow
    def test_is_only_thought_to_fail(self, fragile: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
        """If only slurmd dies, two attempts of a task run side by side, and each item keeps its one outcome."""
        work = deed(Deed, 1)
        futures = launch(fragile, exclusive=True).map_array(work, range(3), tasks=1)
        work.gate.await_arrival(1)
        assert futures[0].result(PATIENCE) == 0
        first = work.supervisor(1)
        node = environment_of(first)["SLURMD_NODENAME"]
        fragile.stop_daemon(f"slurmd-{node}")
        work.forget(1)
        work.gate.await_arrival(1)
        assert work.supervisor(1) != first
        assert is_alive(first)
        work.gate.open()
        assert outcomes(futures) == squares(items=3)
        wait_until(lambda: not is_alive(first))
        fragile.start_daemon(f"slurmd-{node}")
        assert outcomes(attach(futures.folder)) == squares(items=3)
        assert (work.runs[0], work.runs[1]) == (1, 2)
        assert [attempt.state for attempt in futures[1].attempts] == [TaskState.REQUEUED, TaskState.COMPLETED]


def break_node(cluster: Cluster, work: Deed, item: int) -> None:
    """Kill a node with all that runs on it: its slurmd, the step, and the task."""
    supervisor = work.supervisor(item)
    environment = environment_of(supervisor)
    cluster.stop_daemon(f"slurmd-{environment['SLURMD_NODENAME']}")
    step = parent(parent(supervisor))
    for process in (step, *_of_job(cluster, environment["SLURM_JOB_ID"])):
        with contextlib.suppress(ProcessLookupError):  # it ended with the step
            os.kill(process, signal.SIGKILL)


def environment_of(process: int) -> dict[str, str]:
    """Return the environment of a process."""
    pairs = Path(f"/proc/{process}/environ").read_text(encoding="utf-8", errors="replace").split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def _of_job(cluster: Cluster, job_id: str) -> Iterator[int]:
    """Yield the processes of a job of a cluster."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            environment = environment_of(int(path.name))
        except OSError:
            continue
        if environment.get("SLURM_CONF") == cluster.env["SLURM_CONF"] and environment.get("SLURM_JOB_ID") == job_id:
            yield int(path.name)
