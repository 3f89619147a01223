"""Give each process of a task a GPU of its own. Needs Numba, and nodes with GPUs.

By hand one task per GPU is asked for, and each finds its own by its rank::

    #!/bin/bash
    #SBATCH --time=00:10:00
    #SBATCH --gres=gpu:4
    for gpu in 0 1 2 3; do
        CUDA_VISIBLE_DEVICES=$gpu python saxpy.py --part "$gpu" --of 4 &
    done
    wait

Here ``gpus_per_task=4, processes=4`` does it, and each process sees one device,
which it calls number 0. With ``NUMBA_ENABLE_CUDASIM=1`` in the environment Numba
plays a GPU, and this runs on any machine.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numba import cuda

import slurmlaunch

SIZE = 64


@cuda.jit
def saxpy(factor: float, left: Any, right: Any) -> None:
    """Compute ``factor * left + right`` in place of *right*."""
    i = cuda.grid(1)
    if i < right.size:
        right[i] += factor * left[i]


def compute(item: int) -> tuple[float, int, str]:
    """Do one computation on the process's GPU; return a sum, the process, and the GPU that it was given."""
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
