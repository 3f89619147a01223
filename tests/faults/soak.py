"""Minutes of random faults on a real Slurm, counted: ``nox -s soak`` or ``python -m tests.faults.soak [seconds]``.

Several clients make run after run, with retries, while faults happen at random: a pool process, a supervisor or a batch
step is killed, a client is killed (and another comes back to its run), an element is requeued or cancelled, slurmctld
is stopped and started. At its end every run must have one outcome for each item: the right value, or an error of ours;
and after ``.retry()`` nothing but right values.

The seed is printed; ``SLURMLAUNCH_SOAK_SEED`` sets it.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from slurmlaunch.errors import RunFolderError
from slurmlaunch.runfolder.layout import Manifest, RunFolder
from slurmlaunch.runfolder.outcomes import OutcomeFile, Recorded
from slurmlaunch.runfolder.records import Kind
from tests.support.cluster import Cluster, ClusterSpec, clean_environment

if TYPE_CHECKING:
    from collections.abc import Callable

ITEMS, TASKS = 24, 6
HANGS_AFTER = 240.0
"""Seconds after which an unfinished run counts as hanging."""

CLIENTS = 3
REPOSITORY = Path(__file__).parents[2]

CLIENT = """
import os, sys, time
from concurrent.futures import TimeoutError
from pathlib import Path
import slurmlaunch
from slurmlaunch import Executor

def work(number):
    import random, time
    time.sleep(random.uniform(0.05, 0.6))
    return number * number + 1

folder, items, tasks = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
expected = [n * n + 1 for n in range(items)]
runs = list(folder.iterdir()) if folder.exists() else []
try:
    array = slurmlaunch.attach(runs[0])
except (IndexError, slurmlaunch.RunFolderError):
    for half in runs:
        half.rename(folder.with_name(f"{folder.name}.{time.monotonic_ns()}"))
    executor = Executor(folder, cluster="slurm", processes=2, cpus_per_task=2, retries=2, time="00:10:00")
    array = executor.map_array(work, range(items), tasks=tasks)

def judge(found, told):
    for number, outcome in enumerate(found):
        if isinstance(outcome, BaseException):
            print(f"{told} {type(outcome).__name__}", flush=True)
            if not isinstance(outcome, slurmlaunch.SlurmlaunchError):
                print(f"WRONG {number} {outcome!r}", flush=True)
        elif outcome != expected[number]:
            print(f"WRONG {number} {outcome!r}", flush=True)
        else:
            print(f"{told} value", flush=True)
    return [outcome for outcome in found if isinstance(outcome, BaseException)]

for told in ("first", "again", "again", "again", "again", "again", "again", "again"):
    failed = judge(array.results(timeout=float(sys.argv[4]), return_exceptions=True), told)
    if not failed:
        break
    array = array.retry()
print("LEFT" if failed else "ALL", flush=True)
"""


class Soak:
    """One soak.

    Attributes:
        faults: how often each fault was done.
        counts: the sum of the clients' reports.
        problems: the violations that were found.
    """

    def __init__(self, cluster: Cluster, folder: Path, seed: int) -> None:
        self.faults: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self._cluster, self._folder = cluster, folder
        self._random = random.Random(seed)
        self._clients: dict[Path, subprocess.Popen[str]] = {}
        self._over = threading.Event()
        self._script = folder / "client.py"
        self._script.write_text(CLIENT, encoding="utf-8")

    def run(self, seconds: float) -> None:
        """Do faults for so many seconds, then wait until all runs have ended."""
        threads = [threading.Thread(target=self._make_runs, args=(number,)) for number in range(CLIENTS)]
        for each in threads:
            each.start()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._do_a_fault()
            time.sleep(self._random.uniform(0.1, 0.9))
        self._over.set()
        for each in threads:
            each.join()

    # Runs.

    def _make_runs(self, number: int) -> None:
        made = 0
        while not self._over.is_set():
            self._one_run(self._folder / f"runs-{number}-{made}")
            made += 1

    def _one_run(self, folder: Path) -> None:
        began = time.monotonic()
        while True:
            process = self._clients[folder] = self._start(folder)
            try:
                out, err = process.communicate(timeout=HANGS_AFTER * 2)
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = process.communicate()
                self.problems.append(f"HANG {folder}: {err[-2000:]}")
                return
            finally:
                del self._clients[folder]
            if process.returncode != -signal.SIGKILL:
                break  # otherwise a fault killed it, and another client attaches
        self._judge(folder, process.returncode, out, err)
        self._count_repeated(folder)
        self.counts["runs"] += 1
        self.counts["slowest run"] = max(self.counts["slowest run"], int(time.monotonic() - began))

    def _start(self, folder: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(self._script), str(folder), str(ITEMS), str(TASKS), str(HANGS_AFTER)],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _judge(self, folder: Path, status: int, out: str, err: str) -> None:
        told = out.splitlines()
        self.counts.update(line for line in told if line.startswith(("first ", "again ")))
        self.problems += [f"{line} {folder}" for line in told if line.startswith("WRONG")]
        if status or "ALL" not in told:
            # If slurmctld is away for long, a refusal by sbatch is a valid outcome.
            kind = "refused" if "SubmissionError" in err else "HANG" if "TimeoutError" in err else "LOST"
            self.counts[kind] += 1
            if kind != "refused":
                self.problems.append(f"{kind} {folder}: {out[-500:]} {err[-3000:]}")

    def _count_repeated(self, folder: Path) -> None:
        """Count the items with more than one recorded value: they ran again although they were done."""
        for path in folder.iterdir():
            run = RunFolder(path)
            try:
                Manifest.read(run)
            except RunFolderError:
                continue  # its client was killed before the manifest was written
            places = [run.outcomes / name for name in run.outcomes.names()]
            files = [OutcomeFile(each, run.salt) for each in places if each.is_file()]
            found = [each for file in files for each in file.read(final=True)]
            recorded = Counter(
                item
                for each in found
                if isinstance(each, Recorded) and each.header.kind != Kind.FAILURE
                for item in range(each.header.first, each.header.stop)
            )
            self.counts["recorded"] += len(recorded)
            self.problems += [f"AGAIN {path}: item {item}" for item, times in recorded.items() if times > 1]

    # Faults.

    def _do_a_fault(self) -> None:
        faults: dict[str, tuple[float, Callable[[], bool]]] = {
            "pool process killed": (6, lambda: self._kill("pool")),
            "supervisor killed": (4, lambda: self._kill("supervisor")),
            "batch step killed": (3, lambda: self._kill("step")),
            "client killed": (4, self._kill_client),
            "requeued": (4, lambda: self._tell_slurm("scontrol", "requeue")),
            "cancelled": (4, lambda: self._tell_slurm("scancel")),
            "slurmctld stopped": (0.25, self._stop_slurmctld),
        }
        name = self._random.choices(list(faults), [weight for weight, _ in faults.values()])[0]
        if faults[name][1]():
            self.faults[name] += 1

    def _kill(self, kind: str) -> bool:
        found = _processes(self._folder)[kind]
        if not found:
            return False
        try:
            os.kill(self._random.choice(found), signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def _kill_client(self) -> bool:
        clients = list(self._clients.values())
        if not clients:
            return False
        self._random.choice(clients).kill()
        return True

    def _tell_slurm(self, *words: str) -> bool:
        shown = subprocess.run(
            ["squeue", "--noheader", "--array", "--format=%i", "--states=RUNNING"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout.split()
        if not shown:
            return False
        done = subprocess.run([*words, self._random.choice(shown)], capture_output=True, check=False)
        return not done.returncode

    def _stop_slurmctld(self) -> bool:
        self._cluster.stop_daemon("slurmctld", signal.SIGTERM)
        time.sleep(self._random.uniform(1, 6))
        self._cluster.start_daemon("slurmctld")
        return True


def _processes(folder: Path) -> dict[str, list[int]]:
    """Return the processes of the tasks of this soak, by kind."""
    nodes: dict[int, int] = {}
    found: dict[str, list[int]] = {"pool": [], "supervisor": [], "step": []}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if b"slurmlaunch.node" in words and any(str(folder).encode() in word for word in words):
                nodes[int(entry.name)] = parent
    for process, parent in nodes.items():
        found["pool" if parent in nodes else "supervisor"].append(process)
        if parent not in nodes:
            found["step"].append(parent)
    return found


def main() -> int:
    """Soak for the time on the command line; return 1 if there were problems."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 240.0
    seed = int(os.environ.get("SLURMLAUNCH_SOAK_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"seed {seed}, {seconds:.0f} s", flush=True)  # noqa: T201
    with tempfile.TemporaryDirectory(prefix="soak") as name, Cluster(ClusterSpec()) as cluster:
        folder = Path(name)
        (folder / "runtime").mkdir(mode=0o700)
        os.environ.update(clean_environment() | cluster.env)
        os.environ.update(
            XDG_RUNTIME_DIR=str(folder / "runtime"), SLURMLAUNCH_QUERY_INTERVAL="1", SLURMLAUNCH_LATENCY="2"
        )
        soak = Soak(cluster, folder, seed)
        soak.run(seconds)
    report(soak)
    return bool(soak.problems)


def report(soak: Soak) -> None:
    """Print the counts."""
    items = sum(number for what, number in soak.counts.items() if what.startswith("first "))
    kinds = Counter(problem.partition(" ")[0] for problem in soak.problems)
    lines = [
        f"{sum(soak.faults.values())} faults: {dict(soak.faults)}",
        f"{items} items; {dict(sorted(soak.counts.items()))}",
        f"wrong values {kinds['WRONG']}, lost {kinds['LOST']}, hangs {kinds['HANG']}, run again {kinds['AGAIN']}",
        *soak.problems,
    ]
    print("\n".join(lines))  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
