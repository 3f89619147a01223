"""executorlib: persistent workers, inside an allocation or as jobs; or a job per item."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from systems.base import Trial, outcome
from workloads.registry import SLOTS

if TYPE_CHECKING:
    from pathlib import Path

    from systems.base import Call


@dataclass(frozen=True)
class InAllocation:
    """`SlurmJobExecutor` with persistent workers, in a client that runs inside an allocation.

    The allocation exists before the clock starts; all other systems have to wait for one.
    """

    name: str = "executorlib, in an allocation"
    requires: tuple[str, ...] = ("executorlib",)
    logs: str = ""
    launcher: tuple[str, ...] = ("salloc", "--quiet", f"--ntasks={SLOTS}")

    def run(self, call: Call, folder: Path) -> Trial:  # noqa: ARG002  (it writes to the current one)
        """Start the workers by srun, and map the function over the items."""
        from executorlib import SlurmJobExecutor

        options = {"hostname_localhost": True, "disable_dependencies": True}  # no cache, which is a file per item
        with SlurmJobExecutor(max_workers=SLOTS, block_allocation=True, **options) as executor:
            return _run(executor, call)


@dataclass(frozen=True)
class BySbatch:
    """`SlurmClusterExecutor`.

    Attributes:
        stay: whether jobs are workers that stay and are handed items; else there is a job per item.
    """

    stay: bool = False
    name: str = "executorlib, by sbatch"
    requires: tuple[str, ...] = ("executorlib", "pysqa", "h5py")
    logs: str = ""
    launcher: tuple[str, ...] = ()

    def run(self, call: Call, folder: Path) -> Trial:  # noqa: ARG002  (it writes to the current one)
        """Submit a job for each worker or item."""
        from executorlib import SlurmClusterExecutor

        options: dict[str, Any] = {"disable_dependencies": True}
        if self.stay:
            options |= {"max_workers": SLOTS, "block_allocation": True, "hostname_localhost": True}
        with SlurmClusterExecutor(**options) as executor:
            return _run(executor, call)


def _run(executor: Any, call: Call) -> Trial:
    futures = [executor.submit(call.function, item) for item in call.items]
    return Trial([outcome(future.result) for future in futures])
