"""Disks that are full, read-only or missing, on either side."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from slurmlaunch import Executor, ResultLost, RunFolderError, StorageFailure, attach
from tests.support.waiting import Gate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.cluster import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_quick_answers")]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")
not_root = pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Return a function that mounts a file system of so many KiB; it is unmounted after the test."""
    mounted: list[Path] = []

    def mount(kibibytes: int) -> Path:
        folder = tmp_path / f"small{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", folder], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.decode()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)


@needs_root
@pytest.mark.parametrize("backend", ["local", pytest.param("slurm", marks=pytest.mark.slurm)])
def test_full_in_the_middle_of_a_result(
    backend: str, small: Callable[[int], Path], request: pytest.FixtureRequest
) -> None:
    """Whole records stay; a result that did not fit is an error with the reason; a retry with free space succeeds."""
    if backend == "slurm":
        request.getfixturevalue("cluster")
    folder = small(1024)

    def large(number: int) -> bytes:
        return os.urandom(1) * (200_000 if number < 3 else 900_000)

    executor = Executor(folder, cluster=backend, code="live")  # the modules of all tests would not fit either
    array = executor.map_array(large, range(5), tasks=1)
    found = array.results(timeout=60, return_exceptions=True)

    assert [200_000] * 3 == [len(each) for each in found[:3] if isinstance(each, bytes)]
    for each in found[3:]:
        assert isinstance(each, StorageFailure), each
        assert "No space left on device" in f"{each}", each
    again = attach(array.folder).results(timeout=60, return_exceptions=True)
    assert found[:3] == again[:3]
    subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
    assert [200_000] * 3 + [900_000] * 2 == [len(each) for each in array.retry().results(timeout=60)]


@needs_root
def test_full_on_the_client(small: Callable[[int], Path]) -> None:
    """A run that cannot be written is refused with the reason and the path, and leaves no files."""
    folder = small(512)

    with pytest.raises(OSError, match="No space left on device") as caught:
        Executor(folder, cluster="local", code="live").map_array(len, [os.urandom(1_000_000)])

    assert str(folder) in str(caught.value)
    assert [] == list(folder.iterdir())
    assert [1] == Executor(folder, cluster="local", code="live").map_array(len, ["a"]).results(timeout=60)


@needs_root
def test_a_read_only_folder(small: Callable[[int], Path]) -> None:
    """If the folder is read-only the error says so, and outcomes written before can still be read."""
    folder = small(4096)
    executor = Executor(folder, cluster="local")
    array = executor.map_array(lambda x: 1 // x, [1, 0], chunksize=1)
    array.wait()
    time.sleep(1)  # until the node has closed its files
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)

    with pytest.raises(RunFolderError, match="Read-only file system") as caught:
        executor.submit(int)
    assert str(folder) in str(caught.value)
    again = attach(array.folder)
    assert [1, ZeroDivisionError] == [again[0].result(timeout=5), type(again[1].exception(timeout=5))]
    with pytest.raises(OSError, match="Read-only file system"):
        again.retry()


@not_root
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    """If the run folder's parent is not writable, the error names it."""
    (tmp_path / "runs").mkdir(mode=0o500)

    with pytest.raises(PermissionError, match="runs"):
        Executor(tmp_path / "runs", cluster="local").submit(int)


def test_a_file_size_limit(tmp_path: Path) -> None:
    """A quota keeps a run from being written, and the error says so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    executor = Executor(tmp_path / "runs", cluster="local")
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            executor.map_array(len, [os.urandom(100_000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert [] == list((tmp_path / "runs").iterdir())


@pytest.mark.slurm
def test_a_run_folder_that_is_removed(cluster: Cluster, tmp_path: Path) -> None:
    """If the run folder is removed, its waiting client gets an error, and other runs continue."""
    gate = Gate(tmp_path / "gate")
    executor = Executor(tmp_path / "runs", cluster="slurm")
    removed, other = executor.map_array(gate.enter, "ab"), executor.map_array(gate.enter, "cd")
    gate.await_arrival(*"abcd")
    shutil.rmtree(removed.folder)

    found = removed.results(timeout=30, return_exceptions=True)
    assert [ResultLost, ResultLost] == [type(each) for each in found]
    assert all(str(removed.folder) in str(each) for each in found)
    gate.open()
    assert ["c", "d"] == other.results(timeout=60)
