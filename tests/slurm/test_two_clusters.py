"""Runs on another cluster than the client's own, ``clusters=``: two clusters under one slurmdbd.

They run on the kind of cluster ``two`` only, since two clusters take seven seconds to start.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import pytest

import slurmlaunch
from slurmlaunch import Executor, TaskCancelled
from slurmlaunch.client.watcher import current_client
from tests.conftest import started_cluster
from tests.support import scripts
from tests.support.cluster import Cluster, ClusterSpec
from tests.support.clusters import chosen
from tests.support.waiting import Gate, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(chosen().name != "two", reason="runs in nox -s cluster-two"),
]


class Two(NamedTuple):
    """The client's own cluster, and the other one."""

    own: Cluster
    other: Cluster

    def queued_on_other(self) -> str:
        """Return what the other cluster has in its queue, as its own clients see it."""
        return self.other.run("squeue", "--noheader", "--format=%i")


@pytest.fixture(scope="module")
def clusters() -> Iterator[Two]:
    """Start both."""
    spec = ClusterSpec(nodes=1)
    with started_cluster(spec) as own, Cluster(spec, beside=own) as other:
        yield Two(own, other)


@pytest.fixture
def two(clusters: Two, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Two]:
    """Make the test a client of its own cluster, with states of its own, queried every second."""
    (tmp_path / "runtime").mkdir(mode=0o700)
    settings = {
        "SLURM_CONF": clusters.own.env["SLURM_CONF"],
        "XDG_RUNTIME_DIR": str(tmp_path / "runtime"),
        "SLURMLAUNCH_QUERY_INTERVAL": "1",
        "SLURMLAUNCH_LATENCY": "1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    current_client().backends.clear()
    yield clusters
    current_client().backends.clear()


@pytest.fixture
def executor(two: Two, tmp_path: Path) -> Iterator[Executor]:
    """Return an executor for the other cluster."""
    executor = Executor(tmp_path / "runs", cluster="slurm", clusters=two.other.name)
    yield executor
    executor.shutdown(cancel_futures=True)


@pytest.fixture
def gate(executor: Executor, tmp_path: Path) -> Iterator[Gate]:
    """Return a gate, which opens before the executor is shut down."""
    del executor
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()


def where(item: int) -> tuple[int, str]:
    """Return the cluster on which an item runs; item 3 fails."""
    if item == 3:
        raise ValueError(item)
    return item, os.environ["SLURM_CLUSTER_NAME"]


def test_results_and_states(two: Two, executor: Executor) -> None:
    """Items run on the other cluster, while the client's own one runs others."""
    own = Executor(executor.folder, cluster="slurm").submit(where, 0)
    array = executor.map_array(where, range(6), tasks=6)

    assert own.result() == (0, two.own.name)
    assert [array[item].result() for item in (0, 1, 2, 4, 5)] == [(item, two.other.name) for item in (0, 1, 2, 4, 5)]
    assert isinstance(array[3].exception(), ValueError)
    (job,) = array.job_ids
    wait_until(lambda: job in two.own.run("sacct", f"--clusters={two.other.name}", "--noheader", "--format=JobID%20"))


def test_a_list_of_clusters(two: Two, executor: Executor) -> None:
    """Of several clusters Slurm chooses one, and the job id says which."""
    both = f"{two.own.name},{two.other.name}"
    future = executor.options(clusters=both).submit(where, 1)

    _, name = future.result()

    assert future.run.job_ids[0].partition(";")[2] == name


def test_an_end_on_the_other(two: Two, executor: Executor, gate: Gate) -> None:
    """An end that only the other cluster knows is told, and the reason of a pending job is its own."""
    ended, held = executor.submit(gate.enter, 0), executor.options(hold=True).submit(abs, -1)
    gate.await_arrival(0)
    wait_until(lambda: "you hold it" in (held.reason or ""))
    two.other.run("scancel", ended.run.job_ids[0])

    assert isinstance(ended.exception(), TaskCancelled)
    assert held.cancel()


def test_cancel(two: Two, executor: Executor, gate: Gate) -> None:
    """A cancellation reaches running and pending tasks there."""
    array = executor.map_array(gate.enter, range(12), tasks=12)
    gate.await_arrival(0)
    array.cancel()

    assert all(future.cancelled() for future in array)
    wait_until(lambda: not two.queued_on_other())


ATTACH = """
    import sys
    import slurmlaunch

    array = slurmlaunch.attach(sys.argv[1])
    print(array.results())
    array = slurmlaunch.attach(sys.argv[2])
    print([future.cancelled() for future in array], array.cancel())
    array.wait()
    print([future.cancelled() for future in array])
"""


def test_attach(two: Two, executor: Executor, gate: Gate, tmp_path: Path) -> None:
    """Another process comes back to runs there by their folder alone: for results, and to cancel."""
    array, running = executor.map_array(where, range(3)), executor.map_array(gate.enter, [0])
    gate.await_arrival(0)

    said = scripts.run(tmp_path, ATTACH, array.folder, running.folder).splitlines()

    assert said[0] == str([(item, two.other.name) for item in range(3)])
    assert said[1].startswith("[False]")
    assert said[2] == "[True]"
    wait_until(lambda: not two.queued_on_other())


def test_retry(two: Two, executor: Executor) -> None:
    """What failed there runs again there."""
    array = executor.map_array(where, [2, 3])
    array.wait()
    again = slurmlaunch.attach(array.folder).retry(lambda item: (item, os.environ["SLURM_CLUSTER_NAME"]))

    assert again.results() == [(2, two.other.name), (3, two.other.name)]


def test_the_doctor(two: Two, tmp_path: Path) -> None:
    """It checks the other cluster, and finds nothing wrong; a cluster that does not exist is named, with advice."""
    report = slurmlaunch.doctor(tmp_path / "runs", clusters=two.other.name)
    assert {check.level for check in report.checks} == {"ok"}, str(report)
    assert two.other.name in next(check.found for check in report.checks if check.name == "slurm")

    wrong = slurmlaunch.doctor(tmp_path / "runs", clusters="mars")
    assert [check.name for check in wrong.errors] == ["slurm"]
    assert "clusters=" in wrong.errors[0].advice
