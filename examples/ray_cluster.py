"""Run a Ray cluster inside one job, for work whose parts depend on each other. Needs Ray 2.52 or later.

By hand the head's address is found out, everybody sleeps for as long as a start
may take, and whoever reaches the port runs code as you::

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

Here each item is a part of the cluster: the first is its head and does the work,
the others find it through a file in the run folder. Dask has it in one line, see
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

import ray

import slurmlaunch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NODES = 2
SHOTS = 40


def work() -> tuple[int, int]:
    """Add up what many calls return, pair by pair, on the cluster; return the sum and the number of nodes."""

    @ray.remote
    def square(number: int) -> int:
        return number**2

    @ray.remote
    def add(left: int, right: int) -> int:
        return left + right

    parts = [square.remote(number) for number in range(SHOTS)]
    while len(parts) > 1:
        parts = [add.remote(*parts[:2]), *parts[2:]]
    return ray.get(parts[0]), sum(node["Alive"] for node in ray.nodes())


def be_a_part(number: int) -> tuple[int, int] | None:
    """Be the head of the cluster and work, or be one of the others until the work is done."""
    folder = slurmlaunch.current_task().run_folder
    address, done = folder / "ray-address", folder / "ray-done"
    if number > 0:
        where, scratch = wait_for(address).split()
        with started(f"--address={where}", scratch=scratch) as part:
            while part.poll() is None and not is_there(done):
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
    """Call the others when the head is there, wait for them, and work."""
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
    """Run this node's part of Ray, and end it, also where this process is killed."""
    ray_start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    ports = ["--min-worker-port=0", "--max-worker-port=0"]  # any that are free: a node may have two clusters
    cpus = f"--num-cpus={slurmlaunch.cpu_count()}"
    part = subprocess.Popen(["setpriv", "--pdeathsig=TERM", *ray_start, *ports, cpus, *arguments])
    try:
        yield part
    finally:
        part.terminate()
        part.wait()
        shutil.rmtree(scratch, ignore_errors=True)


def wait_for(file: Path) -> str:
    """Return what is in a file, once it is there."""
    while not is_there(file):
        time.sleep(0.5)
    return file.read_text()


def is_there(file: Path) -> bool:
    """Look for a file in its folder's list, since a network file system remembers what was not there."""
    return file in file.parent.iterdir()


def free_port() -> int:
    """Return a port that nobody uses."""
    with socket.socket() as one:
        one.bind(("", 0))
        port: int = one.getsockname()[1]
        return port


def is_open(where: str) -> bool:
    """Tell whether somebody listens there."""
    host, _, port = where.rpartition(":")
    with socket.socket() as one:
        return one.connect_ex((host, int(port))) == 0


def main() -> None:
    """Run a cluster of two nodes, and print what it found."""
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    executor = slurmlaunch.Executor(time="00:10:00", env=secret)

    parts = executor.map_array(be_a_part, range(NODES), chunksize=1)
    try:
        total, nodes = parts[0].result()
        parts.wait()
    finally:
        parts.cancel()

    print(f"the first {SHOTS} squares add up to {total}, says a cluster of {nodes} nodes")


if __name__ == "__main__":
    main()
