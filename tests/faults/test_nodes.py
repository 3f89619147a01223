"""Nodes that are drained while tasks run, and nodes whose prolog fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch import NodeFailure
from tests.faults.deeds import Deed
from tests.faults.test_killed import ONCE, outcomes, squares
from tests.support.cluster import ClusterSpec
from tests.support.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.faults.conftest import Launch
    from tests.support.cluster import Cluster

pytestmark = pytest.mark.slurm

FAILS_ONCE = "#!/bin/sh\n! mv {place}/fails {place}/failed 2>/dev/null\n"


def test_drained(faulty: Cluster, launch: Launch, deed: Callable[..., Any]) -> None:
    """Drained nodes end what they run; what cannot start says why, and starts when they are back."""
    work = deed(Deed, 1)
    executor = launch(faulty)
    running = executor.submit(work, 1)
    work.gate.await_arrival(1)
    faulty.run("scontrol", "update", "nodename=n1,n2", "state=drain", "reason=test")
    try:
        waiting = executor.submit(work, 2)
        wait_until(lambda: "drained" in (waiting.reason or "").lower())
        work.gate.open()
        assert running.result(PATIENCE) == 1
        assert not waiting.done()
    finally:
        faulty.run("scontrol", "update", "nodename=n1,n2", "state=resume")
    assert waiting.result(PATIENCE) == 4
    assert work.runs == {1: 1, 2: 1}


@pytest.mark.slow
def test_prolog(
    start_cluster: Callable[[ClusterSpec], Cluster], launch: Launch, deed: Callable[..., Any], tmp_path: Path
) -> None:
    """A prolog that fails is a NodeFailure, which says so, and leaves no held job; a retry runs elsewhere."""
    prolog = tmp_path / "prolog"
    prolog.write_text(FAILS_ONCE.format(place=tmp_path), encoding="utf-8")
    prolog.chmod(0o755)
    cluster = start_cluster(ClusterSpec(accounting=False, lines=(f"Prolog={prolog}",)))
    work = deed(Deed)

    (tmp_path / "fails").touch()
    futures = launch(cluster).map_array(work, range(6), tasks=1)
    assert outcomes(futures) == [NodeFailure] * 6
    assert "failed prolog (launch failed requeued held)" in str(futures[0].exception())
    assert work.runs == {}
    wait_until(lambda: not cluster.run("squeue", "--noheader", "--states=PENDING,RUNNING"))
    assert "Prolog error" in cluster.run("sinfo", "--Node", "--format=%N %E")
    assert outcomes(futures.retry()) == squares()
    assert work.runs == ONCE

    cluster.run("scontrol", "update", "nodename=n1", "state=resume")
    (tmp_path / "fails").touch()
    again = launch(cluster, retries=1).map_array(work, range(6), tasks=1)
    assert outcomes(again) == squares()
    assert set(work.runs.values()) == {2}
