"""The contests behind the table; each runs when a line first needs it."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.contest import Contest
from harness.series import Entry
from harness.startup import Startup, compare
from systems.registry import CLOUDPICKLE, OURS, PEERS, SYSTEMS
from workloads.registry import WORKLOADS

if TYPE_CHECKING:
    from harness.series import Series
    from harness.site import Site
    from systems.base import System
    from workloads.registry import Workload

MANY, TEN_THOUSAND, MILLION, TEN_MILLION = 1000, 10_000, 1_000_000, 10_000_000

_NODE = "import slurmlaunch.node.__main__"
_POOL = "ProcessPoolExecutor(2)"
_NO_OP = WORKLOADS["no-op"]
_TEN_MILLION_SECONDS = 600.0
"""The least timeout of a run of 10^7 items, for any timeout of the others."""

_ITEMS_OF_WATCHED = 100
"""The items of each watched task: more than it can finish while it is watched."""

_WARM = ("slurmlaunch", "submitit")
"""Systems that keep nothing running between two calls: they may have made one before, as in a notebook."""


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        rounds: the number of runs of each system.
        few_rounds: the same, where a round takes half a minute.
        slow_rounds: the same, where it takes minutes.
        one_by_one: the number of items with a task each.
        copied: the number of items that each get a copy of the large closure, with submitit.
        long: the workload of the run whose calls to the scheduler are counted.
        starts: the number of starts of Python.
        watched: the seconds for which a client is traced.
        slow_items: the number of items for a peer that has a task, a job or a process for each.
        timeout: the seconds after which a peer is killed.
    """

    rounds: int = 3
    few_rounds: int = 1
    slow_rounds: int = 1
    one_by_one: int = 100
    copied: int = 16
    long: str = "5 s"
    starts: int = 20
    watched: float = 30.0
    slow_items: int = 100
    timeout: float = 90.0


SHORT = Size()
FULL = Size(
    rounds=11,
    few_rounds=5,
    slow_rounds=3,
    one_by_one=MANY,
    copied=MANY,
    long="60 s",
    starts=100,
    watched=60.0,
    slow_items=MANY,
    timeout=600.0,
)

_FEWER = {"submitit", "clusterfutures", "executorlib, by sbatch", "HyperQueue"}
"""Peers with a task, a job or a process for each item: they get fewer items."""


class Measures:
    """The contests, as lists of series; each docstring names the series of its list, in order."""

    def __init__(self, site: Site, size: Size) -> None:
        self.size = size
        self._contest = Contest(site)

    @property
    def faults(self) -> list[str]:
        """Faults that are wrong results, not merely slow runs."""
        return self._contest.faults

    @property
    def held(self) -> dict[str, list[Series]]:
        """All finished contests."""
        return {name: value for name, value in vars(self).items() if isinstance(value, list) and name != "startups"}

    # The main job.

    @functools.cached_property
    def alone(self) -> list[Series]:
        """One item: the floor, slurmlaunch, submitit."""
        return self._hold(self.size.rounds, _NO_OP.of(1, 1), "floor", "slurmlaunch, submit", "submitit")

    @functools.cached_property
    def sliced(self) -> list[Series]:
        """1000 items in 16 tasks: the floor, slurmlaunch, submitit by hand, a floor in Python."""
        names = "floor", "slurmlaunch", "submitit, sliced by hand", "floor in Python"
        return self._hold(self.size.rounds, _NO_OP.of(MANY), *names)

    @functools.cached_property
    def one_by_one(self) -> list[Series]:
        """A task per item: slurmlaunch in 16 tasks, slurmlaunch with chunksize=1, submitit."""
        names = "slurmlaunch", "slurmlaunch, chunksize=1", "submitit"
        return self._hold(self.size.slow_rounds, _NO_OP.of(self.size.one_by_one), *names)

    @functools.cached_property
    def killed(self) -> list[Series]:
        """100 items, one of which is killed: slurmlaunch, submitit by hand."""
        return self._hold(self.size.few_rounds, WORKLOADS["one killed"], "slurmlaunch", "submitit, sliced by hand")

    @functools.cached_property
    def closure(self) -> list[Series]:
        """A function with a large closure: slurmlaunch with 1000 items, submitit with as many as the time allows."""
        work = WORKLOADS["closure of 200 kB"]
        ours = self._entry(SYSTEMS["slurmlaunch"], work)
        return self._contest.hold([ours, self._entry(SYSTEMS["submitit"], work.of(self.size.copied))], 1)

    @functools.cached_property
    def long(self) -> list[Series]:
        """A long run of one array, by a client without cached answers: slurmlaunch, submitit by hand."""
        systems = SYSTEMS["slurmlaunch"], SYSTEMS["submitit, sliced by hand"]
        work = WORKLOADS[self.size.long]
        return self._contest.hold([Entry(each, work, timeout=self.size.timeout) for each in systems], 1)

    @functools.cached_property
    def startups(self) -> list[Startup]:
        """The node's imports before it reads the function, and cloudpickle alone."""
        return compare([_NODE, CLOUDPICKLE], self.size.starts)

    # Many items.

    @functools.cached_property
    def million(self) -> list[Series]:
        """10^6 items: the floor, the pool, slurmlaunch."""
        names = "floor", _POOL, "slurmlaunch"
        return self._hold(self.size.few_rounds, _NO_OP.of(MILLION), *names)

    @functools.cached_property
    def ten_million(self) -> list[Series]:
        """10^7 items: the floor, the pool, slurmlaunch with its results streamed."""
        names = "floor", _POOL, "slurmlaunch, streamed"
        entries = [self._entry(SYSTEMS[name], _NO_OP.of(TEN_MILLION)) for name in names]
        timeout = max(self.size.timeout, _TEN_MILLION_SECONDS)
        return self._contest.hold(
            [dataclasses.replace(each, timeout=timeout) for each in entries], self.size.slow_rounds
        )

    @functools.cached_property
    def growing(self) -> list[Series]:
        """The floor, and slurmlaunch with 10^4, 10^5 and 10^6 items."""
        sizes = TEN_THOUSAND, 10 * TEN_THOUSAND, MILLION
        ours = [self._entry(SYSTEMS["slurmlaunch"], _NO_OP.of(items)) for items in sizes]
        least = self._entry(SYSTEMS["floor"], _NO_OP.of(TEN_THOUSAND))
        return self._contest.hold([least, *ours], self.size.few_rounds)

    @functools.cached_property
    def ten_thousand(self) -> list[Series]:
        """10^4 items: the floor, slurmlaunch in its two shapes, and all peers (some of which get fewer items)."""
        ours = [SYSTEMS["floor"], *OURS[:2]]
        entries = [self._entry(each, _NO_OP.of(TEN_THOUSAND)) for each in ours]
        for peer in PEERS:
            fewer = peer.name in _FEWER
            entry = self._entry(peer, _NO_OP.of(self.size.slow_items if fewer else TEN_THOUSAND))
            entries.append(dataclasses.replace(entry, most=1) if fewer else entry)
        return self._contest.hold(entries, self.size.few_rounds)

    @functools.cached_property
    def tenth(self) -> list[Series]:
        """200 items of 0.1 s: the floor, slurmlaunch in its two shapes, submitit by hand twice, executorlib."""
        peers = "submitit, sliced by hand", "submitit, with loky by hand", "executorlib, in an allocation"
        return self._hold(self.size.few_rounds, WORKLOADS["0.1 s"], "floor", *(each.name for each in OURS[:2]), *peers)

    @functools.cached_property
    def unresolved(self) -> list[Series]:
        """The client's memory with 10^6 pending items, and with 10^3."""
        system = SYSTEMS["slurmlaunch, unresolved"]
        entries = [Entry(system, _NO_OP.of(items), timeout=self.size.timeout) for items in (MILLION, MANY)]
        return self._contest.hold(entries, self.size.few_rounds)

    @functools.cached_property
    def first(self) -> list[Series]:
        """The first outcome of 10^6 items, and of a single one."""
        first, submit = SYSTEMS["slurmlaunch, first outcome"], SYSTEMS["slurmlaunch, submit"]
        entries = self._entry(first, _NO_OP.of(MILLION)), self._entry(submit, _NO_OP.of(1, 1))
        return self._contest.hold(entries, self.size.few_rounds)

    @functools.cached_property
    def watching(self) -> list[Series]:
        """A traced client of 1000 tasks: while all of them run, and while they run 16 at a time."""
        works = {
            "slurmlaunch, watched at once": _NO_OP.of(_ITEMS_OF_WATCHED * MANY, MANY),
            "slurmlaunch, watched": WORKLOADS["2 s"],
        }
        timeout = 10 * self.size.watched  # strace slows it down
        entries = [
            Entry(dataclasses.replace(SYSTEMS[name], seconds=self.size.watched), work, timeout=timeout)  # type: ignore[type-var]
            for name, work in works.items()
        ]
        return self._contest.hold(entries, 1)

    @functools.cached_property
    def starting(self) -> list[Series]:
        """The start of a task, traced."""
        return self._contest.hold([Entry(SYSTEMS["slurmlaunch, start of a task"], _NO_OP.of(TEN_THOUSAND))], 1)

    def _hold(self, rounds: int, work: Workload, *names: str) -> list[Series]:
        return self._contest.hold([self._entry(SYSTEMS[name], work) for name in names], rounds)

    def _entry(self, system: System, work: Workload) -> Entry:
        return Entry(system, work, warm=system.name.startswith(_WARM), timeout=self.size.timeout)
