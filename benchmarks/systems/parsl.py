"""Parsl: an interchange beside the client, and workers in jobs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from systems.base import CPUS, NODES, Trial, outcome

if TYPE_CHECKING:
    from pathlib import Path

    from systems.base import Call


@dataclass(frozen=True)
class Parsl:
    """The high-throughput executor: a job per node, with a worker per CPU, which fetch several items at once."""

    prefetch: int = 64
    name: str = "Parsl"
    requires: tuple[str, ...] = ("parsl",)
    logs: str = ""
    launcher: tuple[str, ...] = ()

    def run(self, call: Call, folder: Path) -> Trial:
        """Start the interchange, submit the jobs, and call the function as an app for each item."""
        from parsl.concurrent import ParslPoolExecutor
        from parsl.config import Config
        from parsl.executors import HighThroughputExecutor
        from parsl.launchers import SimpleLauncher
        from parsl.providers import SlurmProvider

        provider = SlurmProvider(
            cores_per_node=CPUS, init_blocks=NODES, max_blocks=NODES, exclusive=False, launcher=SimpleLauncher()
        )
        workers = HighThroughputExecutor(
            provider=provider,
            address="127.0.0.1",
            max_workers_per_node=CPUS,
            prefetch_capacity=self.prefetch,
            encrypted=False,
        )
        config = Config(
            [workers],
            run_dir=str(folder / "runinfo"),
            strategy="none",
            strategy_period=0.1,  # the first call makes it submit its jobs
            initialize_logging=False,  # it writes several lines per item
            usage_tracking=0,
        )
        with ParslPoolExecutor(config) as executor:
            futures = [executor.submit(call.function, item) for item in call.items]
            return Trial([outcome(future.result) for future in futures])
