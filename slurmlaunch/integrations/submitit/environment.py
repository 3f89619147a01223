"""What a task learns of itself from ``submitit.JobEnvironment()``."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, ClassVar

from submitit.core import utils
from submitit.slurm.slurm import SlurmJobEnvironment

from slurmlaunch import caps, context
from slurmlaunch.errors import SlurmlaunchError
from slurmlaunch.runfolder.journal import round_of_task
from slurmlaunch.runfolder.layout import Manifest, RunFolder

if TYPE_CHECKING:
    from pathlib import Path

NAME = "slurmlaunch"
"""What the cluster is called."""

_RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
_HIDDEN = "SUBMITIT_SLURMLAUNCH_"


def hide_rank_variables() -> None:
    """Leave the variables of PyTorch to submitit's `TorchDistributedEnvironment`, which refuses where they are set."""
    ours = os.environ.get(caps.OURS, "").split(":")
    for name in _RANK_VARIABLES:
        if name in ours and name in os.environ:
            os.environ[_HIDDEN + name] = os.environ.pop(name)


def _told(name: str, default: int) -> int:
    """Return a number that slurmlaunch has told the ranks of a task."""
    ours = os.environ.get(caps.OURS, "").split(":")
    value = os.environ.get(_HIDDEN + name, os.environ.get(name) if name in ours else None)
    return default if value is None else int(value)


class SlurmlaunchJobEnvironment(SlurmJobEnvironment):
    """What ``submitit.JobEnvironment()`` is in a task of slurmlaunch's, also one that submitit knows nothing of."""

    _PATIENCE: ClassVar[float] = 60.0

    @classmethod
    def name(cls) -> str:
        """Return the name of the cluster."""
        return NAME

    def activated(self) -> bool:
        """Whether this process is in such a task."""
        return _task() is not None or os.environ.get("SUBMITIT_EXECUTOR") == NAME

    @property
    def array_job_id(self) -> str | None:
        """The id of the task's job."""
        return self._place()[0]

    @property
    def array_task_id(self) -> str | None:
        """The task's number in its job."""
        return self._place()[1]

    @property
    def raw_job_id(self) -> str:
        """The id that Slurm gives this element of the array; elsewhere what the run is called."""
        return os.environ.get("SLURM_JOB_ID") or context.current_task().run_folder.name

    def _place(self) -> tuple[str | None, str | None]:
        task = _task()
        backend = Manifest.read(RunFolder(task.run_folder)).backend if task else "slurm"
        if task is None or backend == "slurm":
            return os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
        if backend == "inline":  # it has its id when it is over
            return None, None
        its_round = round_of_task(RunFolder(task.run_folder), task.index)
        array, element = its_round.plan.element_of(task.index)
        deadline = time.monotonic() + self._PATIENCE
        # The client writes the id down when the job is submitted, which may be after its first task has started.
        while (job_id := its_round.job_ids().get(array)) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return job_id, str(element)

    @property
    def paths(self) -> Paths:
        """Where things are."""
        task = context.current_task()
        folder = RunFolder(task.run_folder)
        its_round = round_of_task(folder, task.index)
        stdout = folder.log(its_round.number, *its_round.plan.element_of(task.index), "out")
        return Paths(folder.path, stdout, self.job_id, self.global_rank)

    @property
    def num_tasks(self) -> int:
        """How many processes call the function together."""
        return _told("WORLD_SIZE", 1)

    @property
    def num_nodes(self) -> int:
        """On how many nodes they are."""
        return self.num_tasks // _told("LOCAL_WORLD_SIZE", self.num_tasks)

    @property
    def node(self) -> int:
        """The number of this node among those."""
        return _told("NODE_RANK", 0)

    @property
    def global_rank(self) -> int:
        """The number of this process among all."""
        return _told("RANK", 0)

    @property
    def local_rank(self) -> int:
        """Its number among those of its node."""
        return _told("LOCAL_RANK", 0)


def _task() -> context.Task | None:
    try:
        return context.current_task()
    except SlurmlaunchError:
        return None


class Paths(utils.JobPaths):
    """Where the files of a job are: what submitit has per job lies in a run folder."""

    def __init__(self, folder: Path, stdout: Path, job_id: str | None, rank: int = 0) -> None:
        """Find them, from the run folder and the log of standard output."""
        super().__init__(str(folder), job_id=job_id, task_id=rank)
        self._run_folder, self._stdout = RunFolder(folder), stdout

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self._run_folder.path

    @property
    def submission_file(self) -> Path:
        """What was submitted."""
        return self._run_folder.rounds

    @property
    def submitted_pickle(self) -> Path:
        """The function."""
        return self._run_folder.function

    @property
    def result_pickle(self) -> Path:
        """The results, those of the other jobs of the run among them."""
        return self._run_folder.outcomes

    @property
    def stdout(self) -> Path:
        """The log of standard output."""
        return self._stdout

    @property
    def stderr(self) -> Path:
        """The log of standard error."""
        return self._stdout.with_suffix(".err")
