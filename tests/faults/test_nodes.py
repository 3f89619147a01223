"""Nodes on which nothing starts: drained ones, and one whose prolog fails."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch import NodeFailure
from tests.faults.deeds import Deed
from tests.support.cluster import ClusterSpec
from tests.support.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.faults.conftest import Launch
    from tests.support.cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_drained_and_with_a_prolog_that_fails(
    start_cluster: Callable[[ClusterSpec], Cluster],
    launch: Launch,
    deed: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """A drained node ends what it runs; what cannot start says why. A failed prolog is an error; a retry runs."""
    broken = tmp_path / "broken"
    prolog = tmp_path / "prolog"
    prolog.write_text(f"#!/bin/sh\ntest ! -e {shlex.quote(str(broken))}\n", encoding="utf-8")
    prolog.chmod(0o755)
    cluster = start_cluster(ClusterSpec(nodes=1, cpus_per_node=2, accounting=False, lines=(f"Prolog={prolog}",)))
    work = deed(Deed, 1)
    executor = launch(cluster)

    running = executor.submit(work, 1)
    work.gate.await_arrival(1)
    cluster.run("scontrol", "update", "nodename=n1", "state=drain", "reason=memory")
    waiting = executor.submit(work, 2)
    wait_until(lambda: "starts later" in (waiting.reason or ""))
    assert "drained" in str(waiting.reason).lower()
    work.gate.open()
    assert running.result(PATIENCE) == 1
    assert not waiting.done()

    broken.touch()
    cluster.run("scontrol", "update", "nodename=n1", "state=resume")
    error = waiting.exception(PATIENCE)
    assert isinstance(error, NodeFailure)
    assert "prolog" in str(error).lower()
    wait_until(lambda: not cluster.run("squeue", "--noheader"))  # Slurm would hold it for ever
    broken.unlink()
    cluster.run("scontrol", "update", "nodename=n1", "state=resume")
    assert waiting.run.retry()[0].result(PATIENCE) == 4
    assert work.runs == {1: 1, 2: 1}
