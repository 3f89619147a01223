"""A busy cluster of 64 small nodes, on which another user's jobs wait.

A user of this machine (`tests.support.users`) is the client, so that `sdiag` counts that user's calls of the controller
apart from those of Slurm's daemons. `benchmarks/crowd.py` measures there, and `tests/slurm/test_crowd.py` has its test.
"""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from tests.support.cluster import ClusterSpec
from tests.support.clusters.kind import Kind
from tests.support.users import two_users

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.cluster import Cluster
    from tests.support.clusters.strict import Start
    from tests.support.users import User

NODES = 64
_OTHERS = 300


class Crowd(Kind):
    """The kind itself: its test makes the cluster."""

    suites = ("slurm/test_crowd.py",)
    marks = "slurm"

    def missing(self) -> list[str]:
        """Return what this machine lacks."""
        return super().missing() if os.geteuid() == 0 else ["Only root can be two users."]


class Site(NamedTuple):
    """A crowded cluster, and the user whose calls are counted."""

    cluster: Cluster
    user: User

    def calls(self) -> int:
        """Return how many calls of the user the controller has counted."""
        statistics = self.cluster.run("sdiag")
        found = re.search(rf"^\s+{self.user.name}\s+\(\s*\d+\) count:(\d+)", statistics, re.MULTILINE)
        return int(found[1]) if found else 0


@contextlib.contextmanager
def crowded_site(start: Start) -> Iterator[Site]:
    """Start a crowded cluster; *start* starts a cluster for a block."""
    lines = ("JobAcctGatherType=jobacct_gather/none",)  # sampling by all nodes would take the machine's time
    # Each node is this machine, whose memory they all claim.
    spec = ClusterSpec(nodes=NODES, cpus_per_node=1, memory=1000, users=True, accounting=False, lines=lines)
    with two_users() as users, start(spec) as cluster:
        waiting = ["sbatch", f"--array=0-{_OTHERS - 1}", f"--nodes={NODES}", "--hold", "--output=/dev/null"]
        rival = users.rival.run(*waiting, "--wrap", "true", cwd=users.rival.home, **cluster.env)
        assert "Submitted" in rival.communicate()[0]
        cluster.run("sdiag", "--reset")
        yield Site(cluster, users.victim)
