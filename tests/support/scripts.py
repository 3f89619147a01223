"""Scripts of users, run as they run them: by a Python of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from subprocess import TimeoutExpired
from typing import TYPE_CHECKING, Any

from tests.support.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["TimeoutExpired", "finish", "run", "start"]


_started: list[subprocess.Popen[str]] = []


def end_all() -> None:
    """End the scripts that a failed test has left running."""
    while _started:
        with _started.pop() as script:
            script.kill()


def start(
    folder: Path,
    text: str,
    *arguments: object,
    cwd: Path | None = None,
    within: Sequence[str] = (),
    options: Sequence[str] = (),
) -> subprocess.Popen[str]:
    """Write a script into a folder and start it, in another folder if one is given, and *within* another command.

    *options* are Python's own.
    """
    script = folder / "script.py"
    script.write_text(textwrap.dedent(text), encoding="utf-8")
    command = [*within, sys.executable, *options, str(script), *map(str, arguments)]
    # The scripts use helpers of these tests, which are no installed package.
    here = str(Path(__file__).resolve().parents[2])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), here]))}
    pipe = subprocess.PIPE
    started = subprocess.Popen(command, cwd=cwd or folder, env=env, stdout=pipe, stderr=pipe, text=True)
    _started.append(started)
    return started


def finish(script: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for a script; return its exit status and its output on both streams."""
    with script:
        out, err = script.communicate(timeout=PATIENCE)
    return script.returncode, out, err


def run(folder: Path, text: str, *arguments: object, **how: Any) -> str:
    """Run a script that should succeed, as `start` does; return its output."""
    status, out, err = finish(start(folder, text, *arguments, **how))
    assert status == 0, err
    return out
