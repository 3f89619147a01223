"""The process that does one run: ``python -m harness FOLDER``, with ``FOLDER/request``; it leaves an ``answer``.

Each run has a process of its own, so that its memory and imports are its own, and so that a system that hangs can be
killed. The timed client is running already: its imports are done, and, if the request says so, one item has been run
before (as in a notebook, whose first call has read the cluster's limits).
"""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import cloudpickle

import workloads.functions
from harness.memory import peak
from systems.base import Call
from workloads.registry import WORKLOADS

if TYPE_CHECKING:
    from systems.base import System, Trial
    from workloads.registry import Workload


@dataclass(frozen=True)
class Request:
    """A run to make.

    Attributes:
        folder: where it may write; it is empty.
        calls: the file in which Slurm's commands are counted.
        warm: whether one item is to make the trip before.
    """

    system: System
    work: Workload
    folder: Path
    calls: Path
    warm: bool = False


@dataclass(frozen=True)
class Answer:
    """The result of a run.

    Attributes:
        seconds: from the call to the last outcome.
        accepted: when Slurm had accepted the job (`time.time`); None if unknown.
        submitting: the seconds from the call to that moment; None if unknown.
        cpu: the client's CPU time in seconds.
        lost: the number of items without a result.
        wrong: the fault in the results, or the exception raised; empty if neither.
        error: the first exception of an item; empty if there is none.
        memory: the most bytes that the client had in memory at once.
        calls_before: the length of the file of calls before the run, in bytes.
        measures: the system's own measurements.
    """

    seconds: float = 0.0
    accepted: float | None = None
    submitting: float | None = None
    cpu: float = 0.0
    lost: int = 0
    wrong: str = ""
    error: str = ""
    memory: int = 0
    calls_before: int = 0
    measures: dict[str, float] = field(default_factory=dict)


def answer(request: Request) -> Answer:
    """Make a run, and check its results."""
    if request.warm:
        with tempfile.TemporaryDirectory(dir=request.folder.parent, ignore_cleanup_errors=True) as folder:
            _call(request.system, WORKLOADS["no-op"].of(1, 1), Path(folder))
    calls_before = request.calls.stat().st_size
    begin, began, cpu = time.monotonic(), time.time(), time.process_time()
    trial = _call(request.system, request.work, request.folder)
    cpu = time.process_time() - cpu
    memory = peak()
    lost, error, wrong = _check(request.work, trial)
    return Answer(
        seconds=trial.ended - begin,
        accepted=trial.accepted,
        submitting=None if trial.accepted is None else trial.accepted - began,
        cpu=cpu,
        lost=lost,
        wrong=wrong,
        error=error,
        memory=memory,
        calls_before=calls_before,
        measures=trial.measures,
    )


def _check(work: Workload, trial: Trial) -> tuple[int, str, str]:
    """Return the number of lost items, the first exception of an item, and the fault in the results."""
    if trial.outcomes is None:
        return 0, "", ""
    outcomes = list(trial.outcomes)
    error = next((repr(each) for each in outcomes if isinstance(each, BaseException)), "")
    try:
        return work.lost(outcomes), error, ""
    except AssertionError as mistake:
        return 0, error, str(mistake)


def _call(system: System, work: Workload, folder: Path) -> Trial:
    os.chdir(folder)
    return system.run(Call(work.function, range(work.items), work.tasks), folder)


def main() -> None:
    """Read the request, and leave the answer."""
    # As from a notebook, where the code is pickled with the function; pickling by reference finds it on PYTHONPATH.
    cloudpickle.register_pickle_by_value(workloads.functions)
    folder = Path(sys.argv[1])
    request: Request = pickle.loads((folder / "request").read_bytes())
    for module in ("slurmlaunch", *request.system.requires):
        __import__(module)
    try:
        answered = answer(request)
    except Exception as error:  # noqa: BLE001  (whatever a peer raises is its result)
        traceback.print_exc()
        answered = Answer(wrong=f"{type(error).__name__}: {error}")
    beside = folder / "answer.new"
    beside.write_bytes(pickle.dumps(answered))
    beside.rename(folder / "answer")
