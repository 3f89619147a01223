"""The status of each item of a run, and where its outcome comes from.

One byte per item is its status, and one entry per record says which items it holds and
where it lies on disk (`RecordIndex`). `RunState` changes the `Ledger` of these, `Run` reads
outcomes where it points; the ledger itself opens no file. An item settles once, which decides
every race between a result and a cancellation.
"""

from __future__ import annotations

import itertools
import re
from array import array
from bisect import bisect_right, insort
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from slurmlaunch.runfolder.outcomes import ranges_of
from slurmlaunch.runfolder.records import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from slurmlaunch.runfolder.files import Location
    from slurmlaunch.runfolder.outcomes import Recorded


class ItemStatus(IntEnum):
    """The status of an item."""

    OPEN = 0
    VALUE = 1
    FAILURE = 2
    ENDED = 3
    """It has no outcome of its own; the ledger makes the error."""
    CANCELLED = 4


_CANCELLING = 5
"""An open item whose cancellation is being written to disk: no outcome settles it meanwhile."""


Source: TypeAlias = "Location | Callable[[int], BaseException] | None"
"""The outcome file; for items that ended without an outcome what makes the error of each; None for cancelled items."""


class RecordLocation(NamedTuple):
    """Items that settled together, and their `Source`; *offset* is where in the file their record begins, in bytes."""

    items: range
    source: Any
    offset: int


class RecordIndex:
    """Ranges of items in the order in which they settled, and the record of each.

    It grows with the records, not with the items: a range costs about 30 bytes. It is
    searched by item through blocks of items, each of which lists the ranges that reach into it.
    """

    _BLOCK = 4096

    def __init__(self) -> None:
        self._first = array("Q")
        self._length = array("Q")
        self._offset = array("Q")
        self._source = array("I")
        self._sources: list[Source] = [None]
        self._blocks: dict[int, array[int]] = {}

    def __len__(self) -> int:
        return len(self._first)

    def __getitem__(self, number: int) -> range:
        first = self._first[number]
        return range(first, first + self._length[number])

    def is_longer_than(self, number: int) -> bool:
        """Return whether there are more ranges than so many."""
        return len(self) > number

    def __iter__(self) -> Iterator[range]:
        return (self[number] for number in range(len(self)))

    def add(self, items: range, source: Source = None, offset: int = 0) -> None:
        """Add a range of items that are in no other range; without a source it cannot be found by item."""
        if source not in (None, self._sources[-1]):  # a few records of a file come together
            self._sources.append(source)
        number = len(self._first)
        self._first.append(items.start)
        self._length.append(len(items))
        self._offset.append(offset)
        self._source.append(0 if source is None else len(self._sources) - 1)
        if source is not None:
            for block in range(items.start // self._BLOCK, (items.stop - 1) // self._BLOCK + 1):
                numbers = self._blocks.setdefault(block, array("I"))
                if not numbers or self._first[numbers[-1]] < items.start:
                    numbers.append(number)  # records mostly arrive in the order of their items
                else:
                    insort(numbers, number, key=self._first.__getitem__)

    def find(self, item: int) -> RecordLocation:
        """Return the record of an item.

        Raises:
            LookupError: the item was cancelled, or has not settled.
        """
        numbers = self._blocks.get(item // self._BLOCK, array("I"))
        length = -1
        while length != len(numbers):  # search again if another thread inserts a range meanwhile
            length = len(numbers)
            position = bisect_right(numbers, item, key=self._first.__getitem__) - 1
            number = numbers[position] if position >= 0 else 0
            if position >= 0 and item in self[number]:
                return RecordLocation(self[number], self._sources[self._source[number]], self._offset[number])
        raise LookupError(item)

    def restricted(self, parts_of: Callable[[range], Iterable[range]]) -> RecordIndex:
        """Return an index with only these parts of each range."""
        index = RecordIndex()
        for number, items in enumerate(self):
            for part in parts_of(items):
                index.add(part, self._sources[self._source[number]], self._offset[number])
        return index


_DONE = re.compile(b"%c" % ItemStatus.VALUE)
_FAILED = re.compile(b"[%c%c]" % (ItemStatus.FAILURE, ItemStatus.ENDED))
_SETTLED_RUN = re.compile(b"[^\\x00\\x05]+")


class Ledger:
    """The statuses of all items of a run; *records* are the ranges of those that settled, in the order of settling."""

    def __init__(self, items: int) -> None:
        """Begin with this number of items, all open."""
        self.items = items
        self.records = RecordIndex()
        self._statuses = bytearray(items)
        self._counts = [items] + [0] * (len(ItemStatus) - 1)

    @property
    def open(self) -> int:
        """The number of items that have not settled."""
        return self._counts[ItemStatus.OPEN]

    def status(self, item: int) -> ItemStatus:
        """Return the status of an item."""
        return ItemStatus(self._statuses[item] % _CANCELLING)

    def is_open(self, item: int) -> bool:
        """Whether an item has not settled."""
        return not self._statuses[item] % _CANCELLING

    def count(self, status: ItemStatus, items: Iterable[int] | None = None) -> int:
        """Return how many items, of these or of all, have a status."""
        if items is None:
            return self._counts[status]  # kept up to date, since it is needed for each record
        if isinstance(items, range) and items.step == 1:
            number = self._statuses.count(status, items.start, items.stop)
            return number if status else number + self._statuses.count(_CANCELLING, items.start, items.stop)
        return sum(self._statuses[item] % _CANCELLING == status for item in items)

    def all_settled(self, items: Iterable[int]) -> bool:
        """Whether none of the items is open."""
        if isinstance(items, range) and items.step == 1:
            open_ = (ItemStatus.OPEN, _CANCELLING)
            return all(self._statuses.find(each, items.start, items.stop) < 0 for each in open_)
        return not any(map(self.is_open, items))

    def open_among(self, items: Iterable[int]) -> list[int]:
        """Return those of the items that have not settled."""
        return [item for item in items if not self._statuses[item] % _CANCELLING]

    def first_open(self, items: Sequence[int], number: int) -> list[int]:
        """Return the first of the items that have not settled, at most so many."""
        if isinstance(items, range) and items.step == 1 and not self._statuses.count(_CANCELLING):
            found: list[int] = []
            start = items.start
            while len(found) < number and (start := self._statuses.find(ItemStatus.OPEN, start, items.stop)) >= 0:
                found.append(start)
                start += 1
            return found
        return list(itertools.islice(filter(self.is_open, items), number))

    def first_failed(self, items: Sequence[int], number: int | None = None) -> list[int]:
        """Return the first of the items that failed, at most so many."""
        return self._first(_FAILED, items, number)

    def first_done(self, items: Sequence[int], number: int) -> list[int]:
        """Return the first of the items that have values, at most so many."""
        return self._first(_DONE, items, number)

    def _first(self, of: re.Pattern[bytes], items: Sequence[int], number: int | None) -> list[int]:
        parts = (of.finditer(self._statuses, part.start, part.stop) for part in consecutive(items))
        return [found.start() for found in itertools.islice(itertools.chain.from_iterable(parts), number)]

    def grow(self, items: int) -> None:
        """Add open items, up to this number of all."""
        self._statuses.extend(bytes(items - self.items))
        self._counts[ItemStatus.OPEN] += items - self.items
        self.items = items

    # Settling. Each method returns the ranges of items that have settled with the call.

    def record(self, recorded: Recorded, part: range | None = None) -> list[range]:
        """Settle the open items of a record, or of a part of its items."""
        status = ItemStatus.FAILURE if recorded.header.kind == Kind.FAILURE else ItemStatus.VALUE
        items = range(recorded.header.first, recorded.header.stop) if part is None else part
        settled = list(self._ranges_of(ItemStatus.OPEN, range(items.start, min(items.stop, self.items))))
        for each in settled:
            self._settle(each, status, recorded.file, recorded.offset)
        return settled

    def end(self, items: range, error_of: Callable[[int], BaseException]) -> list[range]:
        """Settle the open items of a range with errors, which are made when they are asked for."""
        settled = list(self._ranges_of(ItemStatus.OPEN, items))
        for each in settled:
            self._settle(each, ItemStatus.ENDED, error_of)
        return settled

    def cancel(self, items: range) -> list[range]:
        """Settle the open items of a range as cancelled."""
        settled = [each for status in (ItemStatus.OPEN, _CANCELLING) for each in self._ranges_of(status, items)]
        for each in settled:
            self._settle(each, ItemStatus.CANCELLED)
        return settled

    def _settle(self, items: range, status: ItemStatus, source: Source = None, offset: int = 0) -> None:
        # The index first: a thread that reads the status without a lock looks for the record next.
        self.records.add(items, source, offset)
        self._statuses[items.start : items.stop] = bytes([status]) * len(items)
        self._counts[ItemStatus.OPEN] -= len(items)
        self._counts[status] += len(items)

    def _ranges_of(self, status: int, items: range) -> Iterator[range]:
        """Yield the longest ranges of items that all have this status."""
        statuses, stop = self._statuses, items.stop
        if items and statuses.count(status, items.start, stop) == len(items):
            yield items
            return
        start = statuses.find(status, items.start, stop)
        while start >= 0:
            other = _OTHER[status].search(statuses, start, stop)
            after = other.start() if other else stop
            yield range(start, after)
            start = statuses.find(status, after, stop)

    # Cancellations that are being written, and items that run again.

    def reserve(self, items: range) -> None:
        """Keep the open items of a range from settling otherwise while their cancellation is written."""
        for each in list(self._ranges_of(ItemStatus.OPEN, items)):
            self._statuses[each.start : each.stop] = bytes([_CANCELLING]) * len(each)

    def release(self, items: range) -> None:
        """Undo `reserve`, as the cancellation could not be written."""
        for each in list(self._ranges_of(_CANCELLING, items)):
            self._statuses[each.start : each.stop] = bytes(len(each))

    def reopen(self, items: Iterable[int]) -> None:
        """Take the outcomes of items back, since a new round runs them; costs a pass over the index."""
        for item in items:
            self._counts[self._statuses[item] % _CANCELLING] -= 1
            self._counts[ItemStatus.OPEN] += 1
            self._statuses[item] = ItemStatus.OPEN
        self.records = self.records.restricted(self._settled_parts)

    def _settled_parts(self, items: range) -> Iterator[range]:
        found = _SETTLED_RUN.finditer(self._statuses, items.start, items.stop)
        return (range(each.start(), each.end()) for each in found)

    def error_of(self, item: int) -> BaseException:
        """Return the error of an item whose status is ENDED."""
        error: BaseException = self.records.find(item).source(item)
        return error


_OTHER = {each: re.compile(b"[^\\x%02x]" % each) for each in (ItemStatus.OPEN, _CANCELLING)}


def common(known: Collection[int], items: Collection[int]) -> list[int]:
    """Return those of the items that are known; however long a range of items is, it costs no more than *known*."""
    if isinstance(items, range) and len(known) < len(items):
        return [item for item in known if item in items]
    return [item for item in items if item in known]


def consecutive(items: Sequence[int]) -> Iterator[range]:
    """Cut items into ranges of consecutive numbers; a range, however long, costs nothing."""
    return iter([items]) if isinstance(items, range) and (items.step == 1 or not items) else ranges_of(items)
