"""Integrate with MPI: every rank of one job calls the function, on two nodes if there are two.

Requires slurmlaunch and mpi4py: in a clone of slurmlaunch, pip install '.[mpi]'
mpi4py in turn requires an MPI, such as MPICH or Open MPI.

By hand::

    #!/bin/bash
    #SBATCH --time=00:10:00
    #SBATCH --nodes=2
    #SBATCH --ntasks=4
    srun -n 4 python integral.py    # or mpirun; rank 0 prints, or writes a file

With slurmlaunch, ``ntasks`` is the number of ranks. ``result()`` returns the value of rank 0,
and ``ranks()`` the values of all. If srun does not start your MPI, name the command that
does, such as ``launcher=["mpirun"]``, or the type that srun should use:
``env={"SLURM_MPI_TYPE": "pmix"}``.
"""

from __future__ import annotations

import sys

try:
    import mpi4py  # noqa: F401  (without its MPI, which starts where it is imported)

    from slurmlaunch import Executor
except ModuleNotFoundError as error:
    sys.exit(f"{error}. Requires slurmlaunch and mpi4py: in a clone of slurmlaunch, pip install '.[mpi]'")

STEPS = 1_000_000


def integrate(steps: int) -> tuple[float, int]:
    """Integrate 4 / (1 + x²) from 0 to 1, each rank a part; return the sum over all ranks, and the rank's steps."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    mine = range(world.rank, steps, world.size)
    share = sum(4 / (1 + ((i + 0.5) / steps) ** 2) for i in mine) / steps
    return world.allreduce(share), len(mine)


def main() -> None:
    """Integrate with four ranks."""
    executor = Executor(time="00:10:00", nodes=2, ntasks=4)

    future = executor.submit(integrate, STEPS)

    integral, _ = future.result()
    steps = [steps for _, steps in future.ranks()]
    print(f"pi is about {integral:.10f}, from {len(steps)} ranks with {steps} steps")


if __name__ == "__main__":
    main()
