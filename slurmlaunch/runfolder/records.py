"""Records and files: the framing of every binary file in a run folder, and how its files are opened and written.

A record is a header of 33 bytes and a payload::

    magic         4 bytes   0x93 "SLR"
    kind          u8        see `Kind`
    number        u32       how many items the record covers
    first         u64       the index of the first of them; the others follow it
    length        u64       bytes of the payload
    payload_crc   u32       CRC-32 of the payload
    header_crc    u32       CRC-32 of the salt and the 29 bytes before it

All numbers are little-endian. The salt is the run's token (`Manifest.run`, UTF-8) in ``items`` and the outcome files,
and empty elsewhere. A payload of several parts (`pack`) is their lengths, as ``number`` times u32, and then the parts;
a payload of one part is that part. The header has its own checksum so that a reader can trust ``length`` to step over
a damaged payload, and can tell a header from noise when it searches for the next one. It is salted in files that hold
the user's bytes, so that none of these are taken for a record: a value may be the content of another run's files.

Client and node use this module for everything that they read or write in a run folder. A pickle runs code, so no file
is read that another user owns or may write to, and no symbolic link is followed. A file either appears whole
(`write_whole`) or one writer appends records to it (`RecordWriter`). What the records mean is not known here.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import struct
import sys
import zlib
from array import array
from contextlib import contextmanager, suppress
from enum import IntEnum
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from slurmlaunch.errors import RunFolderError, UnsafeRunFolder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path
    from typing import Self

    Part = bytes | bytearray | memoryview

MAGIC = b"\x93SLR"
_FIELDS = struct.Struct("<4sBIQQI")
_CRC = struct.Struct("<I")
HEADER_SIZE = _FIELDS.size + _CRC.size


class Kind(IntEnum):
    """The content of a record's payload."""

    FUNCTION = 1
    """The pickled function."""
    ITEMS = 2
    """Pickled argument tuples, each on its own, packed."""
    COLUMN = 3
    """One pickle: the list of the argument tuples."""
    VALUES = 4
    """Pickled values, packed."""
    FAILURE = 5
    """One pickled failure, the outcome of each of the ``number`` items."""
    NOTE = 6
    """JSON, UTF-8."""
    LIST = 7
    """Item indices, each u64."""
    CANCELLED = 8
    """Nothing: the items of the header are cancelled."""
    CHECKPOINT = 9
    """One pickled (function, args, kwargs): the call that resumes the item."""
    SERIES = 10
    """Pickled values, packed, each of protocol 3 and without the STOP at its end, so that one pickle can hold all."""
    BUNDLE = 11
    """One pickled argument tuple, or one pickled value, with its large buffers (see `buffers`)."""
    SHARED = 12
    """The table of the buffers that the function refers to (see `buffers`)."""
    INTEGERS = 13
    """Values that are integers, each i64."""
    FLOATS = 14
    """Values that are floats, each f64 (IEEE 754)."""
    DEFINITION = 15
    """One definition that results refer to (see `user_classes`)."""
    MODULE = 16
    """The source of a module, or the content of its .pyc file (see `modules`)."""


class Header(NamedTuple):
    """A header, without its magic and its own checksum."""

    kind: int
    number: int
    first: int
    length: int
    payload_crc: int

    @property
    def stop(self) -> int:
        """One past the last item that the record covers."""
        return self.first + self.number

    def encode(self, salt: int = 0) -> bytes:
        """Return the bytes of the header; *salt* is the CRC-32 of the run's token, or 0."""
        fields = _FIELDS.pack(MAGIC, *self)
        return fields + _CRC.pack(zlib.crc32(fields, salt))


class Record(NamedTuple):
    """A whole record that was read: the position of its header in the file, in bytes, and the verified payload."""

    offset: int
    header: Header
    payload: memoryview


class Damage(NamedTuple):
    """A part of a file that is no whole record.

    Attributes:
        offset: its first byte.
        header: the header, if at least that is whole: its items are lost.
        stop: the position at which reading can continue.
    """

    offset: int
    header: Header | None
    stop: int


def encode(kind: int, payload: bytes, *, first: int = 0, count: int = 1, salt: int = 0) -> bytes:
    """Return a whole record."""
    return Header(kind, count, first, len(payload), zlib.crc32(payload)).encode(salt) + payload


def pack(parts: Sequence[bytes]) -> bytes:
    """Join the parts of a payload behind their lengths; a single part stays as it is."""
    if len(parts) == 1:
        return parts[0]
    return little_endian(array("I", map(len, parts))).tobytes() + b"".join(parts)


def unpack(payload: memoryview, count: int) -> list[memoryview]:
    """Return the parts of a packed payload, without copying them."""
    return [payload[a:b] for a, b in pairwise(boundaries(payload, count))]


def boundaries(payload: memoryview, count: int) -> list[int]:
    """Return the position of each part of a packed payload, and the end of the last one.

    Raises:
        ValueError: it is not packed from so many parts.
    """
    if count == 1:
        return [0, len(payload)]
    lengths = array("I")
    table = count * lengths.itemsize
    if table <= len(payload):
        lengths.frombytes(payload[:table])
        found = list(accumulate(little_endian(lengths), initial=table))
        if found[-1] == len(payload):
            return found
    raise ValueError(f"{len(payload)} bytes do not hold {count} parts")


def little_endian(numbers: array[Any]) -> array[Any]:
    """Return the array itself, its bytes swapped if the machine's order differs from that of records."""
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def parse_header(data: memoryview | bytes, position: int = 0, *, salt: int = 0) -> Header | None:
    """Read the header at a position; None if no whole header is there."""
    if len(data) - position < HEADER_SIZE:
        return None
    magic, *fields = _FIELDS.unpack_from(data, position)
    (crc,) = _CRC.unpack_from(data, position + _FIELDS.size)
    if magic != MAGIC or crc != zlib.crc32(data[position : position + _FIELDS.size], salt):
        return None
    return Header(*fields)


def scan(data: memoryview, base: int = 0, *, salt: int = 0) -> Iterator[Record | Damage]:
    """Read records from bytes that begin at offset *base* of a file.

    Yields each whole record, and a `Damage` for each part between them. A tail
    that may still be growing is a damage whose ``stop`` lies beyond the data, or,
    if not even its header is whole, one that ends with the data.
    """
    position = 0
    while position < len(data):
        header = parse_header(data, position, salt=salt)
        if header is None:
            stop = _next_header(data, position + 1, salt)
            yield Damage(base + position, None, base + stop)
            position = stop
            continue
        start = position + HEADER_SIZE
        stop = start + header.length
        payload = data[start:stop]
        if len(payload) == header.length and zlib.crc32(payload) == header.payload_crc:
            yield Record(base + position, header, payload)
        else:
            yield Damage(base + position, header, base + stop)
        position = stop


def _next_header(data: memoryview, position: int, salt: int) -> int:
    whole = data.obj
    raw = whole if isinstance(whole, bytes) and len(whole) == len(data) else bytes(data)
    while (position := raw.find(MAGIC, position)) != -1:
        if parse_header(data, position, salt=salt) is not None:
            return position
        position += 1
    return len(data)


class Entry(NamedTuple):
    """A record to be appended, its checksum computed, which for a large one takes as long as writing it."""

    header: Header
    parts: Sequence[Part]

    @classmethod
    def of(cls, kind: int, parts: Sequence[Part], *, first: int = 0, number: int = 0) -> Entry:
        """Compute length and checksum of a payload."""
        crc = 0
        for part in parts:
            crc = zlib.crc32(part, crc)
        return cls(Header(kind, number, first, sum(map(len, parts)), crc), parts)


class RecordWriter:
    """Appends records to a file that nobody else appends to."""

    def __init__(self, path: Path, *, salt: int = 0, flags: int = os.O_CREAT) -> None:
        """Open the file, whose headers have this salt.

        *flags* are ``O_CREAT`` to create the file if it is missing, with ``O_EXCL`` to insist on that; 0 to open one
        that exists.
        """
        self.path, self._salt = path, salt
        self._opened = self._open(flags)
        self._identity = identity(self._opened)
        self._end = self._flushed = os.fstat(self._opened).st_size
        self._torn = False

    def _open(self, flags: int) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | flags, 0o600)

    @property
    def descriptor(self) -> int:
        """The descriptor of the file, opened again if the user's function closed it: another file may have its number.

        Raises:
            OSError: it cannot be opened, or another file is there.
        """
        if identity(self._opened) != self._identity:
            self._opened = self._open(os.O_NOFOLLOW)
            if identity(self._opened) != self._identity:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(self.path))
        return self._opened

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, *entries: Entry) -> None:
        """Append records.

        Raises:
            OSError: they could not be written; the part that was written is cut off, now or before the next record.
        """
        parts = [part for entry in entries for part in (entry.header.encode(self._salt), *entry.parts)]
        with naming(self.path):
            if self._torn:
                os.ftruncate(self.descriptor, self._end)
            self._torn = True
            self._end = _write_all(self.descriptor, parts, self._end)
            self._torn = False

    def note(self, **content: Any) -> None:
        """Append a record of kind NOTE."""
        self.append(Entry.of(Kind.NOTE, [json.dumps(content).encode()]))

    def cut(self) -> None:
        """Cut off the unfinished record that another process appended through this descriptor."""
        with naming(self.path):
            os.ftruncate(self.descriptor, self._end)

    def flush(self) -> None:
        """Make all records survive a crash of this machine."""
        if self._flushed != self._end:
            with naming(self.path):
                os.fsync(self.descriptor)
            self._flushed = self._end

    def close(self) -> None:
        """Flush and close."""
        try:
            self.flush()
        finally:
            os.close(self.descriptor)


def identity(descriptor: int) -> tuple[int, int]:
    """Return the device and the inode behind a descriptor, none if it is closed.

    The user's function may close all descriptors, as daemons do; files that it opens then have their numbers.
    """
    try:
        status = os.fstat(descriptor)
    except OSError:
        return -1, -1
    return status.st_dev, status.st_ino


def _write_all(descriptor: int, parts: Sequence[Part], end: int) -> int:
    """Append to a file that is *end* bytes long; return its new length. On an error, cut the written part off."""
    pending = [memoryview(part).cast("B") for part in parts if len(part)]
    stop = end + sum(len(part) for part in pending)
    try:
        done = 0
        while done < len(pending):
            written = os.writev(descriptor, pending[done : done + _IOV_MAX])
            while done < len(pending) and written >= len(pending[done]):
                written -= len(pending[done])
                done += 1
            if done < len(pending):
                pending[done] = pending[done][written:]
    except OSError:
        with suppress(OSError):  # the storage may refuse this, too
            os.ftruncate(descriptor, end)
        raise
    return stop


_IOV_MAX = 64


def read_payload(descriptor: int, header: Header, offset: int) -> bytes | None:
    """Return the payload of the record at an offset; None if it is damaged."""
    payload = read_at(descriptor, header.length, offset + HEADER_SIZE)
    return payload if len(payload) == header.length and zlib.crc32(payload) == header.payload_crc else None


def read_records(path: Path) -> Iterator[Record | Damage]:
    """Read the records of a whole file without salt, on the conditions of `open_owned`."""
    return scan(memoryview(read_owned(path)))


# Files: opened only if they are safe to read, and written so that they appear whole.

_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
_BESIDE = ".new"


def check_folder(path: Path) -> None:
    """Refuse a folder that another user owns or may write to.

    Raises:
        RunFolderError: it does not exist, or is no folder.
        UnsafeRunFolder: it is not safe to read from.
    """
    try:
        status = path.lstat()
    except OSError as error:
        msg = f"no run folder at {path}: {error.strerror}"
        raise RunFolderError(msg, path=str(path)) from error
    if stat.S_ISLNK(status.st_mode):
        msg = f"{path} is a symbolic link; name the folder that it points to"
        raise UnsafeRunFolder(msg, path=str(path))
    if not stat.S_ISDIR(status.st_mode):
        msg = f"{path} is not a folder"
        raise RunFolderError(msg, path=str(path))
    _check(status, path)


def open_owned(path: Path) -> tuple[int, os.stat_result]:
    """Open a file for reading and return its descriptor and status.

    Raises:
        OSError: it cannot be opened.
        UnsafeRunFolder: another user owns it or may write to it, or it is a symbolic link.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        if path.is_symlink():
            msg = f"{path} is a symbolic link, which may lead out of the run folder: it is not read"
            raise UnsafeRunFolder(msg, path=str(path)) from None
        raise
    status = os.fstat(descriptor)
    try:
        _check(status, path)
    except UnsafeRunFolder:
        os.close(descriptor)
        raise
    return descriptor, status


@contextmanager
def opened(path: Path) -> Iterator[tuple[int, os.stat_result]]:
    """Open a file as `open_owned` does, and close it at the end."""
    found = open_owned(path)
    try:
        yield found
    finally:
        os.close(found[0])


def read_owned(path: Path) -> bytes:
    """Return the content of a file, on the conditions of `open_owned`."""
    with opened(path) as (descriptor, status):
        return read_at(descriptor, status.st_size, 0)


def _check(status: os.stat_result, path: Path) -> None:
    if status.st_uid != os.geteuid():
        msg = f"{path} belongs to user {status.st_uid}, not to you: nothing in it is unpickled"
        raise UnsafeRunFolder(msg, path=str(path))
    if status.st_mode & _OTHERS_MAY_WRITE:
        msg = (
            f"{path} may be written by others (mode {stat.S_IMODE(status.st_mode):o}): nothing in it is unpickled. "
            f"If you trust its content: chmod -R go-w"
        )
        raise UnsafeRunFolder(msg, path=str(path))


def read_at(descriptor: int, length: int, offset: int) -> bytes:
    """Return *length* bytes of a file, or fewer at its end; one ``pread`` may stop short of 2 GiB."""
    if length > _PLAUSIBLE or offset > _PLAUSIBLE:  # Python allocates so much before it reads
        length = bytes_left(descriptor, length, offset)
        if not length:
            return b""
    data = os.pread(descriptor, length, offset)
    while len(data) < length and (more := os.pread(descriptor, length - len(data), offset + len(data))):
        data += more
    return data


def bytes_left(descriptor: int, length: int, offset: int) -> int:
    """Return *length*, or how many bytes a file has from an offset on, if that is less; a damaged file names any."""
    return max(0, min(length, os.fstat(descriptor).st_size - offset))


_PLAUSIBLE = 1 << 22
"""A length and an offset, in bytes, that need no check: a file without so many causes neither an error nor a cost."""


def write_whole(path: Path, parts: Iterable[Part]) -> None:
    """Write a file beside its place, flush it, and rename it into its place.

    Raises:
        OSError: it could not be written (disk full, quota, ...); nothing is left behind.
    """
    beside = path.with_name(path.name + _BESIDE)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for part in parts:
                with naming(path):
                    file.write(part)
                del part  # it may be large, and the next one is made only now
            with naming(path):
                file.flush()
                os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def link_unchanged(source: Path, status: os.stat_result, path: Path) -> bool:
    """Give a file of this process a further name, unless it is no longer as *status* says; return whether it has it."""
    try:
        found = source.lstat()
        if (found.st_ino, found.st_mtime_ns, found.st_size) != (status.st_ino, status.st_mtime_ns, status.st_size):
            return False
        path.hardlink_to(source)
    except OSError:  # it is gone, on another file system, or has too many names
        return False
    return True


def create(path: Path, data: bytes) -> os.stat_result:
    """Create a file that does not exist, for one writer alone; return its status.

    Raises:
        FileExistsError: it exists.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with naming(path):
            os.write(descriptor, data)
            return os.fstat(descriptor)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def write_once(path: Path, data: bytes) -> bool:
    """Write a file that only one process can make; False if another process was first.

    By a link, which is one step on every file system; with ``O_EXCL`` the file
    would exist for a moment and be empty.
    """
    import secrets  # here, because a node must start fast

    beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_BESIDE}")
    write_whole(beside, [data])
    try:
        path.hardlink_to(beside)
    except FileExistsError:
        return False
    finally:
        beside.unlink()
    return True


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file's name to the system's errors, which a full disk or a quota leaves out."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
