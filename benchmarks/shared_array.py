"""Eight processes of one machine that read one large array: the memory that this takes.

    python benchmarks/shared_array.py                     # 1 GB, slurmlaunch alone
    python benchmarks/shared_array.py --full --size 0.5   # the others, too; the pool needs 18 times as much

It starts a throwaway Slurm whose nodes claim eight CPUs each, and measures all processes
that a contender has started on the node. Their memory, once each has read the whole
array, is the sum of their proportional shares (Pss in proc_pid_smaps(5): a page that n
processes map counts as an n-th in each). The peak before is the private memory of each
process, plus the files and shared memory of one of them, because shares would change
during the sum. slurmlaunch's client is elsewhere; with the other contenders the process
that distributes the work is on the node as well, and has the array too.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MARK = "SHARED_ARRAY_RUN"
"""The variable by which a contender's processes are known."""

_BAR = 1.3
_TICK = 0.05
_PATIENCE = 300.0
_CHECKOUT = Path(__file__).resolve().parents[1]


def read_all(array: np.ndarray[Any, Any], folder: Path, item: int) -> float:
    """Read the whole array, report it, and keep it until all processes have been measured."""
    total = float(array.sum())
    (folder / f"{item}.here").touch()
    _await((folder / "go").exists)
    return total


def _await(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError("the processes did not all come up")
        time.sleep(_TICK)


# The contenders. Each runs in its own Python.


def run_slurmlaunch(array: np.ndarray[Any, Any], folder: Path, processes: int, mark: str) -> list[float]:
    """Run one task with so many processes."""
    from slurmlaunch import Executor

    with Executor(folder / "runs", cluster="slurm", cpus_per_task=processes, env={_MARK: mark}) as executor:
        return executor.map_array(partial(read_all, array, folder), range(processes), tasks=1).results()


def run_joblib(array: np.ndarray[Any, Any], folder: Path, processes: int, _mark: str) -> list[float]:
    """Run joblib in its best configuration: it writes the array to a file, and its workers map that."""
    from joblib import Parallel, delayed

    work = Parallel(n_jobs=processes, batch_size=1)(delayed(read_all)(array, folder, i) for i in range(processes))
    return list(work)


def run_pool(array: np.ndarray[Any, Any], folder: Path, processes: int, _mark: str) -> list[float]:
    """Run the standard library's pool, with the array in the function."""
    with ProcessPoolExecutor(processes) as pool:
        return list(pool.map(partial(read_all, array, folder), range(processes)))


_OURS = "slurmlaunch"
_CONTENDERS = {
    _OURS: run_slurmlaunch,
    "joblib, memory-mapped": run_joblib,
    "ProcessPoolExecutor": run_pool,
}


# The scales.


class Weight(NamedTuple):
    """The measurements of one contender.

    Attributes:
        name: the contender.
        held: bytes, once all processes had read the array.
        highest: the largest of all measurements, in bytes.
        seconds: until all had read it.
    """

    name: str
    held: int
    highest: int
    seconds: float


def _memory(process: Path) -> dict[str, int]:
    """Return the system's figures for a process's memory, in bytes; nothing if it has ended."""
    try:
        text = (process / "smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return {}
    return {name: int(kilobytes) * 1024 for name, kilobytes in re.findall(r"^(\w+): +(\d+) kB", text, re.MULTILINE)}


def _marked(mark: str) -> Iterator[Path]:
    wanted = f"{_MARK}={mark}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (process / "environ").read_bytes().split(b"\0"):
                yield process
        except OSError:  # it has ended, or belongs to another user
            continue


class Scales:
    """Measures the memory of the marked processes, again and again.

    Attributes:
        highest: the highest measurement.
    """

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self.highest = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def weigh(self) -> int:
        """Return the memory of the processes now."""
        found = [memory for memory in map(_memory, _marked(self._mark)) if memory]
        shared = max((memory["Rss"] - memory["Anonymous"] for memory in found), default=0)
        self.highest = max(self.highest, shared + sum(memory["Pss_Anon"] for memory in found))
        return sum(memory["Pss"] for memory in found)

    def _watch(self) -> None:
        while not self._ended.wait(_TICK):
            self.weigh()

    def close(self) -> None:
        """Stop."""
        self._ended.set()
        self._thread.join()


def weigh(name: str, gigabytes: float, processes: int, folder: Path) -> Weight:
    """Run one contender, and measure the memory of its processes."""
    mark = secrets.token_hex(8)
    # slurmlaunch's client is not on the node: there only the tasks are marked.
    env = os.environ if name == _OURS else {**os.environ, _MARK: mark}
    command = [sys.executable, __file__, "--run", name, "--size", str(gigabytes), "--processes", str(processes)]
    scales, began = Scales(mark), time.monotonic()
    with subprocess.Popen([*command, "--folder", str(folder), "--mark", mark], env=env) as contender:
        try:
            _await(lambda: contender.poll() is not None or len(list(folder.glob("*.here"))) == processes)
            seconds = time.monotonic() - began
            held = scales.weigh()
            (folder / "go").touch()
            status = contender.wait(_PATIENCE)
        finally:
            contender.kill()
            scales.close()
    if status:
        raise SystemExit(f"{name} ended with status {status}")
    return Weight(name, held, scales.highest, seconds)


def _has_room(name: str, gigabytes: float, processes: int) -> bool:
    """Return whether the machine has memory for the pool: each process has the array, and at first its pickle."""
    copies = 2 * processes + 2 if name == "ProcessPoolExecutor" else 4
    found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"), re.MULTILINE)
    return not found or int(found[1]) * 1024 > copies * gigabytes * 1e9


def markdown(weights: list[Weight], gigabytes: float, processes: int) -> str:
    """Return the table."""
    lines = [f"| {processes} processes × one array of {gigabytes:g} GB | held | highest | over the array | seconds |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for each in weights:
        ratio = each.held / (gigabytes * 1e9)
        met = f"{ratio:.2f}"
        if each.name == _OURS:
            met += f" (bar {_BAR}: {'met' if ratio <= _BAR else '**missed**'})"
        figures = f"{each.held / 1e9:.2f} GB | {each.highest / 1e9:.2f} GB | {met} | {each.seconds:.1f}"
        lines.append(f"| {each.name} | {figures} |")
    return "\n".join(lines)


def _main() -> None:
    arguments = _parse_arguments()
    if arguments.run:
        array = np.ones(int(arguments.size * 1e9) // 8)
        run = _CONTENDERS[arguments.run]
        found = run(array, arguments.folder, arguments.processes, arguments.mark)
        assert found == [float(len(array))] * arguments.processes
        return
    sys.path.append(str(_CHECKOUT))
    from tests.support.cluster import Cluster, ClusterSpec, clean_environment

    weights = []
    with Cluster(ClusterSpec(nodes=1, cpus_per_node=arguments.processes, accounting=False)) as cluster:
        os.environ.update(clean_environment() | cluster.env)
        for name in arguments.only or (_CONTENDERS if arguments.full else [_OURS]):
            if not _has_room(name, arguments.size, arguments.processes):
                print(f"{name} is left out: there is too little memory for it")
                continue
            with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="shared-array-") as folder:
                weights.append(weigh(name, arguments.size, arguments.processes, Path(folder)))
    print(markdown(weights, arguments.size, arguments.processes))


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Weigh processes that share one large array.")
    parser.add_argument("--full", action="store_true", help="the others, too, some of which need 18 times the memory")
    parser.add_argument("--size", type=float, default=1.0, help="gigabytes of the array (1 by default)")
    parser.add_argument("--processes", type=int, default=8, help="how many processes read it (8 by default)")
    parser.add_argument("--only", action="append", choices=list(_CONTENDERS), help="only this one; may be given again")
    parser.add_argument("--folder", type=Path, help="where runs may write")
    parser.add_argument("--run", choices=list(_CONTENDERS), help=argparse.SUPPRESS)
    parser.add_argument("--mark", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    _main()
