"""What the kernel's accounting says of the memory of this task.

The OOM killer ends one process, not the task; only its cgroup tells. The kills
are counted in the process's own cgroup, the limit may stand in a parent.
Source: the kernel's documentation of cgroup v1 (``memory.oom_control``) and v2
(``memory.events``).
"""

from __future__ import annotations

import sys
from pathlib import Path

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
