"""Run folders on a file system that caches: many blocks, and how often the client looks.

They run with ``SLURMLAUNCH_TEST_CLUSTER=cached``, whose nodes and client see each other's files seconds late.
"""

from __future__ import annotations

import sys
import time
from statistics import median
from typing import TYPE_CHECKING

import pytest

from slurmlaunch import Executor
from tests.faults.wrapped import Wrapped
from tests.support.clusters import chosen

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.cluster import Cluster

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(chosen().name != "cached", reason="runs in nox -s cluster-cached"),
]

ITEMS = 300


def square(number: int) -> int:
    """Return the square of a number."""
    return number * number


@pytest.mark.parametrize(("schedule", "chunksize"), [("dynamic", 1), ("auto", None)])
def test_hundreds_of_blocks(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str, chunksize: int | None
) -> None:
    """Two tasks share 300 items without losing one, and the client asks Slurm three times at most."""
    (tmp_path / "runtime").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    wrapped = Wrapped(tmp_path / "wrapped")
    monkeypatch.setenv("PATH", wrapped.path)
    with Executor(tmp_path / "runs", cluster="slurm", by_value=__name__) as executor:
        futures = executor.map_array(square, range(ITEMS), tasks=2, schedule=schedule, chunksize=chunksize)
        assert futures.results(timeout=100) == [number * number for number in range(ITEMS)]
    assert len(wrapped.calls(["squeue"])) <= 3


def end(_: int) -> float:
    """Work for a second; return when that was over."""
    time.sleep(1.0)
    return time.time()


def test_lateness(cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A result is late by the file system's caches once, however many items and tasks end at that time."""
    assert cluster.name
    seen: dict[int, float] = {}
    with Executor(tmp_path / "runs", cluster="slurm", by_value=__name__) as executor:
        array = executor.map_array(end, range(60), tasks=20, schedule="static")
        for future in array:
            future.add_done_callback(lambda each: seen.setdefault(each.index, time.time()))
        ended = array.results(timeout=200)
    late = sorted(seen[item] - when for item, when in enumerate(ended))

    with capsys.disabled():
        sys.stdout.write(
            f"\nseconds from the end of an item to its result: {median(late):.1f}, at most {late[-1]:.1f}\n"
        )
    assert late[-1] < 2 * chosen().latency
