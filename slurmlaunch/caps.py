"""Thread caps: how many threads a process may use, and which CPUs and GPUs are its own.

Three means, since no single one reaches every library: environment variables,
which a library reads when it is loaded; `threadpoolctl`, for what is loaded
already; and the CPU affinity mask, which also holds for what reads neither.
"""

from __future__ import annotations

import os
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
)
"""What libraries read, each at its own moment, to size their thread pools."""

OURS = "SLURMLAUNCH_SET"
"""The variable that names, separated by colons, those that we set ourselves.

Without it a value of ours would look like the user's own to a submission from
inside a task.
"""

SHARE = "SLURMLAUNCH_CPU_COUNT"
"""The variable that tells a process, and what it starts, how many CPUs are its own."""

GPU_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
    "ZE_AFFINITY_MASK",
)
"""What shows a process its GPUs: NVIDIA's, AMD's three, Intel's. Slurm sets all that it knows,
whatever the node has; where a site holds jobs to their devices, it numbers them from 0."""

_AMD = Path("/dev/kfd")
# AMD's runtime shows the devices of ROCR_VISIBLE_DEVICES, numbered from 0, to what reads these.
_WITHIN_ROCR = ("HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")


def without_ours(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment less the variables that we set for a task."""
    ours = {*environ.get(OURS, "").split(":"), OURS, SHARE}
    return {name: value for name, value in environ.items() if name not in ours}


def variables(threads: int, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that cap a process at so many threads.

    Those that the user has set are left out.
    """
    theirs = without_ours(environ)
    chosen = {name: str(threads) for name in VARIABLES if name not in theirs}
    return {**chosen, SHARE: str(threads), OURS: ":".join(chosen)}


def set_ours(variables: Mapping[str, str]) -> None:
    """Set variables of this process, and of what it starts, that no submission from here is to inherit."""
    ours = filter(None, (os.environ.get(OURS), *variables))
    os.environ.update({**variables, OURS: ":".join(ours)})


def apply(threads: int) -> None:
    """Cap this process, and what it starts, at so many threads."""
    os.environ.update(variables(threads, os.environ))
    if "numpy" in sys.modules or "torch" in sys.modules:
        # Loaded already, so the variables come too late. Else threadpoolctl is
        # not worth its import, which every process of every task would pay.
        import threadpoolctl

        threadpoolctl.threadpool_limits(threads)


def share_of_gpus(
    environ: Mapping[str, str], process: int, processes: int, *, amd: bool | None = None
) -> dict[str, str]:
    """Return the variables that show a process its own part of the task's GPUs.

    With fewer GPUs than processes, several share one.

    Args:
        environ: the environment of the task.
        process: the number of the process.
        processes: how many there are.
        amd: whether the node's GPUs are AMD's; looked up by default.
    """
    if processes == 1:
        return {}
    shares = {}
    for name in GPU_VARIABLES:
        devices = [device for device in environ.get(name, "").split(",") if device]
        if devices:
            shares[name] = devices[process::processes] or [devices[process % len(devices)]]
    if "ROCR_VISIBLE_DEVICES" in shares:
        # HIP reads CUDA's variable as well; to CUDA itself the numbers are the node's.
        is_amd = _AMD.exists() if amd is None else amd
        for name in (*_WITHIN_ROCR, *(["CUDA_VISIBLE_DEVICES"] if is_amd else [])):
            if name in shares:
                shares[name] = [str(i) for i in range(len(shares["ROCR_VISIBLE_DEVICES"]))]
    return {name: ",".join(own) for name, own in shares.items()}


def usable_cpus() -> int:
    """Return how many CPUs this process may run on (not how many the machine has)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def masks(
    mask: Collection[int],
    granted: int,
    processes: int,
    siblings: Callable[[int], frozenset[int]] | None = None,
) -> list[frozenset[int]] | None:
    """Share out a task's CPUs, whole cores together.

    Args:
        mask: the CPUs that the task may run on.
        granted: how many CPUs the scheduler granted.
        processes: how many shares to make.
        siblings: the CPUs (hardware threads) of a CPU's core; read from the
            machine by default.

    Returns:
        One set of CPUs per process, none in two; or None where the mask is not
        the task's own: it must hold what was granted, or, where the scheduler
        counts cores, that times the hardware threads of a core.
    """
    siblings = siblings or _siblings
    cores = sorted({siblings(cpu) & frozenset(mask) for cpu in mask}, key=min)
    threads_per_core = max((len(core) for core in cores), default=1)
    if len(mask) not in (granted, granted * threads_per_core) or processes > len(mask):
        return None
    ordered = [cpu for core in cores for cpu in sorted(core)]
    # Shares are cut between cores where there are enough of them: two processes
    # on one core would slow each other down while another core idles.
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
