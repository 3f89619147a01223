"""A Dask cluster inside one job: it works, refuses strangers, and leaves nothing behind."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import dask.base
import pytest

import slurmlaunch.integrations.dask
from slurmlaunch import Executor, OptionError, attach, dask_cluster
from tests.conftest import elsewhere, several_cpus
from tests.support import scripts
from tests.support.waiting import is_alive, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    import distributed

    from tests.conftest import ExecutorFactory

pytestmark = pytest.mark.slow


def pages_of(client: distributed.Client) -> set[int]:
    """Return the answers of the scheduler's and the worker's servers to requests for pages that show something."""
    client.wait_for_workers(1)
    ports = [client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.http_server.port)]
    ports += client.run(lambda dask_worker: dask_worker.http_server.port).values()
    names = ("status", "info/main/workers.html", "json/counts.json", "metrics", "health", "individual-task-stream")
    found = set()
    for port in ports:
        for name in names:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            with contextlib.closing(connection):
                connection.request("GET", f"/{name}")
                found.add(connection.getresponse().status)
    return found


locally = pytest.mark.parametrize("backend", ["local"], indirect=True)
on_slurm = pytest.mark.parametrize("backend", [pytest.param("slurm", marks=pytest.mark.slurm)], indirect=True)


def processes_of(client: distributed.Client) -> set[int]:
    """Return all processes of a cluster: workers, the nannies above them, and in one of these the scheduler."""
    scheduler = client.run_on_scheduler(os.getpid)
    nannies = client.run(os.getpid, nanny=True).values()
    assert scheduler in nannies
    return {*nannies, *client.run(os.getpid).values()}


@pytest.mark.anywhere
@elsewhere
class TestCluster:
    """A cluster, and its end."""

    @several_cpus
    def test_work_that_depends_on_work(self, make_executor: ExecutorFactory) -> None:
        """Number and size of workers are as requested, results feed calls, and all processes end with the cluster."""
        executor = make_executor(mem="1G")

        with dask_cluster(executor, workers=2) as client:
            client.wait_for_workers(2)
            workers = client.scheduler_info()["workers"].values()
            assert {0, 1} == {worker["name"] for worker in workers}
            assert [(1, 2**30)] * 2 == [(worker["nthreads"], worker["memory_limit"]) for worker in workers]
            processes = processes_of(client)
            total = client.submit(sum, client.map(lambda number: number**2, range(10)))
            assert total.result() == sum(number**2 for number in range(10))

        (folder,) = executor.folder.iterdir()
        run = attach(folder)
        assert (2, 1) == (len(run), len(run.job_ids))
        assert run.results(60) == [None, None]
        wait_until(lambda: not any(map(is_alive, processes)))

    def test_an_error_passes_through(self, make_executor: ExecutorFactory) -> None:
        """An exception of the body is raised, and the cluster ends at once."""
        executor = make_executor()

        def work(processes: list[int]) -> None:
            with dask_cluster(executor) as client:
                client.wait_for_workers(1)
                processes += processes_of(client)
                raise KeyError("of the body")

        processes: list[int] = []
        with pytest.raises(KeyError, match="of the body"):
            work(processes)

        assert processes
        wait_until(lambda: not any(map(is_alive, processes)))
        (folder,) = executor.folder.iterdir()
        assert attach(folder).done()

    def test_a_failed_start_is_reported(self, make_executor: ExecutorFactory) -> None:
        """An error before the cluster has started is raised as itself."""
        with (
            pytest.raises(ValueError, match="no-such-network"),
            dask_cluster(make_executor(), interface="no-such-network"),
        ):
            pass


@on_slurm
class TestOnSlurm:
    """Events that only a scheduler causes."""

    def test_threads_and_processes(self, make_executor: ExecutorFactory) -> None:
        """With processes, several workers share a task; each has its threads and its part of the memory."""
        executor = make_executor(cpus_per_task=4, processes=2, mem_per_cpu="256M")

        def ask() -> tuple[int, str, int]:
            return os.getppid(), os.environ["OMP_NUM_THREADS"], slurmlaunch.cpu_count()

        with dask_cluster(executor, workers=3) as client:
            client.wait_for_workers(3)
            workers = client.scheduler_info()["workers"].values()
            assert [(2, 2**29)] * 3 == [(worker["nthreads"], worker["memory_limit"]) for worker in workers]
            assert {("1", 1)} == {found[1:] for found in client.run(ask).values()}

        (folder,) = executor.folder.iterdir()
        assert {0, 1} == {int(future.job_id.partition("_")[2]) for future in attach(folder) if future.job_id}

    def test_all_cpus_by_default(self, make_executor: ExecutorFactory) -> None:
        """By default a worker has all of its task's CPUs, and the memory that Slurm grants."""
        with dask_cluster(make_executor(cpus_per_task=3)) as client:
            client.wait_for_workers(1)
            (worker,) = client.scheduler_info()["workers"].values()
            granted = client.run(lambda: os.environ.get("SLURM_MEM_PER_NODE")).popitem()[1]

        assert worker["nthreads"] == 3
        assert granted is None or worker["memory_limit"] == int(granted) * 2**20

    def test_a_killed_client_is_not_waited_for(self, make_executor: ExecutorFactory, tmp_path: Path) -> None:
        """Where the client is killed, the cluster notices, and the job ends by itself."""
        folder = make_executor().folder
        text = f"""
import os, signal, slurmlaunch
if __name__ == "__main__":
    executor = slurmlaunch.Executor({str(folder)!r}, cluster="slurm")
    with slurmlaunch.dask_cluster(executor, client_timeout=1) as client:
        client.wait_for_workers(1)
        print(*client.run(os.getpid).values(), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""
        status, printed, err = scripts.finish(scripts.start(tmp_path, text))
        assert status == -9, err

        (run_folder,) = folder.iterdir()
        assert attach(run_folder).results(90) == [None]
        wait_until(lambda: not is_alive(int(printed)))

    @pytest.mark.parametrize("worker", ["comes", "never comes"])
    def test_a_client_that_disconnects_at_once(
        self, make_executor: ExecutorFactory, tmp_path: Path, worker: str
    ) -> None:
        """A client that connects for a moment counts: the cluster ends afterwards, even if workers are missing."""
        folder = make_executor().folder
        (tmp_path / "slow.py").write_text("import time\ntime.sleep(600)\n", encoding="utf-8")
        preload = {} if worker == "comes" else {"DASK_DISTRIBUTED__WORKER__PRELOAD": str(tmp_path / "slow.py")}
        text = f"""
import os, signal, slurmlaunch
if __name__ == "__main__":
    executor = slurmlaunch.Executor({str(folder)!r}, cluster="slurm", env={preload!r})
    with slurmlaunch.dask_cluster(executor, client_timeout=1):
        os.kill(os.getpid(), signal.SIGKILL)
"""
        assert scripts.finish(scripts.start(tmp_path, text))[0] == -9

        (run_folder,) = folder.iterdir()
        assert attach(run_folder).results(90) == [None]

    def test_all_ends_with_the_job(self, make_executor: ExecutorFactory) -> None:
        """Where the job is cancelled, no process of the cluster is left, and the client is free to go."""
        executor = make_executor()

        with dask_cluster(executor, workers=2) as client:
            client.wait_for_workers(2)
            processes = processes_of(client)
            (folder,) = executor.folder.iterdir()
            subprocess.run(["scancel", *attach(folder).job_ids], check=True)
            wait_until(lambda: not any(map(is_alive, processes)))

        assert attach(folder).wait(90)

    def test_late_workers_are_not_waited_for(
        self, make_executor: ExecutorFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """At the end the cluster does not wait for a running worker that has not found the scheduler yet."""
        here, slow = tmp_path / "here", tmp_path / "slow.py"  # loaded before Dask connects
        text = f"import pathlib, time\npathlib.Path({str(here)!r}).touch()\ntime.sleep(600)\n"
        slow.write_text(text, encoding="utf-8")
        preload = f"export DASK_DISTRIBUTED__NANNY__PRELOAD={slow}"
        executor = make_executor(setup=[f'[ "$SLURM_ARRAY_TASK_ID" = 0 ] || {preload}'])
        monkeypatch.setattr(slurmlaunch.integrations.dask, "_GRACE", 200.0)

        with dask_cluster(executor, workers=2) as client:
            wait_until(here.exists)
            assert client.submit(pow, 2, 3).result() == 8

        (folder,) = executor.folder.iterdir()
        assert [False, True] == [future.cancelled() for future in attach(folder)]

    def test_a_cluster_that_stays_in_the_queue_is_cancelled(self, make_executor: ExecutorFactory) -> None:
        """Where the cluster has not started in time, it is cancelled."""
        executor = make_executor(hold=True)

        with pytest.raises(concurrent.futures.TimeoutError, match="within 0"), dask_cluster(executor, timeout=0.5):
            pass

        (folder,) = executor.folder.iterdir()
        assert attach(folder).counts()["cancelled"] == 1


@locally
def test_clients_without_the_key_are_refused(make_executor: ExecutorFactory) -> None:
    """A client without the cluster's key is refused, one with another key too; the key is its user's alone."""
    executor = make_executor()
    # In processes of their own, as those of others would be: a client that is refused leaves its process in disorder.
    script = """
import os, sys
from distributed import Client, Security
try:
    Client(sys.argv[1], security={}, timeout=3)
except (OSError, TypeError):
    os._exit(3)
os._exit(0)
"""
    with dask_cluster(executor) as client:
        address = client.scheduler_info()["address"]
        for security in ("None", "Security.temporary()"):
            command = [sys.executable, "-c", script.format(security), address]
            assert subprocess.run(command, check=False, capture_output=True).returncode == 3
        assert client.submit(abs, -1).result() == 1
        assert pages_of(client) == {404}

    for path in executor.folder.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


@locally
def test_pages_on_request(make_executor: ExecutorFactory) -> None:
    """Dask's pages are served if one asks for them."""
    with dask_cluster(make_executor(), dashboard=True) as client:
        assert 200 in pages_of(client)


def test_a_cluster_has_workers(tmp_path: Path) -> None:
    """A cluster of no workers is refused."""
    with pytest.raises(OptionError, match="workers"), dask_cluster(Executor(tmp_path, cluster="local"), workers=0):
        pass


def test_inline_is_refused(tmp_path: Path) -> None:
    """In the calling thread no cluster can run beside it."""
    with pytest.raises(OptionError, match="inline"), dask_cluster(Executor(tmp_path, cluster="inline")):
        pass


@pytest.mark.parametrize("package", ["distributed", "cryptography"])
def test_without_its_packages(package: str, tmp_path: Path) -> None:
    """Without the packages, slurmlaunch can be imported, and the error of a cluster names them."""
    program = f"""
import sys
sys.modules[{package!r}] = None
import slurmlaunch
try:
    with slurmlaunch.dask_cluster(slurmlaunch.Executor({str(tmp_path)!r}, cluster="local")):
        pass
except slurmlaunch.MissingPackage as error:
    print(error)
"""
    printed: Any = subprocess.check_output([sys.executable, "-c", program], text=True)

    assert printed == f"dask_cluster() needs {package}: install it with {sys.executable} -m pip install {package}\n"
    assert not list(tmp_path.iterdir())


def test_calls_in_flight(tmp_path: Path) -> None:
    """Where Dask computes on an executor, as many calls are in flight as tasks run, not as this machine has CPUs."""
    executor = Executor(tmp_path, cluster="slurm")
    throttled = executor.options(throttle=7)

    get_scheduler: Any = dask.base.get_scheduler  # Dask has no types
    assert [100, 7] == [get_scheduler(scheduler=each).args[1] for each in (executor, throttled)]
