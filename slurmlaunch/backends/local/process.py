"""A task's processes on this machine: started, signalled, measured and reaped.

Each task is the leader of a session of its own: Ctrl-C in the client's terminal
does not reach it, and all that it starts can be found again. It is started by
`os.posix_spawn`, since that alone still works while the interpreter shuts down
(Python 3.12 and later refuse to fork then), when queued tasks must yet run.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from slurmlaunch.runfolder.layout import LIFELINE_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

LIFELINE_FD = 32  # far from those that set-up lines, and bash itself, may use

# What a Python client ignores or may have ignored, its tasks shall not inherit.
_DEFAULT_SIGNALS = (
    signal.SIGCHLD, signal.SIGINT, signal.SIGPIPE, signal.SIGTERM, signal.SIGUSR1, signal.SIGXFSZ,
)  # fmt: skip

STATUS_UNKNOWN = 256
"""Said of a process whose exit status another part of the program has taken; no real one is so large."""


class Launch(NamedTuple):
    """How to start one task.

    Attributes:
        command: the command line; the first word is an absolute path.
        env: the whole environment.
        stdout: the file that standard output is appended to.
        stderr: the same for standard error.
        lifeline: the descriptor of the lifeline's read end.
    """

    command: tuple[str, ...]
    env: Mapping[str, str]
    stdout: Path
    stderr: Path
    lifeline: int


class TaskProcess:
    """The process that leads a task.

    Attributes:
        pid: its process id, which is also that of its group and its session.
        pidfd: a descriptor that becomes readable when it ends, or None where
            the system has none (macOS): then it must be polled.
    """

    def __init__(self, launch: Launch) -> None:
        append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self.pid = os.posix_spawn(
            launch.command[0],
            launch.command,
            {**launch.env, LIFELINE_VARIABLE: str(LIFELINE_FD)},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, launch.stdout, append, 0o600),
                (os.POSIX_SPAWN_OPEN, 2, launch.stderr, append, 0o600),
                (os.POSIX_SPAWN_DUP2, launch.lifeline, LIFELINE_FD),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=_DEFAULT_SIGNALS,
        )
        self.pidfd = _pidfd(self.pid)
        self._signalled = False

    def poll(self) -> int | None:
        """Return the exit status (negative for a signal) once it has ended, else None.

        What is left of the task is killed before its leader is reaped: until
        then nobody else can be given its number.
        """
        try:
            if hasattr(os, "waitid"):
                if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                    return None
                self._sweep()
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            # Reaped by someone else's os.wait(), or because SIGCHLD is ignored.
            return STATUS_UNKNOWN
        if not pid:
            return None
        if not hasattr(os, "waitid"):  # macOS before Python 3.13 cannot look without reaping
            self._sweep()
        return os.waitstatus_to_exitcode(status)

    def _sweep(self) -> None:
        # The search through the session costs milliseconds where many processes
        # run: only a task that was made to end may have left some outside its group.
        if self._signalled:
            self.send(signal.SIGKILL, Sessions.read())
        else:
            self._signal_group(signal.SIGKILL)

    def send(self, number: int, sessions: Sessions) -> None:
        """Signal every process of the task, as Slurm does."""
        self._signalled = True
        self._signal_group(number)
        for process in sessions.members.get(self.pid, ()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getsid(process.pid) == self.pid != os.getpgid(process.pid):
                    os.kill(process.pid, number)

    def _signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def close(self) -> None:
        """Give the descriptor back."""
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None


def _pidfd(pid: int) -> int | None:
    opener: Callable[[int], int] | None = getattr(os, "pidfd_open", None)
    try:
        return opener(pid) if opener else None
    except OSError:  # an old kernel, a sandbox, too many open files
        return None


class _Process(NamedTuple):
    pid: int
    resident: int


class Sessions(NamedTuple):
    """The processes of the machine by session, from Linux's /proc; none elsewhere."""

    members: Mapping[int, Sequence[_Process]]

    @classmethod
    def read(cls) -> Sessions:
        """Look at all processes, once."""
        members: dict[int, list[_Process]] = {}
        page = os.sysconf("SC_PAGE_SIZE")
        for pid in _pids():
            if stat := stat_fields(pid):
                members.setdefault(int(stat[5]), []).append(_Process(pid, int(stat[23]) * page))
        return cls(members)

    def memory(self, session: int, limit: float) -> int:
        """Return the bytes that a session holds; exact only above the limit.

        The sum of resident sizes counts a page of two processes twice, but is
        cheap. Only when that is too much are shared pages shared out.
        """
        processes = self.members.get(session, ())
        resident = sum(process.resident for process in processes)
        return resident if resident <= limit else sum(map(_proportional, processes))


def _pids() -> Collection[int]:
    try:
        return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    except OSError:
        return ()


def stat_fields(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat, numbered from 0; None without such a process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The second field is the program's name in parentheses, and may hold any others.
    before, _, after = text.rpartition(")")
    return [str(pid), before.partition("(")[2], *after.split()]


def _proportional(process: _Process) -> int:
    """Return the memory of a process, each shared page divided by those who share it."""
    try:
        text = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return process.resident
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else process.resident
