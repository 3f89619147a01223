"""What a future tells about the running of its item, on every backend: when, for how long, where."""

from __future__ import annotations

import os
import signal
import time
from array import array as numbers
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from slurmlaunch import attach
from slurmlaunch.runfolder.outcomes import Times
from slurmlaunch.runfolder.records import Header, Kind
from tests.conftest import elsewhere

if TYPE_CHECKING:
    from slurmlaunch import Executor, FutureArray
    from tests.conftest import ExecutorFactory
    from tests.support.waiting import Gate

SHORT = 5000


def sleep_and_end(item: int) -> object:
    """End as the item says, after a time that only this item takes."""
    time.sleep(0.1 * item)
    if item == 1:
        raise ValueError(item)
    if item == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return bytes(100_000) if item == 3 else None  # so large that the process appends it itself


def _check(array: FutureArray[object], least: list[float], before: datetime) -> None:
    for future, seconds in zip(array, least, strict=True):
        assert future.duration is not None
        assert future.started is not None
        assert future.started.utcoffset() is not None
        assert seconds <= future.duration + 0.01
        assert before.timestamp() - 1 <= future.started.timestamp() <= time.time() - future.duration + 0.1


@elsewhere
@pytest.mark.anywhere
def test_times(make_executor: ExecutorFactory) -> None:
    """Each item has its own times, however it ended; the large value's follow the record that its process wrote."""
    before = datetime.now(UTC)
    array = make_executor(processes=2).map_array(sleep_and_end, range(5), tasks=1)
    array.results(return_exceptions=True)

    _check(array, [0.0, 0.1, 0.2, 0.3, 0.4], before)
    assert len({future.node for future in array}) == 1
    assert array[0].attempts[0].node == array[0].node


def test_times_of_short_items(executor: Executor) -> None:
    """Short items share the time of their block, and all of them have one; another process reads the same."""
    before = datetime.now(UTC)
    array = executor.map_array(abs, range(SHORT), tasks=1)
    array.results()
    seconds = (datetime.now(UTC) - before).total_seconds()

    durations = [future.duration for future in array]
    assert None not in durations
    assert sum(filter(None, durations)) <= seconds
    with_attach = attach(array.folder)[SHORT - 1]
    last = array[SHORT - 1]
    assert (last.started, last.duration, last.node) == (with_attach.started, with_attach.duration, with_attach.node)


@elsewhere
@pytest.mark.anywhere
def test_no_times(executor: Executor, gate: Gate) -> None:
    """An item that has no outcome has no times; nor has one that was cancelled."""
    array = executor.map_array(gate.enter, [0, 1], tasks=1)
    array[1].cancel()

    assert [(None, None)] * 2 == [(future.started, future.duration) for future in array]


@pytest.mark.parametrize(
    "payload",
    [b"", bytes(5), bytes(8), bytes(20), numbers("d", [float("nan")]).tobytes() + bytes(8), bytes(8) + b"\xff" * 8],
    ids=len,
)
def test_damaged_times(payload: bytes) -> None:
    """A record of times that does not hold what its header says is passed over."""
    assert Times.parse(Header(Kind.TIMES, 2, 0, len(payload), 0), payload) is None
