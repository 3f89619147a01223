"""The items of one task that no worker has been assigned yet.

`Queue` holds a slice. `SharedQueue`, for dynamic rounds, claims blocks that all
tasks of the round share. Used by the supervisors; neither knows workers or outcomes.
"""

from __future__ import annotations

from array import array
from collections import deque
from typing import TYPE_CHECKING

from slurmlaunch.runfolder.plan import Pace

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from slurmlaunch.runfolder.claims import Claimer
    from slurmlaunch.runfolder.plan import Blocks, Measured, RoundPlan


class Queue:
    """The items of a slice.

    Attributes:
        closed: no more items are handed out; items that are put back stay.
        cancelled: items that are never handed out.
        found_none: no unclaimed block was left, so that a dynamic round needs no further task.
    """

    def __init__(self, items: Sequence[int] = (), done: Collection[int] = ()) -> None:
        """Start with items; those that are *done* have an outcome, or are a later round's, and are never handed out."""
        self._parts: deque[Sequence[int]] = deque()
        self._owned: list[range | frozenset[int]] = []
        self._cancellations: list[range] = []
        self._done = done
        self.cancelled: set[int] = set()
        self.closed = False
        self._add(items)

    def _add(self, items: Sequence[int]) -> None:
        """Add items that belong to this task from now on."""
        owned = items if isinstance(items, range) else frozenset(items)
        self._owned.append(owned)
        for cancelled in self._cancellations:
            self.cancelled.update(_common(cancelled, owned))
        pending = [item for item in items if item not in self._done] if self._done else items
        if pending:
            self._parts.append(pending)

    def __len__(self) -> int:
        """Return how many items can be taken at most: cancelled ones are dropped only when they are taken."""
        return 0 if self.closed else sum(map(len, self._parts))

    @property
    def left(self) -> int:
        """The number of items without an outcome or a worker, cancelled ones left out; also when closed."""
        return sum(len(self._wanted(part)) for part in self._parts)

    def take(self, number: int) -> array[int]:
        """Take the next items, at most *number*."""
        taken = array("Q")
        while len(self) and len(taken) < number:
            part = self._parts.popleft()
            missing = number - len(taken)
            if len(part) > missing:
                self._parts.appendleft(part[missing:])
            taken.extend(iter(self._wanted(part[:missing])))  # as numbers: a list may hold them in fewer bytes
        return taken

    def take_all(self) -> array[int]:
        """Take all items of this task."""
        return self.take(len(self))

    found_none = False

    def refill(self, wanted: int, pace: Pace = Pace()) -> bool:  # noqa: B008  (it is never changed)
        """Claim blocks until *wanted* items can be taken, if blocks are left; return True if any was claimed."""
        del wanted, pace
        return False

    def put_back(self, items: Sequence[int]) -> None:
        """Put items back, to be taken first."""
        if items:
            self._parts.appendleft(items)

    def cancel(self, items: range) -> None:
        """Never hand out any of these items, also if they are added later."""
        self._cancellations.append(items)
        for owned in self._owned:
            self.cancelled.update(_common(items, owned))

    def _wanted(self, items: Sequence[int]) -> Sequence[int]:
        return [item for item in items if item not in self.cancelled] if self.cancelled else items


class SharedQueue(Queue):
    """Items that a task of a dynamic round claims, block by block, while unclaimed items are left.

    A block is claimed only when a worker has nothing to do: items that a task
    holds and does not run would keep the tasks from ending together. Blocks are
    few, so the milliseconds that the worker waits do not show.
    """

    def __init__(
        self, plan: RoundPlan, blocks: Blocks | Measured, claimer: Claimer, done: Collection[int] = (), *,
        resumes: bool = False,
    ) -> None:  # fmt: skip
        """Start with the items that earlier attempts of the task claimed, if it *resumes* any, and did not finish."""
        super().__init__(done=done)
        self._plan, self._blocks, self._claimer = plan, blocks, claimer
        self._resumed = resumes
        self._claimed: set[int] = set()
        self._last = 0
        self._open = True
        self.found_none = False
        self._add_own_blocks()

    def _add_own_blocks(self) -> None:
        if self._resumed:
            for claim in self._claimer.own():
                self._add_block(claim.positions)

    def _add_block(self, positions: range) -> None:
        if positions.start not in self._claimed:
            self._claimed.add(positions.start)
            self._add(self._plan.items_at(positions))

    def refill(self, wanted: int, pace: Pace = Pace()) -> bool:  # noqa: B008  (it is never changed)
        """Claim blocks as `Queue.refill` describes."""
        before = len(self._claimed)
        while self._open and not self.closed and (missing := wanted - len(self)) > 0:
            now = pace._replace(idle=missing, last=self._last)
            positions = self._claimer.claim(lambda front, now=now: self._blocks.length(front, now))  # type: ignore[misc]
            if positions is not None:
                self._last = len(positions)
                self._add_block(positions)
                continue
            self._open, self.found_none = False, True
            self._add_own_blocks()  # a network file system's cache may have hidden some at the start
        return len(self._claimed) > before

    @property
    def left(self) -> int:
        """The number of items to do: this task's own, and those in unclaimed blocks."""
        return super().left + (self._claimer.unclaimed if self._open else 0)

    def take_all(self) -> array[int]:
        """Take this task's items and claim no more; at least one block, since an error needs an item to be seen."""
        self.refill(1)
        self._open = False
        return super().take_all()


def _common(items: range, owned: range | frozenset[int]) -> Iterable[int]:
    if isinstance(owned, range):
        return range(max(items.start, owned.start), min(items.stop, owned.stop))
    few, many = (items, owned) if len(items) < len(owned) else (owned, items)
    return (item for item in few if item in many)
