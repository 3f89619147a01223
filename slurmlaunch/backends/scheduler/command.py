"""Running one of Slurm's commands: in bounded time, apart from the terminal, with clean variables."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True)
class Command:
    """What to run.

    Attributes:
        words: the program and its arguments.
        env: all variables of the program.
        timeout: how many seconds it may take.
        stdin: what it reads.
        cwd: the folder that it runs in, or None for ours.
    """

    words: tuple[str, ...]
    env: Mapping[str, str]
    timeout: float
    stdin: str = ""
    cwd: Path | None = None


@dataclass(frozen=True)
class Finished:
    """How a command ended.

    Attributes:
        returncode: its exit status; None where it could not be started, or was killed.
        stdout: what it printed.
        stderr: its complaints, or why it could not be started.
        missing: whether there is no such program.
        timed_out: whether it was killed because it took too long.
    """

    returncode: int | None
    stdout: str = ""
    stderr: str = ""
    missing: bool = False
    timed_out: bool = False

    @property
    def ok(self) -> bool:
        """Whether it ended by itself and well."""
        return self.returncode == 0


class Runner(Protocol):
    """How commands are run; tests hand in their own."""

    def __call__(self, command: Command, /) -> Finished:
        """Run a command to its end; never raises for what the command does."""


def run(command: Command, /) -> Finished:
    """Run a command in a session of its own, so that a Ctrl-C at the terminal does not end it half-way."""
    try:
        process = subprocess.Popen(
            command.words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(command.env),
            cwd=command.cwd,
            start_new_session=True,
            # Paths may hold any bytes; what Slurm prints is only read where it is plain.
            encoding="utf-8",
            errors="surrogateescape",
        )
    except OSError as error:
        # A folder that is gone is an OSError as well, but then it is the folder that is named.
        missing = isinstance(error, FileNotFoundError) and error.filename == command.words[0]
        return Finished(None, stderr=str(error), missing=missing)
    with process:
        try:
            stdout, stderr = process.communicate(command.stdin, timeout=command.timeout)
        except subprocess.TimeoutExpired:
            return _kill(process, command.timeout)
        return Finished(process.returncode, stdout, stderr)


def _kill(process: subprocess.Popen[str], timeout: float) -> Finished:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    stdout = stderr = ""
    # What it printed helps to say why; a pipe that something else holds open is not waited for.
    with contextlib.suppress(subprocess.TimeoutExpired):
        stdout, stderr = process.communicate(timeout=1)
    return Finished(None, stdout, f"{stderr}\nno answer in {timeout:g} s".lstrip(), timed_out=True)
