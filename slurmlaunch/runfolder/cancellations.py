"""Cancellations: the items that nobody wants any more, one file of records per round and client.

Clients write and read them, tasks read them. A cancellation is final: an item with both a cancellation and an outcome
is cancelled, in every process that looks. It applies to one round: a retry runs the item again.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from slurmlaunch.runfolder import records
from slurmlaunch.runfolder.changes import NewNames
from slurmlaunch.runfolder.records import Entry, Kind, Record, RecordWriter, opened, read_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from slurmlaunch.runfolder.layout import RunFolder

_READING_COST = 4
"""File operations of opening, checking, reading and closing a file."""


class CancellationWriter:
    """Writes the cancellations of one client, in one round."""

    def __init__(self, folder: RunFolder, number: int, client: str) -> None:
        self._path = folder.cancelled / f"{number}.{client}"

    def add(self, ranges: Iterable[range]) -> None:
        """Record that the items of these ranges are cancelled.

        Raises:
            OSError: this could not be written.
        """
        with RecordWriter(self._path) as writer:
            writer.append(*(Entry.of(Kind.CANCELLED, (), first=items.start, number=len(items)) for items in ranges))
        os.utime(self._path.parent)  # the folder's modification time tells readers that a file in it has grown


class CancellationReader:
    """Reads the cancellations of some rounds."""

    def __init__(self, folder: RunFolder, rounds: Iterable[int]) -> None:
        self._folder = folder.cancelled
        self._rounds = {str(number) for number in rounds}
        self._changes = NewNames(self._folder)
        self._positions: dict[str, int] = {}

    @property
    def operations(self) -> int:
        """How many file operations this has taken so far."""
        return self._changes.operations

    def new(self) -> Iterator[tuple[int, range]]:
        """Yield the round and the items of each cancellation since the last call.

        Costs one file operation while nothing changes. After an error the next call reads the rest.

        Raises:
            OSError: the folder or a file cannot be read.
            UnsafeRunFolder: a file is not safe to read.
        """
        if not self._changes.may_have_changed():
            return
        try:
            with os.scandir(self._folder) as entries:
                ours = [entry for entry in entries if entry.name.partition(".")[0] in self._rounds]
                sizes = {entry.name: entry.stat(follow_symlinks=False).st_size for entry in ours}
            self._changes.count_listing(len(ours))
            self._changes.operations += len(ours)
            for name, size in sizes.items():
                position = self._positions.get(name, 0)
                if size > position:
                    number = int(name.partition(".")[0])
                    yield from ((number, items) for items in self._read(name, position, size - position))
        except BaseException:
            self._changes.forget()
            raise

    def _read(self, name: str, position: int, length: int) -> Iterator[range]:
        self._changes.operations += _READING_COST
        with opened(self._folder / name) as (descriptor, _):
            data = read_at(descriptor, length, position)
        for found in records.scan(memoryview(data), position):
            if isinstance(found, Record):
                self._positions[name] = found.offset + records.HEADER_SIZE
                yield range(found.header.first, found.header.stop)
