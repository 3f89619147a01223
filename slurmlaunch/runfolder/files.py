"""Files and folders of a run folder: the one module that opens, makes, renames, links and lists them.

A path leads elsewhere once another user, who may write to a folder above, renames one. So the run folder is held by a
descriptor, and everything in it is opened relative to that, its subfolders too: see `Location`. A pickle runs code, so
nothing is read that another user owns or may write to, and no symbolic link is followed. A file either appears whole
(`write_whole`) or one writer appends to it (`records.RecordWriter`).

Client, node and backends use it; what files hold is not known here.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from _thread import _local
from _weakref import ref
from collections import OrderedDict
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from slurmlaunch.errors import RunFolderError, UnsafeRunFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Part = bytes | bytearray | memoryview

MOST_HELD = 64
"""How many folders a process holds, whatever the number of its runs: many systems allow 256 descriptors."""

_BLOCK = 512
"""Bytes of a block as ``st_blocks`` counts them."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NONBLOCK  # to open a named pipe would else wait for a writer
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
TAKEN = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR})
"""What `rename` says if a folder cannot have a name because it is taken."""

_NO_FOLDER = frozenset({errno.ENOTDIR, errno.ELOOP})


class _Section(_local):
    """What this thread is in: see `undisturbed`."""

    current: object = None


_section = _Section()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Compare each descriptor once within, not at each use: this thread runs none of the user's code there.

    It must not surround a ``yield``, a pickling, or anything else that may call the user's code.
    """
    before = _section.current
    _section.current = before or object()
    try:
        yield
    finally:
        _section.current = before


class Opened:
    """A descriptor, which the user's function may close, as daemons do: a file that it opens then has its number.

    Attributes:
        number: the descriptor.
        status: its status when it was last compared.
    """

    __slots__ = ("_identity", "_section", "number", "status")

    def __init__(self, number: int, status: os.stat_result | None = None) -> None:
        self.number, self.status = number, status or os.fstat(number)
        self._identity, self._section = (self.status.st_dev, self.status.st_ino), _section.current

    def is_same(self, other: Opened) -> bool:
        """Whether both are of one file or folder."""
        return self._identity == other._identity

    def is_there(self, *, anew: bool = False) -> bool:
        """Whether the descriptor is still what it was; *anew* compares it although `undisturbed` says that it is."""
        section = _section.current
        if section is None or section is not self._section or anew:
            try:
                status = os.fstat(self.number)
            except OSError:
                return False
            if (status.st_dev, status.st_ino) != self._identity:
                return False
            self.status, self._section = status, section
        return True

    def close(self) -> None:
        """Close the descriptor, unless the user's function has: another file may have its number."""
        if self.is_there(anew=True):
            os.close(self.number)


class _Held(Opened):
    """The descriptor of a folder. It is closed with its last reference: a thread may use one that others let go."""

    __slots__ = ()

    def __del__(self) -> None:
        _recent.pop(id(self), None)
        self.close()


_recent: OrderedDict[int, ref[Location]] = OrderedDict()
"""The locations that are held, the one that was used last at the end."""


class Location:
    """A file or folder of a run folder, by its name in a folder that is held by a descriptor.

    A descriptor that had to be closed, or that the user's function closed, is opened again, and must lead to the folder
    that it led to at first: the number of a closed one may be another folder's now. Text and ``os.fspath`` give the
    path, for messages and for other programs.
    """

    __slots__ = ("__weakref__", "_held", "_identity", "name", "parent")

    def __init__(self, name: str | os.PathLike[str], parent: Location | None = None) -> None:
        """Name an entry of a folder; without one *name* is the absolute path of the run folder itself."""
        self.name, self.parent = os.fspath(name), parent
        self._held: _Held | None = None
        self._identity: tuple[int, int] | None = None

    def __str__(self) -> str:
        return self.name if self.parent is None else f"{self.parent}/{self.name}"

    __fspath__ = __str__

    def __repr__(self) -> str:
        return f"Location({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Location) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(self.name)

    def __truediv__(self, name: str) -> Location:
        """Return what has this name in the folder; the name may lead through subfolders."""
        found = self
        for part in name.split("/"):
            if part in {"", ".", ".."}:
                raise RunFolderError(f"{name!r} is no name of a file in {self}", path=str(self))
            found = Location(part, found)
        return found

    def beside(self, name: str) -> Location:
        """Return what has another name in the same folder."""
        return _parent(self) / name

    @property
    def root(self) -> Location:
        """The run folder that it is in."""
        return self if self.parent is None else self.parent.root

    @property
    def inside(self) -> str:
        """The path in the run folder."""
        return self.name if self.parent is None or self.parent.parent is None else f"{self.parent.inside}/{self.name}"

    # As a name in its folder.

    def _call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call a function of `os` for this name, relative to its folder."""
        if self.parent is None:
            return function(self.name, *arguments, **options)
        folder = self.parent._hold()  # noqa: SLF001
        try:
            return function(self.name, *arguments, dir_fd=folder.number, **options)
        except OSError as error:
            error.filename = str(self)
            raise

    def open(self, flags: int) -> int:
        """Open the file, and return its descriptor; a file that this makes is for its owner alone."""
        descriptor: int = self._call(os.open, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        return descriptor

    def status(self) -> os.stat_result:
        """Return the status of the file, or of the link that is there."""
        found: os.stat_result = self._call(os.stat, follow_symlinks=False)
        return found

    def exists(self) -> bool:
        """Whether there is anything of this name.

        Raises:
            OSError: the system cannot say, as on a failing storage; so `is_file` and `is_dir`.
        """
        return bool(self._mode())

    def is_file(self) -> bool:
        """Whether a file has this name."""
        return stat.S_ISREG(self._mode())

    def is_dir(self) -> bool:
        """Whether a folder has this name."""
        return stat.S_ISDIR(self._mode())

    def _mode(self) -> int:
        with suppress(FileNotFoundError, NotADirectoryError):
            return self.status().st_mode
        return 0

    def read(self) -> bytes:
        """Return the content of a file that nothing depends on, such as a log: it may be another user's."""
        with os.fdopen(self.open(_READ), "rb") as file:
            return file.read()

    def read_from(self, start: int) -> bytes:
        """Return the content from a position on, which counts from the end if it is negative; as `read` does."""
        with os.fdopen(self.open(_READ), "rb") as file:
            file.seek(start if start >= 0 else max(0, os.fstat(file.fileno()).st_size + start))
            return file.read()

    def link_to(self, other: Location) -> None:
        """Give a file this name, too; FileExistsError if it is taken."""
        self._pair(os.link, other, self)

    def rename(self, other: Location) -> None:
        """Move it to another place, in one step."""
        self._pair(os.rename, self, other)

    def _pair(self, function: Callable[..., None], source: Location, target: Location) -> None:
        one = _parent(source)._hold()  # noqa: SLF001
        two = one if target.parent is source.parent else _parent(target)._hold()  # noqa: SLF001
        try:
            function(source.name, target.name, src_dir_fd=one.number, dst_dir_fd=two.number)
        except OSError as error:
            error.filename, error.filename2 = str(source), str(target)
            raise

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Remove the file."""
        try:
            self._call(os.unlink)
        except FileNotFoundError:
            if not missing_ok:
                raise

    # As a folder.

    def move(self, name: str) -> None:
        """Give a run folder another name in the folder above, in one step.

        Raises:
            FileExistsError: something has it.
        """
        above, before = os.path.split(self.name)
        try:
            with self._above() as number:  # would replace an empty folder, but not one with a file
                os.rename(before, name, src_dir_fd=number, dst_dir_fd=number)
        except OSError as error:
            if error.errno in TAKEN:
                raise FileExistsError(*error.args) from error
            raise
        self.name = f"{above}/{name}"

    @contextmanager
    def _above(self) -> Iterator[int]:
        """Open the folder above a run folder, where that is: its path may lead elsewhere by now."""
        descriptor = os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._hold().number)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def mkdir(self) -> None:
        """Make the folder, for its owner alone.

        Raises:
            FileExistsError: it exists.
            UnsafeRunFolder: the run folder that was made is not the one that is there.
        """
        self._call(os.mkdir, 0o700)
        if self.parent is None:
            # Who may rename it, or a folder above, may put another of the user's folders in its place. A folder of
            # the user's without any file has none that could be overwritten.
            folder = self._hold()
            if stat.S_IMODE(folder.status.st_mode) & 0o077 or os.listdir(folder.number):  # noqa: PTH208
                raise self._exchanged()

    def check(self) -> None:
        """Refuse a folder that another user owns or may write to.

        Raises:
            RunFolderError: it does not exist, or is no folder.
            UnsafeRunFolder: it is not safe to read from, or is no longer the folder that it was.
        """
        try:
            self._hold()
        except OSError as error:
            raise RunFolderError(f"no run folder at {self}: {error.strerror}", path=str(self)) from error

    def names(self) -> list[str]:
        """Return the names in the folder."""
        with self._opened() as descriptor:
            return os.listdir(descriptor)  # noqa: PTH208  (a Path for each of 10^5 names costs too much)

    @contextmanager
    def entries(self) -> Iterator[Iterator[os.DirEntry[str]]]:
        """Yield the directory entries of the folder."""
        with self._opened() as descriptor, os.scandir(descriptor) as entries:
            yield entries

    def modified(self, *, anew: bool = False) -> int:
        """Return the time at which the folder changed, in nanoseconds; *anew* opens it, for network file systems."""
        if not anew:
            return self._hold(anew=True).status.st_mtime_ns
        with self._opened() as descriptor:
            return os.fstat(descriptor).st_mtime_ns

    def mark_modified(self) -> None:
        """Set the time at which the folder changed to now."""
        os.utime(self._hold().number)

    def remove(self) -> None:
        """Remove the folder with its content, as far as that is possible."""
        import shutil  # here, because a node must start fast

        with suppress(OSError, RunFolderError):
            folder = self._hold()
            for name in self.names():
                with suppress(NotADirectoryError):
                    shutil.rmtree(name, dir_fd=folder.number)
                    continue
                os.unlink(name, dir_fd=folder.number)
            if self.parent is not None:
                self._call(os.rmdir)
                return
            with self._above() as number:
                os.rmdir(os.path.basename(self.name), dir_fd=number)  # noqa: PTH119  (a Path is not needed)

    def usage(self) -> tuple[int, float]:
        """Return the bytes that the folder takes on disk, and when it was last written to, as far as it can be read."""
        total, written = 0, 0.0
        with suppress(OSError, RunFolderError), self._opened() as descriptor:
            for _, _, names, here in os.fwalk(".", dir_fd=descriptor):
                for name in (".", *names):
                    with suppress(OSError):
                        status = os.stat(name, dir_fd=here, follow_symlinks=False)
                        total += status.st_blocks * _BLOCK
                        written = max(written, status.st_mtime)
        return total, written

    def _hold(self, *, anew: bool = False) -> _Held:
        """Return the descriptor of the folder; keep a reference as long as you use it. *anew* reads its status."""
        held = self._held
        if held is not None and held.is_there(anew=anew) and held.status.st_nlink:  # else it was removed
            with suppress(KeyError):  # another thread has just let it go
                _recent.move_to_end(id(held))
            return held
        number, status = self._open_folder()
        self._held = held = _Held(number, status)
        _recent[id(held)] = ref(self)
        while len(_recent) > MOST_HELD:
            _, oldest = _recent.popitem(last=False)
            if (other := oldest()) is not None:
                other._held = None  # noqa: SLF001
        return held

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """Open the folder once more: a network file system may list an old state of one that is held."""
        folder = self._hold()
        descriptor = os.open(".", _FOLDER, dir_fd=folder.number)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _open_folder(self) -> tuple[int, os.stat_result]:
        """Open the folder; return its descriptor and status, if it is safe to use and the one that it was."""
        try:
            number: int = self._call(os.open, _FOLDER)
        except OSError as error:
            if error.errno not in _NO_FOLDER:
                raise
            if stat.S_ISLNK(self.status().st_mode):
                msg = f"{self} is a symbolic link; name the folder that it points to"
                raise UnsafeRunFolder(msg, path=str(self)) from None
            raise RunFolderError(f"{self} is not a folder", path=str(self)) from None
        try:
            status = os.fstat(number)
            _check(status, self)
            self._check_identity(status)
        except BaseException:
            os.close(number)
            raise
        return number, status

    def _check_identity(self, status: os.stat_result) -> None:
        found = status.st_dev, status.st_ino
        self._identity = self._identity or found
        if found != self._identity:
            raise self._exchanged()

    def _exchanged(self) -> UnsafeRunFolder:
        msg = (
            f"{self} is another folder than it was: somebody has exchanged it, or a folder above it. Nothing is read "
            "from it or written to it. Use a folder for the run folders that only you may rename"
        )
        return UnsafeRunFolder(msg, path=str(self))


def _parent(location: Location) -> Location:
    if location.parent is None:
        raise ValueError(f"{location} is a run folder")
    return location.parent


def identity(descriptor: int) -> tuple[int, int]:
    """Return the device and the inode behind a descriptor, none if it is closed.

    The user's function may close all descriptors, as daemons do; files that it opens then have their numbers.
    """
    try:
        status = os.fstat(descriptor)
    except OSError:
        return -1, -1
    return status.st_dev, status.st_ino


# Reading.


def open_owned(location: Location) -> tuple[int, os.stat_result]:
    """Open a file for reading and return its descriptor and status.

    Raises:
        OSError: it cannot be opened.
        UnsafeRunFolder: another user owns it or may write to it, or it is a symbolic link.
        RunFolderError: it is no file.
    """
    try:
        descriptor = location.open(_READ)
    except OSError as error:
        if error.errno == errno.ELOOP:
            msg = f"{location} is a symbolic link, which may lead out of the run folder: it is not read"
            raise UnsafeRunFolder(msg, path=str(location)) from None
        raise
    status = os.fstat(descriptor)
    try:
        _check(status, location)
        _check_is_file(status, location)
    except RunFolderError:
        os.close(descriptor)
        raise
    return descriptor, status


@contextmanager
def opened(location: Location) -> Iterator[tuple[int, os.stat_result]]:
    """Open a file as `open_owned` does, and close it at the end."""
    found = open_owned(location)
    try:
        yield found
    finally:
        os.close(found[0])


def read_owned(location: Location) -> bytes:
    """Return the content of a file, on the conditions of `open_owned`."""
    with opened(location) as (descriptor, status):
        return read_at(descriptor, status.st_size, 0)


def _check(status: os.stat_result, location: Location) -> None:
    if status.st_uid != os.geteuid():
        msg = f"{location} belongs to user {status.st_uid}, not to you: nothing in it is unpickled"
        raise UnsafeRunFolder(msg, path=str(location))
    if status.st_mode & _OTHERS_MAY_WRITE:
        msg = (
            f"{location} may be written by others (mode {stat.S_IMODE(status.st_mode):o}): nothing in it is unpickled. "
            f"If you trust its content: chmod -R go-w"
        )
        raise UnsafeRunFolder(msg, path=str(location))


def _check_is_file(status: os.stat_result, location: Location) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise RunFolderError(f"{location} is not a file", path=str(location))


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


def sha256_of(data: Part) -> str:
    """Return the SHA-256 of bytes, in hexadecimal."""
    try:  # hashlib loads OpenSSL, which takes longer than to hash a function
        if sys.version_info >= (3, 12):
            from _sha2 import sha256  # type: ignore[import-not-found]
        else:
            from _sha256 import sha256  # type: ignore[import-not-found]
    except ImportError:
        from hashlib import sha256
    digest: str = sha256(data).hexdigest()
    return digest


# Writing.


def beside(location: Location) -> Location:
    """Return a new location in the same folder, whose name nobody can predict."""
    return location.beside(f"{location.name}.{os.urandom(8).hex()}.new")


def write_whole(location: Location, parts: Iterable[Part]) -> None:
    """Write a file beside its place, flush it, and rename it into its place.

    Raises:
        OSError: it could not be written (disk full, quota, ...); nothing is left behind.
    """
    new = beside(location)
    descriptor = new.open(os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        try:
            for part in parts:
                with naming(location):
                    _write(descriptor, part)
                del part  # it may be large, and the next one is made only now
            with naming(location):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        new.rename(location)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


NO_LINKS = frozenset({errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP})
"""The errors of link(2) on a file system without hard links."""


def can_link(file: Location) -> bool:
    """Whether the file system of a file makes hard links: tries it, and leaves none."""
    link = beside(file)
    try:
        link.link_to(file)
    except OSError as error:
        return error.errno not in NO_LINKS
    link.unlink()
    return True


def _write(descriptor: int, data: Part) -> None:
    left = memoryview(data).cast("B") if len(data) else b""
    while left:
        left = left[os.write(descriptor, left) :]


def link_or_copy(source: Location, status: os.stat_result, location: Location) -> os.stat_result | None:
    """Give a file of this process a further name, or copy it where that fails; return its status there.

    None if it is no longer as *status* says.
    """
    try:
        found = source.status()
        if (found.st_ino, found.st_mtime_ns, found.st_size) != (status.st_ino, status.st_mtime_ns, status.st_size):
            return None
        try:
            location.link_to(source)
        except OSError:  # it is on another file system, or has too many names
            write_whole(location, [read_owned(source)])
            return location.status()
    except (OSError, RunFolderError):  # it is gone
        return None
    return found


def create(location: Location, data: bytes) -> os.stat_result:
    """Create a file that does not exist, for one writer alone; return its status.

    Raises:
        FileExistsError: it exists.
    """
    descriptor = location.open(os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        with naming(location):
            _write(descriptor, data)
            return os.fstat(descriptor)
    except OSError:
        location.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def write_once(location: Location, data: bytes) -> bool:
    """Write a file that only one process can make; False if another process was first.

    By a link, which is one step on every file system; with ``O_EXCL`` the file
    would exist for a moment and be empty.
    """
    new = beside(location)
    write_whole(new, [data])
    try:
        location.link_to(new)
    except FileExistsError:
        return False
    finally:
        new.unlink()
    return True


@contextmanager
def naming(location: Location) -> Iterator[None]:
    """Add the file's name to the system's errors, which a full disk or a quota leaves out."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(location)
        raise
