"""What is run again by itself, and with what resources.

Pure decisions: which ends are worth another round (`wants`), and what the next
round asks for, given what its items came to (`grown`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from slurmlaunch.backends.base import parse_memory, parse_time
from slurmlaunch.errors import (
    NodeFailure,
    OutOfMemory,
    ResultLost,
    TaskCancelled,
    TaskEnded,
    TimeLimitExceeded,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from slurmlaunch.client.options import Options

_MEBIBYTE = 1 << 20
_MINUTE = 60
_MEMORY = ("mem", "mem_per_cpu", "mem_per_gpu")
"""Of which sbatch takes one."""


class Cause(NamedTuple):
    """Why an item is to be run again, and what its last attempt used.

    Attributes:
        error: what it came to.
        node: the machine, where it is known.
        memory: the most bytes that its task held, where that is known.
        seconds: how long its task ran, where that is known.
    """

    error: BaseException
    node: str | None = None
    memory: float | None = None
    seconds: float | None = None


def wants(options: Options, error: BaseException) -> bool:
    """Whether an item that came to this is to be run again.

    What ended it from outside is, a cancel aside; what the function raised only
    where its class, or a base of it, is among ``retry_exceptions``.
    """
    if isinstance(error, TaskCancelled):
        return False
    if isinstance(error, (TaskEnded, ResultLost)):
        return True
    classes = {f"{cls.__module__}.{cls.__qualname__}" for cls in type(error).__mro__}
    return not classes.isdisjoint(options.retry_exceptions)


def grown(options: Options, causes: Iterable[Cause]) -> Options:
    """Return the options of a round that runs these items again.

    More memory where memory was short, more time where time was, from what
    the last attempt used; and none of the nodes that failed.
    """
    causes = list(causes)
    slurm = dict(options.slurm)
    short_of_memory = [cause for cause in causes if isinstance(cause.error, OutOfMemory)]
    short_of_time = [cause for cause in causes if isinstance(cause.error, TimeLimitExceeded)]
    if short_of_memory:
        slurm.update(_more_memory(options, short_of_memory))
    if short_of_time:
        slurm.update(_more_time(options, short_of_time))
    failed = {cause.node for cause in causes if isinstance(cause.error, NodeFailure) and cause.node}
    if failed:
        excluded = [str(slurm["exclude"])] if "exclude" in slurm else []
        slurm["exclude"] = ",".join([*excluded, *sorted(failed)])
    return options.changed(**_differences(options.slurm, slurm))


def _differences(before: Mapping[str, str | bool], after: Mapping[str, str | bool]) -> dict[str, str | bool]:
    return {name: value for name, value in after.items() if before.get(name) != value}


def _more_memory(options: Options, causes: list[Cause]) -> dict[str, str]:
    name = next((name for name in _MEMORY if name in options.slurm), _MEMORY[0])
    used = max((cause.memory or 0.0 for cause in causes), default=0.0)
    if name != _MEMORY[0]:
        used = 0.0  # what was measured is the task's
    base = _base(options.slurm.get(name), parse_memory, used)
    if not base:
        return {}
    wanted = base * options.grow.get("mem", 1.0)
    limit = _parsed(options.max_mem, parse_memory)
    return {name: f"{math.ceil(min(wanted, limit) / _MEBIBYTE)}M"}


def _more_time(options: Options, causes: list[Cause]) -> dict[str, str]:
    used = max((cause.seconds or 0.0 for cause in causes), default=0.0)
    base = _base(options.slurm.get("time"), parse_time, used)
    if not base:
        return {}
    wanted = base * options.grow.get("time", 1.0)
    limit = _parsed(options.max_time, parse_time)
    minutes, seconds = divmod(math.ceil(min(wanted, limit)), _MINUTE)
    return {"time": f"{minutes}:{seconds:02}"}


def _base(asked: object, parse: Callable[[str], float], used: float) -> float:
    """Return what there is to grow from; 0 where nothing was asked for or measured, or all there is was asked for."""
    if asked is None:
        return used
    amount = _parsed(asked, parse)
    return max(amount, used) if math.isfinite(amount) else 0.0


def _parsed(value: object, parse: Callable[[str], float]) -> float:
    return parse(value) if isinstance(value, str) else math.inf
