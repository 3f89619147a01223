"""How many CPUs a task has, and how they are shared among its processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from slurmlaunch.client.values import refused

if TYPE_CHECKING:
    from slurmlaunch.errors import OptionError


@dataclass(frozen=True)
class Shape:
    """The CPUs of one task.

    Attributes:
        cpus_per_task: CPUs that the task asks for.
        processes: how many items run side by side.
        threads: CPUs that one item may use; processes × threads are at most the task's CPUs.
    """

    cpus_per_task: int = 1
    processes: int = 1
    threads: int = 1

    @classmethod
    def resolve(
        cls, *, cpus_per_task: int | None, processes: int | None, threads: int | None, single_item: bool
    ) -> Shape:
        """Find what was not given; all numbers are at least 1.

        Any two give the third. With *cpus_per_task* alone the items of a map have one
        thread each, as many side by side as there are CPUs, and a single item has all of
        them. With *processes* or *threads* alone the task asks for that many CPUs.

        Raises:
            OptionError: the processes with their threads need more CPUs than the task has.
        """
        if cpus_per_task is None:
            processes, threads = processes or 1, threads or 1
            return cls(processes * threads, processes, threads)
        if threads is None and (processes or single_item):
            threads = cpus_per_task // (processes or 1)
        threads = threads or 1
        processes = processes or max(1, cpus_per_task // threads)
        if processes * threads > cpus_per_task:
            raise _too_many(cpus_per_task, processes, threads)
        return cls(cpus_per_task, processes, threads)

    def clipped(self, available: int | None) -> Shape:
        """Return the shape that fits on a machine with so many CPUs; None is no limit.

        Fewer processes first, since that only takes longer; the threads of an item only
        where one process alone has too many. Each number stays at least 1.
        """
        if available is None or self.cpus_per_task <= available:
            return self
        cpus = max(1, available)
        threads = min(self.threads, cpus)
        return Shape(cpus, min(self.processes, cpus // threads), threads)


def _too_many(cpus: int, processes: int, threads: int) -> OptionError:
    option = "processes" if processes > 1 else "threads"
    return refused(
        option,
        f"{processes} processes × {threads} threads need {processes * threads} CPUs, "
        f"and cpus_per_task is {cpus}: ask for more CPUs, or for fewer processes or threads",
    )
