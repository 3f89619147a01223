"""What a process that runs user code may use: its threads, its share of the CPUs and GPUs, the seconds of its end.

Three means cap the threads, since no single one reaches every library: environment variables, which a library reads
when it is loaded; `threadpoolctl`, for libraries that are loaded already; and the CPU affinity mask, for everything
else. Used by the node, the task pool and the backends; knows nothing of tasks.
"""

from __future__ import annotations

import os
import signal
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "GOTO_NUM_THREADS",
    "MKL_NUM_THREADS",
    "MKL_DOMAIN_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMEXPR_MAX_THREADS",
    "NUMBA_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "POLARS_MAX_THREADS",
    "TBB_NUM_THREADS",
    "JULIA_NUM_THREADS",
    "ARROW_NUM_THREADS",
    "LOKY_MAX_CPU_COUNT",
    "PYTHON_CPU_COUNT",
    "PYTEST_XDIST_AUTO_NUM_WORKERS",
)
"""The variables from which libraries take the size of their thread pools."""

OURS = "SLURMLAUNCH_SET"
"""The variable that lists, separated by colons, the variables that slurmlaunch has set.

Without it a submission from inside a task would take them for the user's own.
"""

PYTHON_CPU_COUNT = "PYTHON_CPU_COUNT"
"""The one of these that Python reads as it starts: too early for the node to set it."""

SHARE = "SLURMLAUNCH_CPU_COUNT"
"""The variable with the number of CPUs of a process, for `cpu_count` in it and in its children."""

GPU_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
    "ZE_AFFINITY_MASK",
)
"""The variables that restrict a process to some GPUs: NVIDIA's, AMD's three, Intel's. Slurm sets
all of them, for any GPUs; if the site constrains devices, it numbers them from 0."""

_AMD = Path("/dev/kfd")
# These select among the devices of ROCR_VISIBLE_DEVICES, which AMD's runtime numbers from 0.
_WITHIN_ROCR = ("HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")


def without_ours(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without the variables that slurmlaunch set for a task."""
    ours = {*environ.get(OURS, "").split(":"), OURS, SHARE}
    return {name: value for name, value in environ.items() if name not in ours}


def variables(threads: int, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that cap a process at so many threads, except those that the user has set."""
    theirs = without_ours(environ)
    chosen = {name: str(threads) for name in VARIABLES if name not in theirs}
    return {**chosen, SHARE: str(threads), OURS: ":".join(chosen)}


def set_ours(variables: Mapping[str, str]) -> None:
    """Set variables of this process and its children that a submission from here must not inherit."""
    ours = filter(None, (os.environ.get(OURS), *variables))
    os.environ.update({**variables, OURS: ":".join(ours)})


def apply(threads: int) -> None:
    """Cap this process and its children at so many threads."""
    os.environ.update(variables(threads, os.environ))
    if "numpy" in sys.modules or "torch" in sys.modules:
        # They are loaded, so the variables come too late. Else importing threadpoolctl
        # would cost every process of every task more than it gains.
        import threadpoolctl

        threadpoolctl.threadpool_limits(threads)


def share_of_gpus(
    environ: Mapping[str, str], process: int, processes: int, *, amd: bool | None = None
) -> dict[str, str]:
    """Return the variables that restrict a process of a task to its share of the GPUs; a few GPUs are shared.

    *amd* says whether the node's GPUs are AMD's; it is detected by default.
    """
    if processes == 1:
        return {}
    shares = {}
    for name in GPU_VARIABLES:
        devices = [device for device in environ.get(name, "").split(",") if device]
        if devices:
            shares[name] = devices[process::processes] or [devices[process % len(devices)]]
    if "ROCR_VISIBLE_DEVICES" in shares:
        # HIP reads CUDA's variable as well; for CUDA itself the numbers are the node's.
        is_amd = _AMD.exists() if amd is None else amd
        for name in (*_WITHIN_ROCR, *(["CUDA_VISIBLE_DEVICES"] if is_amd else [])):
            if name in shares:
                shares[name] = [str(i) for i in range(len(shares["ROCR_VISIBLE_DEVICES"]))]
    return {name: ",".join(own) for name, own in shares.items()}


def usable_cpus() -> int:
    """Return how many CPUs this process may run on (not how many the machine has)."""
    return len(os.sched_getaffinity(0))


def masks(
    mask: Collection[int],
    granted: int,
    processes: int,
    siblings: Callable[[int], frozenset[int]] | None = None,
) -> list[frozenset[int]] | None:
    """Divide a task's CPUs among its processes, whole cores together.

    Args:
        mask: the CPUs that the task may run on.
        granted: the number of CPUs that the scheduler granted.
        processes: the number of processes.
        siblings: returns the CPUs (hardware threads) of a CPU's core; read from the machine by default.

    Returns:
        Disjoint sets of CPUs, one per process; or None if the mask is not the task's own:
        its size must be the granted CPUs or, for a scheduler that counts cores, that
        times the hardware threads of a core.
    """
    siblings = siblings or _siblings
    cores = sorted({siblings(cpu) & frozenset(mask) for cpu in mask}, key=min)
    threads_per_core = max((len(core) for core in cores), default=1)
    if len(mask) not in (granted, granted * threads_per_core) or processes > len(mask):
        return None
    ordered = [cpu for core in cores for cpu in sorted(core)]
    # With enough cores, none is divided: two processes on one core would slow
    # each other down while another core idles.
    units = cores if processes <= len(cores) else [frozenset({cpu}) for cpu in ordered]
    cuts = [i * len(units) // processes for i in range(processes + 1)]
    return [frozenset().union(*units[a:b]) for a, b in pairwise(cuts)]


def _siblings(cpu: int) -> frozenset[int]:
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return frozenset(_cpu_list(path.read_text(encoding="ascii")))
    except OSError:  # no such file in some containers: then each CPU is a core
        return frozenset({cpu})


def _cpu_list(text: str) -> list[int]:
    """Read the kernel's list format: ``0-3,8``."""
    cpus: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        cpus.extend(range(int(first), int(last or first) + 1))
    return cpus


END_SECONDS = 10
"""How long a process may take to end as Python does: threads are joined, and functions of `atexit` are called."""


def limit_end() -> None:
    """Have the kernel end this process by SIGALRM if it does not end by itself."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    signal.alarm(END_SECONDS)
