"""Which task has which items: the plan of a round, its slices and its blocks.

A plan cuts *positions*: the items themselves in a run's first round, the entries of a list of missing items in a
later one. Arithmetic alone says which positions a task has, so that 10^8 items in 10^5 tasks cost no more than ten
in two: the client writes three numbers, a task computes its slice from them, and the client computes the task of an
item. Only slices packed by cost are a table, of one number per task.

In a dynamic round tasks claim blocks instead (`slurmlaunch.runfolder.claims`), one after the other, and here is the
rule for their lengths. `Measured` blocks depend on how long the items of a task take: the first is one item for each
process. `Blocks` depend on nothing but their number. Unless the user sets their length, they shrink: each holds about
a third of a task's fair share of the rest. The first ones are long, so that there are few; the last ones are single
items, so that tasks end together however uneven the items are. Both make O(tasks × log items) blocks.

Clients make plans, nodes and clients read them. Nothing here touches a file: `slurmlaunch.runfolder.rounds` does.

Sources: S. F. Hummel, E. Schonberg, L. E. Flynn, Factoring: a method for scheduling parallel loops, CACM 35(8),
1992; for "guided", the OpenMP specification, clause "schedule".
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from itertools import accumulate, islice
from operator import attrgetter, ge
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from slurmlaunch.runfolder import forms
from slurmlaunch.runfolder.clients import CLIENT, ClientId
from slurmlaunch.runfolder.layout import CHANGES, FUNCTION

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


_U32_MAX = (1 << 32) - 1
_MOST_ITEMS = (1 << 63) - 1


AUTO, DYNAMIC, GUIDED = "auto", "dynamic", "guided"
SCHEDULES = (DYNAMIC, GUIDED)
"""The schedules of `Blocks`; that of `Measured` is "auto"."""

CLAIM_SECONDS = 0.2
"""The work of a measured block of short items, by the duration of the task's last ones: a claim costs milliseconds."""

_LEAST_SECONDS = 0.02
"""A block with less work takes longer to claim, hand over and read than to run: so short ones shrink only when each
task has one left."""

_GROWTH = 8
"""How much longer a measured block may be than the task's last one: one item says little about the others."""

_FAIR = 1.5
"""A measured block has a task's share of the rest, divided by this, if all tasks come. With 2 there would be more than
``tasks * (8 + log2(items / tasks))`` blocks of a million items."""

_BALANCED, _EXPECTED = 8, 8
"""It has no more, even if the items are short, than the share of the tasks that have come, divided by this; so many are
expected to come. A longer block could have two of few long items, while other tasks end."""

_SHARE = 3
"""A block is this fraction of a task's share of the remaining items. Simulated with 2000 Pareto items on 16 slots, the
makespan is on average 1.24, 1.05, 1.05, 1.05 of the least for 1, 2, 3, 4, and at worst 1.50, 1.11, 1.10, 1.08, with
16, 112, 176, 240 blocks; single items give 1.04 and 1.08."""

_GUIDED_STEPS = 8
"""How often "guided" blocks shrink while each task claims one: often enough for a smooth decline, seldom
enough that the table stays short however many tasks there are."""


class _Parts:
    """Positions ``0..items-1``, cut into consecutive parts: batches of parts of one length.

    The last part ends with the last position.
    """

    # No dataclass, here and in everything that a node imports: making one costs a node's start
    # a millisecond, and a thousand nodes start at once.
    _word = "part"

    def __init__(self, numbers: dict[str, Any], number: int) -> None:
        self._numbers = numbers
        self.items: int = numbers["items"]
        self.tasks: int = numbers["tasks"]
        self.number = number
        """How many parts there are."""
        # Of each batch: its first part, the first position of that, and the length of each part.
        self._firsts: Sequence[int] = ()
        self._starts: Sequence[int] = ()
        self._lengths: Sequence[int] = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Parts) and self._numbers == other._numbers

    __hash__ = None  # type: ignore[assignment]

    def positions_of(self, part: int) -> range:
        """Return the positions of a part; raises IndexError if there is no such part."""
        # Negative numbers are refused too: they would silently name another task's items.
        if not 0 <= part < self.number:
            raise IndexError(f"there is no {self._word} {part}: there are {self.number}")
        batch = bisect_right(self._firsts, part) - 1
        start = self._starts[batch] + (part - self._firsts[batch]) * self._lengths[batch]
        return range(start, min(start + self._lengths[batch], self.items))

    def part_of(self, position: int) -> int:
        """Return the part that holds a position; raises IndexError if there is no such position."""
        if not 0 <= position < self.items:
            raise IndexError(f"there is no position {position}: there are {self.items}")
        batch = bisect_right(self._starts, position) - 1
        return self._firsts[batch] + (position - self._starts[batch]) // self._lengths[batch]

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as a round's plan holds them."""
        return self._numbers


class Slices(_Parts):
    """Positions ``0..items-1``, cut into consecutive slices, one for each of *tasks*.

    Tasks are counted from 0 here; a round whose tasks start at a higher index
    subtracts its first one. *chunksize* is the length of every slice but the last, or None for
    slices whose lengths differ by at most one, the longer ones first.

    Raises:
        ValueError: these slices would not hold each position exactly once.
    """

    _word = "task"
    slice_of, task_of = _Parts.positions_of, _Parts.part_of

    def __init__(self, items: int, tasks: int, chunksize: int | None = None) -> None:
        super().__init__({"items": items, "tasks": tasks, "chunksize": chunksize}, tasks)
        if chunksize is None:
            whole = items >= 0 and tasks >= (1 if items else 0)
        else:
            whole = items >= 0 and chunksize >= 1 and tasks == -(-items // chunksize)
        if not whole:  # as a damaged plan would hold
            raise ValueError(f"{items} items in {tasks} tasks of {chunksize} do not hold each position exactly once")
        if chunksize is None:
            short, longer = divmod(items, tasks or 1)
            self._firsts, self._starts, self._lengths = (0, longer), (0, longer * (short + 1)), (short + 1, short)
        else:
            self._firsts, self._starts, self._lengths = (0,), (0,), (chunksize,)

    @property
    def chunksize(self) -> int | None:
        """The length of each slice but the last, if it was given."""
        return self._numbers.get("chunksize")

    @property
    def longest(self) -> int:
        """The length of the longest slice; 0 where there is none."""
        return len(self.slice_of(0)) if self.tasks else 0

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Slices:
        """Read what `to_json` wrote, of the form `PLAN`; a damaged plan raises ValueError."""
        if "lengths" not in data:
            return Slices(data["items"], data["tasks"], data.get("chunksize"))
        slices = PackedSlices(data["lengths"])
        if (slices.items, slices.tasks) != (data["items"], data["tasks"]):
            raise ValueError(f"slices of {data['lengths']} are not {data['items']} items in {data['tasks']} tasks")
        return slices


class PackedSlices(Slices):
    """Positions of a list, cut into consecutive slices of the given *lengths*, one for each task.

    Raises:
        ValueError: a length is negative.
    """

    def __init__(self, lengths: Iterable[int]) -> None:
        lengths = tuple(lengths)
        if min(lengths, default=0) < 0 or sum(lengths) > _MOST_ITEMS:
            raise ValueError("slices cannot be of negative length, or hold more items than can be counted")
        starts = array("Q", accumulate(lengths, initial=0))
        _Parts.__init__(self, {"items": starts[-1], "tasks": len(lengths), "lengths": lengths}, len(lengths))
        self._firsts, self._starts, self._lengths = range(len(lengths)), starts, lengths
        self._positions: array[int] | None = None

    @property
    def longest(self) -> int:
        """The length of the longest slice; 0 where there is none."""
        return max(self._lengths, default=0)

    def position_of(self, item: int, items: Sequence[int]) -> int:
        """Return the position of an item in the list that is cut, which holds ``0..items-1`` in any order."""
        if self._positions is None:
            # Only clients need this, for single items: four bytes per item.
            positions = array("I" if len(items) <= _U32_MAX else "Q", [0]) * len(items)
            for position, each in enumerate(items):
                positions[each] = position
            self._positions = positions
        return self._positions[item]


class Blocks(_Parts):
    """Positions ``0..items-1``, cut into consecutive blocks, which *tasks* claim in this order.

    Args:
        items: how many positions there are.
        tasks: how many tasks claim blocks.
        schedule: ``"dynamic"``: as many blocks of one length as there are tasks, then shorter
            ones; or all of *chunksize*. ``"guided"``: each a little shorter than the last, none
            shorter than *chunksize*.
        chunksize: see *schedule*; None to leave the lengths to the schedule.

    Raises:
        ValueError: the numbers make no blocks.
    """

    _word = "block"
    block_of = _Parts.part_of

    def __init__(self, items: int, tasks: int, schedule: str, chunksize: int | None = None) -> None:
        if (
            items < 0
            or tasks < (1 if items else 0)
            or schedule not in SCHEDULES
            or (chunksize is not None and chunksize < 1)
        ):  # as a damaged plan would hold
            raise ValueError(f"{items} items in {tasks} tasks make no {schedule!r} blocks of {chunksize}")
        self.schedule, self.chunksize = schedule, chunksize
        batches: list[tuple[int, int, int]] = []  # O(log items)
        width = max(1, tasks // _GUIDED_STEPS) if schedule == GUIDED else tasks
        least = chunksize or 1
        block = start = 0
        while start < items:
            length = max(least, -(-(items - start) // (_SHARE * tasks)))
            if chunksize and schedule == DYNAMIC:
                length = chunksize
            batches.append((block, start, length))
            left = -(-(items - start) // length)
            number = left if length == least else min(width, left)
            block, start = block + number, start + number * length
        super().__init__({"items": items, "tasks": tasks, "schedule": schedule, "chunksize": chunksize}, block)
        if batches:
            self._firsts, self._starts, self._lengths = zip(*batches, strict=True)

    def length(self, front: Front, pace: Pace) -> int:
        """Return the length of the next block, which depends on its number alone."""
        del pace
        return len(self.positions_of(front.block))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Blocks:
        """Read what `to_json` wrote, of the form `PLAN`; a damaged plan raises ValueError."""
        return cls(data["items"], data["tasks"], data["schedule"], data["chunksize"])


class Front(Protocol):
    """Where the next block begins; a `slurmlaunch.runfolder.claims.Claimer` knows it."""

    block: int
    """The number of the block."""
    start: int
    """Its first position."""
    tasks: int
    """How many tasks have claimed blocks."""


class Pace(NamedTuple):
    """How fast a task runs its items.

    Attributes:
        idle: how many of its processes wait for an item.
        processes: how many processes it has.
        seconds: the duration of its last items, each; 0 before the first has ended.
        left: for how many seconds it may begin further items.
        last: the length of its last block; 0 before the first.
    """

    idle: int = 1
    processes: int = 1
    seconds: float = 0.0
    left: float = math.inf
    last: int = 0


class Measured:
    """Positions ``0..items-1``, of which each of *tasks* claims as much as suits the duration of its items.

    Raises:
        ValueError: there are items and no tasks.
    """

    schedule, chunksize = AUTO, None

    def __init__(self, items: int, tasks: int) -> None:
        if items < 0 or tasks < (1 if items else 0):  # as a damaged plan would hold
            raise ValueError(f"{items} items in {tasks} tasks make no blocks")
        self.items, self.tasks = items, tasks

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Measured) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]

    def length(self, front: Front, pace: Pace) -> int:
        """Return the length of the next block: at least one item for each idle process of the task.

        It is worth `CLAIM_SECONDS` of work as long as the tasks that have come end together, and at least a part of a
        task's fair share of the rest: all tasks may yet come. It is no more than the task can do in its time. Blocks
        become shorter with the rest, but not so short that they are more trouble than work.
        """
        if not pace.seconds:
            return pace.idle
        rest = self.items - front.start
        come = max(front.tasks, min(_EXPECTED, self.tasks))
        rate = pace.processes / pace.seconds  # items per second
        least = min(_LEAST_SECONDS * rate, rest / come, self.items / (_BALANCED * come))
        worthwhile = min(CLAIM_SECONDS * rate, max(rest / (_BALANCED * come), least))
        in_time = min(pace.left * rate, self.items)
        length = min(max(worthwhile, rest / (_FAIR * self.tasks)), in_time, _GROWTH * pace.last)
        return max(pace.idle, int(length))

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as a round's plan holds them."""
        return {"items": self.items, "tasks": self.tasks, "schedule": AUTO, "chunksize": None}


def blocks_from_json(data: Mapping[str, Any]) -> Blocks | Measured:
    """Read what `to_json` wrote; a damaged plan raises KeyError, TypeError or ValueError."""
    return Measured(data["items"], data["tasks"]) if data["schedule"] == AUTO else Blocks.from_json(data)


# Plans of rounds.


class RanksPlan(NamedTuple):
    """The ranks of each task of a round, and how they are launched.

    Attributes:
        number: how many ranks a task has.
        launcher: the words that start the command once for each rank, such as ``srun --ntasks=20``;
            empty if the supervisor starts them itself, on its own machine.
        command: the words that start one rank, without run folder, task, attempt and launch at their end.
    """

    number: int
    launcher: tuple[str, ...]
    command: tuple[str, ...]


class ArrayPlan(NamedTuple):
    """One array of a round."""

    name: str  # the unique name of its job
    first_task: int  # the task index of its element 0
    length: int  # how many elements it has


class RoundPlan(NamedTuple):
    """Which task of a round has which items, and with which resources it runs.

    Attributes:
        slices: the slice of each task: positions in `items` if that is given, else the items
            themselves. In a dynamic round it is only the default owner of unclaimed items: see `blocks`.
        items: the items of the round, unless it has all items of the run in their order:
            sorted, except if `slices` are packed.
        blocks: the blocks that the tasks of a dynamic round claim; None in a static one.
        ranks: the ranks of each task; None if a task is no MPI program.
    """

    slices: Slices
    first_task: int  # indices rise across rounds
    arrays: tuple[ArrayPlan, ...]  # in the order of their submission
    cpus_per_task: int
    processes: int  # how many items run side by side in a task
    threads: int  # how many each of them may use
    throttle: int | None = None  # how many tasks may run at once
    time_limit: float | None = None  # seconds that a task may run, if known
    warning: int | None = None  # seconds before the limit at which a task is warned
    requeues: int = 0  # how often a task may ask for one; any number of times if its blocks are `Measured`
    options: dict[str, Any] = {}  # noqa: RUF012  (in the form of `slurmlaunch.client.options`; it is never changed)
    client: ClientId | None = None  # the process that made the round and submits it
    items: array[int] | None = None
    automatic: bool = False  # ``retries=`` made it, and not a user's call
    blocks: Blocks | Measured | None = None
    ranks: RanksPlan | None = None
    manifest: Mapping[str, Any] = {}  # the keys of the run's manifest that have other values in the round

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``plan.json``."""
        content = self._asdict() | {
            "slices": self.slices.to_json(),
            "arrays": [each._asdict() for each in self.arrays],
            "items": True if self.items is not None else None,
            "blocks": self.blocks and self.blocks.to_json(),
            "ranks": self.ranks and self.ranks._asdict(),
        }
        if self.manifest.get("files", {}).get(FUNCTION, FUNCTION) != FUNCTION:
            # 0.1.0 knows one function in a run, and would run that. It refuses a plan without this key.
            del content["items"]
        return content

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, items: array[int] | None, client: ClientId | None) -> RoundPlan:
        """Read what `to_json` wrote, in this version or a later one, of the form `PLAN`; other keys are ignored.

        Raises:
            ValueError: it is damaged.
        """
        blocks, ranks = data.get("blocks"), data.get("ranks")
        plan = _known(
            cls,
            {
                **data,
                "slices": Slices.from_json(data["slices"]),
                "arrays": tuple(_known(ArrayPlan, each) for each in data["arrays"]),
                "client": client,
                "items": items,
                "blocks": blocks_from_json(blocks) if blocks is not None else None,
                "ranks": RanksPlan(ranks["number"], tuple(ranks["launcher"]), tuple(ranks["command"]))
                if ranks
                else None,
            },
        )
        plan.check()
        return plan

    def check(self) -> None:
        """Check that its parts agree: each item has one position, and each position a task, which is in an array.

        Raises:
            ValueError: they do not.
        """
        items, tasks = self.slices.items, self.slices.tasks
        if tasks > items:
            raise ValueError(f"{tasks} tasks have {items} items")
        if self.blocks is not None and (self.blocks.items, self.blocks.tasks) != (items, tasks):
            raise ValueError(f"its blocks are of {self.blocks.items} items in {self.blocks.tasks} tasks")
        first = self.first_task
        for each in self.arrays:
            if each.first_task != first:
                raise ValueError(f"an array begins with task {each.first_task}, and not with {first}")
            first += each.length
        if first != self.tasks.stop:
            raise ValueError(f"its arrays have {first - self.first_task} tasks, and not {tasks}")
        if self.items is not None:
            self._check_list(self.items)

    def _check_list(self, items: array[int]) -> None:
        if len(items) != self.slices.items:
            raise ValueError(f"its list has {len(items)} items, and not {self.slices.items}")
        if isinstance(self.slices, PackedSlices):
            if max(items, default=-1) >= len(items):
                raise ValueError("its list has items that the run has not")
        elif any(map(ge, items, islice(items, 1, None))):
            raise ValueError("its list of items is not sorted")

    @property
    def tasks(self) -> range:
        """The indices of the round's tasks."""
        return range(self.first_task, self.first_task + self.slices.tasks)

    def items_of(self, task: int) -> Sequence[int]:
        """Return the items of a task, in order."""
        return self.items_at(self.slices.slice_of(task - self.first_task))

    def items_at(self, positions: range) -> Sequence[int]:
        """Return the items at consecutive positions."""
        return positions if self.items is None else self.items[positions.start : positions.stop]

    def position_of(self, item: int) -> int:
        """Return the position of an item of the round."""
        if self.items is None:
            return item
        if isinstance(self.slices, PackedSlices):
            return self.slices.position_of(item, self.items)
        return bisect_left(self.items, item)

    def task_of(self, item: int) -> int:
        """Return the task whose slice holds an item of the round."""
        return self.first_task + self.slices.task_of(self.position_of(item))

    def element_of(self, task: int) -> tuple[int, int]:
        """Return the number of the array that has a task, and the task's index in it."""
        number = bisect_right(self.arrays, task, key=_FIRST_TASK) - 1
        if number >= 0 and task < self.arrays[number].first_task + self.arrays[number].length:
            return number, task - self.arrays[number].first_task
        raise LookupError(f"task {task} is in no array of its round")


_SLICES = forms.Keys(
    {"items": forms.count, "tasks": forms.count},
    {"chunksize": forms.null_or(forms.count), "lengths": forms.listing(forms.count)},
)
_BLOCKS = forms.Keys(
    {"items": forms.count, "tasks": forms.count, "schedule": forms.text, "chunksize": forms.null_or(forms.count)}
)
_RANKS = forms.Keys({"number": forms.few, "launcher": forms.listing(forms.text), "command": forms.listing(forms.text)})
_CONTAINER = forms.Keys(
    {"image": forms.text},
    {
        "binds": forms.listing(forms.text),
        "runtime": forms.null_or(forms.text),
        "flags": forms.listing(forms.text),
    },
)
_OPTIONS = forms.Keys(
    optional={
        "slurm": forms.mapping(lambda value: forms.text(value) or forms.flag(value)),
        "env": forms.mapping(forms.null_or(forms.text)),
        "grow": forms.mapping(forms.limit),
        "container": forms.null_or(_CONTAINER),
        "launcher": forms.null_or(forms.listing(forms.text)),
        "retries": forms.count,
        "requeues": forms.count,
        "max_log": forms.count,
        "seed": forms.null_or(forms.integer),
        **dict.fromkeys(("throttle", "processes", "threads"), forms.null_or(forms.count)),
        **dict.fromkeys(("name", "max_mem", "max_time"), forms.null_or(forms.text)),
        **dict.fromkeys(
            ("python", "modules", "setup", "env_secret", "by_value", "code_exclude", "retry_exceptions", "sbatch"),
            forms.listing(forms.text),
        ),
        "code": forms.text,
    }
)

PLAN = forms.Keys(
    {
        "slices": _SLICES,
        "first_task": forms.count,
        "arrays": forms.listing(forms.Keys({"name": forms.text, "first_task": forms.count, "length": forms.count})),
        **dict.fromkeys(("cpus_per_task", "processes", "threads"), forms.few),
    },
    {
        "items": forms.null_or(forms.flag),
        **dict.fromkeys(("throttle", "warning"), forms.null_or(forms.count)),
        "time_limit": forms.null_or(forms.seconds),
        "requeues": forms.count,
        "options": _OPTIONS,
        "client": forms.null_or(CLIENT),
        "automatic": forms.flag,
        "blocks": forms.null_or(_BLOCKS),
        "ranks": forms.null_or(_RANKS),
        "manifest": CHANGES,
    },
)
"""The form of ``plan.json``."""

_FIRST_TASK = attrgetter("first_task")

_Plan = TypeVar("_Plan", ArrayPlan, RoundPlan)


def _known(kind: type[_Plan], content: Mapping[str, Any]) -> _Plan:
    return kind(**{key: value for key, value in content.items() if key in kind._fields})


def compact(items: array[int]) -> array[int]:
    """Return the items in half the memory, if their numbers allow that."""
    return array("I", items) if max(items, default=0) <= _U32_MAX else items
