"""Killed processes: a worker, the supervisor, the batch step."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch import TaskState, WorkerDied, attach
from tests.faults.deeds import Deed, Exits, parent
from tests.support.cluster import ClusterSpec
from tests.support.waiting import PATIENCE, is_alive, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from slurmlaunch import FutureArray
    from tests.faults.conftest import Launch
    from tests.support.cluster import Cluster

pytestmark = pytest.mark.slurm

ONCE = dict.fromkeys(range(6), 1)


def outcomes(futures: FutureArray[Any]) -> list[Any]:
    """Return all results, failures as their classes."""
    found = futures.results(PATIENCE, return_exceptions=True)
    return [type(each) if isinstance(each, BaseException) else each for each in found]


def squares(*failed: int, kind: type[BaseException] = WorkerDied, items: int = 6) -> list[Any]:
    """Return the items' outcomes when some of them raise."""
    return [kind if item in failed else item * item for item in range(items)]


def test_a_process_of_the_pool(faulty: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
    """If a worker is killed, the error of its item names the signal; all others have values, and none ran twice."""
    work = deed(Deed, 1, 2)
    futures = launch(faulty, cpus_per_task=2, processes=2).map_array(work, range(6), tasks=2)
    work.gate.await_arrival(1, 2)
    os.kill(work.gate.process_of(1), signal.SIGKILL)
    error = futures[1].exception(PATIENCE)
    assert isinstance(error, WorkerDied)
    assert (error.signal, error.item, error.job_id) == (9, 1, f"{futures.job_ids[0]}_0")
    assert "SIGKILL" in str(error)
    assert error.node in {"n1", "n2"}
    work.gate.open()
    assert outcomes(futures) == squares(1)
    assert outcomes(attach(futures.folder)) == squares(1)
    assert work.runs == ONCE


@pytest.mark.parametrize("words", [("--signal=INT", "--full"), ("--signal=HUP", "--batch")])
def test_a_signal_by_scancel(faulty: Cluster, launch: Launch, deed: Callable[..., Any], words: tuple[str, str]) -> None:
    """A signal to all processes, or to the batch script, is an end from outside: the items are retried."""
    work = deed(Deed, 1)
    futures = launch(faulty, retries=1).map_array(work, range(3), tasks=1)
    work.gate.await_arrival(1)
    faulty.run("scancel", *words, f"{futures.job_ids[0]}_0")
    wait_until(lambda: len(futures.job_ids) == 2)
    work.gate.open()
    assert outcomes(futures) == squares(items=3)


def test_a_batch_script_before_its_node(faulty: Cluster, launch: Launch) -> None:
    """A batch script that is killed in its set-up lines was ended from outside, and the error says so."""
    error = launch(faulty, setup=["kill -9 $$"]).submit(abs, -1).exception(PATIENCE)
    assert isinstance(error, WorkerDied)
    assert "before the start of its node" in str(error)


def test_an_item_that_leaves(faulty: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
    """The error of an item that calls os._exit names the status."""
    work = deed(Exits, 1, 4)
    futures = launch(faulty).map_array(work, range(6), tasks=2)
    assert outcomes(futures) == squares(1, 4)
    error = futures[4].exception()
    assert isinstance(error, WorkerDied)
    assert (error.exit_code, error.signal) == (3, None)
    assert "exit status 3" in str(error)
    assert work.runs == ONCE


def test_the_supervisor(faulty: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
    """Recorded outcomes stay, missing ones name the supervisor, and no process outlives it."""
    work = deed(Deed, 1, 3)
    futures = launch(faulty).map_array(work, range(6), tasks=2)
    work.gate.await_arrival(1, 3)
    assert futures[0].result(PATIENCE) == 0
    process = work.gate.process_of(1)
    os.kill(work.supervisor(1), signal.SIGKILL)
    wait_until(lambda: not is_alive(process))
    error = futures[2].exception(PATIENCE)
    assert isinstance(error, WorkerDied)
    assert "the task's supervisor was killed by SIGKILL" in str(error)
    work.gate.open()
    assert outcomes(futures) == squares(1, 2)
    assert work.runs == {0: 1, 1: 1, 3: 1, 4: 1, 5: 1}
    (attempt,) = futures[1].attempts
    assert (attempt.state, attempt.exit_code, attempt.job_id) == (TaskState.FAILED, 137, futures[1].job_id)
    assert (attempt.node, attempt.duration) == (error.node, None)


def test_the_batch_shell(faulty: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
    """Without the batch shell there is no end mark: the scheduler gives the cause."""
    work = deed(Deed, 1, 3)
    futures = launch(faulty).map_array(work, range(6), tasks=2)
    work.gate.await_arrival(1, 3)
    assert futures[0].result(PATIENCE) == 0
    process = work.gate.process_of(1)
    os.kill(parent(work.supervisor(1)), signal.SIGKILL)
    error = futures[1].exception(PATIENCE)
    assert isinstance(error, WorkerDied)
    assert "the task's batch script was killed" in str(error)
    wait_until(lambda: not is_alive(process))
    work.gate.open()
    assert outcomes(futures) == squares(1, 2)
    assert work.runs == {0: 1, 1: 1, 3: 1, 4: 1, 5: 1}


def test_the_step_daemon(
    start_cluster: Callable[[ClusterSpec], Cluster], launch: Launch, deed: Callable[..., Any]
) -> None:
    """When slurmstepd is killed, the node continues and loses nothing."""
    work = deed(Deed, 1, 3)
    # On a cluster of its own, since for slurmctld the job never ends.
    futures = launch(start_cluster(ClusterSpec(nodes=1, accounting=False))).map_array(work, range(6), tasks=2)
    work.gate.await_arrival(1, 3)
    os.kill(parent(parent(work.supervisor(1))), signal.SIGKILL)
    time.sleep(1)
    work.gate.open()
    assert outcomes(futures) == squares()
    assert work.runs == ONCE


@pytest.mark.parametrize("number", [1, pytest.param(100, marks=pytest.mark.slow)])
def test_many_processes_at_once(faulty: Cluster, launch: Launch, deed: Callable[..., Any], number: int) -> None:
    """The deaths of a hundred workers are noticed as fast as one."""
    work = deed(Deed, *range(number))
    processes = 50 if number > 1 else 1
    futures = launch(faulty, cpus_per_task=processes, processes=processes).map_array(
        work, range(number), schedule="static"
    )
    work.gate.await_arrival(*range(number))
    killed = [work.gate.process_of(item) for item in range(number)]
    start = time.monotonic()
    for process in killed:
        os.kill(process, signal.SIGKILL)
    assert outcomes(futures) == squares(*range(number), items=number)
    print(f"{number} killed processes were seen after {time.monotonic() - start:.2f} s")  # noqa: T201


@pytest.mark.parametrize(
    "number", [1, pytest.param(20, marks=pytest.mark.slow), pytest.param(100, marks=pytest.mark.long)]
)
def test_many_supervisors_at_once(faulty: Cluster, launch: Launch, deed: Callable[..., Any], number: int) -> None:
    """The deaths of a hundred supervisors are noticed as fast as one."""
    work = deed(Deed, *range(number))
    futures = launch(faulty).map_array(work, range(number), schedule="static")
    work.gate.await_arrival(*range(number))
    killed = [work.supervisor(item) for item in range(number)]
    start = time.monotonic()
    for process in killed:
        os.kill(process, signal.SIGKILL)
    assert outcomes(futures) == squares(*range(number), items=number)
    print(f"{number} killed supervisors were seen after {time.monotonic() - start:.2f} s")  # noqa: T201
