"""The functions for user code inside a task: the current item, the share of CPUs, a process pool.

`current_task`, `cpu_count` and `task_pool` are public names of the package. Workers, ranks and
the inline backend set the current task (`swap`). This module knows nothing of run folders or Slurm.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from slurmlaunch import caps
from slurmlaunch.errors import MissingPackage, SlurmlaunchError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from slurmlaunch.taskpool import TaskPool


class Task:
    """The task that this code runs in.

    Attributes:
        run_folder: the run folder.
        task: the index of the task in its run; several items may share a task.
        attempt: 0 for the first start of the task, 1 after a requeue, and so on.
        item: the index of the running item, equal to the `index` of its future.
        process: the number of this worker in the task, from 0.
        processes: the number of workers of the task.
        threads: the number of CPUs that this process may use.
        seed: the run's seed: the option ``seed=``, or 0.
        rank: the rank of this process if several call the function together (``ntasks=``), from 0.
        ranks: the number of these processes, else 1.
    """

    __slots__ = ("attempt", "item", "process", "processes", "rank", "ranks", "run_folder", "seed", "task", "threads")

    def __init__(self, run_folder: Path, task: int, attempt: int, *, threads: int = 1, seed: int = 0) -> None:
        self.run_folder, self.task, self.attempt, self.item = run_folder, task, attempt, -1
        self.threads, self.seed = threads, seed
        self.process, self.processes, self.rank, self.ranks = 0, 1, 0, 1

    def __repr__(self) -> str:
        return f"<Task {self.task} of {self.run_folder}, item {self.item}>"

    @property
    def index(self) -> int:
        """No longer there, as it was taken for the index of the item.

        Raises:
            AttributeError: always, with the names to use.
        """
        raise AttributeError(
            "current_task() has no index: .item is the index of the item, which is unique in the run, "
            "and .task that of the task, which several items may share"
        )

    def rng(self, *key: int) -> np.random.Generator:
        """Return NumPy's random generator of this item: a stream that no other item of the run has.

        It depends on the run's seed, the item and the key alone, so it is the
        same for every slicing, backend and attempt. Each rank has a stream of its
        own. Every call starts the stream again: call once, and pass the generator
        on. If an item needs several independent streams, such as one for each call
        in a `task_pool`, give each a key.

        Args:
            key: non-negative integers that name one of the item's streams.

        Raises:
            MissingPackage: NumPy is not installed.
            SlurmlaunchError: no item is running, as while the function is loaded.
        """
        if self.item < 0:
            raise SlurmlaunchError("rng() was called before an item began: call it in the function that you submit")
        try:
            from numpy.random import SeedSequence, default_rng
        except ImportError as error:
            raise MissingPackage.of("current_task().rng()", "numpy") from error
        # Source: NumPy's manual, "Parallel random number generation", SeedSequence spawning.
        seed = self.seed if self.ranks == 1 else [self.seed, self.rank]
        return default_rng(SeedSequence(seed, spawn_key=(self.item, *key)))


class _Current(threading.local):
    task: Task | None = None
    """The task of threads that have none of their own, such as those that a function starts."""


_current = _Current()


def swap(task: Task | None) -> Task | None:
    """Make a task the current one of this thread, and of threads without one; return the previous one."""
    before: Task | None = vars(_current).get("task")
    _current.task = _Current.task = task
    return before


def is_in_task() -> bool:
    """Return True where `current_task` returns a task."""
    return (_current.task or _Current.task) is not None


def current_task() -> Task:
    """Return the task that this code runs in.

    Raises:
        SlurmlaunchError: it runs in no task.
    """
    task = _current.task or _Current.task
    if task is None:
        msg = "current_task() was called outside a task: call it in the function that you submit"
        raise SlurmlaunchError(msg)
    return task


def cpu_count() -> int:
    """Return how many CPUs this process may use.

    In a task that is its share of the granted CPUs, even if the node's affinity mask is
    smaller or larger; elsewhere it is the size of that mask.
    """
    share = os.environ.get(caps.SHARE, "")
    return int(share) if share.isdigit() else caps.usable_cpus()


def task_pool(max_workers: int | None = None, *, threads: int = 1) -> TaskPool:
    """Return a process pool that uses the CPUs of this process, and no others.

    Args:
        max_workers: the number of processes; by default `cpu_count` divided by *threads*.
        threads: the number of threads that each process may use.

    Returns:
        A `concurrent.futures.ProcessPoolExecutor` that also accepts lambdas,
        closures and functions of ``__main__``.
    """
    # Late: importing multiprocessing is expensive, and most nodes do not need it.
    from slurmlaunch.taskpool import TaskPool

    workers = max(1, cpu_count() // threads) if max_workers is None else max_workers
    return TaskPool(workers, threads)
