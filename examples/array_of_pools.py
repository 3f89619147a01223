"""Arrays × pools: a few tasks, each with several processes, each of these with several threads.

Requires slurmlaunch: in a clone of it, pip install .

By hand this is an array whose tasks start a pool, and three numbers that must
agree::

    #!/bin/bash
    #SBATCH --time=00:10:00
    #SBATCH --cpus-per-task=8
    #SBATCH --hint=nomultithread
    #SBATCH --array=0-3%10
    export OMP_NUM_THREADS=2   # and OPENBLAS_, MKL_, VECLIB_MAXIMUM_, NUMEXPR_
    python simulate.py --first "$((SLURM_ARRAY_TASK_ID * 4))" --items 4 --processes 4

With slurmlaunch, ``threads=2`` of 8 CPUs makes 4 processes per task, which share the items.
"""

from __future__ import annotations

import os
import random
import sys

try:
    import slurmlaunch
except ModuleNotFoundError as error:
    sys.exit(f"{error}. Requires slurmlaunch: in a clone of it, pip install .")


def simulate(seed: int) -> tuple[float, int, int, int, str]:
    """Do a random walk; return the distance, the task, the process, and the CPUs and threads of the process."""
    rng = random.Random(seed)
    distance = abs(sum(rng.choice((-1, 1)) for _ in range(20_000)))
    task = slurmlaunch.current_task()
    return distance, task.task, task.process, slurmlaunch.cpu_count(), os.environ["OMP_NUM_THREADS"]


def main() -> None:
    """Run sixteen items in four tasks."""
    executor = slurmlaunch.Executor(time="00:10:00", cpus_per_task=8, threads=2, hint="nomultithread", throttle=10)

    walks = executor.map_array(simulate, range(16), tasks=4).results()

    print(f"{'seed':>4}{'distance':>10}{'task':>6}{'process':>9}{'CPUs':>6}{'threads':>9}")
    for seed, (distance, task, process, cpus, threads) in enumerate(walks):
        print(f"{seed:>4}{distance:>10}{task:>6}{process:>9}{cpus:>6}{threads:>9}")


if __name__ == "__main__":
    main()
