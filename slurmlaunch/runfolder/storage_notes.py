"""What an exception of the user's function leaves unsaid if a file met a limit: which file, which limit, what to do.

`function.Work` adds it where the function ran, since the limits and the disks are those of that machine. The system
names no file when a write fails: the variables of the function do, as far as they hold paths or open files.
"""

from __future__ import annotations

import errno
import io
import os
import resource
import signal
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from slurmlaunch.errors import SIGNALLED, amount

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST = 1000
"""How many variables are looked at."""

_TOO_LARGE = {-signal.SIGXFSZ, SIGNALLED + signal.SIGXFSZ}
"""The exit statuses of a program that wrote more to a file than it may."""


def storage_note(error: BaseException) -> str:
    """Return the note for an exception; empty if it is about something else."""
    if isinstance(error, OSError):
        number = error.errno
    else:
        number = errno.EFBIG if vars(error).get("returncode") in _TOO_LARGE else None
    with suppress(OSError):  # a file system that is away
        if number == errno.EFBIG:
            return _on_size(error)
        if number in {errno.ENOSPC, errno.EDQUOT}:
            return _on_space(error, number)
    return ""


def _on_space(error: BaseException, number: int) -> str:
    file = min(_files(error), key=_free, default=None)
    if number == errno.EDQUOT:
        name = f" for {file}" if file else ""
        return f"your quota{name} is used up: remove files there (`quota -s` may show them), or write elsewhere"
    of = f" of {file} on node {_node()} is full, {amount(_free(file))} are free" if file else f" on {_node()} is full"
    return f"the file system{of}: remove files there, or write elsewhere"


def _on_size(error: BaseException) -> str:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit == resource.RLIM_INFINITY:
        return "the file system takes no file as large as that: write several smaller ones, or write elsewhere"
    file = next((file for file in _files(error) if file.stat().st_size >= limit), None)
    return (
        f"{file or 'A file'} reached {amount(limit)}, the most that a process may write to one file here: the limit of "
        "`ulimit -f`. Tasks inherit it from where you make the call: give `ulimit -f unlimited` there before you start "
        "Python, or setup=['ulimit -f unlimited'] to the executor, or write several smaller files"
    )


def _node() -> str:
    return os.environ.get("SLURMD_NODENAME", os.uname().nodename)


def _free(file: Path) -> int:
    status = os.statvfs(file)
    return status.f_bavail * status.f_frsize


def _files(error: BaseException) -> Iterator[Path]:
    """Yield the files that an exception or the variables of its frames name, those of the innermost frame first."""
    for value in islice(_values(error), _MOST):
        name = getattr(value, "name", None) if isinstance(value, io.IOBase) else value
        if isinstance(name, (str, os.PathLike)):
            with suppress(Exception):  # of a path of the user's own class, too
                path = Path(name).absolute()
                if path.is_file():
                    yield path


def _values(error: BaseException) -> Iterator[object]:
    yield getattr(error, "filename", None)
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    for frame in reversed(frames):
        yield from list(frame.f_locals.values())
