"""Run folders of release 0.1.0 stay readable, and its batch scripts do not change."""

from __future__ import annotations

import json
import pickle
import sys
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch import attach
from tests.support.release import DATA, SCRIPTS, script, summary

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


@pytest.mark.parametrize("case", SCRIPTS)
def test_a_batch_script_is_the_same(case: str) -> None:
    """The same call submits the same script, byte by byte, but for the -P that keeps the client's folder out."""
    before = (DATA / f"{case}.sh").read_text(encoding="utf-8")
    assert before.count(" -m slurmlaunch.node ") == 1
    assert script(case) == before.replace(" -m slurmlaunch.node ", " -P -m slurmlaunch.node ")


def test_every_script_is_compared() -> None:
    """Every script has a test."""
    assert sorted(SCRIPTS) == sorted(path.stem for path in DATA.glob("*.sh"))
