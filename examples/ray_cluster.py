"""Run a Ray cluster inside one job, for work whose parts depend on each other.

Requires slurmlaunch and Ray 2.52 or later: in a clone of slurmlaunch, pip install . 'ray>=2.52'

By hand the script finds the address of the head and sleeps for as long as a start
may take, and any user who reaches the port can run code as you::

    #!/bin/bash
    #SBATCH --time=00:10:00 --nodes=2 --ntasks-per-node=1 --cpus-per-task=1
    nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
    ip=$(srun -N1 -n1 -w "${nodes[0]}" hostname --ip-address)
    srun -N1 -n1 -w "${nodes[0]}" ray start --head --node-ip-address="$ip" --port=6379 --num-cpus=1 --block &
    sleep 10
    for node in "${nodes[@]:1}"; do
        srun -N1 -n1 -w "$node" ray start --address="$ip:6379" --num-cpus=1 --block &
        sleep 5
    done
    python work.py

With slurmlaunch each item is a member of the cluster: the first is its head and does the
work, the others find it through a file in the run folder. For Dask this is one line:
``dask_cluster.py``.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING

try:
    import ray

    import slurmlaunch
except ModuleNotFoundError as error:
    sys.exit(
        f"{error}. Requires slurmlaunch and Ray 2.52 or later: in a clone of slurmlaunch, pip install . 'ray>=2.52'"
    )

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NODES = 2
NUMBERS = 40


def work() -> tuple[int, int]:
    """Add up the results of many calls on the cluster, pair by pair; return the sum and the number of nodes."""

    @ray.remote
    def square(number: int) -> int:
        return number**2

    @ray.remote
    def add(left: int, right: int) -> int:
        return left + right

    parts = [square.remote(number) for number in range(NUMBERS)]
    while len(parts) > 1:
        parts = [add.remote(*parts[:2]), *parts[2:]]
    return ray.get(parts[0]), sum(node["Alive"] for node in ray.nodes())


def run_member(number: int) -> tuple[int, int] | None:
    """Run the head of the cluster and the work, or another member until the work is done."""
    folder = slurmlaunch.current_task().run_folder
    address, done = folder / "ray-address", folder / "ray-done"
    if number > 0:
        where, scratch = wait_for(address).split()
        with started(f"--address={where}", scratch=scratch) as member:
            while member.poll() is None and not exists(done):
                time.sleep(0.5)
        return None
    scratch = tempfile.mkdtemp(prefix="ray-")  # not /tmp/ray, which may be another user's
    where = f"{ray.util.get_node_ip_address()}:{free_port()}"
    with started("--head", f"--port={where.rpartition(':')[2]}", f"--temp-dir={scratch}", scratch=scratch):
        try:
            return lead(address, where, scratch)
        finally:
            done.touch()


def lead(address: Path, where: str, scratch: str) -> tuple[int, int]:
    """Write the address for the others when the head listens, wait for them, and work."""
    while not is_open(where):
        time.sleep(0.1)
    beside = address.with_suffix(".new")
    beside.write_text(f"{where} {scratch}")
    beside.rename(address)
    with ray.init(address=where, log_to_driver=False):
        while sum(node["Alive"] for node in ray.nodes()) < NODES:
            time.sleep(0.1)
        return work()


@contextlib.contextmanager
def started(*arguments: str, scratch: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run Ray on this node, and end it, also if this process is killed."""
    ray_start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    ports = ["--min-worker-port=0", "--max-worker-port=0"]  # any that are free: a node may have two clusters
    cpus = f"--num-cpus={slurmlaunch.cpu_count()}"
    member = subprocess.Popen(["setpriv", "--pdeathsig=TERM", *ray_start, *ports, cpus, *arguments])
    try:
        yield member
    finally:
        member.terminate()
        member.wait()
        shutil.rmtree(scratch, ignore_errors=True)


def wait_for(file: Path) -> str:
    """Wait for a file; return its content."""
    while not exists(file):
        time.sleep(0.5)
    return file.read_text()


def exists(file: Path) -> bool:
    """Look for a file in the list of its folder, since a network file system caches names that do not exist."""
    return file in file.parent.iterdir()


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as one:
        one.bind(("", 0))
        port: int = one.getsockname()[1]
        return port


def is_open(where: str) -> bool:
    """Tell whether a process listens there."""
    host, _, port = where.rpartition(":")
    with socket.socket() as one:
        return one.connect_ex((host, int(port))) == 0


def main() -> None:
    """Run a cluster of two nodes, and print its result."""
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    executor = slurmlaunch.Executor(time="00:10:00", env=secret)

    members = executor.map_array(run_member, range(NODES), chunksize=1)
    try:
        total, nodes = members[0].result()
        members.wait()
    finally:
        members.cancel()

    print(f"the first {NUMBERS} squares add up to {total}, computed by a cluster of {nodes} nodes")


if __name__ == "__main__":
    main()
