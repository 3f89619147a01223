"""A Dask cluster inside one job, for work whose parts depend on each other.

The job is one array with a worker in each item, and the scheduler in the process of the first. All parts end
together: with the ``with`` block, with the job, and some time after a client that was killed.

Security: a Dask scheduler runs any code that it receives, and other users of the cluster reach its port. So all
connections are TLS with a key of the cluster's own, which both sides must show; it is stored in the run folder,
which only its user can read. Dask's pages, which ask for no key, are off by default. The first item writes the
scheduler's address into the run folder, for the others and the client.
A node imports this file, so imports of the client stand in functions.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import math
import os
import time
from typing import TYPE_CHECKING, Any

from slurmlaunch import caps
from slurmlaunch.backends.base import parse_memory
from slurmlaunch.context import cpu_count, current_task
from slurmlaunch.errors import MissingPackage, OptionError, SlurmlaunchError
from slurmlaunch.runfolder.files import read_owned, write_whole
from slurmlaunch.runfolder.layout import Manifest, RunFolder
from slurmlaunch.runfolder.rounds import round_of_task

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

    import distributed

    from slurmlaunch.client.executor import Executor
    from slurmlaunch.client.futures import FutureArray

_ADDRESS = "dask-scheduler"
"""The file in the run folder that holds the scheduler's address."""

# In seconds.
_GRACE = 10.0  # for the parts of a cluster to shut down
_SCHEDULER_WITHIN = 600.0  # a worker waits for the scheduler to start
_ANSWER_WITHIN = 120.0  # a worker tries to reach a scheduler that has started and may have ended
_FIRST_CLIENT_WITHIN = 120.0  # a new cluster waits for its client
_POLL_EVERY = 0.5

_HERE_ONLY = "127.0.0.1:0"
"""The address of Dask's pages, which ask for no key. From other machines it is reached by ``ssh -L``."""

_NO_PAGES: dict[str, list[str]] = {"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []}
"""Dask's configuration of servers that show nothing: they listen in any case."""


@contextlib.contextmanager
def dask_cluster(
    executor: Executor,
    workers: int = 1,
    *,
    interface: str | None = None,
    timeout: float | None = None,
    client_timeout: float = 120.0,
    dashboard: bool = False,
) -> Iterator[distributed.Client]:
    """Run a Dask cluster as one job, and connect to it.

    Each worker is an item: with *cpus_per_task* alone it has all of a task's CPUs, with *processes* or *threads*
    several workers share a task. It has as many threads as CPUs, and its share of the task's memory. Work starts
    with the first worker; ``client.wait_for_workers(n)`` waits for more.

    Args:
        executor: runs the job, on Slurm or on this machine.
        workers: the number of workers.
        interface: the network to use, such as ``"ib0"``; by default Dask chooses.
        timeout: seconds to wait for the cluster to start, including the queue; None waits for ever.
        client_timeout: seconds that the cluster keeps running without a client.
        dashboard: whether to serve Dask's pages, at ``client.dashboard_link``. They ask for no key, and show everybody
            who is logged in on the compute node the names of tasks, call stacks, exceptions and logs.

    Yields:
        The client, which Dask's collections use, too.

    Raises:
        MissingPackage: distributed or cryptography is not installed.
        OptionError: *workers* is below 1, the executor is inline, or its tasks have ranks.
        TimeoutError: the cluster did not start in time.
        SlurmlaunchError: the cluster ended before its scheduler started.
    """
    from slurmlaunch.client.sbatch_options import as_count

    numbers = range(as_count("workers", workers))
    try:
        from distributed import Client, Security
    except ImportError as error:
        raise MissingPackage.of("dask_cluster()", "distributed") from error
    try:
        security = Security.temporary()
    except ImportError as error:  # Dask makes keys with it
        raise MissingPackage.of("dask_cluster()", "cryptography") from error
    if executor.cluster == "inline":
        raise OptionError("cluster='inline' runs nothing beside the call: a Dask cluster needs slurm or local")
    if executor.ranks > 1:
        raise OptionError("ntasks: the workers are tasks of one process each; workers= says how many", option="ntasks")
    shape = executor.shape(single_item=True)
    how = executor.options(processes=shape.processes, threads=shape.threads, requeues=0)
    options = {"security": security, "interface": interface}
    member = functools.partial(dask_member, client_timeout=client_timeout, dashboard=dashboard, **options)
    members = how.map_array(member, numbers, chunksize=shape.processes)
    try:
        address = _await(lambda: _address_or_failure(members), timeout)
        with Client(address, security=security) as client:
            yield client
            there = _shut_down(client)
        # Only members that reached the scheduler are waited for; the others are cancelled.
        concurrent.futures.wait([members[number] for number in there], _GRACE)
    finally:
        members.cancel()


def _address_or_failure(members: FutureArray[None]) -> str | None:
    """Return the scheduler's address, or None before it has started."""
    address = _address_in(members.folder)
    if address is None and members[0].done():
        members[0].result()
        logs = members.folder / "logs"
        raise SlurmlaunchError(f"the Dask cluster ended before its scheduler started; its logs are in {logs}")
    return address


def _address_in(run_folder: Path) -> str | None:
    folder = RunFolder(run_folder).root
    # Opening a missing file would make a network file system cache its absence; listing the folder does not.
    return read_owned(folder / _ADDRESS).decode() if _ADDRESS in folder.names() else None


def _await(poll: Callable[[], str | None], seconds: float | None) -> str:
    """Poll until there is a result or the time is up."""
    until = None if seconds is None else time.monotonic() + seconds
    pause = 0.05
    while (found := poll()) is None:
        if until is not None and time.monotonic() > until:
            raise TimeoutError(f"no Dask scheduler has started within {seconds:g} s")
        time.sleep(pause)
        pause = min(_POLL_EVERY, pause * 1.5)
    return found


def _shut_down(client: distributed.Client) -> Collection[int]:
    """Shut down the scheduler and the workers that are still there; return the numbers of these members."""
    if client.status != "running":
        return ()
    # Bounded, because the client would try for a minute to reach a scheduler that has just ended.
    bounded = functools.partial(client.sync, callback_timeout=_GRACE)
    there: Collection[int] = ()
    with contextlib.suppress(OSError):  # a timeout, too; members that are left are cancelled
        there = {0, *bounded(client._run_on_scheduler, _names_of_workers)}  # noqa: SLF001  (the public one has no timeout)
        bounded(client.shutdown)
    return there


def _names_of_workers(dask_scheduler: distributed.Scheduler) -> list[int]:
    """Return the numbers of the members that have reached the scheduler, in whose process this runs."""
    return [worker.name for worker in dask_scheduler.workers.values()]


# On the node.


def dask_member(number: int, *, client_timeout: float, dashboard: bool = False, **options: Any) -> None:
    """Run a member of the cluster until it shuts down; number 0 is also the scheduler."""
    if not dashboard:
        import dask.config

        dask.config.set(_NO_PAGES)  # a nanny hands the configuration on to its worker
    if number == 0:
        asyncio.run(_serve_scheduler(client_timeout, dashboard=dashboard, **options))
    else:
        address = _await(lambda: _address_in(current_task().run_folder), _SCHEDULER_WITHIN)
        asyncio.run(_serve_worker(address, **options))


async def _serve_scheduler(client_timeout: float, *, dashboard: bool, **options: Any) -> None:
    from distributed import Scheduler

    pages = {"dashboard": dashboard, "dashboard_address": _HERE_ONLY}
    async with Scheduler(**options, **pages, protocol="tls") as scheduler:
        folder = RunFolder(current_task().run_folder)
        Manifest.read_in_task(folder)  # by its path it may be another one by now
        write_whole(folder.root / _ADDRESS, [scheduler.address.encode()])
        worker = asyncio.create_task(_serve_worker(scheduler.address, **options))
        await _await_last_client(scheduler, client_timeout)
        await scheduler.close(reason="the client is gone")
        # A worker that has not reached the scheduler yet would try for long.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(worker, _GRACE)


async def _await_last_client(scheduler: distributed.Scheduler, patience: float) -> None:
    """Wait until the scheduler is closed, or has had no client for so long."""
    from distributed import SchedulerPlugin

    connected = asyncio.Event()

    class Connections(SchedulerPlugin):  # type: ignore[misc]  # no types where it is not installed
        """Notes each client, also one that has left again between two polls."""

        def add_client(self, **_: Any) -> None:
            connected.set()

    scheduler.add_plugin(Connections())
    # The first client may have to wait for a slow file system to show the address.
    until = time.monotonic() + max(patience, _FIRST_CLIENT_WITHIN)
    while scheduler.status.name == "running" and time.monotonic() < until:
        if scheduler.client_comms or connected.is_set():
            until = time.monotonic() + patience
        connected.clear()
        await asyncio.sleep(_POLL_EVERY)


async def _serve_worker(address: str, *, security: distributed.Security, interface: str | None) -> None:
    from distributed import Nanny

    threads = cpu_count()
    # The worker has one thread per CPU, so each thread may use one.
    os.environ.update(caps.variables(1, os.environ))
    async with Nanny(
        address,
        name=current_task().item,
        nthreads=threads,
        memory_limit=_memory() or "auto",
        security=security,
        interface=interface,
        death_timeout=_ANSWER_WITHIN,
        dashboard_address=_HERE_ONLY,
    ) as nanny:
        await nanny.finished()


def _memory() -> int | None:
    """Return a worker's share of the task's memory in bytes; None if no amount is known."""
    task = current_task()
    plan = round_of_task(RunFolder(task.run_folder), task.task).plan
    asked = plan.options.get("slurm", {})
    # The requested amount, or else Slurm's default, in megabytes.
    given = (
        (asked.get("mem"), 1),
        (asked.get("mem_per_cpu"), plan.cpus_per_task),
        (os.environ.get("SLURM_MEM_PER_NODE"), 1),
        (os.environ.get("SLURM_MEM_PER_CPU"), plan.cpus_per_task),
    )
    amounts = [parse_memory(text) * factor for text, factor in given if text]
    # 0 requests all memory of the node, an unknown amount.
    return next((int(amount / plan.processes) for amount in amounts if math.isfinite(amount)), None)
