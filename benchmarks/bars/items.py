"""The lines of many items: against a process pool on one machine, and all peers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bars.comparisons import at_most, beyond, faster
from bars.measures import MANY, MILLION
from harness import strace
from harness.series import NoSamples, fastest
from harness.table import Row
from workloads.registry import SLOTS

if TYPE_CHECKING:
    from bars.measures import Measures
    from harness.series import Series

_OF_POOL, _OF_POOL_WITHOUT_FLOOR, _OF_POOL_FOR_TEN_MILLION = 1.0, 0.5, 0.4
_MEGABYTES_UNREAD = 300
_SECONDS_BEYOND_FLOOR = 0.5
_IDEAL_FOR_TENTHS, _OF_IDEAL = 1.3, 1.2
_GROWTH = 1.1
_BYTES_PER_ITEM = 16
_FIRST_BEYOND_ONE = 1.5
_FILE_CALLS_PER_SECOND = 50


def million(measures: Measures) -> list[Row]:
    """Compare 10^6 items with a process pool on this machine."""
    least, pool, ours = measures.million
    work = f"10^6 no-op items, tasks={SLOTS}"
    return _of_pool("million", work, least, pool, ours, (_OF_POOL, _OF_POOL_WITHOUT_FLOOR))


def ten_million(measures: Measures) -> list[Row]:
    """Compare 10^7 items with a pool on this machine, and measure the client's memory."""
    least, pool, ours = measures.ten_million
    bar = _OF_POOL_FOR_TEN_MILLION
    unread = ours.measure("resident, unread") / 1e6
    peak = ours.median(lambda sample: sample.memory) / 1e6
    work = "the same, the client's memory with the results unread"
    said = f"{unread:.0f} MB (peak of the whole run: {peak:.0f} MB)"
    return [
        *_of_pool("ten-million", f"10^7 no-op items, tasks={SLOTS}", least, pool, ours, (bar, bar)),
        at_most("ten-million", work, unread, _MEGABYTES_UNREAD, " MB", ours=said),
    ]


def _of_pool(key: str, work: str, least: Series, pool: Series, ours: Series, allowed: tuple[float, float]) -> list[Row]:
    theirs = f"{pool.entry.name}: {pool.spread}"
    raw, without = ours.ratio(pool), ours.beyond(least)
    off = f"the same, the floor taken off ({least.spread})"
    return [
        at_most(key, work, raw, allowed[0], " ×", ours=ours.spread, theirs=theirs),
        at_most(key, off, without / pool.median(), allowed[1], " ×", ours=f"{without:.2f} s", theirs=theirs),
    ]


def ten_thousand(measures: Measures) -> list[Row]:
    """Compare 10^4 items with the floor, and with all peers."""
    least, *ours_and_peers = measures.ten_thousand
    ours, peers = fastest(ours_and_peers[:2]), ours_and_peers[2:]
    key, work = "ten-thousand", f"10^4 no-op items, {SLOTS} slots"
    rows = [beyond(key, work, ours, least, _SECONDS_BEYOND_FLOOR)]
    return rows + [faster(key, work, ours, peer) for peer in peers]


def tenth(measures: Measures) -> list[Row]:
    """Compare 200 items of 0.1 s with peers, and with the ideal."""
    least, *ours_and_peers = measures.tenth
    ours, peers = fastest(ours_and_peers[:2]), ours_and_peers[2:]
    key, work = "tenth", f"200 items of 0.1 s, {SLOTS} slots"
    ideal = least.own + _IDEAL_FOR_TENTHS
    said = f"floor + {_IDEAL_FOR_TENTHS} s: {ideal:.2f} s"
    alone = f"{work}, Slurm's wait left out"
    ratio = at_most(key, alone, ours.own / ideal, _OF_IDEAL, " ×", ours=f"{ours.own:.2f} s", theirs=said)
    return [*(faster(key, work, ours, peer) for peer in peers), ratio]


def growth(measures: Measures) -> list[Row]:
    """Compare the cost per item of 10^6 items with that of 10^4, in all and for each further item."""
    least, few, some, most = measures.growing
    few_each, most_each = (1e6 * ours.beyond(least) / ours.entry.work.items for ours in (few, most))
    further = _further(few, some), _further(some, most)
    work = "cost per item at 10^6, without the floor, over that at 10^4"
    marginal = "*each further item from 10^5 to 10^6, over each further one from 10^4 to 10^5*"
    said, theirs = f"{most_each:.2f} µs", f"at 10^4: {few_each:.1f} µs"
    ratio = further[1] / further[0]
    return [
        at_most("growth", work, most_each / few_each, _GROWTH, " ×", ours=said, theirs=theirs),
        Row("growth", marginal, f"{further[1]:.2f} µs", f"{further[0]:.2f} µs", f"{ratio:.2f} ×"),
    ]


def _further(smaller: Series, larger: Series) -> float:
    """Return the time per further item, in microseconds."""
    return 1e6 * (larger.own - smaller.own) / (larger.entry.work.items - smaller.entry.work.items)


def memory(measures: Measures) -> list[Row]:
    """Measure the client's memory per item while it waits."""
    most, few = measures.unresolved
    each = (most.measure("grown") - few.measure("grown")) / (MILLION - MANY)
    return [at_most("memory", "the client's memory per unresolved item at 10^6", each, _BYTES_PER_ITEM, " bytes")]


def first(measures: Measures) -> list[Row]:
    """Compare the first outcome of many with a single one."""
    ours, single = measures.first
    more = ours.median() - single.median()
    said = f"a single item: {single.spread}"
    bar = f"at most +{_FIRST_BEYOND_ONE} s"
    work = "the first outcome visible to the client while 10^6 run"
    return [Row("first", work, ours.spread, said, f"{more:+.2f} s", bar, more <= _FIRST_BEYOND_ONE)]


def watching(measures: Measures) -> list[Row]:
    """Count a waiting client's file operations: the system calls in the run folder."""
    _need_strace()
    work = "file operations a second of a client that watches"
    whats = f"{MANY} running tasks, whose nodes are played", f"{MANY} tasks, {SLOTS} running at a time"
    return [_calls(f"{work} {what}", ours) for what, ours in zip(whats, measures.watching, strict=True)]


def _calls(work: str, ours: Series) -> Row:
    total = ours.measure("all")
    kinds = {name: ours.measure(name) for name in ours.samples[0].measures if name != "all"}
    said = ", ".join(f"{count:.1f} {name}" for name, count in sorted(kinds.items(), key=lambda kind: -kind[1]))
    return at_most("watching", work, total, _FILE_CALLS_PER_SECOND, " a second", ours=said or "none")


def start_up(measures: Measures) -> list[Row]:
    """Count the file operations of a task's start: of its supervisor and of its pool process."""
    _need_strace()
    (ours,) = measures.starting
    work = {
        "opened": "files opened per task start",
        "missed": "files looked for in vain per task start",
        "read": "bytes read per task start",
    }
    rows = []
    for key, what in work.items():
        node, cloudpickle = ours.measure(f"node {key}"), ours.measure(f"cloudpickle {key}")
        said = f"`python -c 'import cloudpickle'`: {cloudpickle:,.0f}"
        rows.append(Row("start-up", what, f"{node:,.0f}", said, f"{node / cloudpickle:.2f} ×"))
    return rows


def _need_strace() -> None:
    if not strace.installed():
        raise NoSamples("not installed: strace (on Debian: apt-get install strace)")
