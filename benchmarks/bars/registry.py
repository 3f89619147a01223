"""All lines of the table, by the key that ``--only`` takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bars import items, main_job
from harness.series import NoSamples
from harness.table import Row

if TYPE_CHECKING:
    from collections.abc import Callable

    from bars.measures import Measures

LINES: dict[str, Callable[[Measures], list[Row]]] = {
    "floor": main_job.floor,
    "round-trip": main_job.round_trip,
    "many": main_job.many,
    "one-by-one": main_job.one_by_one,
    "by-hand": main_job.by_hand,
    "killed": main_job.killed,
    "files": main_job.files,
    "closure": main_job.closure,
    "calls": main_job.calls,
    "imports": main_job.imports,
    "million": items.million,
    "ten-million": items.ten_million,
    "ten-thousand": items.ten_thousand,
    "tenth": items.tenth,
    "growth": items.growth,
    "memory": items.memory,
    "first": items.first,
    "watching": items.watching,
    "start-up": items.start_up,
}

ONLY_FULL = frozenset({"ten-million"})
"""The lines that the short form leaves out, unless they are requested."""


def rows(key: str, measures: Measures) -> list[Row]:
    """Return the rows of a key; if a measurement failed, a row with the reason that does not meet its bar."""
    try:
        return LINES[key](measures)
    except NoSamples as missing:
        return [Row(key, key, "not measured", str(missing), met=False)]
