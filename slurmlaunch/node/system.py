"""The node's requests to Linux: parent death, processes, signals, memory accounting, streams and the task's log.

Used by the supervisors, the workers and the ranks; knows nothing of items or run folders.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import stat
import sys
from _thread import get_ident
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from slurmlaunch import caps, context
from slurmlaunch.errors import LOG_LINES, amount, signal_name
from slurmlaunch.runfolder.clients import stat_fields
from slurmlaunch.runfolder.files import identity
from slurmlaunch.runfolder.layout import PARENT_DEATH_VARIABLE
from slurmlaunch.runfolder.storage import status_of

if TYPE_CHECKING:
    from collections.abc import Collection
    from types import FrameType

# The end of the parent.

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, however that happens."""
    parent = os.getppid()
    _call_c("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call
        os._exit(1)


def _call_c(function: str, *arguments: int) -> None:
    import _ctypes  # in less than a millisecond; ctypes itself would take ten of a task's start

    program = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]  # as dlopen(3), it takes NULL for the program itself
    _ctypes.call_function(_ctypes.dlsym(program, function), arguments)


def client_pipe() -> int | None:
    """Return the descriptor whose end of file says that the client of a local task has died, or None."""
    number = os.environ.pop(PARENT_DEATH_VARIABLE, "")  # no child inherits it
    try:
        return int(number) if stat.S_ISFIFO(os.fstat(int(number)).st_mode) else None
    except (ValueError, OSError):  # in a container the variable may exist without the descriptor
        return None


def node_name() -> str:
    """Return the name of this node: Slurm's, or else the machine's."""
    return os.environ.get("SLURMD_NODENAME", os.uname().nodename)


def earlier_starts() -> int:
    """Return how often the scheduler has started this task before: its end marks count so, too."""
    count = os.environ.get("SLURM_RESTART_COUNT", "")
    return int(count) if count.isdecimal() else 0


# Processes that items started. They may lead groups and sessions of their own, so only the tree of processes leads to
# them all: Slurm finds them by the cgroup of the step, but not before its end, and on a laptop nothing does.


def adopt_orphans() -> None:
    """Become the parent of descendants whose parent ends, so that they can be found.

    Workers do so for the cancellation of an item, supervisors for the end of a worker.
    """
    _call_c("prctl", _PR_SET_CHILD_SUBREAPER, 1)


def reap_orphans(ours: Collection[int]) -> None:
    """Reap adopted processes that have ended; *ours* are the children that others wait for."""
    with contextlib.suppress(ChildProcessError):  # there are no children
        while (ended := os.waitid(os.P_ALL, 0, _ENDED)) and ended.si_pid not in ours:
            os.waitpid(ended.si_pid, 0)


_ENDED = os.WEXITED | os.WNOHANG | os.WNOWAIT


def has_children() -> bool:
    """Return whether this process has children, also adopted ones and those that were not waited for."""
    try:
        os.waitid(os.P_ALL, 0, _ENDED)
    except ChildProcessError:
        return False
    return True


def kill_trees(roots: Collection[int]) -> None:
    """Kill processes and their descendants; all are stopped first, so that none starts another meanwhile."""
    stopped: set[int] = set()
    new = set(roots)
    while new:
        _kill(new, signal.SIGSTOP)
        stopped |= new
        new = _children_of(stopped) - stopped
    _kill(stopped, signal.SIGKILL)


def kill_descendants() -> None:
    """Kill what this process started or adopted, and is left."""
    if has_children():  # none, in the common case
        kill_trees(_children_of({os.getpid()}))


def _kill(processes: Collection[int], number: int) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process, number)


def _children_of(parents: Collection[int]) -> set[int]:
    found = ((int(name), stat_fields(int(name))) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208  (thousands of Paths take long)
    return {process for process, stat in found if stat and int(stat[3]) in parents}


# Signals of processes that run user code.

_LEFT_TO_SUPERVISOR = (signal.SIGTERM, signal.SIGUSR1)


def leave_signals_to_supervisor() -> None:
    """Catch TERM and USR1 (an ignored signal stays ignored across exec); children have the defaults."""
    for number in _LEFT_TO_SUPERVISOR:
        signal.signal(number, _ignore)
    for number in (signal.SIGCHLD, signal.SIGQUIT):  # bash 5.3 ignores the latter in what a script runs beside itself
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, _interrupt)
    os.register_at_fork(before=_block_signals, after_in_parent=_unblock_signals, after_in_child=_restore_defaults)


_SIG_IGN = 1
"""C's ``SIG_IGN``."""


def offer_warning() -> None:
    """Leave USR1, the warning of the time limit, to the user's code: ignore it until a handler is installed.

    For Python it has its default, because libraries that checkpoint on it (PyTorch Lightning) install a handler only
    then. What is started by exec ignores it, too.
    """
    import ctypes

    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    ctypes.CDLL(None).signal(ctypes.c_int(signal.SIGUSR1), ctypes.c_void_p(_SIG_IGN))


def _ignore(_number: int, _frame: object) -> None:
    pass


_interrupted_items: set[int] = set()


def _interrupt(number: int, frame: FrameType | None) -> None:
    _interrupted_items.add(context.current_task().item)
    signal.default_int_handler(number, frame)


def end_if_interrupted(item: int) -> None:
    """End this process by SIGINT, as Python itself would, if an item failed after a SIGINT; -1 before the first item.

    The signal came from outside (``scancel --signal=INT --full``). Its KeyboardInterrupt is no failure of the function,
    unlike one that the function raises itself.
    """
    if item in _interrupted_items:
        flush_streams()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)


def _block_signals() -> None:
    """Deliver no signal to a forked child before it has its defaults: it would be lost."""
    _masks[get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_SUPERVISOR)


def _unblock_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.pop(get_ident()))


def _restore_defaults() -> None:
    for number in _LEFT_TO_SUPERVISOR:
        if signal.getsignal(number) is _ignore:  # else the function installed its own
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is _interrupt:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _unblock_signals()


_masks: dict[int, set[int | signal.Signals]] = {}
"""The signal mask of each thread that is about to fork."""


# The end of a process that runs user code.


def leave(*, status: int) -> NoReturn:
    """End this process at once."""
    flush_streams()
    os._exit(status)


def wait_for_term() -> None:
    """Return when SIGTERM arrives."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.sigwait({signal.SIGTERM})


def describe_end(who: str, code: int) -> str:
    """Return a line about a process that did not end well after its last item; *code* is negative for a signal."""
    if code == -signal.SIGALRM:
        seconds = caps.END_SECONDS
        how = f"did not end within {seconds} s (a function of atexit, or a thread that an item left) and was killed"
    else:
        how = f"was killed by {signal_name(-code)} while it ended" if code < 0 else f"ended with exit status {code}"
    return f"slurmlaunch: {who} {how}: this changes no outcome"


# Standard output and the log.


class _Log(io.FileIO):
    """A log that drops what the storage refuses: a full disk is no reason for an item that prints to fail."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if status_of(error) is None:
                raise
            return memoryview(data).nbytes


_streams: dict[int, tuple[int, int]] = {}
"""The files behind the standard streams of a process that runs items; such an item may put others in their place."""


def line_buffer() -> None:
    """Write each line when it is complete, and as a whole, so that it outlives this process."""
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        _streams[descriptor] = identity(descriptor)
        before = getattr(sys, name)
        if before is None:
            continue
        file = io.BufferedWriter(_Log(descriptor, "wb", closefd=False))
        stream = io.TextIOWrapper(file, before.encoding, before.errors, line_buffering=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def log(text: str) -> None:
    """Write a line of slurmlaunch's own to standard error, if it can be written and is no file of the user's."""
    if identity(2) != _streams.get(2, identity(2)):
        return
    with contextlib.suppress(OSError, ValueError, AttributeError):  # a stream that an item closed or replaced
        print(text, file=sys.stderr, flush=True)  # noqa: T201


def flush_streams() -> None:
    """Flush standard output and standard error."""
    for stream in (sys.stdout, sys.stderr):
        # A full disk, or a stream that the function closed or replaced: the outcome matters more.
        with contextlib.suppress(Exception):
            stream.flush()


def flush_all_streams() -> None:
    """Flush standard output and standard error, and what C code of this process has printed."""
    flush_streams()
    _call_c("fflush", 0)


def replace_streams(writing: list[int]) -> None:
    """Put these descriptors in the place of standard output and standard error, unless an item put others there."""
    for descriptor, new in zip((1, 2), writing, strict=True):
        if identity(descriptor) == _streams.get(descriptor):
            os.dup2(new, descriptor)
            _streams[descriptor] = identity(descriptor)


_SHOWN_BYTES = 4096


def log_size() -> int:
    """Return the bytes of this task's log, the file behind standard error; 0 if that is no file."""
    status = os.fstat(2)
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def log_tail(start: int) -> str:
    """Return the last lines that were written to the log after its first *start* bytes; nothing if it is unreadable."""
    size = log_size()
    start = max(start, size - _SHOWN_BYTES)
    if size <= start:
        return ""
    try:
        with Path("/proc/self/fd/2").open("rb") as file:  # in a container its own path may not exist
            file.seek(start)
            lines = file.read(size - start).decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-LOG_LINES:]).rstrip()


# Memory. The OOM killer ends one process, not the task, and only the cgroup tells.
# Kills are counted in the process's own cgroup; the limit may be set on a parent. Source: the kernel's
# documentation of cgroup v1 (``memory.oom_control``) and v2 (``memory.events``).

RUSAGE_UNIT = 1024
"""Bytes in which ``ru_maxrss`` is counted, see getrusage(2)."""

_ROOT = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60
_OOM_SCORE = b"300"
"""In thousandths of the machine's memory."""


def prefer_for_oom_kill() -> None:
    """Have the OOM killer choose this process rather than the supervisor, which has to report it."""
    with contextlib.suppress(OSError):  # /proc may be read-only in a container
        Path("/proc/self/oom_score_adj").write_bytes(_OOM_SCORE)


def oom_kills() -> int:
    """Return how many processes of this task's cgroup the OOM killer has killed."""
    for folder, events, _ in _memory_cgroups():
        for line in _lines(folder / events):
            name, _, number = line.partition(" ")
            if name == "oom_kill":
                return int(number)
    return 0


def memory_limit_text() -> str:
    """Return `` of 1.5 GiB`` for this task's memory limit, or nothing if there is none."""
    limits = [
        int(line)
        for folder, _, limit in _memory_cgroups()
        for parent in (folder, *folder.parents)
        if parent.is_relative_to(_ROOT)
        for line in _lines(parent / limit)
        if line.isdigit() and int(line) < _UNLIMITED
    ]
    return f" of {amount(min(limits))}" if limits else ""


def mapped_file_bytes(process: int) -> int:
    """Return how many bytes of files a process has mapped and touched, which others may share.

    Source: ``RssFile`` in proc_pid_status(5), as of Linux 4.5.
    """
    for line in _lines(Path(f"/proc/{process}/status")):
        name, _, value = line.partition(":")
        if name == "RssFile":
            return int(value.split()[0]) * 1024
    return 0


def _memory_cgroups() -> list[tuple[Path, str, str]]:
    """Return the memory cgroups of this process: folder, name of the events file, name of the limit file."""
    found = []
    for line in _lines(Path("/proc/self/cgroup")):
        _, controllers, path = line.split(":", 2)
        inner = path.lstrip("/")
        if controllers == "memory":
            found.append((_ROOT / "memory" / inner, "memory.oom_control", "memory.limit_in_bytes"))
        elif not controllers:
            found.append((_ROOT / inner, "memory.events", "memory.max"))
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:  # no cgroups in some containers, or not this version of them
        return []
