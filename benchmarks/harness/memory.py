"""How much memory this process has, as Linux counts it."""

from __future__ import annotations

import re
from pathlib import Path

_KB = 1024


def resident() -> int:
    """Return the bytes that are in memory now."""
    return _status("VmRSS")


def peak() -> int:
    """Return the most bytes that were in memory at once.

    Not getrusage's ``ru_maxrss``: a new program keeps it, so it is at least the parent's memory.
    """
    return _status("VmHWM")


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    if not found:
        raise OSError(f"/proc/self/status has no {field}")
    return int(found[1]) * _KB
