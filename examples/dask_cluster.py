"""Run a Dask cluster inside one job, for work whose parts depend on each other.

Requires slurmlaunch, distributed and cryptography: in a clone of slurmlaunch, pip install '.[dask]'

By hand a scheduler and its workers are started in the background, find each
other through a file, and run until the time limit unless somebody ends them. Any
user who reaches the scheduler's port can run code as you::

    #!/bin/bash
    #SBATCH --time=00:10:00 --ntasks=3 --cpus-per-task=1
    srun -n1 --exact dask scheduler --scheduler-file scheduler.json &
    srun -n2 --exact dask worker --scheduler-file scheduler.json --nthreads 1 --memory-limit 4GB &
    sleep 30
    python work.py      # with Client(scheduler_file="scheduler.json")
    scancel "$SLURM_JOB_ID"

With slurmlaunch the cluster lasts as long as the ``with``, has the size that its tasks
were granted, and accepts connections only from your own process.
"""

from __future__ import annotations

import math
import sys

try:
    import cryptography  # noqa: F401  (Dask makes the cluster's keys with it)
    import distributed  # noqa: F401

    import slurmlaunch
except ModuleNotFoundError as error:
    sys.exit(
        f"{error}. Requires slurmlaunch, distributed and cryptography: in a clone of slurmlaunch, pip install '.[dask]'"
    )

NUMBERS = 40


def multiply(left: int, right: int) -> int:
    """Multiply two numbers; another call may still be computing them."""
    return left * right


def main() -> None:
    """Multiply the numbers from 1 on, pair by pair."""
    executor = slurmlaunch.Executor(time="00:10:00")

    with slurmlaunch.dask_cluster(executor, workers=2) as client:
        parts = list(range(1, NUMBERS + 1))
        while len(parts) > 1:
            parts = [client.submit(multiply, *parts[:2]), *parts[2:]]
            parts = [*parts[1:], parts[0]]
        product = parts[0].result()

    right = "right" if product == math.factorial(NUMBERS) else "wrong"
    print(f"{NUMBERS}! has {len(str(product))} digits, and they are {right}")


if __name__ == "__main__":
    main()
