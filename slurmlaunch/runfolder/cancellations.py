"""Cancellations: which items are not wanted any more, one file of records per round and client.

A cancellation is a word that stands: an item with both a cancellation and an
outcome is cancelled, in every process that looks. It speaks of one round: a
retry runs the item again.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from slurmlaunch.runfolder import records
from slurmlaunch.runfolder.layout import YOUNG
from slurmlaunch.runfolder.records import Kind, Record, open_owned

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from slurmlaunch.runfolder.layout import RunFolder


_LISTING, _READING = 4, 4
"""File operations that it takes to list a folder, and to open, check, read and close a file."""


class CancellationWriter:
    """Writes the cancellations of one client, in one round."""

    def __init__(self, folder: RunFolder, number: int, client: str) -> None:
        self._path = folder.cancelled / f"{number}.{client}"

    def add(self, ranges: Iterable[range]) -> None:
        """Write down that the items of these ranges are cancelled."""
        data = b"".join(records.encode(Kind.CANCELLED, b"", first=items.start, count=len(items)) for items in ranges)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o600)
        try:
            records.append(descriptor, [data], os.fstat(descriptor).st_size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.utime(self._path.parent)  # so that one look at the folder tells whether there is news


class CancellationReader:
    """Reads what clients have cancelled in some rounds since the last look.

    Attributes:
        operations: how many file operations that has taken so far.
    """

    def __init__(self, folder: RunFolder, rounds: Iterable[int]) -> None:
        self._path = folder.cancelled
        self._rounds = {str(number) for number in rounds}
        self._positions: dict[str, int] = {}
        self._changed = -1
        self.operations = 0

    def new(self) -> Iterator[tuple[int, range]]:
        """Yield the ranges of items that were cancelled since the last look, and their round.

        Costs one look at the folder where there is nothing new.
        """
        self.operations += 1
        status = self._path.stat()
        changed = status.st_mtime_ns
        if changed == self._changed:
            return
        young = abs(time.time() - status.st_mtime) < YOUNG
        with os.scandir(self._path) as entries:
            ours = [entry for entry in entries if entry.name.partition(".")[0] in self._rounds]
            sizes = {entry.name: entry.stat(follow_symlinks=False).st_size for entry in ours}
        self.operations += _LISTING + len(ours)
        for name, size in sizes.items():
            position = self._positions.get(name, 0)
            if size > position:
                number = int(name.partition(".")[0])
                yield from ((number, items) for items in self._read(name, position, size - position))
        # Not before all were read: what cannot be read now is read the next time.
        self._changed = -1 if young else changed

    def _read(self, name: str, position: int, length: int) -> Iterator[range]:
        self.operations += _READING
        descriptor = open_owned(self._path / name)
        try:
            data = os.pread(descriptor, length, position)
        finally:
            os.close(descriptor)
        for found in records.scan(memoryview(data), position):
            if isinstance(found, Record):
                self._positions[name] = found.offset + records.HEADER_SIZE
                yield range(found.header.first, found.header.stop)
