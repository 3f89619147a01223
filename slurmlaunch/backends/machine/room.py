"""Where running tasks take their CPUs from, and whether there is room for one more."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from slurmlaunch import caps, context

if TYPE_CHECKING:
    from collections.abc import Collection

    from slurmlaunch.backends.machine.allowance import Allowance


class Room(Protocol):
    """What the tasks of a dispatcher share."""

    def fits(self, wanted: Allowance, running: Collection[Allowance]) -> bool:
        """Whether a task may start beside those that run."""


class Machine:
    """This machine."""

    @cached_property
    def cpus(self) -> int:
        """How many CPUs the running tasks may use together.

        A task that runs tasks of its own has its share, not the whole mask.
        """
        return min(context.cpu_count(), caps.usable_cpus())

    def fits(self, wanted: Allowance, running: Collection[Allowance]) -> bool:
        """Whether a task may start beside those that run."""
        return wanted.cpus <= self.cpus - sum(each.cpus for each in running)


MACHINE = Machine()
