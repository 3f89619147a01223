"""Scripts of users, run as they run them: by a Python of their own."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from subprocess import TimeoutExpired
from typing import TYPE_CHECKING

from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["TimeoutExpired", "finish", "run", "start"]


_started: list[subprocess.Popen[str]] = []


def end_all() -> None:
    """End the scripts that a failed test has left running."""
    while _started:
        with _started.pop() as script:
            script.kill()


def start(folder: Path, text: str, *arguments: object, cwd: Path | None = None) -> subprocess.Popen[str]:
    """Write a script into a folder and start it, in another folder if one is given."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(text), encoding="utf-8")
    command = [sys.executable, str(script), *map(str, arguments)]
    started = subprocess.Popen(command, cwd=cwd or folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    _started.append(started)
    return started


def finish(script: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for a script; return its exit status and what it printed to both streams."""
    with script:
        out, err = script.communicate(timeout=PATIENCE)
    return script.returncode, out, err


def run(folder: Path, text: str, *arguments: object, cwd: Path | None = None) -> str:
    """Run a script that is to end well; return what it printed."""
    status, out, err = finish(start(folder, text, *arguments, cwd=cwd))
    assert status == 0, err
    return out
