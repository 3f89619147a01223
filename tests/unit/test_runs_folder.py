"""The folder of runs: private if slurmlaunch made it, and the folders above which others may exchange."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from slurmlaunch import Executor
from slurmlaunch.runfolder.runs_folder import make_private, others_may_exchange

if TYPE_CHECKING:
    from pathlib import Path

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

NOBODY = 65534


def mode(path: Path) -> int:
    """Return the permissions of a folder, the setgid bit included."""
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("name", ["slurmlaunch-runs", "runs"])
def test_a_new_folder_of_runs_is_private(tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    """The folder is made for this user alone for any umask, and its parents as the umask says; nothing is printed."""
    before = os.umask(0o002)
    try:
        made = make_private(tmp_path / "new" / name)
    finally:
        os.umask(before)

    assert (0o700, 0o775, "") == (mode(made), mode(made.parent), capfd.readouterr().err)


def test_an_open_folder_of_runs_becomes_private_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A `slurmlaunch-runs` of this user's is closed to others with one line; its group's setgid bit stays."""
    folder = tmp_path / "slurmlaunch-runs"
    folder.mkdir()
    folder.chmod(0o2775)

    for _ in range(2):
        Executor(folder, cluster="inline").submit(abs, -1).result()

    (line,) = capfd.readouterr().err.splitlines()
    assert (0o2700, True) == (mode(folder), f"{folder} is now yours alone (mode 2700, before 2775)" in line)


def test_a_folder_that_the_user_names_stays_as_it_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A folder of another name may be meant for several users: its mode stays, and the run folder is private."""
    tmp_path.chmod(0o2775)

    run = Executor(tmp_path, cluster="inline").map_array(abs, [-1])

    assert (0o2775, 0o700, "") == (mode(tmp_path), mode(run.folder) & 0o777, capfd.readouterr().err)


@needs_root
def test_a_folder_of_another_user_stays_as_it_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A `slurmlaunch-runs` of another user's, or of a project's, is used as it is."""
    folder = tmp_path / "slurmlaunch-runs"
    folder.mkdir()
    folder.chmod(0o777)
    os.chown(folder, NOBODY, -1)

    run = Executor(folder, cluster="inline").map_array(abs, [-1])

    assert (0o777, 0o700, "") == (mode(folder), mode(run.folder), capfd.readouterr().err)


@pytest.mark.parametrize(
    ("above", "exchangeable"),
    [(0o700, False), (0o755, False), (0o775, True), (0o757, True), (0o2770, True), (0o1777, False), (0o1775, False)],
)
def test_who_may_exchange_a_run_folder(tmp_path: Path, above: int, *, exchangeable: bool) -> None:
    """Others may rename a folder if they may write to one above it that is not sticky, by its group's bits, too."""
    run = tmp_path / "above" / "runs" / "run"
    run.mkdir(parents=True)
    run.chmod(0o777)  # its own mode lets nobody rename it
    assert not others_may_exchange(run)

    for each in (run.parent, run.parents[1]):
        before = mode(each)
        each.chmod(above)
        assert others_may_exchange(run) == exchangeable
        assert others_may_exchange(run.parent / "not-yet-made") == exchangeable
        each.chmod(before)


@needs_root
@pytest.mark.parametrize("number", [0, 1, 2])
def test_owners_of_folders_above_may_exchange_a_run_folder(tmp_path: Path, number: int) -> None:
    """Another user who owns the run folder or one above it, whatever its mode, may put another one in its place."""
    run = tmp_path / "above" / "runs" / "run"
    run.mkdir(parents=True)
    os.chown([run, *run.parents][number], NOBODY, -1)

    assert others_may_exchange(run)
