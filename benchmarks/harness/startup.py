"""The time to start Python and import one module, compared with another."""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from harness.site import CHECKOUT

_CALLGRIND = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null")
_COUNTED = re.compile(r"Collected : (\d+)")


@dataclass
class Startup:
    """The starts of ``python -c CODE``.

    Attributes:
        code: the program.
        seconds: the duration of each start.
        cpu: the CPU time of each, in seconds.
        instructions: the instructions of one, which other load on the machine does not change; None where
            valgrind is not installed.
    """

    code: str
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    instructions: int | None = None

    def start(self) -> None:
        """Start the program once more."""
        begin = time.perf_counter()
        pid = os.posix_spawn(sys.executable, [sys.executable, "-c", self.code], os.environ)
        _, status, usage = os.wait4(pid, 0)
        self.seconds.append(time.perf_counter() - begin)
        self.cpu.append(usage.ru_utime + usage.ru_stime)
        if status:
            raise RuntimeError(f"{self.code!r} ended with status {status}")

    @property
    def spread(self) -> str:
        """Median, minimum and maximum of the seconds, as text."""
        milliseconds = [1000 * each for each in self.seconds]
        return f"{statistics.median(milliseconds):.0f} ms ({min(milliseconds):.0f} to {max(milliseconds):.0f})"


def compare(codes: list[str], starts: int) -> list[Startup]:
    """Start each so often, in turns, from the folder that contains the package, as a node does."""
    before = Path.cwd()
    os.chdir(CHECKOUT)
    try:
        startups = [Startup(code) for code in codes]
        for each in startups:
            each.start()  # once, so that all files are in the page cache
            each.seconds.clear()
            each.cpu.clear()
            each.instructions = _instructions(each.code)
        for _ in range(starts):
            for each in startups:
                each.start()
        return startups
    finally:
        os.chdir(before)


def _instructions(code: str) -> int | None:
    if not shutil.which("valgrind"):
        return None
    done = subprocess.run([*_CALLGRIND, sys.executable, "-c", code], check=True, capture_output=True, text=True)
    found = _COUNTED.search(done.stderr)
    return int(found[1]) if found else None
