"""Where the benchmarks run: a Slurm, fresh folders, clients that are killed in time, and calls that are counted."""

from __future__ import annotations

import compileall
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import slurmlaunch
from systems.base import CPUS, NODES

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKOUT = Path(__file__).resolve().parents[2]
"""The root of the repository, where the tests and their throwaway cluster lie."""

COMMANDS = ("sbatch", "squeue", "sacct", "scontrol", "scancel", "srun", "sinfo")
QUERIES = ("squeue", "sacct", "scontrol", "sinfo")

_SETTLING_SECONDS = 120.0
_SETTLING_TICK = 0.1
_ENDING_SECONDS = 10.0
"""How long the jobs of a client that has all results may take to end."""
_MARK = "SLURMLAUNCH_BENCHMARK"
"""The variable that marks a client and its child processes, so that they can be ended."""


@dataclass(frozen=True)
class Site:
    """A Slurm that this process is a client of, and a folder that its nodes see.

    Attributes:
        folder: where each measured run gets a folder of its own.
        slurm: Slurm's version and kind, for the reader of the table.
        squeue, scancel: the programs themselves, so that our own calls are never counted.
    """

    folder: Path
    slurm: str
    squeue: str
    scancel: str

    @contextlib.contextmanager
    def fresh_folder(self) -> Iterator[Path]:
        """Make an empty folder, and remove it with its content."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def settle(self) -> None:
        """Wait until no job is left, so that the next run has the cluster for itself.

        Raises:
            TimeoutError: there still are some after two minutes.
        """
        deadline = time.monotonic() + _SETTLING_SECONDS
        while _printed(self.squeue, "--me", "--noheader"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"jobs are still in the queue after {_SETTLING_SECONDS:.0f} s")
            time.sleep(_SETTLING_TICK)

    def bounded(self, command: list[str], folder: Path, environment: dict[str, str], timeout: float) -> str:
        """Run a client in a folder, for a limited time; then end its jobs and all of its processes.

        Returns:
            Its output; the last line says so if it was killed.
        """
        mark, killed = {_MARK: str(folder)}, ""
        with tempfile.TemporaryFile(dir=self.folder) as printed:
            client = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=printed,
                env=environment | mark,
                start_new_session=True,
            )
            try:
                client.wait(timeout)
            except subprocess.TimeoutExpired:
                killed = f"\nkilled after {timeout:.0f} s"
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(client.pid, signal.SIGKILL)
                client.wait()
            self._end_jobs(0.0 if killed else _ENDING_SECONDS)
            _end_marked(folder)
            printed.seek(0)
            return printed.read().decode(errors="replace").strip() + killed

    def _end_jobs(self, patience: float) -> None:
        """Let a client's remaining jobs run for so many seconds, then cancel them, and wait until they are gone."""
        deadline = time.monotonic() + patience
        while jobs := self._jobs():
            if time.monotonic() > deadline:
                subprocess.run([self.scancel, *jobs], check=False, capture_output=True)
                return self.settle()
            time.sleep(_SETTLING_TICK)
        return None

    def _jobs(self) -> list[str]:
        """Find the jobs that were submitted from our folders, and no others that the user may have."""
        rows = (row.split(" ", 1) for row in _printed(self.squeue, "--me", "--noheader", "--format=%A %Z").splitlines())
        return sorted({job for job, folder in rows if Path(folder).is_relative_to(self.folder)})

    @contextlib.contextmanager
    def counted_calls(self, log: Path) -> Iterator[dict[str, str]]:
        """Make an environment in which calls of Slurm's commands are written to a file, a line each.

        Calls by jobs that inherit our PATH are among them.
        """
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            for name in COMMANDS:
                _write_wrapper(Path(folder, name), shutil.which(name) or name, log)
            yield {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def _write_wrapper(path: Path, program: str, log: Path) -> None:
    path.write_text(f'#!/bin/sh\necho {path.name} >> "{log}"\nexec "{program}" "$@"\n', encoding="utf-8")
    path.chmod(0o700)


def _end_marked(folder: Path) -> None:
    """Kill a client's remaining processes, in any session."""
    mark = f"{_MARK}={folder}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended, or belongs to another user
            if mark in path.read_bytes().split(b"\0"):
                os.kill(int(path.parent.name), signal.SIGKILL)


def _printed(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@contextlib.contextmanager
def open_site(folder: Path | None) -> Iterator[Site]:
    """Become a client of the Slurm that SLURM_CONF names, or of a throwaway one.

    Args:
        folder: where runs may write; the nodes must see it. By default a temporary one, which is right only
            where the nodes are this machine.
    """
    # As pip does when it installs; a checkout would be compiled anew by each of a thousand Pythons.
    for package in (Path(slurmlaunch.__file__).parent, Path(__file__).parents[1]):
        compileall.compile_dir(str(package), quiet=2)
    with contextlib.ExitStack() as life:
        if "SLURM_CONF" not in os.environ:
            life.enter_context(_throwaway_cluster())
        life.enter_context(_importable(Path(__file__).parents[1]))
        # executorlib writes "--partition=" into its scripts, which Slurm refuses unless this names a partition.
        os.environ.setdefault("SBATCH_PARTITION", _default_partition())
        made = Path(
            life.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix="bench-", ignore_cleanup_errors=True))
        )
        squeue, scancel = (shutil.which(name) or name for name in ("squeue", "scancel"))
        yield Site(made.resolve(), _printed("sbatch", "--version"), squeue, scancel)


@contextlib.contextmanager
def _throwaway_cluster() -> Iterator[None]:
    sys.path.append(str(CHECKOUT))
    from tests.support.cluster import Cluster, ClusterSpec, clean_environment

    with Cluster(ClusterSpec(nodes=NODES, cpus_per_node=CPUS)) as cluster, _environment():
        environment = clean_environment() | cluster.env
        os.environ.clear()
        os.environ.update(environment)
        yield


def _default_partition() -> str:
    names = _printed("sinfo", "--noheader", "--format=%P").split()
    return next((name for name in names if name.endswith("*")), names[0]).rstrip("*")


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let clients, and nodes that inherit their environment, import the modules of a folder.

    They find the programs that peers install beside this Python, too, be its environment activated or not.
    """
    with _environment():
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{before}" if before else str(folder)
        yield


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Restore the environment at the end."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
