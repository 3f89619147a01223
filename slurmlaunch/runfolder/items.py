"""The items: the pickled argument tuples of a run, written once, in blocks.

``items`` holds the blocks, each a record (see `records`). ``items.index`` holds two u64 per block, the first item and
the offset of its record, so that a task finds its slice by bisection and reads little else.

Each item is pickled on its own, so that no item sees another one change its arguments. Only if
all arguments of a block are plain immutable values does one pickle hold the whole block: nothing can be shared there,
and it costs a tenth. An item with large arrays is a block of its own, with the arrays beside the pickle (`buffers`).

Clients write items, the processes that run them read them. Which items a task has is known to `plan`.
"""

from __future__ import annotations

import errno
import io
import os
import pickle
import struct
import sys
from bisect import bisect_right
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypeVar

from slurmlaunch.errors import ResultLost
from slurmlaunch.outcome import PICKLE_PROTOCOL, PLAIN, Bundle
from slurmlaunch.runfolder import records
from slurmlaunch.runfolder.buffers import bundle_parts, read_bundle
from slurmlaunch.runfolder.files import Opened, open_owned, read_owned, sha256_of, write_whole
from slurmlaunch.runfolder.records import HEADER_SIZE, Entry, Kind
from slurmlaunch.runfolder.storage import Patience, named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from slurmlaunch.runfolder.files import Location, Part
    from slurmlaunch.runfolder.layout import RunFolder

    Arguments = tuple[Any, ...]
    Pickled = bytes | Bundle
    Block = tuple[Kind, int, Sequence[Part]]

T = TypeVar("T")

_ENTRY = struct.Struct("<QQ")

BLOCK_ITEMS = 4096
"""The most items of a block, which a process always reads as a whole."""

BLOCK_BYTES = 1 << 18
"""Bytes after which a block is closed, so that a slice reads little beside its own items."""


def write_items(folder: RunFolder, arguments: Iterable[Arguments], dumps: Callable[[Arguments, int], Pickled]) -> int:
    """Write the items while iterating over their positional arguments; return how many there were.

    *dumps* pickles the arguments of one item, whose number it gets, too, large buffers apart or not.

    Raises:
        OSError: they could not be written; neither file is left behind.
    """
    total, folder.index_sha256 = _write(folder.items, folder.items_index, folder.salt, arguments, dumps)
    return total


def write_further(
    file: Location, salt: int, arguments: Iterable[Arguments], dumps: Callable[[Arguments, int], Pickled], *, first: int
) -> str:
    """Write items that a round adds to a run, beginning with the number *first*; return the SHA-256 of their index."""
    return _write(file, file.beside(f"{file.name}.index"), salt, arguments, dumps, first=first)[1]


def _write(
    file: Location, index_file: Location, salt: int, arguments: Iterable[Arguments],
    dumps: Callable[[Arguments, int], Pickled], *, first: int = 0,
) -> tuple[int, str]:  # fmt: skip
    index: list[bytes] = []
    total = first

    def blocks() -> Iterator[Part]:
        nonlocal total
        offset = 0
        for kind, count, parts in _blocks(arguments, dumps, first):
            index.append(_ENTRY.pack(total, offset))
            header = Entry.of(kind, parts, first=total, number=count).header
            yield header.encode(salt)
            yield from parts
            del parts  # so that large ones are freed before the next are made
            total += count
            offset += HEADER_SIZE + header.length

    write_whole(file, blocks())
    data = b"".join(index)
    write_whole(index_file, [data])
    return total - first, sha256_of(data)


def _blocks(arguments: Iterable[Arguments], dumps: Callable[[Arguments, int], Pickled], first: int) -> Iterator[Block]:
    rows = iter(arguments)
    number = 1
    while block := _next_items(rows, number):
        size = 0
        immutable = PLAIN.issuperset(map(type, chain.from_iterable(block)))
        for kind, count, parts in _columns(block) if immutable else _item_by_item(block, dumps, first):
            size += sum(map(len, parts))
            yield kind, count, parts
            del parts
        # As many as fill a block of the last one's size, and no more: a generator may make large ones.
        number = max(1, min(BLOCK_ITEMS, _GROWTH * number, len(block) * BLOCK_BYTES // (2 * size)))
        first += len(block)
        del block


def _next_items(rows: Iterator[Arguments], most: int) -> list[Arguments]:
    """Take up to *most* items, fewer if a sample shows that they are large."""
    block: list[Arguments] = []
    while some := list(islice(rows, min(_SAMPLE, most - len(block)))):
        block += some
        if sum(map(sys.getsizeof, some[-1])) * len(some) > BLOCK_BYTES:
            break
    return block


_SAMPLE = 64

_GROWTH = 8
"""How many times as many items are taken as the last time, at most; the first one is taken alone."""


def _columns(block: list[Arguments]) -> Iterator[Block]:
    column = pickle.dumps(block, PICKLE_PROTOCOL)
    if len(column) <= BLOCK_BYTES or len(block) == 1:
        yield Kind.COLUMN, len(block), [column]
    else:
        half = len(block) // 2
        yield from _columns(block[:half])
        yield from _columns(block[half:])


def _item_by_item(block: list[Arguments], dumps: Callable[[Arguments, int], Pickled], first: int) -> Iterator[Block]:
    parts: list[bytes] = []
    size = 0
    for number, row in enumerate(block, first):
        part = dumps(row, number)
        if parts and (size + len(part) > BLOCK_BYTES or isinstance(part, Bundle)):
            yield Kind.ITEMS, len(parts), [records.pack(parts)]
            parts, size = [], 0
        if isinstance(part, Bundle):
            yield Kind.BUNDLE, 1, bundle_parts(part)
        else:
            parts.append(part)
            size += len(part)
    if parts:
        yield Kind.ITEMS, len(parts), [records.pack(parts)]


class ItemReader:
    """Reads the items of a run, one block at a time.

    The file is opened once, and the index is kept. Nothing depends on a file position, so a forked process may continue
    to read.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._patience = Patience()
        self._files = folder.items_of(0)
        self._read(self._open)
        self._index: bytes | None = None
        self._arguments_of = self.calling(lambda *arguments: arguments)

    def _open(self) -> None:
        self._opened = Opened(*open_owned(self._files[0]))
        self._items, self._size = self._opened.number, self._opened.status.st_size

    def _read_index(self) -> bytes:
        """Return the index: 16 bytes for each block, and so little beside the items."""
        _, file, sha256 = self._files
        index = read_owned(file)
        if sha256 and sha256_of(index) != sha256:
            raise ResultLost("the index of the items is damaged on disk", file=str(file), offset=0)
        return index

    def close(self) -> None:
        """Close the file."""
        self._opened.close()

    def __getitem__(self, item: int) -> Arguments:
        """Return the arguments of an item.

        Raises:
            ResultLost: they cannot be read.
            Exception: their unpickling raised this.
        """
        return self._arguments_of(item)  # type: ignore[no-any-return]

    def calling(self, function: Callable[..., Any]) -> Callable[[int], Any]:
        """Return a function that calls *function* with the arguments of an item: faster than reading them first."""
        first = stop = 0
        row: Callable[[int], Arguments]

        def call(item: int) -> Any:
            nonlocal first, stop, row
            if not first <= item < stop:
                header, row = self._read(partial(self._block, item))
                first, stop = header.first, header.stop
            return function(*row(item - first))

        return call

    def block(self, item: int, most: int | None = None) -> tuple[range, Callable[[int], Arguments]] | None:
        """Return the items of the block that holds an item, and their arguments by the position in it.

        Returns:
            None if the block has more bytes than *most*. The arguments of a block of one item may be read late.

        Raises:
            ResultLost: the block cannot be read.
        """
        if most is not None and self._read(partial(self._find, item))[0].length > most:
            return None
        header, row = self._read(partial(self._block, item))
        return range(header.first, header.stop), row

    def _read(self, work: Callable[[], T]) -> T:
        """Return what *work* reads; wait while the storage fails.

        Raises:
            StorageFailure: it fails for too long.
        """

        def try_once() -> T:
            try:
                return work()
            except OSError as error:
                if error.errno == errno.ESTALE:  # only a new handle can work again
                    stale = self._opened
                    self._open()
                    stale.close()
                raise

        try:
            return self._patience.run(try_once)
        except OSError as error:
            raise named(error) from error

    def _block(self, item: int) -> tuple[records.Header, Callable[[int], Arguments]]:
        """Return the header of the block that holds an item, and the arguments by the position in the block."""
        header, offset = self._find(item)
        if header.kind == Kind.BUNDLE:
            return header, lambda _: self._unbundled(header, offset)
        payload = records.read_payload(self._items, header, offset)
        if payload is None:
            raise self._damaged(offset)
        try:
            if header.kind == Kind.COLUMN:
                return header, _column(payload, header.number).__getitem__
            parts = records.unpack(memoryview(payload), header.number)
        except ValueError as error:
            raise self._damaged(offset) from error
        return header, lambda position: self._tuple(_unpickled(parts[position]), offset)

    def _entry(self, block: int) -> tuple[int, int]:
        if not self._index or len(self._index) < _ENTRY.size:
            raise self._damaged(self._size)
        first, offset = _ENTRY.unpack_from(self._index, block * _ENTRY.size)
        return first, offset

    def _find(self, item: int) -> tuple[records.Header, int]:
        """Return the header of the block that holds the item, and its offset."""
        files = self._folder.items_of(item) if self._folder.further else self._files
        is_open = self._opened.is_there()
        if files[0] != self._files[0]:
            self.close()
        if files[0] != self._files[0] or not is_open:  # the user's function may have closed it
            self._files, self._index = files, None
            self._open()
        if self._index is None:
            self._index = self._read_index()
        block = bisect_right(range(len(self._index) // _ENTRY.size), item, key=lambda block: self._entry(block)[0]) - 1
        _, offset = self._entry(max(block, 0))
        data = os.pread(self._items, HEADER_SIZE, offset) if offset < self._size else b""
        header = records.parse_header(data, salt=self._folder.salt)
        if header is None or not header.first <= item < header.stop:
            raise self._damaged(offset)  # the index has no checksum: the block's own header counts
        return header, offset

    def _unbundled(self, header: records.Header, offset: int) -> Arguments:
        bundle = self._read(lambda: read_bundle(self._items, offset + HEADER_SIZE, header.length, header.payload_crc))
        if bundle is None:
            raise self._damaged(offset)
        return self._tuple(_unpickled(bundle.pickled, bundle.buffers), offset)

    def _tuple(self, found: object, offset: int) -> Arguments:
        if type(found) is not tuple:
            raise self._damaged(offset)
        return found

    def _damaged(self, offset: int) -> ResultLost:
        return ResultLost("the arguments of the item are damaged on disk", file=str(self._files[0]), offset=offset)


def _column(payload: bytes, number: int) -> list[Arguments]:
    """Return the arguments of the items of a block, all of them plain values.

    Raises:
        ValueError: it is no such block.
    """
    try:
        column = pickle.load(io.BytesIO(payload))
    except Exception as error:  # what a damaged pickle raises is not specified
        raise ValueError(f"no column: {error}") from error
    if type(column) is not list or len(column) != number or set(map(type, column)) != {tuple}:
        raise ValueError(f"no column of {number} items")
    return column


def _unpickled(pickled: bytes | memoryview, buffers: Iterable[Any] = ()) -> object:
    try:
        return pickle.loads(pickled, buffers=buffers)
    except ImportError as error:
        error.msg = f"{error}, which the item's arguments need. {advice_on_import(error)}"
        error.args = (error.msg,)
        raise


def advice_on_import(error: ImportError) -> str:
    """Return what to do about a module that a pickle needs, and that cannot be imported on the node."""
    if not error.name:
        return ""
    package = error.name.partition(".")[0]
    return (
        f"Install {package} for {sys.executable} on the node or, if it is a module of your own, "
        f'let its code travel with the function: by_value=["{package}"].'
    )
