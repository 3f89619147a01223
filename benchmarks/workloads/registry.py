"""The workloads, by name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workloads.functions import closing_over, killing, no_op, sleeping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SLOTS = 16
"""The number of items that may run at once, in any system: the CPUs that the throwaway Slurm claims."""

_KILLED = 37
_CLOSURE = 200_000


@dataclass(frozen=True)
class Workload:
    """A function, its items ``0..items-1``, and the number of tasks for them.

    Attributes:
        name: its name in the registry.
        function: it returns the item itself, so that a wrong result is noticed.
        items: the number of items.
        tasks: the number of slices, all of which may run at once.
        killed: the item that kills its process, or None.
    """

    name: str
    function: Callable[[int], int]
    items: int = 1000
    tasks: int = SLOTS
    killed: int | None = None

    def of(self, items: int, tasks: int = SLOTS) -> Workload:
        """Return the same workload with another number of items and tasks."""
        return dataclasses.replace(self, items=items, tasks=tasks)

    def lost(self, outcomes: Iterable[Any]) -> int:
        """Return the number of items without a result.

        Raises:
            AssertionError: a value is wrong, or the outcomes are fewer or more than the items.
        """
        count, lost = 0, 0
        wrong: list[tuple[int, Any]] = []
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                lost += 1
            elif outcome != count:
                wrong.append((count, outcome))
            count += 1
        if count != self.items or wrong:
            raise AssertionError(f"{self.items} items came to {count} outcomes, of which wrong: {wrong[:5]}")
        return lost


WORKLOADS = {
    each.name: each
    for each in (
        Workload("no-op", no_op),
        Workload("0.1 s", sleeping(0.1), items=200),
        Workload("2 s", sleeping(2.0), items=1000, tasks=1000),
        Workload("5 s", sleeping(5.0), items=SLOTS),
        Workload("60 s", sleeping(60.0), items=SLOTS),
        Workload("one killed", killing(_KILLED), items=100, killed=_KILLED),
        Workload("closure of 200 kB", closing_over(_CLOSURE)),
    )
}
"""All of them; `Workload.of` makes them larger or smaller."""
