"""Run PyTorch on several nodes: every rank finds the others, and they sum a tensor.

Requires slurmlaunch, PyTorch and NumPy: in a clone of slurmlaunch, pip install . torch numpy

By hand::

    #!/bin/bash
    #SBATCH --time=00:10:00
    #SBATCH --nodes=2
    #SBATCH --ntasks-per-node=2
    export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    export MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))
    export WORLD_SIZE=$SLURM_NTASKS
    srun bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID python train.py'

With slurmlaunch these variables are set before the function is called. With GPUs the
backend is ``"nccl"``, and ``LOCAL_RANK`` is the number of the rank's GPU on its node.
"""

from __future__ import annotations

import sys

try:
    import torch
    import torch.distributed as dist

    from slurmlaunch import Executor
except ModuleNotFoundError as error:
    sys.exit(f"{error}. Requires slurmlaunch, PyTorch and NumPy: in a clone of slurmlaunch, pip install . torch numpy")


def all_reduce() -> float:
    """Sum the numbers of all ranks, counted from 1."""
    dist.init_process_group("gloo")
    number = torch.tensor(1.0 + dist.get_rank())
    dist.all_reduce(number)
    dist.destroy_process_group()
    return number.item()


def main() -> None:
    """Sum on two nodes."""
    executor = Executor(time="00:10:00", nodes=2, ntasks_per_node=2)

    sums = executor.submit(all_reduce).ranks()

    print(f"{len(sums)} ranks computed the sums {sums}")


if __name__ == "__main__":
    main()
