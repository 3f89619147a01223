"""Which rank of a task a process is, as its launcher says, and the variables from which PyTorch and others learn it.

A rank reads it as it starts. It knows no item and no run folder.
"""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING, NamedTuple

from slurmlaunch.errors import NodeStartError

if TYPE_CHECKING:
    from collections.abc import Mapping

RANK, RANKS = "SLURMLAUNCH_RANK", "SLURMLAUNCH_RANKS"
"""The variables of a rank that the supervisor started itself, without a launcher."""

# Those of the launchers, the inner one first: in a Slurm job mpirun starts its own daemons
# by srun, so that Slurm's variables describe the daemons.
_OPEN_MPI = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")
_HYDRA = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
_SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NODEID")

_PER_NODE = "SLURM_NTASKS_PER_NODE"


class RankEnvironment(NamedTuple):
    """Which rank this process is, and the variables from which PyTorch and others learn it.

    Sources: srun(1), OUTPUT ENVIRONMENT VARIABLES; the manuals of Open MPI's mpirun
    and of MPICH's Hydra; PyTorch's documentation of torch.distributed, "Environment
    variable initialization". Local numbers count the ranks of one node; ``node_rank`` is the number of the node.
    """

    rank: int
    ranks: int
    local_rank: int
    local_ranks: int
    node_rank: int

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> RankEnvironment:
        """Read the variables of the launcher; a `NodeStartError` says that it is not known."""
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

        The ranks meet at *port* on the machine of rank 0: *host*, unless the launcher's variables say otherwise.
        """
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.ranks),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_ranks),
            "NODE_RANK": str(self.node_rank),
            "MASTER_ADDR": self._master(environ, host),
            "MASTER_PORT": str(port),
            **self._per_node(environ),
        }

    def _per_node(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return the number of ranks on each node in a job of Slurm's, if it is the same; sbatch sets it if asked for.

        PyTorch Lightning insists on the variable.
        """
        nodes = environ.get("SLURM_NNODES", "")
        equal = nodes.isdigit() and int(nodes) * self.local_ranks == self.ranks
        return {_PER_NODE: str(self.local_ranks)} if equal and _PER_NODE not in environ else {}

    def _master(self, environ: Mapping[str, str], host: str) -> str:
        """Return the address of rank 0's machine, which each rank determines without the others."""
        if self.ranks == self.local_ranks:
            return "127.0.0.1"
        nodes = environ.get("SLURM_STEP_NODELIST")
        if nodes is None or environ.get("SLURM_PROCID") != str(self.rank):
            return host
        first = first_host(nodes)
        # Slurm may call a node by a name that does not resolve. But the batch script's
        # machine, where srun was called, is the first of the job's.
        return first if _resolves(first) else environ.get("SLURM_LAUNCH_NODE_IPADDR", host)


def first_host(nodes: str) -> str:
    """Return the first name of a list in Slurm's notation: ``n07`` of ``n[07-09,11],m1``."""
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", re.split(r",(?![^\[]*\])", nodes, maxsplit=1)[0])


def _tasks_per_node(environ: Mapping[str, str]) -> list[int]:
    """Read ``2(x3),1``: two tasks on each of three nodes, one on the fourth."""
    numbers: list[int] = []
    for part in environ["SLURM_STEP_TASKS_PER_NODE"].split(","):
        tasks, _, times = part.rstrip(")").partition("(x")
        numbers += [int(tasks)] * int(times or 1)
    return numbers


def _resolves(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True
