"""The simulation: the calls of a real client in a run that is too large for a test machine.

The bounds are on the client's calls of the scheduler and of the file system, never on seconds.
"""

from __future__ import annotations

import collections
import contextlib
import posix
import sys
from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch.client.ledger import ItemStatus
from slurmlaunch.client.watcher import RateLimit, Watch
from tests.support.tasks import REPOSITORY

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator
    from pathlib import Path
    from types import ModuleType

ON_FILES = {posix.open, posix.close, posix.stat, posix.lstat, posix.fstat, posix.read, posix.pread, posix.listdir}
NAMES_OF = {each.__name__ for each in ON_FILES} | {"scandir"}

pytestmark = pytest.mark.slow

SIZE = {"items": 2_000_000, "tasks": 600, "array": 60, "slots": 200, "seconds": 600.0}


@pytest.fixture
def simulation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """Return the module, whose Slurm shares its answers with no other process."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    import simulation as module

    return module


@contextlib.contextmanager
def counted_calls() -> Iterator[Counter[str]]:
    """Count the calls of this thread that work on files, by any caller."""
    calls: Counter[str] = collections.Counter()

    def note(_frame: object, event: str, function: Any) -> None:
        if event == "c_call" and function.__name__ in NAMES_OF and function.__module__ == "posix":
            calls[function.__name__] += 1

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(before)


def test_a_run(simulation: ModuleType, tmp_path: Path) -> None:
    """Everything settles soon after its end, with few calls of scheduler and file system, however many items run."""
    simulated = simulation.Simulation(simulation.Size(**SIZE), tmp_path / "run")
    figures = simulated.watch()

    ledger = simulated.run.ledger
    assert (0, 2_000_000) == (ledger.open, ledger.count(ItemStatus.VALUE))
    assert 10 == figures.arrays == figures.calls["sbatch"]
    # An answer is good for 30 s; unknown states may need one further query.
    assert figures.calls["squeue"] <= figures.simulated / 30 + 2
    assert figures.calls["sacct"] <= figures.calls["squeue"]
    assert figures.operations < 50
    assert figures.busiest < 60
    assert figures.late < 5
    # Some records a task, and a byte an item.
    assert len(ledger.records) <= 3 * 600


def test_counted_operations(simulation: ModuleType, tmp_path: Path) -> None:
    """A waiting client is charged for all of its polls' file system calls."""
    simulated = simulation.Simulation(simulation.Size(**SIZE), tmp_path / "run")
    clock, cluster = simulated.clock, simulated.cluster
    limit, watch = RateLimit(clock), Watch(simulated.run, network=True)
    made = 0
    for _ in range(200):
        clock.now = max(clock.now + 1.0, watch.due)
        assert cluster.next_event
        cluster.advance()
        with counted_calls() as calls:
            watch.poll(limit)
        made += sum(calls.values())

    charged = sum(watch.collector.visits.values())
    assert made > 2000
    assert 3 * charged < made <= 5 * charged
