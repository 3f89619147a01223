"""Stretches of items that settled together, and where the record of each lies.

What is kept grows with the records, not with the items: a stretch costs about 30
bytes, and a record of 4096 items is one of them. They are numbered in the order
in which they settled, and found by item through blocks: each block of items
knows the stretches that reach into it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right, insort
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from slurmlaunch.runfolder.outcomes import Recorded

_BLOCK = 4096
_NOWHERE = 0


class Stretch(NamedTuple):
    """Items whose outcomes lie in one record.

    Attributes:
        number: its number.
        items: the items.
        file: the file of outcomes.
        offset: where in the file the record begins.
    """

    number: int
    items: range
    file: Path
    offset: int


class Stretches:
    """The stretches of a run, in the order in which they settled: a sequence of ranges that only grows."""

    def __init__(self) -> None:
        self._first = array("Q")
        self._length = array("Q")
        self._offset = array("Q")
        self._file = array("I")
        self._files: list[Path | None] = [None]
        self._blocks: dict[int, array[int]] = {}

    def __len__(self) -> int:
        return len(self._first)

    def __getitem__(self, number: int) -> range:
        first = self._first[number]
        return range(first, first + self._length[number])

    def __iter__(self) -> Iterator[range]:
        return (self[number] for number in range(len(self)))

    def add(self, items: range, recorded: Recorded | None = None) -> None:
        """Add the next stretch, of items that are in none; it can be found if its record is given."""
        number = len(self._first)
        self._first.append(items.start)
        self._length.append(len(items))
        self._offset.append(recorded.offset if recorded else 0)
        self._file.append(self._number_of(recorded.file) if recorded else _NOWHERE)
        if recorded:
            for block in range(items.start // _BLOCK, (items.stop - 1) // _BLOCK + 1):
                self._enter(self._blocks.setdefault(block, array("I")), number)

    def _enter(self, numbers: array[int], number: int) -> None:
        """Enter a stretch into a block, in the order of their items, in which they come for the most part."""
        if not numbers or self._first[numbers[-1]] < self._first[number]:
            numbers.append(number)
        else:
            insort(numbers, number, key=self._first.__getitem__)

    def _number_of(self, file: Path) -> int:
        if self._files[-1] != file:  # a few records of a file come together
            self._files.append(file)
        return len(self._files) - 1

    def find(self, item: int) -> Stretch:
        """Return the stretch of an item, which was added with its record.

        Raises:
            LookupError: there is none.
        """
        numbers = self._blocks.get(item // _BLOCK, array("I"))
        looked_among = -1
        while looked_among != len(numbers):  # once more where another thread has entered one meanwhile
            looked_among = len(numbers)
            place = bisect_right(numbers, item, key=self._first.__getitem__) - 1
            number = numbers[place] if place >= 0 else 0
            file = self._files[self._file[number]] if place >= 0 else None
            if file is not None and item in self[number]:
                return Stretch(number, self[number], file, self._offset[number])
        raise LookupError(item)


def consecutive(items: Sequence[int]) -> Iterator[range]:
    """Cut items into stretches of such as follow each other."""
    if isinstance(items, range) and (items.step == 1 or not items):
        yield items
        return
    start = 0
    for i in range(1, len(items) + 1):
        if i == len(items) or items[i] != items[i - 1] + 1:
            yield range(items[start], items[i - 1] + 1)
            start = i
