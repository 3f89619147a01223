"""Integrate with MPI: every rank of one job calls the function, on two nodes where there are two.

By hand::

    #!/bin/bash
    #SBATCH --time=00:10:00
    #SBATCH --nodes=2
    #SBATCH --ntasks=4
    srun -n 4 python integral.py    # or mpirun; rank 0 prints, or writes a file

Here ``ntasks`` makes the ranks. What rank 0 returns is the result; ``ranks()`` is what
each of them returned. Where srun does not start your MPI, name what does, such as
``launcher=["mpirun"]``, or have srun speak its dialect: ``env={"SLURM_MPI_TYPE": "pmix"}``.
"""

from __future__ import annotations

from slurmlaunch import Executor

STEPS = 1_000_000


def integrate(steps: int) -> tuple[float, int]:
    """Integrate 4 / (1 + x²) from 0 to 1, each rank its share; return the sum over all ranks, and the rank's steps."""
    from mpi4py import MPI  # here, since MPI starts where it is imported

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
