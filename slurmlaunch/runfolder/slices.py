"""Which items are whose: a run cut into slices by arithmetic alone.

The client writes three numbers into a round's plan; a task finds its own slice
from them, and the client finds the task of an item. There is no table, so that
10^8 items in 10^5 tasks cost no more than ten in two.

What is cut are *positions*: the items themselves in a run's first round, the
entries of a list of missing items in a later one.

Only slices that were packed by cost are a table: of one number per task, over a
list of the items.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from typing_extensions import Self


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

    # No dataclass, here and in all that a node imports: making one costs a node's start
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
        """Return the positions of a task.

        Raises:
            IndexError: there is no such task.
        """
        _check(task, self.tasks, "task")
        return range(self._start(task), self._start(task + 1))

    def task_of(self, item: int) -> int:
        """Return the task whose slice holds a position.

        Raises:
            IndexError: there is no such position.
        """
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
        """Return the numbers as they stand in a round's plan."""
        return {"items": self.items, "tasks": self.tasks, "chunksize": self.chunksize}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Slices:
        """Read what `to_json` wrote; other keys are ignored.

        Raises:
            KeyError: a number is missing.
            TypeError: something else stands in its place.
            ValueError: the numbers do not fit together.
        """
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
        """Return the positions of a task.

        Raises:
            IndexError: there is no such task.
        """
        _check(task, self.tasks, "task")
        return range(self._starts[task], self._starts[task + 1])

    def task_of(self, position: int) -> int:
        """Return the task whose slice holds a position.

        Raises:
            IndexError: there is no such position.
        """
        _check(position, self.items, "position")
        return bisect_right(self._starts, position) - 1

    def position_of(self, item: int, items: Sequence[int]) -> int:
        """Return where an item stands in the list that is cut, which holds ``0..items-1`` in any order."""
        if self._positions is None:
            # Only a client asks, and only for single items: four bytes for each item.
            positions = array("I" if len(items) <= _U32_MAX else "Q", [0]) * len(items)
            for position, each in enumerate(items):
                positions[each] = position
            self._positions = positions
        return self._positions[item]

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as they stand in a round's plan."""
        return {"items": self.items, "tasks": self.tasks, "lengths": self.lengths}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PackedSlices:
        """Read what `to_json` wrote; other keys are ignored.

        Raises:
            KeyError: the lengths are missing.
            TypeError: something else stands in their place.
            ValueError: the numbers do not fit together.
        """
        slices = cls(data["lengths"])
        if (slices.items, slices.tasks) != (data["items"], data["tasks"]):
            raise ValueError(f"slices of {slices.lengths} are not {data['items']} items in {data['tasks']} tasks")
        return slices


_U32_MAX = (1 << 32) - 1


def _check(index: int, count: int, what: str) -> None:
    # Negative indices are refused too: one would silently name another task's items.
    if not 0 <= index < count:
        raise IndexError(f"there is no {what} {index}: there are {count}")
