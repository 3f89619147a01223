"""The files of release 0.1.0, kept in ``tests/data/0.1.0``: run folders of every kind, and batch scripts.

0.1.0 itself made them, with a copy of this file as its script, a clean environment, and folders that no machine needs::

    cd /tmp/runs && env -i PATH=/tmp/env/bin:/usr/bin:/bin LANG=C.UTF-8 python release.py /tmp/runs/data local

and the same with SLURM_CONF and ``slurm``, on a host called ``vm``.

Later releases must read the folders and submit the same scripts. Do not make them again: a difference is a fault.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slurmlaunch import Container, Executor, SlurmlaunchError, attach, current_task

if TYPE_CHECKING:
    from collections.abc import Callable

    from slurmlaunch import Future, FutureArray

DATA = Path(__file__).parents[1] / "data" / "0.1.0"

# Batch scripts: the options of an executor, and those of a call.
SCRIPTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "array": ({"partition": "small", "account": "project", "time": "00:10:00", "cpus_per_task": 8}, {"throttle": 10}),
    "sliced": ({"time": "1-00:00:00", "processes": 4, "threads": 2}, {"tasks": 3, "name": "three slices"}),
    "dynamic": ({"time": "30", "cpus_per_task": 2}, {"schedule": "dynamic", "tasks": 2, "chunksize": 1}),
    "guided": ({"requeues": 0, "time": "30"}, {"schedule": "guided", "tasks": 2}),
    "plain": ({}, {}),
    "memory": ({"mem": "4G", "retries": 2, "grow": {"mem": 2.0}, "max_mem": "16G", "constraint": "a&b"}, {}),
    "gpus": ({"gpus_per_task": 1, "gres": "gpu:1", "exclusive": True, "sbatch": ["--reservation=us"]}, {}),
    "modules": ({"modules": ["gcc/13", "openmpi"], "setup": ["ulimit -c 0", "source 'my env'/activate"]}, {}),
    "variables": ({"env": {"MODE": "a 'b' $c", "EMPTY": ""}, "mail_type": ["END", "FAIL"], "comment": 'for "us"'}, {}),
    "ranks": ({"nodes": 2, "ntasks": 4, "cpus_per_task": 2, "mem_per_cpu": "1G", "time": "10"}, {}),
    "launcher": ({"ntasks": 4, "launcher": "mpiexec", "modules": ["openmpi"]}, {}),
    "container": ({"container": "docker://python:3.11", "time": "5"}, {}),
    "apptainer": (
        {"container": Container("/images/a.sif", runtime="apptainer", binds=["/data:/mnt"], flags=["--nv"])},
        {"throttle": 1},
    ),
    "charliecloud": (
        {"container": Container("/images/python", runtime="charliecloud"), "gpus_per_task": 1},
        {},
    ),
}


def script(case: str) -> str:
    """Return the batch script of a case, from the folder ``/``, whatever the time, the umask and the search path."""
    options, call = SCRIPTS[case]
    call = {"schedule": "static", **call}  # as it was by default
    folder = Path("/runs")
    before, found = os.getcwd(), sys.path[:]  # noqa: PTH109 - and back with os.chdir
    umask = os.umask(0o022)
    try:
        os.chdir("/")
        sys.path[:] = ["/code"]
        text = Executor(folder, cluster="slurm", python=["python3"], **options).script(len, ["a", "bb", "ccc"], **call)
    finally:
        sys.path[:] = found
        os.chdir(before)
        os.umask(umask)
    stamp = next(line for line in text.splitlines() if line.startswith("#SBATCH --output=")).split("/")[2][:15]
    return text.replace(f"/runs/{stamp}-", "/runs/STAMP-")


# Run folders.


class BrokenItem(Exception):
    """A class of the user's script, which travels by value."""

    def __init__(self, item: int, word: str) -> None:
        super().__init__(item, word)
        self.item = item


def answer(item: int) -> Any:
    """Return or do something else for each item."""
    values = {0: None, 1: "tëxt", 2: b"\x00\xff", 3: {"nested": [1, (2.5, True)]}}
    if item == 4:
        raise ValueError("four", item)
    if item == 5:
        raise BrokenItem(item, "broken")
    if item == 6:
        return threading.Lock()
    if item == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return values[item]


def together(first: int, *, second: str) -> tuple[int, str]:
    """Return the arguments of a single call."""
    return first, second


def reciprocal_unless(mended: str, item: int) -> float:
    """Fail for even items until a file is there, for 0 always."""
    if item % 2 == 0 and not os.path.exists(mended):  # noqa: PTH110
        raise LookupError(item)
    return 1 / item


def die_once(mark: str, item: int) -> int:
    """End the process of item 1 the first time."""
    if item == 1 and not os.path.exists(mark):  # noqa: PTH110
        open(mark, "w").close()  # noqa: PTH123
        os.kill(os.getpid(), signal.SIGKILL)
    return item * 10


def square(item: int) -> int:
    """Fail for 7."""
    if item == 7:
        raise ArithmeticError(item)
    return item * item


def rank_of(item: int) -> tuple[int, int, int]:
    """Return the item and which rank of how many this is."""
    task = current_task()
    return item, task.rank, task.ranks


def wait_above(gate: str, item: int) -> int:
    """Return items 0 and 1 at once, the others when a file is there."""
    while item > 1 and not os.path.exists(gate):  # noqa: PTH110
        time.sleep(0.05)
    return item


def total(numbers: Any, item: int) -> float:
    """Add an item to the sum of an array that all share."""
    return float(numbers.sum()) + item


def values(make: Callable[..., Executor], folder: Path) -> FutureArray[Any]:
    """Return values and failures of many kinds."""
    return make().map_array(answer, range(8), tasks=3)


def single(make: Callable[..., Executor], folder: Path) -> FutureArray[Any]:
    """Make one call with a keyword argument."""
    return make().submit(together, 1, second="b").run


def retried(make: Callable[..., Executor], folder: Path) -> FutureArray[Any]:
    """Retry the items that failed in the first round; one item still fails."""
    mended = folder / "mended"
    first = make().map_array(functools.partial(reciprocal_unless, str(mended)), range(6), tasks=2)
    first.wait()
    mended.touch()
    return first.retry()


def retried_by_itself(make: Callable[..., Executor], folder: Path) -> FutureArray[Any]:
    """Have the client itself retry an item whose process died."""
    return make(retries=1).map_array(functools.partial(die_once, str(folder / "died")), range(4), tasks=2)


def dynamic(make: Callable[..., Executor], folder: Path) -> FutureArray[Any]:
    """Let two tasks claim blocks."""
    return make(processes=2, threads=1).map_array(square, range(13), schedule="dynamic", tasks=2, chunksize=2)


def guided(make: Callable[..., Executor], folder: Path) -> FutureArray[Any]:
    """Let two tasks claim blocks that become smaller."""
    return make().map_array(square, range(40), schedule="guided", tasks=2)


def packed(make: Callable[..., Executor], folder: Path) -> FutureArray[Any]:
    """Make slices of about the same cost."""
    return make().map_array(square, [9, 1, 1, 4, 6, 2, 8], tasks=3, cost=abs)


def ranks(make: Callable[..., Executor], folder: Path) -> FutureArray[Any]:
    """Let two processes call the function together."""
    return make(ntasks=2).map_array(rank_of, range(3), tasks=2)


def shared(make: Callable[..., Executor], folder: Path) -> FutureArray[Any]:
    """Refer to a large array, which has a file of its own."""
    import numpy as np

    return make().map_array(functools.partial(total, np.zeros(1 << 17)), range(3))


def cancelled(make: Callable[..., Executor], folder: Path) -> FutureArray[Any]:
    """Cancel four items, running or not, when two have returned."""
    run = make().map_array(functools.partial(wait_above, str(folder / "never")), range(6), tasks=6)
    run[:2].wait()
    run.cancel()
    return run


def cancelled_in_part(make: Callable[..., Executor], folder: Path) -> FutureArray[Any]:
    """Cancel one item of a task; its neighbours return."""
    gate = folder / "open"
    run = make().map_array(functools.partial(wait_above, str(gate)), range(4), tasks=2)
    run[:2].wait()
    run[3].cancel()
    gate.touch()
    return run


def requeued(make: Callable[..., Executor], folder: Path) -> FutureArray[Any]:
    """Have Slurm start a task a second time, which resumes behind the finished items."""
    gate = folder / "requeued"
    run = make().map_array(functools.partial(wait_above, str(gate)), range(4), tasks=1)
    run[:2].wait()
    subprocess.run(["scontrol", "requeue", run.job_ids[0]], check=True)
    gate.touch()
    return run


def cancelled_by_another(make: Callable[..., Executor], folder: Path) -> FutureArray[Any]:
    """End tasks by scancel."""
    run = make().map_array(functools.partial(wait_above, str(folder / "never")), range(4), tasks=2)
    run[:2].wait()
    subprocess.run(["scancel", run.job_ids[0]], check=True)
    return run


RUNS = (
    values,
    single,
    retried,
    retried_by_itself,
    dynamic,
    guided,
    packed,
    ranks,
    shared,
    cancelled,
    cancelled_in_part,
)
ON_SLURM = (*RUNS, requeued, cancelled_by_another)


def outcome(future: Future[Any]) -> list[Any]:
    """Describe a future's outcome in words that no release may change: a value, or the class and data of an error."""
    if future.cancelled():
        return ["cancelled"]
    error = future.exception()
    if error is None:
        return ["value", repr(future.result())]
    if isinstance(error, SlurmlaunchError):
        fields = {name: getattr(error, name, None) for name in ("signal", "exit_code", "state", "type_name")}
        return ["ended", type(error).__name__, {name: value for name, value in fields.items() if value is not None}]
    shown = str(error.__cause__)
    return [
        "raised",
        type(error).__name__,
        repr(error.args),
        [name for name in ("answer", "square") if f"in {name}\n" in shown],
    ]


def summary(run: FutureArray[Any]) -> dict[str, Any]:
    """Return a client's view of a run."""
    return {
        "items": [outcome(future) for future in run],
        "counts": run.counts(),
        "job_ids": list(run.job_ids),
        "attempts": [len(future.attempts) for future in run],
    }


def record(data: Path, cluster: str) -> None:
    """Make every run on a cluster, and keep its folder and this release's view of it."""
    found = {}
    for kind in ON_SLURM if cluster == "slurm" else RUNS:
        folder = Path(f"/tmp/runs/{cluster}/{kind.__name__}")  # noqa: S108 - no machine needs it
        folder.mkdir(parents=True)
        with Executor(folder, cluster=cluster) as executor:
            run = kind(lambda executor=executor, **options: executor.options(**options), folder)
            run.wait()
        path, name = run.folder, f"{cluster}-{kind.__name__}"
        del run
        found[name] = summary(attach(path))
        with tarfile.open(data / f"{name}.tar.xz", "w:xz") as archive:
            archive.add(path, path.name, filter=_anonymous)
        sys.stdout.write(f"{name}: {found[name]}\n")
        sys.stdout.flush()
    (data / f"{cluster}.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    destination = Path(sys.argv[1])
    destination.mkdir(parents=True, exist_ok=True)
    os.chdir("/")  # which is there on every machine
    for each in SCRIPTS:
        (destination / f"{each.replace(' ', '-')}.sh").write_text(script(each), encoding="utf-8")
    record(destination, sys.argv[2])
