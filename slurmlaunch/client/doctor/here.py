"""The doctor's checks on this machine: its Python, and the folder for the run folders.

They need no scheduler. What other machines see of the folder is the matter of ``job``.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from slurmlaunch.client.doctor.findings import error, ok, warning
from slurmlaunch.runfolder.changes import file_system_of, is_on_network
from slurmlaunch.runfolder.files import beside, create, write_whole
from slurmlaunch.runfolder.runs_folder import others_may_exchange

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slurmlaunch.client.doctor.findings import Check
    from slurmlaunch.runfolder.files import Location

_GIB = 1 << 30
_LITTLE_SPACE, _FEW_FILES = 1 * _GIB, 10_000
_WRITTEN, _CREATED = 16 << 20, 100
"""Bytes and files that are written to see whether there is room: a quota does not show in what a file system has free.
"""

_ANOTHER_FOLDER = "Give another folder with --folder=... (Executor(folder=...)), or make room there."


def check_python() -> Check:
    """Return which Python and which packages this is."""
    versions = {name: version_of(name) for name in ("slurmlaunch", "cloudpickle")}
    packages = ", ".join(f"{name} {version or 'without a version'}" for name, version in versions.items())
    found = f"Python {platform.python_version()} ({sys.executable}), {packages}, on {platform.node()}"
    return ok("python", found, version=platform.python_version(), executable=sys.executable, packages=versions)


def version_of(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(distribution)
    return None


def check_folder(place: Location) -> Iterator[Check]:
    """Yield what this machine says of an empty folder below that of the run folders."""
    folder = Path(place)
    kind = file_system_of(folder)
    nature = "a network file system" if is_on_network(folder) else "which looks like a disk of this machine"
    yield ok(
        "folder",
        f"{folder.parent}, on {kind or 'an unknown file system'}, {nature}",
        path=str(folder.parent),
        file_system=kind,
    )
    yield _check_space(folder, place / "room")
    yield _check_folders_above(folder)


def _check_space(folder: Path, room: Location) -> Check:
    status = os.statvfs(folder)
    free, files = status.f_bavail * status.f_frsize, status.f_favail
    data = {"free_bytes": free, "free_files": files if status.f_files else None}
    try:
        _write(room)
    except OSError as failure:
        found = f"{folder.parent} has no room for {_WRITTEN >> 20} MiB in {_CREATED} files: {failure.strerror}"
        return error("space", found, f"{_ANOTHER_FOLDER} `quota -s` (on Lustre `lfs quota`) shows your limits.", **data)
    found = f"{free / _GIB:.1f} GiB" + (f" and {files} files" if status.f_files else "") + " free"
    if free < _LITTLE_SPACE or (status.f_files and files < _FEW_FILES):
        return warning("space", f"only {found} in {folder.parent}", _ANOTHER_FOLDER, **data)
    return ok("space", f"{found}; {_WRITTEN >> 20} MiB in {_CREATED} files could be written", **data)


def _write(room: Location) -> None:
    files = [beside(room) for _ in range(_CREATED)]
    try:
        # A file system that compresses must store it, too.
        write_whole(files[0], (os.urandom(1 << 20) for _ in range(_WRITTEN >> 20)))
        for file in files[1:]:
            create(file, b"")
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def _check_folders_above(folder: Path) -> Check:
    for each in (*reversed(folder.parents), folder):
        if others_may_exchange(each):
            found = f"other users may rename or replace what is in {each.parent if each != folder else each}"
            advice = "Tasks check that each run folder is yours, at some cost. Better put the run folders elsewhere."
            return warning("folders above", found, advice)
    return ok("folders above", "nobody else may rename or replace the folder")
