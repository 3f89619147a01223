"""Multiply matrices, each product in a task whose threads are capped.

Requires slurmlaunch and NumPy: in a clone of slurmlaunch, pip install . numpy

By hand the variable of each library is set; if one is forgotten, that library
starts a thread for each core of the node::

    #!/bin/bash
    #SBATCH --time=00:10:00
    #SBATCH --cpus-per-task=2
    #SBATCH --array=1-4
    export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
    export OPENBLAS_NUM_THREADS=$SLURM_CPUS_PER_TASK
    export MKL_NUM_THREADS=$SLURM_CPUS_PER_TASK
    python product.py "$((SLURM_ARRAY_TASK_ID * 400))"

With slurmlaunch it is ``threads=2``; threadpoolctl measures the number in each task.
"""

from __future__ import annotations

import sys
import time

try:
    import numpy as np
    import threadpoolctl

    import slurmlaunch
except ModuleNotFoundError as error:
    sys.exit(f"{error}. Requires slurmlaunch and NumPy: in a clone of slurmlaunch, pip install . numpy")

SIZES = [400, 800, 1200, 1600]


def multiply(size: int) -> tuple[float, int, int]:
    """Multiply two random matrices; return GFLOP/s, and the CPUs and threads of this process."""
    rng = np.random.default_rng(size)
    left, right = rng.random((2, size, size))
    start = time.perf_counter()
    left @ right
    seconds = time.perf_counter() - start
    threads = max(library["num_threads"] for library in threadpoolctl.threadpool_info())
    return 2 * size**3 / seconds / 1e9, slurmlaunch.cpu_count(), threads


def main() -> None:
    """Multiply matrices of several sizes."""
    executor = slurmlaunch.Executor(time="00:10:00", cpus_per_task=2, threads=2)

    products = executor.map_array(multiply, SIZES)

    print(f"{'size':>5}{'GFLOP/s':>9}{'CPUs':>6}{'threads':>9}")
    for size, (speed, cpus, threads) in zip(SIZES, products.iter_results(), strict=True):
        print(f"{size:>5}{speed:>9.1f}{cpus:>6}{threads:>9}")


if __name__ == "__main__":
    main()
