"""The time limit of a task: when it stops handing out, and when it gives up waiting.

The warning (USR1) comes up to a minute early, which for a short limit is at the
start. So where the limit is known, the warning only arms the clock.
"""

from __future__ import annotations

import os
import time
from time import monotonic
from typing import TYPE_CHECKING

from slurmlaunch.runfolder.layout import STARTED_VARIABLE

if TYPE_CHECKING:
    from slurmlaunch.runfolder.plan import RoundPlan

_LONGEST_MARGIN = 5.0


class TimeLimit:
    """When a task comes to its end, and whether it may ask to be started again."""

    def __init__(self, plan: RoundPlan, attempt: int) -> None:
        self.may_requeue = attempt < plan.requeues
        self._warning = float(plan.warning or 0)
        self._ends = None if plan.time_limit is None else monotonic() - _spent() + plan.time_limit
        self._close_at: float | None = None

    def warn(self) -> None:
        """Take in the scheduler's warning."""
        now = monotonic()
        self._close_at = now if self._ends is None else max(now, self._ends - self._warning)

    @property
    def is_near(self) -> bool:
        """Whether no further items should be handed out."""
        return self._close_at is not None and monotonic() >= self._close_at

    @property
    def is_here(self) -> bool:
        """Whether there is just time enough to end in good order."""
        margin = min(_LONGEST_MARGIN, self._warning / 3)
        return self.is_near and self._ends is not None and monotonic() >= self._ends - margin


def _spent() -> float:
    started = os.environ.get(STARTED_VARIABLE, "")
    return max(0.0, time.time() - int(started)) if started.isdigit() else 0.0
