"""Which task has which items: the plan of a round, its slices and its blocks.

A plan cuts *positions*: the items themselves in a run's first round, the entries of a list of missing items in a
later one. Arithmetic alone says which positions a task has, so that 10^8 items in 10^5 tasks cost no more than ten
in two: the client writes three numbers, a task computes its slice from them, and the client computes the task of an
item. Only slices packed by cost are a table, of one number per task.

In a dynamic round tasks claim blocks instead (`slurmlaunch.runfolder.claims`). A block's number gives its positions,
so no counter is shared. Unless the user sets their length, blocks shrink: each holds about a third of a task's fair
share of the rest. The first ones are long, so that there are few; the last ones are single items, so that tasks end
together however uneven the items are. That makes O(tasks × log items) blocks.

Clients make plans, nodes and clients read them. Nothing here touches a file: `slurmlaunch.runfolder.rounds` does.

Sources: S. F. Hummel, E. Schonberg, L. E. Flynn, Factoring: a method for scheduling parallel loops, CACM 35(8),
1992; for "guided", the OpenMP specification, clause "schedule".
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from itertools import accumulate
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Self

    from slurmlaunch.runfolder.clients import ClientId


_U32_MAX = (1 << 32) - 1


class _Numbers(NamedTuple):
    items: int
    tasks: int
    chunksize: int | None


class Slices(_Numbers):
    """Positions ``0..items-1``, cut into consecutive slices, one for each task.

    Tasks are counted from 0 here; a round whose tasks start at a higher index
    subtracts its first one.

    Attributes:
        items: how many positions there are.
        tasks: how many slices they are cut into.
        chunksize: the length of every slice but the last, or None for slices whose
            lengths differ by at most one, the longer ones first.

    Raises:
        ValueError: these slices would not hold each position exactly once.
    """

    # No dataclass, here and in everything that a node imports: making one costs a node's start
    # a millisecond, and a thousand nodes start at once.
    __slots__ = ()

    def __new__(cls, items: int, tasks: int, chunksize: int | None = None) -> Self:
        """Refuse numbers that lose positions, as a damaged plan would hold."""
        if chunksize is None:
            whole = items >= 0 and tasks >= (1 if items else 0)
        else:
            whole = items >= 0 and chunksize >= 1 and tasks == -(-items // chunksize)
        if not whole:
            raise ValueError(f"{items} items in {tasks} tasks of {chunksize} do not hold each position exactly once")
        return super().__new__(cls, items, tasks, chunksize)

    def slice_of(self, task: int) -> range:
        """Return the positions of a task; raises IndexError if there is no such task."""
        _check(task, self.tasks, "task")
        return range(self._start(task), self._start(task + 1))

    def task_of(self, item: int) -> int:
        """Return the task whose slice holds a position; raises IndexError if there is no such position."""
        _check(item, self.items, "position")
        if self.chunksize is not None:
            return item // self.chunksize
        short, longer = divmod(self.items, self.tasks)
        in_longer = longer * (short + 1)
        if item < in_longer:
            return item // (short + 1)
        return longer + (item - in_longer) // short

    @property
    def longest(self) -> int:
        """The length of the longest slice; 0 where there is none."""
        return len(self.slice_of(0)) if self.tasks else 0

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as a round's plan holds them."""
        return self._asdict()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Slices:
        """Read what `to_json` wrote; a damaged plan raises KeyError, TypeError or ValueError."""
        return cls(data["items"], data["tasks"], data.get("chunksize"))

    def _start(self, task: int) -> int:
        if self.chunksize is not None:
            return min(task * self.chunksize, self.items)
        short, longer = divmod(self.items, self.tasks)
        return task * short + min(task, longer)


class PackedSlices:
    """Positions ``0..items-1`` of a list, cut into consecutive slices of any lengths, one for each task.

    Attributes:
        lengths: the length of each slice.

    Raises:
        ValueError: a length is negative.
    """

    __slots__ = ("_positions", "_starts", "lengths")

    def __init__(self, lengths: Iterable[int]) -> None:
        self.lengths = tuple(lengths)
        if any(length < 0 for length in self.lengths):
            raise ValueError("slices cannot be of negative length")
        self._starts = array("Q", accumulate(self.lengths, initial=0))
        self._positions: array[int] | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PackedSlices) and self.lengths == other.lengths

    def __hash__(self) -> int:
        return hash(self.lengths)

    @property
    def items(self) -> int:
        """How many positions there are."""
        return self._starts[-1]

    @property
    def tasks(self) -> int:
        """How many slices they are cut into."""
        return len(self.lengths)

    @property
    def longest(self) -> int:
        """The length of the longest slice; 0 where there is none."""
        return max(self.lengths, default=0)

    def slice_of(self, task: int) -> range:
        """Return the positions of a task; raises IndexError if there is no such task."""
        _check(task, self.tasks, "task")
        return range(self._starts[task], self._starts[task + 1])

    def task_of(self, position: int) -> int:
        """Return the task whose slice holds a position; raises IndexError if there is no such position."""
        _check(position, self.items, "position")
        return bisect_right(self._starts, position) - 1

    def position_of(self, item: int, items: Sequence[int]) -> int:
        """Return the position of an item in the list that is cut, which holds ``0..items-1`` in any order."""
        if self._positions is None:
            # Only clients need this, for single items: four bytes per item.
            positions = array("I" if len(items) <= _U32_MAX else "Q", [0]) * len(items)
            for position, each in enumerate(items):
                positions[each] = position
            self._positions = positions
        return self._positions[item]

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as a round's plan holds them."""
        return {"items": self.items, "tasks": self.tasks, "lengths": self.lengths}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PackedSlices:
        """Read what `to_json` wrote; a damaged plan raises KeyError, TypeError or ValueError."""
        slices = cls(data["lengths"])
        if (slices.items, slices.tasks) != (data["items"], data["tasks"]):
            raise ValueError(f"slices of {slices.lengths} are not {data['items']} items in {data['tasks']} tasks")
        return slices


def _check(index: int, count: int, what: str) -> None:
    # Negative indices are refused too: they would silently name another task's items.
    if not 0 <= index < count:
        raise IndexError(f"there is no {what} {index}: there are {count}")


# Blocks of a dynamic round.

DYNAMIC, GUIDED = "dynamic", "guided"
SCHEDULES = (DYNAMIC, GUIDED)

_SHARE = 3
"""A block is this fraction of a task's share of the remaining items. Simulated with 2000 Pareto items on 16 slots, the
makespan is on average 1.24, 1.05, 1.05, 1.05 of the least for 1, 2, 3, 4, and at worst 1.50, 1.11, 1.10, 1.08, with
16, 112, 176, 240 blocks; single items give 1.04 and 1.08."""

_GUIDED_STEPS = 8
"""How often "guided" blocks shrink while each task claims one: often enough for a smooth decline, seldom
enough that the table stays short however many tasks there are."""


class _BlockNumbers(NamedTuple):
    items: int
    tasks: int
    schedule: str
    chunksize: int | None


class Blocks(_BlockNumbers):
    """Positions ``0..items-1``, cut into consecutive blocks, which tasks claim in this order.

    Attributes:
        items: how many positions there are.
        tasks: how many tasks claim blocks.
        schedule: ``"dynamic"``: as many blocks of one length as there are tasks, then shorter
            ones; or all of *chunksize*. ``"guided"``: each a little shorter than the last, none
            shorter than *chunksize*.
        chunksize: see *schedule*; None to leave the lengths to the schedule.

    Raises:
        ValueError: the numbers make no blocks.
    """

    def __new__(cls, items: int, tasks: int, schedule: str, chunksize: int | None = None) -> Self:
        """Refuse numbers that lose positions, as a damaged plan would hold."""
        if (
            items < 0
            or tasks < (1 if items else 0)
            or schedule not in SCHEDULES
            or (chunksize is not None and chunksize < 1)
        ):
            raise ValueError(f"{items} items in {tasks} tasks make no {schedule!r} blocks of {chunksize}")
        blocks = super().__new__(cls, items, tasks, schedule, chunksize)
        blocks._cut()
        return blocks

    def _cut(self) -> None:
        """Make the table of batches: runs of blocks of one length, of which there are O(log items)."""
        self._first_blocks: list[int] = []
        self._starts: list[int] = []
        self._lengths: list[int] = []
        width = max(1, self.tasks // _GUIDED_STEPS) if self.schedule == GUIDED else self.tasks
        least = self.chunksize or 1
        block = start = 0
        while start < self.items:
            length = max(least, -(-(self.items - start) // (_SHARE * self.tasks)))
            if self.chunksize and self.schedule == DYNAMIC:
                length = self.chunksize
            self._first_blocks.append(block)
            self._starts.append(start)
            self._lengths.append(length)
            left = -(-(self.items - start) // length)
            number = left if length == least else min(width, left)
            block, start = block + number, start + number * length
        self.number = block
        """How many blocks there are."""

    def positions_of(self, block: int) -> range:
        """Return the positions of a block; raises IndexError if there is no such block."""
        _check(block, self.number, "block")
        batch = bisect_right(self._first_blocks, block) - 1
        start = self._starts[batch] + (block - self._first_blocks[batch]) * self._lengths[batch]
        return range(start, min(start + self._lengths[batch], self.items))

    def block_of(self, position: int) -> int:
        """Return the block that holds a position; raises IndexError if there is no such position."""
        _check(position, self.items, "position")
        batch = bisect_right(self._starts, position) - 1
        return self._first_blocks[batch] + (position - self._starts[batch]) // self._lengths[batch]

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as a round's plan holds them."""
        return self._asdict()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Blocks:
        """Read what `to_json` wrote; a damaged plan raises KeyError, TypeError or ValueError."""
        return cls(data["items"], data["tasks"], data["schedule"], data["chunksize"])


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
    """One array of a round.

    Attributes:
        name: the unique name of its job.
        first_task: the task index of its element 0.
        length: how many elements it has.
    """

    name: str
    first_task: int
    length: int


class RoundPlan(NamedTuple):
    """Which task of a round has which items, and with which resources it runs.

    Attributes:
        slices: the slice of each task: positions in `items` if that is given, else the items
            themselves. In a dynamic round it is only the default owner of unclaimed items: see `blocks`.
        first_task: the index of the round's first task; indices rise across rounds.
        arrays: the arrays to submit, in order.
        cpus_per_task: the CPUs of each task.
        processes: how many items run side by side in a task.
        threads: how many threads each of them may use.
        throttle: how many tasks may run at once, or None.
        time_limit: seconds that a task may run, if known.
        warning: seconds before the limit at which a task is warned, or None.
        requeues: how often a task may ask to be requeued.
        options: the submission's options in the form of `slurmlaunch.client.options`.
        client: the process that made the round and submits it.
        items: the items of the round, unless it has all items of the run in their order:
            sorted, except if `slices` are packed.
        automatic: whether ``retries=`` made it, and not a user's call.
        blocks: the blocks that the tasks of a dynamic round claim; None in a static one.
        ranks: the ranks of each task; None if a task is no MPI program.
    """

    slices: Slices | PackedSlices
    first_task: int
    arrays: tuple[ArrayPlan, ...]
    cpus_per_task: int
    processes: int
    threads: int
    throttle: int | None = None
    time_limit: float | None = None
    warning: int | None = None
    requeues: int = 0
    options: dict[str, Any] = {}  # noqa: RUF012  (it is never changed)
    client: ClientId | None = None
    items: array[int] | None = None
    automatic: bool = False
    blocks: Blocks | None = None
    ranks: RanksPlan | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``plan.json``."""
        return self._asdict() | {
            "slices": self.slices.to_json(),
            "arrays": [each._asdict() for each in self.arrays],
            "items": True if self.items is not None else None,
            "blocks": self.blocks and self.blocks.to_json(),
            "ranks": self.ranks and self.ranks._asdict(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, items: array[int] | None, client: ClientId | None) -> RoundPlan:
        """Read what `to_json` wrote, in this version or a later one; other keys are ignored.

        Raises:
            KeyError, TypeError, ValueError: it is damaged.
        """
        slices, blocks, ranks = data["slices"], data.get("blocks"), data.get("ranks")
        return _known(
            cls,
            {
                **data,
                "slices": (PackedSlices if "lengths" in slices else Slices).from_json(slices),
                "arrays": tuple(_known(ArrayPlan, each) for each in data["arrays"]),
                "client": client,
                "items": items,
                "blocks": Blocks.from_json(blocks) if blocks is not None else None,
                "ranks": RanksPlan(ranks["number"], tuple(ranks["launcher"]), tuple(ranks["command"]))
                if ranks
                else None,
            },
        )

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
        msg = f"task {task} is in no array of its round"
        raise LookupError(msg)


_FIRST_TASK = attrgetter("first_task")

_Plan = TypeVar("_Plan", ArrayPlan, RoundPlan)


def _known(kind: type[_Plan], content: Mapping[str, Any]) -> _Plan:
    return kind(**{key: value for key, value in content.items() if key in kind._fields})


def compact(items: array[int]) -> array[int]:
    """Return the items in half the memory, if their numbers allow that."""
    return array("I", items) if max(items, default=0) <= _U32_MAX else items
