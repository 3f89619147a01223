"""Progress, and the verbs of the command line, in a real terminal: a pseudo-terminal, and on a run that grows."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pickle
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.waiting import PATIENCE, Gate, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PROGRAM = """
import logging, pickle, sys, threading
from slurmlaunch import Executor
from slurmlaunch.client import progress

progress._AFTER = 0.0
gate = pickle.loads(bytes.fromhex(sys.argv[1]))

def work(item):
    gate.enter(item)
    raise KeyError(item)

with Executor(sys.argv[2], cluster="local", name="letters", processes=1) as executor:
    futures = executor.map_array(work, "ab", tasks=1)
    gate.await_arrival("a")
    threading.Timer(0.3, logging.getLogger("slurmlaunch").warning, ["a warning"]).start()
    futures.results()
"""


VERB = """
import sys
from slurmlaunch.cli import main, status
from slurmlaunch.client import tailing

status._EVERY = tailing._EVERY = 0.05
sys.exit(main.main())
"""
GROWS = "echo begun {}; until [ -e go-{} ]; do sleep 0.02; done; echo ended {}; test {} = a"


class Terminal:
    """A pseudo-terminal and everything that was written to it."""

    def __init__(self) -> None:
        self.ours, self.theirs = pty.openpty()
        self.text, self.position = "", 0

    def resize(self, columns: int) -> None:
        """Change the number of columns."""
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def read_until(self, pattern: str) -> str:
        """Read until something matches behind the last match, and return the text up to its end."""
        while not (found := re.compile(pattern).search(self.text, self.position)):
            try:
                assert select.select([self.ours], [], [], PATIENCE)[0], "nothing comes"
                self.text += os.read(self.ours, 4096).decode()
            except (AssertionError, OSError):  # the program has ended
                pytest.fail(f"{pattern!r} is not in {self.text[self.position :]!r}")
        start, self.position = self.position, found.end()
        return self.text[start : self.position]

    def read_to_the_end(self) -> str:
        """Read what is left of a program that has ended, and return it."""
        with contextlib.suppress(OSError):
            while piece := os.read(self.ours, 4096).decode():
                self.text += piece
        return self.text[self.position :]


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """Return a terminal of 60 columns."""
    terminal = Terminal()
    terminal.resize(60)
    yield terminal
    os.close(terminal.ours)


def start(terminal: Terminal, tmp_path: Path, gate: Gate) -> subprocess.Popen[bytes]:
    """Start the program in a terminal."""
    words = (sys.executable, "-c", PROGRAM, pickle.dumps(gate).hex(), str(tmp_path / "runs"))
    environment = {name: os.environ[name] for name in os.environ if name != "SLURMLAUNCH_PROGRESS"}
    program = subprocess.Popen(words, stderr=terminal.theirs, env={**environment, "TERM": "xterm"})
    os.close(terminal.theirs)
    return program


def test_a_failure_and_a_resize(terminal: Terminal, tmp_path: Path) -> None:
    """The line fits the terminal as it is now; warnings and the traceback stand on lines of their own."""
    gate = Gate(tmp_path / "gate")
    with start(terminal, tmp_path, gate):
        terminal.read_until(r"\rletters: 0 of 2 done, 1 running, 1 pending\x1b\[K")
        terminal.read_until(r"\r\x1b\[Ka warning\r\n")
        terminal.resize(20)
        terminal.read_until(r"\rletters: 0 of 2 don\x1b\[K")
        gate.open("a", "b")
        text = terminal.read_until("KeyError: 'a'\r\nitem 0")
    assert re.search(r"\x1b\[K\r\n(slurmlaunch: |slurmlaunch\.outcome\.|Traceback)", text)


def test_an_interrupt(terminal: Terminal, tmp_path: Path) -> None:
    """Ctrl-C ends the line, and what is printed about it begins on the next."""
    gate = Gate(tmp_path / "gate")
    with start(terminal, tmp_path, gate) as program:
        terminal.read_until(r"letters: 0 of 2 done, 1 running")
        program.send_signal(signal.SIGINT)
        terminal.read_until(r"\x1b\[K\r\n.*KeyboardInterrupt")
        gate.open("a", "b")
        program.send_signal(signal.SIGINT)


@pytest.fixture
def growing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder in which another process runs two items, which print and wait for ``go-a`` and ``go-b``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURMLAUNCH_CLUSTER", "local")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    words = (sys.executable, "-m", "slurmlaunch", "map", "--quiet", "--name=letters", "--tasks=1", GROWS, "a", "b")
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as program:
        wait_until(lambda: any("begun" in each.read_text() for each in tmp_path.glob("slurmlaunch-runs/*/logs/*.out")))
        yield tmp_path
        program.send_signal(signal.SIGINT)


def verb(*words: str, **streams: Any) -> subprocess.Popen[bytes]:
    """Start a verb that looks often."""
    return subprocess.Popen((sys.executable, "-c", VERB, *words), **streams)


@contextlib.contextmanager
def on_terminal(terminal: Terminal, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a verb in a terminal, and wait for its end."""
    environment = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "COLUMNS", "LINES"}}
    with verb(*words, stdout=terminal.theirs, stderr=terminal.theirs, env={**environment, "TERM": "xterm"}) as program:
        os.close(terminal.theirs)
        try:
            yield program
        except BaseException:
            program.kill()
            raise


def test_a_status_that_changes(terminal: Terminal, growing: Path) -> None:
    """The status is shown again in its place, in the width of the terminal, also after it has become narrower."""
    with on_terminal(terminal, "status", "--watch") as program:
        terminal.read_until(r"\x1b\[34mrunning\x1b\[0m  letters: 0 of 2 done")
        terminal.read_until(r"submitted [^\n]{1,49}\r\n")
        terminal.resize(20)
        (growing / "go-a").touch()
        rows = terminal.read_until(r"\x1b\[\d+F\x1b\[J\x1b\[34mrunning\x1b\[0m  letters: 1\r\n")
        assert int(re.findall(r"\[(\d+)F", rows)[0]) >= 7  # the lines before, of which the narrow terminal wraps most
        (growing / "go-b").touch()
        text = terminal.read_until(r"failed\x1b\[0m  letters: 1 \r\n(.|\n)*submitted[^\n]*\r\n")
    assert program.returncode == 1
    assert all(len(line.rstrip("\r")) <= 19 for line in re.sub(r"\x1b\[\d*[FJm]", "", text).split("\n"))


@pytest.mark.parametrize("words", [("status", "--watch"), ("logs", "--follow"), ("wait",)])
def test_ctrl_c_of_a_verb(terminal: Terminal, growing: Path, words: tuple[str, ...]) -> None:
    """Ctrl-C ends a verb that waits, with status 130 and a new line, and not the run."""
    (growing / "go-a").touch()
    ready = growing / "slurmlaunch-runs"
    with on_terminal(terminal, *words) as program:
        if words == ("wait",):  # which prints nothing for some seconds
            wait_until(lambda: any(ready.glob("*/clients/*-*-*")) and len([*ready.glob("*/clients/*")]) > 0)
        else:
            terminal.read_until("letters: 1 of 2 done" if words[0] == "status" else "begun b")
        program.send_signal(signal.SIGINT)
        program.wait()
    assert program.returncode == 130
    text = terminal.read_to_the_end()
    assert text.endswith("\r\n")
    assert "Traceback" not in text


def test_logs_that_grow(growing: Path) -> None:
    """What items print is printed as it comes, until all have ended; a reader that has enough ends the verb."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with verb("logs", "--follow", **streams) as whole, verb("logs", "--newest", "1", "-f", **streams) as second:
        with verb("logs", "-f", **streams) as head:
            assert head.stdout is not None
            assert head.stdout.readline() == b"begun a\n"
            head.stdout.close()
            (growing / "go-a").touch()
            assert head.stderr is not None
            assert head.stderr.read() == b""
        assert head.returncode == 128 + signal.SIGPIPE
        assert second.stdout is not None
        assert second.stdout.readline() == b"begun b\n"
        (growing / "go-b").touch()
        assert second.stdout.read() == b"ended b\n"
        out, err = whole.communicate()
    assert out.startswith(b"begun a\nended a\nbegun b\n")
    assert b"ended b\n" in out
    assert (whole.returncode, second.returncode, err) == (0, 0, b"")
    with verb("logs", "--newest", "1", **streams) as one:
        assert one.communicate() == (b"begun b\nended b\n", b"")


def test_a_narrow_list(terminal: Terminal, growing: Path) -> None:
    """Columns are left out of the list of runs until it fits into the terminal; in a pipe all are there."""
    del growing
    piped = subprocess.run((sys.executable, "-m", "slurmlaunch", "runs"), check=True, capture_output=True, text=True)
    assert "function" in piped.stdout
    terminal.resize(75)
    with on_terminal(terminal, "runs"):
        text = terminal.read_until(r"in /[^\n]*\n")
    head, row, _ = re.sub(r"\x1b\[\d*m", "", text).split("\r\n")[:3]
    assert "function" not in head
    assert "run folder" in head
    assert len(row) <= 75
