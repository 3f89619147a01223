"""The blocks of a dynamic round: arithmetic that client and node share."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurmlaunch.runfolder.plan import SCHEDULES, Blocks, Measured, Pace, blocks_from_json

any_blocks = st.builds(
    Blocks,
    st.integers(min_value=0, max_value=3000),
    st.integers(min_value=1, max_value=100),
    st.sampled_from(SCHEDULES),
    st.none() | st.integers(min_value=1, max_value=50),
)


def lengths(blocks: Blocks) -> list[int]:
    """Return how long each block is."""
    return [len(blocks.positions_of(block)) for block in range(blocks.number)]


@given(any_blocks)
def test_each_position_is_in_one_block(blocks: Blocks) -> None:
    """The blocks contain all positions, each once and in order, and none is empty."""
    parts = [blocks.positions_of(block) for block in range(blocks.number)]

    assert [position for part in parts for position in part] == list(range(blocks.items))
    assert all(parts)


@given(any_blocks)
def test_the_block_of_a_position_holds_it(blocks: Blocks) -> None:
    """The block that `block_of` returns for a position holds that position."""
    assert all(position in blocks.positions_of(blocks.block_of(position)) for position in range(blocks.items))


@given(any_blocks)
def test_blocks_never_grow(blocks: Blocks) -> None:
    """A later claimed block is no longer than an earlier one."""
    found = lengths(blocks)

    assert sorted(found, reverse=True) == found


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("items", "tasks"), [(100, 1), (1000, 16), (10**6, 16), (10**6, 1000), (10**8, 10**5)])
def test_there_are_few(items: int, tasks: int, schedule: str) -> None:
    """The tasks and the logarithm of the items bound the number of blocks, and the last blocks are single items."""
    blocks = Blocks(items, tasks, schedule)

    assert blocks.number <= tasks * (3 * math.log2(items / tasks + 1) + 3)
    assert blocks.positions_of(blocks.number - 1) == range(items - 1, items)


def test_shapes() -> None:
    """By default as many blocks of one length as there are tasks, each a third of a fair share of the rest."""
    assert lengths(Blocks(40, 2, "dynamic")) == [7, 7, 5, 5, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1]
    assert lengths(Blocks(40, 2, "guided")) == [7, 6, 5, 4, 3, 3, 2, 2, 2, 1, 1, 1, 1, 1, 1]
    assert lengths(Blocks(10, 2, "dynamic", 4)) == [4, 4, 2]
    assert lengths(Blocks(40, 2, "guided", 4)) == [7, 6, 5, 4, 4, 4, 4, 4, 2]


def test_beyond_the_ends() -> None:
    """A position or a block out of range is an IndexError."""
    blocks = Blocks(10, 2, "dynamic", 4)
    for ask in (blocks.positions_of, blocks.block_of):
        for number in (-1, 10):
            with pytest.raises(IndexError, match="there is no"):
                ask(number)


@pytest.mark.parametrize(
    ("items", "tasks", "schedule", "chunksize"),
    [(-1, 1, "dynamic", None), (1, 0, "dynamic", None), (1, 1, "static", None), (1, 1, "guided", 0)],
)
def test_no_blocks(items: int, tasks: int, schedule: str, chunksize: int | None) -> None:
    """Numbers that describe no valid blocks, such as those of a damaged plan, are refused."""
    with pytest.raises(ValueError, match="make no"):
        Blocks(items, tasks, schedule, chunksize)


class Front:
    """Where the next block begins, in a run without claims."""

    def __init__(self, start: int = 0, tasks: int = 1) -> None:
        self.block, self.start, self.tasks = 0, start, tasks


@pytest.mark.parametrize(
    ("pace", "expected"),
    [
        (Pace(), 1),
        (Pace(idle=4, processes=4), 4),
        (Pace(seconds=1e-3, last=1), 8),
        (Pace(seconds=1e-3, last=64), 200),
        (Pace(seconds=1e-3, last=128, processes=4), 800),
        (Pace(seconds=1e-6, last=10**6), 1562),
        (Pace(seconds=5.0, last=64), 66),
        (Pace(seconds=5.0, last=64, left=20.0), 4),
        (Pace(seconds=5.0, last=64, left=1.0), 1),
    ],
)
def test_measured_lengths(pace: Pace, expected: int) -> None:
    """One item per process first; then a tenth of a second of work or a share of the rest, within time and balance."""
    assert Measured(100_000, 1000).length(Front(), pace) == expected


@pytest.mark.parametrize(
    ("items", "start", "seconds", "expected"),
    [(10**6, 900_000, 1e-6, 6250), (10**6, 990_000, 1e-6, 625), (10**6, 990_000, 1e-4, 200), (200, 100, 5e-3, 1)],
)
def test_measured_lengths_at_the_end(items: int, start: int, seconds: float, expected: int) -> None:
    """Blocks with less than a fiftieth of a second of work do not shrink until each task has one left."""
    assert Measured(items, 1000).length(Front(start, tasks=16), Pace(seconds=seconds, last=10**6)) == expected


@pytest.mark.parametrize("seconds", [1e-7, 1e-4, 1e-2, 3.0])
@pytest.mark.parametrize(("items", "tasks"), [(1000, 1000), (1000, 16), (10**6, 1000), (10**6, 64), (10**7, 100)])
def test_there_are_few_claims(items: int, tasks: int, seconds: float) -> None:
    """Tasks that start together and share the items make at most tasks x (8 + log2(items / tasks)) claims."""
    blocks, last, front, claims = Measured(items, tasks), [0] * tasks, Front(tasks=0), 0
    while front.start < items:
        task = claims % tasks
        front.tasks = min(tasks, claims + 1)
        pace = Pace(seconds=seconds if last[task] else 0.0, last=last[task])
        last[task] = min(blocks.length(front, pace), items - front.start)
        front.start, claims = front.start + last[task], claims + 1

    assert claims <= tasks * (8 + math.log2(items / tasks))


def test_measured_blocks_of_a_damaged_plan() -> None:
    """Items without tasks are refused, and what was written is read."""
    with pytest.raises(ValueError, match="make no blocks"):
        Measured(3, 0)
    assert blocks_from_json(json.loads(json.dumps(Measured(9, 3).to_json()))) == Measured(9, 3)


@given(any_blocks)
def test_json(blocks: Blocks) -> None:
    """Writing and reading gives the same plan, and unknown keys are ignored."""
    data = json.loads(json.dumps(blocks.to_json())) | {"later": 1}

    assert Blocks.from_json(data) == blocks
    assert lengths(Blocks.from_json(data)) == lengths(blocks)
