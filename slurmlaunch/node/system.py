"""What the node asks the operating system: the parent's death, the memory limit, the task's log."""

from __future__ import annotations

import os
import signal
import stat
import sys
from pathlib import Path

from slurmlaunch.runfolder.layout import LIFELINE_VARIABLE

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, however it ends (Linux)."""
    import ctypes  # here, where the processes of a pool import it side by side

    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we had asked
        os._exit(1)


def client_pipe() -> int | None:
    """Return the descriptor of the client's lifeline, or None; what we start does not see it.

    A container may have the variable and not the descriptor: then there is none.
    """
    number = os.environ.pop(LIFELINE_VARIABLE, "")
    try:
        return int(number) if stat.S_ISFIFO(os.fstat(int(number)).st_mode) else None
    except (ValueError, OSError):
        return None


_SHOWN_LINES = 12
_SHOWN_BYTES = 4096
_STDERR = 2
_AGAIN = f"/proc/self/fd/{_STDERR}"
"""The same file once more, to be read; also where its own path is not there, as in a container."""


class Log:
    """What is written to the log from now on, by this process and by what it starts."""

    def __init__(self) -> None:
        self._begin = _size()

    def tail(self) -> str:
        """Return the last lines; nothing where standard error is no file, or cannot be read."""
        size = _size()
        begin = max(self._begin, size - _SHOWN_BYTES)
        if size <= begin:
            return ""
        try:
            with Path(_AGAIN).open("rb") as file:
                file.seek(begin)
                lines = file.read(size - begin).decode("utf-8", "replace").splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-_SHOWN_LINES:]).rstrip()


def _size() -> int:
    """Return how long the log is; 0 where standard error is no file."""
    told = os.fstat(_STDERR)
    return told.st_size if stat.S_ISREG(told.st_mode) else 0


RUSAGE_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in which ``ru_maxrss`` is counted, see getrusage(2)."""

_ROOT = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60


def oom_kills() -> int:
    """Return how many processes of this task's cgroup the OOM killer has ended."""
    for folder, events, _ in _candidates():
        for line in _lines(folder / events):
            name, _, number = line.partition(" ")
            if name == "oom_kill":
                return int(number)
    return 0


def limit_text() -> str:
    """Return `` of 1.5 GiB`` for the memory limit that holds here, or nothing."""
    limits = []
    for folder, _, limit in _candidates():
        for parent in (folder, *folder.parents):
            if parent == _ROOT.parent:
                break
            limits += [int(line) for line in _lines(parent / limit) if line.isdigit()]
    limits = [limit for limit in limits if limit < _UNLIMITED]
    return f" of {min(limits) / 2**30:.3g} GiB" if limits else ""


def of_files(process: int) -> int:
    """Return how many bytes of files a process has mapped and touched: others may hold the very same.

    Source: ``RssFile`` in proc_pid_status(5), as of Linux 4.5.
    """
    for line in _lines(Path(f"/proc/{process}/status")):
        name, _, value = line.partition(":")
        if name == "RssFile":
            return int(value.split()[0]) * 1024
    return 0


def _candidates() -> list[tuple[Path, str, str]]:
    """Return the memory cgroup of this process: its folder, its events and its limit."""
    found = []
    for line in _lines(Path("/proc/self/cgroup")):
        _, controllers, path = line.split(":", 2)
        inner = path.lstrip("/")
        if controllers == "memory":
            found.append((_ROOT / "memory" / inner, "memory.oom_control", "memory.limit_in_bytes"))
        elif not controllers:
            found.append((_ROOT / inner, "memory.events", "memory.max"))
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:  # no cgroups here (macOS, some containers), or not this version
        return []


def node_name() -> str:
    """Return the name of this node, Slurm's where it has one."""
    return os.environ.get("SLURMD_NODENAME", os.uname().nodename)
