"""How many tasks a run gets, and in how many arrays they are submitted.

Pure arithmetic: the numbers of the call and the limits of the cluster go in, a
frozen `Plan` comes out. Nothing here grows with the items, and only the list of
arrays grows with the tasks.
"""

from __future__ import annotations

import heapq
import math
import sys
from array import array
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from slurmlaunch.client.sbatch_options import as_count, refused
from slurmlaunch.errors import OptionError
from slurmlaunch.runfolder.plan import SCHEDULES, Blocks, PackedSlices, Slices, compact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from slurmlaunch.backends.base import Limits

    Cost = Callable[..., float] | Iterable[float]

STATIC = "static"

# What sites can bear of one user without being asked. Whoever wants more says so
# with tasks= or chunksize=.
DEFAULT_TASKS = 1000

_FEWEST_HERE, _PER_CPU_HERE = 64, 8
"""How many tasks are enough on one machine: where there is no queue to wait in, a task more is a Python more to
start, and nothing else. Some per CPU let the CPUs end together."""


@dataclass(frozen=True)
class PlannedArray:
    """One array: its elements ``0..length-1`` are the tasks from `first_task` on."""

    first_task: int
    length: int


@dataclass(frozen=True)
class Plan:
    """What one submission round comes to.

    Attributes:
        slices: which positions each task takes, tasks counted from 0.
        arrays: what is submitted, in this order.
        first_task: the run's index of the round's task 0.
        notice: what the user should be told of the slices' length, or None.
        blocks: what the tasks of a dynamic round take; None for a static one.
    """

    slices: Slices | PackedSlices
    arrays: tuple[PlannedArray, ...]
    first_task: int = 0
    notice: str | None = None
    blocks: Blocks | None = None


def plan(
    items: int,
    *,
    limits: Limits,
    tasks: int | None = None,
    chunksize: int | None = None,
    processes: int = 1,
    first_task: int = 0,
    schedule: str = STATIC,
    throttle: int | None = None,
) -> Plan:
    """Decide slices and arrays for so many items.

    With *tasks* the slices are balanced, and no task is left without an item; with
    *chunksize* all slices but the last have that length. Either is taken as it is
    given, in several arrays where one cannot hold it. With neither, a slice is one
    item per process of the task, or longer where the tasks would be too many for
    one array or more than `DEFAULT_TASKS`; the plan's notice then says so. On one machine
    fewer tasks are enough.

    With another *schedule* than static, *chunksize* is about blocks (see `Blocks`), and
    *tasks* is how many take them: by default the root of the number of slices there would
    be, and no more than may run at once, since who comes later finds nothing left.

    Raises:
        OptionError: *tasks* and *chunksize* are both given and the schedule is static, or one
            is below 1; there is no such schedule.
    """
    notice = blocks = None
    if schedule != STATIC:
        most = min(-(-items // processes), _most_by_default(limits)[0])
        default = _default_takers(most, processes, limits, throttle)
        blocks = _blocks(items, tasks, chunksize, schedule, default)
        slices = Slices(items, blocks.tasks)
    elif tasks is not None or chunksize is not None:
        slices = _slices_asked_for(items, tasks, chunksize)
    else:
        slices, notice = _default_slices(items, processes, limits)
    arrays = _arrays(first_task, slices.tasks, limits)
    return Plan(slices, arrays, first_task, notice, blocks)


def _blocks(items: int, tasks: int | None, chunksize: int | None, schedule: str, default: int) -> Blocks:
    if schedule not in SCHEDULES:
        known = ", ".join(f'"{each}"' for each in (STATIC, *SCHEDULES))
        raise OptionError(f"schedule={schedule!r} is none of {known}", option="schedule")
    wanted = default if tasks is None else as_count("tasks", tasks)
    if chunksize is not None:
        chunksize = as_count("chunksize", chunksize)
    most = -(-items // (chunksize or 1))
    return Blocks(items, min(wanted, most), schedule, chunksize)


def _default_takers(slices: int, processes: int, limits: Limits, throttle: int | None) -> int:
    """Return how many tasks take blocks by default: few enough that each takes many, however few run at once."""
    at_once = [slices, throttle or slices, max(1, (limits.cpus or slices * processes) // processes)]
    return min(*at_once, math.isqrt(max(0, slices - 1)) + 1)


def _slices_asked_for(items: int, tasks: int | None, chunksize: int | None) -> Slices:
    if tasks is not None and chunksize is not None:
        raise OptionError(
            "give tasks (how many slices) or chunksize (how many items each), not both", option="chunksize"
        )
    if chunksize is not None:
        chunksize = as_count("chunksize", chunksize)
        return Slices(items, -(-items // chunksize), chunksize)
    return Slices(items, min(as_count("tasks", tasks), items))


def _default_slices(items: int, processes: int, limits: Limits) -> tuple[Slices, str | None]:
    wanted = -(-items // processes)
    allowed, reason = _most_by_default(limits)
    slices = Slices(items, min(wanted, allowed, _enough(processes, limits)))
    if wanted <= allowed:
        return slices, None
    return slices, (
        f"{items} items go into {slices.tasks} tasks with up to {slices.longest} items each, "
        f"instead of {wanted} tasks with up to {processes}: {reason}. "
        "The time limit holds for all items of a task together; "
        "tasks= or chunksize= decides otherwise."
    )


def _enough(processes: int, limits: Limits) -> int:
    """Return how many tasks keep one machine at work; where there are others, as many as there may be."""
    return sys.maxsize if limits.cpus is None else max(_FEWEST_HERE, _PER_CPU_HERE * limits.cpus // processes)


def _most_by_default(limits: Limits) -> tuple[int, str]:
    ours = (DEFAULT_TASKS, "that is the most made by default")
    allowed, reason = min([ours, *_array_limits(limits)], key=itemgetter(0))
    return max(1, allowed), reason  # as in _arrays


def _array_limits(limits: Limits) -> list[tuple[int, str]]:
    named = (
        (limits.max_array_size, "the cluster's MaxArraySize allows no longer array"),
        (limits.max_array_tasks, "the cluster's max_array_tasks allows no longer array"),
        (limits.max_submit, "the cluster lets you submit no more at once"),
    )
    return [(number, reason) for number, reason in named if number is not None]


def _arrays(first_task: int, tasks: int, limits: Limits) -> tuple[PlannedArray, ...]:
    # MaxArraySize limits the index, and the largest index is one less than it: since
    # every array starts at 0, it is the greatest length too. A limit below 1 (arrays
    # switched off) is left to sbatch, which then says what it wants.
    longest = max(1, min((number for number, _ in _array_limits(limits)), default=tasks))
    end = first_task + tasks
    return tuple(PlannedArray(start, min(longest, end - start)) for start in range(first_task, end, longest))


# Slices of equal cost.


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
