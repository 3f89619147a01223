"""`Kind`, the base class: what may differ from the default cluster. It is the default cluster itself.

The kinds' modules and `tests.support.clusters` use it. It must not know a single kind.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from tests.support.cluster import missing_programs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.support.cluster import ClusterSpec

INSIDE = "SLURMLAUNCH_TEST_INSIDE"
"""The variable that `Kind.command` sets to the kind's name."""

CHECKOUT = Path(__file__).parents[3]


class Kind:
    """A kind of cluster.

    Attributes:
        name: its name in SLURMLAUNCH_TEST_CLUSTER and ``nox -s cluster-NAME``.
        summary: what it is, in one line.
        suites: the folders of tests that say something about it.
        marks: which of the suites' tests run, by their marks.
        latency: how many seconds a new file may be invisible to other machines, at most.
        skipped: tests that cannot pass on it, by the end of pytest's name for them, each with the reason.
        is_here: whether the tests run in this process's own world; otherwise `command` starts them in another.
    """

    suites: tuple[str, ...] = ("contract", "faults", "slurm")
    marks = "slurm and not long"
    latency = 1.0
    skipped: Mapping[str, str] = MappingProxyType({})
    is_here = True

    def __init__(self, name: str, summary: str) -> None:
        self.name = name
        self.summary = summary

    def missing(self) -> list[str]:
        """Return what this machine lacks, a sentence each; empty if the tests can run."""
        programs = missing_programs()
        if not programs:
            return []
        packages = " ".join(sorted(set(programs.values())))
        return [f"There is no {', '.join(programs)}. On Debian: apt-get install {packages}"]

    def install(self) -> None:
        """Install what is missing into `folder`, and nowhere else. By default, there is nothing to be installed."""

    def command(self, *arguments: str) -> list[str]:
        """Return the command that runs ``python -m`` with these arguments in the checkout, as the tests must run."""
        return [sys.executable, "-m", *arguments]

    def adapt(self, spec: ClusterSpec) -> ClusterSpec:
        """Return what a test's cluster is like if it is of this kind."""
        return spec

    @property
    def place(self) -> Path:
        """The folder in which the folders of ordinary users are made."""
        return Path("/tmp")  # noqa: S108  (the tests make folders of random names there)

    @property
    def folder(self) -> Path:
        """The folder that holds all that `install` installs."""
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(cache) / "slurmlaunch-clusters" / self.name
