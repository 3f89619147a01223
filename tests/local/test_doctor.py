"""`slurmlaunch doctor`: nothing wrong where nothing is, and planted faults by their names."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slurmlaunch import doctor
from slurmlaunch.cli.main import main
from slurmlaunch.client.doctor import job
from slurmlaunch.client.watcher import current_client
from tests.support.cluster import Cluster, ClusterSpec
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slurmlaunch import Report
    from slurmlaunch.client.doctor.findings import Check

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")

OF_THE_JOB = {
    "job", "storage", "node python", "packages", "clock", "node commands", "cpus", "threads", "timing",
}  # fmt: skip
OF_SLURM = {"programs", "slurm", "accounting", "arrays", "partition", "account", "limits", "mpi", "request"}
OF_THIS_MACHINE = {"python", "folder", "space", "folders above"}


def wrong(report: Report) -> dict[str, str]:
    """Return the errors and warnings of a report: the level by the name of the check."""
    return {each.name: each.level for each in (*report.errors, *report.warnings)}


def found(report: Report, name: str) -> str:
    """Return what a check found, and its advice."""
    return next(f"{each.found} {each.advice}" for each in report.checks if each.name == name)


@pytest.fixture(autouse=True)
def _quick_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Query states every second, and share neither answers nor backends with other tests."""
    (tmp_path / "runtime").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("SLURMLAUNCH_QUERY_INTERVAL", "1")
    current_client().backends.clear()
    yield
    current_client().backends.clear()


def script(path: Path, *lines: str) -> Path:
    """Write a shell script that everybody may run."""
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]), encoding="utf-8")
    path.chmod(0o755)
    return path


# Where nothing is wrong.


def test_local(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without Slurm it checks this machine, and runs the item here; it leaves nothing behind."""
    assert main(["doctor", "--cluster=local", "--folder", str(tmp_path / "runs"), "--json"]) == 0

    report = json.loads(capsys.readouterr().out)
    assert {each["name"] for each in report["checks"]} == OF_THIS_MACHINE | OF_THE_JOB
    assert [each for each in report["checks"] if each["level"] not in {"ok", "skipped"}] == []
    assert report["waiting"] is None
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.slurm
@pytest.mark.usefixtures("cluster")
def test_the_default_cluster(tmp_path: Path) -> None:
    """On a cluster as it should be every check is made, and none finds anything wrong."""
    made: list[str] = []
    report = doctor(tmp_path / "runs", on_check=lambda check: made.append(check.name))

    assert wrong(report) == {}, str(report)
    assert set(made) == OF_THIS_MACHINE | OF_SLURM | OF_THE_JOB
    assert {each.level for each in report.checks} == {"ok"}
    stages = report.checks[-1].data["stages"]
    assert {"submission", "queue", "prolog", "Python", "imports", "result"} <= stages.keys()


@pytest.mark.slurm
@pytest.mark.usefixtures("cluster")
def test_a_job_that_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cluster: Cluster
) -> None:
    """It is cancelled, all else is shown, and the exit status is 3."""
    monkeypatch.setattr(job, "START_WITHIN", 0.5)

    assert main(["doctor", "--folder", str(tmp_path / "runs"), "--hold"]) == 3
    text = capsys.readouterr().out
    assert "has not started after" in text
    assert "and was cancelled" in text
    number = text.partition("Job ")[2].split("_")[0]
    assert "CANCELLED" in cluster.run("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={number}")
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.slurm
@pytest.mark.usefixtures("cluster")
def test_dry(tmp_path: Path, capsys: pytest.CaptureFixture[str], cluster: Cluster) -> None:
    """It submits nothing, and faults of the request are still found: a wrong partition and a wrong account."""
    before = cluster.run("squeue", "--noheader", "--states=all", "--format=%i")

    arguments = ["doctor", "--dry", "--folder", str(tmp_path), "-p", "nosuch", "--account", "noaccount", "--json"]
    assert main(arguments) == 1
    checks = {each["name"]: each for each in json.loads(capsys.readouterr().out)["checks"]}
    assert {name for name, each in checks.items() if each["level"] == "error"} == {"partition", "account", "request"}
    assert "debug" in checks["partition"]["advice"]
    assert "test" in checks["account"]["advice"]
    assert checks["job"]["level"] == "skipped"
    assert cluster.run("squeue", "--noheader", "--states=all", "--format=%i") == before


def test_ranks_and_a_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration applies; the job itself is one process, whatever the options say of ranks."""
    (tmp_path / "config.toml").write_text(f'[profiles.mpi]\nntasks = 4\nfolder = "{tmp_path}/runs"\n')
    monkeypatch.setenv("SLURMLAUNCH_CONFIG", str(tmp_path / "config.toml"))

    report = doctor(cluster="local", profile="mpi")

    assert wrong(report) == {}
    assert f"{tmp_path}/runs" in found(report, "folder")


@pytest.mark.parametrize("arguments", [["--nosuch"], ["word"], ["--cluster=mars"], ["--time=soon"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A mistake is a message and status 2, without a traceback."""
    try:
        status = main(["doctor", *arguments])
    except SystemExit as end:
        status = int(str(end.code))
    assert status == 2
    assert "error: " in capsys.readouterr().err


# Planted faults.


@pytest.mark.slurm
def test_no_accounting_short_arrays_and_a_prolog(
    start_cluster: Callable[[ClusterSpec], Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three faults of a site: no accounting, MaxArraySize=5, and a prolog that sets OMP_NUM_THREADS."""
    prolog = script(tmp_path / "prolog", "echo export OMP_NUM_THREADS=3")
    lines = ("MaxArraySize=5", f"TaskProlog={prolog}")
    started = start_cluster(ClusterSpec(nodes=1, accounting=False, lines=lines))
    for name, value in started.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    report = doctor(tmp_path / "runs")

    assert wrong(report) == dict.fromkeys(("accounting", "arrays", "threads"), "warning"), str(report)
    assert "at most 4 tasks" in found(report, "arrays")
    assert "OMP_NUM_THREADS=3" in found(report, "threads")


@pytest.mark.slurm
@pytest.mark.long
def test_a_submit_limit(
    start_cluster: Callable[[ClusterSpec], Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small limit is a warning; with as many jobs in the queue it is an error, and no job is submitted."""
    started = start_cluster(ClusterSpec(nodes=1, lines=("AccountingStorageEnforce=limits",)))
    for name, value in started.env.items():
        monkeypatch.setenv(name, value)
    started.run("sacctmgr", "-i", "modify", "account", "test", "set", "MaxSubmitJobs=2")
    user = started.run("whoami").strip()
    started.run("sacctmgr", "-i", "modify", "user", user, "where", "account=test", "set", "MaxSubmitJobs=2")

    assert wrong(doctor(tmp_path / "runs", account="test")) == {"limits": "warning"}
    wait_until(lambda: not started.run("squeue", "--noheader"))  # the doctor's job counts while it completes
    for _ in range(2):
        started.run("sbatch", "--account=test", "--hold", "--output=/dev/null", "--wrap=true")
    assert wrong(doctor(tmp_path / "runs", account="test"))["limits"] == "error"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of 8 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@needs_root
@pytest.mark.long
def test_no_room(small: Path) -> None:
    """A full file system, or a quota, is found by writing."""
    report = doctor(small, cluster="local")

    assert wrong(report) == {"space": "error"}
    assert "No space left on device" in found(report, "space")


@needs_root
@pytest.mark.slurm
@pytest.mark.long
@pytest.mark.usefixtures("cluster")
def test_a_folder_that_nodes_do_not_see(tmp_path: Path) -> None:
    """The node has a disk of its own at the folder's path."""
    runs = tmp_path / "runs"
    runs.mkdir()
    mount = f'unshare --mount sh -c \'mount -t tmpfs none {runs} && exec "$@"\' sh {sys.executable} "$@"'
    report = doctor(runs, python=[str(script(tmp_path / "python", mount))])

    assert wrong(report) == {"job": "error"}
    assert "folder" in found(report, "job")


@pytest.mark.slurm
@pytest.mark.long
@pytest.mark.usefixtures("cluster")
def test_another_python(tmp_path: Path) -> None:
    """A Python without slurmlaunch does not start the node: the log says so."""
    python = os.path.realpath(sys.executable)
    report = doctor(tmp_path / "runs", python=[python, "-I", "-S"])

    assert wrong(report) == {"job": "error"}
    assert "slurmlaunch" in found(report, "job")


@pytest.mark.slurm
@pytest.mark.long
@pytest.mark.usefixtures("cluster")
def test_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of this machine that the node lacks is named, and a module that must be importable is an error."""
    (tmp_path / "here" / "extra-1.0.dist-info").mkdir(parents=True)
    (tmp_path / "here" / "extra-1.0.dist-info" / "METADATA").write_text("Name: extra\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path / "here")
    report = doctor(tmp_path / "runs", imports=["json", "no_such_module"], setup=[f"rm -r {tmp_path}/here"], wait=True)

    assert wrong(report) == {"packages": "error"}
    assert "no_such_module" in found(report, "packages")
    assert next(each.data["missing"] for each in report.checks if each.name == "packages") == ["extra"]


@pytest.mark.slurm
@pytest.mark.long
@pytest.mark.usefixtures("cluster")
def test_a_clock_one_hour_off(tmp_path: Path) -> None:
    """The node's clock is an hour ahead."""
    (tmp_path / "sitecustomize.py").write_text("import time\nnow = time.time\ntime.time = lambda: now() + 3600\n")
    report = doctor(tmp_path / "runs", setup=[f"export PYTHONPATH={tmp_path}"])

    assert wrong(report) == {"clock": "warning"}
    assert "ahead by 35" in found(report, "clock") or "ahead by 36" in found(report, "clock")


@pytest.mark.slurm
@pytest.mark.long
@pytest.mark.usefixtures("cluster")
def test_no_srun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither here nor on the node is srun on PATH."""
    (tmp_path / "bin").mkdir()
    for folder in os.environ["PATH"].split(os.pathsep):
        for program in Path(folder).iterdir() if Path(folder).is_dir() else ():
            if program.name != "srun" and not (tmp_path / "bin" / program.name).is_symlink():
                (tmp_path / "bin" / program.name).symlink_to(program)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert shutil.which("srun") is None
    report = doctor(tmp_path / "runs")

    assert wrong(report) == {"programs": "warning", "node commands": "warning"}
    assert "srun" in found(report, "node commands")


def test_a_folder_that_others_may_exchange(tmp_path: Path) -> None:
    """Where others may put another folder in its place, the doctor checks as elsewhere, and says so."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    (shared / "runs").mkdir(0o700)
    report = doctor(shared / "runs", cluster="local")
    assert wrong(report) == {"folders above": "warning"}
    assert "storage" in {check.name for check in report.checks}
    assert list((shared / "runs").iterdir()) == []


def test_an_exchanged_folder(tmp_path: Path) -> None:
    """Nothing is written to another folder of the user's that somebody puts in the place of the doctor's."""
    runs, precious = tmp_path / "runs", tmp_path / "precious"
    precious.mkdir(0o700)
    for name in ("room", "taken", "appended", "started", "ping"):
        (precious / name).write_text("precious")

    def exchange(check: Check) -> None:
        if check.name == "space":
            (place,) = (path for path in runs.iterdir() if path.is_dir())
            place.rename(tmp_path / "away")
            precious.rename(place)

    report = doctor(runs, cluster="local", on_check=exchange)
    assert "storage" in wrong(report)
    (place,) = (path for path in runs.iterdir() if path.is_dir())
    left = {path.name: path.read_text() for path in place.iterdir() if path.is_file()}
    assert left == dict.fromkeys(("room", "taken", "appended", "started", "ping"), "precious")
