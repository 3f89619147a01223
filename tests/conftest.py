"""Fixtures that several test modules share: a cluster for the whole session, and one test suite for every backend."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from hypothesis import settings

from slurmlaunch.caps import usable_cpus
from tests.support import clusters, scripts
from tests.support.cluster import Cluster, ClusterSpec, ProgramsMissing, clean_environment, slurm_version
from tests.support.waiting import Gate, Story

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from slurmlaunch import Executor, FutureArray

# A shell ignores these in tests that it starts in the background, and their child processes would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

# The developer's own defaults are not the tests'.
os.environ.pop("SLURMLAUNCH_CONFIG", None)
os.environ["XDG_CONFIG_HOME"] = "/nonexistent"

# No clock decides a test. Differences between Pythons show in few examples.
settings.register_profile("slurmlaunch", deadline=None)
settings.register_profile("quick", deadline=None, max_examples=20)
settings.load_profile("slurmlaunch")

SLURM = pytest.param("slurm", marks=pytest.mark.slurm)

elsewhere = pytest.mark.parametrize("backend", ["local", SLURM], indirect=True)
"""For tests whose items run beside the test: not inline."""

several_cpus = pytest.mark.skipif(usable_cpus() < 2, reason="needs two CPUs")
"""For tests whose tasks run side by side, also on the local backend."""


@pytest.hookimpl(tryfirst=True)  # instead of pytest's own
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Start pytest once more where the chosen kind of cluster is, if that is elsewhere."""
    if clusters.is_inside():
        return None
    kind = clusters.chosen()
    if kind.missing():
        raise pytest.UsageError(" ".join(kind.missing()))
    return subprocess.run(kind.command("pytest", *config.invocation_params.args), check=False).returncode


def pytest_report_header() -> str:
    """Name the cluster's kind and its versions, which `tests.support.clusters` reads."""
    python = ".".join(map(str, sys.version_info[:3]))
    return f"cluster: {clusters.chosen().name} ({slurm_version()}, Python {python})"


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that need no second run on Slurm as long, and spread the slow tests over the processes, first.

    pytest-xdist gives each process one part of the list, and idle processes take from the end of another's part. In the
    order of the files one process would have most of the slow tests, and end minutes after the others.
    """
    for item in items:
        if item.get_closest_marker("anywhere") and item.get_closest_marker("slurm"):
            item.add_marker(pytest.mark.long)
        for name, reason in clusters.chosen().skipped.items():
            if item.nodeid.endswith(name):
                item.add_marker(pytest.mark.skip(reason=reason))
    parts = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    slow = [item for item in items if item.get_closest_marker("slow")]
    quick = [item for item in items if not item.get_closest_marker("slow")]
    items[:] = [
        item
        for part in range(parts)
        for item in (*slow[part::parts], *quick[len(quick) * part // parts : len(quick) * (part + 1) // parts])
    ]


class ExecutorFactory(Protocol):
    """Makes executors of the backend under test; takes any options of `slurmlaunch.Executor`."""

    def __call__(self, **options: Any) -> Executor:
        """Make one more."""


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Start a throwaway Slurm when the first test asks for it, and make the whole session its client.

    Where Slurm is not installed, its tests are skipped; with SLURMLAUNCH_REQUIRE_SLURM=1 they fail.
    """
    with started_cluster(ClusterSpec()) as started, _client_of(started):
        yield started


@pytest.fixture
def start_cluster() -> Iterator[Callable[[ClusterSpec], Cluster]]:
    """Return a function that starts further clusters, which are stopped after the test.

    A test that needs other settings, or that breaks its Slurm, has its own. Its clients need ``cluster.env``.
    """
    with contextlib.ExitStack() as clusters:
        yield lambda spec: clusters.enter_context(started_cluster(spec))


@pytest.fixture(params=["inline", "local", SLURM])
def backend(request: pytest.FixtureRequest) -> str:
    """Run the test once on every backend. Only the one on Slurm starts a cluster."""
    name: str = request.param
    if name == "slurm":
        request.getfixturevalue("cluster")
    return name


@pytest.fixture
def make_executor(backend: str, tmp_path: Path) -> Iterator[ExecutorFactory]:
    """Return a function that makes executors with options of the test's choice; all share one folder."""
    from slurmlaunch import Executor

    with contextlib.ExitStack() as executors:

        def make(**options: Any) -> Executor:
            executor = Executor(tmp_path / "runs", cluster=backend, **options)
            # Cancelled, because nobody waits for the pending items of a failed test.
            executors.callback(executor.shutdown, cancel_futures=True)
            return executor

        yield make


@pytest.fixture
def executor(make_executor: ExecutorFactory) -> Executor:
    """Return an executor of the backend under test, which is shut down after the test."""
    return make_executor()


@pytest.fixture
def gate(make_executor: ExecutorFactory, tmp_path: Path) -> Iterator[Gate]:
    """Return a gate for items to wait at. It opens when the test is over, before its executors are shut down."""
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Return a function that makes a module from a text: ``beside/lies_beside.py``, in the test's own folder.

    This process searches that folder, and forgets folder and module when the test is over: the next test in it makes
    another one of that name.
    """
    (tmp_path / "beside").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "beside")

    def make(text: str) -> Any:
        (tmp_path / "beside" / "lies_beside.py").write_text(text, encoding="utf-8")
        importlib.invalidate_caches()
        sys.modules.pop("lies_beside", None)
        return importlib.import_module("lies_beside")

    yield make
    sys.modules.pop("lies_beside", None)


@pytest.fixture(autouse=True)
def end_scripts() -> Iterator[None]:
    """End all scripts after the test."""
    yield
    scripts.end_all()


@pytest.fixture
def story(tmp_path: Path) -> Story:
    """Return a file that items append lines to."""
    return Story(tmp_path / "story")


@pytest.fixture(scope="session")
def finished_runs() -> dict[str, FutureArray[int]]:
    """Keep the run of `finished` for each backend."""
    return {}


@pytest.fixture
def finished(
    backend: str, finished_runs: dict[str, FutureArray[int]], tmp_path_factory: pytest.TempPathFactory
) -> FutureArray[int]:
    """Return a finished run, one for all tests that only read: six items in three tasks, of which 2 and 4 fail.

    The others return their square. Task 0 has values only, tasks 1 and 2 a failure each.
    """
    from slurmlaunch import Executor

    def square(number: int) -> int:  # here, so that it travels by value, and no node imports pytest
        sys.stdout.write(f"out {number}\n")
        sys.stderr.write(f"err {number}\n")
        if number in {2, 4}:
            raise ValueError(number)
        return number * number

    if backend not in finished_runs:
        with Executor(tmp_path_factory.mktemp(backend), cluster=backend) as executor:
            finished_runs[backend] = executor.map_array(square, range(6), tasks=3)
    return finished_runs[backend]


@contextlib.contextmanager
def started_cluster(spec: ClusterSpec) -> Iterator[Cluster]:
    """Start a cluster for a block; skip the test where Slurm is not installed, unless it must be."""
    try:
        with Cluster(clusters.chosen().adapt(spec)) as cluster:
            yield cluster
    except ProgramsMissing as missing:
        if os.environ.get("SLURMLAUNCH_REQUIRE_SLURM") == "1":
            raise
        pytest.skip(str(missing))


@contextlib.contextmanager
def _client_of(cluster: Cluster) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ.keys() - clean_environment().keys():
            patch.delenv(name)
        for name, value in cluster.env.items():
            patch.setenv(name, value)
        yield
