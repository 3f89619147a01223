"""The items of `behaviours`: small functions that run on a node and return what they saw there.

Nodes import this file, so it imports little. It knows no run; what an item saw is for its behaviour to compare.
"""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from slurmlaunch import caps
from slurmlaunch.context import cpu_count, current_task
from slurmlaunch.runfolder.changes import mount_of
from slurmlaunch.runfolder.files import Location, create

RAISES, DIES = 2, 5
"""The items of `mixed` that raise, and whose process is killed."""

BEGAN, PING, PONG, GROWING = "began", "ping", "pong", "growing"
"""Files by which client and node tell each other how far they are."""

_SAYS_HOW = re.compile(
    r"[a-z_]+|(?:vers|proto|[rw]size|timeo|retrans|ac(?:reg|dir)?(?:min|max|timeo)?|actimeo|sec|local_lock"
    r"|lookupcache|nconnect|cache|max_read|data|errors)=[\w./-]+"
)
_LONG = 3600.0
_STEP = 0.005
_WAIT_FOR_CLIENT = 120.0


def clock(item: int) -> tuple[int, float]:
    """Return the item, and when it ran."""
    return item, time.time()


def call(base: int, *, power: int) -> dict[str, Any]:
    """Return a power of a number, and the CPUs of this process."""
    return {"value": base**power, **_cpus()}


def backwards(data: bytes) -> bytes:
    """Return the bytes in reverse order."""
    return data[::-1]


def mixed(item: int, *, mended: bool = False) -> dict[str, Any]:
    """Return what this process sees; one item raises and another kills its process, unless they are mended."""
    sys.stdout.write(f"out {item}\n")
    sys.stderr.write(f"err {item}\n")
    if item == RAISES and not mended:
        json.loads("no JSON")  # its frames are in the traceback, from which those of slurmlaunch are left out
    if item == DIES and not mended:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)  # so that each process of a task gets some
    return {"item": item, "attempt": current_task().attempt, **_cpus(), **_place()}


def mended(item: int) -> dict[str, Any]:
    """Return what `mixed` returns, for every item."""
    return mixed(item, mended=True)


def system(folder: str) -> dict[str, str]:
    """Return the versions of this machine's system and Python, and the file system of a folder."""
    release = {}
    with suppress(OSError):
        release = platform.freedesktop_os_release()
    kind, options = mount_of(Path(folder))
    shown = harmless(options)
    return {
        "slurmlaunch": version(),
        "Python": platform.python_version(),
        "operating system": release.get("PRETTY_NAME", "unknown"),
        "kernel": platform.release(),
        "file system": f"{kind or 'unknown'} ({shown})",
    }


def version() -> str:
    """Return slurmlaunch's version, also where it is found by a path and not installed."""
    return str(sys.modules["slurmlaunch"].__version__)


def harmless(options: str) -> str:
    """Return those options of a mount that say how it works, and none that names a machine or a user."""
    return ",".join(option for option in options.split(",") if _SAYS_HOW.fullmatch(option))


def _cpus() -> dict[str, Any]:
    ours = os.environ.get(caps.OURS, "").split(":")
    variables = {name: os.environ[name] for name in caps.VARIABLES if name in os.environ}
    return {
        "cpus": cpu_count(),
        "variables": variables,
        "foreign": [name for name in variables if name not in ours],
        "affinity": sorted(os.sched_getaffinity(0)),
    }


def _place() -> dict[str, Any]:
    return {"task": current_task().task, "process": current_task().process, "pid": os.getpid()}


def doze(item: int, seconds: float) -> tuple[float, float]:
    """Return when the item began and when it ended."""
    del item
    began = time.time()
    time.sleep(seconds)
    return began, time.time()


def stay(seconds: float) -> float:
    """Sleep, and return for how long."""
    time.sleep(seconds)
    return seconds


def linger(item: int, folder: str, patient: int) -> tuple[int, int]:
    """Return the item and the attempt; in the first attempt, *patient* says that it is there and stays for an hour."""
    attempt = current_task().attempt
    if item == patient and attempt == 0:
        create(Location(folder) / BEGAN, b"")
        time.sleep(_LONG)
    return item, attempt


def place_among_ranks() -> tuple[int, int]:
    """Return the rank of this process, and how many there are."""
    return current_task().rank, current_task().ranks


def sum_of_ranks() -> tuple[int, int] | str:
    """Return how many processes MPI has put together, and the sum of their ranks plus one; or why it does not load."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        return str(error)
    world = MPI.COMM_WORLD
    return world.Get_size(), world.allreduce(world.Get_rank() + 1)


def answer(folder: str, rounds: int) -> dict[str, Any]:
    """Answer each file of the client by one, then let a file grow; return the moments of all this."""
    place, moments = Location(folder), []
    create(place / GROWING, b"1")
    create(place / BEGAN, b"")
    for number in range(rounds):
        until = time.monotonic() + _WAIT_FOR_CLIENT
        while f"{PING}-{number}" not in place.names():  # a listing: a network file system caches absent names
            if time.monotonic() > until:
                raise TimeoutError(f"no file of the client was seen for {_WAIT_FOR_CLIENT:g} s")
            time.sleep(_STEP)
        seen = time.time()
        create(place / f"{PONG}-{number}", b"")
        moments.append((seen, time.time()))
    descriptor = (place / GROWING).open(os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, b"2")
    os.close(descriptor)
    return {"moments": moments, "grown": time.time(), "system": system(folder), "ended": time.time()}
