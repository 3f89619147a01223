"""Scripts that go on with their run: started again, killed, several at once, and beside a process that cleans."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest

import slurmlaunch
from slurmlaunch import Executor, RunFolderError, attach
from slurmlaunch.client import cleaning
from slurmlaunch.client.resuming import place_of
from slurmlaunch.runfolder.clients import ClientId
from slurmlaunch.runfolder.layout import RunFolder
from slurmlaunch.runfolder.rounds import claim_removal
from tests.local.test_release import same_python, unpack
from tests.support import scripts, sweeps
from tests.support.release import DATA
from tests.support.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("backend", ["local"], indirect=True)
class TestRemoval:
    """A removal beside a call that resumes."""

    def test_interrupted(self, executor: Executor) -> None:
        """The rest of a removal whose process was killed is removed, and the run is made anew."""
        first = executor.map_array(abs, [-1], name="sweep", resume=True)
        first.wait(PATIENCE)
        claim_removal(RunFolder(first.folder), 1, ClientId.current()._replace(started="1"))
        (first.folder / "items").unlink()

        again = executor.map_array(abs, [-1], name="sweep", resume=True)

        assert [1] == again.results(PATIENCE)
        assert first.folder == again.folder
        assert first.job_ids != again.job_ids

    def test_by_another_process(self, executor: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
        """A removal by a process that lives is waited for; if that gives it up, the run goes on."""
        first = executor.map_array(abs, [-1], name="sweep", resume=True)
        first.wait(PATIENCE)
        claim_removal(RunFolder(first.folder), 1, ClientId.current())
        monkeypatch.setattr(cleaning, "_LONGEST_REMOVAL", 0.1)
        with pytest.raises(RunFolderError, match="is being removed"):
            executor.map_array(abs, [-1], name="sweep", resume=True)
        monkeypatch.undo()
        monkeypatch.setattr(time, "sleep", lambda _: RunFolder(first.folder).round(1).remove())

        assert first.job_ids == executor.map_array(abs, [-1], name="sweep", resume=True).job_ids


def test_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects of a script's own class, with sets and arrays, are matched under another hash seed; nothing runs twice.

    Of two copies at once one makes the run, and both have its results.
    """
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    copies = [sweeps.start(tmp_path, 2, seconds=0.3) for _ in range(2)]
    for copy in copies:
        assert (0, "True 1\n") == scripts.finish(copy)[:2]
    monkeypatch.setenv("PYTHONHASHSEED", "2")
    _, out, err = scripts.finish(sweeps.start(tmp_path, 3))
    assert ("True 2\n", "slurmlaunch: sweep resumes: 2 of 3 items are done, 1 submitted now\n") == (out, err)

    changed = sweeps.SWEEP.replace("** 2", "* point.number")
    _, out, err = scripts.finish(scripts.start(tmp_path, changed, 3, "local"))
    assert "True 2\n" == out
    assert re.search(r"3 of 3 items are done; script.py changed since \d\d:\d\d \(lines 11-15\): results from b", err)
    assert [0, 1, 2] == sorted(sweeps.begun(tmp_path))
    assert [place_of("sweep", tmp_path / "runs")] == [run.folder for run in slurmlaunch.runs(tmp_path / "runs")]


def test_killed(tmp_path: Path) -> None:
    """After SIGKILL of a client with local tasks, what these left runs, also what none of them had claimed."""
    first = sweeps.start(tmp_path, 9, seconds=PATIENCE)
    wait_until(lambda: sweeps.begun(tmp_path))
    first.kill()
    first.communicate()

    assert (0, "True 2\n") == scripts.finish(sweeps.start(tmp_path, 9))[:2]
    assert set(range(9)) == set(sweeps.begun(tmp_path))
    assert 9 == len(attach(place_of("sweep", tmp_path / "runs")).results(PATIENCE))


CLEANS = """
    import sys, time
    import slurmlaunch

    while True:
        slurmlaunch.clean("runs", older_than=0, keep_failed=False)
        print(flush=True)
"""


@pytest.mark.slow
def test_beside_cleaning(tmp_path: Path) -> None:
    """Starts beside a process that cleans again and again: each has right results, of the old run or a new one."""
    (tmp_path / "runs").mkdir(0o700)
    (tmp_path / "cleans").mkdir()
    cleaner = scripts.start(tmp_path / "cleans", CLEANS, cwd=tmp_path)
    assert cleaner.stdout is not None
    cleaner.stdout.readline()
    for _ in range(2):
        copies = [sweeps.start(tmp_path, 3) for _ in range(2)]
        for copy in copies:
            status, out, err = scripts.finish(copy)
            assert (0, "True") == (status, out[:4]), err
    cleaner.kill()
    assert 3 <= len(sweeps.begun(tmp_path)) <= 4 * 3


@same_python
def test_an_old_run(tmp_path: Path) -> None:
    """A run of 0.1.0 is resumed: what failed runs again by the function of now, and new items are added."""
    (tmp_path / "runs").mkdir()
    run = attach(unpack(DATA / "local-dynamic.tar.xz", tmp_path / "runs"))
    failed = [future.index for future in run if future.exception(PATIENCE)]

    def square(*arguments: object) -> tuple[object, ...]:
        return arguments

    square.__module__, square.__qualname__ = "__main__", "square"
    items = [*(future.args for future in run), (100,)]
    again = Executor(tmp_path / "runs", cluster="local").starmap_array(square, items, name="square", resume=True)

    assert run.folder == again.folder
    found = again.results(PATIENCE)
    assert [items[index] for index in failed] == [found[index] for index in failed]
    assert [run[0].result(), (100,)] == [found[0], found[-1]]
    assert found == attach(again.folder).results(PATIENCE)
