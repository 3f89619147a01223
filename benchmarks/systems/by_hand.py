"""Additions to a system that a user can write by hand: slices, and a pool inside a task."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from systems.base import CPUS, NODES, Call
from workloads.functions import over_slices, over_slices_with_loky

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from systems.base import System, Trial


@dataclass(frozen=True)
class ByHand:
    """A system whose user cuts the items into slices, and joins the results.

    Attributes:
        system: it runs the slices, each as one item.
        pool: there is a task per node, and each runs its slice in a pool of loky's; else a task per slot, and no pool.
    """

    system: System
    pool: bool = False

    @property
    def name(self) -> str:
        """The system's name, and the addition."""
        return f"{self.system.name}, {'with loky' if self.pool else 'sliced'} by hand"

    @property
    def requires(self) -> tuple[str, ...]:
        """The system's modules, and the pool's."""
        return (*self.system.requires, "loky") if self.pool else self.system.requires

    @property
    def logs(self) -> str:
        """The system's."""
        return self.system.logs

    @property
    def launcher(self) -> tuple[str, ...]:
        """The system's."""
        return self.system.launcher

    def run(self, call: Call, folder: Path) -> Trial:
        """Run the slices, and join their results; a slice that fails loses all its items."""
        slices = cut(call.items, NODES if self.pool else call.tasks)
        function = over_slices_with_loky(call.function, CPUS) if self.pool else over_slices(call.function)
        trial = self.system.run(Call(function, slices, len(slices)), folder)
        outcomes: list[Any] = []
        for items, result in zip(slices, trial.outcomes or (), strict=True):
            outcomes += [result] * len(items) if isinstance(result, BaseException) else result
        return dataclasses.replace(trial, outcomes=outcomes)


def cut(items: Sequence[Any], count: int) -> list[Sequence[Any]]:
    """Cut items into the given number of slices, which differ by one item at most."""
    cuts = [len(items) * number // count for number in range(count + 1)]
    return [items[begin:end] for begin, end in itertools.pairwise(cuts)]
