"""The folder that holds the run folders: how a client makes it, and who may exchange what lies above a run folder.

The client uses this module before it makes a run folder, and when it describes an array to a backend. The contents of
a run folder are unknown here.
"""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from slurmlaunch.errors import RunFolderError
from slurmlaunch.runfolder import files

if TYPE_CHECKING:
    from pathlib import Path

DEFAULT_NAME = "slurmlaunch-runs"
"""The name of the folder of runs in the working directory, if the user names none."""

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH  # also where an access control list lets them: its mask is the group's


def make_private(folder: Path) -> Path:
    """Make the folder of runs, for this user alone, if there is none; return its path without symbolic links.

    A folder of the default name gets a ``.gitignore``, so that no run is committed. One that belongs to this user
    becomes private, too: slurmlaunch has made it. Any other stays as it is: the user, a project or root has made it,
    perhaps for several users.
    """
    folder.mkdir(0o700, parents=True, exist_ok=True)
    path = folder.resolve(strict=True)  # else Python would look at it once more
    if path.name != DEFAULT_NAME:
        return path
    with suppress(OSError), (path / ".gitignore").open("x", encoding="utf-8") as file:  # it exists, or may not be made
        file.write("*\n")
    if _is_ours_and_open(path.stat()):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _close_to_others(descriptor, path)
        finally:
            os.close(descriptor)
    return path


def can_link(folder: Path) -> bool:
    """Whether the runs of a folder can have hard links: tries it, and leaves none; True if there is no such folder."""
    with suppress(OSError, RunFolderError):
        probe = files.beside(files.Location(folder.resolve(strict=True)) / "links")
        files.create(probe, b"")
        try:
            return files.can_link(probe)
        finally:
            probe.unlink()
    return True


def _is_ours_and_open(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and bool(status.st_mode & _OTHERS)


def _close_to_others(descriptor: int, path: Path) -> None:
    status = os.fstat(descriptor)
    before = stat.S_IMODE(status.st_mode)
    if _is_ours_and_open(status):
        os.fchmod(descriptor, before & ~_OTHERS)
        print(  # noqa: T201  (a user who shares this folder has to know)
            f"slurmlaunch: {path} is now yours alone (mode {before & ~_OTHERS:04o}, before {before:04o}). To share a "
            "folder of runs with others, give one of another name: Executor(folder)",
            file=sys.stderr,
        )


def others_may_exchange(path: Path) -> bool:
    """Whether another user, apart from root, may rename a folder or put another one in its place.

    This is so if one of the folders above it belongs to another user, or others may write to it. In a sticky folder
    such as ``/tmp`` they may rename only what is their own. *path* is absolute, and need not exist.
    """
    trusted = {0, os.geteuid()}
    for each in (path, *path.parents):
        try:
            status = each.lstat()
        except FileNotFoundError:  # a run that is only shown
            continue
        except OSError:
            return True
        if status.st_uid not in trusted:
            return True
        if stat.S_ISLNK(status.st_mode):  # whose permissions mean nothing
            continue
        sticky = status.st_mode & stat.S_ISVTX
        if each != path and status.st_mode & _OTHERS_MAY_WRITE and not sticky:
            return True
    return False
