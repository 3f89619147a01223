"""What each item of a run has come to, as far as this process knows.

A byte per item says what it is, and an entry per record where the outcomes of its
items lie (`stretches`); the outcomes themselves stay on disk until someone asks
for them. What ended items without outcomes of their own is known once for all of
them. An item settles once, and whoever settles it is told so: that decides every
race between a result that comes in and a cancel.
"""

from __future__ import annotations

import re
from bisect import bisect_right, insort
from enum import IntEnum
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from slurmlaunch.client.stretches import Stretches
from slurmlaunch.errors import ResultLost, UnsafeRunFolder
from slurmlaunch.outcome import Failure
from slurmlaunch.runfolder.outcomes import read_record
from slurmlaunch.runfolder.records import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from slurmlaunch.outcome import Outcome
    from slurmlaunch.runfolder.outcomes import Content, Recorded


class Fate(IntEnum):
    """What an item has come to."""

    OPEN = 0
    VALUE = 1
    FAILURE = 2
    ENDED = 3
    """It has no outcome of its own: something ended it, and the ledger knows the error."""
    CANCELLED = 4


class _End(NamedTuple):
    items: range
    error_of: Callable[[int], BaseException]

    @property
    def start(self) -> int:
        return self.items.start


_START = attrgetter("start")

_SETTLED = re.compile(b"[^\\x00]")


class Ledger:
    """The fates of all items of a run.

    Attributes:
        items: how many items there are.
        log: the stretches of items that settled, in the order in which they did.
    """

    def __init__(self, items: int, salt: int = 0) -> None:
        """Begin with all items open; the salt is that of the run's records."""
        self.items = items
        self.log = Stretches()
        self._fates = bytearray(items)
        self._counts = [items] + [0] * (len(Fate) - 1)
        self._salt = salt
        self._ends: list[_End] = []
        self._last: tuple[range, Content] | None = None

    @property
    def open(self) -> int:
        """How many items have not settled."""
        return self._counts[Fate.OPEN]

    def fate(self, item: int) -> Fate:
        """Return what an item has come to."""
        return Fate(self._fates[item])

    def is_open(self, item: int) -> bool:
        """Whether an item has not settled."""
        return not self._fates[item]

    def count(self, fate: Fate, items: Iterable[int] | None = None) -> int:
        """Return how many items, of these or of all, have come to that."""
        if items is None:
            return self._counts[fate]  # asked for each record: to count a million bytes would be felt
        if isinstance(items, range) and items.step == 1:
            return self._fates.count(fate, items.start, items.stop)
        return sum(self._fates[item] == fate for item in items)

    def all_settled(self, items: range) -> bool:
        """Whether no item of a range is open."""
        return self._fates.find(Fate.OPEN, items.start, items.stop) < 0

    def open_among(self, items: Iterable[int]) -> list[int]:
        """Return those that have not settled."""
        return [item for item in items if not self._fates[item]]

    def record(self, recorded: Recorded, part: range | None = None) -> list[range]:
        """Settle the items of a record, or a part of them, that are open; return them as ranges."""
        fate = Fate.FAILURE if recorded.header.kind == Kind.FAILURE else Fate.VALUE
        items = range(recorded.header.first, recorded.header.stop) if part is None else part
        items = range(items.start, min(items.stop, len(self._fates)))
        settled = list(self._open_ranges(items))
        for each in settled:
            self._settle(each, fate, recorded)
        return settled

    def end(self, items: range, error_of: Callable[[int], BaseException]) -> list[range]:
        """Settle the open items of a range with errors, each made when it is asked for; return them as ranges."""
        settled = list(self._open_ranges(items))
        for each in settled:
            insort(self._ends, _End(each, error_of), key=_START)
            self._settle(each, Fate.ENDED)
        return settled

    def cancel(self, items: range) -> list[range]:
        """Settle the open items of a range as cancelled; return them as ranges."""
        settled = list(self._open_ranges(items))
        for each in settled:
            self._settle(each, Fate.CANCELLED)
        return settled

    def _settle(self, items: range, fate: Fate, recorded: Recorded | None = None) -> None:
        self.log.add(items, recorded)  # first: who sees without a lock that an item has settled looks for it next
        self._fates[items.start : items.stop] = bytes([fate]) * len(items)
        self._counts[Fate.OPEN] -= len(items)
        self._counts[fate] += len(items)

    def _open_ranges(self, items: range) -> Iterator[range]:
        if self._fates.count(Fate.OPEN, items.start, items.stop) == len(items):
            if items:
                yield items
            return
        start = self._fates.find(Fate.OPEN, items.start, items.stop)
        while start >= 0:
            settled = _SETTLED.search(self._fates, start, items.stop)
            stop = settled.start() if settled else items.stop
            yield range(start, stop)
            start = self._fates.find(Fate.OPEN, stop, items.stop)

    def outcome(self, item: int) -> Outcome[Any]:
        """Read the outcome of an item that has settled and was not cancelled.

        What cannot be read is a `Failure` that says so.
        """
        if self._fates[item] == Fate.ENDED:
            return Failure(self._end_of(item).error_of(item))
        try:
            settled, content = self._content(item)
            if len(settled) == 1:
                self._last = None
            return content.outcome(item)
        except ResultLost as error:
            return Failure(error.located(item=item))
        except (OSError, UnsafeRunFolder) as error:
            return Failure(error)

    def _end_of(self, item: int) -> _End:
        while True:
            end = self._ends[bisect_right(self._ends, item, key=_START) - 1]
            if item in end.items:  # else another thread put one in before it just now
                return end

    def file_of(self, item: int) -> Path:
        """Return the outcome file that an item's outcome stands in, where it has one."""
        return self.log.find(item).file

    def values(self, items: range) -> tuple[int, list[Any]]:
        """Read the values of the first of these items, all settled, as many as are read in one go.

        Returns:
            Up to which item, and their values; none where the first has to be asked for by `outcome`.
        """
        none: tuple[int, list[Any]] = (items.start, [])
        if self._fates[items.start] != Fate.VALUE:
            return none
        try:
            settled, content = self._content(items.start)
        except (ResultLost, OSError, UnsafeRunFolder):
            return none
        some = range(items.start, min(settled.stop, items.stop))
        values = content.values(some)
        if values is None:
            self._last = settled, content  # what is asked for next; a large one is not to be read twice
            return none
        return some.stop, values

    def _content(self, item: int) -> tuple[range, Content]:
        """Read the record of an item; return which items have it, too.

        The last one is kept, since its neighbours are asked for next.
        """
        last = self._last
        if last is not None and item in last[0]:
            return last
        stretch = self.log.find(item)
        found = stretch.items, read_record(stretch.file, stretch.offset, self._salt)
        self._last = found if len(stretch.items) > 1 else None
        return found
