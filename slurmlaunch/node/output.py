"""The standard streams of processes that run items: pipes, which another process empties.

That one, the supervisor of a pool or the parent of a rank, copies all that comes into the log of the task, and stores
it by item (`runfolder.output`). Which items may have written it, its owner says at that moment. A full pipe makes its
writer wait, so that no memory fills up. Used by both sides; knows nothing of outcomes.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from slurmlaunch.node import system
from slurmlaunch.node.channel import LENGTH
from slurmlaunch.runfolder.records import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from slurmlaunch.node.channel import Connection
    from slurmlaunch.node.events import Events
    from slurmlaunch.runfolder.output import OutputWriter

    Items = Callable[[], Sequence[range]]

_PIECE = 1 << 17
"""The bytes that are read at once, more than a pipe holds: so no read ends within what was written at once."""

_MOST = 1 << 20
"""How many bytes are read to empty a pipe, which may be filled meanwhile."""

STREAMS = {1: Kind.STDOUT, 2: Kind.STDERR}


class Output:
    """All that the processes of a task, or a rank, write, and its two destinations."""

    def __init__(self, events: Events, writer: OutputWriter) -> None:
        self._events, self._writer = events, writer
        self._pipes: set[Pipe] = set()

    def add(self, stream: int, ends: tuple[int, int], items: Items) -> Pipe:
        """Empty a pipe from now on; the second of its ends is the writer's, or -1 in another process."""
        pipe = Pipe(self, stream, ends, items)
        os.set_blocking(pipe.reading, False)
        self._pipes.add(pipe)
        self._events.add(pipe.reading, pipe.read)
        return pipe

    def __contains__(self, pipe: Pipe) -> bool:
        return pipe in self._pipes

    def write(self, stream: int, items: Sequence[range], data: bytes) -> None:
        """Copy to the log, as far as the storage takes it, and store."""
        view = memoryview(data)
        with suppress(OSError):
            while view:
                view = view[os.write(stream, view) :]
        self._writer.add(STREAMS[stream], items, data)

    def drop(self, pipe: Pipe) -> None:
        """Close a pipe that nobody writes to any more."""
        if pipe in self._pipes:
            self._pipes.discard(pipe)
            self._events.remove(pipe.reading)
            os.close(pipe.reading)

    def leave(self) -> None:
        """Close all ends for reading, in a forked child."""
        for pipe in self._pipes:
            os.close(pipe.reading)

    def flush(self) -> None:
        """Write what is stored by item."""
        self._writer.flush()

    def sync(self) -> None:
        """Make it survive a crash of this machine, and let other machines see it."""
        self._writer.sync()

    def close(self) -> None:
        """Store what is left, after all processes have ended."""
        for pipe in list(self._pipes):
            pipe.empty()
            self.drop(pipe)
        self._writer.close()


class Pipe:
    """One standard stream of one process.

    Attributes:
        stream: 1 or 2.
        reading: the descriptor to read from.
        items: returns the items that may have written what is read now.
    """

    def __init__(self, output: Output, stream: int, ends: tuple[int, int], items: Items) -> None:
        self._output, self.stream, self.items = output, stream, items
        self.reading, self._writing = ends

    def read(self) -> None:
        """Read once, and store it."""
        self._read()

    def empty(self) -> None:
        """Read what is there; at the end of an item that is all it wrote."""
        left = _MOST
        while left > 0 and self in self._output and (size := self._read()):
            left -= size

    def _read(self) -> int:
        """Return the number of bytes, 0 if there is nothing or nobody writes any more."""
        try:
            data = os.read(self.reading, _PIECE)
        except BlockingIOError:
            return 0
        if data:
            self._output.write(self.stream, self.items(), data)
        else:
            self._output.drop(self)
        return len(data)

    def take(self) -> None:
        """Make it the standard stream of this process, a forked child."""
        os.dup2(self._writing, self.stream)
        os.close(self._writing)

    def give(self) -> None:
        """Close the writer's end in this process, the supervisor."""
        os.close(self._writing)


class Streams:
    """Standard output and standard error of one process, over the time in which it may get new pipes.

    The process and the one that empties the pipes have a connection. The process sends ``O`` and the descriptors of
    new pipes (u32 each); the reply is ``Y``, or ``N`` if they cannot be opened.
    """

    def __init__(self, output: Output, items: Items) -> None:
        """Make the pipes; *items* tells which items may have written what is read."""
        self._output, self._items = output, items
        self._pipes = [output.add(stream, os.pipe(), items) for stream in STREAMS]

    def take(self) -> None:
        """Make them the standard streams of this process, a forked child."""
        self._output.leave()
        for pipe in self._pipes:
            pipe.take()

    def give(self) -> None:
        """Close the child's ends in this process."""
        for pipe in self._pipes:
            pipe.give()

    def empty(self) -> None:
        """Store everything that the items have written until now."""
        for pipe in self._pipes:
            pipe.empty()
        self._output.flush()

    def leave(self) -> None:
        """Store everything that the items have written until now; what follows is written by no item."""
        for pipe in self._pipes:
            pipe.empty()
            pipe.items = tuple
        self._output.flush()
        self._pipes = []

    def renew(self, connection: Connection, process: int) -> None:
        """Open the pipes that the process offers as the new ones of its streams, if possible; its ``O`` was read."""
        content = connection.receive(2 * LENGTH.size)
        if content is None:
            return
        opened: list[int] = []
        try:
            for start in (0, LENGTH.size):
                number = LENGTH.unpack_from(content, start)[0]
                opened.append(os.open(f"/proc/{process}/fd/{number}", os.O_RDONLY | os.O_CLOEXEC))
            answer = b"Y"
        except OSError:  # no /proc, or no descriptor is left
            for descriptor in opened:
                os.close(descriptor)
            answer = b"N"
        else:
            self.leave()
            pairs = zip(STREAMS, opened, strict=True)
            self._pipes = [self._output.add(stream, (each, -1), self._items) for stream, each in pairs]
        with suppress(BrokenPipeError):  # it has died
            connection.send(answer)


def renew_streams(connection: Connection) -> None:
    """Write to new pipes from now on: what the processes that an item left write is not the next item's."""
    pipes: list[tuple[int, int]] = []
    try:
        pipes += [os.pipe(), os.pipe()]
    except OSError:  # items have used up the descriptors
        return
    try:
        connection.send(b"O" + b"".join(LENGTH.pack(reading) for reading, _ in pipes))
        if connection.receive(1) == b"Y":
            system.replace_streams([writing for _, writing in pipes])
    finally:
        for each in pipes:
            for descriptor in each:
                os.close(descriptor)
