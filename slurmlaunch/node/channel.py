"""How a supervisor and one of its workers talk: shared memory for outcomes, two pipes for messages.

A worker writes each outcome into shared memory as soon as it has it. There the
outcome survives the worker, at less than a microsecond: a pipe would survive it
too, but cost a system call per item; a buffer in the worker would not.

The worker writes, the supervisor reads; the supervisor resets the counters while
the worker waits for it. The supervisor reads only outcomes that were announced
through the pipe or written at least a tick ago, so no memory barrier is needed
on machines that reorder stores. The messages are defined in `worker`.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from array import array
from itertools import pairwise
from time import monotonic
from typing import TYPE_CHECKING

from slurmlaunch.runfolder.files import identity
from slurmlaunch.runfolder.outcomes import Times

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LENGTH = struct.Struct("<I")
"""How numbers are sent."""

_CURRENT, _COUNT, _LIMIT = range(3)
_NUMBERS_AT = 64
_NUMBER, _LENGTH = 8, 4

MAX_ITEMS = 4096
"""The most items of one assignment, and so of one record."""

DATA_BYTES = 1 << 18
"""The space for pickled outcomes; pages that are not used cost nothing."""

LARGE = DATA_BYTES // 4
"""Outcomes of this size and more bypass the channel: the worker appends them to the file itself."""

FAILED, INTEGER, FLOAT = 1 << 31, 1 << 30, 1 << 29
"""The bits of a length that mark a failure, or a number, which is stored apart and has no bytes."""

MARKS = FAILED | INTEGER | FLOAT

TIMED = 100
"""The most items of an assignment whose starts are noted one by one: those of longer ones take less than a millisecond,
and noting the time would take a tenth of the shortest."""

_ENDED = TIMED + 1
_NO_TIMES = bytes(_NUMBER * (_ENDED + 1))


class Channel:
    """Counters, lengths, numbers, bytes and times in shared memory.

    Attributes:
        put_number: writes an int or a float as it is, at a third of the cost of a pickle; returns False,
            and writes nothing, if there is no space or 64 bits are too few.
    """

    def __init__(self) -> None:
        lengths_at = _NUMBERS_AT + MAX_ITEMS * _NUMBER
        data_at = lengths_at + MAX_ITEMS * _LENGTH
        times_at = data_at + DATA_BYTES
        view = memoryview(mmap.mmap(-1, times_at + len(_NO_TIMES)))
        self._words = view[:_NUMBERS_AT].cast("Q")
        self._numbers = view[_NUMBERS_AT:lengths_at]
        self._integers, self._floats = self._numbers.cast("q"), self._numbers.cast("d")
        self._lengths = view[lengths_at:data_at].cast("I")
        self._data = view[data_at:times_at]
        self._times = view[times_at:].cast("d")
        self._used = self._taken = self._taken_bytes = 0
        self._timed, self._measured_until = False, 0.0
        self.put_number = self._number_putter()

    # The worker's side.

    def begin(self, items: int) -> Iterator[int]:
        """Yield the positions of an assignment, each marked as running; stop where the rest was taken back.

        The limit is read after the position was written, and the supervisor
        reads the position a tick after it lowered the limit: so one of the two
        sees the other.
        """
        words, times, timed = self._words, self._times, items <= TIMED
        times[0] = monotonic()
        for position in range(items):
            words[_CURRENT] = position + 1
            if position >= words[_LIMIT]:
                return
            if timed:
                times[position] = monotonic()
            yield position

    def end(self) -> None:
        """Note that the last item of the assignment has ended."""
        self._times[_ENDED] = monotonic()

    def put(self, data: bytes, *, failed: bool = False) -> bool:
        """Write an outcome, which is complete with the last store; return False, and write nothing, if it is full.

        The last byte of a value is not part of it: the next one overwrites it (`Kind.SERIES`).
        """
        used, count = self._used, self._words[_COUNT]
        stop = used + len(data)
        if stop > DATA_BYTES or count == MAX_ITEMS:
            return False
        self._data[used:stop] = data
        if failed:
            self._lengths[count] = len(data) | FAILED
        else:
            stop -= 1
            self._lengths[count] = stop - used
        self._words[_COUNT] = count + 1
        self._used = stop
        return True

    def _number_putter(self) -> Callable[[float], bool]:
        words, integers, floats, lengths = self._words, self._integers, self._floats, self._lengths

        def put_number(value: float) -> bool:
            count = words[_COUNT]
            try:
                if type(value) is int:
                    integers[count] = value
                    lengths[count] = INTEGER
                else:
                    floats[count] = value
                    lengths[count] = FLOAT
            except (ValueError, IndexError):
                return False
            words[_COUNT] = count + 1
            return True

        return put_number

    def restart(self) -> None:
        """Write from the start of the memory again, after the supervisor has emptied it."""
        self._used = 0

    # The supervisor's side.

    def reset(self) -> None:
        """Reset the count, while the worker waits."""
        self._words[_COUNT] = self._taken = self._taken_bytes = 0

    def assign(self, items: int) -> None:
        """Prepare for an assignment of so many items, while the worker waits."""
        self.reset()
        self._words[_CURRENT], self._words[_LIMIT] = 0, items
        self._times[:] = memoryview(_NO_TIMES).cast("d")
        self._timed, self._measured_until = items <= TIMED, 0.0

    def limit(self, items: int) -> None:
        """Take back the items of the assignment from this position on."""
        self._words[_LIMIT] = items

    @property
    def current(self) -> int | None:
        """The position of the running item, or of the last one."""
        return self._words[_CURRENT] - 1 if self._words[_CURRENT] else None

    @property
    def new(self) -> int:
        """The number of outcomes that were not taken yet."""
        return self._words[_COUNT] - self._taken

    def times(self, start: int, stop: int) -> Times:
        """Return when the items from one position of the assignment to another ran, up to now if they still do.

        In a long assignment they share the time since the last call.
        """
        now = self._times[_ENDED] or monotonic()
        if self._timed:
            bounds = [each or now for each in self._times[start : stop + 1]]
        else:
            bounds = [self._measured_until or self._times[0] or now, now]
            self._measured_until = now
        share = 1 if self._timed else max(1, stop - start)
        began = time.time() - monotonic() + bounds[0]
        return Times(began, array("f", [max(0.0, b - a) / share for a, b in pairwise(bounds)]))

    def lengths(self) -> array[int]:
        """Return the lengths, with their marks, of the outcomes that were not taken yet."""
        return array("I", self._lengths[self._taken : self._words[_COUNT]].tobytes())

    def take(self, lengths: array[int]) -> memoryview:
        """Take the next outcomes, which are of one kind and have these lengths; return their bytes."""
        start, mark = self._taken, lengths[0] & MARKS
        self._taken += len(lengths)
        if mark & (INTEGER | FLOAT):
            return self._numbers[start * _NUMBER : self._taken * _NUMBER]
        start = self._taken_bytes
        self._taken_bytes += sum(lengths) - mark
        return self._data[start : self._taken_bytes]


class Connection:
    """One end of two pipes; a socket would cost a tenth of a task's start, for importing `socket` and a selector.

    `reading` is the descriptor to read from, -1 once closed.
    """

    __slots__ = ("_pipes", "_writing", "reading")

    def __init__(self, reading: int, writing: int) -> None:
        self.reading, self._writing = reading, writing
        self._pipes = identity(reading), identity(writing)

    @classmethod
    def pair(cls) -> tuple[Connection, Connection]:
        """Return both ends of a new connection."""
        (a_reads, b_writes), (b_reads, a_writes) = os.pipe(), os.pipe()
        return cls(a_reads, a_writes), cls(b_reads, b_writes)

    def send(self, data: bytes) -> None:
        """Send all bytes.

        Raises:
            BrokenPipeError: the other end is closed.
            ConnectionAbortedError: the user's function closed this end; the number may be that of another file now.
        """
        self._check()
        view = memoryview(data)
        while view:
            view = view[os.write(self._writing, view) :]

    def receive(self, size: int) -> bytes | None:
        """Return exactly *size* bytes, or None at the end of file.

        Raises:
            ConnectionAbortedError: as for `send`.
        """
        self._check()
        pieces = []
        while size:
            piece = os.read(self.reading, min(size, 1 << 20))
            if not piece:
                return None
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def _check(self) -> None:
        if (identity(self.reading), identity(self._writing)) != self._pipes:
            raise ConnectionAbortedError

    def close(self) -> None:
        """Close this end; do nothing the second time."""
        for descriptor in {self.reading, self._writing} - {-1}:
            os.close(descriptor)
        self.reading = self._writing = -1
