"""The functions of ranks in tests. Nodes import this file, so it imports very little."""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

import slurmlaunch

if TYPE_CHECKING:
    from tests.support.waiting import Gate, Story

TOLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


def node() -> str | None:
    """Return the name of the node, where Slurm gave it one."""
    return os.environ.get("SLURMD_NODENAME")


def mpi_world(number: int) -> tuple[int, int, int, str | None]:
    """Sum over the ranks with MPI; return rank, size, sum and node."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    return world.rank, world.size, world.allreduce(number + world.rank), node()


def place(_: object = None) -> tuple[int, int, dict[str, str | None]]:
    """Return the rank's place according to the context, and according to the variables."""
    task = slurmlaunch.current_task()
    return task.rank, task.ranks, {name: os.environ.get(name) for name in TOLD}


def sum_by_sockets(number: int) -> int:
    """Sum over the ranks as PyTorch's rendezvous begins: rank 0 listens at the common address, the others connect."""
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if rank == 0:
        with socket.create_server(("", address[1])) as server:
            callers = [server.accept()[0] for _ in range(1, ranks)]
        total = number + sum(int(caller.recv(100)) for caller in callers)
        for caller in callers:
            caller.sendall(str(total).encode())
            caller.close()
        return total
    with connected(address) as caller:
        caller.sendall(str(number + rank).encode())
        return int(caller.recv(100))


def lose_caller() -> None:
    """Have rank 2 die while rank 0 listens to it, and rank 0 complain."""
    rank = slurmlaunch.current_task().rank
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if rank == 0:
        with socket.create_server(("", address[1])) as server:
            server.accept()[0].recv(1)
            raise ConnectionError("nothing came")
    if rank == 2:
        with connected(address):
            os.kill(os.getpid(), signal.SIGKILL)


def connected(address: tuple[str, int]) -> socket.socket:
    """Call until someone answers, since rank 0 may come up later."""
    while True:
        try:
            return socket.create_connection(address, timeout=60)
        except ConnectionRefusedError:
            continue


def meet() -> None:
    """Wait for all other ranks, for ever."""
    from mpi4py import MPI

    MPI.COMM_WORLD.Barrier()


def start_mpi_without_its_package() -> None:
    """Import mpi4py as if it were not installed."""
    sys.modules["mpi4py"] = None  # type: ignore[assignment]
    meet()


def fall(item: int, deeds: dict[tuple[int, int], str]) -> tuple[int, int]:
    """Fail in the given way at one item of one rank; then wait for all others."""
    rank = slurmlaunch.current_task().rank
    deed = deeds.get((item, rank))
    if deed == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif deed == "exit":
        os._exit(5)
    elif deed == "raise":
        raise ValueError(f"{item} {rank}")
    elif deed == "sys.exit":
        sys.exit(7)
    meet()
    return item, rank


class Walk:
    """Logs its starts, and waits at a gate for some items."""

    def __init__(self, gate: Gate, story: Story, *waits: tuple[int, int]) -> None:
        self.gate, self.story, self.waits = gate, story, waits

    def __call__(self, item: int) -> Any:
        """Log that a rank is here, and wait if it should."""
        rank = slurmlaunch.current_task().rank
        self.story.tell(f"{item} {rank}")
        if (item, rank) in self.waits:
            self.gate.enter(f"{item}-{rank}")
        return item, rank
