"""A program's requests to file systems, counted by strace.

A line of a trace is ``PID name(arguments) = result``, where a file descriptor shows its file:
``17 read(3</etc/hosts>, ""..., 4096) = 221``. Calls that another thread interrupts come in two lines, which are joined.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

FILE_CALLS = "%file,getdents64,fstat,read,pread64,readv"
"""The requests of a reader to a shared file system: names, attributes, listings, contents."""

_UNFINISHED = " <unfinished ...>"
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>")
_NAME = re.compile(r"\d+ +(\w+)\(")
_OPENED = re.compile(r"\b(?:open|openat|openat2)\(.* = \d+<(/[^>]*)>")
_READ = re.compile(r"\b(?:read|pread64|readv)\(\d+<(/[^>]*)>.* = (\d+)$")
_MISSED = re.compile(r" = -1 ENOENT ")
_NO_FILES = ("/proc/", "/dev/", "/sys/")  # the kernel's own, without requests to the storage


@dataclass(frozen=True)
class FileCosts:
    """A program's requests.

    Attributes:
        opened: the number of files and folders opened.
        missed: the number of lookups of missing files, each of which costs the storage a request, too.
        read: the bytes read (mapped ones excluded: of shared libraries only the headers count).
    """

    opened: int
    missed: int
    read: int


def installed() -> bool:
    """Return whether strace is installed."""
    return shutil.which("strace") is not None


def traced(command: Sequence[str], folder: Path, calls: str = FILE_CALLS) -> list[str]:
    """Run a command, and return the system calls of it and of its child processes.

    Raises:
        CalledProcessError: it failed.
    """
    with tempfile.NamedTemporaryFile("r", dir=folder, encoding="utf-8", errors="replace") as log:
        # No contents (-s 0); not a stop at every other call (--seccomp-bpf).
        strace = ["strace", "-f", "-y", "-s", "0", "--seccomp-bpf", "-e", f"trace={calls}", "-e", "signal=none"]
        subprocess.run([*strace, "-o", log.name, *command], check=True, stdout=subprocess.DEVNULL)
        return joined(log)


def joined(lines: Iterable[str]) -> list[str]:
    """Return one line for each call, at the place where it ended."""
    begun: dict[str, str] = {}
    whole = []
    for line in lines:
        text = line.rstrip("\n")
        pid = text.partition(" ")[0]
        if text.endswith(_UNFINISHED):
            begun[pid] = text.removesuffix(_UNFINISHED)
        elif found := _RESUMED.search(text):
            whole.append(begun.pop(pid, pid) + text[found.end() :])
        else:
            whole.append(text)
    return whole


def between(lines: Sequence[str], mark: str) -> list[str]:
    """Return the lines between the first two that name a mark."""
    marks = [number for number, line in enumerate(lines) if f'"{mark}"' in line]
    if len(marks) != 2:  # noqa: PLR2004  (the first and the last)
        raise ValueError(f"{len(marks)} lines name {mark}, not 2")
    return list(lines[marks[0] + 1 : marks[1]])


def calls_in(lines: Iterable[str], folder: Path) -> list[str]:
    """Return the names of the calls that concern a folder or its content."""
    about = f"{folder}/", f'"{folder}"', f"<{folder}>"
    found = [_NAME.match(line) for line in lines if any(each in line for each in about)]
    return [match[1] for match in found if match]


def file_costs(lines: Iterable[str]) -> FileCosts:
    """Add up the file operations of a trace, without the kernel's own files."""
    opened = missed = read = 0
    for line in lines:
        if any(f'"{folder}' in line or f"<{folder}" in line for folder in _NO_FILES):
            continue
        opened += bool(_OPENED.search(line))
        missed += bool(_MISSED.search(line))
        found = _READ.search(line)
        read += int(found[2]) if found else 0
    return FileCosts(opened, missed, read)
