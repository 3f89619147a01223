"""The processes of one launch: a launcher such as srun, or the ranks themselves."""

from __future__ import annotations

import os
import signal
import subprocess
from time import monotonic
from typing import TYPE_CHECKING

from slurmlaunch.node import world
from slurmlaunch.node.log import Log

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slurmlaunch.runfolder.ranks import RanksPlan

_PATIENCE = 10.0
"""Seconds that a launcher has for ending its ranks, more than srun takes, before it is killed itself."""


class Launched:
    """What was started for one launch.

    Attributes:
        ending: whether it has been told to end.
        log: what it says.
    """

    def __init__(self, plan: RanksPlan, words: Sequence[str]) -> None:
        """Start the launcher; without one, start each rank.

        Raises:
            OSError: it cannot be started.
        """
        self.ending = False
        self.log = Log()
        self._kill_at = 0.0
        self._processes: list[subprocess.Popen[bytes]] = []
        for rank in range(1 if plan.launcher else plan.number):
            env = None if plan.launcher else {**os.environ, world.RANK: str(rank), world.RANKS: str(plan.number)}
            self._processes.append(subprocess.Popen([*plan.launcher, *plan.command, *words], env=env))

    @property
    def alive(self) -> bool:
        """Whether anything of it runs; where one of several ranks has failed, the others are made to end."""
        codes = [process.poll() for process in self._processes]
        if any(codes) and None in codes:
            self.end()
        return None in codes

    def end(self) -> None:
        """Make it end; to be called again until it has."""
        if not self.ending:
            self.ending = True
            self._kill_at = monotonic() + _PATIENCE
            self._signal(signal.SIGTERM)
        elif monotonic() >= self._kill_at:
            self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        for process in self._processes:
            process.send_signal(number)

    @property
    def status(self) -> int:
        """The exit status once it has ended: that of a process that failed, else 0; negative for a signal."""
        return next((process.returncode for process in self._processes if process.returncode), 0)
