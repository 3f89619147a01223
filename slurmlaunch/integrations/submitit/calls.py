"""The side of submitit in a task: the function of a run of submissions, and ``submitit.JobEnvironment()``.

A function that all items share is pickled once. A function with a checkpoint is not shared, because it keeps its
state in itself. The pickled functions of run folders refer to `Calls` by its name, so it stays in this file.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from submitit.core import utils
from submitit.slurm.slurm import SlurmJobEnvironment

from slurmlaunch import caps, context
from slurmlaunch.errors import SlurmlaunchError
from slurmlaunch.runfolder.layout import Manifest, RunFolder
from slurmlaunch.runfolder.rounds import round_of_task

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

NAME = "slurmlaunch"
"""The cluster's name in submitit."""

_RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
_HIDDEN = "SUBMITIT_SLURMLAUNCH_"


class Calls:
    """The function of a run: an item holds its arguments, and its function if the items have different ones."""

    def __init__(self, function: Callable[..., Any] | None, *, stderr_to_stdout: bool = False) -> None:
        self.function = function
        self.stderr_to_stdout = stderr_to_stdout

    def __call__(self, args: Sequence[Any], kwargs: Mapping[str, Any], function: Any = None) -> Any:
        """Call the function; print the traceback of a failure to the log, where submitit's users look for it."""
        _hide_rank_variables()
        if self.stderr_to_stdout:
            os.dup2(sys.stdout.fileno(), sys.stderr.fileno())
        try:
            return (self.function if function is None else function)(*args, **kwargs)  # type: ignore[misc]
        except Exception:
            traceback.print_exc()
            raise

    @staticmethod
    def call_of(args: Sequence[Any], kwargs: Mapping[str, Any], *_: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of an item's call."""
        return tuple(args), dict(kwargs)

    def submission(self, args: Any, kwargs: Any, function: Any = None) -> utils.DelayedSubmission:
        """Return an item as submitit's submission."""
        called: Any = self.function if function is None else function
        return utils.DelayedSubmission(called, *args, **kwargs)


class CheckpointableCalls(Calls):
    """Calls of functions that have ``checkpoint`` or ``__submitit_checkpoint__``."""

    def checkpoint(self, *item: Any) -> utils.DelayedSubmission | None:
        """Return the submission that resumes an item; None if its function has none."""
        later = self.submission(*item)._checkpoint_function()  # noqa: SLF001  (part of the protocol)
        return later and utils.DelayedSubmission(self, later.args, later.kwargs, later.function)


def as_items(
    submissions: Sequence[utils.DelayedSubmission], *, stderr_to_stdout: bool
) -> tuple[Calls, list[tuple[Any, ...]]]:
    """Return the function and the items of a run for these submissions."""
    functions = [each.function for each in submissions]
    rows: list[tuple[Any, ...]] = [(each.args, each.kwargs, each.function) for each in submissions]
    if any(hasattr(each, "checkpoint") or hasattr(each, "__submitit_checkpoint__") for each in functions):
        return CheckpointableCalls(None, stderr_to_stdout=stderr_to_stdout), rows
    if any(each is not functions[0] for each in functions):
        return Calls(None, stderr_to_stdout=stderr_to_stdout), rows
    return Calls(functions[0], stderr_to_stdout=stderr_to_stdout), [row[:2] for row in rows]


def _hide_rank_variables() -> None:
    """Hide PyTorch's variables from submitit's `TorchDistributedEnvironment`, which refuses to overwrite them."""
    ours = os.environ.get(caps.OURS, "").split(":")
    for name in _RANK_VARIABLES:
        if name in ours and name in os.environ:
            os.environ[_HIDDEN + name] = os.environ.pop(name)


def _rank_variable(name: str, default: int) -> int:
    """Return a number that slurmlaunch has set for the ranks of a task."""
    ours = os.environ.get(caps.OURS, "").split(":")
    value = os.environ.get(_HIDDEN + name, os.environ.get(name) if name in ours else None)
    return default if value is None else int(value)


class SlurmlaunchJobEnvironment(SlurmJobEnvironment):
    """The ``submitit.JobEnvironment()`` of every task of slurmlaunch, also of one that submitit did not submit."""

    _PATIENCE: ClassVar[float] = 60.0

    @classmethod
    def name(cls) -> str:
        """Return the name of the cluster."""
        return NAME

    def activated(self) -> bool:
        """Tell whether this process belongs to such a task."""
        return _task() is not None or os.environ.get("SUBMITIT_EXECUTOR") == NAME

    @property
    def array_job_id(self) -> str | None:
        """The id of the task's job."""
        return self._job_and_element()[0]

    @property
    def array_task_id(self) -> str | None:
        """The task's number in its job."""
        return self._job_and_element()[1]

    @property
    def raw_job_id(self) -> str:
        """Slurm's id of this element of the array; without Slurm the name of the run folder."""
        return os.environ.get("SLURM_JOB_ID") or context.current_task().run_folder.name

    def _job_and_element(self) -> tuple[str | None, str | None]:
        task = _task()
        backend = Manifest.read(RunFolder(task.run_folder)).backend if task else "slurm"
        if task is None or backend == "slurm":
            return os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
        if backend == "inline":  # its id is written when it is over
            return None, None
        round_ = round_of_task(RunFolder(task.run_folder), task.task)
        array, element = round_.plan.element_of(task.task)
        deadline = time.monotonic() + self._PATIENCE
        # The first task may start before the client has recorded the job's id.
        while (job_id := round_.journal().job_ids.get(array)) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return job_id, str(element)

    @property
    def paths(self) -> Paths:
        """The files of the job."""
        task = context.current_task()
        folder = RunFolder(task.run_folder)
        round_ = round_of_task(folder, task.task)
        stdout = folder.log(round_.number, *round_.plan.element_of(task.task), "out")
        return Paths(folder.path, Path(stdout), self.job_id, self.global_rank)

    @property
    def num_tasks(self) -> int:
        """The number of processes that call the function together."""
        return _rank_variable("WORLD_SIZE", 1)

    @property
    def num_nodes(self) -> int:
        """The number of nodes of these processes."""
        return self.num_tasks // _rank_variable("LOCAL_WORLD_SIZE", self.num_tasks)

    @property
    def node(self) -> int:
        """The index of this node among them."""
        return _rank_variable("NODE_RANK", 0)

    @property
    def global_rank(self) -> int:
        """The index of this process among all."""
        return _rank_variable("RANK", 0)

    @property
    def local_rank(self) -> int:
        """The index of this process on its node."""
        return _rank_variable("LOCAL_RANK", 0)


def _task() -> context.Task | None:
    try:
        return context.current_task()
    except SlurmlaunchError:
        return None


class Paths(utils.JobPaths):
    """The files of a job, all of them in the run folder.

    ``submitted_pickle`` is the pickled function, ``result_pickle`` the folder of the outcomes, also of the run's
    other jobs, and ``submission_file`` the folder of the rounds, with the plan of each.
    """

    folder = submission_file = submitted_pickle = result_pickle = stdout = stderr = Path()

    def __init__(self, folder: Path, stdout: Path, job_id: str | None, rank: int = 0) -> None:
        super().__init__(str(folder), job_id=job_id, task_id=rank)
        run_folder = RunFolder(folder)
        self.folder, self.submission_file = run_folder.path, Path(run_folder.rounds)
        self.submitted_pickle, self.result_pickle = Path(run_folder.function), Path(run_folder.outcomes)
        self.stdout, self.stderr = stdout, stdout.with_suffix(".err")
