"""HyperQueue: a server that hands tasks to its workers, each task a process.

The package from PyPI has no ``hq`` program, and starts workers only beside its server. So one job holds both, with
as many slots as everybody has, and the client connects to it. Its functions return nothing: they write files.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from systems.base import CPUS, Trial
from workloads.functions import writing_results
from workloads.registry import SLOTS

if TYPE_CHECKING:
    from pathlib import Path

    from systems.base import Call

_SERVER = """
import pathlib, sys, time
from hyperqueue.cluster import LocalCluster, WorkerConfig
cluster = LocalCluster(sys.argv[1], WorkerConfig(cores=int(sys.argv[2])))
pathlib.Path(sys.argv[1], "ready").touch()
time.sleep(1e6)
"""
_POLL = 0.01


@dataclass(frozen=True)
class HyperQueue:
    """The Python API, with a task per item."""

    name: str = "HyperQueue"
    requires: tuple[str, ...] = ("hyperqueue",)
    logs: str = ""
    launcher: tuple[str, ...] = ()

    def run(self, call: Call, folder: Path) -> Trial:
        """Submit the job, wait for its server, submit the tasks and wait for them, and read their files."""
        from hyperqueue import Job
        from hyperqueue.client import Client, PythonEnv

        server, results = folder / "server", folder / "results"
        server.mkdir()
        results.mkdir()
        wrapped = f"--wrap=exec '{sys.executable}' -c '{_SERVER}' '{server}' {SLOTS}"
        subprocess.run(["sbatch", f"--cpus-per-task={CPUS}", wrapped], check=True, stdout=subprocess.DEVNULL)
        while not (server / "ready").exists():
            time.sleep(_POLL)
        client = Client(server, PythonEnv(sys.executable))
        job, function = Job(folder, max_fails=None), writing_results(call.function, str(results))
        for number, item in enumerate(call.items):
            job.function(function, args=(number, item), stdout=None, stderr=None)
        client.wait_for_jobs([client.submit(job)])
        return Trial([pickle.loads((results / str(number)).read_bytes()) for number in range(len(call.items))])
