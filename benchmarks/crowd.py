"""How many calls of the controller a run costs on a busy cluster, counted by the controller itself.

    python benchmarks/crowd.py                      # 400 items in a minute by all systems
    python benchmarks/crowd.py --full               # also 10^4 items in ten minutes by slurmlaunch

As root, with pytest installed. It starts a throwaway Slurm with 64 nodes, on which another user's jobs wait. The client
is an ordinary user of this machine, so that `sdiag` counts its calls apart from those of Slurm's daemons: the client's
own, and those that its tasks make on the nodes. A system that is not installed is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.clusters.strict import Start

CHECKOUT = Path(__file__).resolve().parents[1]
SLOTS = 64


class Measured(NamedTuple):
    """What one run cost."""

    system: str
    items: int
    seconds: float
    calls: int


class Nap:
    """An item that sleeps, and returns its argument."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, item: int) -> int:
        """Sleep."""
        time.sleep(self.seconds)
        return item


def by_slurmlaunch(nap: Nap, items: range, folder: Path) -> list[Any]:
    """Use a plain `map_array`: up to 1000 tasks."""
    from slurmlaunch import Executor

    with Executor(folder, cluster="slurm", time="1h") as executor:
        return executor.map_array(nap, items).results()


def by_submitit(nap: Nap, items: range, folder: Path) -> list[Any]:
    """Submit arrays of 1000 jobs, and wait for their results."""
    import submitit

    executor = submitit.SlurmExecutor(folder)
    executor.update_parameters(array_parallelism=SLOTS, time=60)
    jobs = [job for start in range(0, len(items), 1000) for job in executor.map_array(nap, items[start : start + 1000])]
    return [job.result() for job in jobs]


def by_executorlib(nap: Nap, items: range, folder: Path) -> list[Any]:
    """Submit a job for each item."""
    from executorlib import SlurmClusterExecutor

    # Its own script names an empty partition, and has the environment of a login, which system users lack.
    script = "#!/bin/bash\n#SBATCH --output=time.out --chdir={{working_directory}} --ntasks={{cores}}\n\n{{command}}\n"
    options = {"cache_directory": str(folder), "disable_dependencies": True}
    with SlurmClusterExecutor(resource_dict={"submission_template": script}, **options) as executor:
        return [future.result() for future in [executor.submit(nap, item) for item in items]]


def by_dask_jobqueue(nap: Nap, items: range, folder: Path) -> list[Any]:
    """Start a worker in a job for each slot, and map over the items."""
    from dask_jobqueue import SLURMCluster
    from distributed import Client

    options = {"cores": 1, "processes": 1, "memory": "900MB", "interface": "lo", "n_workers": SLOTS}
    folders = {"local_directory": str(folder), "log_directory": str(folder)}
    quiet = {"scheduler_options": {"dashboard": False}, "worker_extra_args": ["--no-dashboard"]}
    with SLURMCluster(**options, **folders, **quiet) as cluster, Client(cluster) as client:
        return list(client.gather(client.map(nap, list(items), pure=False)))


SYSTEMS: dict[str, tuple[str, Callable[[Nap, range, Path], list[Any]]]] = {
    "slurmlaunch": ("slurmlaunch", by_slurmlaunch),
    "submitit": ("submitit", by_submitit),
    "executorlib": ("executorlib", by_executorlib),
    "dask-jobqueue": ("dask_jobqueue", by_dask_jobqueue),
}
"""The systems: the module that each needs, and how it runs the items."""


def client(system: str, items: int, seconds: float, folder: str) -> None:
    """Run the items by a system, and print how long that took."""
    began = time.monotonic()
    results = SYSTEMS[system][1](Nap(seconds), range(items), Path(folder))
    assert results == list(range(items))
    print(json.dumps(time.monotonic() - began))


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description="Count the calls of the controller.")
    parser.add_argument("--full", action="store_true", help="also 10^4 items, in ten minutes")
    parser.add_argument("--only", choices=SYSTEMS, help="one system")
    parser.add_argument("--client", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        system, items, seconds, folder = arguments.client
        client(system, int(items), float(seconds), folder)
        return
    sys.path.append(str(CHECKOUT))
    names = [arguments.only] if arguments.only else [*SYSTEMS]
    sizes = [(name, 400, 60.0) for name in names if importlib.util.find_spec(SYSTEMS[name][0])]
    if arguments.full and "slurmlaunch" in names:
        sizes.append(("slurmlaunch", 10_000, 600.0))
    print("| system | items | seconds | calls of the controller |\n| --- | --- | --- | --- |")
    for name, items, length in sizes:
        row = measure(name, items, length)
        print(f"| {row.system} | {row.items} | {row.seconds:.0f} | {row.calls} |", flush=True)


def measure(system: str, items: int, length: float, start: Start | None = None) -> Measured:
    """Run so many items, of *length* seconds in all on 64 CPUs, on a cluster of their own.

    Args:
        system: which of `SYSTEMS`.
        items: how many items.
        length: for how many seconds they keep all CPUs busy.
        start: starts a cluster for a block; `Cluster` by default.

    Raises:
        AssertionError: a value is wrong, or the client failed.
    """
    from tests.support.cluster import Cluster
    from tests.support.clusters.crowd import crowded_site

    with crowded_site(start or Cluster) as site:
        user = site.user
        each, folder = SLOTS * length / items, user.home / "runs"
        script = [user.python, str(Path(__file__).resolve()), "--client", system, items, each, folder]
        started = user.run(*script, cwd=user.home, **site.cluster.env, **_variables())
        out, err = started.communicate()
        if started.returncode:
            raise AssertionError(err)
        return Measured(system, items, json.loads(out.splitlines()[-1]), site.calls())


def _variables() -> dict[str, str]:
    """Return the variables of the client: what this process can import, and the usual interval of queries."""
    return {"PYTHONPATH": os.pathsep.join([str(CHECKOUT), *filter(None, sys.path)]), "SLURMLAUNCH_QUERY_INTERVAL": "30"}


if __name__ == "__main__":
    main()
