"""Dynamic schedules under faults: a task finishes its claimed blocks, and any task may claim the others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch import NodeFailure, TaskCancelled, TaskState, TimeLimitExceeded, WorkerDied, attach
from slurmlaunch.runfolder.claims import ClaimReader
from slurmlaunch.runfolder.layout import RunFolder
from tests.faults.deeds import Deed
from tests.faults.test_killed import outcomes, squares
from tests.faults.test_retries import break_node, environment_of
from tests.support.cluster import ClusterSpec
from tests.support.waiting import PATIENCE, is_alive, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from slurmlaunch import Executor, FutureArray
    from tests.faults.conftest import Launch
    from tests.support.cluster import Cluster

pytestmark = pytest.mark.slurm

ITEMS = 12
ONCE = dict.fromkeys(range(ITEMS), 1)
ALL = squares(items=ITEMS)


def share(executor: Executor, work: Deed, *, tasks: int = 2, **how: Any) -> FutureArray[int]:
    """Have tasks claim blocks of two items."""
    return executor.map_array(work, range(ITEMS), tasks=tasks, schedule="dynamic", chunksize=2, **how)


def begin(executor: Executor, work: Deed, *, tasks: int = 2) -> FutureArray[int]:
    """Start the run; wait until one task hangs in its first block, with its first item known, and the other is done."""
    futures = share(executor, work, tasks=tasks)
    work.gate.await_arrival(1)
    wait_until(lambda: futures.counts()["done"] == (1 if tasks == 1 else ITEMS - 1))
    wait_until(lambda: futures[1].job_id is not None)  # the claim of the block that hangs may be seen a poll later
    return futures


def owners(futures: FutureArray[int], number: int = 0) -> dict[int, int]:
    """Return the task of each block of a round."""
    claims = RunFolder(futures.folder).claims(number)
    return {claim.block: claim.task for claim in ClaimReader(claims).new()}


def test_requeued(faulty: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
    """A requeued task continues its claimed blocks, and claims remaining ones."""
    work = deed(Deed, 1)
    futures = begin(launch(faulty), work, tasks=1)
    work.forget(1)
    faulty.run("scontrol", "requeue", f"{futures.job_ids[0]}_0")
    work.gate.await_arrival(1)
    work.gate.open()

    assert outcomes(futures) == ALL
    assert work.runs == {**ONCE, 1: 2}
    assert [attempt.state for attempt in futures[1].attempts] == [TaskState.REQUEUED, TaskState.COMPLETED]
    assert owners(futures) == dict.fromkeys(range(ITEMS // 2), 0)


def test_others_do_the_rest(faulty: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
    """While one task hangs, the other runs all unclaimed items; killing it loses only its own."""
    work = deed(Deed, 1)
    futures = begin(launch(faulty), work)
    other = attach(futures.folder)
    slow = futures[1].job_id
    assert slow != futures[11].job_id == futures[4].job_id
    os.kill(work.supervisor(1), signal.SIGKILL)

    assert outcomes(futures) == squares(1, items=ITEMS)
    assert outcomes(other) == outcomes(attach(futures.folder)) == outcomes(futures)
    error = futures[1].exception()
    assert isinstance(error, WorkerDied)
    assert (error.item, error.job_id) == (1, slow)
    assert work.runs == ONCE
    work.forget(1)
    again = futures.retry()
    work.gate.await_arrival(1)
    work.gate.open()
    assert outcomes(again) == ALL
    assert work.runs == {**ONCE, 1: 2}


def test_retries(faulty: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
    """With retries, the next round has the claimed but unfinished items, and the unclaimed ones."""
    work = deed(Deed, 1)
    futures = begin(launch(faulty, retries=1), work, tasks=1)
    supervisor = work.supervisor(1)
    work.forget(1)
    os.kill(supervisor, signal.SIGKILL)
    work.gate.await_arrival(1)
    work.gate.open()

    assert outcomes(futures) == ALL
    assert work.runs == {**ONCE, 1: 2}
    assert set(owners(futures, 1).values()) == {1}
    assert [len(futures[item].attempts) for item in (0, 1, 11)] == [1, 2, 1]


def test_late(faulty: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
    """When no block is left, pending tasks are cancelled; a task that starts all the same succeeds at once."""
    work = deed(Deed)
    futures = share(launch(faulty, throttle=1), work, tasks=4)

    assert outcomes(futures) == ALL
    assert work.runs == ONCE
    wait_until(lambda: not faulty.run("squeue", "--noheader", "--jobs", *futures.job_ids).strip())
    statuses = {path.name.rpartition(".")[2] for path in (futures.folder / "ended").iterdir()}
    assert statuses <= {"0", "143"}  # one that starts just then is stopped
    subprocess.run([sys.executable, "-m", "slurmlaunch.node", str(futures.folder), "3"], check=True)
    assert set(owners(futures).values()) == {0}
    assert work.runs == ONCE


def test_near_the_time_limit(faulty: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
    """After the warning a task claims nothing more; it is requeued for the unclaimed blocks."""
    work = deed(Deed, 1)
    futures = begin(launch(faulty), work, tasks=1)
    os.kill(work.supervisor(1), signal.SIGUSR1)  # as the batch script does, some time after Slurm
    work.gate.open()

    assert outcomes(futures) == ALL
    assert work.runs == ONCE
    wait_until(lambda: futures[11].attempts[-1].exit_code == 0)
    assert [attempt.exit_code for attempt in futures[11].attempts] == [75, 0]


@pytest.mark.slow
@pytest.mark.long
def test_the_time_limit(faulty: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
    """Without a requeue claimed and unclaimed items end as TimeLimitExceeded."""
    work = deed(Deed, 1)
    futures = begin(launch(faulty, time="00:01:00", requeues=0), work, tasks=1)
    assert futures.wait(2.5 * PATIENCE)  # Slurm looks at limits twice a minute

    assert outcomes(futures) == [0, *[TimeLimitExceeded] * 11]
    taken, free = futures[1].exception(), futures[11].exception()
    assert isinstance(taken, TimeLimitExceeded)
    assert isinstance(free, TimeLimitExceeded)
    assert (taken.task, free.task, free.item) == (0, None, 11)
    assert futures[11].state is TaskState.FAILED


def test_cancelled_by_someone_else(faulty: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
    """Cancelling one task cancels its claimed items; cancelling all cancels the unclaimed ones too."""
    work = deed(Deed, 1, 3)
    futures = share(launch(faulty), work)
    work.gate.await_arrival(1, 3)
    wait_until(lambda: futures.counts()["running"] == 2)
    first = futures[1].job_id
    assert first
    faulty.run("scancel", first)
    error = futures[1].exception(PATIENCE)
    assert isinstance(error, TaskCancelled)
    assert not futures[11].done()
    faulty.run("scancel", futures.job_ids[0])

    assert outcomes(futures) == [0, TaskCancelled, 4, *[TaskCancelled] * 9]
    assert work.runs == dict.fromkeys(range(4), 1)


def test_cancelled_by_us(faulty: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
    """Unclaimed items are cancelled, and running tasks continue."""
    work = deed(Deed, 1, 3)
    futures = share(launch(faulty), work)
    work.gate.await_arrival(1, 3)
    assert futures[6:].cancel()
    wait_until(lambda: futures.counts()["cancelled"] == 6)
    work.gate.open()

    assert futures[:6].results(PATIENCE) == ALL[:6]
    wait_until(lambda: len(list((futures.folder / "ended").iterdir())) == 2)
    assert set(work.runs) <= set(range(6))


ATTACHES = """
    import sys
    import slurmlaunch

    futures = slurmlaunch.attach(sys.argv[1])
    print(futures[1].job_id, futures[1].running(), futures[1].state.value, flush=True)
    print(futures.results(60), flush=True)
"""


def test_another_process(faulty: Cluster, launch: Launch, deed: Callable[..., Any], tmp_path: Path) -> None:
    """A client that attaches during the run sees which task has which item, and gets all results."""
    work = deed(Deed, 1)
    futures = begin(launch(faulty), work)
    command = [sys.executable, "-c", textwrap.dedent(ATTACHES), str(futures.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as other:
        assert other.stdout
        assert other.stdout.readline() == f"{futures[1].job_id} True RUNNING\n"
        work.gate.open()
        assert other.stdout.read() == f"{ALL}\n"
    assert outcomes(futures) == ALL
    assert work.runs == ONCE


SUBMITS = """
    import os
    import sys

    from slurmlaunch import Executor

    def square(item):
        return item * item

    executor = Executor(sys.argv[1], cluster="slurm")
    futures = executor.map_array(square, range(2000), tasks=3, schedule="dynamic", throttle=1)
    print(futures.folder, flush=True)
    os._exit(0)
"""


def test_without_a_client(faulty: Cluster, launch: Launch, tmp_path: Path) -> None:
    """The tasks share the items without a client: it may end after the submission."""
    folder = launch(faulty).folder
    command = [sys.executable, "-c", textwrap.dedent(SUBMITS), str(folder)]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, check=True).stdout
    ended = Path(said.strip(), "ended")
    wait_until(lambda: len(list(ended.iterdir())) == 3)  # a late task succeeds, too, and was not cancelled
    futures = attach(said.strip())

    assert {"0"} == {path.suffix[1:] for path in ended.iterdir()}
    assert [item * item for item in range(2000)] == futures.results(PATIENCE)
    assert {0} == set(owners(futures).values())


@pytest.mark.slow
def test_a_node_that_fails(
    start_cluster: Callable[[ClusterSpec], Cluster], launch: Launch, deed: Callable[..., Any]
) -> None:
    """The items claimed by its task end as NodeFailure, or a retry runs them elsewhere; the other task continues."""
    fragile = start_cluster(ClusterSpec(lines=("SlurmdTimeout=5", "TreeWidth=2")))
    work = deed(Deed, 1, 3)
    executor = launch(fragile, no_requeue=True, requeues=0, exclusive=True, retries=1)
    futures = share(executor, work)
    work.gate.await_arrival(1, 3)
    wait_until(lambda: futures.counts()["done"] == 2)
    node = environment_of(work.supervisor(1))["SLURMD_NODENAME"]
    break_node(fragile, work, 1)
    work.forget(1)
    work.gate.open(3)
    work.gate.await_arrival(1)
    work.gate.open()

    assert outcomes(futures) == ALL
    # After a power failure, items that were not on disk may run again; here all were.
    assert work.runs == {**ONCE, 1: 2}
    assert futures[1].attempts[0].state is TaskState.NODE_FAIL
    assert futures[1].attempts[0].node == node
    assert not isinstance(futures[11].exception(), NodeFailure)
    fragile.start_daemon(f"slurmd-{node}")


def elements_left(cluster: Cluster, job_id: str) -> set[str]:
    """Return the elements of a job that are in the queue."""
    rows = [row.split() for row in cluster.run("squeue", "--noheader", "--array", "--format=%F %K").splitlines()]
    return {element for job, element in rows if job == job_id}


def test_surplus_tasks_leave_the_queue(faulty: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
    """Once all items are taken, tasks that never began are cancelled; a requeued one waits, too, and runs its item.

    A job that waits for the end of the run starts after it.
    """
    work = deed(Deed, 0, 3)
    futures = launch(faulty).map_array(work, range(4), throttle=1)
    work.gate.await_arrival(0)
    first = work.gate.process_of(0)
    job = futures.job_ids[0]
    after = work.gate.folder / "after"
    words = ("--dependency", f"afterany:{job}", "--output=/dev/null", "--wrap", f"touch {after}")
    faulty.run("sbatch", *words)
    faulty.run("scontrol", "requeuehold", f"{job}_0")
    work.gate.await_arrival(3)
    wait_until(lambda: elements_left(faulty, job) == {"0", "1"})
    wait_until(lambda: not is_alive(first))  # it may go on for some seconds, and would end if the gate opened
    work.gate.open()
    faulty.run("scontrol", "release", f"{job}_0")

    assert outcomes(futures) == squares(items=4)
    assert work.runs == {0: 2, 1: 1, 2: 1, 3: 1}
    assert {futures[item].job_id for item in (1, 2, 3)} == {f"{job}_1"}
    assert (futures[0].job_id, len(futures[0].attempts)) == (f"{job}_0", 2)
    wait_until(after.exists)


PLAIN = SUBMITS.replace('tasks=3, schedule="dynamic", throttle=1', "throttle=1").replace("2000", "60")


def test_surplus_tasks_without_a_client(faulty: Cluster, launch: Launch, tmp_path: Path) -> None:
    """A task that finds no item has its batch script cancel those that never began, by their numbers."""
    folder = launch(faulty).folder
    command = [sys.executable, "-c", textwrap.dedent(PLAIN), str(folder)]
    run = Path(subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, check=True).stdout.strip())
    wait_until((run / "rounds" / "0" / "claims" / "surplus.0").exists)
    wait_until(lambda: not elements_left(faulty, attach(run).job_ids[0]))

    assert [item * item for item in range(60)] == attach(run).results(PATIENCE)
    assert len(list((run / "outcomes").iterdir())) <= 3
