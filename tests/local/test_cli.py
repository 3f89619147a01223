"""``slurmlaunch map`` as its users type it."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import slurmlaunch
from slurmlaunch.cli.flag_errors import in_flags
from slurmlaunch.cli.main import main
from tests.conftest import several_cpus
from tests.support.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.cluster import Cluster

ROOT = Path(__file__).parents[2]
PROCESS = "import sys, pathlib; p = pathlib.Path(sys.argv[1]); print(p.name, p.read_text().upper())"


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., subprocess.Popen[str]]:
    """Return a function that starts ``slurmlaunch`` in the test's folder, on this machine by default."""
    if "SLURMLAUNCH_CLUSTER" not in os.environ:
        monkeypatch.setenv("SLURMLAUNCH_CLUSTER", "local")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "slurmlaunch", *arguments]
        given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen(command, cwd=tmp_path, encoding="utf-8", **given)

    return start


@pytest.fixture
def run(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs ``slurmlaunch`` to its end; it returns the exit status and the output."""

    def run(*arguments: str, text: str | None = None) -> tuple[int, str, str]:
        with start(*arguments, stdin=subprocess.DEVNULL if text is None else subprocess.PIPE) as process:
            out, err = process.communicate(text, timeout=PATIENCE)
        return process.returncode, out, err

    return run


@pytest.fixture
def on_slurm(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the command submit to the session's cluster."""
    monkeypatch.setenv("SLURMLAUNCH_CLUSTER", "slurm")
    monkeypatch.setenv("SLURMLAUNCH_FOLDER", "slurmlaunch-runs")  # named, as the default one is temporary here


def on_any(test: Any) -> Any:
    """Run a test here and on Slurm."""
    return pytest.mark.parametrize("where", ["local", pytest.param("slurm", marks=pytest.mark.slurm)])(test)


# Output.


@on_any
def test_a_command_per_file(
    run: Callable[..., tuple[int, str, str]], where: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The README's line: a job array, one item per file, output in the order of the files, exit status 0."""
    if where == "slurm":
        request.getfixturevalue("on_slurm")
    (tmp_path / "process.py").write_text(PROCESS)
    files = [f"data_{letter}.nc" for letter in "abc"]
    for file in files:
        (tmp_path / file).write_text(f"text of {file}")
    options = ["--time=00:10:00", "-p", "debug"] if where == "slurm" else []
    status, out, err = run("map", *options, "python3 process.py {}", *files)
    assert (status, out) == (0, "".join(f"{file} TEXT OF {file.upper()}\n" for file in files))
    folder = re.fullmatch(r"slurmlaunch: 3 items, job \S+; (.+)\n", err)
    assert folder, err
    futures = slurmlaunch.attach(folder[1])
    assert [done.returncode for done in futures.results(PATIENCE)] == [0, 0, 0]


@on_any
def test_failures(run: Callable[..., tuple[int, str, str]], where: str, request: pytest.FixtureRequest) -> None:
    """Failing items affect no other; the exit status is 1, and a summary shows item, reason and last lines."""
    if where == "slurm":
        request.getfixturevalue("on_slurm")
    status, out, err = run("map", "--quiet", "echo {}; echo bad {} >&2; test {} != b && test {} != c", "a", "b", "c")
    assert (status, out) == (1, "a\nb\nc\n")
    said, _, summary = err.partition("slurmlaunch: ")
    assert said == "bad a\nbad b\nbad c\n"
    assert summary == (
        "2 of 3 items failed:\n  item 1 (b): exit status 1\n      bad b\n  item 2 (c): exit status 1\n      bad c\n"
    )


def test_killed(run: Callable[..., tuple[int, str, str]]) -> None:
    """A signal and a timeout are reported as such."""
    status, _, err = run("map", "--quiet", "--timeout", "1", "test {} = 600 || kill -KILL $$; sleep {}", "0", "600")
    assert status == 1
    assert "item 0 (0): signal 9" in err
    assert re.search(r"item 1 \(600\): Command .* timed out after 1.0 seconds", err)


# Items.


def test_items_of_the_command_line(run: Callable[..., tuple[int, str, str]]) -> None:
    """Words after the command are items, not options."""
    assert run("map", "--quiet", "echo", "-n", "--tasks", "-") == (0, "--tasks\n-\n", "")
    assert run("map", "--quiet", "--", "echo {}", "--")[1] == "--\n"
    assert run("map", "--quiet", "echo {}.", "--", "-n", "--")[1] == "-n.\n--.\n"
    assert "-no: not found" in run("map", "--", "-no", "a")[2]
    status, out, err = run("map", "echo", "a", "--tasks=3")
    assert (status, out) == (0, "a\n--tasks=3\n")
    assert "--tasks=3 comes after the command, and is an item" in err


def test_items_that_are_read(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """Items are the lines of a file or of standard input, or end with NUL."""
    (tmp_path / "list").write_bytes(b"a b\nc\xff\n")
    assert run("map", "--quiet", "--file", "list", "echo [{}]")[1] == "[a b]\n[c\ufffd]\n"
    assert run("map", "--quiet", "echo [{}]", "-", text="a b\n\nc")[1] == "[a b]\n[]\n[c]\n"
    assert run("map", "--quiet", "-0", "echo [{}]", "-", text="a\nb\0c\0")[1] == "[a\nb]\n[c]\n"
    assert run("map", "echo", "-", text="") == (0, "", "slurmlaunch: there are no items\n")


# Options.


@several_cpus
def test_options(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """Options configure the run, as the executor's do."""
    show = "echo $ONE $TWO $OMP_NUM_THREADS"
    options = ["--env", "ONE=1 2", "--setup", "export TWO=3", "--cpus-per-task=2", "--threads", "2", "--exclusive"]
    status, out, err = run("map", *options, "--tasks=1", "--folder", "mine", "--name", "called", show, "4", "5")
    assert (status, out) == (0, "1 2 3 2 4\n1 2 3 2 5\n")
    (folder,) = (tmp_path / "mine").iterdir()
    assert "called" in folder.name
    assert str(folder) in err


@pytest.mark.slurm
@pytest.mark.usefixtures("on_slurm")
def test_dry_run(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """A dry run prints the batch script: every option of sbatch by its name, also if given in its short form."""
    options = ["-p", "debug", "-t30", "--exclusive=user", "--mem", "2G", "--hold", "--throttle=3", "--sbatch=--foo=1"]
    status, out, err = run("map", *options, "--module=x", "--dry-run", "echo {}", "a", "b")
    assert (status, err) == (0, "")
    for line in ("partition=debug", "time=30", "exclusive=user", "mem=2G", "hold", "array=0-1%3", "foo=1"):
        assert f"#SBATCH --{line}\n" in out
    assert "module load x" in out
    assert not (tmp_path / "slurmlaunch-runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--partitio=small", "x", "a"], "--partitio is an option neither .* did you mean --partition?"),
        (["--output=x", "x", "a"], "--output cannot be set: logs are in the run folder"),
        (["-a", "0-3", "x", "a"], "-a cannot be set: the array follows from the call"),
        (["--tasks", "x", "a"], "argument --tasks: invalid int value: 'x'"),
        (["--tasks=0", "x", "a"], "--tasks: must be at least 1"),
        (["--time=10 bananas", "x", "a"], "--time: '10 bananas' is no time"),
        (["--mem=lots", "x", "a"], "--mem: 'lots' is no amount"),
        (["--threads=8", "--cpus-per-task=2", "x", "a"], "CPUs"),
        (["--env=A", "x", "a"], "write --env A=VALUE"),
        (["--timeout=0", "x", "a"], "timeout must be a number of seconds above 0"),
        (["--detach", "x", "a"], "--detach: tasks on this machine end"),
        (["x"], "there are no items"),
        (["echo {2}", "a"], "no argument 2 for {2}"),
        ([], "give a command"),
        (["--file", "absent", "x"], "No such file"),
        (["--file", "absent", "x", "a"], "either after the command or with --file"),
    ],
)
def test_refused(run: Callable[..., tuple[int, str, str]], arguments: list[str], message: str) -> None:
    """Wrong usage ends with status 2 before anything runs, and the message names the correction."""
    status, out, err = run("map", *arguments)
    assert (status, out) == (2, "")
    assert re.search(message.replace("{2}", r"\{2\}").replace("?", r"\?"), err), err
    assert "Traceback" not in err


def test_advice_speaks_of_flags(run: Callable[..., tuple[int, str, str]]) -> None:
    """The advice for a failed item names the flags of the command line."""
    status, _, err = run("map", "--time=1s", "sleep {}", "600")
    assert status == 1
    assert "--time=..., or give each task fewer items with --chunksize=..." in err


@pytest.mark.parametrize(
    ("python", "flags"),
    [
        ("Ask for mem=... or mem_per_cpu=...", "Ask for --mem=... or --mem-per-cpu=..."),
        ("check cpus_per_task=, mem= and nodes=.", "check --cpus-per-task, --mem and --nodes."),
        ("give map_array fewer tasks= or a larger chunksize=.", "give fewer --tasks or a larger --chunksize."),
        ("cluster='local' (or SLURMLAUNCH_CLUSTER=local)", "--cluster=local (or SLURMLAUNCH_CLUSTER=local)"),
        ("Load it, with modules=[...].", "Load it, with --module=..."),
        ("as map_array(..., tasks=..., throttle=...)", "as --tasks=..., --throttle=..."),
        ("sbatch=['--flag=value'] passes it", "--sbatch=--flag=value passes it"),
        ("processes: too many, and cpus_per_task is 2", "--processes: too many, and --cpus-per-task is 2"),
        ("Run them again with .retry(time=...)", "Run them again with slurmlaunch retry RUN --time=..."),
        ("; .retry() runs the item again.", "; slurmlaunch retry RUN runs the item again."),
        ("slurmlaunch.attach('/r/fit').retry(mem='8G')", "slurmlaunch retry /r/fit --mem=8G"),
        ("Call .retry() to submit it.", "Use slurmlaunch retry RUN to submit it."),
        (
            "log: /runs/time=3/mem=4.err\nsbatch: error: --time=x",
            "log: /runs/time=3/mem=4.err\nsbatch: error: --time=x",
        ),
    ],
)
def test_in_flags(python: str, flags: str) -> None:
    """Python's form of an option becomes that of the command line; paths and other programs' words stay."""
    assert flags == in_flags(python)


# Leaving early.


@pytest.mark.slurm
@pytest.mark.usefixtures("on_slurm")
def test_detach(run: Callable[..., tuple[int, str, str]]) -> None:
    """A detached run prints its folder, and on stderr how to come back; its results can be fetched from there."""
    status, out, err = run("map", "--detach", "echo {}", "a", "b")
    assert status == 0
    assert f"slurmlaunch results {out}" in err
    results = slurmlaunch.attach(out.removesuffix("\n")).results(PATIENCE)
    assert [done.stdout for done in results] == ["a\n", "b\n"]


@on_any
def test_interrupted(
    start: Callable[..., subprocess.Popen[str]], where: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """After Ctrl-C, jobs on Slurm continue and a message says how to attach; local tasks end."""
    if where == "slurm":
        request.getfixturevalue("on_slurm")
    waits = "touch here; while ! [ -e {} ]; do sleep 0.05; done; echo end"
    with start("map", waits, "go") as process:
        wait_until((tmp_path / "here").exists)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    (folder,) = (tmp_path / "slurmlaunch-runs").glob("[!.]*")
    assert (f"slurmlaunch cancel {folder}\n" in err) == (where == "slurm")
    if where == "slurm":
        (tmp_path / "go").touch()
        assert slurmlaunch.attach(folder)[0].result(PATIENCE).stdout == "end\n"
    else:
        assert slurmlaunch.attach(folder)[0].cancelled()


@on_any
def test_cancelled_by_another(
    start: Callable[..., subprocess.Popen[str]], where: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """An item that another client cancels counts as failed, and the output of later items is printed."""
    if where == "slurm":
        request.getfixturevalue("on_slurm")
    waits = "touch {}; while ! [ -e go-{} ]; do sleep 0.05; done; echo {}"
    with start("map", "--tasks", "3", waits, "a", "b", "c") as process:
        wait_until((tmp_path / "b").exists)
        (folder,) = (tmp_path / "slurmlaunch-runs").glob("[!.]*")
        slurmlaunch.attach(folder)[1].cancel()
        for item in "ac":
            (tmp_path / f"go-{item}").touch()
        out, err = process.communicate(timeout=PATIENCE)

    assert (process.returncode, out) == (1, "a\nc\n")
    assert "cancelled" in err
    assert "Traceback" not in err


def test_the_reader_has_enough(start: Callable[..., subprocess.Popen[str]]) -> None:
    """If the reader of the output ends, no error is printed."""
    reading, writing = os.pipe()
    with start("map", "--quiet", "seq {}", "100000", stdout=writing) as process:
        os.close(writing)
        os.close(reading)
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 128 + signal.SIGPIPE


def test_items_end_with_the_reader(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    """If the reader of the output ends, local tasks end and are not waited for."""
    reading, writing = os.pipe()
    command = "echo {}; [ {} = first ] || sleep 600"
    with start("map", "--tasks=1", command, "first", "second", stdout=writing) as process:
        os.close(writing)
        os.close(reading)
        process.communicate(timeout=PATIENCE)
    (folder,) = (tmp_path / "slurmlaunch-runs").glob("[!.]*")
    assert slurmlaunch.attach(folder)[1].cancelled()


def test_output_of_another_language(
    start: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output of a command is printed unchanged in any locale."""
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    with start("map", "--quiet", "echo {}; echo {} >&2", "größer") as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (0, "größer\n", "größer\n")


# The program itself.


def test_help(run: Callable[..., tuple[int, str, str]]) -> None:
    """``--help`` and ``--version`` work; without a command, the help is printed."""
    assert run("--version") == (0, f"slurmlaunch {slurmlaunch.__version__}\n", "")
    status, out, err = run("--help")
    assert (status, err) == (0, "")
    assert "map      run a shell command on each" in out
    assert run() == (2, "", out)
    status, out, err = run("map", "--help")
    assert (status, err) == (0, "")
    assert "slurmlaunch map 'python process.py {}' data_*.nc" in out
    assert run("help", "map") == run("map", "--help")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mpa"], "there is no command 'mpa'; did you mean map?"),
        (["--newest", "status"], "--newest comes after the command: slurmlaunch status --newest"),
        (["--verison"], "there is no option --verison; did you mean --version?"),
        (["retry", "fit", "--memory=8G"], "there is no option --memory; did you mean --mem?"),
        (["results", "--cvs"], "there is no option --cvs; did you mean --csv?"),
        (["runs", "foo"], "'foo' is too much"),
        (["status", ""], "RUN or ITEMS is empty"),
        (["clean", "--older-than", "30"], "write the unit, as in 30d"),
    ],
)
def test_mistyped(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistyped command line has status 2 and two lines: what is wrong, and where help is."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    first, second = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert message in first
    assert second.startswith("Try slurmlaunch ")


def test_the_script_is_the_module() -> None:
    """The installed script ``slurmlaunch`` runs the same program as ``python -m slurmlaunch``."""
    (line,) = re.findall(r'^slurmlaunch = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    module, _, function = line.partition(":")
    assert getattr(importlib.import_module(module), function) is importlib.import_module("slurmlaunch.__main__").main
