"""Clients: which process submits and watches a run, whether it still runs, and when another may act in its place.

A round's plan, its journal, a job id of the local backend and the snapshot of the scheduler's answers name clients;
all of them by `ClientId`. Nothing here reads the run folder: `slurmlaunch.runfolder.rounds` says when a client wrote.
"""

from __future__ import annotations

import functools
import os
import re
import time
from pathlib import Path
from typing import NamedTuple

from slurmlaunch.runfolder import forms

CLIENT = forms.row(forms.text, forms.count, forms.text)
"""The form of a client on disk."""

SILENT_FOR = 3600.0
"""Seconds without a write after which a client on another machine, whose processes cannot be seen, is replaced."""


class ClientId(NamedTuple):
    """A process, named so that no other process has the same name, before or after.

    Process ids are reused; a process id together with the start time is not. On disk a client is the JSON list of
    these three fields.

    Attributes:
        machine: the name of its machine.
        pid: its process id.
        started: when it started, in the kernel's ticks since boot; empty for a process that does not exist.
    """

    machine: str
    pid: int
    started: str

    @classmethod
    def current(cls) -> ClientId:
        """Return this process."""
        return _this_process(os.getpid())

    @classmethod
    def of_process(cls, pid: int) -> ClientId:
        """Return a process of this machine."""
        return cls(_machine(), pid, _start(pid))

    @classmethod
    def parse(cls, text: str) -> ClientId | None:
        """Read what `__str__` wrote; None for anything else."""
        machine, *others = text.rsplit("-", 2)  # the name of a machine may hold hyphens
        if len(others) != 2 or not others[0].isdigit():  # noqa: PLR2004
            return None
        return cls(machine, int(others[0]), others[1])

    def __str__(self) -> str:
        """Return the three fields in letters, digits, dots and hyphens."""
        return f"{self.machine}-{self.pid}-{self.started}"

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, a process of this machine."""
        return self.machine == _machine()

    @property
    def has_ended(self) -> bool:
        """Whether it has certainly ended; of a process on another machine nothing is certain."""
        return self.is_here and _start(self.pid) != self.started

    def may_be_replaced(self, last_write: float) -> bool:
        """Whether another client may act in its place: the one takeover rule.

        It has ended, or it is on another machine and has not written for an hour. If it lives after all, no harm is
        done: a second job of the same name waits for the first one and finds nothing to do.

        Args:
            last_write: when its round was last written to, in seconds since the epoch.
        """
        return self.has_ended or (not self.is_here and time.time() - last_write > SILENT_FOR)


@functools.cache
def writer_name() -> str:
    """Return the name of this process in the names of the files that it alone appends to."""
    import secrets  # here, because a node must start fast

    return f"{os.getpid()}-{secrets.token_hex(4)}"


os.register_at_fork(after_in_child=writer_name.cache_clear)


def stat_fields(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat, numbered from 0; None if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The second field is the program's name in parentheses, and may itself hold parentheses and spaces.
    before, _, after = text.rpartition(")")
    return [str(pid), before.partition("(")[2], *after.split()]


@functools.lru_cache(maxsize=1)
def _this_process(pid: int) -> ClientId:  # by its id, which changes in a forked child
    return ClientId.of_process(pid)


def _machine() -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "-", os.uname().nodename) or "localhost"


def _start(pid: int) -> str:
    fields = stat_fields(pid)
    return fields[21] if fields and fields[2] != "Z" else ""
