"""Two commits compared: 10^6 no-op items in one local task, in turns.

    python benchmarks/commits.py                   # HEAD~1 beside HEAD, two rounds
    python benchmarks/commits.py v0.1.0 HEAD --full --items 10000000

It checks both commits out into a temporary folder. The CPU time is that of the client and of the task together. How
long something takes never decides the exit status; a wrong result does.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

_REPOSITORY = Path(__file__).resolve().parents[1]

# Runs in the checked-out tree.
_RUN = """
import sys
from slurmlaunch import Executor

def no_op(item):
    return item

folder, items = sys.argv[1], int(sys.argv[2])
with Executor(folder, cluster="local", cpus_per_task=2, processes=2) as executor:
    results = executor.map_array(no_op, range(items), tasks=1).results()
sys.exit(results != list(range(items)))
"""


class Cost(NamedTuple):
    """What one run took, in seconds."""

    wall: float
    cpu: float


def measure(tree: Path, items: int) -> Cost:
    """Run the items once with the code in a tree; exit if a result is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        before, start = _cpu_seconds(), time.monotonic()
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        subprocess.run([sys.executable, "-P", "-c", _RUN, folder, str(items)], check=True, env=environment, cwd=folder)
        return Cost(time.monotonic() - start, _cpu_seconds() - before)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Print the medians of both commits, and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", nargs="?", default="HEAD~1")
    parser.add_argument("new", nargs="?", default="HEAD")
    parser.add_argument("--full", action="store_true", help="five rounds")
    parser.add_argument("--items", type=int, default=10**6)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trees = {commit: Path(folder, str(number)) for number, commit in enumerate((arguments.old, arguments.new))}
        for commit, tree in trees.items():
            subprocess.run(["git", "worktree", "add", "--quiet", "--detach", tree, commit], cwd=_REPOSITORY, check=True)
        try:
            costs: dict[str, list[Cost]] = {commit: [] for commit in trees}
            for _ in range(5 if arguments.full else 2):
                for commit, tree in trees.items():
                    costs[commit].append(measure(tree, arguments.items))
        finally:
            for tree in trees.values():
                subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=_REPOSITORY, check=True)
    for name in Cost._fields:
        old, new = (statistics.median(getattr(cost, name) for cost in costs[commit]) for commit in trees)
        print(f"{name}: {arguments.old} {old:.2f} s, {arguments.new} {new:.2f} s, {new / old:.3f} ×")


if __name__ == "__main__":
    main()
