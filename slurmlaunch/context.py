"""Inside a task: which item this is, how many CPUs are its own, and a pool to use them."""

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
        index: the index of the task in its run.
        attempt: 0 for its first start, 1 after a requeue, and so on.
        item: the index of the item that is being run.
        process: the number of this pool process in the task, from 0.
        processes: how many pool processes the task has.
        threads: how many CPUs this process may use.
        seed: the run's seed: the option ``seed=``, or 0.
        rank: which of the processes that call the function together this is (``ntasks=``), from 0.
        ranks: how many these are; 1 where each call is one process's own.
    """

    __slots__ = ("attempt", "index", "item", "process", "processes", "rank", "ranks", "run_folder", "seed", "threads")

    def __init__(
        self,
        run_folder: Path,
        index: int,
        attempt: int,
        *,
        process: int = 0,
        processes: int = 1,
        threads: int = 1,
        seed: int = 0,
    ) -> None:
        self.run_folder, self.index, self.attempt, self.item = run_folder, index, attempt, -1
        self.process, self.processes, self.threads, self.seed = process, processes, threads, seed
        self.rank, self.ranks = 0, 1

    def __repr__(self) -> str:
        return f"<Task {self.index} of {self.run_folder}, item {self.item}>"

    def rng(self, *key: int) -> np.random.Generator:
        """Return NumPy's random generator of this item: a stream that no other item of the run has.

        It follows from the run's seed, the item and the key alone, so it is the
        same whatever the slicing, the backend, the attempt. Of ranks that call
        the function together each has a stream of its own. Each call starts the
        stream anew: ask once, and hand the generator on. Where an item needs
        several independent streams, as for the calls that it gives to a
        `task_pool` (whose processes belong to the same item), each has a key of
        its own.

        Args:
            key: whole numbers, not negative, that name one of the item's streams.

        Raises:
            MissingPackage: NumPy is not installed.
            SlurmlaunchError: no item is being run, as while the function is loaded.
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
    """Of the class: what threads see that have none of their own, such as those that a function starts."""


_current = _Current()


def swap(task: Task | None) -> Task | None:
    """Make a task the current one of this thread, and of threads that have none; return the one before."""
    before: Task | None = vars(_current).get("task")
    _current.task = _Current.task = task
    return before


def current_task() -> Task:
    """Return the task that this code runs in.

    Raises:
        SlurmlaunchError: it does not run in one.
    """
    task = _current.task or _Current.task
    if task is None:
        msg = "current_task() was called outside a task: call it in the function that you submit"
        raise SlurmlaunchError(msg)
    return task


def cpu_count() -> int:
    """Return how many CPUs this process may use.

    In a task that is its share of what was granted, even where the mask of the
    node is smaller or larger. Elsewhere it is what the process may run on.
    """
    share = os.environ.get(caps.SHARE, "")
    return int(share) if share.isdigit() else caps.usable_cpus()


def task_pool(max_workers: int | None = None, *, threads: int = 1) -> TaskPool:
    """Return a process pool that fills the CPUs of this process, and no more.

    Args:
        max_workers: the number of processes; by default as many as there are
            CPUs (`cpu_count`) for so many threads each.
        threads: how many threads each process may use.

    Returns:
        A `concurrent.futures.ProcessPoolExecutor` that also takes lambdas,
        closures and functions of ``__main__``.
    """
    # Imported here: multiprocessing is too much for a node that nobody asks for a pool.
    from slurmlaunch.taskpool import TaskPool

    workers = max(1, cpu_count() // threads) if max_workers is None else max_workers
    return TaskPool(workers, threads)
