"""Who did it how well: several contenders in turns, several times, so that a slow minute hits all alike.

Slurm starts nothing at once: it looks at its queue about once a second, and a job
waits for the next look. That wait is Slurm's own, the same for all, and larger than
what is compared here. So it is measured (from sbatch's answer to the birth of the
first task's log) and left out where a contender is compared with the floor; the
start of each run is random, so that nobody gets into step with it.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import random
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from harness.contenders import Contender, Trial
    from harness.site import Site
    from harness.work import Workload

_SLURMS_LOOK = 1.0
"""Seconds between two looks of Slurm at its queue."""


@dataclass(frozen=True)
class Entry:
    """A contender with its work.

    Attributes:
        fresh: whether the client is a Python of its own, and its calls to Slurm are counted.
    """

    contender: Contender
    work: Workload
    fresh: bool = False

    @property
    def name(self) -> str:
        """What it is called in the table."""
        return self.contender.name


@dataclass(frozen=True)
class Sample:
    """One measured run.

    Attributes:
        seconds: from the call to the last outcome.
        waited: how many of them passed between Slurm's acceptance and the first task's start; None if unknown.
        lost: how many items came to nothing.
        files: how many files it left.
        bytes: how large they are together.
        calls: how often each command of Slurm was called; empty where that was not counted.
    """

    seconds: float
    waited: float | None
    lost: int
    files: int
    bytes: int
    calls: dict[str, int] = field(default_factory=dict)

    @property
    def own(self) -> float:
        """The seconds without Slurm's wait."""
        return self.seconds - (self.waited or 0.0)


@dataclass
class Series:
    """The samples of one entry."""

    entry: Entry
    samples: list[Sample] = field(default_factory=list)

    def median(self, value: Callable[[Sample], float] = lambda sample: sample.seconds) -> float:
        """Return the median of what is asked of each sample."""
        return statistics.median(map(value, self.samples))

    @property
    def spread(self) -> str:
        """Median, minimum and maximum of the seconds, as text."""
        seconds = [sample.seconds for sample in self.samples]
        if len(seconds) == 1:
            return f"{seconds[0]:.2f} s"
        return f"{self.median():.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"

    def beyond(self, floor: Series) -> float:
        """Return by how many seconds it takes longer than the floor: the median over the rounds."""
        pairs = list(zip(self.samples, floor.samples, strict=True))
        if any(sample.waited is None for pair in pairs for sample in pair):
            return statistics.median(ours.seconds - theirs.seconds for ours, theirs in pairs)
        return statistics.median(ours.own - theirs.own for ours, theirs in pairs)

    def ratio(self, peer: Series) -> float:
        """Return its time as a multiple of a peer's."""
        return self.median() / peer.median()


@dataclass
class Contest:
    """Runs entries, in turns.

    Attributes:
        faults: what went wrong: results that are not right, items that should not have been lost.
    """

    site: Site
    faults: list[str] = field(default_factory=list)

    def hold(self, entries: Sequence[Entry], rounds: int) -> list[Series]:
        """Run each entry once a round, in an order that changes from round to round."""
        series = [Series(entry) for entry in entries]
        for number in range(rounds):
            turn = number % len(series)
            for each in series[turn:] + series[:turn]:
                each.samples.append(self._measure(each.entry))
                _say(f"round {number + 1}: {each.entry.name}, {each.entry.work.items} items: {each.samples[-1]}")
        return series

    def warm_up(self, entry: Entry) -> None:
        """Run an entry without measuring it."""
        with self.site.fresh_folder() as folder:
            entry.contender.run(entry.work, folder)

    def _measure(self, entry: Entry) -> Sample:
        with self.site.fresh_folder() as folder:
            self.site.settle()
            time.sleep(random.uniform(0, _SLURMS_LOOK))
            seconds, trial, calls = self._run(entry, folder)
            self.site.settle()  # its tasks may be writing still
            found = [path.stat() for path in folder.rglob("*") if path.is_file()]
            return Sample(
                seconds=seconds,
                waited=_waited(trial, folder, entry.contender.logs),
                lost=self._check(entry, trial),
                files=len(found),
                bytes=sum(each.st_size for each in found),
                calls=dict(calls or {}),
            )

    def _run(self, entry: Entry, folder: Path) -> tuple[float, Trial, Counter[str] | None]:
        if not entry.fresh:
            return *_timed(entry.contender, entry.work, folder), None
        spawn = multiprocessing.get_context("spawn")
        with self.site.counted_calls() as calls:
            with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as client:
                seconds, trial = client.submit(_timed, entry.contender, entry.work, folder).result()
            self.site.settle()  # jobs call Slurm too
        return seconds, trial, calls

    def _check(self, entry: Entry, trial: Trial) -> int:
        if trial.outcomes is None:
            return 0
        try:
            lost = entry.work.lost(trial.outcomes)
        except AssertionError as error:
            self.faults.append(f"{entry.name}: {error}")
            return 0
        allowed = 0 if entry.work.killed is None else 1
        if lost > allowed and entry.name.startswith("slurmlaunch"):
            errors = [repr(outcome) for outcome in trial.outcomes if isinstance(outcome, BaseException)]
            self.faults.append(f"{entry.name} lost {lost} of {entry.work.items} items: {errors[0]}")
        return lost


def _timed(contender: Contender, work: Workload, folder: Path) -> tuple[float, Trial]:
    begin = time.monotonic()
    trial = contender.run(work, folder)
    return time.monotonic() - begin, trial


def _waited(trial: Trial, folder: Path, logs: str) -> float | None:
    births = [birth for path in folder.glob(logs) if (birth := _birth(path)) is not None]
    return max(0.0, min(births) - trial.accepted) if births else None


def _birth(path: Path) -> float | None:
    # Python's os.stat does not tell; nor does every file system.
    done = subprocess.run(["stat", "--format=%.9W", str(path)], check=False, capture_output=True, text=True)
    try:
        return float(done.stdout) or None
    except ValueError:
        return None


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
