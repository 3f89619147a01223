"""A small JSON file that all processes of one user on one machine share."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

if TYPE_CHECKING:
    from collections.abc import Iterator

# The lock is held for the time of one small write, never while a command runs.
_LOCK_TIMEOUT = 5.0
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class Unshared(Exception):
    """The file cannot be shared: no safe folder, or a lock that is never free."""


class SharedFile:
    """One JSON object under one name, replaced as a whole, under a lock that is waited for in bounded time."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._read: tuple[tuple[int, ...], dict[str, Any]] | None = None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep all others from writing.

        Raises:
            Unshared: there is no place for the file, or the lock was not to be had.
        """
        path = self._path()
        try:
            with FileLock(path.with_suffix(".lock"), timeout=_LOCK_TIMEOUT, mode=0o600):
                yield
        except (OSError, Timeout, NotImplementedError) as error:  # the last: a file system without flock
            raise Unshared(str(error)) from error

    def read(self) -> dict[str, Any]:
        """Return the object; empty where there is none, or none that can be read.

        Raises:
            Unshared: there is no place for the file.
        """
        path = self._path()
        try:
            status = path.stat()
            # Replaced as a whole, so another content is another file.
            version = (status.st_ino, status.st_mtime_ns, status.st_size)
            if self._read is None or self._read[0] != version:
                self._read = (version, _object(path.read_bytes()))
        except OSError:
            return {}
        return self._read[1]

    def write(self, data: dict[str, Any]) -> None:
        """Replace the object; the lock is held.

        Raises:
            OSError: it could not be written.
        """
        path = self._path()
        beside = path.with_suffix(f".{os.getpid()}")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            json.dump(data, file, separators=(",", ":"))
        beside.replace(path)

    def _path(self) -> Path:
        return _folder() / f"{self._name}.json"


class PrivateFile:
    """What stands in for a `SharedFile` where none can be had: the object of this process alone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._data: dict[str, Any] = {}

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep all other threads from writing."""
        with self._lock:
            yield

    def read(self) -> dict[str, Any]:
        """Return the object."""
        return self._data

    def write(self, data: dict[str, Any]) -> None:
        """Replace the object."""
        self._data = data


def _object(content: bytes) -> dict[str, Any]:
    try:
        data = json.loads(content)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def _folder() -> Path:
    """Return a folder of this machine that is the user's alone."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and _is_ours(Path(runtime)):
        folder = Path(runtime, "slurmlaunch")
    else:
        folder = Path(tempfile.gettempdir(), f"slurmlaunch-{os.geteuid()}")
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700)
    if not _is_ours(folder):
        # In a folder that anybody may write to, somebody else may have been there first.
        raise Unshared(f"{folder} is not a folder of yours alone")
    return folder


def _is_ours(folder: Path) -> bool:
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & _OTHERS
