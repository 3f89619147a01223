"""Who does the work: the floor, slurmlaunch, and its peers, each as its own users would call it.

A contender's `run` is what is timed. It gets an empty folder, and returns when the
last outcome is known to the client. What a contender keeps from one run to the next
(imported modules, what it knows of the cluster) it keeps as in a notebook.
"""

from __future__ import annotations

import itertools
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from harness.work import over_slices

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from harness.work import Workload

    Outcomes = list[int | BaseException]

_FLOOR_POLL = 0.002


@dataclass(frozen=True)
class Trial:
    """What came of one run.

    Attributes:
        outcomes: each item's value, or the exception that it came to; None where no items were run.
        accepted: when Slurm had accepted the job (`time.time`), as far as the client can tell.
    """

    outcomes: Outcomes | None
    accepted: float


class Contender(Protocol):
    """One way to get work done on Slurm."""

    @property
    def name(self) -> str:
        """What it is called in the table."""

    @property
    def logs(self) -> str:
        """A pattern for the logs of its tasks, in the folder: Slurm makes them when it starts the tasks."""

    def run(self, work: Workload, folder: Path) -> Trial:
        """Do the work, with an empty folder to write to."""


@dataclass(frozen=True)
class Floor:
    """The least that an array costs: its tasks only create a file each, and run no item.

    Attributes:
        code: Python code that each task runs before, or nothing, and then no Python either.
    """

    code: str = ""
    name: str = "floor"
    logs: ClassVar[str] = "*.log"

    def run(self, work: Workload, folder: Path) -> Trial:
        """Submit the array, and look for the files until the last is there."""
        files = folder / "files"
        files.mkdir()
        options = [f"--array=0-{work.tasks - 1}%{work.tasks}", f"--output={folder}/%a.log", "--parsable"]
        python = [shlex.join([sys.executable, "-c", self.code])] if self.code else []
        script = "\n".join(["#!/bin/bash", *python, f': > "{files}/$SLURM_ARRAY_TASK_ID"', ""])
        subprocess.run(["sbatch", *options], input=script, text=True, check=True, stdout=subprocess.DEVNULL)
        accepted = time.time()
        while sum(1 for _ in files.iterdir()) < work.tasks:
            time.sleep(_FLOOR_POLL)
        return Trial(None, accepted)


@dataclass(frozen=True)
class Slurmlaunch:
    """`map_array`.

    Attributes:
        chunksize: the items of a slice; None for as many slices as the workload says.
    """

    chunksize: int | None = None
    name: str = "slurmlaunch"
    logs: ClassVar[str] = "runs/*/logs/*.out"

    def run(self, work: Workload, folder: Path) -> Trial:
        """Submit an array, and take the results."""
        from slurmlaunch import Executor

        executor = Executor(folder / "runs", cluster="slurm")
        cut: dict[str, int] = {"chunksize": self.chunksize} if self.chunksize else {"tasks": work.tasks}
        array = executor.map_array(work.function, range(work.items), throttle=work.tasks, **cut)  # type: ignore[arg-type]
        accepted = time.time()
        return Trial(list(array.results(return_exceptions=True)), accepted)


@dataclass(frozen=True)
class SlurmlaunchSubmit:
    """`submit`, for one item."""

    name: str = "slurmlaunch"
    logs: str = Slurmlaunch.logs

    def run(self, work: Workload, folder: Path) -> Trial:
        """Submit a job, and take its result."""
        from slurmlaunch import Executor

        future = Executor(folder / "runs", cluster="slurm").submit(work.function, 0)
        accepted = time.time()
        return Trial([_outcome(future.result)], accepted)


class _Submitit:
    """What the uses of submitit have in common."""

    logs: ClassVar[str] = "*_log.out"

    def submit(
        self, function: Callable[..., Any], arguments: Sequence[Any], folder: Path, **options: Any
    ) -> tuple[list[Any], float]:
        """Submit an array (a job, for one argument); wait for what it comes to, one after the other."""
        import submitit

        executor = submitit.SlurmExecutor(folder)
        executor.update_parameters(array_parallelism=16, **options)
        jobs = executor.map_array(function, arguments)
        accepted = time.time()
        return [_outcome(job.result) for job in jobs], accepted


@dataclass(frozen=True)
class Submitit(_Submitit):
    """submitit as its manual shows it: one task per item."""

    name: str = "submitit"

    def run(self, work: Workload, folder: Path) -> Trial:
        """Submit an array of all items, and take the results."""
        return Trial(*self.submit(work.function, range(work.items), folder))


@dataclass(frozen=True)
class SubmititByHand(_Submitit):
    """submitit as an expert uses it: slices cut by hand, and tasks that start without srun, which is faster."""

    name: str = "submitit, sliced by hand"

    def run(self, work: Workload, folder: Path) -> Trial:
        """Submit an array of slices, and join their results; a slice that fails loses all its items."""
        cuts = [work.items * i // work.tasks for i in range(work.tasks + 1)]
        slices = [range(a, b) for a, b in itertools.pairwise(cuts)]
        results, accepted = self.submit(over_slices(work.function), slices, folder, use_srun=False)
        outcomes: Outcomes = []
        for items, result in zip(slices, results, strict=True):
            outcomes += [result] * len(items) if isinstance(result, BaseException) else result
        return Trial(outcomes, accepted)


def _outcome(result: Callable[[], Any]) -> Any:
    try:
        return result()
    except Exception as error:  # noqa: BLE001  (peers have many ways to say that an item is lost)
        return error
