"""Whose a local job is: the process that its id names."""

from __future__ import annotations

import itertools
import os
import platform
import re
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from slurmlaunch.backends.local.process import stat_fields

_PREFIX = "local"
_numbers = itertools.count(1)


class Owner(NamedTuple):
    """The process that runs a local job.

    A process id alone is given to another process sooner or later; with the
    time of its start it is not.

    Attributes:
        machine: the name of its machine.
        pid: its process id.
        started: when it started, in the system's own words.
    """

    machine: str
    pid: int
    started: str

    @classmethod
    def me(cls) -> Owner:
        """Return this process."""
        return _own_process(os.getpid())

    @classmethod
    def of_process(cls, pid: int) -> Owner:
        """Return a process of this machine."""
        return cls(_machine(), pid, _start(pid))

    @classmethod
    def of(cls, job_id: str) -> Owner | None:
        """Read the id of a job; None for what is no local job's."""
        # The name of a machine may hold hyphens, what follows it does not.
        prefix, _, rest = job_id.partition("-")
        machine, *others = rest.rsplit("-", 3)
        if prefix != _PREFIX or len(others) != 3 or not others[0].isdigit():  # noqa: PLR2004
            return None
        return cls(machine, int(others[0]), others[1])

    def new_job_id(self) -> str:
        """Return an id that no other job has."""
        return f"{_PREFIX}-{self.machine}-{self.pid}-{self.started}-{next(_numbers)}"

    @property
    def is_here(self) -> bool:
        """Whether that process is, or was, one of this machine."""
        return self.machine == _machine()

    @property
    def is_gone(self) -> bool:
        """Whether that process has certainly ended; of another machine nothing is certain."""
        return self.machine == _machine() and _start(self.pid) != self.started


def _machine() -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "-", platform.node()) or "localhost"


@lru_cache(maxsize=1)
def _own_process(pid: int) -> Owner:  # by its number, which changes in a forked child
    return Owner.of_process(pid)


def _start(pid: int) -> str:
    """Return when a process started, as letters and digits; nothing if there is no such process."""
    if Path("/proc/self/stat").exists():
        fields = stat_fields(pid)
        return fields[21] if fields and fields[2] != "Z" else ""
    # macOS: to the second, which is enough, as process ids are not reused so soon.
    command = ["ps", "-o", "lstart=", "-p", str(pid)]
    shown = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})
    return re.sub(r"[^A-Za-z0-9]", "", shown.stdout)
