"""Slices of equal cost: what the user says of each item's cost, and the packing that follows from it.

Longest first into the slice that has least: that is at most a third longer than the
best packing, and with many items hardly longer at all. Source: R. L. Graham, Bounds
on multiprocessing timing anomalies, SIAM J. Appl. Math. 17(2), 1969.
"""

from __future__ import annotations

import heapq
import math
from array import array
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Any

from slurmlaunch.client.values import refused
from slurmlaunch.runfolder.rounds import compact
from slurmlaunch.runfolder.slices import PackedSlices

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Cost = Callable[..., float] | Iterable[float]


class Costs:
    """What the items cost, in any unit."""

    def __init__(self, cost: Cost) -> None:
        """Take in the numbers, or the function that gives them.

        Raises:
            OptionError: it is neither, or a number is negative or not finite.
        """
        self._function = cost if callable(cost) else None
        self._numbers = array("d")
        if not callable(cost):
            try:
                self._numbers.extend(map(_checked, cost))
            except TypeError as error:
                raise refused("cost", f"must be a function of an item, or numbers, one for each: {error}") from error

    def watching(self, rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        """Yield the items as they are taken, and ask the function for the cost of each.

        Raises:
            OptionError: a cost is no number, negative, or not finite.
            Exception: whatever the function raises.
        """
        for row in rows:
            if self._function is not None:
                self._numbers.append(_checked(self._function(*row)))
            yield row

    def of(self, items: int) -> array[float]:
        """Return the costs of so many items, which must be as many as were given.

        Raises:
            OptionError: they are not.
        """
        if len(self._numbers) != items:
            raise refused("cost", f"gives {len(self._numbers)} numbers for {items} items")
        return self._numbers


def _checked(cost: Any) -> float:
    try:
        number = float(cost)
    except (TypeError, ValueError):
        raise refused("cost", f"must be numbers, not {cost!r}") from None
    if not (math.isfinite(number) and number >= 0):
        raise refused("cost", f"must be finite and not negative, which {number} is not")
    return number


def pack(costs: array[float], tasks: int, *, longest_first: bool) -> tuple[PackedSlices, array[int]]:
    """Pack all items into so many slices, each about as costly as the others.

    Args:
        costs: the cost of each item.
        tasks: how many slices to make, at most as many as there are items.
        longest_first: whether a slice holds its items in the order of their cost, which helps where several
            processes share them, rather than in their own, in which they are read and recorded faster.

    Returns:
        The slices, and the list of items that they cut.
    """
    order = sorted(range(len(costs)), key=costs.__getitem__, reverse=True)
    # By cost, and then by number: items that cost nothing are spread, too.
    loads = [(0.0, 0, task) for task in range(tasks)]
    task_of = array("I", [0]) * len(costs)
    for cost, alike in groupby(order, key=costs.__getitem__):
        items = list(alike)
        # Which of those that cost the same goes where makes no difference: neighbours stay together.
        for item, task in zip(items, sorted(_lightest(loads, cost) for _ in items), strict=True):
            task_of[item] = task
    lengths = [number for _, number, _ in sorted(loads, key=lambda each: each[2])]
    places = list(accumulate(lengths, initial=0))
    packed = array("Q", [0]) * len(costs)
    for item in order if longest_first else range(len(costs)):
        task = task_of[item]
        packed[places[task]] = item
        places[task] += 1
    return PackedSlices(lengths), compact(packed)


def _lightest(loads: list[tuple[float, int, int]], cost: float) -> int:
    """Put an item of that cost into the slice that has least; return which that is."""
    load, number, task = loads[0]
    heapq.heapreplace(loads, (load + cost, number + 1, task))
    return task
