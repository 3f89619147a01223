"""The items of a task that no process has been given yet."""

from __future__ import annotations

from array import array
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from slurmlaunch.runfolder.claims import Claimer
    from slurmlaunch.runfolder.plan import Blocks, RoundPlan


class Queue:
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


class SharedQueue(Queue):
    """A queue that is filled up, while others have not taken everything.

    A block is taken when a process has nothing to do, no sooner: what a task holds
    and does not run is what keeps the tasks from ending together. As blocks are
    few, the millisecond for which that process waits costs nothing that shows.
    """

    def __init__(self, plan: RoundPlan, blocks: Blocks, claimer: Claimer, done: Collection[int] | None) -> None:
        """Begin with what earlier attempts of the task have taken and not done.

        Args:
            plan: the plan of the round.
            blocks: its blocks.
            claimer: takes them for this attempt of the task.
            done: the items that earlier attempts have recorded; None where there was none.
        """
        super().__init__(())
        self._blocks = blocks
        self._items_at = plan.items_at
        self._claimer = claimer
        self._done = done
        self._taken: dict[int, Sequence[int]] = {}
        self._unwanted: list[range] = []
        self._open = True
        if self._done is not None:
            self._take_own()

    def _take_own(self) -> None:
        for block in self._claimer.own():
            if block not in self._taken:
                self._add(block)

    def _add(self, block: int) -> None:
        part = self._items_at(self._blocks.positions_of(block))
        self._taken[block] = part
        for items in self._unwanted:
            self.cancelled.update(_overlap(items, part))
        left = [item for item in part if item not in self._done] if self._done else part
        if left:
            self._parts.append(left)

    def refill(self, wanted: int) -> bool:
        """Take blocks until so many items can be taken, or no block is free; say whether any was taken."""
        before = len(self._taken)
        while self._open and not self.closed and len(self) < wanted:
            block = self._claimer.claim()
            if block is not None:
                self._add(block)
                continue
            self._open = False
            if self._done is not None:
                self._take_own()  # a network's cache may have hidden some of them at the start
        return len(self._taken) > before

    @property
    def left(self) -> int:
        """How many there are that are still wanted: the task's own, and what nobody has taken."""
        free = self._claimer.first_unclaimed() if self._open else None
        unclaimed = 0 if free is None else self._blocks.items - self._blocks.positions_of(free).start
        return super().left + unclaimed

    def take_all(self) -> array[int]:
        """Take all that is the task's, for it can run nothing; a block at least, since what is wrong has to be told."""
        self.refill(1)
        self._open = False
        return super().take_all()

    def cancel(self, items: range) -> None:
        """Never hand out any of these, also of the blocks that are yet to be taken."""
        self._unwanted.append(items)
        for part in self._taken.values():
            self.cancelled.update(_overlap(items, part))


def _overlap(items: range, part: Sequence[int]) -> Sequence[int]:
    if isinstance(part, range):
        return range(max(items.start, part.start), min(items.stop, part.stop))
    return [item for item in part if item in items]
