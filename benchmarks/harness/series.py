"""The runs of one system, and figures computed from them."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from systems.base import System
    from workloads.registry import Workload


class NoSamples(Exception):
    """A figure has no measurements; the message gives the reason."""


@dataclass(frozen=True)
class Entry:
    """A system with its work.

    Attributes:
        warm: whether one item runs before the clock starts.
        timeout: the seconds after which it is killed.
        most: the largest number of rounds in which it runs; None for all.
    """

    system: System
    work: Workload
    warm: bool = False
    timeout: float = 120.0
    most: int | None = None

    @property
    def name(self) -> str:
        """The name in the table."""
        return self.system.name


@dataclass(frozen=True)
class Sample:
    """One measured run.

    Attributes:
        seconds: from the call to the last outcome.
        waited: those between Slurm's acceptance and the first task's start; None if unknown.
        submitting: those before Slurm's acceptance; None if unknown.
        cpu: the client's CPU time in seconds, including that after its last result.
        lost: the number of items without a result.
        files: the number of files that it left.
        bytes: the sum of their sizes.
        memory: the most bytes that the client had in memory.
        calls: the number of calls of each command of Slurm.
        measures: the system's other measurements.
    """

    seconds: float
    waited: float | None = None
    submitting: float | None = None
    cpu: float = 0.0
    lost: int = 0
    files: int = 0
    bytes: int = 0
    memory: int = 0
    calls: dict[str, int] = field(default_factory=dict)
    measures: dict[str, float] = field(default_factory=dict)

    @property
    def own(self) -> float:
        """The seconds without Slurm's wait."""
        return self.seconds - (self.waited or 0.0)


@dataclass
class Series:
    """The samples of one entry.

    Attributes:
        failure: the reason why there are no further samples; empty if nothing failed.
    """

    entry: Entry
    samples: list[Sample] = field(default_factory=list)
    failure: str = ""

    def median(self, value: Callable[[Sample], float] = lambda sample: sample.seconds) -> float:
        """Return the median of a figure over the samples.

        Raises:
            NoSamples: there are none.
        """
        if not self.samples:
            raise NoSamples(f"{self.entry.name}: {self.failure or 'not run'}")
        return statistics.median(map(value, self.samples))

    @property
    def own(self) -> float:
        """The median of the seconds without Slurm's wait."""
        return self.median(lambda sample: sample.own)

    def measure(self, name: str) -> float:
        """Return the median of the system's own measurement of this name."""
        return self.median(lambda sample: sample.measures[name])

    @property
    def spread(self) -> str:
        """Median, minimum and maximum of the seconds, as text; or the failure."""
        if not self.samples:
            return self.failure or "not run"
        return spread([sample.seconds for sample in self.samples])

    def beyond(self, floor: Series) -> float:
        """Return the seconds beyond the floor: the median over the rounds, without Slurm's wait."""
        pairs = list(zip(self.samples, floor.samples, strict=False))
        if not pairs:
            raise NoSamples(self.failure or floor.failure or f"{self.entry.name}: not run")
        if any(sample.waited is None for pair in pairs for sample in pair):
            return statistics.median(ours.seconds - theirs.seconds for ours, theirs in pairs)
        return statistics.median(ours.own - theirs.own for ours, theirs in pairs)

    def ratio(self, peer: Series) -> float:
        """Return its time as a multiple of a peer's."""
        return self.median() / peer.median()


def spread(seconds: list[float]) -> str:
    """Return median, minimum and maximum of some seconds, as text."""
    if len(seconds) == 1:
        return f"{seconds[0]:.2f} s"
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"


def fastest(series: list[Series]) -> Series:
    """Return the series with the least median: a system's best configuration.

    Raises:
        NoSamples: none has a sample.
    """
    ran = [each for each in series if each.samples]
    if not ran:
        raise NoSamples("; ".join(f"{each.entry.name}: {each.failure or 'not run'}" for each in series))
    return min(ran, key=Series.median)
