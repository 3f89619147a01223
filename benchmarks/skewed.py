"""Uneven items in numbers: how each schedule balances them, and its cost for even items.

    python benchmarks/skewed.py                      # one round, a good minute
    python benchmarks/skewed.py --rounds 5           # medians
    python benchmarks/skewed.py --no-ops 100000      # the cost per item, too

It starts a throwaway Slurm of its own, or uses the one that SLURM_CONF names (then
give a ``--folder`` that its nodes see). The items sleep; how long is Pareto
distributed, and one of them takes 20 times the mean. Nobody can be done sooner than
the longest item, than all items shared evenly by the slots, or than an array whose
tasks only create a file: so the makespan is given over the larger of the first two
and the third. How long something takes never decides the exit status; a wrong
result does.
"""

from __future__ import annotations

import argparse
import functools
import random
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.site import Site, open_site
from slurmlaunch import Executor

if TYPE_CHECKING:
    from collections.abc import Callable

_SLOTS = 16
_SHAPE = 1.5  # of the Pareto distribution: the mean is finite, the variance is not
_LONGEST = 20  # times the mean
_BAR = 1.15


@dataclass(frozen=True)
class Uneven:
    """Items that sleep.

    Attributes:
        seconds: the duration of each.
    """

    seconds: list[float]

    @classmethod
    def draw(cls, number: int, mean: float, seed: int) -> Uneven:
        """Draw durations with a given mean; the longest is `_LONGEST` times the mean."""
        chance = random.Random(seed)
        drawn = [min(chance.paretovariate(_SHAPE), 30.0) for _ in range(number)]
        longest = max(range(number), key=drawn.__getitem__)
        scale = (number - _LONGEST) / (sum(drawn) - drawn[longest])
        others = [min(each * scale, _LONGEST * 0.9) * mean for each in drawn]
        return cls([_LONGEST * mean if item == longest else each for item, each in enumerate(others)])

    @property
    def ideal(self) -> float:
        """The lower bound of every schedule, in seconds."""
        return max(*self.seconds, sum(self.seconds) / _SLOTS)


@dataclass
class Way:
    """One schedule of the items.

    Attributes:
        name: its name in the table.
        how: arguments of `map_array`.
        makespans: the measured durations, in seconds.
        files: the number of files that the last run left, links counted once.
    """

    name: str
    how: dict[str, Any]
    makespans: list[float] = field(default_factory=list)
    files: int = 0

    def run(self, site: Site, function: Callable[[Any], Any], rows: list[Any], expected: list[Any]) -> None:
        """Submit, and collect the results."""
        site.settle()
        with site.fresh_folder() as folder:
            start = time.monotonic()
            array = Executor(folder, cluster="slurm").map_array(function, rows, tasks=_SLOTS, **self.how)
            results = array.results()
            self.makespans.append(time.monotonic() - start)
            assert results == expected
            self.files = len({path.stat().st_ino for path in folder.rglob("*") if path.is_file()})

    @property
    def median(self) -> float:
        """The median of the makespans."""
        return statistics.median(self.makespans)

    def over(self, ideals: list[float], floors: list[float]) -> float:
        """Return the median of the makespans, each divided by its round's lower bound."""
        least = [ideal + floor for ideal, floor in zip(ideals, floors, strict=True)]
        return statistics.median(taken / few for taken, few in zip(self.makespans, least, strict=True))


def no_op(item: int) -> int:
    """Do nothing."""
    return item


def _nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def _ways(cost: Callable[[Any], float]) -> list[Way]:
    return [
        Way('schedule="dynamic"', {"schedule": "dynamic"}),
        Way('schedule="guided"', {"schedule": "guided"}),
        Way("static", {}),
        Way("static, cost=", {"cost": cost}),
    ]


def _floor(site: Site) -> float:
    site.settle()
    with site.fresh_folder() as folder:
        start = time.monotonic()
        options = [f"--array=0-{_SLOTS - 1}", "--output=/dev/null", "--parsable"]
        script = f'#!/bin/bash\n: > "{folder}/$SLURM_ARRAY_TASK_ID"\n'
        subprocess.run(["sbatch", *options], input=script, text=True, check=True, stdout=subprocess.DEVNULL)
        while sum(1 for _ in folder.iterdir()) < _SLOTS:
            time.sleep(0.002)
        return time.monotonic() - start


def _spread(seconds: list[float]) -> str:
    if len(seconds) == 1:
        return f"{seconds[0]:.2f} s"
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"


def skewed(site: Site, draw: Callable[[int], Uneven], rounds: int) -> list[str]:
    """Measure all schedules with uneven items, in turns, with new items in each round; return the table's lines."""
    nap = _by_value(_nap)
    ways, nodes = _ways(lambda seconds: seconds), Way("nodes", {})
    floors, ideals = [], []
    for number in range(rounds):
        uneven = draw(number)
        ideals.append(uneven.ideal)
        floors.append(_floor(site))
        nodes.run(site, _by_value(no_op), list(range(_SLOTS)), list(range(_SLOTS)))
        for way in ways:
            way.run(site, nap, uneven.seconds, uneven.seconds)
    lines = [
        f"{len(uneven.seconds)} items on {_SLOTS} slots: at least {_spread(ideals)}, and the start-up floor of",
        f"{_spread(floors)} (or that of {_SLOTS} nodes with a no-op item each: {_spread(nodes.makespans)}).",
        "",
        "| cut by | makespan | over that | bar | met | over that of nodes | files |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for way in ways:
        over, over_nodes = way.over(ideals, floors), way.over(ideals, nodes.makespans)
        bar = f"{_BAR} | {'yes' if over <= _BAR else '**no**'}" if "dynamic" in way.name else " | "
        lines.append(
            f"| {way.name} | {_spread(way.makespans)} | {over:.2f} × | {bar} | {over_nodes:.2f} × | {way.files} |"
        )
    return lines


def no_ops(site: Site, number: int, rounds: int) -> list[str]:
    """Measure all ways on items that do nothing, in turns; return the lines of the table."""
    function = _by_value(no_op)
    ways = _ways(lambda _: 1.0)
    for _ in range(rounds):
        for way in ways:
            way.run(site, function, list(range(number)), list(range(number)))
    static = ways[2].median
    lines = ["", f"| {number} no-op items, cut by | makespan | over static | files |", "| --- | --- | --- | --- |"]
    lines += [f"| {way.name} | {_spread(way.makespans)} | {way.median / static:.2f} × | {way.files} |" for way in ways]
    return lines


def _by_value(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a function that is pickled by value: the nodes do not have its module."""
    return functools.partial(function) if function.__module__ == "__main__" else function


_FULL_ROUNDS = 5


def _main() -> int:
    parser = argparse.ArgumentParser(description="Measure how uneven items are balanced.")
    parser.add_argument("--full", action="store_true", help="measure each way five times")
    parser.add_argument("--rounds", type=int, help="how often each way is measured (once by default)")
    parser.add_argument("--items", type=int, default=2000, help="how many items")
    parser.add_argument("--mean", type=float, default=0.1, help="how long an item takes in the mean, in seconds")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn in the first round")
    parser.add_argument("--no-ops", type=int, default=0, help="also measure so many items that take no time")
    parser.add_argument("--folder", type=Path, help="where runs may write; Slurm's nodes must see it")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (_FULL_ROUNDS if arguments.full else 1)

    def draw(number: int) -> Uneven:
        return Uneven.draw(arguments.items, arguments.mean, arguments.seed + number)

    with open_site(arguments.folder) as site:
        _ways(lambda _: 1.0)[0].run(site, _by_value(no_op), [1], [1])  # modules are loaded by now
        lines = skewed(site, draw, rounds)
        if arguments.no_ops:
            lines += no_ops(site, arguments.no_ops, rounds)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(_main())
