"""How many calls of the controller a run costs on a busy cluster, counted by the controller itself.

    python benchmarks/crowd.py                      # 10^4 items in ten minutes by slurmlaunch; 400 in a minute by all
    python benchmarks/crowd.py --short              # 400 items in a minute by all

As root. It starts a throwaway Slurm with 64 nodes, on which another user's jobs wait. The client is an ordinary user of
this machine, so that `sdiag` counts its calls apart from those of Slurm's daemons: the client's own, and those that its
tasks make on the nodes. A system that is not installed is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

CHECKOUT = Path(__file__).resolve().parents[1]
SLOTS = 64
OTHERS = 300


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

    with SlurmClusterExecutor(cache_directory=str(folder), disable_dependencies=True) as executor:
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
    parser.add_argument("--short", action="store_true", help="only 400 items, in about a minute")
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
    if not arguments.short and "slurmlaunch" in names:
        sizes.append(("slurmlaunch", 10_000, 600.0))
    print("| system | items | seconds | calls of the controller |\n| --- | --- | --- | --- |")
    for name, items, length in sizes:
        row = measure(name, items, length)
        print(f"| {row.system} | {row.items} | {row.seconds:.0f} | {row.calls} |", flush=True)


def measure(system: str, items: int, length: float) -> Measured:
    """Run so many items, of *length* seconds in all on 64 CPUs, on a cluster of their own."""
    from tests.support.cluster import Cluster, ClusterSpec
    from tests.support.users import two_users

    lines = ("JobAcctGatherType=jobacct_gather/none",)  # sampling by all nodes would take the machine's time
    # Each node is this machine, whose memory they all claim.
    spec = ClusterSpec(nodes=SLOTS, cpus_per_node=1, memory=1000, users=True, accounting=False, lines=lines)
    with two_users() as users, Cluster(spec) as cluster:
        waiting = ["sbatch", f"--array=0-{OTHERS - 1}", "--nodes=64", "--nice=1000000", "--output=/dev/null"]
        users.rival.run(*waiting, "--hold", "--wrap", "true", cwd=users.rival.home, **cluster.env).communicate()
        folder = users.victim.home / "runs"
        script = [users.victim.python, str(Path(__file__).resolve()), "--client", system, items]
        cluster.run("sdiag", "--reset")
        seconds = SLOTS * length / items
        started = users.victim.run(*script, seconds, folder, cwd=users.victim.home, **cluster.env, **_variables())
        out, err = started.communicate()
        if started.returncode:
            raise AssertionError(err)
        return Measured(system, items, json.loads(out.splitlines()[-1]), calls(cluster.run("sdiag"), users.victim.name))


def _variables() -> dict[str, str]:
    """Return the variables of the client: what this process can import, and the usual interval of queries."""
    return {"PYTHONPATH": os.pathsep.join([str(CHECKOUT), *filter(None, sys.path)]), "SLURMLAUNCH_QUERY_INTERVAL": "30"}


def calls(statistics: str, user: str) -> int:
    """Return how many calls of a user the controller has counted."""
    found = re.search(rf"^\s+{user}\s+\(\s*\d+\) count:(\d+)", statistics, re.MULTILINE)
    return int(found[1]) if found else 0


if __name__ == "__main__":
    main()
