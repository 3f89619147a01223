"""Where running tasks take their CPUs from, and whether there is room for one more.

What a local task may use: CPUs, time and memory, read from sbatch's own options.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol

from slurmlaunch import caps, context
from slurmlaunch.backends.base import parse_memory, parse_time
from slurmlaunch.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from slurmlaunch.backends.base import ArrayJob


class Room(Protocol):
    """What the tasks of a dispatcher share."""

    def fits(self, wanted: Allowance, running: Collection[Allowance]) -> bool:
        """Whether a task may start beside those that run."""


class Machine:
    """This machine."""

    @cached_property
    def cpus(self) -> int:
        """How many CPUs the running tasks may use together.

        A task that runs tasks of its own has its share, not the whole mask.
        """
        return min(context.cpu_count(), caps.usable_cpus())

    def fits(self, wanted: Allowance, running: Collection[Allowance]) -> bool:
        """Whether a task may start beside those that run."""
        return wanted.cpus <= self.cpus - sum(each.cpus for each in running)


MACHINE = Machine()


class Allowance(NamedTuple):
    """The limits of one task.

    Attributes:
        cpus: how many of the machine's CPUs it takes, never more than there are.
        seconds: how long it may run; endless (`math.inf`) without a limit.
        memory: bytes that its processes may hold, likewise.
        ranks: how many processes share the CPUs evenly, perhaps on several nodes.
        reserved: bytes that each rank takes of its node, where that is shared out.
    """

    cpus: int
    seconds: float = math.inf
    memory: float = math.inf
    ranks: int = 1
    reserved: float = 0.0

    @classmethod
    def of(cls, job: ArrayJob, machine: int | None = None) -> Allowance:
        """Read the options of a job, for a machine with so many CPUs if it is to fit there.

        Raises:
            OptionError: a time or a memory that sbatch would refuse.
        """
        memory = _option(job, "mem", parse_memory)
        wanted = job.cpus_per_task * job.ranks
        per_cpu = _option(job, "mem_per_cpu", parse_memory) * wanted
        return cls(
            cpus=wanted if machine is None else min(wanted, machine),
            seconds=_option(job, "time", parse_time),
            memory=min(memory, per_cpu),
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
