"""What slurmlaunch tells its user beside errors: lines on standard error, and warnings that name a line of the user's.

The client, the backends and the integrations use it. It knows nothing of what they tell.
"""

from __future__ import annotations

import contextlib
import sys
import warnings

_NOT_THE_USERS = frozenset({"slurmlaunch", "submitit"})
"""Packages whose frames lie between the user's line and a warning."""


def say(text: str) -> None:
    """Print a line to the user."""
    with contextlib.suppress(OSError, ValueError):  # a closed stream or terminal
        print(f"slurmlaunch: {text}", file=sys.stderr, flush=True)  # noqa: T201


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning of the line of the user's that made the call, however many of our own frames lie between."""
    frame, level = sys._getframe(), 1  # noqa: SLF001  (inspect takes long to import)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _NOT_THE_USERS:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
