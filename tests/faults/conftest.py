"""The clusters of the fault suite, and clients that query them every second."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pytest

from slurmlaunch import Executor
from slurmlaunch.client.watcher import current_client
from tests.conftest import started_cluster
from tests.faults.deeds import Deed
from tests.faults.wrapped import Wrapped
from tests.support import clusters
from tests.support.cluster import ClusterSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.cluster import Cluster

PREEMPTION = (
    "PreemptType=preempt/partition_prio",
    "PreemptMode=REQUEUE",
    "PartitionName=debug Nodes=ALL Default=YES DefaultTime=INFINITE MaxTime=INFINITE PriorityTier=5 PreemptMode=OFF",
    "PartitionName=requeued Nodes=ALL DefaultTime=INFINITE MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE",
    "PartitionName=cancelled Nodes=ALL DefaultTime=INFINITE MaxTime=INFINITE PriorityTier=1 PreemptMode=CANCEL",
)

D = TypeVar("D", bound=Deed)


class Launch(Protocol):
    """Makes an executor that is a client of a cluster; takes any options."""

    def __call__(self, cluster: Cluster, **options: Any) -> Executor:
        """Make it."""


def lacking_controllers(*names: str, version: int | None = None) -> str:
    """Say which controllers this machine lacks, of control groups of one version or of any; empty if it has all."""
    found: dict[str, int] = {}
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup":
            found |= dict.fromkeys(options.split(","), 1)
        elif kind == "cgroup2":
            with contextlib.suppress(OSError):
                found |= dict.fromkeys(Path(place, "cgroup.controllers").read_text(encoding="utf-8").split(), 2)
    if lacks := [name for name in names if found.get(name, 0) not in ({version} if version else {1, 2})]:
        where = ", ".join(f"{name}: {f'version {found[name]}' if name in found else 'none'}" for name in lacks)
        return f"needs control groups of version {version or '1 or 2'}; this machine has {where}"
    return ""


@pytest.fixture(scope="package")
def faulty() -> Iterator[Cluster]:
    """Start the cluster that most faults happen on, with partitions whose jobs are preempted."""
    with started_cluster(ClusterSpec(cpus_per_node=64, lines=PREEMPTION)) as cluster:
        yield cluster


@pytest.fixture(scope="package")
def strict() -> Iterator[Cluster]:
    """Start a cluster that enforces the jobs' memory limits, which takes root."""
    if os.getuid() != 0:
        pytest.skip("only root can start a cluster that holds jobs to their memory")
    if lacks := lacking_controllers("memory"):
        pytest.skip(lacks)
    with started_cluster(ClusterSpec(nodes=1, cgroup=True)) as cluster:
        yield cluster


@pytest.fixture
def _quick_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Query states every second, and share neither answers nor backends with other tests."""
    (tmp_path / "runtime").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("SLURMLAUNCH_QUERY_INTERVAL", "1")
    monkeypatch.setenv("SLURMLAUNCH_LATENCY", str(clusters.chosen().latency))
    current_client().backends.clear()
    yield
    current_client().backends.clear()


@pytest.fixture
def launch(_quick_answers: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Launch]:
    """Return a function that makes executors; their remaining items are cancelled after the test."""
    with contextlib.ExitStack() as executors:

        def make(cluster: Cluster, **options: Any) -> Executor:
            for name, value in cluster.env.items():
                monkeypatch.setenv(name, value)
            executor = Executor(tmp_path / "runs", cluster="slurm", **options)
            executors.callback(executor.shutdown, cancel_futures=True)
            return executor

        yield make


@pytest.fixture
def deed(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Return a function that makes the work of a class; its items stop waiting after the test."""
    made: list[Deed] = []

    def make(kind: type[D], *waits: int) -> D:
        (tmp_path / "story").touch()
        made.append(kind(tmp_path, *waits))
        return made[-1]  # type: ignore[return-value]

    yield make
    for each in made:
        each.gate.open()


@pytest.fixture
def wrapped(cluster: Cluster, _quick_answers: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wrapped:
    """Wrap the commands of the session's cluster."""
    wrapped = Wrapped(tmp_path / "wrapped")
    monkeypatch.setenv("PATH", wrapped.path)
    return wrapped


@pytest.fixture
def own_cluster(
    start_cluster: Callable[[ClusterSpec], Cluster], _quick_answers: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[[ClusterSpec], Cluster]:
    """Return a function that starts a cluster of the test's own, and makes the test its client."""

    def start(spec: ClusterSpec) -> Cluster:
        cluster = start_cluster(spec)
        for name, value in cluster.env.items():
            monkeypatch.setenv(name, value)
        return cluster

    return start
