"""`slurmlaunch doctor`: nothing wrong where nothing is, and planted faults by their names."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import cloudpickle
import pytest

import slurmlaunch
from slurmlaunch import doctor
from slurmlaunch.cli.exit_status import INTERRUPTED
from slurmlaunch.cli.main import main
from slurmlaunch.client.doctor import job
from slurmlaunch.client.watcher import current_client
from tests.support.cluster import Cluster, ClusterSpec
from tests.support.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slurmlaunch import Report
    from slurmlaunch.client.doctor.findings import Check

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")

OF_THE_JOB = {
    "job", "storage", "node python", "packages", "clock", "node commands", "cpus", "threads", "timing",
}  # fmt: skip
OF_SLURM = {"programs", "slurm", "accounting", "arrays", "partition", "memory", "account", "limits", "mpi", "request"}
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
    documented = keys_in_the_docs()
    assert {each.name: set(each.data) - documented.get(each.name, set()) for each in report.checks if each.data} == {
        each.name: set() for each in report.checks if each.data
    }
    assert max(map(len, str(report).splitlines())) <= 100


def keys_in_the_docs() -> dict[str, set[str]]:
    """Return the keys of each check's data, by the page of the docs."""
    page = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text(encoding="utf-8")
    rows = page.partition("| check | keys of `data` |\n| --- | --- |\n")[2].partition("\n\n")[0].splitlines()
    return {
        name.strip("`"): set(re.findall(r"`(\w+)`", keys))
        for name, keys in (row.strip("| ").split(" | ") for row in rows)
    }


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
@pytest.mark.long
@pytest.mark.usefixtures("cluster")
def test_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `wait` it waits for a job that starts later."""
    monkeypatch.setattr(job, "START_WITHIN", 0.1)

    report = doctor(tmp_path / "runs", wait=True, begin="now+3")
    assert report.waiting is None
    assert "ran on" in found(report, "job")


@pytest.mark.slurm
def test_dry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: Cluster) -> None:
    """It submits nothing: sbatch is called with --test-only alone."""
    calls = tmp_path / "calls"
    script(tmp_path / "sbatch", f'echo "$@" >> {calls}', f'exec {shutil.which("sbatch")} "$@"')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    before = cluster.run("squeue", "--noheader", "--states=all", "--format=%i")

    report = doctor(tmp_path / "runs", dry=True)
    assert wrong(report) == {}
    assert next(each.level for each in report.checks if each.name == "job") == "skipped"
    assert [line.split()[0] for line in calls.read_text().splitlines()] == ["--test-only"]
    assert cluster.run("squeue", "--noheader", "--states=all", "--format=%i") == before
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.slurm
@pytest.mark.parametrize("moment", ["submission", pytest.param("queue", marks=pytest.mark.long)])
def test_an_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: Cluster, moment: str) -> None:
    """Ctrl-C cancels the job, also while sbatch runs, and leaves nothing."""
    begun, runs = tmp_path / "begun", tmp_path / "runs"
    lines = (f'case "$1" in --test-only) ;; *) touch {begun}; sleep 1;; esac', f'exec {shutil.which("sbatch")} "$@"')
    script(tmp_path / "sbatch", *(lines if moment == "submission" else lines[1:]))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def rows() -> dict[str, str]:
        rows = cluster.run("squeue", "--noheader", "--states=all", "--array", "--format=%i %T").splitlines()
        return dict(row.split() for row in rows)

    before = rows()

    def states() -> list[str]:
        return [state for number, state in rows().items() if number not in before]

    arguments = ["doctor", "--folder", str(runs), "--hold", "--wait"]
    started = subprocess.Popen(
        [sys.executable, "-m", "slurmlaunch", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    wait_until(begun.exists if moment == "submission" else lambda: states() == ["PENDING"])
    started.send_signal(signal.SIGINT)
    _, complaints = started.communicate(timeout=PATIENCE)
    assert started.returncode == INTERRUPTED
    assert complaints.splitlines() == [
        "slurmlaunch: this submits one small job; --dry submits none",
        "slurmlaunch: cancelling its jobs and removing their files",
    ]
    assert states() == ["CANCELLED"]
    assert list(runs.iterdir()) == []


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
@pytest.mark.usefixtures("cluster")
def test_a_wrong_partition(tmp_path: Path) -> None:
    """It is named, with those that there are; no job is submitted."""
    report = doctor(tmp_path / "runs", partition="nosuch")

    assert wrong(report) == {"partition": "error", "request": "error"}
    assert "there is no partition nosuch" in found(report, "partition")
    assert "debug" in found(report, "partition")
    assert found(report, "job").startswith("no job was submitted")


@pytest.mark.slurm
@pytest.mark.usefixtures("cluster")
def test_a_wrong_account(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is named, with those that the user has."""
    assert main(["doctor", "--dry", "--folder", str(tmp_path / "runs"), "--account", "noaccount", "--json"]) == 1

    checks = json.loads(capsys.readouterr().out)["checks"]
    (wrong_one,) = (each for each in checks if each["level"] in {"error", "warning"})
    assert wrong_one["name"] == "account"
    assert "noaccount" in wrong_one["found"]
    assert "test" in wrong_one["advice"]


@pytest.mark.slurm
def test_no_accounting_short_arrays_and_a_prolog(
    start_cluster: Callable[[ClusterSpec], Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three faults of a site are named, and no other: no accounting, MaxArraySize=5, a prolog with OMP_NUM_THREADS."""
    prolog = script(tmp_path / "prolog", "echo export OMP_NUM_THREADS=3")
    lines = ("MaxArraySize=5", f"TaskProlog={prolog}")
    started = start_cluster(ClusterSpec(nodes=1, accounting=False, lines=lines))
    for name, value in started.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    report = doctor(tmp_path / "runs")

    assert wrong(report) == dict.fromkeys(("accounting", "arrays", "threads"), "warning"), str(report)
    assert "at most 5 tasks, with indices from 0 to 4" in found(report, "arrays")
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


@pytest.fixture(params=["size=8m", "nr_inodes=50"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Return a file system that has room for few bytes, or for few files."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", request.param, "tmpfs", str(folder)]
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
@pytest.mark.parametrize("accounts", ["with", "without"])
def test_a_folder_on_a_disk_of_the_node(
    start_cluster: Callable[[ClusterSpec], Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accounts: str
) -> None:
    """At the folder's path the node has a file system of its own, so that Slurm finds no place for the log."""
    runs = tmp_path / "runs"
    runs.mkdir(0o700)
    mount = f'mount --make-rprivate / && mount -t tmpfs none {runs} && exec "$@"'
    own = ("unshare", "--mount", "sh", "-c", mount, "sh")
    spec = ClusterSpec(nodes=1, accounting=accounts == "with", node_command=own)
    for name, value in start_cluster(spec).env.items():
        monkeypatch.setenv(name, value)

    report = doctor(runs)
    assert {name for name, level in wrong(report).items() if level == "error"} == {"job"}
    assert "all nodes see" in found(report, "job")
    assert "Executor(folder=...)" in found(report, "job")
    assert list(runs.iterdir()) == []


@needs_root
@pytest.mark.slurm
@pytest.mark.long
@pytest.mark.usefixtures("cluster")
def test_another_folder_at_that_path(tmp_path: Path) -> None:
    """The node's Python has a disk of its own at the folder's path, as in a container that does not bind it."""
    runs = tmp_path / "runs"
    runs.mkdir()
    mount = f'unshare --mount sh -c \'mount -t tmpfs none {runs} && exec "$@"\' sh {sys.executable} "$@"'
    report = doctor(runs, python=[str(script(tmp_path / "python", mount))])

    assert wrong(report) == {"job": "error"}
    assert "folder" in found(report, "job")


@pytest.mark.slurm
@pytest.mark.long
@pytest.mark.usefixtures("cluster")
def test_a_python_without_slurmlaunch(tmp_path: Path) -> None:
    """A Python without slurmlaunch does not start the node: the end of the log says so, and no folder is left."""
    python = os.path.realpath(sys.executable)
    report = doctor(tmp_path / "runs", python=[python, "-I", "-S"])

    assert wrong(report) == {"job": "error"}
    assert "No module named 'slurmlaunch'" in found(report, "job")
    assert "Install slurmlaunch for the Python that runs on the node" in found(report, "job")
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.slurm
@pytest.mark.long
@pytest.mark.usefixtures("cluster")
def test_another_python(tmp_path: Path) -> None:
    """A Python of another version is named, with both versions."""
    other = another_python()
    installed = {str(Path(module.__file__ or "").parents[1]) for module in (slurmlaunch, cloudpickle)}
    report = doctor(tmp_path / "runs", python=[other], setup=[f"export PYTHONPATH={':'.join(installed)}"])

    assert wrong(report) == {"job": "error"}, str(report)
    here_and_there = (
        rf"pickled by Python {sys.version_info[0]}\.{sys.version_info[1]}, and the node runs Python 3\.\d+ "
    )
    assert re.search(here_and_there, found(report, "job"))


def another_python() -> str:
    """Return a Python of another version, which can run slurmlaunch; skip the test if there is none."""
    for minor in {11, 12, 13, 14} - {sys.version_info.minor}:
        for python in (f"python3.{minor}", *map(str, Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python"))):
            with contextlib.suppress(OSError):
                words = [python, "-c", "import sys; print(sys.executable)"]
                done = subprocess.run(words, capture_output=True, text=True, check=False)
                if done.returncode == 0:
                    return done.stdout.strip()
    pytest.skip("there is no other Python here")


@pytest.mark.slurm
@pytest.mark.long
@pytest.mark.usefixtures("cluster")
def test_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of this machine that the node lacks is named, and a module that cannot be imported is an error."""
    (tmp_path / "here" / "extra-1.0.dist-info").mkdir(parents=True)
    (tmp_path / "here" / "extra-1.0.dist-info" / "METADATA").write_text("Name: extra\nVersion: 1.0\n")
    (tmp_path / "here" / "broken.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path / "here")
    remove = f"rm -r {tmp_path}/here/extra-1.0.dist-info"
    report = doctor(tmp_path / "runs", imports=["json", "no_such_module", "broken"], setup=[remove], wait=True)

    assert wrong(report) == {"packages": "error"}
    assert "no_such_module" in found(report, "packages")
    assert "broken (ModuleNotFoundError: No module named 'no_such_library')" in found(report, "packages")
    data = next(each.data for each in report.checks if each.name == "packages")
    assert data["missing"] == ["extra"]
    assert set(data["imported"]) == {"json"}


@pytest.mark.slurm
@pytest.mark.long
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(("seconds", "word"), [(3600, "ahead"), (-3600, "behind")])
def test_a_clock_one_hour_off(tmp_path: Path, seconds: int, word: str) -> None:
    """The clock of the node's Python is an hour off. The machine's own, which Slurm reads, is as it was."""
    (tmp_path / "sitecustomize.py").write_text(f"import time\nnow = time.time\ntime.time = lambda: now() + {seconds}\n")
    report = doctor(tmp_path / "runs", setup=[f"export PYTHONPATH={tmp_path}"])

    assert wrong(report) == {"clock": "warning"}
    assert f"the node's clock is {word} by 3600 s" in found(report, "clock")
    timing = report.checks[-1].data
    assert sum(timing["stages"].values()) == pytest.approx(timing["total"])
    assert max(timing["stages"].values()) < timing["total"] < PATIENCE


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
