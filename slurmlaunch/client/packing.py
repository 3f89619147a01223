"""Slices of equal cost: what the user says of each item's cost, and the packing that follows from it.

Longest first into the slice that has least: that is at most a third longer than the
best packing, and with many items hardly longer at all. Source: R. L. Graham, Bounds
on multiprocessing timing anomalies, SIAM J. Appl. Math. 17(2), 1969.
"""

from __future__ import annotations

import heapq
import math
from array import array
from itertools import groupby
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
        if isinstance(cost, (str, bytes)):
            raise refused("cost", "must be a function of an item, or numbers, one for each, not text")
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
    pieces = _pieces(costs, tasks)
    weights = [sum(costs[piece.start : piece.stop]) for piece in pieces]
    order = sorted(range(len(pieces)), key=weights.__getitem__, reverse=True)
    # By cost, and then by number: items that cost nothing are spread, too.
    loads = [(0.0, 0, task) for task in range(tasks)]
    parts: list[list[int]] = [[] for _ in range(tasks)]
    for cost, alike in groupby(order, key=weights.__getitem__):
        some = list(alike)
        # Which of those that cost the same goes where makes no difference: neighbours stay together.
        for number, task in zip(some, sorted(_lightest(loads, cost) for _ in some), strict=True):
            parts[task].append(number)
    packed = array("Q")
    for part in parts:
        for number in part if longest_first else sorted(part):
            packed.extend(pieces[number])
    return PackedSlices([sum(len(pieces[number]) for number in part) for part in parts]), compact(packed)


_PIECES = 32
"""Into about how many pieces a slice is cut at least: what a slice is too long by is less than one of them."""


def _pieces(costs: array[float], tasks: int) -> list[range]:
    """Cut the items into pieces of neighbours, each small against a slice: they are read and recorded together."""
    number = max(1, tasks) * _PIECES  # without items there are no tasks
    most, share = max(1, len(costs) // number), sum(costs) / number
    pieces: list[range] = []
    start, load = 0, 0.0
    for item, cost in enumerate(costs):
        if item > start and (item - start >= most or load + cost > share):
            pieces.append(range(start, item))
            start, load = item, 0.0
        load += cost
    pieces.append(range(start, len(costs)))
    return [piece for piece in pieces if piece]


def _lightest(loads: list[tuple[float, int, int]], cost: float) -> int:
    """Put an item of that cost into the slice that has least; return which that is."""
    load, number, task = loads[0]
    heapq.heapreplace(loads, (load + cost, number + 1, task))
    return task
