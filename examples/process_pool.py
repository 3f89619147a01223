"""Use a process pool inside one job, as large as the job's resources.

Requires slurmlaunch: in a clone of it, pip install .

By hand a separate script reads the size from a variable::

    #!/bin/bash
    #SBATCH --time=00:10:00
    #SBATCH --cpus-per-task=4
    export OMP_NUM_THREADS=1
    python primes.py    # with ProcessPoolExecutor(int(os.environ["SLURM_CPUS_PER_TASK"]))

With slurmlaunch the job is a function, and ``slurmlaunch.task_pool()`` has the right size;
on a laptop with fewer CPUs it is smaller.
"""

from __future__ import annotations

import math
import sys

try:
    import slurmlaunch
except ModuleNotFoundError as error:
    sys.exit(f"{error}. Requires slurmlaunch: in a clone of it, pip install .")

STEP = 10_000


def count_primes(start: int) -> int:
    """Count the primes in an interval."""
    numbers = range(max(start, 2), start + STEP)
    return sum(all(n % divisor for divisor in range(2, math.isqrt(n) + 1)) for n in numbers)


def count_primes_below(end: int) -> tuple[int, int]:
    """Count primes with all CPUs of this task; return the number of primes and of CPUs."""
    with slurmlaunch.task_pool() as pool:
        return sum(pool.map(count_primes, range(0, end, STEP))), slurmlaunch.cpu_count()


def main() -> None:
    """Count primes in one job."""
    executor = slurmlaunch.Executor(time="00:10:00", cpus_per_task=4)

    primes, processes = executor.submit(count_primes_below, 200_000).result()

    print(f"{primes} primes below 200000, counted by {processes} processes of one job")


if __name__ == "__main__":
    main()
