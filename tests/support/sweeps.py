"""A script of a user that goes on with its run, for tests that start it again and again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support import scripts

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

SWEEP = """
    import sys, time
    from dataclasses import dataclass
    from slurmlaunch import Executor

    @dataclass
    class Point:
        number: int
        tags: set

    def work(point):
        with open("ledger", "ab", buffering=0) as ledger:
            ledger.write(f"{point.number}\\n".encode())
        time.sleep(float(open("seconds").read()))
        return point.number ** 2 + len(point.tags)

    points = [Point(n, {"a", "bb", "ccc", str(n)}) for n in range(int(sys.argv[1]))]
    array = Executor("runs", cluster=sys.argv[2]).map_array(work, points, name="sweep", resume=True)
    right = array.results() == [n * n + 4 for n in range(len(points))]
    print(right, len(array.job_ids))
"""
"""Its arguments are the number of items and the cluster; a file says how many seconds each takes. It prints whether the
results are right, and how many jobs the run has had."""


def start(folder: Path, items: int, *, seconds: float = 0.0, cluster: str = "local") -> subprocess.Popen[str]:
    """Start it in a folder."""
    (folder / "seconds").write_text(str(seconds), encoding="utf-8")
    return scripts.start(folder, SWEEP, items, cluster)


def begun(folder: Path) -> list[int]:
    """Return the items that have begun, in the order in which they did, once for each time."""
    ledger = folder / "ledger"
    return list(map(int, ledger.read_text(encoding="utf-8").split())) if ledger.exists() else []
