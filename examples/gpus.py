"""Give each process of a task a GPU of its own.

Requires slurmlaunch and Numba: in a clone of slurmlaunch, pip install . numba
It also requires nodes with NVIDIA GPUs, or ``NUMBA_ENABLE_CUDASIM=1`` in the
environment: then Numba simulates a GPU, and the example runs on any machine.

By hand one process per GPU is started, and each selects its GPU by number::

    #!/bin/bash
    #SBATCH --time=00:10:00
    #SBATCH --gres=gpu:4
    for gpu in 0 1 2 3; do
        CUDA_VISIBLE_DEVICES=$gpu python saxpy.py --part "$gpu" --of 4 &
    done
    wait

With slurmlaunch it is ``gpus_per_task=4, processes=4``. Each process sees one
device, as number 0.
"""

from __future__ import annotations

import os
import sys
from typing import Any

try:
    import numpy as np
    from numba import cuda

    import slurmlaunch
except ModuleNotFoundError as error:
    sys.exit(f"{error}. Requires slurmlaunch and Numba: in a clone of slurmlaunch, pip install . numba")

SIZE = 64


@cuda.jit
def saxpy(factor: float, left: Any, right: Any) -> None:
    """Compute ``factor * left + right`` in place of *right*."""
    i = cuda.grid(1)
    if i < right.size:
        right[i] += factor * left[i]


def compute(item: int) -> tuple[float, int, str]:
    """Compute on the GPU of this process; return a sum, the process, and its GPU."""
    left, right = cuda.to_device(np.ones(SIZE)), cuda.to_device(np.zeros(SIZE))
    saxpy[1, SIZE](float(item), left, right)
    total = float(right.copy_to_host().sum())
    return total, slurmlaunch.current_task().process, os.environ.get("CUDA_VISIBLE_DEVICES", "any")


def main() -> None:
    """Compute eight items on four GPUs."""
    executor = slurmlaunch.Executor(time="00:10:00", gpus_per_task=4, processes=4)

    computed = executor.map_array(compute, range(8), tasks=1).results()

    for item, (total, process, gpu) in enumerate(computed):
        print(f"item {item}: {total:g}, by process {process} on GPU {gpu}")


if __name__ == "__main__":
    main()
