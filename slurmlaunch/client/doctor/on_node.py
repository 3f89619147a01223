"""The item of the doctor's job: what a task sees on its node.

The client compares it with what it sees itself. It imports nothing that a worker has not, and runs as any item does.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from slurmlaunch.backends.outer_job import outside_jobs
from slurmlaunch.errors import RunFolderError
from slurmlaunch.runfolder.files import Location, create

if TYPE_CHECKING:
    from collections.abc import Callable

STARTED, PING, PONG = "started", "ping", "pong"
"""The node creates the first, waits for the second, the client's, and answers by the third, which has its time."""
TAKEN, RENAMED, APPENDED, LINKED = "taken", "renamed", "appended", "linked"
"""Files in the folder that the client has made, in which both try what run folders need; see `Files`."""

_WAIT_FOR_CLIENT = 90.0
"""Seconds; a network file system may show a new file a minute late."""
_STEP = 0.005
_TIMEOUT = 30.0
_NO_LIMIT = 1 << 60
"""From here on the first version of control groups means no limit."""


class Files:
    """The files in which client and node try the storage, by names that nobody else can predict."""

    def __init__(self, folder: Location, secret: str) -> None:
        """Name the files of a folder by a word that only client and node know."""
        self._folder, self._end = folder, f"-{secret}"

    def __getitem__(self, name: str) -> Location:
        """Return a file."""
        return self._folder / f"{name}{self._end}"

    def names(self) -> set[str]:
        """Return which are there, by a listing: a network file system caches the absence of a name."""
        return {name.removesuffix(self._end) for name in self._folder.names() if name.endswith(self._end)}


def look_around(
    folder: str, secret: str, imports: tuple[str, ...], variables: tuple[str, ...], ours: str
) -> dict[str, Any]:
    """Return what this process sees.

    Args:
        folder: the folder in which client and node try the storage.
        secret: what only they know; see `Files`.
        imports: the names of modules to import.
        variables: the names of variables whose values are returned.
        ours: the name of the variable that lists those which slurmlaunch itself has set.
    """
    began = time.time()
    storage = _storage(Files(Location(folder), secret))  # first, since the client waits for the answer
    set_here = os.environ.get(ours, "").split(":")
    commands = _slurm() if "SLURM_JOB_ID" in os.environ else {}
    return {
        "began": began,
        "host": platform.node(),
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "packages": packages(),
        "imports": {name: _import(name) for name in imports},
        "variables": {name: os.environ[name] for name in variables if name in os.environ and name not in set_here},
        "cpus": len(os.sched_getaffinity(0)),
        "all_cpus": os.sysconf("SC_NPROCESSORS_ONLN"),  # os.cpu_count() follows PYTHON_CPU_COUNT
        "memory": _memory_limit(),
        "starts": _starts(commands.get("scontrol", _Answer()).text),
        "slurm": {name: answer.complaint for name, answer in commands.items()},
        "storage": storage,
        "ended": time.time(),
    }


def packages() -> dict[str, str]:
    """Return the versions of the installed distributions by name."""
    return {each.metadata["Name"]: each.version for each in metadata.distributions() if each.metadata["Name"]}


def _import(name: str) -> float | str:
    """Import a module; return the seconds that it took, or the error: one may be there, and lack a library."""
    began = time.monotonic()
    try:
        import_module(name)
    except Exception as error:  # noqa: BLE001  (a module may raise anything)
        return f"{type(error).__name__}: {error}"
    return time.monotonic() - began


def _memory_limit() -> int | None:
    """Return the smallest memory limit of the control groups of this process, in bytes."""
    limits = []
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            unified = not controllers
            if unified or "memory" in controllers.split(","):
                base, name = ("", "memory.max") if unified else ("memory", "memory.limit_in_bytes")
                inside = Path(path.lstrip("/"))
                for part in (inside, *inside.parents):
                    with suppress(OSError, ValueError):
                        limits.append(int(Path("/sys/fs/cgroup", base, part, name).read_text(encoding="utf-8")))
    limit = min(limits, default=_NO_LIMIT)
    return limit if limit < _NO_LIMIT else None


def _starts(job: str) -> dict[str, float]:
    """Return when the job, the batch script, the supervisor and this process started, by the node's clock.

    *job* is what scontrol shows of the job.
    """
    starts = {}
    with suppress(TypeError, ValueError):
        start = re.search(r"\bStartTime=(\S+)", job)
        starts["job"] = time.mktime(time.strptime(start[1] if start else "", "%Y-%m-%dT%H:%M:%S"))
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    process = os.getpid()
    for name in ("process", "supervisor", "script"):
        with suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            starts[name] = boot + int(fields[19]) / os.sysconf("SC_CLK_TCK")
            process = int(fields[1])
    return starts


class _Answer(NamedTuple):
    """What a command printed, and its complaint; empty if it works."""

    text: str = ""
    complaint: str = ""


def _slurm() -> dict[str, _Answer]:
    """Return the answers of Slurm's commands on this node."""
    job = os.environ["SLURM_JOB_ID"]
    commands = {
        "scontrol": ("scontrol", "show", "job", job),
        "sbatch": ("sbatch", "--test-only", "--time=1", *_like_this_job(), "--output=/dev/null", "--wrap=true"),
        "scancel": ("scancel", "--version"),
        "srun": ("srun", "--version"),
    }
    return {name: _answer(words) for name, words in commands.items()}


def _like_this_job() -> list[str]:
    """Return the options of a job that is allowed where this one is."""
    given = {option: os.environ.get(f"SLURM_JOB_{option.upper()}") for option in ("account", "partition", "qos")}
    return [f"--{option}={value}" for option, value in given.items() if value]


def _answer(words: tuple[str, ...]) -> _Answer:
    if shutil.which(words[0]) is None:
        return _Answer(complaint="not on PATH")
    try:
        done = subprocess.run(
            words, env=outside_jobs(os.environ), capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return _Answer(complaint=str(error))
    complaint = done.stderr.strip() or f"exit status {done.returncode}"
    return _Answer(done.stdout, complaint if done.returncode else "")


def _storage(files: Files) -> dict[str, str]:
    """Answer the client's file, and do what run folders need; return for each operation what failed."""
    failed = {}
    operations: dict[str, Callable[[], object]] = {
        "create a file": lambda: create(files[STARTED], b""),
        "see a file of the client": lambda: _await(files, PING),
        "answer": lambda: create(files[PONG], str(time.time()).encode()),
        "create a file of a name that the client has taken": lambda: _refuse_taken(files[TAKEN]),
        "append": lambda: _append(files[APPENDED]),
        "make a hard link": lambda: files[LINKED].link_to(files[APPENDED]),
        "rename": lambda: files[STARTED].rename(files[RENAMED]),
    }
    if TAKEN not in files.names():
        return {"see a file of the client": "the folder does not hold it, so it may be another folder"}
    for name, operation in operations.items():
        try:
            operation()
        except (OSError, RunFolderError) as error:
            failed[name] = str(error)
    return failed


def _await(files: Files, name: str) -> None:
    until = time.monotonic() + _WAIT_FOR_CLIENT
    while name not in files.names():
        if time.monotonic() > until:
            raise TimeoutError(f"it is not there after {_WAIT_FOR_CLIENT:g} s")
        time.sleep(_STEP)


def _refuse_taken(file: Location) -> None:
    try:
        create(file, b"")
    except FileExistsError:
        return
    raise OSError("O_EXCL created a file that was there already")


def _append(file: Location) -> None:
    descriptor = file.open(os.O_WRONLY | os.O_APPEND)
    try:
        os.write(descriptor, b"node\n")
    finally:
        os.close(descriptor)
