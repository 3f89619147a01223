"""The lines of the main job: against the floor and submitit."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from bars.comparisons import beyond, counted, faster
from bars.measures import MANY
from harness.site import QUERIES
from harness.table import Row, calls_as_text
from systems.registry import CLOUDPICKLE
from workloads.registry import SLOTS

if TYPE_CHECKING:
    from bars.measures import Measures
    from harness.series import Sample
    from harness.startup import Startup

_SECONDS_FOR_ONE, _SECONDS_FOR_MANY = 0.15, 0.4  # beyond the floor
_SHARE_OF_A_DEATH = 0.1
_FILES, _FILES_PER_TASK = 10, 4
_MEGABYTES = 2
_QUERIES = 3
_IMPORTS = 1.5


def floor(measures: Measures) -> list[Row]:
    """Show the lower bound on every system's time."""
    one, (least, _, _, python) = measures.alone[0], measures.sliced
    work = f"the floor: an array of {SLOTS} tasks that only create a file"
    more = f"{python.beyond(least):+.2f} s"
    return [
        Row("floor", "the floor: an array of 1 task that only creates a file", "", one.spread),
        Row("floor", work, "", least.spread),
        Row("floor", f"the same, and each task runs `python -c '{CLOUDPICKLE}'`", "", python.spread, more),
    ]


def round_trip(measures: Measures) -> list[Row]:
    """Compare one item's round trip with the floor and with submitit."""
    least, ours, submitit = measures.alone
    key, work = "round-trip", "one no-op round trip"
    return [beyond(key, work, ours, least, _SECONDS_FOR_ONE), faster(key, work, ours, submitit)]


def many(measures: Measures) -> list[Row]:
    """Compare 1000 items with the floor."""
    least, ours, _, _ = measures.sliced
    return [beyond("many", f"{MANY} no-op items, tasks={SLOTS}", ours, least, _SECONDS_FOR_MANY)]


def one_by_one(measures: Measures) -> list[Row]:
    """Compare with submitit as its manual shows it."""
    sliced, single, submitit = measures.one_by_one
    work = f"{measures.size.one_by_one} no-op items, {SLOTS} at a time"
    return [faster("one-by-one", work, each, submitit) for each in (sliced, single)]


def by_hand(measures: Measures) -> list[Row]:
    """Compare with submitit as an expert uses it."""
    _, ours, peer, _ = measures.sliced
    return [faster("by-hand", f"{MANY} no-op items, tasks={SLOTS}", ours, peer)]


def killed(measures: Measures) -> list[Row]:
    """Compare the cost of one killed item."""
    ours, peer = measures.killed
    ratio = ours.ratio(peer)
    lost = ours.median(_lost)
    return [
        Row(
            "killed",
            "100 items, one killed by SIGKILL",
            f"{ours.spread}, {lost:.0f} lost",
            f"{peer.entry.name}: {peer.spread}, {peer.median(_lost):.0f} lost",
            f"{ratio:.3f} ×",
            f"at most {_SHARE_OF_A_DEATH} ×, 1 lost",
            ratio <= _SHARE_OF_A_DEATH and lost == 1,
        )
    ]


def files(measures: Measures) -> list[Row]:
    """Count the files that a run leaves."""
    rows = []
    for ours, peer in (
        (measures.alone[1], measures.alone[2]),
        (measures.sliced[1], measures.one_by_one[2]),
    ):
        tasks, bar = ours.entry.work.tasks, _FILES + _FILES_PER_TASK * ours.entry.work.tasks
        count = ours.median(_files)
        rows.append(
            Row(
                "files",
                f"files of a run of {counted(ours.entry.work.items, 'item')} in {counted(tasks, 'task')}",
                f"{count:.0f}",
                f"{peer.entry.name}, {counted(peer.entry.work.items, 'item')}: {peer.median(_files):.0f}",
                "",
                f"at most {_FILES} + {_FILES_PER_TASK} × {tasks} = {bar}",
                count <= bar,
            )
        )
    return rows


def closure(measures: Measures) -> list[Row]:
    """Measure the disk space of a large closure."""
    ours, peer = measures.closure
    size = ours.median(_bytes) / 1e6
    copies = peer.entry.work.items
    theirs = peer.median(_bytes) / 1e6 * MANY / copies
    scaled = "" if copies == MANY else f" (measured with {copies} items, and scaled)"
    return [
        Row(
            "closure",
            f"{MANY} items × a closure of 200 kB",
            f"{size:.2f} MB",
            f"{peer.entry.name}: {theirs:.0f} MB{scaled}",
            f"{size / theirs:.4f} ×",
            f"under {_MEGABYTES} MB",
            size < _MEGABYTES,
        )
    ]


def calls(measures: Measures) -> list[Row]:
    """Count the calls to the scheduler."""
    ours, peer = measures.long
    ours.median()  # raises with the reason, if there is no sample
    made = ours.samples[0].calls
    queries = sum(made.get(name, 0) for name in QUERIES)
    others = sum(made.values()) - queries - made.get("sbatch", 0)
    theirs = calls_as_text(peer.samples[0].calls) if peer.samples else peer.spread
    return [
        Row(
            "calls",
            f"scheduler calls of a run of one array of {ours.entry.work.name}",
            calls_as_text(made),
            f"{peer.entry.name}: {theirs}",
            "",
            f"1 sbatch, at most {_QUERIES} queries",
            made.get("sbatch") == 1 and queries <= _QUERIES and not others,
        )
    ]


def imports(measures: Measures) -> list[Row]:
    """Compare the node's imports with cloudpickle alone."""
    node, cloudpickle = measures.startups
    ratio = min(node.seconds) / min(cloudpickle.seconds)
    said = f"{ratio:.2f} × (of the minima; of the medians of CPU time {_cpu(node) / _cpu(cloudpickle):.2f}"
    if node.instructions and cloudpickle.instructions:
        said += f"; of the instructions {node.instructions / cloudpickle.instructions:.2f}"
    theirs = f"`{cloudpickle.code}`: {cloudpickle.spread}"
    work = "what the node imports before it reads the function"
    return [Row("imports", work, node.spread, theirs, f"{said})", f"at most {_IMPORTS} ×", ratio <= _IMPORTS)]


def _lost(sample: Sample) -> int:
    return sample.lost


def _files(sample: Sample) -> int:
    return sample.files


def _bytes(sample: Sample) -> int:
    return sample.bytes


def _cpu(startup: Startup) -> float:
    return statistics.median(startup.cpu)
