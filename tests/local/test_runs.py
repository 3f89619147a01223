"""The list of runs, and how `attach` finds one by other things than its folder."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest

import slurmlaunch
from slurmlaunch import Executor
from slurmlaunch.client.runs import manifests_in

if TYPE_CHECKING:
    from pathlib import Path

    from slurmlaunch import FutureArray
    from tests.support.waiting import Gate

pytestmark = pytest.mark.parametrize("backend", ["local"], indirect=True)


def copied(finished: FutureArray[int], folder: Path, *, without: tuple[str, ...] = (), name: str = "copy") -> Path:
    """Return a copy of a finished run, with these of its folders emptied."""
    run = folder / name
    shutil.copytree(finished.folder, run)
    for each in without:
        shutil.rmtree(run / each)
        (run / each).mkdir(0o700)
    return run


def leave(run: Path) -> None:
    """Have a process that has ended be the one that made the run, and that submitted nothing."""
    (run / "rounds/0/journal").unlink()
    plan = run / "rounds/0/plan.json"
    content = json.loads(plan.read_text())
    plan.write_text(json.dumps({**content, "client": [os.uname().nodename, 1 << 22, "1"]}))


class TestRuns:
    """`slurmlaunch.runs`."""

    def test_states(self, executor: Executor, finished: FutureArray[int], gate: Gate) -> None:
        """Each run has a row with its state, also runs that nobody will end."""
        running = executor.map_array(gate.enter, ["a"], name="waits")
        executor.map_array(abs, [-1], name="good").wait()
        failed = copied(finished, executor.folder)
        gone = copied(finished, executor.folder, without=("outcomes", "ended"), name="gone")
        never = copied(finished, executor.folder, without=("outcomes", "ended"), name="never")
        leave(never)
        damaged = copied(finished, executor.folder, without=("rounds",), name="damaged")
        (executor.folder / "no run").mkdir()

        found = slurmlaunch.runs(executor.folder)

        assert ["good", "waits"] == [run.name for run in found[:2]]
        states = {run.folder: run.state for run in found}
        assert {"running": running.folder, "failed": failed, "gone": gone, "damaged": damaged}.items() <= {
            state: folder for folder, state in states.items()
        }.items()
        assert ("never submitted", "done", 6) == (states[never], found[0].state, len(found))
        gate.open()

    def test_content(self, finished: FutureArray[int]) -> None:
        """A list prints as a table, as HTML, and as a dict for JSON."""
        found = slurmlaunch.runs(finished.folder.parent)

        (run,) = json.loads(json.dumps(found.to_dict()))["runs"]
        assert ({"done": 4, "failed": 2}, "failed", "local") == (
            {word: number for word, number in run["counts"].items() if number}, run["state"], run["cluster"],
        )  # fmt: skip
        assert run["size"] > 1000
        assert str(finished.folder) == run["folder"]
        assert list(finished.job_ids) == run["job_ids"]
        assert ["square", "4 done, 2 failed", finished.folder.name] == [
            each for each in ("square", "4 done, 2 failed", finished.folder.name) if each in repr(found)
        ]
        assert "<table>" in found._repr_html_()
        assert f"attach({str(finished.folder)!r})" in repr(found[0])

    def test_writes_nothing(self, finished: FutureArray[int]) -> None:
        """A list writes nothing into the folders that it lists."""
        before = finished.folder.stat().st_mtime_ns

        slurmlaunch.runs(finished.folder.parent).to_dict()

        assert before == finished.folder.stat().st_mtime_ns

    def test_default_folder(self, finished: FutureArray[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """The folder is by default that of an executor; one that does not exist has no runs."""
        monkeypatch.setenv("SLURMLAUNCH_FOLDER", str(finished.folder.parent))
        assert [finished.folder] == [run.folder for run in slurmlaunch.runs()]
        monkeypatch.delenv("SLURMLAUNCH_FOLDER")
        monkeypatch.chdir(tmp_path)
        assert f"no runs in {tmp_path}/slurmlaunch-runs" == repr(slurmlaunch.runs())

    def test_many(self, finished: FutureArray[int], tmp_path: Path) -> None:
        """A list reads one file of each run; a table looks only into the runs that it shows."""
        for number in range(30):
            run = tmp_path / f"run {number}"
            run.mkdir(0o700)
            shutil.copy(finished.folder / "manifest.json", run)

        found = slurmlaunch.runs(tmp_path)

        assert 30 == len(found) == len(list(manifests_in(tmp_path)))
        assert "and 10 more: slices such as runs()[20:] show them" in repr(found)
        assert 20 == sum("_content" in vars(run) for run in found)
