"""Large buffers on disk: those of one function for all its processes, and those of one item or value.

The buffers that the function of a run refers to are written once, each at the start of a page, into the file
``function.buffers``. Every process maps that file, so that one machine holds its bytes once. Their table is a record
beside the function: per buffer its offset and its length, both u64, and the CRC-32 of its bytes, u32, little-endian.

An item or a value with large buffers is one record of kind BUNDLE. Its payload::

    pickled   u64       bytes of the pickle
    number    u64       how many buffers
    lengths   u64 each  bytes of each buffer; the top bit marks a read-only one
    the pickle, and then the buffers

Buffers are in the order in which the pickle refers to them. A bundle's reader reads each buffer directly into its
final memory, so that no byte is held twice. `slurmlaunch.runfolder.function`, ``items`` and ``outcomes`` use this
module; it unpickles nothing.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from slurmlaunch.errors import NodeStartError, SlurmlaunchError
from slurmlaunch.outcome import Bundle
from slurmlaunch.runfolder.files import bytes_left, opened, read_at, write_whole
from slurmlaunch.runfolder.storage import named, status_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from slurmlaunch.runfolder.files import Location, Part

SHARED = 1 << 20
"""Bytes from which on a buffer of the function is shared. A smaller one costs next to nothing in each process, and the
function may write to it."""

_PAGE = 1 << 12
_PIECE = 1 << 22
"""Bytes that are read at once to compute a checksum."""

_ENTRY = struct.Struct("<QQI")
_NUMBERS = struct.Struct("<QQ")
_LENGTH = struct.Struct("<Q")
_READ_ONLY = 1 << 63


# The buffers of a function.


class Extent(NamedTuple):
    """The bytes of one shared buffer in its file, and their CRC-32."""

    offset: int
    length: int
    crc: int


def write_shared(path: Location, buffers: Sequence[Part]) -> bytes:
    """Write the buffers of a function; return their table.

    Raises:
        OSError: they could not be written (disk full, quota, ...); nothing is left behind.
    """
    sizes = [-(-len(buffer) // _PAGE) * _PAGE for buffer in buffers]
    padded = ((buffer, bytes(size - len(buffer))) for size, buffer in zip(sizes, buffers, strict=True))
    write_whole(path, (part for pair in padded for part in pair))
    offsets = accumulate(sizes[:-1], initial=0)
    return b"".join(
        _ENTRY.pack(offset, len(each), zlib.crc32(each)) for offset, each in zip(offsets, buffers, strict=False)
    )


class SharedBuffers:
    """The buffers of a function on disk."""

    def __init__(self, path: Location, table: bytes | memoryview) -> None:
        """Read their table.

        Raises:
            NodeStartError: it is damaged.
        """
        self.path = path
        if len(table) % _ENTRY.size:
            raise self._damaged(0)
        self.extents = [Extent(*entry) for entry in _ENTRY.iter_unpack(table)]

    def check(self) -> Iterator[None]:
        """Verify the checksums, yielding after each piece; one process of a machine does so for all.

        Raises:
            NodeStartError: a buffer is damaged or missing, or others may have changed it.
        """
        with self._opened() as descriptor:
            for extent in self.extents:
                crc = 0
                for piece in _pieces(descriptor, extent.offset, extent.length):
                    crc = zlib.crc32(piece, crc)
                    yield
                if crc != extent.crc:
                    raise self._damaged(extent.offset)

    def map(self, *, writable: bool = False) -> list[memoryview]:
        """Return the buffers, as memory that all processes of a machine share; `check` is not repeated.

        Args:
            writable: whether to let the process write, each page that it writes to becoming its own copy.

        Raises:
            NodeStartError: the file is missing or too short, or others may have changed it.
        """
        with self._opened() as descriptor:
            memory = _mapped(descriptor, writable=writable)
        return [memory[extent.offset : extent.offset + extent.length] for extent in self.extents]

    @contextmanager
    def _opened(self) -> Iterator[int]:
        with ExitStack() as stack:
            try:
                descriptor, status = stack.enter_context(opened(self.path))
            except (OSError, SlurmlaunchError) as error:
                if status_of(error) is not None:
                    raise named(error) from error
                raise NodeStartError(f"the function's arrays cannot be read: {error}") from error
            if any(extent.offset + extent.length > status.st_size for extent in self.extents):
                raise self._damaged(status.st_size)  # reading the missing part of a mapping would be a SIGBUS
            yield descriptor

    def _damaged(self, offset: int) -> NodeStartError:
        return NodeStartError(f"the function's arrays on disk are damaged: {self.path}, at byte {offset}")


def _mapped(descriptor: int, *, writable: bool) -> memoryview:
    access = mmap.ACCESS_COPY if writable else mmap.ACCESS_READ
    try:
        return memoryview(mmap.mmap(descriptor, 0, access=access))
    except OSError:  # a file system without mappings: then each process has its own copy
        memory = memoryview(bytearray(os.fstat(descriptor).st_size))
        _read_into(memory, descriptor, 0)
        return memory if writable else memory.toreadonly()


def _pieces(descriptor: int, offset: int, length: int) -> Iterator[memoryview]:
    """Yield part of a file in pieces, each valid until the next one, and less if the file ends before."""
    buffer = memoryview(bytearray(min(length, _PIECE)))
    stop = offset + length
    while offset < stop:
        count = os.preadv(descriptor, [buffer[: stop - offset]], offset)
        if not count:
            return
        yield buffer[:count]
        offset += count


def checksum(descriptor: int, offset: int, length: int) -> int:
    """Return the CRC-32 of part of a file, without holding more than a piece of it."""
    crc = 0
    for piece in _pieces(descriptor, offset, length):
        crc = zlib.crc32(piece, crc)
    return crc


# Bundles.


def bundle_parts(bundle: Bundle) -> list[Part]:
    """Return the payload of a bundle's record, in parts; the buffers are not copied."""
    lengths = [len(buffer) | (_READ_ONLY if memoryview(buffer).readonly else 0) for buffer in bundle.buffers]
    table = _NUMBERS.pack(len(bundle.pickled), len(lengths)) + b"".join(map(_LENGTH.pack, lengths))
    return [table, bundle.pickled, *bundle.buffers]


def read_bundle(descriptor: int, offset: int, length: int, crc: int) -> Bundle | None:
    """Read the payload of a bundle's record; None if it is damaged.

    A read-only buffer becomes ``bytes``, any other one ``bytearray``, as for pickle itself: nothing else refers to
    their memory.
    """
    if bytes_left(descriptor, length, offset) < length:
        return None
    table, lengths = _read_table(descriptor, offset, length)
    if not lengths or sum(entry & ~_READ_ONLY for entry in lengths) + len(table) != length:
        return None  # found out before so much memory is allocated
    parts: list[bytes | bytearray] = []
    position, found = offset + len(table), zlib.crc32(table)
    for entry in lengths:
        parts.append(_read_part(descriptor, entry & ~_READ_ONLY, position, read_only=bool(entry & _READ_ONLY)))
        position += len(parts[-1])
        found = zlib.crc32(parts[-1], found)
    return Bundle(bytes(parts[0]), parts[1:]) if found == crc else None


def _read_table(descriptor: int, offset: int, length: int) -> tuple[bytes, list[int]]:
    """Read the lengths of the pickle and the buffers; none if they are impossible."""
    table = read_at(descriptor, min(length, _NUMBERS.size), offset)
    if len(table) < _NUMBERS.size:
        return b"", []
    pickled, number = _NUMBERS.unpack(table)
    size = number * _LENGTH.size
    if _NUMBERS.size + size + pickled > length:
        return b"", []
    table += read_at(descriptor, size, offset + _NUMBERS.size)
    whole = len(table) // _LENGTH.size * _LENGTH.size
    return table, [pickled | _READ_ONLY, *(each for (each,) in _LENGTH.iter_unpack(table[_NUMBERS.size : whole]))]


def _read_part(descriptor: int, length: int, offset: int, *, read_only: bool) -> bytes | bytearray:
    if read_only:
        return read_at(descriptor, length, offset)
    part = bytearray(length)
    with memoryview(part) as memory:
        _read_into(memory, descriptor, offset)
    return part


def _read_into(memory: memoryview, descriptor: int, offset: int) -> None:
    """Fill memory from a file; beyond the end of the file it stays as it was."""
    done = 0
    while done < len(memory):
        count = os.preadv(descriptor, [memory[done:]], offset + done)
        if not count:
            return
        done += count
