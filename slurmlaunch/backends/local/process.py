"""The processes of one task on this machine: started, signalled, measured and reaped.

Each task leads a session of its own: Ctrl-C in the client's terminal does not reach it, and all processes that it
starts can be found again. It is started by `os.posix_spawn`, which alone still works while the interpreter shuts down
and queued tasks must yet run (Python 3.12 and later refuse to fork then). The local scheduler calls this; arrays and
limits are unknown here.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from slurmlaunch.backends.soft_limits import set_soft_limits
from slurmlaunch.runfolder.clients import stat_fields
from slurmlaunch.runfolder.layout import PARENT_DEATH_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LIFELINE_FD = 32  # far from those that set-up lines, and bash itself, may use

_WAIT = "read -r _ && exec </dev/null || exit\n"
"""What the shell of a task runs first: it waits until the task has its limits."""

STATUS_UNKNOWN = 256
"""The status of a process that another part of the program has reaped; no real one is so large."""


class TaskProcess:
    """The process that leads a task: *pid* is also the id of its group and its session.

    *pidfd* is a descriptor that becomes readable when it ends, or None if it must be polled.
    """

    def __init__(
        self,
        command: tuple[str, ...],
        env: Mapping[str, str],
        limits: Mapping[str, int],
        *,
        stdout: int,
        stderr: int,
        lifeline: int,
    ) -> None:
        """Start a task.

        Args:
            command: the absolute path of a shell, ``-c``, the lines that it runs, and their arguments.
            env: all its variables.
            limits: its soft limits, by name.
            stdout: a descriptor.
            stderr: another one.
            lifeline: the read end of a pipe.

        Raises:
            OSError: the program cannot be started.
            ValueError: a word or a variable holds a NUL character.
        """
        shell, option, lines, *arguments = command
        stdin, begin = os.pipe()
        try:
            self.pid = os.posix_spawn(
                shell,
                (shell, option, _WAIT + lines, *arguments),
                {**env, PARENT_DEATH_VARIABLE: str(LIFELINE_FD)},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, stdin, 0),
                    (os.POSIX_SPAWN_DUP2, stdout, 1),
                    (os.POSIX_SPAWN_DUP2, stderr, 2),
                    (os.POSIX_SPAWN_DUP2, lifeline, LIFELINE_FD),
                ],
                setsid=True,
                setsigmask=(),
                setsigdef=signal.valid_signals(),  # whatever this process ignores, the task must not
            )
            set_soft_limits(self.pid, limits)
            os.write(begin, b"\n")
        finally:
            os.close(stdin)
            os.close(begin)
        self.pidfd: int | None = None
        with contextlib.suppress(AttributeError, OSError):  # a Python built for an old kernel; too many open files
            self.pidfd = os.pidfd_open(self.pid)
        self._signalled = False

    def poll(self) -> int | None:
        """Return the exit status (negative for a signal) once it has ended, else None.

        The other processes of the task are killed before their leader is reaped: until
        then no other process can be given its number.
        """
        try:
            ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return None
            # The search through the session costs milliseconds on a busy machine: only a
            # task that was signalled may have left processes outside its group.
            if self._signalled or ended.si_code != os.CLD_EXITED:
                self.send(signal.SIGKILL, Sessions.read())
            else:
                self._signal_group(signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:
            # Reaped by another os.wait(), or because SIGCHLD is ignored.
            return STATUS_UNKNOWN

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
        """Close the descriptor."""
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None


class _Process(NamedTuple):
    pid: int
    resident: int


class Sessions(NamedTuple):
    """The processes of this machine by session, as read from /proc."""

    members: Mapping[int, Sequence[_Process]]

    @classmethod
    def read(cls) -> Sessions:
        """Read all processes, once."""
        members: dict[int, list[_Process]] = {}
        page = os.sysconf("SC_PAGE_SIZE")
        with contextlib.suppress(OSError):  # too many open files
            for entry in os.scandir("/proc"):
                if entry.name.isdigit() and (stat := stat_fields(int(entry.name))):
                    members.setdefault(int(stat[5]), []).append(_Process(int(entry.name), int(stat[23]) * page))
        return cls(members)

    def memory(self, session: int, limit: float) -> int:
        """Return the bytes that a session holds; exact only above the limit.

        The sum of resident sizes counts a page of two processes twice, but is
        cheap. Only if that exceeds the limit are shared pages divided.
        """
        processes = self.members.get(session, ())
        resident = sum(process.resident for process in processes)
        return resident if resident <= limit else sum(map(_proportional, processes))


def _proportional(process: _Process) -> int:
    """Return the memory of a process, each shared page divided by the number of its processes."""
    try:
        text = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return process.resident
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else process.resident
