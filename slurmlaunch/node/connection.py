"""The words between the supervisor and a process of its pool: two pipes.

No socket, and no selector over it: both modules would be imported by every task
of every run, and are worth a tenth of its start.
"""

from __future__ import annotations

import os


class Connection:
    """One end of a connection.

    Attributes:
        reading: the descriptor that its words come from.
        writing: the descriptor that its words go to.
    """

    __slots__ = ("reading", "writing")

    def __init__(self, reading: int, writing: int) -> None:
        self.reading = reading
        self.writing = writing

    @classmethod
    def pair(cls) -> tuple[Connection, Connection]:
        """Return both ends of a new connection."""
        (a_reads, b_writes), (b_reads, a_writes) = os.pipe(), os.pipe()
        return cls(a_reads, a_writes), cls(b_reads, b_writes)

    def send(self, data: bytes) -> None:
        """Send all of it.

        Raises:
            BrokenPipeError: nobody reads any more.
        """
        view = memoryview(data)
        while view:
            view = view[os.write(self.writing, view) :]

    def receive(self, size: int) -> bytes | None:
        """Return exactly so many bytes, or None at the end of file."""
        pieces = []
        while size:
            piece = os.read(self.reading, min(size, 1 << 20))
            if not piece:
                return None
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def close(self) -> None:
        """Hang up; nothing happens the second time."""
        for descriptor in {self.reading, self.writing} - {-1}:
            os.close(descriptor)
        self.reading = self.writing = -1
