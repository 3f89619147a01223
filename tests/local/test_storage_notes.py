"""What an exception of the user's function says of the file that met a limit."""

from __future__ import annotations

import os
import resource
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from slurmlaunch import Executor

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT = 1 << 16


def limit_files() -> None:
    """Let this process write no larger files."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_notes(tmp_path: Path) -> None:
    """An error for want of space, or for a file that is too large, names the file, the limit and what to do."""
    large, full = tmp_path / "large", Path("/dev/full")

    def write(path: Path) -> None:
        if path == large:
            limit_files()
        with path.open("wb") as file:
            file.write(bytes(2 * LIMIT))

    def run(_: Path) -> None:
        limit_files()
        subprocess.run(["sh", "-c", f"exec head -c {2 * LIMIT} /dev/zero > {large}"], check=True)

    def notes(function: Callable[[Path], None], path: Path) -> str:
        with Executor(tmp_path / "runs", cluster="local") as executor:
            error = executor.submit(function, path).exception(60)
        return "\n".join(getattr(error, "__notes__", ()))

    for function in (write, run):
        note = notes(function, large)
        assert f"{large} reached 64 KiB" in note
        assert "ulimit -f unlimited" in note
    note = notes(write, full)
    assert f"{os.uname().nodename} is full" in note
    assert "write elsewhere" in note
