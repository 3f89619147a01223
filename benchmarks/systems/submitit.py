"""submitit: arrays, one task per item."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from systems.base import Trial, outcome
from workloads.registry import SLOTS

if TYPE_CHECKING:
    from pathlib import Path

    from systems.base import Call


@dataclass(frozen=True)
class Submitit:
    """`map_array`.

    Attributes:
        srun: whether tasks start with srun, the default; experts switch it off, which is faster.
        cpus: the CPUs of a task.
    """

    srun: bool = True
    cpus: int = 1
    name: str = "submitit"
    requires: tuple[str, ...] = ("submitit",)
    logs: str = "*_log.out"
    launcher: tuple[str, ...] = ()

    def run(self, call: Call, folder: Path) -> Trial:
        """Submit an array (a job, for one item); wait for its results, one after the other."""
        import submitit

        executor = submitit.SlurmExecutor(folder)
        options: dict[str, Any] = {} if self.srun else {"use_srun": False}
        executor.update_parameters(array_parallelism=SLOTS, cpus_per_task=self.cpus, **options)
        jobs = executor.map_array(call.function, call.items)
        accepted = time.time()
        return Trial([outcome(job.result) for job in jobs], accepted)
