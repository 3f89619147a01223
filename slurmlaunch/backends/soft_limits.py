"""Gives a process the soft limits of a submission before it does its work.

A process has the limits of the one that starts it, and these belong to the whole process: between a submission and the
start, any thread may change them. So the backends set them from outside, while the new process waits for its standard
input: sbatch reads the script before it records the limits, and the shell of a local task reads a line. Another program
in between could set its own limits and become the real one, but a Python makes the start of a task longer, and a
shell neither knows all limits nor passes on all variables.
"""

from __future__ import annotations

import contextlib
import resource
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def set_soft_limits(pid: int, limits: Mapping[str, int]) -> None:
    """Set these soft limits, by their names, of a process of this user; the hard ones stay."""
    for name, soft in limits.items():
        limit = getattr(resource, name)
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended, or is a set-user-ID program
            _, hard = resource.prlimit(pid, limit)
            resource.prlimit(pid, limit, (at_most(soft, hard), hard))


def at_most(soft: int, hard: int) -> int:
    """Return a soft limit, or the hard one if that is lower."""
    if resource.RLIM_INFINITY in (soft, hard):
        return hard if soft == resource.RLIM_INFINITY else soft
    return min(soft, hard)
