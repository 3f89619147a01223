"""The user's modules as they were at the submission: the file ``modules``, its writer and its reader.

The client writes it (`client.code`), each process of a task that runs user code imports from it (`node.finder`), and
clients compare it with the files of now. An import system is no concern of this module.

The file begins with a NOTE, the index: for each module its name and where its records are. They follow, each of kind
MODULE: the source as it was, and the content of the ``.pyc`` file for it. A process reads the index and what it
imports, and no source unless a traceback needs it.
"""

from __future__ import annotations

import json
import zlib
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from slurmlaunch.runfolder import forms, records
from slurmlaunch.runfolder.files import Opened, open_owned, read_at, sha256_of, write_whole
from slurmlaunch.runfolder.records import HEADER_SIZE, Kind, parse_header
from slurmlaunch.runfolder.storage import Patience

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from slurmlaunch.runfolder.files import Location


class Module(NamedTuple):
    """One module in the index.

    A module with neither source nor file is a namespace package, or only the parent of another module. One with a file
    and no source is an extension module, which stays where it is.
    """

    name: str
    file: str | None  # its __file__
    search: Sequence[str] | None  # the __path__ of a package
    mtime: int = 0  # of the file, in nanoseconds
    size: int = 0  # of the file, in bytes
    offset: int | None = None  # of its source's record, from the end of the index
    code: int = 0  # the length of its .pyc file, whose record follows the source's; 0: it has none
    sha256: str = ""  # of its source
    code_sha256: str = ""  # of its .pyc file

    @property
    def is_stored(self) -> bool:
        """True if the file has its source."""
        return self.offset is not None

    @property
    def is_extension(self) -> bool:
        """True for an extension module."""
        return self.offset is None and self.file is not None


class Source(NamedTuple):
    """The stored content of a module."""

    text: bytes
    pyc: bytes  # the content of its .pyc file; empty if it cannot be compiled
    sha256: str


def write_modules(path: Location, modules: Sequence[tuple[Module, Source | None]], optimize: int) -> str:
    """Write the file; return the SHA-256 of its index, in which offsets, lengths and hashes of the modules are set.

    Args:
        path: the file.
        modules: each module, with its content if it is to be stored.
        optimize: the optimization level for which they are compiled, as in `sys.flags`.

    Raises:
        OSError: it could not be written.
    """
    index, contents, position = [], [], 0
    for module, source in modules:
        if source is None:
            index.append(module)
            continue
        code_sha256 = sha256_of(source.pyc) if source.pyc else ""
        module = module._replace(size=len(source.text), offset=position, code=len(source.pyc))  # noqa: PLW2901
        index.append(module._replace(sha256=source.sha256, code_sha256=code_sha256))
        parts = [records.encode(Kind.MODULE, part) for part in (source.text, source.pyc) if part or part is source.text]
        contents += parts
        position += sum(map(len, parts))
    head = json.dumps({"optimize": optimize, "modules": index}, separators=(",", ":")).encode()
    write_whole(path, [records.encode(Kind.NOTE, head), *contents])
    return sha256_of(head)


class ModulesReader:
    """Reads the file: the index now, and modules when they are asked for.

    Attributes:
        path: the file.
        optimize: the optimization level for which the modules are compiled.
    """

    def __init__(self, path: Location, sha256: str = "") -> None:
        """Read the index, which has this SHA-256 if that is known: then each module is compared with its own.

        Raises:
            OSError: the file cannot be read.
            RunFolderError: it is damaged, or missing.
            UnsafeRunFolder: it is not safe to read.
        """
        self.path, self._is_known = path, bool(sha256)
        try:
            self._opened = Opened(*open_owned(path))
        except FileNotFoundError as error:
            raise forms.damaged(path, "it is missing") from error
        try:
            index, self._contents = self._read_index(sha256)
            self._modules = {each.name: each for each in (Module(*fields) for fields in index["modules"])}
            self.optimize = index["optimize"]
        except BaseException:
            self.close()
            raise

    def _read_index(self, sha256: str) -> tuple[Any, int]:
        """Return the content of the index, and the position behind it."""
        header = parse_header(read_at(self._opened.number, HEADER_SIZE, 0))
        if header is None:
            raise forms.damaged(self.path, "no index of the modules is there")
        content = forms.parse(self._read(0, header.length, sha256), _INDEX, self.path)
        return content, HEADER_SIZE + header.length

    def __iter__(self) -> Iterator[Module]:
        """Iterate over the index."""
        return iter(self._modules.values())

    def find(self, name: str) -> Module | None:
        """Return the module of this name, if the file has one."""
        return self._modules.get(name)

    def source(self, module: Module) -> bytes:
        """Return the source of a stored module.

        Raises:
            RunFolderError: it is damaged.
            OSError: it cannot be read.
        """
        return self._read(self._position(module), module.size, self._is_known * module.sha256)

    def code(self, module: Module) -> bytes:
        """Return the content of the ``.pyc`` file of a stored module, empty if it has none; otherwise as `source`."""
        if not module.code:
            return b""
        position = self._position(module) + HEADER_SIZE + module.size
        return self._read(position, module.code, self._is_known * module.code_sha256)

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of each stored source, by module."""
        return {each.name: each.sha256 for each in self if each.is_stored}

    def _position(self, module: Module) -> int:
        if module.offset is None:
            raise forms.damaged(self.path, f"the source of {module.name} is missing")
        return self._contents + module.offset

    def _read(self, position: int, length: int, sha256: str) -> bytes:
        """Return the payload of the record at a position, whose length is known, and perhaps its SHA-256."""
        payload = None
        with suppress(OSError):
            payload = self._payload(position, length)
        if payload is None:
            payload = Patience().run(partial(self._read_anew, position, length))
        if payload is None or (sha256 and sha256_of(payload) != sha256):
            raise forms.damaged(self.path, "a module is damaged, or is not the one that was submitted", position)
        return payload

    def _read_anew(self, position: int, length: int) -> bytes | None:
        """Read through another descriptor: the user's function may have closed this one, or a server lost it."""
        opened = Opened(*open_owned(self.path))
        self._opened.close()
        self._opened = opened
        return self._payload(position, length)

    def _payload(self, position: int, length: int) -> bytes | None:
        data = memoryview(read_at(self._opened.number, HEADER_SIZE + length, position))
        header, payload = parse_header(data), data[HEADER_SIZE:]
        whole = header is not None and header.length == length and zlib.crc32(payload) == header.payload_crc
        return bytes(payload) if whole else None

    def close(self) -> None:
        """Close the file."""
        self._opened.close()


_INDEX = forms.Keys(
    {
        "optimize": forms.integer,
        "modules": forms.listing(
            forms.row(
                forms.text,
                forms.null_or(forms.text),
                forms.null_or(forms.listing(forms.text)),
                forms.count,
                forms.count,
                forms.null_or(forms.count),
                forms.count,
                forms.text,
                forms.text,
            )
        ),
    }
)


# Changes.


class Change(NamedTuple):
    """A module that is not what it was."""

    file: str
    where: str  # "lines 12-14", "deleted", or nothing for an extension module


def changes_between(old: ModulesReader, new: ModulesReader | None = None) -> list[Change]:
    """Return the modules that have changed: in another file of modules, or else in their own files on disk.

    Raises:
        OSError: a file cannot be read.
        RunFolderError: it is damaged.
    """
    before, after = old.hashes(), new.hashes() if new else {}
    found = []
    for module in old:
        if module.file is None or (module.is_stored and before[module.name] == after.get(module.name)):
            continue
        other = new.find(module.name) if new else None
        if not module.is_stored:
            if not _is_unchanged(module):
                found.append(Change(module.file, "" if Path(module.file).exists() else DELETED))
            continue
        if new and other and other.is_stored:
            text: bytes | None = new.source(other)
        elif _is_unchanged(module):
            continue
        else:
            text = _content(module.file)
        source = old.source(module)
        if text != source:
            found.append(Change(module.file, DELETED if text is None else _lines_between(source, text)))
    return found


DELETED = "deleted"


def _is_unchanged(module: Module) -> bool:
    try:
        status = Path(module.file or "").stat()
    except OSError:
        return False
    return (status.st_mtime_ns, status.st_size) == (module.mtime, module.size)


def _content(file: str) -> bytes | None:
    with suppress(FileNotFoundError, NotADirectoryError):
        return Path(file).read_bytes()
    return None


def _lines_between(old: bytes, new: bytes) -> str:
    """Return which lines of the new text differ: "lines 12-14, 20"."""
    from difflib import SequenceMatcher  # here, because a node must start fast

    matcher = SequenceMatcher(None, old.splitlines(), new.splitlines(), autojunk=False)
    ranges = [(start + 1, max(stop, start + 1)) for tag, _, _, start, stop in matcher.get_opcodes() if tag != "equal"]
    text = ", ".join(f"{first}-{last}" if last > first else f"{first}" for first, last in ranges)
    return f"line{'s' * (text != f'{ranges[0][0]}')} {text}" if ranges else "line ends"
