"""The plain call in numbers: `map_array(f, items)` beside the call that a person tuned for the same items.

    python benchmarks/plain.py                 # one round, a few minutes
    python benchmarks/plain.py --rounds 3      # medians

It starts a throwaway Slurm of its own, or uses the one that SLURM_CONF names (then give a ``--folder`` that its nodes
see), and runs the last row on this machine. The calls of a row take turns. Each bar is a ratio within the row, plus
what two starts of a client may differ by. How long something takes never decides the exit status; a wrong result does.
"""

from __future__ import annotations

import argparse
import statistics
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


def no_op(item: float) -> float:
    """Do nothing."""
    return item


def nap(seconds: float) -> float:
    """Sleep."""
    time.sleep(seconds)
    return seconds


@dataclass
class Row:
    """One kind of work.

    Attributes:
        name: what the table calls it.
        function: what each item does.
        items: the items; a function returns its item.
        tuned: the keywords of each tuned call; the best of them counts.
        factor, grace: the bar: so many times the tuned call, and so many seconds more.
        ideal: the seconds that the work takes at least, beside the start; None where the tuned call is the measure.
        cluster: where it runs.
        plain, others: what the calls took, in seconds.
        claims: how many claims the last plain call made.
    """

    name: str
    function: Callable[[float], float]
    items: list[float]
    tuned: list[dict[str, Any]]
    factor: float
    grace: float
    ideal: float | None = None
    cluster: str = "slurm"
    plain: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    claims: int = 0

    def run(self, site: Site) -> None:
        """Make each call once."""
        self.others.append(min(self._call(site, how) for how in self.tuned))
        self.plain.append(self._call(site, {}))

    def _call(self, site: Site, how: dict[str, Any]) -> float:
        site.settle()
        with site.fresh_folder() as folder:
            start = time.monotonic()
            array = Executor(folder, cluster=self.cluster, time="00:05:00").map_array(self.function, self.items, **how)
            results = array.results()
            seconds = time.monotonic() - start
            assert results == self.items
            claims = array.folder / "rounds" / "0" / "claims"
            if claims.is_dir():
                self.claims = sum(path.name.isdigit() for path in claims.iterdir())
            return seconds

    def line(self, floor: float) -> str:
        """Return the row as a line of the table; *floor* is what a run takes whose items do nothing."""
        plain, other = statistics.median(self.plain), statistics.median(self.others)
        least = other if self.ideal is None else self.ideal + floor
        against = (
            f"tuned: {other:.2f} s" if self.ideal is None else f"the ideal {self.ideal:g} s + floor: {least:.2f} s"
        )
        met = "yes" if plain <= self.factor * least + self.grace else "**no**"
        bar = f"{self.factor:g} ×" + (f" + {self.grace:g} s" if self.grace else "")
        return f"| {self.name} | {plain:.2f} s | {against} | {plain / least:.2f} × | {bar} | {met} | {self.claims} |"


def rows(many: int) -> list[Row]:
    """Return the rows; *many* is the number of items of the longest."""
    sixteen = {"tasks": _SLOTS}
    uneven = ([0.005] * 10 + [2.0] + [0.005] * 9) * 10
    ideal = max(2.0, sum(uneven) / _SLOTS)
    numbers = list(map(float, range(max(many, 1000))))
    return [
        Row("1000 no-op items", no_op, numbers[:1000], [sixteen, {**sixteen, "schedule": "dynamic"}], 1.5, 0.5),
        Row("1000 items of 10 ms", nap, [0.01] * 1000, [sixteen], 1.2, 0.5),
        Row(f"{many} no-op items", no_op, numbers[:many], [sixteen], 1.5, 0.0),
        Row("64 items of 1 s", nap, [1.0] * 64, [{"schedule": "static"}], 1.15, 0.0, ideal=4.0),
        Row("200 items, ten of 20 × the others", nap, uneven, [sixteen], 1.15, 0.0, ideal=ideal),
        Row("400 no-op items, local", no_op, numbers[:400], [{"tasks": 4}], 1.5, 0.3, cluster="local"),
    ]


def _main() -> int:
    parser = argparse.ArgumentParser(description="Measure the plain call beside the tuned one.")
    parser.add_argument("--rounds", type=int, default=1, help="how often each call is made")
    parser.add_argument("--many", type=int, default=1_000_000, help="how many items the longest row has")
    parser.add_argument("--folder", type=Path, help="where runs may write; Slurm's nodes must see it")
    arguments = parser.parse_args()
    table = rows(arguments.many)
    floor = Row("floor", no_op, list(map(float, range(_SLOTS))), [{"tasks": _SLOTS}], 1.0, 0.0)
    with open_site(arguments.folder) as site:
        floor.run(site)  # modules are loaded by now
        floor.others.clear()
        for _ in range(arguments.rounds):
            for row in (floor, *table):
                row.run(site)
    print("| work | plain call | against | ratio | bar | met | claims |\n| --- | --- | --- | --- | --- | --- | --- |")
    print("\n".join(row.line(statistics.median(floor.others)) for row in table))
    return 0


if __name__ == "__main__":
    sys.exit(_main())
