"""Which items are whose: a run cut into slices by arithmetic alone.

The client writes three numbers into a round's plan; a task finds its own slice
from them, and the client finds the task of an item. There is no table, so that
10^8 items in 10^5 tasks cost no more than ten in two.

What is cut are *positions*: the items themselves in a run's first round, the
entries of a list of missing items in a later one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

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


def _check(index: int, count: int, what: str) -> None:
    # Negative indices are refused too: one would silently name another task's items.
    if not 0 <= index < count:
        raise IndexError(f"there is no {what} {index}: there are {count}")
