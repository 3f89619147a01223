"""Failures of the storage: which errors they are, and how long a task waits for them to pass."""

from __future__ import annotations

import errno
import os
from array import array
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch.client.attach import newest_of
from slurmlaunch.errors import NodeStartError, StorageFailure
from slurmlaunch.runfolder import storage
from slurmlaunch.runfolder.files import Location
from slurmlaunch.runfolder.layout import Manifest, RunFolder, Status
from slurmlaunch.runfolder.outcomes import OutcomeFile, OutcomeWriter, TaskClosed, close_task
from slurmlaunch.runfolder.records import Damage, Kind
from slurmlaunch.runfolder.storage import Patience

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def refusing(times: int, number: int = errno.ENOSPC) -> Callable[[], int]:
    """Return a function that fails so many times, and then returns how often it was called."""
    calls: list[None] = []

    def work() -> int:
        calls.append(None)
        if len(calls) <= times:
            raise OSError(number, os.strerror(number))
        return len(calls)

    return work


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the clock: it holds the seconds, and sleeping advances it."""
    now = [0.0]
    sleep = lambda seconds: now.__setitem__(0, now[0] + seconds)  # noqa: E731
    monkeypatch.setattr(storage, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    return now


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.ESTALE])
def test_a_short_failure_is_waited_for(clock: list[float], number: int) -> None:
    """Work that succeeds within seconds has succeeded."""
    assert Patience().run(refusing(5, number)) == 6
    assert 0 < clock[0] < 2


def test_a_long_failure_is_waited_for_once(clock: list[float]) -> None:
    """After a wait in vain nothing is waited for, until the storage works again."""
    patience = Patience()
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            patience.run(refusing(10**6))
        assert storage.PATIENCE <= clock[0] < storage.PATIENCE + 1
    patience.run(refusing(0))
    assert patience.run(refusing(3)) == 4


def test_a_task_that_ends_is_in_a_hurry(clock: list[float]) -> None:
    """A task that is being ended waits a second."""
    patience = Patience()
    patience.hurried = True
    with pytest.raises(OSError, match="No space"):
        patience.run(refusing(10**6))
    assert 1 <= clock[0] < 2


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOENT, errno.EFBIG])
def test_other_failures_pass_at_once(clock: list[float], number: int) -> None:
    """Nothing is waited for that does not pass by itself."""
    with pytest.raises(OSError, match="Errno"):
        Patience().run(refusing(1, number))
    assert clock == [0]


def test_statuses() -> None:
    """Common reasons have an exit status of their own, also behind another error; others are no failures of storage."""
    full = OSError(errno.ENOSPC, "No space left on device")
    behind = NodeStartError("the function cannot be read")
    behind.__cause__ = full
    assert [
        storage.status_of(each) for each in (full, behind, OSError(errno.ESTALE, ""), OSError(errno.EMFILE, ""))
    ] == [
        Status.DISK_FULL,
        Status.DISK_FULL,
        Status.STORAGE,
        None,
    ]
    assert [storage.errno_of(status) for status in (Status.DISK_FULL, Status.STORAGE)] == [errno.ENOSPC, None]


def test_the_reason_comes_first() -> None:
    """The error names the reason, then the file."""
    named = storage.named(OSError(errno.EROFS, "Read-only file system", "/runs/1"))
    assert isinstance(named, StorageFailure)
    assert (named.errno, str(named).splitlines()[0]) == (
        errno.EROFS,
        "Read-only file system: /runs/1 could not be written or read",
    )
    assert isinstance(storage.named(KeyError(1)), KeyError)


def test_a_record_is_whole_after_a_failure_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a failed write left is cut off, also if the storage refuses that at first."""
    folder = RunFolder(tmp_path)
    folder.outcomes.mkdir()
    writer, write, truncate = OutcomeWriter(folder, 0), os.writev, os.ftruncate
    failures = [1, 2, 3]

    def fail_half_way(descriptor: int, parts: list[Any]) -> int:
        if failures:
            write(descriptor, parts[:1])
            raise OSError(errno.EIO, "Input/output error")
        return write(descriptor, parts)

    def refuse(descriptor: int, length: int) -> None:
        if failures and failures.pop():
            raise OSError(errno.EIO, "Input/output error")
        truncate(descriptor, length)

    monkeypatch.setattr(os, "writev", fail_half_way)
    monkeypatch.setattr(os, "ftruncate", refuse)
    for item in range(3):
        writer.packed(Kind.SERIES, item, array("I", [2]), b"N.")
    writer.close()

    found = list(OutcomeFile(folder.outcome_file(0, 0), 0).read(final=True))
    assert not any(isinstance(each, Damage) for each in found)
    assert [each.header.first for each in found if not isinstance(each, Damage)] == [0, 1, 2]


def test_a_closed_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task whose end the storage cannot show for a moment does not begin again: a later round runs its items."""
    folder = RunFolder(tmp_path)
    folder.outcomes.mkdir()
    assert close_task(folder, 0, 0)
    status, failures = Location.status, [OSError(errno.EIO, os.strerror(errno.EIO))]

    def fail_once(location: Location) -> os.stat_result:
        if location.name == "0.0" and failures:
            raise failures.pop()
        return status(location)

    monkeypatch.setattr(Location, "status", fail_once)

    with pytest.raises(TaskClosed):
        OutcomeWriter(folder, 0)
    assert not failures


def test_no_run_is_overlooked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose manifest the storage cannot show is no missing run, which a call would submit again."""
    run = tmp_path / "20260131-101500-sweep-1f2e3d4c"
    run.mkdir(mode=0o700)
    assert newest_of("sweep", tmp_path) is None

    def fail(_: Location) -> Manifest:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(Manifest, "of", fail)

    with pytest.raises(OSError, match="Stale"):
        newest_of("sweep", tmp_path)
