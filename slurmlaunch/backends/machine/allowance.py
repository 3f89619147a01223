"""What a local task may use: CPUs, time and memory, read from sbatch's own options."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from slurmlaunch.backends.units import parse_memory, parse_time
from slurmlaunch.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from slurmlaunch.backends.base import ArrayJob


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
