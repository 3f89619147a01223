"""The supervisor's hand on one process of its pool."""

from __future__ import annotations

import os
import signal
from array import array
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING

from slurmlaunch.node.channel import FAILED, FLOAT, INTEGER, MARKS
from slurmlaunch.node.memory import of_files
from slurmlaunch.node.worker import LENGTH
from slurmlaunch.runfolder.records import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slurmlaunch.node.channel import Channel
    from slurmlaunch.node.connection import Connection
    from slurmlaunch.runfolder.outcomes import OutcomeWriter


class Process:
    """The supervisor's hand on one process of the pool.

    Attributes:
        number: its place in the pool.
        pid: its process id.
        connection: the connection to it.
        channel: the memory shared with it.
        items: what it has been assigned; empty while it is idle.
        base: how many of them were recorded before the channel was last reset.
        drained: how many outcomes were taken from the channel since then.
        drained_bytes: how many bytes.
        since: when it was assigned them.
        ready: whether it has loaded the function.
        failure: why it could not, pickled, or None.
        can_checkpoint: whether its function can be asked how an item is gone on with.
        checkpoint: what that said, pickled, or None.
        suspect: the position that a slow item was seen at, its followers being taken back.
        shared: the most bytes of files that it was seen to hold, as others may too.
        killed: whether it was killed from here.
    """

    def __init__(self, number: int, pid: int, connection: Connection, channel: Channel) -> None:
        self.number, self.pid, self.connection, self.channel = number, pid, connection, channel
        self.items = array("Q")
        self.base = self.drained = self.drained_bytes = 0
        self.since = 0.0
        self.seen = (-1, 0.0)
        self.suspect: int | None = None
        self.ready = self.killed = False
        self.failure: bytes | None = None
        self.can_checkpoint = False
        self.checkpoint: bytes | None = None
        self.shared = 0

    def weigh(self) -> None:
        """See how much of its memory is not its alone: its peak, as the system tells it at its end, includes that."""
        self.shared = max(self.shared, of_files(self.pid))

    @property
    def busy(self) -> bool:
        """Whether it has been assigned items."""
        return bool(self.items)

    @property
    def recorded(self) -> int:
        """How many items of its assignment have been recorded."""
        return self.base + self.drained

    @property
    def running(self) -> int | None:
        """The position of the item that it is running, as far as is known."""
        current = self.channel.current
        finished = self.base + self.channel.count
        return current if current is not None and finished <= current < len(self.items) else None

    def assign(self, items: array[int]) -> None:
        """Hand over items; it must be idle."""
        self.items = items
        self.base = self.drained = self.drained_bytes = 0
        self.since = monotonic()
        self.seen, self.suspect = (-1, self.since), None
        self.channel.assign(len(items))
        self._send(LENGTH.pack(len(items)) + items.tobytes())

    def answer(self) -> None:
        """Let it go on with an empty channel, after `drain`."""
        self.base += self.drained
        self.drained = self.drained_bytes = 0
        self.channel.reset()
        self._send(b"G")

    def _send(self, data: bytes) -> None:
        with suppress(BrokenPipeError):  # it has died; that is noticed where all deaths are
            self.connection.send(data)

    def drain(self, writer: OutcomeWriter) -> int:
        """Record the outcomes that are in the channel; return how many there were."""
        count = self.channel.count
        new = count - self.drained
        if new <= 0:
            return 0
        lengths = self.channel.lengths(self.drained, count)
        items = self.items[self.recorded : self.recorded + new]
        for start, stop in _runs(items, lengths):
            self._record(items[start], lengths[start:stop], writer)
        return new

    def _record(self, first: int, lengths: array[int], writer: OutcomeWriter) -> None:
        """Record the next outcomes, which are of one kind and of items that follow each other."""
        mark, stop = lengths[0] & MARKS, self.drained + len(lengths)
        if mark in _KINDS:
            writer.numbers(_KINDS[mark], first, self.channel.numbers(self.drained, stop))
        else:
            end = self.drained_bytes + sum(lengths) - mark
            data = self.channel.data(self.drained_bytes, end)
            if mark:
                writer.failure(first, data)
            else:
                writer.series(first, lengths, data)
            self.drained_bytes = end
        self.drained = stop

    def slow_items(self, patience: float) -> array[int]:
        """Return the items behind one that takes longer than that, and take them back.

        It takes two calls: one lowers the limit, and the next, a tick later,
        sees whether the process had gone on before it could know.
        """
        position, now = self.running, monotonic()
        none = array("Q")
        if position is None or position + 1 >= len(self.items):
            return none
        if self.suspect == position:
            rest = self.items[position + 1 :]
            self.items = self.items[: position + 1]
            return rest
        if self.seen[0] != position:
            self.seen = (position, now)
        elif now - self.seen[1] > patience:
            self.channel.limit(position + 1)
            self.suspect = position
        return none

    def take_back(self) -> None:
        """Have it end its assignment after the item that it is running."""
        position = self.running
        self.channel.limit(self.base + self.channel.count if position is None else position + 1)

    def end(self) -> array[int]:
        """Note that the assignment is done; return what of it was not run."""
        rest = self.items[self.recorded :]
        self.items = array("Q")
        return rest

    def kill(self) -> None:
        """Kill it; its death is noticed where all deaths are."""
        self.killed = True
        os.kill(self.pid, signal.SIGKILL)


_KINDS = {INTEGER: Kind.INTEGERS, FLOAT: Kind.FLOATS}


def _runs(items: array[int], lengths: array[int]) -> Iterator[tuple[int, int]]:
    """Cut outcomes into stretches of consecutive items with values of one kind; each failure stands alone."""
    total = len(items)
    alike = lengths.count(lengths[0]) == total if lengths[0] in _KINDS else max(lengths) < FLOAT
    # The ends alone do not tell: a slice that was packed by cost has its items in any order.
    if alike and items[-1] - items[0] == total - 1 and items == array("Q", range(items[0], items[0] + total)):
        yield 0, total
        return
    start = 0
    for i in range(1, total + 1):
        if i == total or items[i] != items[i - 1] + 1 or lengths[i] & FAILED or (lengths[i] ^ lengths[i - 1]) & MARKS:
            yield start, i
            start = i
