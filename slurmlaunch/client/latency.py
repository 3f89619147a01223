"""How long a file may exist and not be seen: at once on this machine's own disk, a minute later over a network."""

from __future__ import annotations

import os
from pathlib import Path

LATENCY_VARIABLE = "SLURMLAUNCH_LATENCY"

_NETWORK_LATENCY = 70.0
"""Seconds for which a file that exists may be unseen: NFS caches absent names for up to a minute."""

_LOCAL_LATENCY = 1.0

_LOCAL_FILE_SYSTEMS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "apfs", "f2fs"})


def latency_of(folder: Path) -> float:
    """Return for how many seconds a file in a folder may exist and not be seen."""
    given = os.environ.get(LATENCY_VARIABLE)
    if given:
        return float(given)
    return _NETWORK_LATENCY if is_of_network(folder) else _LOCAL_LATENCY


def is_of_network(folder: Path) -> bool:
    """Whether a folder's file system may be another machine's.

    Where it is this machine's own disk, and the nodes reach it through this
    machine, nothing is cached in between.
    """
    return _file_system(folder) not in _LOCAL_FILE_SYSTEMS


def _file_system(folder: Path) -> str:
    best, kind = "", ""
    try:
        with Path("/proc/self/mounts").open(encoding="utf-8", errors="replace") as mounts:
            for line in mounts:
                _, point, this, *_ = line.split(" ")
                inside = os.path.commonpath([point, folder]) == point if point.startswith("/") else False
                if inside and len(point) >= len(best):
                    best, kind = point, this
    except OSError:  # not Linux: then it is taken for a network's
        return ""
    return kind
