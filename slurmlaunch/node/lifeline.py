"""Nothing outlives what it was started for: the process ends when its parent does."""

from __future__ import annotations

import os
import signal
import stat
import sys

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


def from_environment() -> int | None:
    """Return the descriptor of the client's lifeline, or None; what we start does not see it.

    A container may have the variable and not the descriptor: then there is none.
    """
    number = os.environ.pop(LIFELINE_VARIABLE, "")
    try:
        return int(number) if stat.S_ISFIFO(os.fstat(int(number)).st_mode) else None
    except (ValueError, OSError):
        return None
