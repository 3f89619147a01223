"""How many tasks a run gets, and in how many arrays they are submitted.

Pure arithmetic: the numbers of the call and the limits of the cluster go in, a
frozen `Plan` comes out. Nothing here grows with the items, and only the list of
arrays grows with the tasks.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING

from slurmlaunch.client.values import as_count
from slurmlaunch.errors import OptionError
from slurmlaunch.runfolder.blocks import SCHEDULES, Blocks
from slurmlaunch.runfolder.slices import Slices

if TYPE_CHECKING:
    from slurmlaunch.backends.base import Limits
    from slurmlaunch.runfolder.slices import PackedSlices

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
