"""The resources of a local task, read from sbatch's options, and those of this machine."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, NamedTuple

from slurmlaunch import caps, context
from slurmlaunch.backends.base import parse_memory, parse_time
from slurmlaunch.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from slurmlaunch.backends.base import ArrayJob


class TaskResources(NamedTuple):
    """The resources and limits of one task; `math.inf` is no limit."""

    cpus: int
    seconds: float = math.inf  # the time limit
    memory: float = math.inf  # bytes that its processes may hold
    ranks: int = 1  # the processes that share the CPUs evenly, perhaps on several nodes
    reserved: float = 0.0  # bytes that each rank takes of its node, if memory is shared out there

    @classmethod
    def of(cls, job: ArrayJob, machine_cpus: int | None = None) -> TaskResources:
        """Read the options of a job, with no more CPUs than *machine_cpus* if given.

        Raises:
            OptionError: sbatch would refuse the time or the memory.
        """
        cpus = job.cpus_per_task * job.ranks
        return cls(
            cpus=cpus if machine_cpus is None else min(cpus, machine_cpus),
            seconds=_option(job, "time", parse_time),
            memory=min(_option(job, "mem", parse_memory), _option(job, "mem_per_cpu", parse_memory) * cpus),
            ranks=job.ranks,
        )


def _option(job: ArrayJob, name: str, parse: Callable[[str], float]) -> float:
    value = job.options.get(name)
    if value is None:
        return math.inf
    try:
        return parse(str(value))
    except ValueError as error:
        raise OptionError(f"{name}={value!r} is not a value that sbatch knows", option=name) from error


@functools.cache
def machine_cpus() -> int:
    """Return the CPUs that running tasks may use together; inside a task, the share of that task."""
    return min(context.cpu_count(), caps.usable_cpus())


def fits(wanted: TaskResources, running: Collection[TaskResources]) -> bool:
    """Return True if a task may start on this machine beside the running ones."""
    return wanted.cpus <= machine_cpus() - sum(each.cpus for each in running)
