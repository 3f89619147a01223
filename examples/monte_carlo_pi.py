"""Estimate π by throwing darts: the index of the task is the seed.

By hand::

    #!/bin/bash
    #SBATCH --time=00:10:00
    #SBATCH --array=0-15%10
    python darts.py --seed "$SLURM_ARRAY_TASK_ID" > "hits.$SLURM_ARRAY_TASK_ID"

and ``cat hits.* | awk ...`` once the last task has ended. Here the seeds are the
items, ``%10`` is ``throttle=10``, and the sum is Python's.
"""

from __future__ import annotations

import math
import random

from slurmlaunch import Executor

DARTS = 250_000


def throw(seed: int) -> int:
    """Throw darts at a square, and count those that hit the circle in it."""
    rng = random.Random(seed)
    return sum(rng.random() ** 2 + rng.random() ** 2 <= 1 for _ in range(DARTS))


def main() -> None:
    """Throw with sixteen seeds."""
    executor = Executor(time="00:10:00")

    hits = executor.map_array(throw, range(16), throttle=10).results()

    pi = 4 * sum(hits) / (len(hits) * DARTS)
    print(f"pi is about {pi:.6f}, from {len(hits) * DARTS} darts; off by {abs(pi - math.pi):.6f}")


if __name__ == "__main__":
    main()
