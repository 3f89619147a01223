"""From a call to its plan: how many tasks run its items, which items each has, and how many arrays they make.

The executor and retries use it. Apart from `Call`, which holds the user's function and items, it is arithmetic:
numbers of the call and limits of the cluster go in, a frozen `Plan` comes out. It knows no run, folder or
scheduler. Nothing here grows with the items except the costs that a user gives, and the order that follows from them.
"""

from __future__ import annotations

import heapq
import math
from array import array
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from slurmlaunch.backends.base import Limits
from slurmlaunch.client.sbatch_options import as_count, refused
from slurmlaunch.client.wording import name_of
from slurmlaunch.errors import OptionError, SubmissionError
from slurmlaunch.runfolder.plan import AUTO, SCHEDULES, Blocks, Measured, PackedSlices, Slices, compact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from slurmlaunch.client.options import Options, Shape

    Cost = Callable[..., float] | Iterable[float]

STATIC = "static"
STRICT = "strict"

DEFAULT_TASKS = 1000
"""The most tasks of a run without tasks= or chunksize=: every site accepts so many from one user."""

_FEWEST_LOCALLY, _PER_CPU_LOCALLY = 64, 8
"""How many tasks one machine needs: without a queue, a further task only starts a further Python. Several per CPU
let the CPUs finish at the same time."""


_NO_LINKS = (
    "The file system of the run folder makes no hard links, through which tasks share items: "
    'each task has its slice from the start, as with schedule="static".'
)


class LongSlices(UserWarning):
    """The slices have more than one item per process, as the tasks would be too many, or tasks cannot share items."""


class How(NamedTuple):
    """The keywords of `Executor.map_array`."""

    tasks: int | None = None
    chunksize: int | None = None
    throttle: int | None = None
    schedule: str = AUTO
    cost: Cost | None = None
    name: str | None = None
    resume: bool | str = False

    @property
    def resolved(self) -> str:
        """The schedule: slices, where the user gives a number or costs and leaves the schedule out."""
        given = not (self.tasks is None and self.chunksize is None and self.cost is None)
        return STATIC if given and self.schedule == AUTO else self.schedule

    def check(self, options: Options) -> None:
        """Raise `OptionError` for wrong numbers and combinations, before an iterable is consumed."""
        plan(1, limits=Limits(), tasks=self.tasks, chunksize=self.chunksize, schedule=self.resolved)
        if self.cost is not None and self.resolved != STATIC:
            raise refused("cost", f"packs static slices, and schedule is {self.schedule!r}: give one of them")
        if not (isinstance(self.resume, bool) or self.resume == STRICT):
            raise refused("resume", f"must be True, False or {STRICT!r}, not {self.resume!r}")
        if self.resume and not options.name:
            raise refused("resume", "needs name=..., by which the run is found when the script is started again")


class Call:
    """A function, its items, and how to run them; without a `How` it is a single item.

    *bound* names the arguments of the call that are bound to the function (`Manifest.bound`).
    """

    def __init__(
        self,
        function: Callable[..., Any],
        rows: Iterable[tuple[Any, ...]],
        options: Options,
        how: How | None = None,
        *,
        bound: Iterable[str] = (),
    ) -> None:
        self.function, self.options, self.bound = function, options, list(bound)
        self.single, self._how = how is None, how or How()
        self._costs = None if self._how.cost is None else Costs(self._how.cost)
        self.rows = rows if self._costs is None else self._costs.watching(rows)
        self.resume = self._how.resume

    def collected(self) -> list[tuple[Any, ...]]:
        """Return the arguments of all items, which are then read no more."""
        self.rows = rows = list(self.rows)
        return rows

    @property
    def name(self) -> str:
        """The run's name."""
        return self.options.name or name_of(self.function).rpartition(".")[2].strip("<>")

    def plan(
        self, items: int, limits: Limits, shape: Shape, can_share: Callable[[], bool]
    ) -> tuple[Plan, array[int] | None]:
        """Return the plan for all of the so many items, and their order if they are packed by cost.

        *can_share* tells whether tasks could claim items in the run folder; it is asked only if they should.
        """
        planned = self.plan_of_some(items, limits, shape, can_share)
        if self._costs is None:
            return planned, None
        slices, order = pack(self._costs.of(items), planned.slices.tasks, longest_first=shape.processes > 1)
        return replace(planned, slices=slices), order

    def plan_of_some(
        self, items: int, limits: Limits, shape: Shape, can_share: Callable[[], bool], first_task: int = 0
    ) -> Plan:
        """Return the plan for so many items, which are not packed by cost; see `plan`."""
        planned = self._plan(self._how.resolved, items, limits, shape, first_task)
        if isinstance(planned.blocks, Measured) and not can_share():
            planned = self._plan(STATIC, items, limits, shape, first_task)
            notice = " ".join(filter(None, [_NO_LINKS, planned.notice]))
            planned = replace(planned, notice=notice, about=_NO_LINKS)
        return planned

    def _plan(self, schedule: str, items: int, limits: Limits, shape: Shape, first_task: int) -> Plan:
        # One machine needs fewer tasks, unless each has a time limit for all of its items.
        timed = schedule == STATIC and "time" in self.options.slurm
        return plan(
            items,
            limits=replace(limits, cpus=None) if timed else limits,
            tasks=self._how.tasks,
            chunksize=self._how.chunksize,
            processes=shape.processes,
            first_task=first_task,
            schedule=schedule,
            throttle=self.options.throttle,
        )


@dataclass(frozen=True)
class Plan:
    """The slices and arrays of one round, and the blocks that the tasks of a dynamic one claim."""

    slices: Slices
    arrays: tuple[range, ...]
    """The tasks of each array, by their indices in the run."""
    first_task: int = 0
    notice: str | None = None
    """A warning for the user that slices are longer than expected."""
    blocks: Blocks | Measured | None = None
    about: str | None = None
    """What the tasks do where they share the items, and why there are so many, or why they cannot; for a person."""


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
    """Return the slices and arrays for so many items.

    With *tasks* the slices are balanced, and no task is without an item; with *chunksize* all slices but the last
    have that length. Both are used as given, in several arrays if one cannot hold them. With neither, a slice has
    one item per process of the task, or more if the tasks would be too many for one array or more than
    `DEFAULT_TASKS`; the plan's notice then says so. One machine gets fewer tasks.

    With the *schedule* "auto" there are as many tasks, which share the items; no slice is too long for them, and a task
    that is alone shares nothing. So it is for tasks that run one after the other.

    With any other *schedule* than static, *chunksize* is the size of blocks (see `Blocks`) and *tasks* the number of
    tasks that claim them: by default the square root of the number of static slices, and at most as many as
    may run at once, because a later task finds no items left.

    Raises:
        OptionError: *tasks* and *chunksize* are both given and the schedule is static, one is below 1, or the
            schedule is unknown.
        SubmissionError: the cluster has no arrays.
    """
    if limits.max_array_size == 0 and items > 1 and tasks != 1:
        raise SubmissionError(_NO_ARRAYS)
    notice = about = None
    blocks: Blocks | Measured | None = None
    if schedule == AUTO:
        slices = _default_slices(items, processes, limits)[0] if tasks is None else _given_slices(items, tasks, None)
        if slices.tasks > 1 and limits.side_by_side:
            blocks = Measured(items, slices.tasks)
            about = _about(blocks, processes, limits)
    elif schedule != STATIC:
        if schedule not in SCHEDULES:
            known = ", ".join(f'"{each}"' for each in (AUTO, STATIC, *SCHEDULES))
            raise OptionError(f"schedule={schedule!r} is none of {known}", option="schedule")
        wanted = _claimants(items, processes, limits, throttle) if tasks is None else as_count("tasks", tasks)
        chunksize = None if chunksize is None else as_count("chunksize", chunksize)
        blocks = Blocks(items, min(wanted, -(-items // (chunksize or 1))), schedule, chunksize)
        slices = Slices(items, blocks.tasks)
    elif tasks is not None or chunksize is not None:
        slices = _given_slices(items, tasks, chunksize)
    else:
        slices, notice = _default_slices(items, processes, limits)
    arrays = _arrays(first_task, slices.tasks, limits)
    return Plan(slices, arrays, first_task, notice, blocks, about)


_NO_ARRAYS = (
    "this cluster has job arrays switched off (MaxArraySize=0), and map_array submits one. Call submit for each item, "
    "or run all items in one task with map_array(..., tasks=1); inside an allocation, cluster='allocation' runs tasks"
)


def _about(blocks: Measured, processes: int, limits: Limits) -> str:
    wanted = -(-blocks.items // processes)
    first = "one item" if processes == 1 else f"{processes} items, one for each of its processes"
    reason = "one for each item" if processes == 1 else f"one for {processes} items"
    if wanted > blocks.tasks:
        allowed, limit = _most_by_default(limits)
        reason = (
            f"not {wanted}: {limit}" if blocks.tasks == allowed else f"not {wanted}: so many keep this machine busy"
        )
    return (
        f"{blocks.items} items are shared by {blocks.tasks} tasks ({reason}).\n"
        f"A task takes {first} first, and more at once if they turn out to be short.\n"
        "Tasks for which no item is left are cancelled. tasks= or chunksize= gives each task a slice instead."
    )


def _claimants(items: int, processes: int, limits: Limits, throttle: int | None) -> int:
    """Return how many tasks claim blocks by default: so few that each claims many, even if few run at once."""
    slices = min(-(-items // processes), _most_by_default(limits)[0])
    at_once = [slices, throttle or slices, max(1, (limits.cpus or slices * processes) // processes)]
    return min(*at_once, math.isqrt(max(0, slices - 1)) + 1)


def _given_slices(items: int, tasks: int | None, chunksize: int | None) -> Slices:
    if tasks is not None and chunksize is not None:
        message = "give tasks (how many slices) or chunksize (how many items each), not both"
        raise OptionError(message, option="chunksize")
    if chunksize is None:
        return Slices(items, min(as_count("tasks", tasks), items))
    chunksize = as_count("chunksize", chunksize)
    return Slices(items, -(-items // chunksize), chunksize)


def _default_slices(items: int, processes: int, limits: Limits) -> tuple[Slices, str | None]:
    wanted = -(-items // processes)
    allowed, reason = _most_by_default(limits)
    # So many tasks keep one machine busy.
    enough = wanted if limits.cpus is None else max(_FEWEST_LOCALLY, _PER_CPU_LOCALLY * limits.cpus // processes)
    slices = Slices(items, min(wanted, allowed, enough))
    if wanted <= allowed:
        return slices, None
    return slices, (
        f"{items} items go into {slices.tasks} tasks with up to {slices.longest} items each, "
        f"instead of {wanted} tasks with up to {processes}: {reason}. "
        "The time limit holds for all items of a task together; tasks= or chunksize= decides otherwise."
    )


def _most_by_default(limits: Limits) -> tuple[int, str]:
    ours = (DEFAULT_TASKS, "that is the largest number by default")
    allowed, reason = min([ours, *_array_limits(limits)], key=itemgetter(0))
    return max(1, allowed), reason  # as for _arrays


def _array_limits(limits: Limits) -> list[tuple[int, str]]:
    named = (
        (limits.max_array_size, "the cluster's MaxArraySize allows no longer array"),
        (limits.max_array_tasks, "the cluster's max_array_tasks allows no longer array"),
        (limits.max_submitted, "you may have no more tasks in the queue"),
    )
    return [(number, reason) for number, reason in named if number is not None]


def _arrays(first_task: int, tasks: int, limits: Limits) -> tuple[range, ...]:
    # MaxArraySize is one more than the largest index. As every array starts at 0, it is also the greatest
    # length. If it is below 1, arrays are switched off.
    longest = max(1, min((number for number, _ in _array_limits(limits)), default=tasks))
    end = first_task + tasks
    return tuple(range(start, min(start + longest, end)) for start in range(first_task, end, longest))


# Slices of equal cost: the most expensive piece of items goes to the slice that has least. That is at most a third
# longer than the best packing, and with many items hardly longer at all. Source: R. L. Graham, Bounds on
# multiprocessing timing anomalies, SIAM J. Appl. Math. 17(2), 1969.


class Costs:
    """The costs of the items in any unit, given as numbers or as a function; `OptionError` if they are wrong."""

    def __init__(self, cost: Cost) -> None:
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
        """Yield the items, and record the function's cost of each."""
        for row in rows:
            if self._function is not None:
                self._numbers.append(_checked(self._function(*row)))
            yield row

    def of(self, items: int) -> array[float]:
        """Return the costs of so many items."""
        if len(self._numbers) != items:
            raise refused("cost", f"gives {len(self._numbers)} numbers for {items} items")
        return self._numbers


def _checked(cost: Any) -> float:
    try:
        number = float(cost)
    except (TypeError, ValueError):
        raise refused("cost", f"must be numbers, not {cost!r}") from None
    if not (math.isfinite(number) and number >= 0):
        raise refused("cost", f"must be finite and not negative, not {number}")
    return number


def pack(costs: array[float], tasks: int, *, longest_first: bool) -> tuple[PackedSlices, array[int]]:
    """Pack all items into as many slices of about equal cost as there are tasks, at most one per item.

    The items of a slice are ordered *longest_first*, which helps several processes to finish together, or by
    number, in which they are read and recorded faster. Return the slices, and the order that they divide.
    """
    pieces = _pieces(costs, tasks)
    weights = [sum(costs[piece.start : piece.stop]) for piece in pieces]
    order = sorted(range(len(pieces)), key=weights.__getitem__, reverse=True)
    # Compared by cost and then by number, so that items without cost are spread, too.
    loads = [(0.0, 0, task) for task in range(tasks)]
    parts: list[list[int]] = [[] for _ in range(tasks)]
    for cost, alike in groupby(order, key=weights.__getitem__):
        some = list(alike)
        # Among pieces of equal cost, neighbours stay together.
        tasks_of = []
        for _ in some:
            load, number, task = loads[0]
            heapq.heapreplace(loads, (load + cost, number + 1, task))
            tasks_of.append(task)
        for piece, task in zip(some, sorted(tasks_of), strict=True):
            parts[task].append(piece)
    packed = array("Q")
    for part in parts:
        for number in part if longest_first else sorted(part):
            packed.extend(pieces[number])
    return PackedSlices([sum(len(pieces[number]) for number in part) for part in parts]), compact(packed)


_PIECES = 32
"""About how many pieces a slice consists of; a slice exceeds the average by less than one piece."""


def _pieces(costs: array[float], tasks: int) -> list[range]:
    """Divide the items into pieces of neighbours, which are read and recorded together, each small against a slice."""
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
