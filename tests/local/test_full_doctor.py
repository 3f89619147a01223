"""`slurmlaunch doctor --full`: documented behaviours on the user's cluster, what breaks one, and the page."""

from __future__ import annotations

import json
import os
import pwd
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from slurmlaunch import Check, doctor
from slurmlaunch.cli import doctor as cli_doctor
from slurmlaunch.cli.main import main
from slurmlaunch.client.doctor import full
from slurmlaunch.client.doctor.behaviours import BEHAVIOURS
from slurmlaunch.client.doctor.full import Behaviour, Site, check_behaviours
from slurmlaunch.client.doctor.items import harmless, stay
from slurmlaunch.client.doctor.page import page_of
from slurmlaunch.client.watcher import current_client
from slurmlaunch.errors import SubmissionError
from slurmlaunch.runfolder.files import Location

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from slurmlaunch import Report
    from slurmlaunch.client.doctor.full import Trial
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


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_signals(
    number: int, status: int, tmp_path: Path, endless: str, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """A kill, and a terminal that closes, end the command as Ctrl-C does, and leave nothing; nor does a second one."""
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(number)

    def send(check: Check) -> None:
        if check.name == "auto":
            os.kill(os.getpid(), number)

    def clear(site: Site, kept: Iterable[Path]) -> None:
        os.kill(os.getpid(), number)
        really(site, kept)

    really = Site.clear
    monkeypatch.setattr(Site, "clear", clear)
    monkeypatch.setattr(cli_doctor, "_print", send)
    only = ["--only", endless, "--only", "auto"]
    assert main(["doctor", "--cluster=local", "--folder=runs", *only]) == status
    assert signal.getsignal(number) is before
    assert [*(tmp_path / "runs").iterdir()] == []
    assert [*tmp_path.glob("*.md")] == []
    assert capfd.readouterr().err.endswith("slurmlaunch: cancelling its jobs and removing their files\n")
    assert caplog.messages == []


def test_nowhere_for_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A working directory that takes no page is an error before anything is submitted."""
    monkeypatch.chdir("/proc")
    assert main(["doctor", "--cluster=local", "--folder", str(tmp_path / "runs"), "--only=caps"]) == 2
    assert "error: the page cannot be written into /proc: " in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """What has not ended in time is stopped: what runs is an error; what is pending, or found no room, is not."""
    began = threading.Event()

    def run(trial: Trial) -> str:
        future = trial.executor().submit(stay, 3600.0)
        began.set()
        return str(future.result())

    def wait(trial: Trial) -> str:
        began.wait()
        cpus = len(os.sched_getaffinity(0))
        return str(trial.executor(cpus_per_task=cpus, threads=cpus).submit(stay, 0.0).result())

    def refuse(_: Trial) -> str:
        raise SubmissionError("too many tasks", no_room=True)

    behaviours = [
        Behaviour("too many", "", refuse),
        Behaviour("runs", "", run),
        Behaviour("waits", "", wait),
        Behaviour("not begun", "", run),
    ]
    monkeypatch.setattr(full, "_SIDE_BY_SIDE", 2)
    monkeypatch.setattr(Site, "left_in_queue", lambda *_: {"7", "8"})
    place = Location(tmp_path / "site")
    place.mkdir()
    site = Site(place, None, {"cluster": "local"}, current_client().backend("local"))
    checks = {each.name: each for each in check_behaviours(site, behaviours, room=None, longest=1.0)}

    assert {name: check.level for name, check in checks.items() if "promise" in check.data} == {
        "too many": "skipped", "runs": "error", "waits": "skipped", "not begun": "skipped"
    }  # fmt: skip
    assert "not done after 1 s" in checks["runs"].found
    assert "not done after 1 s, and a task is pending: " in checks["waits"].found
    assert "not tried within 1 s" in checks["not begun"].found
    assert caplog.messages == ["slurmlaunch has not seen these jobs leave the queue: scancel 7 8"]


def test_no_tasks(tmp_path: Path) -> None:
    """Where no job runs, nothing is tried."""
    report = doctor(tmp_path / "runs", cluster="inline", full=True)
    skipped = {each.name: each.found for each in report.checks if each.level == "skipped"}
    assert levels(report) == dict.fromkeys(BEHAVIOURS, "skipped")
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
    account = Check(
        "account", "ok", "lab_a; you may use lab_a, lab", data={"accounts": ["lab_a", "lab"], "asked": None}
    )
    seen = Check("folder", "ok", "/home/anna/runs, of anna, not annas | /scratch/anna_data on n17, <lambda>")
    node = {
        "promise": "",
        "seconds": 1,
        "seen": "",
        "nodes": ["n18.site"],
        "log": "```\nCANCELLED ON n18",
        "folder": "",
    }
    page = page_of([job, account, seen, Check("caps", "error", "seen: <function>", data=node)], None)
    assert "7_0 ran on HOST" in page
    assert "~/runs, of USER, not annas \\| /scratch/USER_data on HOST, &lt;lambda&gt;" in page
    assert "ACCOUNT; you may use ACCOUNT, ACCOUNT" in page
    assert "seen: &lt;function&gt;" in page
    assert "````text\n```\nCANCELLED ON HOST" in page
    assert not {"n17", "n18", "anna", "lab"} & set(page.replace("/", " ").split())


def test_options_of_a_mount() -> None:
    """Options that may name machines or users are left out."""
    options = "rw,vers=4.2,rsize=1048576,hard,addr=10.0.0.1,clientaddr=10.0.0.2,username=anna,user_id=7,acregmin=3"
    assert harmless(options) == "rw,vers=4.2,rsize=1048576,hard,acregmin=3"
