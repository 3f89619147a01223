"""Jobs that Slurm does not start, and what the user is told of it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import re
from time import sleep
from typing import TYPE_CHECKING

import pytest

from tests.support.cluster import Cluster, ClusterSpec
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.conftest import Launch

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

LINES = (
    "AccountingStorageEnforce=limits",
    "PartitionName=debug Nodes=ALL Default=YES DefaultTime=5 MaxTime=INFINITE",
    "PartitionName=short Nodes=ALL DefaultTime=5 MaxTime=10",
    "PartitionName=narrow Nodes=ALL DefaultTime=5 MaxNodes=1",
)


def test_reasons(
    start_cluster: Callable[[ClusterSpec], Cluster], launch: Launch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each pending future says why, and only the requests that cannot be met are warned of."""
    cluster = start_cluster(ClusterSpec(nodes=2, cpus_per_node=2, lines=LINES))
    user = os.environ.get("USER", "root")
    cluster.run("sacctmgr", "-i", "add", "account", "tight", "GrpTRES=cpu=1")
    cluster.run("sacctmgr", "-i", "add", "user", user, "account=tight")
    busy = launch(cluster, exclusive=True).submit(sleep, 60)
    wait_until(busy.running)
    cases = {
        r"not start as asked \(PartitionNodeLimit\): .*change nodes=": launch(
            cluster, partition="narrow", nodes=2
        ).submit(sleep, 600),
        r"not start as asked \(PartitionTimeLimit\): .*change time=": launch(
            cluster, partition="short", time=30
        ).submit(sleep, 600),
        r"starts later \((Resources|Priority).*\)": launch(cluster, nodes=2, exclusive=True).submit(sleep, 600),
        r"limit of yours or your group's \(AssocGrpCpuLimit\)": launch(
            cluster, account="tight", cpus_per_task=2
        ).submit(sleep, 600),
    }

    def wrong() -> list[str | None]:
        return [future.reason for pattern, future in cases.items() if not re.search(pattern, future.reason or "")]

    with contextlib.suppress(TimeoutError):
        wait_until(lambda: not wrong(), 30)
    assert wrong() == []
    warned = [each.getMessage() for each in caplog.records if "will not start" in each.getMessage()]
    assert sorted(re.findall(r"Slurm says (\w+)", " ".join(warned))) == ["PartitionNodeLimit", "PartitionTimeLimit"]
    asked = cases[r"not start as asked \(PartitionTimeLimit\): .*change time="]
    with pytest.raises(concurrent.futures.TimeoutError, match=r"PartitionTimeLimit.*change time="):
        asked.result(timeout=0.1)
    with pytest.raises(concurrent.futures.TimeoutError, match="PartitionTimeLimit"):
        asked.run.results(timeout=0.1)
    assert busy.reason is None
    busy.cancel()
