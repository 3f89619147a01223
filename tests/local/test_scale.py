"""The costs that grow with the number of items. Bounds are on bytes, files and calls, never on seconds."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from slurmlaunch import Executor, WorkerDied
from slurmlaunch.client.ledger import Ledger
from slurmlaunch.client.watcher import SAVED_VISITS, VISITS_PER_SECOND, RateLimit
from slurmlaunch.runfolder.files import Location
from slurmlaunch.runfolder.layout import FOLDERS
from slurmlaunch.runfolder.outcomes import Recorded
from slurmlaunch.runfolder.records import Header, Kind
from tests.support import scripts
from tests.support.cluster import ClusterSpec
from tests.support.tasks import REPOSITORY, OneRun, rows
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.cluster import Cluster

MILLION = 10**6


@pytest.mark.slow
def test_items_of_a_generator_are_freed(tmp_path: Path) -> None:
    """Items of a generator are written at once: of millions, memory holds a few blocks and one byte per item."""
    script = """
        import resource, sys
        from slurmlaunch import Executor

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

        executor = Executor(sys.argv[1], cluster="local")
        executor.map_array(str, (i for i in range(10_000)), tasks=1).wait()
        before = peak()
        array = executor.map_array(str, (i for i in range(1_000_000)), tasks=100)
        grown = peak() - before
        array.cancel()
        print(grown)
        """
    assert int(scripts.run(tmp_path, script, tmp_path / "runs")) < MILLION + 10 * MILLION


def test_an_unresolved_item_costs_a_byte() -> None:
    """The client keeps one byte of status for each item, and a position for each record."""
    tracemalloc.start()
    try:
        ledger = Ledger(MILLION)
        unresolved = tracemalloc.get_traced_memory()[0]
        file = Location("0.0")
        for first in range(0, MILLION, 4096):
            ledger.record(Recorded(file, first, Header(Kind.SERIES, 4096, first, 0, 0)))
        resolved = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()

    assert not ledger.open
    assert unresolved < 1.1 * MILLION
    assert resolved - unresolved < 0.2 * MILLION


def test_items_with_one_cause_take_a_byte() -> None:
    """All items of a dead task share one error object."""
    tracemalloc.start()
    try:
        ledger = Ledger(MILLION)
        for first in range(0, MILLION, 1000):
            ledger.end(range(first, first + 1000), WorkerDied("killed").for_item)
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()

    assert not ledger.open
    assert taken < 2 * MILLION


def test_a_record_for_each_item_costs_little() -> None:
    """Long items have a record each, which costs some forty bytes."""
    tracemalloc.start()
    try:
        ledger, file = Ledger(MILLION // 100), Location("0.0")
        for item in range(MILLION // 100):
            ledger.record(Recorded(file, item, Header(Kind.VALUES, 1, item, 0, 0)))
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()

    assert taken < 45 * MILLION // 100


def test_the_rate_limit_keeps_the_promise() -> None:
    """A waiting client makes fewer than 50 operations a second on a network file system, a visit being four or five."""
    running = sum(VISITS_PER_SECOND[kind] for kind in ("folders", "growing", "ended"))
    assert 5 * running <= 50
    # In the first minute, too, and when the largest folders are listed.
    waiting = VISITS_PER_SECOND["folders"] + VISITS_PER_SECOND["growing"]
    saved = SAVED_VISITS["folders"] + SAVED_VISITS["growing"]
    names_per_call = 1000  # that the kernel returns: 32 KiB of them
    assert 4 * (waiting + saved / 60) + 2 * 10**5 / names_per_call / 60 < 50


def test_the_rate_limit() -> None:
    """Saved visits may be spent at once; after that no more than the rate, for each kind separately."""
    now = [0.0]
    limit = RateLimit(lambda: now[0])
    limit.spend({"folders": SAVED_VISITS["folders"] + VISITS_PER_SECOND["folders"]})
    assert 1.0 == limit.seconds_owed("folders")
    assert SAVED_VISITS["ended"] == limit.left("ended")

    now[0] = 2.0
    assert (0.0, VISITS_PER_SECOND["folders"]) == (limit.seconds_owed("folders"), limit.left("folders"))
    now[0] = 1e9
    assert SAVED_VISITS == {kind: limit.left(kind) for kind in SAVED_VISITS}


NOTE_WHAT_IS_OPENED = """
import json, os, sys

log = os.open(os.environ["OPENED"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

def note(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and not isinstance(arguments[0], int):
        os.write(log, json.dumps([os.getpid(), os.fspath(arguments[0])], default=str).encode() + b"\\n")

sys.addaudithook(note)
"""


def test_files_opened_by_a_node(tmp_path: Path) -> None:
    """A task opens a handful of files in the run folder, and each of its processes two, however many its items."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NOTE_WHAT_IS_OPENED, encoding="utf-8")
    run = OneRun(tmp_path / "run", abs, rows(range(20_000)), processes=3, cpus_per_task=3)
    path = os.pathsep.join([str(tmp_path / "site"), str(REPOSITORY)])

    assert 0 == run.run(env={"PYTHONPATH": path, "OPENED": str(tmp_path / "opened")}).status

    opened: dict[int, list[str]] = {}
    for line in (tmp_path / "opened").read_text(encoding="utf-8").splitlines():
        pid, name = json.loads(line)
        if not name.startswith("/") or name == str(run.folder.path):  # relative to a folder that is held
            opened.setdefault(pid, []).append(name.removeprefix(str(run.folder.path)))
    supervisor, *processes = opened.values()
    # Each folder is held by one descriptor. It looks for a later round that has its items, and polls cancellations.
    folders = ["", *FOLDERS, "0", "cancelled"]
    files = ["manifest.json", "function", "plan.json", "0", "1", "0.0"]  # 1 would be a later round
    assert Counter(supervisor) <= Counter([*folders, *files, "rounds", "cancelled", "."])
    assert {"manifest.json", "function", "plan.json", "0.0"} < set(supervisor)
    assert [{"items", "items.index"}] * 3 == [set(names) for names in processes]
    assert [2] * 3 == [len(names) for names in processes]


@pytest.mark.slow
@pytest.mark.slurm
def test_long_arrays(
    start_cluster: Callable[[ClusterSpec], Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run with more tasks than an array or the queue may have is submitted step by step."""
    cluster = start_cluster(ClusterSpec(lines=("AccountingStorageEnforce=limits", "MaxArraySize=6")))
    user = f"user={os.environ.get('USER', 'root')}"
    cluster.run("sacctmgr", "-i", "modify", "user", "where", user, "set", "MaxSubmitJobs=13")
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr("slurmlaunch.client.waiting_line.SHORTEST_WAIT", 0.5)

    executor = Executor(tmp_path / "runs", cluster="slurm")
    array = executor.map_array(lambda item: (item, item * item), range(10_000), tasks=20)

    assert [(item, item * item) for item in range(10_000)] == array.results(timeout=240)
    # A limit that was hit half-way may have sent one array again, but never twice into the queue.
    assert 4 == len(array.job_ids) == len(set(array.job_ids))
    wait_until(lambda: len(list((array.folder / "ended").iterdir())) == 20)  # a task leaves its mark after its results
