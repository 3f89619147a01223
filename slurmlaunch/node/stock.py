"""The items of a task that no process has been given yet."""

from __future__ import annotations

from array import array
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence


class Stock:
    """The items that nobody has been given yet.

    Attributes:
        closed: whether nothing more is handed out.
        cancelled: the items that are never handed out.
    """

    def __init__(self, items: Sequence[int]) -> None:
        self._parts: deque[Sequence[int]] = deque([items] if items else [])
        self._mine = items if isinstance(items, range) else frozenset(items)
        self.cancelled: set[int] = set()
        self.closed = False

    def __len__(self) -> int:
        """Return how many can be taken at most: cancelled ones are found when they are taken."""
        return 0 if self.closed else sum(map(len, self._parts))

    @property
    def left(self) -> int:
        """How many there are that are still wanted, also after it was closed."""
        return sum(len(self._wanted(part)) for part in self._parts)

    def close(self) -> None:
        """Hand out nothing more; what is put back stays."""
        self.closed = True

    def take(self, number: int) -> array[int]:
        """Take the next items, as many as this or fewer."""
        taken = array("Q")
        while len(self) and len(taken) < number:
            part = self._parts.popleft()
            wanted = number - len(taken)
            if len(part) > wanted:
                self._parts.appendleft(part[wanted:])
            taken.extend(iter(self._wanted(part[:wanted])))  # as numbers: a list may hold them in fewer bytes
        return taken

    def take_all(self) -> array[int]:
        """Take all that is the task's, for nothing more is run."""
        return self.take(len(self))

    def refill(self, _wanted: int) -> bool:
        """See that so many can be taken, as far as there are any; say whether that brought some.

        What a slice holds is there from the start.
        """
        return False

    def put_back(self, items: Sequence[int]) -> None:
        """Put items back, to be taken first."""
        if items:
            self._parts.appendleft(items)

    def cancel(self, items: range) -> None:
        """Never hand out any of these, as far as they are the task's."""
        self.cancelled.update(_common(items, self._mine))

    def _wanted(self, items: Sequence[int]) -> Sequence[int]:
        if not self.cancelled:
            return items
        return [item for item in items if item not in self.cancelled]


def _common(items: range, mine: Collection[int]) -> Iterable[int]:
    few, many = (items, mine) if len(items) < len(mine) else (mine, items)
    return (item for item in few if item in many)
