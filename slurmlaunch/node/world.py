"""Which rank a process is, as its launcher says, and what PyTorch and others are told of it.

Sources: srun(1), OUTPUT ENVIRONMENT VARIABLES; the manuals of Open MPI's mpirun
and of MPICH's Hydra; PyTorch's documentation of torch.distributed, "Environment
variable initialization".
"""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING, NamedTuple

from slurmlaunch.errors import NodeStartError

if TYPE_CHECKING:
    from collections.abc import Mapping

RANK, RANKS = "SLURMLAUNCH_RANK", "SLURMLAUNCH_RANKS"
"""Of a rank that the supervisor started itself, without a launcher."""

# Each launcher's own, the inner one first: within a job of Slurm's an mpirun starts its own daemons
# by srun, so that what Slurm says there is said of those.
_OPEN_MPI = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")
_HYDRA = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
_SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NODEID")

_LOOPBACK = "127.0.0.1"


class World(NamedTuple):
    """Which of the ranks a process is.

    Attributes:
        rank: its number among all.
        ranks: how many there are.
        local_rank: its number among those of its node.
        local_ranks: how many these are.
        node_rank: the number of its node among those of the ranks.
    """

    rank: int
    ranks: int
    local_rank: int
    local_ranks: int
    node_rank: int

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> World:
        """Read what the launcher says.

        Raises:
            NodeStartError: it says nothing that is known.
        """
        if RANK in environ:
            rank, ranks = int(environ[RANK]), int(environ[RANKS])
            return cls(rank, ranks, rank, ranks, 0)
        for names in (_OPEN_MPI, _HYDRA):
            if all(name in environ for name in names):
                rank, ranks, local_rank, local_ranks = (int(environ[name]) for name in names)
                return cls(rank, ranks, local_rank, local_ranks, rank // local_ranks)
        if all(name in environ for name in _SRUN):
            rank, ranks, local_rank, node = (int(environ[name]) for name in _SRUN)
            return cls(rank, ranks, local_rank, _tasks_per_node(environ)[node], node)
        raise NodeStartError(
            "the launcher does not tell the ranks which they are",
            advice="srun, Open MPI's mpirun and MPICH's or Intel's mpiexec do: name one of them, launcher=[...].",
        )

    def variables(self, environ: Mapping[str, str], host: str, port: int) -> dict[str, str]:
        """Return the variables by which PyTorch and others find themselves and each other.

        Args:
            environ: the launcher's variables.
            host: the supervisor's machine, where rank 0 is if the launcher says nothing else.
            port: where the ranks may meet on the machine of rank 0.
        """
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.ranks),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_ranks),
            "NODE_RANK": str(self.node_rank),
            "MASTER_ADDR": self._master(environ, host),
            "MASTER_PORT": str(port),
        }

    def _master(self, environ: Mapping[str, str], host: str) -> str:
        """Return the address of rank 0's machine, which each rank finds out without the others."""
        if self.ranks == self.local_ranks:
            return _LOOPBACK
        nodes = environ.get("SLURM_STEP_NODELIST")
        if nodes is None or environ.get("SLURM_PROCID") != str(self.rank):
            return host
        first = first_host(nodes)
        # Slurm may call a node by a name that nobody else knows. Then the batch script's
        # machine, which srun was called on, is the first of the job's.
        return first if _is_known(first) else environ.get("SLURM_LAUNCH_NODE_IPADDR", host)


def first_host(nodes: str) -> str:
    """Return the first name in a list as Slurm writes it: ``n07`` of ``n[07-09,11],m1``."""
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", re.split(r",(?![^\[]*\])", nodes, maxsplit=1)[0])


def _tasks_per_node(environ: Mapping[str, str]) -> list[int]:
    """Read ``2(x3),1``: two tasks on each of three nodes, one on the fourth."""
    numbers: list[int] = []
    for part in environ["SLURM_STEP_TASKS_PER_NODE"].split(","):
        tasks, _, times = part.rstrip(")").partition("(x")
        numbers += [int(tasks)] * int(times or 1)
    return numbers


def _is_known(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True
