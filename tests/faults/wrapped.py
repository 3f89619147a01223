"""Slurm's commands in wrappers: scripts that come first on PATH, count the calls, and misbehave on demand."""

from __future__ import annotations

import os
import shutil
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

PROGRAMS = ("sbatch", "squeue", "sacct", "scancel", "scontrol")

HANGS = "exec sleep 600"
IS_AWAY = 'echo "$program: error: Unable to contact slurm controller (connect failure)" >&2; exit 1'
TIMES_OUT = 'echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2; exit 1'
TIMES_OUT_AFTERWARDS = f'"$real" "$@" >/dev/null; {TIMES_OUT}'


class Wrapped:
    """The wrappers of one test.

    Attributes:
        path: the value of PATH with which they are found first.
    """

    def __init__(self, folder: Path) -> None:
        self._bin = folder / "bin"
        self._calls = folder / "calls"
        self._bin.mkdir(parents=True)
        self._calls.touch()
        self._real = {program: shutil.which(program) or "/bin/false" for program in PROGRAMS}
        self.path = os.pathsep.join([str(self._bin), os.environ["PATH"]])
        self.behave()

    def behave(self, *programs: str, lines: str = 'exec "$real" "$@"') -> None:
        """From now on, have these programs, or all, run the given lines; by default, the real program.

        They may use ``$real`` and ``$program``.
        """
        for program in programs or PROGRAMS:
            head = f"#!/bin/bash\nprogram={program} real={self._real[program]}\n"
            head += f'printf "%s\\n" "$program $*" >>{self._calls}\n'
            beside = self._bin / f"{program}.{time.monotonic_ns()}"
            beside.write_text(f"{head}{lines}\n", encoding="utf-8")
            beside.chmod(0o755)
            beside.replace(self._bin / program)

    def calls(self, programs: Iterable[str] = PROGRAMS) -> list[str]:
        """Return the command lines of these programs so far."""
        wanted = set(programs)
        lines = self._calls.read_text(encoding="utf-8").splitlines()
        return [line for line in lines if line.partition(" ")[0] in wanted]
