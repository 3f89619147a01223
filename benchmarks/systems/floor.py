"""The floor that nobody can beat: an array that does nothing, and a pool that needs no Slurm."""

from __future__ import annotations

import concurrent.futures
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from systems.base import Trial

if TYPE_CHECKING:
    from pathlib import Path

    from systems.base import Call

_POLL = 0.002


@dataclass(frozen=True)
class EmptyArray:
    """The least that an array costs: its tasks only create a file each, and run no item.

    Attributes:
        code: Python code that each task runs before, or nothing, and then no Python either.
    """

    code: str = ""
    name: str = "floor"
    requires: tuple[str, ...] = ()
    logs: str = "*.log"
    launcher: tuple[str, ...] = ()

    def run(self, call: Call, folder: Path) -> Trial:
        """Submit the array, and list the files until the last exists."""
        files = folder / "files"
        files.mkdir()
        options = [f"--array=0-{call.tasks - 1}%{call.tasks}", f"--output={folder}/%a.log", "--parsable"]
        python = [shlex.join([sys.executable, "-c", self.code])] if self.code else []
        script = "\n".join(["#!/bin/bash", *python, f': > "{files}/$SLURM_ARRAY_TASK_ID"', ""])
        subprocess.run(["sbatch", *options], input=script, text=True, check=True, stdout=subprocess.DEVNULL)
        accepted = time.time()
        while sum(1 for _ in files.iterdir()) < call.tasks:
            time.sleep(_POLL)
        return Trial(None, accepted)


@dataclass(frozen=True)
class Pool:
    """A plain pool of the standard library, with as many processes as this machine has CPUs."""

    processes: int = 2
    chunksize: int = 64
    name: str = "ProcessPoolExecutor(2)"
    requires: tuple[str, ...] = ()
    logs: str = ""
    launcher: tuple[str, ...] = ()

    def run(self, call: Call, folder: Path) -> Trial:  # noqa: ARG002  (it needs no folder)
        """Map the function over the items."""
        with concurrent.futures.ProcessPoolExecutor(self.processes) as pool:
            return Trial(list(pool.map(call.function, call.items, chunksize=self.chunksize)))
