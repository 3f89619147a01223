"""What a local task may use: CPUs, time and memory, read from sbatch's own options."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, NamedTuple

from slurmlaunch.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from slurmlaunch.backends.base import ArrayJob

_MEMORY = re.compile(r"(?P<number>\d+)(?P<unit>[KMGT]?)B?", re.IGNORECASE)
_POWER = {"K": 1, "": 2, "M": 2, "G": 3, "T": 4}

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<clock>\d+(?::\d+){0,2})")
_UNITS = {1: (60,), 2: (60, 1), 3: (3600, 60, 1)}
_UNITS_AFTER_DAYS = (3600, 60, 1)
_NO_TIME_LIMIT = ("UNLIMITED", "INFINITE")


class Allowance(NamedTuple):
    """The limits of one task.

    Attributes:
        cpus: how many of the machine's CPUs it takes, never more than there are.
        seconds: how long it may run; endless (`math.inf`) without a limit.
        memory: bytes that its processes may hold, likewise.
    """

    cpus: int
    seconds: float = math.inf
    memory: float = math.inf

    @classmethod
    def of(cls, job: ArrayJob, machine: int) -> Allowance:
        """Read the options of a job for a machine with so many CPUs.

        Raises:
            OptionError: a time or a memory that sbatch would refuse.
        """
        memory = _option(job, "mem", parse_memory)
        per_cpu = _option(job, "mem_per_cpu", parse_memory) * job.cpus_per_task
        return cls(
            cpus=min(job.cpus_per_task, machine),
            seconds=_option(job, "time", parse_time),
            memory=min(memory, per_cpu),
        )


def _option(job: ArrayJob, name: str, parse: Callable[[str], float]) -> float:
    value = job.options.get(name)
    if value is None:
        return math.inf
    try:
        return parse(str(value))
    except ValueError as error:
        raise OptionError(f"{name}={value!r} is not a value that sbatch knows", option=name) from error


def parse_time(text: str) -> float:
    """Return the seconds of a time in one of sbatch's formats.

    Unlike Slurm, which rounds up to minutes, a laptop has seconds.
    """
    if text.upper() in _NO_TIME_LIMIT:
        return math.inf
    found = _TIME.fullmatch(text)
    if not found:
        raise ValueError(text)
    fields = found["clock"].split(":")
    units = _UNITS_AFTER_DAYS if found["days"] else _UNITS[len(fields)]
    seconds = sum(int(value) * unit for value, unit in zip(fields, units, strict=False))
    # A limit of zero is none, in Slurm's words.
    return int(found["days"] or 0) * 86400 + seconds or math.inf


def parse_memory(text: str) -> float:
    """Return the bytes of an amount of memory as sbatch reads it: in megabytes by default."""
    found = _MEMORY.fullmatch(text)
    if not found:
        raise ValueError(text)
    # `--mem=0` asks for all there is.
    return int(found["number"]) * 1024 ** _POWER[found["unit"].upper()] or math.inf
