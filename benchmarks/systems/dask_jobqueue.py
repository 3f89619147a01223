"""dask-jobqueue: a scheduler in the client, and workers in jobs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from systems.base import CPUS, NODES, Trial

if TYPE_CHECKING:
    from pathlib import Path

    from systems.base import Call


@dataclass(frozen=True)
class DaskJobqueue:
    """A job per node, with a process per CPU; without the dashboard, which takes time."""

    name: str = "dask-jobqueue"
    requires: tuple[str, ...] = ("dask_jobqueue", "distributed")
    logs: str = ""
    launcher: tuple[str, ...] = ()

    def run(self, call: Call, folder: Path) -> Trial:
        """Start the scheduler, submit the jobs, map the function over the items, and gather."""
        from dask_jobqueue import SLURMCluster
        from distributed import Client

        with (
            SLURMCluster(
                cores=CPUS,
                processes=CPUS,
                memory="4GB",
                n_workers=NODES * CPUS,
                interface="lo",
                local_directory=str(folder),
                log_directory=str(folder),
                scheduler_options={"dashboard": False, "dashboard_address": None},
                worker_extra_args=["--no-dashboard"],
            ) as cluster,
            Client(cluster) as client,
        ):
            futures = client.map(call.function, list(call.items), pure=False)
            return Trial(client.gather(futures, errors="raise"))
