"""Commands as functions: placeholders, results, and no process left behind."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch import Command
from tests.conftest import elsewhere
from tests.faults.deeds import parent
from tests.support import scripts
from tests.support.waiting import PATIENCE, is_alive, wait_until

if TYPE_CHECKING:
    from slurmlaunch import Executor
    from tests.conftest import ExecutorFactory
    from tests.support.cluster import Cluster

# Placeholders.


@pytest.mark.parametrize(
    ("template", "arguments", "filled"),
    [
        ("python process.py {}", ("a.nc",), "python process.py a.nc"),
        ("python process.py", ("a.nc",), "python process.py a.nc"),
        ("python process.py", (), "python process.py"),
        ("cp {} {}.bak", ("a b",), "cp 'a b' 'a b'.bak"),
        ("{.} {/} {//} {/.}", ("in/x.tar.gz",), "in/x.tar x.tar.gz in x.tar"),
        ("{//}", ("x.nc",), "."),
        ("run {}", ("a", 1), "run a 1"),
        ("run {2} {1} {2/.}", ("a", "b/c.d"), "run b/c.d a c"),
        ("run", ("a b", Path("c")), "run 'a b' c"),
        ("cat \"{}\" '{}'", ("a.nc",), "cat \"a.nc\" 'a.nc'"),
        ("cat '{}'", ("a b",), "cat '''a b'''"),
        ("echo {{}} {{.}} {{2}} {}", ("a",), "echo {} {.} {2} a"),
        (
            "awk '{print $1; n++}' {} ${HOME} ${1} {a,b} {x y}",
            ("f",),
            "awk '{print $1; n++}' f ${HOME} ${1} {a,b} {x y}",
        ),
        ("awk '{print}'", ("f",), "awk '{print}' f"),
    ],
)
def test_text(template: str, arguments: tuple[Any, ...], filled: str) -> None:
    """Placeholders are GNU parallel's; all other braces are the shell's own; without any, the arguments come last."""
    assert filled == Command(template).fill(*arguments)


@pytest.mark.parametrize(
    ("words", "arguments", "filled"),
    [
        (["python", "process.py", "{}"], ("a b",), ["python", "process.py", "a b"]),
        (["python", "process.py"], ("a b",), ["python", "process.py", "a b"]),
        (["run", "{}", "-o", "{1.}.png"], ("a b.tif", "c"), ["run", "a b.tif", "c", "-o", "a b.png"]),
        (["run", "--all={}"], ("a b", "c"), ["run", "--all=a b c"]),
        ([Path("run"), "{{}}", "{x}"], (), ["run", "{}", "{x}"]),
    ],
)
def test_words(words: list[Any], arguments: tuple[Any, ...], filled: list[str]) -> None:
    """In a list an argument is a word, or a part of one, and is not quoted."""
    assert filled == Command(words).fill(*arguments)


def test_keywords() -> None:
    """A keyword argument has a place by its name."""
    assert Command("train --lr {lr} {}").fill("x", lr=0.1) == "train --lr 0.1 x"
    assert Command(["train", "--lr={lr}"]).fill("x", lr=0.1) == ["train", "--lr=0.1", "x"]
    with pytest.raises(TypeError, match=r"no place for lr: write \{lr\}"):
        Command("train {}").fill("x", lr=0.1)


def test_refused() -> None:
    """The errors for a placeholder without an argument and for an empty command name the correction."""
    with pytest.raises(TypeError, match=r"no argument 2 for \{2\}, there are 1; .* write \{\{2\}\}"):
        Command("run {2}").fill("a")
    with pytest.raises(ValueError, match="counted from 1"):
        Command("run {0}")
    for text in ("", " "):
        with pytest.raises(ValueError, match="empty"):
            Command(text)
    for timeout in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="timeout must be a number of seconds above 0"):
            Command("run", timeout=timeout)
    with pytest.raises(ValueError, match="empty"):
        Command([])


# Places for a value, and what they print: p is a function of the shell that prints each of its words and a NUL.
PLACES = [
    (r"""p {}""", "{}"),
    (r"""p '{}'""", "{}"),
    (r"""p "{}" """, "{}"),
    (r"""p a{}b""", "a{}b"),
    (r"""p a'{}'b"{}"c{}""", "a{}b{}c{}"),
    (r"""p 'a b'{}'c d'""", "a b{}c d"),
    (r"""p 'a {} b'""", "a {} b"),
    (r"""p "a {} b" """, "a {} b"),
    (r"""p "it's {}" """, "it's {}"),
    (r"""p "it's '{}'" """, "it's '{}'"),
    (r"""p 'say "{}"' """, 'say "{}"'),
    (r"""p 'say \"{}\"' """, r"say \"{}\""),
    (r"""p "say \"{}\"" """, 'say "{}"'),
    (r"""p \'{}\'""", "'{}'"),
    (r"""p \"{}\"""", '"{}"'),
    (r"""p 'it'\''s {}'""", "it's {}"),
    (r"""p \\\\'{}'""", r"\\{}"),
    (r"""p ./{}""", "./{}"),
    (r"""p {}.bak {}/x""", "{}.bak\0{}/x"),
    (r"""p --name={}""", "--name={}"),
    (r"""p \
        {}""", "{}"),
    (r"""p {} # don't {}""", "{}"),
    ("# don't, \"he said\np {}", "{}"),
    ("# it's `here\np '{}'", "{}"),
    ('# $(\np "{}"', "{}"),
    ("cat <<E; p\n{}\nE", "{}\n"),
    ("cat <<E; p\nit's \"{}\"\nE", "it's \"{}\"\n"),
    ("cat <<-E; p '{}'\n\t'{}' isn't\n\tE", "'{}' isn't\n{}"),
    ("cat <<E; p '{}'\n$(printf %s. {}) `printf %s. \"{}\"`\nE", "{}. {}.\n{}"),
    ("cat <<'E'; p '{}'\nit's\nE", "it's\n{}"),
    (r"""p "${x:-{}}" """, "{}"),
    (r"""p ${x:-{}}""", "{}"),
    (r"""p "${x:-"{}"}" """, "{}"),
    (r"""p "${x:-a {} b}" """, "a {} b"),
    (r"""y={}.gz; p "${y#{}}" """, ".gz"),
    (r"""p "$(printf %s. {})" """, "{}."),
    (r"""p "$(printf %s. "{}")" """, "{}."),
    (r"""p "$(printf %s. '{}')" """, "{}."),
    (r"""p "$(echo "$(printf %s. "{}")")" """, "{}."),
    (r"""p "`printf %s. {}`" """, "{}."),
    (r"""p "`printf %s. "{}"`" """, "{}."),
    (r"""p "$(case x in x) printf %s. {};; esac)" """, "{}."),
    (r"""p "$(case x in (x) printf %s. '{}';; esac)" """, "{}."),
    (r"""p "$(printf %s. {} # it's ")
)" """, "{}."),
    (r"""y={}; p "$y" """, "{}"),
    (r"""y='{}' z="{}"; p "$y$z" """, "{}{}"),
    (r"""export Y={}; p "$Y" """, "{}"),
    (r"""Y={} sh -c 'printf "%s\0" "$Y"' """, "{}"),
    (r"""sh -c 'printf "%s\0" "$1"' sh {}""", "{}"),
    (r"""for y in {} '{}'; do p "$y"; done""", "{}\0{}"),
    (r"""f() { p {}; }; f other""", "{}"),
    (r"""set -- other; p {} "$1" """, "{}\0other"),
    (r"""(p {}) | cat""", "{}"),
    (r"""{ p "{}"; } 2>&1""", "{}"),
    (r"""[ {} = "{}" ] && p same""", "same"),
    (r"""case {} in '{}') p same;; *) p other;; esac""", "same"),
    (r"""case "{}" in {}) p same;; *) p other;; esac""", "same"),
    (r"""case x in x) p 'a {} b';; esac""", "a {} b"),
    (r"""IFS=/; p {} "{}"; unset IFS""", "{}\0{}"),
    (r"""set -u; p {}; set +u""", "{}"),
    (r"""awk 'BEGIN {printf "%s%c", ARGV[1], 0}' {}""", "{}"),
]  # fmt: skip
VALUES = [
    "plain", "", " ", "a  b", "\t", "line\nbreak", "\n", "'", '"', "it's", "''", "\\", "a\\", "\\'", "$HOME", "${x}",
    "{}", "$(touch bad)", "`touch bad`", "'; touch bad; '", '"; touch bad; "', "\\'; touch bad #", '"$(touch bad)"',
    "'$(touch bad)'", "; touch bad", "& touch bad", "| touch bad", "\ntouch bad\n", ")touch bad", "}; touch bad",
    "\nE\ntouch bad", "*", "[a-z]*", "~", "# no comment", "-n", "--help", "a=b", "!!", ";;", "esac", "x[$(touch bad)]",
    "\udcff\udc81\udc88", "\x01\x7f", "Á é 数", "<(touch bad)", "${x:=$(touch bad)}",
]  # fmt: skip


@pytest.mark.parametrize("shell", ["/bin/sh", "bash"])
@pytest.mark.parametrize(("place", "printed"), PLACES)
def test_values_are_no_code(
    place: str, printed: str, shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a placeholder stands, the shell has its value as it is, and runs nothing of it."""
    # One shell for all values: the template is repeated, with {1}, {2} and so on for {}.
    monkeypatch.setattr("slurmlaunch.command._SHELL", shell)
    monkeypatch.chdir(tmp_path)
    lines = [place.replace("{}", f"{{{number}}}") for number in range(1, len(VALUES) + 1)]
    done = Command("\n".join(["p() { printf '%s\\0' \"$@\"; }", *lines]), check=False)(*VALUES)
    assert done.stderr == ""
    expected = "".join(f"{printed}\0".replace("{}", value) for value in VALUES)
    assert done.stdout.split("\0") == os.fsencode(expected).decode("utf-8", "replace").split("\0")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["`printf %s '{}'`", "${x:-'{}'}", "$(cat <<'E'\n{}\nE\n)"])
def test_hidden_places(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where single quotes hide a placeholder from us and the shell, the text stays without a value, and none runs."""
    monkeypatch.chdir(tmp_path)
    for value in VALUES:
        assert "slurmlaunch_1" in Command(f"printf %s {place}")(value).stdout
    assert list(tmp_path.iterdir()) == []


def test_escaped_braces() -> None:
    """Braces after a backslash are the shell's own."""
    assert Command(r"echo \{} {}")("a").stdout == "{} a\n"


def test_double_evaluation() -> None:
    """A text that another shell is to run gets the value as text: there it is code, by the user's own doing."""
    assert Command("sh -c 'echo {}'")("$((1 + 1))").stdout == "2\n"


# Returned values.


def test_completed() -> None:
    """Output, exit status and the command itself come back, as text."""
    done = Command(r"printf 'a\r\n\377'; echo b >&2; echo {}")("c")
    assert (done.returncode, done.stdout, done.stderr) == (0, "a\r\n\ufffdc\n", "b\n")
    assert done.args == r"printf 'a\r\n\377'; echo b >&2; echo c"
    assert Command(["echo", "{}"])("a  b").stdout == "a  b\n"


def test_failed() -> None:
    """Another exit status raises, with the output; and does not with check=False."""
    failing = "echo out; echo err >&2; exit 3"
    with pytest.raises(subprocess.CalledProcessError, match="non-zero exit status 3") as caught:
        Command(failing)()
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.returncode, error.cmd, error.stdout, error.stderr) == (3, failing, "out\n", "err\n")
    assert error.__notes__ == ["its standard error ends with:\nerr"]
    assert Command(failing, check=False)().returncode == 3
    assert Command("kill -KILL $$", check=False)().returncode == -signal.SIGKILL
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        Command(["no-such-program"])()


def test_uncaptured(capfd: pytest.CaptureFixture[str]) -> None:
    """Output that is not captured goes to the task's log, like the function's own."""
    assert Command("echo a; echo b >&2", capture=False)().stdout == ""
    assert capfd.readouterr() == ("a\n", "b\n")


def test_no_input() -> None:
    """A command has an empty standard input."""
    assert Command("cat; echo end")().stdout == "end\n"


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("python process.py {}", "process"),
        ("python -m mine {}", "python"),
        (["/usr/bin/convert", "{}"], "convert"),
        ("./run.sh {}", "run"),
    ],
)
def test_name(command: Any, name: str) -> None:
    """A run of a command is called after its program, or the script that this runs."""
    assert Command(command).__qualname__ == name


def test_shown() -> None:
    """A command is shown as it is written."""
    assert repr(Command(["a", "{}"], check=False, timeout=3)) == "Command(['a', '{}'], check=False, timeout=3)"


# Nothing is left behind.

LINGERING = "echo $$ >pid.new; mv pid.new {}; trap '' TERM; (sleep 600) & sleep 600 | cat"


def members(group: int) -> list[int]:
    """Return the living processes of a group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def test_background_processes_delay_nothing() -> None:
    """A command ends with its shell, also if a background process still has its output open; that one is killed."""
    done = Command("sleep 600 & echo $!")()

    wait_until(lambda: not is_alive(int(done.stdout)))


def test_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its timeout a command is killed, with all processes that it started."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        Command("echo $$ >pid; ps -o pgid= -p $$ >group; echo early; trap '' TERM; sleep 600 | cat", timeout=1)()
    assert caught.value.stdout == b"early\n"
    wait_until(lambda: members(int((tmp_path / "group").read_text())) == [])


def test_left_in_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that a command leaves running are ended with it."""
    monkeypatch.chdir(tmp_path)
    Command("ps -o pgid= -p $$ >group; sleep 600 >/dev/null 2>&1 &")()
    wait_until(lambda: members(int((tmp_path / "group").read_text())) == [])


def test_killed_with_us(tmp_path: Path) -> None:
    """When the process that runs a command is killed, the command and all its processes are killed."""
    script = f"from slurmlaunch import Command; Command({LINGERING!r})('pid')"
    with subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path) as python:
        wait_until((tmp_path / "pid").exists)
        group = os.getpgid(int((tmp_path / "pid").read_text()))
        wait_until(lambda: len(members(group)) == 5)  # the guard, the shell, and three that it started
        python.kill()
    wait_until(lambda: members(group) == [])


@elsewhere
def test_cancelled(executor: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When an item is cancelled, its command ends, with all processes that it started."""
    monkeypatch.chdir(tmp_path)
    future = executor.submit(Command(LINGERING), "pid")
    wait_until((tmp_path / "pid").exists)
    group = os.getpgid(int((tmp_path / "pid").read_text()))
    assert future.cancel()
    wait_until(lambda: members(group) == [])


@pytest.mark.slurm
@pytest.mark.parametrize("end", ["scancel", "kill"])
def test_task_ended(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """Nothing of a command outlives its task, whether Slurm ends the task or its supervisor is killed."""
    from slurmlaunch import Executor

    monkeypatch.chdir(tmp_path)
    with Executor(tmp_path / "runs", cluster="slurm") as executor:
        future = executor.submit(Command(LINGERING), "pid")
        wait_until((tmp_path / "pid").exists)
        shell = int((tmp_path / "pid").read_text())
        group = os.getpgid(shell)
        if end == "scancel":
            cluster.run("scancel", future.job_id or "")
        else:
            os.kill(parent(parent(shell)), signal.SIGKILL)
        wait_until(lambda: members(group) == [])
        future.cancel()


def test_requeue_is_slurms(tmp_path: Path) -> None:
    """Only Slurm can requeue a task; on other backends `requeue` raises SchedulerError."""
    from slurmlaunch import Executor, SchedulerError

    for cluster in ("local", "inline"):
        with Executor(tmp_path, cluster=cluster) as executor, pytest.raises(SchedulerError, match="cannot be requeued"):
            executor.submit(Command("true")).requeue()


@pytest.mark.slurm
def test_requeued(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal that ends a whole task is no failure of its command: the item runs again."""
    from slurmlaunch import Executor

    monkeypatch.chdir(tmp_path)
    waits = "if [ -e {} ]; then echo again; else echo $$ >new; mv new {}; sleep 600; fi"
    with Executor(tmp_path / "runs", cluster="slurm") as executor:
        future = executor.submit(Command(waits), "pid")
        wait_until((tmp_path / "pid").exists)
        shell = int((tmp_path / "pid").read_text())
        future.requeue()
        assert future.result(PATIENCE).stdout == "again\n"
    assert not is_alive(shell)


@pytest.mark.slurm
def test_terminated_for_itself(cluster: Cluster, tmp_path: Path) -> None:
    """A command that is ended by SIGTERM alone, and not with its task, has failed."""
    from slurmlaunch import Executor

    with Executor(tmp_path / "runs", cluster="slurm") as executor:
        error = executor.submit(Command("kill $$")).exception(PATIENCE)
    assert isinstance(error, subprocess.CalledProcessError)
    assert error.returncode == -signal.SIGTERM


# In tasks.


def test_in_tasks(make_executor: ExecutorFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Items are arguments, outputs are results and logged; a bad one costs no other; thread caps are inherited."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    executor = make_executor()
    futures = executor.map_array(Command("echo {1}; exit {2}"), ["a b", "c"], [0, 7])
    assert futures[0].result(PATIENCE).stdout == "a b\n"
    error = futures[1].exception(PATIENCE)
    assert isinstance(error, subprocess.CalledProcessError)
    assert (error.returncode, error.stdout) == (7, "c\n")
    assert "echo" in futures.folder.name
    if executor.cluster != "inline":
        assert futures[1].stdout() == "c\n"
        future = executor.submit(Command(["printenv", "OMP_NUM_THREADS"], log=False))
        assert future.result(PATIENCE).stdout == "1\n"
        assert future.stdout() == ""


def test_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of the guide runs unchanged, and its table of placeholders is correct."""
    monkeypatch.setenv("SLURMLAUNCH_CLUSTER", "local")
    guide = (Path(__file__).parents[2] / "docs" / "shell-commands.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    size = Path(__file__).stat().st_size
    assert scripts.run(tmp_path, f"files = [{__file__!r}]\n{code}") == f"{size} {__file__}\n 0\n"
    rows = re.findall(r"^\| `(\{.*?\})` \| `(.+?)` \|", guide, re.MULTILINE)
    assert len(rows) == 6
    for place, filled in rows:
        assert Command(f"x {place} {{}}").fill("in/scan.tif") == f"x {filled} in/scan.tif"
