"""What a site enforces without control groups, or with them: memory by Slurm's own sampling, cores by task/affinity."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch import OutOfMemory
from slurmlaunch.caps import usable_cpus
from tests.conftest import several_cpus, started_cluster
from tests.faults.conftest import lacking_controllers
from tests.faults.deeds import Greedy, Widens
from tests.faults.test_killed import ONCE, outcomes, squares
from tests.support.cluster import ClusterSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.faults.conftest import Launch
    from tests.support.cluster import Cluster

pytestmark = pytest.mark.slurm

CONSTRAINED = "IgnoreSystemd=yes\nConstrainCores=yes\n"


@pytest.fixture(scope="module")
def sampled() -> Iterator[Cluster]:
    """Start a cluster that samples memory, kills what has too much, and binds tasks to cores; no control groups."""
    lines = ("JobAcctGatherParams=OverMemoryKill", "TaskPlugin=task/affinity")
    with started_cluster(ClusterSpec(nodes=1, cpus_per_node=usable_cpus(), accounting=False, lines=lines)) as cluster:
        yield cluster


def test_memory(sampled: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
    """Slurm's sampling kills a task with too much memory: the error says so with both amounts, as for the kernel."""
    work = deed(Greedy, 1)
    futures = launch(sampled, mem="150M").map_array(work, range(6), tasks=2)
    assert outcomes(futures) == squares(1, 2, kind=OutOfMemory)
    error = futures[1].exception()
    assert "MiB of memory and may use 150 MiB" in str(error)
    assert "retry(mem=" in error.__notes__[-1]  # type: ignore[union-attr]
    assert work.runs == {item: runs for item, runs in ONCE.items() if item != 2}
    assert outcomes(futures.retry(mem="900M")) == squares()


@several_cpus
def test_cores(sampled: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
    """task/affinity gives each task cores of its own, which a process may leave."""
    masks, wider = side_by_side(sampled, launch, deed)
    assert [len(mask) for mask in masks] == [1, 1]
    assert masks[0] != masks[1]
    assert wider == [sorted(os.sched_getaffinity(0))] * 2


@several_cpus
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a cluster that makes control groups")
@pytest.mark.skipif(bool(lacking_controllers("cpuset")), reason=lacking_controllers("cpuset"))
def test_constrained_cores(
    start_cluster: Callable[[ClusterSpec], Cluster], launch: Launch, deed: Callable[..., Any]
) -> None:
    """With ConstrainCores=yes a process cannot leave the cores of its task."""
    lines = ("ProctrackType=proctrack/cgroup", "TaskPlugin=task/cgroup,task/affinity")
    spec = ClusterSpec(nodes=1, cpus_per_node=usable_cpus(), accounting=False, lines=lines)
    cluster = start_cluster(ClusterSpec(**{**vars(spec), "files": {"cgroup.conf": CONSTRAINED}}))
    masks, wider = side_by_side(cluster, launch, deed)
    assert [len(mask) for mask in masks] == [1, 1]
    assert masks[0] != masks[1]
    assert wider == masks


def side_by_side(cluster: Cluster, launch: Launch, deed: Callable[..., Any]) -> tuple[list[Any], list[Any]]:
    """Run two tasks of one CPU at once; return their masks, and those that they have after they asked for all CPUs."""
    work = deed(Widens, 0, 1)
    futures = launch(cluster, cpus_per_task=1, mem="100M").map_array(work, range(2), tasks=2)
    work.gate.await_arrival(0, 1)
    work.gate.open()
    masks, wider = zip(*futures.results(60), strict=True)
    return [*masks], [*wider]
