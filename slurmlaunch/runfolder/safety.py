"""Reading only what is ours, and writing so that a file appears whole.

A pickle runs code. So nothing is read for unpickling that another user owns or
may write to, and no symbolic link is followed on the way.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

from slurmlaunch.errors import RunFolderError, UnsafeRunFolder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
_BESIDE = ".new"


def make_folder(path: Path) -> None:
    """Make a folder that is the user's alone.

    Raises:
        FileExistsError: it is there already (who makes it owns what it stands for).
    """
    path.mkdir(mode=0o700)


def check_folder(path: Path) -> None:
    """Refuse a folder that another user owns or may write to.

    Raises:
        RunFolderError: it is not there, or no folder.
        UnsafeRunFolder: it is not safe to read from.
    """
    try:
        status = path.lstat()
    except OSError as error:
        msg = f"no run folder at {path}: {error.strerror}"
        raise RunFolderError(msg, path=str(path)) from error
    if stat.S_ISLNK(status.st_mode):
        msg = f"{path} is a symbolic link; give the folder that it points to"
        raise UnsafeRunFolder(msg, path=str(path))
    if not stat.S_ISDIR(status.st_mode):
        msg = f"{path} is no folder"
        raise RunFolderError(msg, path=str(path))
    _check(status, path)


def open_owned(path: Path) -> int:
    """Open a file for reading and return its descriptor.

    Raises:
        OSError: it cannot be opened.
        UnsafeRunFolder: another user owns it or may write to it, or it is a link.
    """
    return open_checked(path)[0]


def open_checked(path: Path) -> tuple[int, os.stat_result]:
    """Open a file as `open_owned` does; return what was seen of it, too."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        if path.is_symlink():
            msg = f"{path} is a symbolic link: refused, since it may lead out of the run folder"
            raise UnsafeRunFolder(msg, path=str(path)) from None
        raise
    try:
        status = os.fstat(descriptor)
        _check(status, path)
    except UnsafeRunFolder:
        os.close(descriptor)
        raise
    return descriptor, status


def read_owned(path: Path) -> bytes:
    """Return the content of a file, on the conditions of `open_owned`."""
    with os.fdopen(open_owned(path), "rb") as file:
        return file.read()


def _check(status: os.stat_result, path: Path) -> None:
    if status.st_uid != os.geteuid():
        msg = f"{path} belongs to user {status.st_uid}, not to you: nothing in it is unpickled"
        raise UnsafeRunFolder(msg, path=str(path))
    if status.st_mode & _OTHERS_MAY_WRITE:
        msg = (
            f"{path} may be written by others (mode {stat.S_IMODE(status.st_mode):o}): nothing in "
            f"it is unpickled. If you trust its content: chmod -R go-w"
        )
        raise UnsafeRunFolder(msg, path=str(path))


def read_at(descriptor: int, length: int, offset: int) -> bytes:
    """Return so many bytes of a file, or fewer at its end; one ``pread`` may stop short of 2 GiB."""
    data = os.pread(descriptor, length, offset)
    if len(data) == length:
        return data
    pieces = [data]
    missing = length - len(data)
    while missing and pieces[-1]:
        offset += len(pieces[-1])
        pieces.append(os.pread(descriptor, missing, offset))
        missing -= len(pieces[-1])
    return b"".join(pieces)


def write_whole(path: Path, parts: Iterable[bytes | bytearray | memoryview]) -> None:
    """Write a file beside its place, flush it, and put it there in one step.

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
                del part  # it may be large, and the next is made only now
            with naming(path):
                file.flush()
                os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_once(path: Path, data: bytes) -> bool:
    """Write a file that only one process can make; False where another was first.

    By a link, which is one step on every file system; ``O_EXCL`` would leave a
    moment in which the file is there, and empty.
    """
    import secrets  # here, as a node is to start soon

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
    """Have the system's errors say which file it was, as a full disk or a quota does not by itself."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
