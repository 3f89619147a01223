"""slurmlaunch, and the ways to use it."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import operator
import pickle
import resource
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.memory import resident
from harness.strace import between, calls_in, file_costs, traced
from systems.base import Trial, outcome

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from slurmlaunch import FutureArray
    from systems.base import Call

_RUNNING_POLL = 0.1
_WATCHER_LOOKS = 2.0
"""Seconds in which the watcher has looked at a new run more than once."""

_WATCH = """
import os, sys, slurmlaunch
from slurmlaunch.client import collector
collector.is_on_network = lambda folder: True  # the bound is one for network file systems
array = slurmlaunch.attach(sys.argv[1])
os.path.exists(sys.argv[3])
array.wait(float(sys.argv[2]))
os.path.exists(sys.argv[3])
"""


def _submit(call: Call, folder: Path, *, tasks: int | None = None, **options: Any) -> FutureArray[Any]:
    from slurmlaunch import Executor

    count = tasks or call.tasks
    executor = Executor(folder / "runs", cluster="slurm", **options)
    return executor.map_array(call.function, call.items, tasks=count, throttle=count)


@dataclass(frozen=True)
class Slurmlaunch:
    """`map_array`, and `results`.

    Attributes:
        tasks: the number of slices; None for that of the call.
        cpus: the CPUs, and so processes, of a task.
    """

    tasks: int | None = None
    cpus: int = 1
    name: str = "slurmlaunch"
    requires: tuple[str, ...] = ()
    logs: str = "runs/*/logs/*.out"
    launcher: tuple[str, ...] = ()

    def run(self, call: Call, folder: Path) -> Trial:
        """Submit an array, and collect the results."""
        array = _submit(call, folder, tasks=self.tasks, cpus_per_task=self.cpus)
        accepted = time.time()
        return Trial(list(array.results(return_exceptions=True)), accepted)


@dataclass(frozen=True)
class OneItemPerTask(Slurmlaunch):
    """`map_array` with a task for each item, as other systems do."""

    name: str = "slurmlaunch, chunksize=1"

    def run(self, call: Call, folder: Path) -> Trial:
        """Submit an array as long as the items, and collect the results."""
        from slurmlaunch import Executor

        executor = Executor(folder / "runs", cluster="slurm")
        array = executor.map_array(call.function, call.items, chunksize=1, throttle=call.tasks)
        accepted = time.time()
        return Trial(list(array.results(return_exceptions=True)), accepted)


@dataclass(frozen=True)
class Submit(Slurmlaunch):
    """`submit`, for one item."""

    name: str = "slurmlaunch, submit"

    def run(self, call: Call, folder: Path) -> Trial:
        """Submit a job, and collect its result."""
        from slurmlaunch import Executor

        future = Executor(folder / "runs", cluster="slurm").submit(call.function, call.items[0])
        accepted = time.time()
        return Trial([outcome(future.result)], accepted)


@dataclass(frozen=True)
class Streamed(Slurmlaunch):
    """`map_array` and `iter_results`, for more results than fit into memory.

    It measures the client's memory when all outcomes exist and no result has been read.
    """

    name: str = "slurmlaunch, streamed"

    def run(self, call: Call, folder: Path) -> Trial:
        """Submit an array, wait for its end, and count the right results one by one."""
        array = _submit(call, folder)
        accepted = time.time()
        array.wait()
        unread = resident()
        right = sum(map(operator.eq, call.items, array.iter_results()))
        assert right == len(call.items), f"only {right} of {len(call.items)} results are right"
        return Trial(None, accepted, {"resident, unread": unread})


@dataclass(frozen=True)
class FirstOutcome(Slurmlaunch):
    """`map_array` and `as_completed`: it ends when the first outcome is visible."""

    name: str = "slurmlaunch, first outcome"

    def run(self, call: Call, folder: Path) -> Trial:
        """Submit an array, and read the first that completes; the others end before the next run."""
        array = _submit(call, folder)
        accepted = time.time()
        first = next(iter(array.as_completed()))
        trial = Trial(None, accepted)
        assert first.result() == call.items[first.index], "the first outcome is wrong"
        array.wait()
        return trial


@dataclass(frozen=True)
class Unresolved(Slurmlaunch):
    """`map_array` of tasks that do not start: it measures the growth of the client's memory."""

    name: str = "slurmlaunch, unresolved"

    def run(self, call: Call, folder: Path) -> Trial:
        """Submit a held array, measure the memory, and cancel the array."""
        from slurmlaunch import Executor

        Executor(folder / "runs", cluster="slurm").script(call.function, call.items[:1])  # so that all is imported
        gc.collect()
        before = resident()
        array = _submit(call, folder, begin="now+1hour")
        time.sleep(_WATCHER_LOOKS)
        gc.collect()
        trial = Trial(None, measures={"grown": resident() - before})
        array.cancel()
        return trial


@dataclass(frozen=True)
class Watched(Slurmlaunch):
    """`attach` and `wait`, by a second client that is traced while the tasks run: it measures file operations.

    Attributes:
        seconds: the time that the client waits.
    """

    seconds: float = 20.0
    name: str = "slurmlaunch, watched"

    def run(self, call: Call, folder: Path) -> Trial:
        """Submit an array, wait until tasks run, and count the operations of a client that waits for them."""
        from slurmlaunch import Executor

        executor = Executor(folder / "runs", cluster="slurm")
        array = executor.map_array(call.function, call.items, chunksize=1)
        while not array.counts()["done"]:
            time.sleep(_RUNNING_POLL)
        trial = Trial(None, measures=self._watch(array.folder, folder))
        array.cancel()
        return trial

    def _watch(self, run_folder: Path, folder: Path) -> dict[str, float]:
        """Trace a client that waits; return its calls per second, of each kind and in all."""
        mark = folder / "mark"
        watch = [sys.executable, "-c", _WATCH, str(run_folder), str(self.seconds), str(mark)]
        calls = calls_in(between(traced(watch, folder), str(mark)), run_folder)
        return {"all": len(calls) / self.seconds} | {name: calls.count(name) / self.seconds for name in set(calls)}


@dataclass(frozen=True)
class WatchedAtOnce(Watched):
    """The same with more running tasks than the test machine can run: their nodes are simulated.

    The simulated part is a node as a client sees it: its real file of outcomes, which grows item by item.

    Attributes:
        item_seconds: a node's time for an item.
    """

    item_seconds: float = 10.0
    name: str = "slurmlaunch, watched at once"

    def run(self, call: Call, folder: Path) -> Trial:
        """Submit a held array, simulate its nodes, and count the operations of a client that waits."""
        array = _submit(call, folder, begin="now+1hour")
        with _played(array.folder, self.item_seconds):
            trial = Trial(None, measures=self._watch(array.folder, folder))
        array.cancel()
        return trial


@contextlib.contextmanager
def _played(path: Path, item_seconds: float) -> Iterator[None]:
    """Simulate all nodes of a run: each records one item after the other."""
    from slurmlaunch.runfolder.layout import Manifest, RunFolder
    from slurmlaunch.runfolder.outcomes import OutcomeWriter
    from slurmlaunch.runfolder.rounds import Round

    folder = RunFolder(path)
    Manifest.read(folder)  # which gives it the salt of its records
    plan = Round.read(folder, 0).plan
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    writers = {task: OutcomeWriter(folder, task) for task in plan.tasks}
    for writer in writers.values():
        writer.note(started=time.time(), node="n1")
    over = threading.Event()

    def play() -> None:
        for row in zip(*map(plan.items_of, plan.tasks), strict=False):
            for writer, item in zip(writers.values(), row, strict=True):
                writer.value(item, pickle.dumps(item))
                if over.wait(item_seconds / len(writers)):
                    return

    player = threading.Thread(target=play)
    player.start()
    try:
        yield
        assert player.is_alive(), "the nodes had no items left to record while they were watched"
    finally:
        over.set()
        player.join()


@dataclass(frozen=True)
class TaskStart(Slurmlaunch):
    """The start of a node, and of a Python that only imports cloudpickle: it measures the bytes that they read."""

    name: str = "slurmlaunch, start of a task"

    def run(self, call: Call, folder: Path) -> Trial:
        """Submit a held array, and run its first task ourselves."""
        array = _submit(call, folder, begin="now+1hour")
        starts = {
            "node": [sys.executable, "-m", "slurmlaunch.node", str(array.folder), "0"],
            "cloudpickle": [sys.executable, "-c", "import cloudpickle"],
        }
        measures: dict[str, float] = {}
        for name, command in starts.items():
            costs = file_costs(traced(command, folder))
            measures |= {f"{name} {key}": number for key, number in dataclasses.asdict(costs).items()}
        array.cancel()
        return Trial(None, measures=measures)
