"""Estimate π by throwing darts, with a random generator per item.

Requires slurmlaunch and NumPy: in a clone of slurmlaunch, pip install . numpy

By hand the index of the task is the seed, and one hopes that neighbouring seeds
give independent streams::

    #!/bin/bash
    #SBATCH --time=00:10:00
    #SBATCH --array=0-15%10
    python darts.py --seed "$SLURM_ARRAY_TASK_ID" > "hits.$SLURM_ARRAY_TASK_ID"

and ``cat hits.* | awk ...`` after the last task has ended. With slurmlaunch, ``rng()``
is the item's own stream: independent of all others, and the same at each attempt and
with any number of tasks; another ``seed=`` gives other darts. ``%10`` is ``throttle=10``,
and Python computes the sum.
"""

from __future__ import annotations

import math
import sys

try:
    import numpy as np  # noqa: F401  (rng() returns one of its generators)

    import slurmlaunch
except ModuleNotFoundError as error:
    sys.exit(f"{error}. Requires slurmlaunch and NumPy: in a clone of slurmlaunch, pip install . numpy")

DARTS = 250_000


def throw(darts: int) -> int:
    """Throw darts at a square, and count those that hit the circle in it."""
    x, y = slurmlaunch.current_task().rng().random((2, darts))
    return int((x**2 + y**2 <= 1).sum())


def main() -> None:
    """Throw sixteen times."""
    executor = slurmlaunch.Executor(time="00:10:00", seed=31415)

    hits = executor.map_array(throw, [DARTS] * 16, throttle=10).results()

    pi = 4 * sum(hits) / (len(hits) * DARTS)
    print(f"pi is about {pi:.6f}, from {len(hits) * DARTS} darts; off by {abs(pi - math.pi):.6f}")


if __name__ == "__main__":
    main()
