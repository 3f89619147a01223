"""How soon a client notices a death: one, and a hundred at once.

    python benchmarks/faults.py

It starts a throwaway Slurm of its own that claims 128 CPUs, and asks for states every
second rather than every thirty, so that the last line shows how soon an answer is passed
on. Seconds are counted from the moment at which the last of them was killed to the one at
which the last of their futures was done.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from slurmlaunch import Executor, TaskCancelled, WorkerDied

if TYPE_CHECKING:
    from collections.abc import Callable

    from slurmlaunch import FutureArray

CHECKOUT = Path(__file__).resolve().parents[1]
ROUNDS, FULL_ROUNDS = 3, 9
MANY = 100
PROCESSES = 50


class Sleeper:
    """An item that records its process id, and sleeps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, item: int) -> None:
        """Sleep until the process is killed."""
        beside = self.folder / f"{item}.new"
        beside.write_text(f"{os.getpid()} {os.getppid()}", encoding="utf-8")
        beside.rename(self.folder / str(item))
        time.sleep(600)

    def await_all(self, number: int) -> list[tuple[int, int]]:
        """Wait until all items run; return the process and the supervisor of each."""
        while sum(path.suffix == "" for path in self.folder.iterdir()) < number:
            time.sleep(0.05)
        words = [(self.folder / str(item)).read_text(encoding="utf-8").split() for item in range(number)]
        return [(int(process), int(supervisor)) for process, supervisor in words]


def kill_processes(_: FutureArray[None], pids: list[tuple[int, int]]) -> None:
    """Kill the processes that run the items."""
    for process, _supervisor in pids:
        os.kill(process, signal.SIGKILL)


def kill_supervisors(_: FutureArray[None], pids: list[tuple[int, int]]) -> None:
    """Kill the tasks' supervisors."""
    for _process, supervisor in pids:
        os.kill(supervisor, signal.SIGKILL)


def cancel(array: FutureArray[None], _: list[tuple[int, int]]) -> None:
    """Cancel the job as another user would."""
    subprocess.run(["scancel", *array.job_ids], check=True)


def seconds(kill: Callable[[FutureArray[None], list[tuple[int, int]]], None], number: int, expected: type) -> float:
    """Return the seconds from the last death until the client has noticed all deaths."""
    with tempfile.TemporaryDirectory() as name:
        (work := Path(name, "items")).mkdir()
        sleeper = Sleeper(work)
        processes = min(number, PROCESSES) if kill is kill_processes else 1
        executor = Executor(Path(name, "runs"), cluster="slurm", cpus_per_task=processes, processes=processes)
        array = executor.map_array(sleeper, range(number))
        pids = sleeper.await_all(number)
        kill(array, pids)
        began = time.monotonic()
        found = array.results(timeout=120, return_exceptions=True)
        took = time.monotonic() - began
        if {type(each) for each in found} != {expected}:
            raise AssertionError(f"{kill.__name__}: {set(map(repr, found))}")
        executor.shutdown()
        return took


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description="Measure how soon a client sees that something died.")
    parser.add_argument("--full", action="store_true", help="measure each line nine times, rather than three times")
    rounds = FULL_ROUNDS if parser.parse_args().full else ROUNDS
    sys.path.append(str(CHECKOUT))
    from tests.support.cluster import Cluster, ClusterSpec

    rows = (
        ("a process of the pool killed", kill_processes, WorkerDied),
        ("a supervisor killed", kill_supervisors, WorkerDied),
        ("cancelled by somebody else", cancel, TaskCancelled),
    )
    print(f"| what ended | 1, seconds | {MANY}, seconds |\n| --- | --- | --- |")
    with Cluster(ClusterSpec(cpus_per_node=64)) as cluster, tempfile.TemporaryDirectory() as runtime:
        os.environ.update(cluster.env)
        os.environ.update(XDG_RUNTIME_DIR=runtime, SLURMLAUNCH_QUERY_INTERVAL="1", SLURMLAUNCH_LATENCY="1")
        for what, kill, expected in rows:
            cells = []
            for number in (1, MANY):
                took = [seconds(kill, number, expected) for _ in range(rounds)]
                cells.append(f"{statistics.median(took):.2f} ({min(took):.2f} to {max(took):.2f})")
            print(f"| {what} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
