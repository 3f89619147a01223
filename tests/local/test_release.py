"""Run folders of release 0.1.0 stay readable, and its batch scripts do not change."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch import attach
from tests.support.release import DATA, SCRIPTS, script, summary
from tests.support.waiting import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

READ: dict[str, dict[str, Any]] = {
    name: read
    for cluster in ("local", "slurm")
    for name, read in json.loads((DATA / f"{cluster}.json").read_text(encoding="utf-8")).items()
}
"""For each run folder what 0.1.0 read from it."""


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a run folder, owned by this process's user and private, for any modes in the archive and any umask."""
    with tarfile.open(archive) as members:
        for member in members:
            path = folder / member.name
            if member.isdir():
                path.mkdir()
                path.chmod(0o700)
                continue
            content = members.extractfile(member)
            assert content is not None
            path.write_bytes(content.read())
            path.chmod(0o600)
        return folder / members.getnames()[0]


# A class of the user's script travels as Python's own bytecode, which another Python may crash on.
same_python = pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="Python 3.11 wrote it")
MARKS = {
    "local-values": same_python,
    "slurm-values": same_python,
    "slurm-cancelled_by_another": pytest.mark.slow,  # it has no outcome: its state is queried first
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, ())) for name in READ])
def test_a_run_folder_reads_as_it_did(name: str, tmp_path: Path) -> None:
    """Values, exceptions, cancellations, counts, jobs and attempts of an older run are the same in this release."""
    assert READ[name] == summary(attach(unpack(DATA / f"{name}.tar.xz", tmp_path)))


def test_every_folder_is_read() -> None:
    """Every archive has a test."""
    assert sorted(READ) == sorted(path.name.removesuffix(".tar.xz") for path in DATA.glob("*.tar.xz"))


@pytest.mark.parametrize("name", ["local-retried", "local-dynamic"])
def test_an_old_run_travels(name: str, tmp_path: Path) -> None:
    """The array of an older run pickles, and finds the run again."""
    run = attach(unpack(DATA / f"{name}.tar.xz", tmp_path))

    assert READ[name] == summary(pickle.loads(pickle.dumps(run)))


@same_python
def test_an_old_run_is_retried(tmp_path: Path) -> None:
    """A retry in an older folder runs the stored function for the failed item, and for no other."""
    run = attach(unpack(DATA / "local-dynamic.tar.xz", tmp_path))

    again = run.retry(python=[sys.executable])

    assert [type(error) for error in [future.exception() for future in again] if error] == [ArithmeticError]
    assert READ["local-dynamic"]["items"] == summary(again)["items"]
    assert [1] * 7 + [2] + [1] * 5 == summary(again)["attempts"]


@same_python
def test_an_old_run_is_retried_as_it_was_submitted(tmp_path: Path) -> None:
    """A run of which no code and no environment is recorded is retried with the stored function, too."""
    run = attach(unpack(DATA / "local-dynamic.tar.xz", tmp_path))

    again = run.retry(python=[sys.executable], code="submitted")

    assert READ["local-dynamic"]["items"] == summary(again)["items"]
    assert READ["local-dynamic"]["items"] == summary(attach(run.folder))["items"]


@same_python
def test_an_old_run_by_another_function(tmp_path: Path) -> None:
    """Another function gets the arguments of an older release's single call.

    0.1.0 knows nothing of other functions and would run the first: it reads ``items`` of each plan, and refuses this.
    """
    run = attach(as_submitted(DATA / "local-single.tar.xz", tmp_path))
    run.wait(PATIENCE)

    again = run.retry(lambda *args, **kwargs: (args, kwargs), python=[sys.executable])

    assert [((1,), {"second": "b"})] == again.results(PATIENCE)
    assert "items" not in json.loads((again.folder / "rounds" / "1" / "plan.json").read_text(encoding="utf-8"))
    assert [((1,), {"second": "b"})] == attach(again.folder).results(PATIENCE)


# Tasks that 0.1.0 submitted, and that start under this release.

QUEUED = ("values", "single", "dynamic", "guided", "packed", "ranks", "shared")
"""The kinds of runs whose items need no file of the machine that recorded them."""


def as_submitted(archive: Path, folder: Path) -> Path:
    """Unpack a run folder as it was before its tasks started, with this Python for its ranks."""
    run = unpack(archive, folder)
    for written in ("outcomes/*", "ended/*", "cancelled/*", "rounds/*/claims/*", "rounds/*/ranks/*", "rounds/*/ends.*"):
        for path in run.glob(written):
            path.unlink()
    for path in run.glob("rounds/*/plan.json"):
        plan = json.loads(path.read_text(encoding="utf-8"))
        if plan["ranks"]:
            plan["ranks"] |= {"command": [sys.executable, *plan["ranks"]["command"][1:]]}
            path.write_text(json.dumps(plan), encoding="utf-8")
    return run


@same_python
@pytest.mark.parametrize("kind", QUEUED)
def test_a_queued_task_runs(kind: str, tmp_path: Path) -> None:
    """A batch script and a run folder of an older release give the same results under the node of this one."""
    run = as_submitted(DATA / f"local-{kind}.tar.xz", tmp_path)
    script = (DATA / "queued.txt").read_text(encoding="utf-8")
    script = script.replace("/runs/STAMP-len-00000000", str(run)).replace("python3", sys.executable)
    slices = json.loads((run / "rounds" / "0" / "plan.json").read_text(encoding="utf-8"))["slices"]
    for task in range(slices["tasks"]):
        subprocess.run(
            ["bash", "-c", script], env={**os.environ, "SLURM_ARRAY_TASK_ID": str(task)}, cwd=tmp_path, check=False
        )

    found = summary(attach(run))

    assert READ[f"local-{kind}"]["items"] == found["items"]
    assert READ[f"local-{kind}"]["attempts"] == found["attempts"]
    assert slices["tasks"] == len(list((run / "ended").iterdir()))


# Batch scripts.


@pytest.mark.parametrize("case", SCRIPTS)
def test_a_batch_script_is_the_same(case: str) -> None:
    """The same call submits the same script, byte by byte; the files were written before the -P that nodes get."""
    before = (DATA / f"{case}.sh").read_text(encoding="utf-8")
    assert before.count(" -m slurmlaunch.node ") == 1
    assert script(case) == before.replace(" -m slurmlaunch.node ", " -P -m slurmlaunch.node ")


def test_every_script_is_compared() -> None:
    """Every script has a test."""
    assert sorted(SCRIPTS) == sorted(path.stem for path in DATA.glob("*.sh"))
