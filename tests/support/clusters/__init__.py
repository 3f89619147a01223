"""The kinds of cluster on which the tests can run: other versions of Slurm, other file systems, other rules.

``SLURMLAUNCH_TEST_CLUSTER=NAME pytest tests/slurm`` runs tests on the kind of that name, and `nox -s cluster-NAME` runs
its suites. `tests/conftest.py` starts pytest again where the kind's programs and folders are (`Kind.command`). There,
every `Cluster` of a test is adapted to the kind (`Kind.adapt`). Nothing here knows what the tests do.

Each kind has a small module of its own, which says what differs from the default. To add a kind, write a subclass of
`Kind` and list it here.
"""

from __future__ import annotations

import os

from tests.support.clusters.cached import Cached
from tests.support.clusters.crowd import Crowd
from tests.support.clusters.debian import Debian
from tests.support.clusters.kind import INSIDE, Kind
from tests.support.clusters.strict import Strict
from tests.support.clusters.two import Two

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("default", "this machine's Slurm and Python, accounting, two nodes with 8 CPUs"),
        Debian("modern", "Slurm 24.11, Python 3.13: Debian trixie in a folder", suite="trixie"),
        Debian("newest", "the newest Slurm in Debian and its Python: Debian forky in a folder", suite="forky"),
        Strict("strict", "small arrays, few jobs, no accounting, nodes without Slurm's commands; an ordinary user"),
        Two("two", "two clusters under one slurmdbd, for clusters="),
        Cached("cached", "run folders on GlusterFS, seen by the client and by the nodes up to 10 s late"),
        Crowd("crowd", "64 nodes of one CPU, where another user's jobs wait: how often the controller is called"),
    )
}
"""Every kind, by name."""


def chosen() -> Kind:
    """Return the kind that SLURMLAUNCH_TEST_CLUSTER names.

    Raises:
        LookupError: there is no such kind.
    """
    name = os.environ.get("SLURMLAUNCH_TEST_CLUSTER", "default")
    if name not in KINDS:
        raise LookupError(f"SLURMLAUNCH_TEST_CLUSTER={name} is no kind of cluster. There are {', '.join(KINDS)}.")
    return KINDS[name]


def is_inside() -> bool:
    """Whether this process runs where the chosen kind's programs and folders are."""
    return chosen().is_here or os.environ.get(INSIDE) == chosen().name
