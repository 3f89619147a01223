"""Which items are retried automatically, and with which resources.

Pure: `wants_retry` decides which ends are worth another attempt, `next_options` which resources
the next round requests, and `PendingRetries` holds the items that failed for an external reason
and wait for that round. Used by `RunState`; nothing here submits or reads anything.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from slurmlaunch.backends.base import parse_memory, parse_time
from slurmlaunch.client.ledger import common
from slurmlaunch.client.options import Options
from slurmlaunch.errors import (
    FunctionExited,
    NodeFailure,
    OutOfMemory,
    ResultLost,
    TaskCancelled,
    TaskEnded,
    TimeLimitExceeded,
)
from slurmlaunch.runfolder.layout import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from slurmlaunch.runfolder.plan import RoundPlan

_MEBIBYTE = 1 << 20
_MINUTE = 60
MEMORY = ("mem", "mem_per_cpu", "mem_per_gpu")
"""Options of which sbatch takes one."""


class Cause(NamedTuple):
    """The error for which items are retried; the node, the peak memory in bytes and the duration of their last task.

    *recorded* says that the task recorded the error, so that no later attempt of it runs the item.
    """

    error: BaseException
    node: str | None = None
    memory: float | None = None
    seconds: float | None = None
    recorded: bool = False


class PendingRetries(dict[int, Cause]):
    """The items that wait to be retried, each with its cause.

    Attributes:
        options: the options of the last round, which decide about retries.
        since: when the first of the waiting items was added.
    """

    def __init__(self) -> None:
        self.options: Options | None = None
        self.since = 0.0
        self._tries: dict[int, int] = {}

    @property
    def enabled(self) -> bool:
        """Whether the run retries anything automatically that a task could not finish."""
        return self.options is not None and bool(self.options.retries)

    def wants(self, item: int, error: BaseException) -> bool:
        """Whether an item that ended with this error is retried; one that its task had no time for always is."""
        options, tries = self.options, self._tries.get(item, 0)
        if options is None:
            return False
        if is_left(error):
            return tries < options.retries + options.requeues
        return tries < options.retries and wants_retry(options, error)

    def add(self, item: int, cause: Cause, now: float) -> None:
        """Add an item."""
        if not self:
            self.since = now
        self[item] = cause

    def discard(self, items: Collection[int]) -> None:
        """Remove those of the items that wait."""
        for item in common(self, items):
            del self[item]

    def forget(self, items: Collection[int]) -> None:
        """Remove those of the items that wait because a task left them open."""
        self.discard([item for item in common(self, items) if not self[item].recorded])

    def add_round(self, plan: RoundPlan) -> None:
        """Count a further round as a try of its items, which wait no longer; a manual one gives them 0 tries again."""
        if self.options is not None:
            for item in plan.items or ():
                self._tries[item] = self._tries.get(item, 0) + 1 if plan.automatic else 0
            self.discard(plan.items or ())
        self.options = Options.from_json(plan.options)


def is_left(error: BaseException) -> bool:
    """Whether the item waits for a further start of its task, which its node could not ask for."""
    return isinstance(error, TimeLimitExceeded) and error.exit_code == f"{Status.RESUBMIT}:0"


def wants_retry(options: Options, error: BaseException) -> bool:
    """Whether an item that ended with this error is worth another attempt.

    It is where something external ended it, cancellation excepted, and where ``retry_exceptions``
    names the class of an exception of the function, or a base of it.
    """
    if isinstance(error, TaskCancelled):
        return False
    if isinstance(error, (TaskEnded, ResultLost)):
        return True
    raised = SystemExit if isinstance(error, FunctionExited) else type(error)
    classes = {f"{cls.__module__}.{cls.__qualname__}" for cls in (*type(error).__mro__, *raised.__mro__)}
    return not classes.isdisjoint(options.retry_exceptions)


def next_options(options: Options, causes: Iterable[Cause]) -> Options:
    """Return the options of the round that retries items with these causes.

    More memory where memory was short, more time where time was short, starting from the use of
    the last attempt, and no node that failed.
    """
    causes = list(causes)
    changes = more_for(options, causes)
    failed = {cause.node for cause in causes if isinstance(cause.error, NodeFailure) and cause.node}
    if failed:
        excluded = [str(options.slurm["exclude"])] if "exclude" in options.slurm else []
        changes["exclude"] = ",".join([*excluded, *sorted(failed)])
    return options.changed(**changes)


def more_for(options: Options, causes: Sequence[Cause]) -> dict[str, str]:
    """Return the options that ask for more memory or time, as far as it is known how much."""
    changes: dict[str, str] = {}
    short_of_memory = [cause for cause in causes if isinstance(cause.error, OutOfMemory)]
    late = [cause for cause in causes if isinstance(cause.error, TimeLimitExceeded)]
    short_of_time = [cause for cause in late if not is_left(cause.error)]
    if short_of_memory:
        changes |= _more_memory(options, short_of_memory)
    if short_of_time:
        changes |= _more_time(options, short_of_time)
    return changes


def _more_memory(options: Options, causes: list[Cause]) -> dict[str, str]:
    name = next((name for name in MEMORY if name in options.slurm), MEMORY[0])
    # The measured memory is that of the whole task.
    used = [cause.memory or 0.0 for cause in causes] if name == MEMORY[0] else [0.0]
    wanted = _grown(options.grow.get("mem", 1.0), options.slurm.get(name), used, options.max_mem, parse_memory)
    return {name: f"{math.ceil(wanted / _MEBIBYTE)}M"} if wanted else {}


def _more_time(options: Options, causes: list[Cause]) -> dict[str, str]:
    used = [cause.seconds or 0.0 for cause in causes]
    wanted = _grown(options.grow.get("time", 1.0), options.slurm.get("time"), used, options.max_time, parse_time)
    minutes, seconds = divmod(math.ceil(wanted), _MINUTE)
    return {"time": f"{minutes}:{seconds:02}"} if wanted else {}


def _grown(factor: float, requested: object, used: list[float], limit: object, parse: Callable[[str], float]) -> float:
    """Return the next amount, never less than *requested*; 0 if that has no limit, or no amount is known."""
    amount = 0.0 if requested is None else _parsed(requested, parse)
    if not math.isfinite(amount):
        return 0.0
    return max(amount, min(factor * max(amount, *used), _parsed(limit, parse)))


def _parsed(value: object, parse: Callable[[str], float]) -> float:
    return parse(value) if isinstance(value, str) else math.inf
