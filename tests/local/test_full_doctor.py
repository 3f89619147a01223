"""`slurmlaunch doctor --full`: documented behaviours on the user's cluster, what breaks one, and the page."""

from __future__ import annotations

import json
import pwd
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from slurmlaunch import Check, doctor
from slurmlaunch.cli.main import main
from slurmlaunch.client.doctor import report as reports
from slurmlaunch.client.doctor.behaviours import BEHAVIOURS
from slurmlaunch.client.doctor.full import Behaviour
from slurmlaunch.client.doctor.items import harmless, stay
from slurmlaunch.client.doctor.page import page_of
from slurmlaunch.client.watcher import current_client

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slurmlaunch import Report
    from tests.support.cluster import Cluster


@pytest.fixture(autouse=True)
def _quick_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Query states every second, and share neither answers nor backends with other tests."""
    (tmp_path / "runtime").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("SLURMLAUNCH_QUERY_INTERVAL", "1")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    current_client().backends.clear()
    yield
    current_client().backends.clear()


def levels(report: Report) -> dict[str, str]:
    """Return the level of each behaviour that was tried."""
    return {each.name: each.level for each in report.checks if "promise" in each.data}


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A set-up that breaks one promise: the page names it, what was seen and the run, which is kept, and no other."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    names = ["error", "killed", "output", "caps", "retry"]
    only = [word for name in names for word in ("--only", name)]
    fault = "--setup=export OMP_NUM_THREADS=3"
    assert main(["doctor", "--cluster=local", "--folder", str(tmp_path / "runs"), fault, "--json", *only]) == 1

    report = json.loads(capsys.readouterr().out)
    tried = {each["name"]: each for each in report["checks"] if "promise" in each["data"]}
    caps = tried["caps"]
    assert {name: each["level"] for name, each in tried.items()} == {**dict.fromkeys(names, "ok"), "caps": "error"}
    assert "promised: Items see their share of the CPUs" in caps["found"]
    assert "seen: OMP_NUM_THREADS=3 on the node, which a prolog, a module or setup= sets, and not 1" in caps["found"]
    assert f"kept: {caps['data']['folder']}" in caps["found"]
    assert Path(caps["data"]["folder"]).is_dir()
    assert [*(tmp_path / "here").iterdir()] == [Path(report["page"])]
    page = Path(report["page"]).read_text(encoding="utf-8")
    assert "| killed | An item whose process is killed is named" in page
    assert "| **failed**: OMP_NUM_THREADS=3" in page
    assert "\nerr 7\n" in page  # of the log
    assert "| all behaviours, s | " in page


@pytest.mark.slurm
def test_default_cluster(tmp_path: Path, cluster: Cluster) -> None:
    """On a cluster as it should be the promises are kept, and no job and no folder is left."""
    names = ["cancel", "attach", "environment", "resume", "dynamic", "files"]
    report = doctor(tmp_path / "runs", full=names)

    assert levels(report) == dict.fromkeys(names, "ok"), str(report)
    measured = {each.name: each.data for each in report.checks}["measurements"]
    assert measured["calls"]["sbatch"] == 3  # of `cancel`, `dynamic` and `files`; the scripts count their own
    assert measured["round_trip"] > 0
    assert list((tmp_path / "runs").iterdir()) == []
    assert cluster.run("squeue", "--noheader", "--name=doctor") == ""


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a behaviour whose item sleeps for an hour."""
    check = Behaviour("endless", "It ends.", lambda trial: str(trial.executor().submit(stay, 3600.0).result()))
    monkeypatch.setitem(BEHAVIOURS, "endless", check)
    return "endless"


def test_interrupted(tmp_path: Path, endless: str) -> None:
    """A Ctrl-C ends the other behaviours at once, and leaves nothing."""
    made: list[str] = []

    def interrupt(check: Check) -> None:
        if "promise" in check.data:
            made.append(check.name)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        doctor(tmp_path / "runs", cluster="local", full=[endless, "auto"], on_check=interrupt)
    assert made == ["auto"]
    assert list((tmp_path / "runs").iterdir()) == []


def test_time_is_up(tmp_path: Path, endless: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has not ended in time is stopped, and the report says so."""
    monkeypatch.setattr(reports, "LONGEST", 0.3)
    report = doctor(tmp_path / "runs", cluster="local", full=[endless])

    (check,) = (each for each in report.checks if each.name == endless)
    assert check.level != "ok"
    assert "not done after 0 s" in check.found


def test_no_tasks(tmp_path: Path) -> None:
    """Where no job runs, nothing is tried."""
    report = doctor(tmp_path / "runs", cluster="inline", full=True)
    skipped = {each.name: each.found for each in report.checks if each.level == "skipped"}
    assert skipped == {
        "job": "cluster='inline' has no tasks of its own",
        **dict.fromkeys(BEHAVIOURS, "not tried, because the job above did not run"),
    }


def test_unknown_behaviour(capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong name is an error that lists the right ones."""
    with pytest.raises(LookupError, match="'cap'; there are time limit, "):
        doctor(cluster="local", full=["cap"])
    with pytest.raises(SystemExit) as end:
        main(["doctor", "--only", "cap"])
    assert end.value.code == 2
    assert "invalid choice: 'cap'" in capsys.readouterr().err


def test_names_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page names neither the user nor the machines."""
    anna = SimpleNamespace(pw_uid=1000, pw_name="anna", pw_dir="/home/anna")
    monkeypatch.setattr(pwd, "getpwuid", lambda _: anna)
    job = Check("job", "ok", "7_0 ran on n17.site", data={"host": "n17.site"})
    folder = Check("folder", "ok", "/home/anna/runs, of anna, not annas | /scratch/anna on n17")
    page = page_of([job, folder], None)
    assert "7_0 ran on HOST" in page
    assert "~/runs, of USER, not annas \\| /scratch/USER on HOST" in page
    assert not {"n17", "anna"} & set(page.replace("/", " ").split())


def test_options_of_a_mount() -> None:
    """Options that may name machines or users are left out."""
    options = "rw,vers=4.2,rsize=1048576,hard,addr=10.0.0.1,clientaddr=10.0.0.2,username=anna,user_id=7,acregmin=3"
    assert harmless(options) == "rw,vers=4.2,rsize=1048576,hard,acregmin=3"
