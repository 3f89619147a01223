"""Where the benchmarks run: a Slurm, fresh folders, and calls to its commands that are counted."""

from __future__ import annotations

import collections
import compileall
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import slurmlaunch

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator

CHECKOUT = Path(__file__).resolve().parents[2]
"""The root of the repository, where the tests and their throwaway cluster lie."""

COMMANDS = ("sbatch", "squeue", "sacct", "scontrol", "scancel", "srun")
QUERIES = ("squeue", "sacct", "scontrol")

_SETTLING_SECONDS = 120.0
_SETTLING_TICK = 0.1


@dataclass(frozen=True)
class Site:
    """A Slurm that this process is a client of, and a folder that its nodes see.

    Attributes:
        folder: where each measured run gets a folder of its own.
        slurm: what Slurm it is, for the reader of the table.
        squeue: the program itself, so that our own look at the queue is never counted.
    """

    folder: Path
    slurm: str
    squeue: str

    @contextlib.contextmanager
    def fresh_folder(self) -> Iterator[Path]:
        """Make an empty folder, and remove it and what was put there."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def settle(self) -> None:
        """Wait until no job is left: whoever comes next has the cluster for itself."""
        deadline = time.monotonic() + _SETTLING_SECONDS
        while _printed(self.squeue, "--me", "--noheader"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"jobs are still in the queue after {_SETTLING_SECONDS:.0f} s")
            time.sleep(_SETTLING_TICK)

    @contextlib.contextmanager
    def counted_calls(self) -> Iterator[Counter[str]]:
        """Count the calls of Slurm's commands, also those by jobs that inherit our PATH.

        The counter is filled in at the end.
        """
        before = os.environ["PATH"]
        calls: Counter[str] = collections.Counter()
        with self.fresh_folder() as folder:
            log = folder / "calls.log"
            log.touch()
            for name in COMMANDS:
                _write_wrapper(folder / name, shutil.which(name) or name, log)
            os.environ["PATH"] = f"{folder}{os.pathsep}{before}"
            try:
                yield calls
            finally:
                os.environ["PATH"] = before
                calls.update(log.read_text(encoding="ascii").split())


def _write_wrapper(path: Path, program: str, log: Path) -> None:
    path.write_text(f'#!/bin/sh\necho {path.name} >> "{log}"\nexec "{program}" "$@"\n', encoding="utf-8")
    path.chmod(0o700)


def _printed(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@contextlib.contextmanager
def open_site(folder: Path | None) -> Iterator[Site]:
    """Become a client of the Slurm that SLURM_CONF names, or of a throwaway one.

    Args:
        folder: where runs may write; the nodes must see it. By default a temporary one, which is right only
            where the nodes are this machine.
    """
    # What pip does when it installs; a checkout would be compiled anew by each of a thousand Pythons.
    compileall.compile_dir(str(Path(slurmlaunch.__file__).parent), quiet=2)
    with contextlib.ExitStack() as life:
        if "SLURM_CONF" not in os.environ:
            life.enter_context(_throwaway_cluster())
        made = Path(life.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix="bench-")))
        yield Site(made.resolve(), _printed("sbatch", "--version"), shutil.which("squeue") or "squeue")


@contextlib.contextmanager
def _throwaway_cluster() -> Iterator[None]:
    sys.path.append(str(CHECKOUT))
    from tests.cluster import Cluster, ClusterSpec, clean_environment

    before = dict(os.environ)
    with Cluster(ClusterSpec()) as cluster:
        environment = clean_environment() | cluster.env
        os.environ.clear()
        os.environ.update(environment)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)
