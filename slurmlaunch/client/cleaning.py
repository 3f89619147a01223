"""Removing runs: `slurmlaunch.clean`, and `FutureArray.remove`.

A run is removed only if nothing may still write to it or read it: the scheduler lists none of its jobs, and no other
running client has made it, resumed it or attached to it. The removal first takes the place of the next round
(`slurmlaunch.runfolder.rounds.claim_removal`), and looks at all this once more. The manifest goes last, so that what
is left of a removal that was interrupted is recognized.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from slurmlaunch.backends.base import parse_time
from slurmlaunch.client.attach import inspect, manifests_in
from slurmlaunch.client.default_folder import folder_of_runs
from slurmlaunch.client.ledger import ItemStatus
from slurmlaunch.client.runs import may_be_submitted
from slurmlaunch.client.sbatch_options import as_time, refused
from slurmlaunch.client.watcher import current_client
from slurmlaunch.client.wording import readable
from slurmlaunch.errors import RunFolderError, SchedulerError
from slurmlaunch.messages import say
from slurmlaunch.runfolder.clients import ClientId
from slurmlaunch.runfolder.layout import MANIFEST, Manifest, RunFolder
from slurmlaunch.runfolder.rounds import check_kept, claim_removal, give_up_removal, remover_of
from slurmlaunch.runfolder.runs_folder import others_may_exchange

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from slurmlaunch.backends.base import Backend
    from slurmlaunch.client.run import Run
    from slurmlaunch.runfolder.files import Location

__all__ = ["Cleaned", "clean"]


@dataclass(frozen=True)
class Cleaned:
    """What `slurmlaunch.clean` did; ``str()`` is a line for people.

    Attributes:
        removed: the run folders that were removed, or would be.
        freed: how many bytes they took on disk.
        kept: why each of the others was kept, by run folder.
        dry_run: whether nothing was removed.
    """

    removed: tuple[Path, ...] = ()
    freed: int = 0
    kept: dict[Path, str] = field(default_factory=dict)
    dry_run: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return it as a dict, ready for JSON."""
        kept = {str(path): why for path, why in self.kept.items()}
        return {"removed": list(map(str, self.removed)), "freed": self.freed, "kept": kept, "dry_run": self.dry_run}

    def __str__(self) -> str:
        number = f"{len(self.removed)} run{'s' * (len(self.removed) != 1)}"
        done = f"would remove {number}, {readable(self.freed)}" if self.dry_run else f"removed {number}"
        parts = [done if self.dry_run else f"{done}, {readable(self.freed)} freed"]
        parts += [f"kept {count}: {why}" for why, count in Counter(self.kept.values()).most_common()]
        return "; ".join(parts)


def clean(
    folder: str | os.PathLike[str] | None = None,
    *,
    older_than: timedelta | str | float,
    keep_failed: bool = True,
    dry_run: bool = False,
) -> Cleaned:
    """Remove runs that nobody needs any more, and print what was freed.

    A run is kept if the scheduler lists one of its jobs or does not answer, or if a process that lives has made it,
    retried it or attached to it.

    Args:
        folder: holds the run folders; by default as for `slurmlaunch.Executor`.
        older_than: how long ago a run was last written to, at least: a `timedelta`, seconds, or text such as ``"30d"``.
        keep_failed: keep runs with items that failed, were cancelled or have not ended, which `retry` would run again.
        dry_run: remove nothing; return and print what would be removed.

    Raises:
        OptionError: *older_than* is no time.
    """
    cleaned = remove_old(folder, seconds_of(older_than), keep_failed=keep_failed, dry_run=dry_run)
    say(str(cleaned))
    return cleaned


def remove_old(
    folder: str | os.PathLike[str] | None, seconds: float, *, keep_failed: bool = True, dry_run: bool = False
) -> Cleaned:
    """Remove runs as `clean` does, but print nothing."""
    before = time.time() - seconds
    jobs, old, rests = _Jobs(), [], []
    removed: dict[Path, int] = {}
    kept: dict[Path, str] = {}
    given = folder_of_runs(folder)
    exposed = [str(each) for each in {given, given.resolve()} if others_may_exchange(each / MANIFEST)]
    for path, manifest in sorted(manifests_in(given)):
        found = RunFolder(path)  # one, so that what was seen is what is removed
        size, written = found.root.usage()
        with _keeping(path, kept):
            if any(each != manifest.made_in for each in exposed):  # others would choose what is removed
                raise _Kept("others may have put it here: it was made in another folder")
            if _is_rest(found):
                rests.append((found, size))
            elif written > before:
                raise _Kept("written to since")
            else:
                old.append((path, size, inspect(found)))
    jobs.ask(run for *_, run in old)
    for path, size, run in old:
        with _keeping(path, kept):
            if keep_failed and run.ledger.count(ItemStatus.VALUE) < run.manifest.items:
                raise _Kept("items have no result; keep_failed=False removes it")
            _check_unused(run, jobs)
            if not dry_run:
                _remove(run, jobs)
            removed[path] = size
    for rest, size in rests:
        with _keeping(rest.path, kept):
            if not dry_run:
                _remove_files(rest)
            removed[rest.path] = size
    return Cleaned(tuple(removed), sum(removed.values()), kept, dry_run)


@contextlib.contextmanager
def _keeping(path: Path, kept: dict[Path, str]) -> Iterator[None]:
    """Record why a run is kept, if the block raises."""
    try:
        yield
    except (_Kept, SchedulerError, OSError, RunFolderError) as error:
        kept[path] = _why(error)


def remove(run: Run) -> Cleaned:
    """Remove a run, for `FutureArray.remove`, which says what this raises."""
    path = run.folder.path
    size, _ = run.folder.root.usage()
    try:
        _remove_ours(run.folder)
    except (_Kept, SchedulerError) as error:
        raise RunFolderError(f"{path} is not removed: {_why(error)}", path=str(path)) from error
    say(f"removed {path}, {readable(size)} freed")
    return Cleaned((path,), size)


def discard(run: Run) -> None:
    """Remove a run of this process that no scheduler accepted, unless another process has resumed it."""
    with contextlib.suppress(_Kept, SchedulerError, OSError, RunFolderError):
        _remove_ours(run.folder)


def _remove_ours(folder: RunFolder) -> None:
    now, jobs = inspect(folder), _Jobs()
    _check_unused(now, jobs, ours=True)
    _remove(now, jobs, ours=True)


def await_removal(path: Path) -> bool:
    """Wait while another process removes a run, and remove the rest if that has ended; return whether it is gone.

    Raises:
        RunFolderError: it takes too long.
    """
    until = time.monotonic() + _LONGEST_REMOVAL
    while path.exists():
        folder = RunFolder(path)  # one, so that what was seen is what is removed
        with contextlib.suppress(_Kept, FileNotFoundError), unless_removed(path):
            if not _is_rest(folder):
                return False
            _remove_files(folder)
            return True
        if time.monotonic() > until:
            check_kept(RunFolder(path))
        time.sleep(_TICK)
    return True


@contextlib.contextmanager
def unless_removed(path: Path) -> Iterator[None]:
    """Leave the block without an error if another process removes the run meanwhile, or began to."""
    try:
        yield
    except (RunFolderError, OSError) as error:
        if not getattr(error, "is_removed", False) and (path / MANIFEST).exists():
            raise


_LONGEST_REMOVAL, _TICK = 60.0, 0.05
"""Seconds that a removal by another process may take, and between two checks."""


class _Kept(Exception):
    """A run is kept; the text says why."""


def _why(error: Exception) -> str:
    return f"its jobs cannot be asked about: {error}" if isinstance(error, SchedulerError) else str(error)


def seconds_of(older_than: timedelta | str | float) -> float:
    """Return the seconds of a time as `clean` takes it."""
    if isinstance(older_than, timedelta):
        return older_than.total_seconds()
    if isinstance(older_than, str):
        seconds = parse_time(as_time("older_than", older_than))
        return seconds if math.isfinite(seconds) else 0.0  # to sbatch, whose form it is, no time at all is no limit
    if isinstance(older_than, bool) or not isinstance(older_than, (int, float)) or not older_than >= 0:
        raise refused("older_than", f"must be a timedelta, seconds, or text such as '30d', not {older_than!r}")
    return older_than


def _is_rest(folder: RunFolder) -> bool:
    """Whether a removal was interrupted, whose client has ended.

    Raises:
        _Kept: the client that removes it may live.
        RunFolderError: the folder is no run.
        OSError: the storage does not say.
    """
    Manifest.of(folder.root)
    try:
        changed_at = folder.rounds.status().st_mtime
    except FileNotFoundError:
        return True
    remover = remover_of(folder)
    if remover is not None and not remover.may_be_replaced(changed_at):
        raise _Kept("another process removes it")
    return remover is not None


class _Jobs:
    """Whether jobs may still run: each scheduler is asked once for the jobs of many runs."""

    def __init__(self) -> None:
        self._listed: dict[tuple[Backend, str], bool] = {}
        self._errors: dict[Backend, SchedulerError] = {}

    def ask(self, some: Iterable[Run]) -> None:
        """Ask about the jobs of some runs that are not known yet.

        Items of a local run that have settled end its job; Slurm may list a job after its last result.
        """
        wanted: dict[Backend, set[str]] = {}
        for run in some:
            if run.backend.name == "slurm" or run.ledger.open:
                unknown = {job for job in run.job_ids if (run.backend, job) not in self._listed}
                wanted.setdefault(run.backend, set()).update(unknown)
        for backend, jobs in wanted.items():
            if jobs and backend not in self._errors:
                try:
                    listed = backend.listed(jobs)
                except SchedulerError as error:
                    self._errors[backend] = error
                else:
                    self._listed.update({(backend, job): job in listed for job in jobs})

    def check(self, run: Run) -> None:
        """Raise `_Kept` if a job of a run may still run, and `SchedulerError` if the scheduler does not say."""
        self.ask([run])
        if run.backend in self._errors and any((run.backend, job) not in self._listed for job in run.job_ids):
            raise self._errors[run.backend]
        if any(self._listed.get((run.backend, job)) for job in run.job_ids):
            raise _Kept(f"{run.backend.name} lists a job of it")


def _check_unused(run: Run, jobs: _Jobs, *, ours: bool = False) -> None:
    """Check that no job and no other client uses a run; *ours* says that this process may.

    Raises:
        _Kept: one does.
        SchedulerError: the scheduler does not say.
    """
    path = run.folder.path
    if not run.rounds:
        raise _Kept("it is damaged")
    for client, wrote in _clients_of(run):
        if client != ClientId.current() and not client.may_be_replaced(wrote):
            raise _Kept(f"process {client.pid} on {client.machine} uses it")
    if not ours and any(each.folder.path == path and each.is_held for each in list(current_client().runs)):
        raise _Kept("this process uses it")
    if may_be_submitted(run):
        raise _Kept("a part of it is about to be submitted")
    jobs.check(run)


def _clients_of(run: Run) -> Iterator[tuple[ClientId, float]]:
    """Yield the clients that made its rounds, took them over or attached, and when each wrote last."""
    for round_ in run.rounds:
        wrote = run.folder.round(round_.number).status().st_mtime
        for client in (round_.plan.client, *round_.successors()):
            if client is not None:
                yield client, wrote
    names: list[str] = []
    with contextlib.suppress(FileNotFoundError):
        names = run.folder.clients.names()
    for name in names:
        if (client := ClientId.parse(name)) is not None:
            yield client, (run.folder.clients / name).status().st_mtime


def _remove(run: Run, jobs: _Jobs, *, ours: bool = False) -> None:
    """Remove a run that was checked; check it again once no round can be added."""
    folder, number = run.folder, len(run.rounds)
    try:
        claim_removal(folder, number, ClientId.current())
    except FileExistsError:
        raise _Kept("another process goes on with it, or removes it") from None
    try:
        _check_unused(inspect(folder), jobs, ours=ours)
    except BaseException:
        give_up_removal(folder, number)
        raise
    _remove_files(folder)


def _remove_files(folder: RunFolder) -> None:
    for name in folder.root.names():
        if name not in {folder.rounds.name, folder.manifest.name}:
            _remove_entry(folder.root / name)
    folder.rounds.remove()
    folder.manifest.unlink()
    folder.root.remove()
    current_client().announced.discard(folder.path)
    if folder.path.exists():
        raise OSError(f"{folder.path} could not be removed completely")


def _remove_entry(entry: Location) -> None:
    entry.remove() if entry.is_dir() else entry.unlink(missing_ok=True)
