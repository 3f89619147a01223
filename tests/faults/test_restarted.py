"""Tasks that Slurm restarts or ends: requeue, preemption, suspension, another user's scancel."""

from __future__ import annotations

import time
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from slurmlaunch import Preempted, TaskCancelled, TaskState, attach
from tests.conftest import started_cluster
from tests.faults.deeds import Deed, nap
from tests.faults.test_killed import ONCE, outcomes, squares
from tests.support.cluster import Cluster, ClusterSpec
from tests.support.waiting import PATIENCE, is_alive, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slurmlaunch import Future, FutureArray
    from tests.faults.conftest import Launch

pytestmark = pytest.mark.slurm


def begin(launch: Launch, cluster: Cluster, work: Deed, **options: Any) -> FutureArray[int]:
    """Run six items in two tasks; wait until the waiting ones have started and the earlier ones are done."""
    futures = launch(cluster, **options).map_array(work, range(6), tasks=2)
    work.gate.await_arrival(*work.waits)
    assert futures[0].result(PATIENCE) == 0
    return futures


def test_requeued(faulty: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
    """A requeued task continues: recorded items do not run again."""
    work = deed(Deed, 1)
    futures = begin(launch, faulty, work)
    first = work.gate.process_of(1)
    work.forget(1)
    faulty.run("scontrol", "requeue", f"{futures[1].job_id}")
    work.gate.await_arrival(1)
    assert not is_alive(first)
    work.gate.open()
    assert outcomes(futures) == squares()
    assert work.runs == {**ONCE, 1: 2}
    before, after = futures[1].attempts
    assert (before.state, before.job_id) == (TaskState.REQUEUED, futures[1].job_id)
    wait_until(lambda: futures[1].attempts[1].exit_code is not None)
    after = futures[1].attempts[1]
    assert (before.exit_code, after.exit_code, after.state) == (143, 0, TaskState.COMPLETED)
    assert before.node in {"n1", "n2"}
    assert after.duration is not None
    assert after.peak_memory
    assert attach(futures.folder)[1].attempts == futures[1].attempts
    assert len(futures[5].attempts) == 1


def test_requeued_and_held(
    faulty: Cluster, launch: Launch, deed: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A held task has not ended: it waits, this is logged once, and it continues when it is released."""
    work = deed(Deed, 1)
    futures = begin(launch, faulty, work)
    work.forget(1)
    faulty.run("scontrol", "requeuehold", f"{futures[1].job_id}")
    wait_until(lambda: futures[1].state.is_queued or futures[1].attempts[0].state is TaskState.REQUEUED)
    time.sleep(4)
    assert not futures[1].done()
    (warning,) = [each.getMessage() for each in caplog.records if "scontrol release" in each.getMessage()]
    assert "held" in warning.lower()
    faulty.run("scontrol", "release", f"{futures[1].job_id}")
    work.gate.open()
    assert outcomes(futures) == squares()
    assert work.runs == {**ONCE, 1: 2}


class Preemption(NamedTuple):
    """A cluster whose jobs are preempted.

    Attributes:
        cluster: the cluster.
        option: the option of the executor that decides it: jobs with ``requeued`` start again, with ``cancelled`` not.
        urgent: the value of the option for the jobs that preempt these.
    """

    cluster: Cluster
    option: str
    urgent: str

    def begin(self, launch: Launch, work: Deed, value: str, **options: Any) -> FutureArray[int]:
        """Do as `begin`, with jobs that others preempt."""
        return begin(launch, self.cluster, work, **{self.option: value}, **options)

    def preempt(self, launch: Launch) -> Future[int]:
        """Submit a job that preempts all nodes of the cluster at once."""
        return launch(self.cluster, nodes=2, exclusive=True, **{self.option: self.urgent}).submit(nap, 1)


@pytest.fixture(scope="module", params=["partition", pytest.param("qos", marks=pytest.mark.long)])
def preemption(request: pytest.FixtureRequest) -> Iterator[Preemption]:
    """Return a cluster that preempts by partition, or another by QOS."""
    if request.param == "partition":
        yield Preemption(request.getfixturevalue("faulty"), "partition", "debug")
        return
    settings = ("PreemptType=preempt/qos", "PreemptMode=REQUEUE")
    with started_cluster(ClusterSpec(cpus_per_node=64, lines=settings)) as cluster:
        sacctmgr = ("sacctmgr", "--immediate")
        cluster.run(*sacctmgr, "add", "qos", "requeued", "PreemptMode=requeue")
        cluster.run(*sacctmgr, "add", "qos", "cancelled", "PreemptMode=cancel")
        cluster.run(*sacctmgr, "add", "qos", "urgent", "Preempt=requeued,cancelled")
        # slurmdbd tells slurmctld a moment later.
        wait_until(lambda: "QOS=urgent" in cluster.run("scontrol", "show", "assoc_mgr", "flags=qos"))
        yield Preemption(cluster, "qos", "urgent")


def test_preempted_and_requeued(preemption: Preemption, launch: Launch, deed: Callable[..., Any]) -> None:
    """A preempted and requeued task continues after the other job; recorded items do not run again."""
    work = deed(Deed, 1, 3)
    futures = preemption.begin(launch, work, "requeued")
    work.forget(1)
    work.forget(3)
    assert preemption.preempt(launch).result(PATIENCE) == 1
    work.gate.open()
    assert outcomes(futures) == squares()
    assert work.runs == {**ONCE, 1: 2, 3: 2}


def test_preempted_and_cancelled(preemption: Preemption, launch: Launch, deed: Callable[..., Any]) -> None:
    """The unfinished items of a preempted and cancelled task end as Preempted."""
    work = deed(Deed, 1, 3)
    futures = preemption.begin(launch, work, "cancelled")
    assert preemption.preempt(launch).result(PATIENCE) == 1
    error = futures[1].exception(PATIENCE)
    assert isinstance(error, Preempted)
    assert (error.state, error.job_id) == ("PREEMPTED", futures[1].job_id)
    assert outcomes(futures) == squares(1, 2, 3, 4, 5, kind=Preempted)
    assert work.runs == {0: 1, 1: 1, 3: 1}
    assert [attempt.state for attempt in futures[1].attempts] == [TaskState.PREEMPTED]


@pytest.mark.long
def test_preempted_and_submitted_again(preemption: Preemption, launch: Launch, deed: Callable[..., Any]) -> None:
    """With retries=1 a preempted and cancelled task is submitted again, and all its items have values."""
    work = deed(Deed, 1, 3)
    futures = preemption.begin(launch, work, "cancelled", retries=1)
    work.forget(1)
    work.forget(3)
    assert preemption.preempt(launch).result(PATIENCE) == 1
    work.gate.open()
    assert outcomes(futures) == squares()
    assert work.runs == {**ONCE, 1: 2, 3: 2}
    assert len(futures.job_ids) == 2


def test_cancelled_by_someone_else(faulty: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
    """If someone else cancels the job, a running or a pending element, its items are TaskCancelled; others continue."""
    work = deed(Deed, *range(6))
    executor = launch(faulty)
    one = executor.map_array(work, range(6), chunksize=1, throttle=3)
    work.gate.await_arrival(0, 1, 2)
    faulty.run("scancel", f"{one.job_ids[0]}_1", f"{one.job_ids[0]}_4")
    assert isinstance(one[1].exception(PATIENCE), TaskCancelled)
    assert isinstance(one[4].exception(PATIENCE), TaskCancelled)
    assert not isinstance(one[4].exception(), CancelledError)
    work.gate.open(0)
    assert one[0].result(PATIENCE) == 0
    work.gate.await_arrival(3)
    faulty.run("scancel", one.job_ids[0])
    assert outcomes(one) == squares(1, 2, 3, 4, 5, kind=TaskCancelled)
    assert not {4} & set(work.runs)
    assert set(work.runs.values()) == {1}


def test_suspended(faulty: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
    """A suspended task has not ended: it continues when it is resumed."""
    work = deed(Deed, 1)
    futures = begin(launch, faulty, work)
    faulty.run("scontrol", "suspend", futures[1].job_id or "")
    wait_until(lambda: futures[1]._run.tasks.view(0).state is TaskState.SUSPENDED)  # noqa: SLF001
    work.gate.open()
    time.sleep(4)
    assert not futures[1].done()
    faulty.run("scontrol", "resume", futures[1].job_id or "")
    assert outcomes(futures) == squares()
    assert work.runs == ONCE
