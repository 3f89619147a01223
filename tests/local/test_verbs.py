"""The verbs of the command line on runs of another process, and their JSON as ``docs/for-programs.md`` describes it."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from slurmlaunch.cli.exit_status import status_of
from slurmlaunch.cli.main import VERBS, main
from slurmlaunch.errors import OptionError, RunFolderError, SchedulerError, SubmissionError
from tests.conftest import SLURM
from tests.faults.wrapped import IS_AWAY, Wrapped
from tests.support.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.cluster import Cluster

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "for-programs.md").read_text(encoding="utf-8")

SCRIPT = """
import sys, time
from pathlib import Path
from points import point
from slurmlaunch import Executor

def tell(number):
    print("out", number, flush=True)
    print("err", number, file=sys.stderr)
    if number == 3:
        raise ValueError(f"bad {number}")
    return {"x": number, "y": number / 2}

def enter(name):
    print("begun", name, flush=True)
    while not Path(name).exists():
        time.sleep(0.02)
    return name

ex = Executor("runs", cluster=sys.argv[1], time="5")
ex.map_array(tell, range(6), name="plain", tasks=2).wait()
ex.submit(point, 1).result()
waiting = ex.map_array(enter, ["a", "b", "c"], name="waiting", tasks=3)
print(waiting.folder, flush=True)
"""
POINTS = """
class Point:
    def __init__(self, x):
        self.x = x
    def __repr__(self):
        return f"Point({self.x})"

def point(x):
    return Point(x)
"""


class Ran(NamedTuple):
    """What a verb did."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The output, parsed."""
        return json.loads(self.out)


class Shell:
    """Runs verbs in this process, with the runs of a folder."""

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capture = folder, capture

    def __call__(self, *arguments: str) -> Ran:
        """Run a verb."""
        self._capture.readouterr()
        folder = () if arguments[0] == "config" else ("--folder", str(self.folder / "runs"))
        try:
            status = main([*arguments[:1], *folder, *arguments[1:]])
        except SystemExit as ended:
            status = int(ended.code or 0)
        return Ran(status, *self._capture.readouterr())


@pytest.fixture(scope="module", params=["local", SLURM])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with the runs of another process: two have ended, and one waits for files ``a`` to ``c``."""
    if request.param == "slurm":
        request.getfixturevalue("cluster")
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "script.py").write_text(SCRIPT)
    (folder / "points.py").write_text(POINTS)
    command = [sys.executable, "script.py", request.param]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield folder
        for name in "abc":
            (folder / name).touch()


@pytest.fixture
def shell(made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """Return what runs verbs."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    return Shell(made, capsys)


# The page for programs.


def documented(heading: str) -> set[str]:
    """Return the keys that the page lists below a heading, with the parts of compound ones as ``a.b`` and ``a[].b``."""
    section = PAGE.partition(f"## `slurmlaunch {heading}")[2].partition("\n## ")[0]
    return {key for line in re.findall(r"^\| (`.+?) \|", section, re.MULTILINE) for key in re.findall(r"`(.+?)`", line)}


def keys_in(value: Any, known: set[str], at: str = "") -> Iterator[str]:
    """Yield the keys of an object, as the page writes them."""
    if at in known and not any(each.startswith((f"{at}.", f"{at}[")) and value for each in known):
        yield at
    elif isinstance(value, dict) and f"{at}.*" in known:
        yield f"{at}.*"
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from keys_in(each, known, f"{at}.{name}" if at else name)
    elif isinstance(value, list) and value:
        for each in value:
            yield from keys_in(each, known, f"{at}[]")
    else:
        yield f"{at}[]" if isinstance(value, list) else at


def check_keys(heading: str, *values: Any, without: str = "$") -> None:
    """Check that objects have the keys that the page lists, all of them but those that match *without*."""
    known = documented(heading)
    found = {key for value in values for key in keys_in(value, known)}
    assert found == {key for key in known if not re.match(without, key)}


# Verbs that read.


def test_runs(shell: Shell) -> None:
    """``runs`` lists the runs, the newest first, as a table or as JSON."""
    found = shell("runs", "--json")
    names = [run["name"] for run in found.json["runs"]]
    assert (found.status, names) == (0, ["waiting", "point", "plain"])
    assert [run["state"] for run in found.json["runs"]] == ["running", "done", "failed"]
    check_keys("runs", found.json)
    head, first, *_, last = shell("runs", "-n", "2").out.splitlines()
    assert head.split()[:3] == ["state", "submitted", "name"]
    assert first.split()[0] == "running"
    assert "1 more: slurmlaunch runs -n 3" in last
    assert [run["name"] for run in shell("runs", "--json", "-n", "1").json["runs"]] == ["waiting"]


def test_status(shell: Shell) -> None:
    """``status`` shows the newest run, or the one that a name, a beginning, a folder or a job id means."""
    found = shell("status", "plain", "--json", "--failures").json
    assert (found["state"], found["counts"]["failed"], found["items"]) == ("failed", 1, 6)
    assert [(cause["type"], cause["items"]) for cause in found["causes"]] == [("ValueError", [3])]
    waiting = shell("status", "--json").json
    assert (waiting["name"], waiting["state"]) == ("waiting", "running")
    check_keys("status", found, waiting)
    for run in ("pla", found["folder"], found["job_ids"][0]):
        assert shell("status", run, "--json").json["folder"] == found["folder"]
    text = shell("status", "plain").out
    assert text.startswith("failed  plain: 5 of 6 done, 1 failed\n")
    assert "item 3 (3): ValueError('bad 3') at script.py:" in text
    watched = shell("status", "plain", "--watch", "--json")
    assert watched.status == 1
    assert watched.json.keys() == waiting.keys()


def test_logs(shell: Shell) -> None:
    """``logs`` prints what items wrote, and without ITEMS the logs of all tasks."""
    assert shell("logs", "plain", "3").out == "out 3\nerr 3\n"
    assert shell("logs", "plain", "failed").out == "out 3\nerr 3\n"
    assert shell("logs", "plain", "1-2").out == "==> item 1 <==\nout 1\nerr 1\n==> item 2 <==\nout 2\nerr 2\n"
    items = shell("logs", "plain", "0,5", "--json").json
    assert [each["stdout"] for each in items["items"]] == ["out 0\n", "out 5\n"]
    whole = shell("logs", "plain", "--json").json
    assert whole["log"].startswith("==> task 0 <==\n")
    assert whole["log"] == shell("logs", "plain").out
    check_keys("logs", items, whole)
    assert shell("logs", "plain", "--follow", "2").out == "out 2\nerr 2\n"
    assert set(shell("logs", "plain", "-f").out.splitlines()) >= {
        "==> task 1 <==",
        "out 0",
        "err 5",
        "ValueError: bad 3",
    }


def test_results(shell: Shell) -> None:
    """``results`` prints values as text, JSON or CSV, and says which items failed."""
    text = shell("results", "plain")
    assert (text.status, text.out.splitlines()[:2]) == (1, ["0  {'x': 0, 'y': 0.0}", "1  {'x': 1, 'y': 0.5}"])
    assert "1 of 6 items failed:\n  item 3 (3): ValueError: bad 3\n" in text.err
    found = shell("results", "plain", "--json")
    lines = [json.loads(line) for line in shell("results", "plain", "--jsonl").out.splitlines()]
    assert (found.status, found.json["items"]) == (1, lines)
    assert [each["value"]["x"] for each in lines if each["status"] == "done"] == [0, 1, 2, 4, 5]
    check_keys("results", found.json)
    table = list(csv.DictReader(shell("results", "plain", "--csv").out.splitlines()))
    assert [each["item"] for each in table] == ["0", "1", "2", "4", "5"]
    assert table[1] == {"item": "1", "x": "1", "y": "0.5"}
    assert shell("results", "plain", "1-2", "--jsonl").status == 0
    waiting = shell("results", "waiting", "--jsonl")
    assert waiting.status == 4
    assert {json.loads(line)["value"] for line in waiting.out.splitlines()} == {None}
    assert "3 of 3 items have not ended" in waiting.err


def test_results_of_a_class(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules of results are found where the submission found them; values that are not plain are named."""
    assert shell("results", "point").out == "0  Point(1)\n"
    refused = shell("results", "point", "--jsonl")
    assert refused.status == 2
    assert "item 0 returned a points.Point" in refused.err
    monkeypatch.setitem(sys.modules, "points", None)
    lost = shell("results", "point")
    assert (lost.status, lost.out) == (2, "")
    assert "No module named 'points'" in lost.err or "points" in lost.err
    assert "PYTHONPATH" in lost.err


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["status", "nope"], 3, "has the name, folder or job 'nope'; there are:"),
        (["logs", "3"], 3, "For items of the newest run: --newest 3"),
        (["results", "plain", "9"], 3, "has no item 9: its items are 0 to 5"),
        (["results", "plain", "x"], 2, "'x' names no items"),
        (["results", "plain", "3-1"], 2, "1 comes before 3"),
        (["results", "--csv", "--jsonl"], 2, "not allowed with"),
        (["status", "a", "b"], 2, "'b' is too much"),
        (["cancel"], 2, "give a run, or --newest"),
        (["retry"], 2, "give a run, or --newest"),
        (["clean"], 2, "give a run, or --newest or --older-than"),
        (["clean", "plain", "--dry-run"], 2, "go with --older-than"),
        (["clean", "plain", "--older-than", "1d"], 2, "give a run, or --newest or --older-than"),
        (["clean", "--older-than", "soon"], 2, "--older-than: 'soon' is no time"),
        (["wait", "--timeout", "soon"], 2, "is no time: write seconds"),
        (["runs", "-n", "0"], 2, "is no number of at least 1"),
        (["logs", "plain", "1-2", "-f"], 2, "takes one item"),
        (["retry", "plain", "--mem=lots"], 2, "--mem: 'lots' is no amount"),
    ],
)
def test_mistakes(shell: Shell, arguments: list[str], status: int, said: str) -> None:
    """A user's mistake has a status and a line, and no traceback."""
    ran = shell(*arguments)
    assert (ran.status, ran.out) == (status, "")
    assert said in ran.err
    assert "Traceback" not in ran.err


@pytest.fixture
def where(made: Path) -> str:
    """Return the backend of the runs."""
    name: str = json.loads(next(made.glob("runs/*/manifest.json")).read_text())["backend"]
    return name


def test_facts_without_a_run(shell: Shell, where: str, tmp_path: Path) -> None:
    """``script``, ``config``, ``doctor`` and ``map`` print their facts as JSON, too."""
    words = ("--cluster", where, "--json", "exit {}", "0", "1")
    script = shell("script", *words)
    check_keys("script", script.json)
    assert (script.status, script.json["items"], script.json["cluster"]) == (0, 2, where)
    assert script.json["script"].startswith("#!")
    assert not list(shell.folder.glob("runs/*exit*"))
    config = shell("config", "--json")
    check_keys("config", config.json)
    assert config.status == 0
    assert all(each.keys() == {"value", "source", "line", "table"} for each in config.json["settings"].values())
    doctor = shell("doctor", "--dry", "--json", "--cluster", where)
    check_keys("doctor", doctor.json)
    mapped = shell("map", "--folder", str(tmp_path / "runs"), *words)
    check_keys("status", mapped.json, without="causes")
    assert (mapped.status, mapped.json["state"], mapped.json["counts"]["done"]) == (1, "failed", 1)


def test_debug(made: Path) -> None:
    """``debug`` runs one item of the run of another process again; its end is in the exit status."""
    command = [sys.executable, "-m", "slurmlaunch", "debug", "--folder", str(made / "runs"), "plain"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    for item, status, said in (("1", 0, "{'x': 1, 'y': 0.5}"), ("3", 1, "ValueError: bad 3")):
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
        ran = subprocess.run([*command, item], check=False, env=env, **options)
        assert ran.returncode == status
        assert said in ran.stdout + ran.stderr


def test_a_verb_that_reads_imports_little(made: Path, where: str) -> None:
    """A look at runs loads neither what pickles and submits, nor a backend that has none of the runs."""
    code = "import sys; from slurmlaunch.cli.main import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, "runs", "--folder", str(made / "runs")]
    ran = subprocess.run(command, check=True, env=env, capture_output=True, text=True)
    loaded = set(ran.stderr.split())
    others = {"slurm": "local", "local": "slurm"}
    never = {"cloudpickle", "difflib", "importlib.metadata", "importlib.resources", "tempfile", "tomllib"}
    never |= {f"slurmlaunch.{name}" for name in ("byvalue", "client.executor", "client.pickling", "backends.inline")}
    assert loaded & {*never, f"slurmlaunch.backends.{others[where]}"} <= ({"tempfile"} if where == "slurm" else set())


class Wrapping:
    """Runs verbs as processes whose Slurm commands are wrapped."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.wrapped = folder, Wrapped(folder / "wrapped")

    def __call__(self, *words: str) -> Ran:
        """Run a verb."""
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": self.wrapped.path}
        command = [sys.executable, "-m", "slurmlaunch", words[0], "--folder", "runs", *words[1:]]
        ran = subprocess.run(command, check=False, cwd=self.folder, env=env, capture_output=True, text=True)
        assert "Traceback" not in ran.stderr
        return Ran(ran.returncode, ran.stdout, ran.stderr)


@pytest.fixture
def wrapping(cluster: Cluster, tmp_path: Path) -> Wrapping:
    """Return what runs verbs on the session's cluster."""
    del cluster
    return Wrapping(tmp_path)


@pytest.mark.slurm
def test_slurm_does_not_answer(wrapping: Wrapping) -> None:
    """What needs Slurm ends with status 5 while Slurm does not answer; what reads the run folder works."""
    mapped = wrapping("map", "--cluster=slurm", "--detach", "--hold", "echo {}", "a", "b")
    assert mapped.status == 0, mapped.err
    assert wrapping("status", "--json").json["tasks"] == {"PENDING": 2}
    wrapping.wrapped.behave(lines=IS_AWAY)
    listed = wrapping("runs", "--json")
    assert (listed.status, [each["state"] for each in listed.json["runs"]]) == (0, ["unknown"])
    assert wrapping("status", "--json").status == 0
    assert wrapping("cancel", "echo").status == 5
    wrapping.wrapped.behave()
    assert wrapping("wait").status == 1


@pytest.mark.slurm
@pytest.mark.long  # a submission waits for half a minute before it gives up
def test_sbatch_does_not_answer(wrapping: Wrapping) -> None:
    """A submission that Slurm does not answer ends with status 5."""
    wrapping.wrapped.behave(lines=IS_AWAY)
    refused = wrapping("map", "--cluster=slurm", "echo {}", "a")
    assert (refused.status, refused.out) == (5, "")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (SubmissionError("no such partition"), 2),
        (SubmissionError("no answer", transient=True), 5),
        (SubmissionError("perhaps submitted", ambiguous=True), 5),
        (SchedulerError("no answer"), 5),
        (RunFolderError("no run"), 3),
        (OptionError("no time"), 2),
        (OSError("no room"), 2),
    ],
)
def test_status_of(error: Exception, status: int) -> None:
    """Each kind of error has its exit status."""
    assert status_of(error) == status


# Verbs that act, in one test, as each needs what the one before left.


def test_acting(shell: Shell, made: Path) -> None:
    """Items are cancelled, waited for, run again, and the run is removed."""
    wait_until(lambda: shell("logs", "waiting", "0").out == "begun a\n")
    late = shell("wait", "waiting", "--timeout", "0.05", "--json")
    assert (late.status, late.json["state"]) == (4, "running")
    check_keys("status", late.json, without="causes")
    cancelled = shell("cancel", "--newest", "2", "--json")
    assert (cancelled.status, cancelled.json["cancelled"]) == (0, 1)
    check_keys("cancel", cancelled.json)
    (made / "a").touch()
    (made / "b").touch()
    ended = shell("wait", "--timeout", str(PATIENCE))
    assert (ended.status, ended.out) == (1, "waiting: 2 of 3 done, 1 cancelled\n")
    (made / "c").touch()
    again = shell("retry", "waiting", "--json")
    assert (again.status, len(again.json["job_ids"])) == (0, 1)
    check_keys("retry", again.json)
    done = shell("wait", "waiting", "--json")
    assert (done.status, done.json["state"]) == (0, "done")
    assert shell("results", "waiting").out == "0  'a'\n1  'b'\n2  'c'\n"
    assert "nothing to run again" in shell("retry", "waiting").out
    assert shell("cancel", "waiting").out == "nothing to cancel; 3 of 3 done\n"


def test_clean(shell: Shell, made: Path) -> None:
    """One run is removed, or those that are old, with a dry run first."""
    for name in "abc":
        (made / name).touch()
    wait_until(lambda: "kept" not in shell("clean", "--older-than", "0", "--dry-run", "--failed").err)
    dry = shell("clean", "--older-than", "0", "--dry-run", "--json")
    assert (len(dry.json["removed"]), dry.json["dry_run"]) == (2, True)
    one = shell("clean", "point", "--json")
    assert one.json["removed"] == [each for each in dry.json["removed"] if "point" in each]
    check_keys("clean", dry.json, one.json)
    assert shell("clean", "--older-than", "0", "--failed").status == 0
    assert shell("runs", "--json").json["runs"] == []
    assert shell("status").status == 3


# The program itself.


def test_of_the_page() -> None:
    """The page has a section for each verb that prints facts."""
    assert all(
        documented(f"{verb} --json") or f"`slurmlaunch {verb} --json` prints the object of `status`" in PAGE
        for verb in VERBS.keys() - {"debug"}
    )


@pytest.mark.parametrize("verb", VERBS)
def test_help(verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The help of each verb has an example, and lines of at most 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert f"examples:\n  slurmlaunch {verb}" in text
    assert [line for line in text.splitlines() if len(line) > 80] == []
