"""Run tasks immediately, as steps of an allocation that you have: there is no queue to wait in.

Requires slurmlaunch: in a clone of it, pip install .
Run it in an allocation of Slurm.

By hand, in a shell with an allocation::

    salloc --nodes=2 --ntasks=16 --time=01:00:00
    for seed in $(seq 1 40); do
        srun --exact --nodes=1 --ntasks=1 --cpus-per-task=2 python walk.py "$seed" > "walk.$seed" &
    done
    wait
    cat walk.*

With slurmlaunch it is ``cluster="allocation"``: ``python examples/allocation.py`` in such a shell,
or ``salloc --nodes=2 --ntasks=16 python examples/allocation.py``. As many tasks run at once as
the allocation has CPUs and memory for.
"""

from __future__ import annotations

import os
import random
import sys
from collections import Counter

try:
    from slurmlaunch import Executor
except ModuleNotFoundError as error:
    sys.exit(f"{error}. Requires slurmlaunch: in a clone of it, pip install .")

STEPS = 100_000


def walk(seed: int) -> tuple[int, str]:
    """Walk at random; return the distance from the start, and the node."""
    rng = random.Random(seed)
    distance = abs(sum(rng.choices((-1, 1), k=STEPS)))
    return distance, os.environ["SLURMD_NODENAME"]


def main() -> None:
    """Take forty walks."""
    executor = Executor(cluster="allocation", cpus_per_task=2)

    walks = executor.map_array(walk, range(40)).results()

    distances = [distance for distance, _ in walks]
    nodes = Counter(node for _, node in walks)
    print(
        f"{len(walks)} walks, on average {sum(distances) / len(walks):.1f} steps far; on {dict(sorted(nodes.items()))}"
    )


if __name__ == "__main__":
    main()
