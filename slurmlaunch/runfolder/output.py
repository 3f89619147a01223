"""What items wrote to their standard streams: one file of records per attempt of a task, or per rank of it.

The supervisor of a pool or the parent of a rank appends (`OutputWriter`), futures read (`OutputFile`). The file is a
copy for single items: the log of the task has everything, in the order it came. So nothing here is waited for or
retried, and what does not fit is left out, which an empty record says.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from slurmlaunch.runfolder import records
from slurmlaunch.runfolder.files import opened, read_at
from slurmlaunch.runfolder.records import HEADER_SIZE, Entry, Kind, RecordWriter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slurmlaunch.runfolder.files import Location

MAX_LOG = 100 << 20
"""How many bytes are kept by item for each attempt of a task, or each rank, unless ``max_log`` says otherwise."""

_BUFFERED = 1 << 18
"""Bytes that are written at once; less waits for `OutputWriter.flush`."""

_Key = tuple[Kind, int, int]
"""The stream, the first item, and the number of items, 0 for output of no item."""


class OutputWriter:
    """Appends what items wrote, up to a number of bytes; makes the file for the first of it."""

    def __init__(self, path: Location, salt: int, limit: int) -> None:
        self._path, self._salt, self._left = path, salt, limit
        self._file: RecordWriter | None = None
        self._waiting: dict[_Key, bytearray] = {}
        self._bytes = 0
        self._cut: set[_Key] = set()

    def add(self, kind: Kind, items: Sequence[range], data: bytes) -> None:
        """Add what one of these items wrote, or no item."""
        for each in items or [range(0)]:
            key = kind, each.start, len(each)
            kept = data[: self._left]
            self._left -= len(kept)
            if kept:
                self._waiting.setdefault(key, bytearray()).extend(kept)
                self._bytes += len(kept)
            if len(kept) < len(data) and key not in self._cut:
                self._cut.add(key)
                self._mark_cut(key)
        if self._bytes >= _BUFFERED:
            self.flush()

    def _mark_cut(self, key: _Key) -> None:
        self.flush()
        self._waiting[key] = bytearray()

    def flush(self) -> None:
        """Write what was added; where the storage refuses it, mark that it is missing as soon as it can be marked."""
        entries = [
            Entry.of(kind, [data], first=first, number=number) for (kind, first, number), data in self._waiting.items()
        ]
        if not entries:
            return
        try:
            self._opened().append(*entries)
        except OSError:
            self._waiting = {key: bytearray() for key in self._waiting}
        else:
            self._waiting = {}
        self._bytes = 0

    def sync(self) -> None:
        """Write what was added, and make it survive a crash of this machine."""
        self.flush()
        if self._file is not None:
            with suppress(OSError):
                self._file.flush()

    def _opened(self) -> RecordWriter:
        if self._file is None:
            folder = self._path.parent
            if folder is not None:
                with suppress(FileExistsError):
                    folder.mkdir()
            self._file = RecordWriter(self._path, salt=self._salt)
        return self._file

    def close(self) -> None:
        """Write the rest, and close the file."""
        self.flush()
        if self._file is not None:
            with suppress(OSError):  # a full disk, or a process that closed the descriptor
                self._file.close()


class Written(NamedTuple):
    """What an item wrote to one stream.

    Attributes:
        data: the bytes.
        block: the items among which it was written, if that is known of several together only.
        cut: whether some of it was left out.
    """

    data: bytes
    block: range | None
    cut: bool


class OutputFile:
    """Reads one file of output while it grows."""

    def __init__(self, path: Location, salt: int) -> None:
        """Begin at the start of a file whose headers have this salt."""
        self._path, self._salt = path, salt
        self._position = 0
        self._single: dict[tuple[int, int], list[tuple[int, records.Header]]] = {}
        self._blocks: list[tuple[int, records.Header]] = []

    def read(self, kind: Kind, item: int) -> Written:
        """Return what an item has written so far.

        Raises:
            OSError: there is no such file (yet), or it cannot be read.
            UnsafeRunFolder: it is not safe to read.
        """
        with opened(self._path) as (descriptor, status):
            self._find(descriptor, status.st_size)
            blocks = [each for each in self._blocks if each[1].kind == kind and each[1].first <= item < each[1].stop]
            found = sorted([*self._single.get((kind, item), ()), *blocks], key=lambda each: each[0])
            pieces = [records.read_payload(descriptor, header, offset) for offset, header in found]
        cut = any(not piece for piece in pieces)  # None: damaged
        last = blocks[-1][1] if blocks else None
        return Written(b"".join(filter(None, pieces)), last and range(last.first, last.stop), cut)

    def _find(self, descriptor: int, size: int) -> None:
        """Note the records that were appended since the last time."""
        while self._position < size:
            header = records.parse_header(read_at(descriptor, HEADER_SIZE, self._position), salt=self._salt)
            if header is None or self._position + HEADER_SIZE + header.length > size:
                return  # it is being written, or damaged
            place = self._position, header
            if header.number == 1:
                self._single.setdefault((header.kind, header.first), []).append(place)
            elif header.number:
                self._blocks.append(place)
            self._position += HEADER_SIZE + header.length
