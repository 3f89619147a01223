"""Progress in a real terminal: a program whose standard error is a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pickle
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from typing import TYPE_CHECKING

import pytest

from tests.support.waiting import Gate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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
                self.text += os.read(self.ours, 4096).decode()
            except OSError:  # the program has ended
                pytest.fail(f"{pattern!r} is not in {self.text[self.position :]!r}")
        start, self.position = self.position, found.end()
        return self.text[start : self.position]


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
