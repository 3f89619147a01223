"""Finding a run again, from any process.

Used by `slurmlaunch.attach`, by futures that are unpickled, and by `rerun`. It submits nothing of its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from slurmlaunch.backends.container import own_folders
from slurmlaunch.client.default_folder import folder_of_runs
from slurmlaunch.client.events import ReadEnds, ReadTasks, SchedulerReported
from slurmlaunch.client.options import TOKEN_LENGTH, job_name
from slurmlaunch.client.run import Run
from slurmlaunch.client.watcher import Watch, current_client
from slurmlaunch.client.wording import time_of
from slurmlaunch.errors import RunFolderError
from slurmlaunch.runfolder.changes import is_on_network
from slurmlaunch.runfolder.clients import ClientId
from slurmlaunch.runfolder.files import Location
from slurmlaunch.runfolder.layout import MANIFEST, Manifest, RunFolder
from slurmlaunch.runfolder.rounds import check_kept, read_rounds

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from slurmlaunch.client.events import Effect


def find_run(run_folder: str | os.PathLike[str], rounds: int | None = None) -> Run:
    """Return a view of a run, watched if items are open.

    Args:
        run_folder: the run folder.
        rounds: how many of its rounds to cover; by default all.

    Raises:
        RunFolderError, UnsafeRunFolder, UnknownProtocol: as `slurmlaunch.attach` does.
    """
    client, path = current_client(), resolved(run_folder)
    known = client.views.get((path, rounds or 0))
    if rounds is not None and known is not None:
        return known
    watch = open_view(path, rounds)
    announce(watch.run.folder)
    if rounds is not None:
        client.views[path, rounds] = watch.run
    client.watcher.keep_watching(watch)
    if watch.run.ledger.open:
        watch.submission.take_over()
    return watch.run


def open_view(where: Path | RunFolder, rounds: int | None = None) -> Watch:
    """Return a new view of a run, with everything that its folder shows now.

    Of a run that this process knows give its folder: by its path it may be another one by now.
    """
    run = _view(where, rounds)
    current_client().runs.add(run)
    watch = Watch(run)
    watch.submission.read_refusals()
    watch.first_poll()
    return watch


def inspect(where: Path | RunFolder, *, ask: bool = False) -> Run:
    """Return a view of a run as its folder shows it now, which nobody watches; nothing is written or submitted.

    With *ask* it has the scheduler's states of tasks, too, if items are open. See `open_view`.
    """
    run = _view(where)
    latency, run.state.latency = run.state.latency, 0.0  # what is not visible yet is not there now
    inspection = _Inspection(run)
    inspection.submission.read_refusals()
    for _ in range(2):  # the second one ends the items of tasks that the first one found to have ended
        inspection.first_poll()
    if ask and run.ledger.open and run.job_ids:
        # But an item of a job that ended a moment ago has not failed because a network file system is slow.
        run.state.latency = latency if is_on_network(run.folder.path) else 0.0
        snapshot = run.backend.query(dict.fromkeys(run.job_ids, run.manifest.created))
        if snapshot is not None:
            inspection.handle(SchedulerReported(snapshot))
            inspection.first_poll()
    return run


def search_as_submitted(run: Run) -> None:
    """Have this process look for modules also where the submission did: results and arguments may need them."""
    own = own_folders(run.manifest.sys_path)
    sys.path += [each for each in own if each not in sys.path and os.path.isdir(each)]  # noqa: PTH112  (never raises)


class _Inspection(Watch):
    """Executes only the effects that read."""

    def _execute(self, effect: Effect) -> None:
        if isinstance(effect, (ReadTasks, ReadEnds)):
            super()._execute(effect)


def _view(where: Path | RunFolder, rounds: int | None = None) -> Run:
    folder = where.unread() if isinstance(where, RunFolder) else RunFolder(where)
    manifest = Manifest.read(folder)
    folder.check_folders()
    backend = current_client().backend(manifest.backend, manifest.clusters)
    return Run(folder, manifest, backend, list(read_rounds(folder))[:rounds])


def announce(folder: RunFolder) -> None:
    """Record that this process uses a run, so that no other one removes it; see `slurmlaunch.client.cleaning`.

    Raises:
        RunFolderError: a process removes it.
    """
    announced = current_client().announced
    if folder.path not in announced:
        with contextlib.suppress(OSError, RunFolderError):  # a folder that may only be read is not removed, either
            folder.announce(str(ClientId.current()))
            announced.add(folder.path)
        check_kept(folder)


def resolved(run_folder: str | os.PathLike[str]) -> Path:
    """Return the path of a run folder without symbolic links; `RunFolderError` if the text cannot be one."""
    try:
        return Path(run_folder).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links that form a ring, a NUL character
        raise RunFolderError(f"no run folder at {run_folder!r}: {error}", path=str(run_folder)) from error


# By other things than the path.


def locate(run: str | os.PathLike[str] | None, folder: str | os.PathLike[str] | None = None) -> Path:
    """Return the run folder that a path, a name, its beginning or a job id means; None is the newest run.

    Names, beginnings and job ids are those of runs in a folder, by default that of an executor.

    Raises:
        RunFolderError: there is none, or several; the message lists the nearest.
    """
    path = None if run is None else resolved(run)
    if path is not None and os.path.lexists(path / MANIFEST):
        return path
    if path is not None and (not isinstance(run, str) or os.sep in run or path.is_dir()):
        if not path.is_dir():
            raise RunFolderError(f"no run folder at {path}{_near(path.parent, path.name)}", path=str(path))
        raise RunFolderError(f"{path} is no run folder: it has no {MANIFEST}{_near(path)}", path=str(path))
    parent = folder_of_runs(folder)
    found = _newest_first(parent)
    if run is None:
        if found:
            return found[0][0]
        raise RunFolderError(f"there are no runs in {parent}", path=str(parent))
    return _named(str(run), found) or _of_job(str(run), found) or _beginning(str(run), parent, found)


_Found = list[tuple[Path, Manifest]]


def _newest_first(parent: Path) -> _Found:
    return sorted(manifests_in(parent), key=lambda each: each[1].created, reverse=True)


def _named(name: str, found: _Found) -> Path | None:
    folders = (path for path, _ in found if path.name == name)
    return next(folders, None) or next((path for path, manifest in found if manifest.name == name), None)


def _of_job(job_id: str, found: _Found) -> Path | None:
    """Return the newest run with a job, or with the job of an element such as ``123_4``.

    Raises:
        RunFolderError: jobs of several clusters have that id.
    """
    on: dict[str, Path] = {}
    for path, manifest in found if any(map(str.isdigit, job_id)) else ():
        if (manifest.clusters or "") not in on:  # of one cluster the newest counts
            folder = RunFolder(path)
            with contextlib.suppress(OSError, RunFolderError):
                ids = {each for round_ in read_rounds(folder) for each in round_.journal().job_ids.values()}
                for cluster in _clusters_with(job_id, ids, manifest):
                    on.setdefault(cluster, path)
    if len(set(on.values())) > 1:
        listed = "".join(f"\n    {path}{f' on {cluster}' if cluster else ''}" for cluster, path in on.items())
        first = str(next(iter(on.values())))
        raise RunFolderError(f"several clusters have a job {job_id}; give the run folder:{listed}", path=first)
    return next(iter(on.values()), None)


def _clusters_with(job_id: str, ids: Collection[str], manifest: Manifest) -> set[str]:
    """Return the clusters on which a job of a run has that id, which may name its cluster, as in ``123_4;other``."""
    if manifest.backend != "slurm":
        return {""} if not {job_id, job_id.partition("_")[0]}.isdisjoint(ids) else set()
    number, _, wanted = job_id.partition(";")
    jobs = [each.partition(";") for each in ids]
    clusters = {
        cluster or manifest.clusters or "" for each, _, cluster in jobs if each in {number, number.partition("_")[0]}
    }
    return {cluster for cluster in clusters if wanted in {"", cluster}}


def _beginning(text: str, parent: Path, found: _Found) -> Path:
    begun = [(path, manifest) for path, manifest in found if text and _begins(text, path, manifest)]
    if begun and (len(begun) == 1 or len({manifest.name for _, manifest in begun}) == 1):
        return begun[0][0]
    what = f"several runs in {parent} begin with" if begun else f"no run in {parent} has the name, folder or job"
    raise RunFolderError(f"{what} {text!r}{_near(parent, text, begun)}", path=str(parent))


def _begins(text: str, path: Path, manifest: Manifest) -> bool:
    return path.name.startswith(text) or manifest.name.startswith(text)


def _near(parent: Path, text: str = "", among: _Found | None = None) -> str:
    """Return the runs in a folder that a text may have meant, as the end of a message."""
    found = among or _newest_first(parent)
    import difflib

    close = difflib.get_close_matches(text, {name for path, run in found for name in (path.name, run.name)}, _NEAR)
    near = [each for name in close for each in found if name in {each[0].name, each[1].name}] or found
    if not near:
        return ""
    lines = [f"\n    {path} ({run.name}, {run.items} items, {time_of(run.created)})" for path, run in near[:_NEAR]]
    more = [f"\n    and {len(near) - _NEAR} more: slurmlaunch.runs({str(parent)!r})"] if len(near) > _NEAR else []
    return "".join(["; there are:", *lines, *more])


_NEAR = 5
"""How many runs a message lists."""


def newest_of(name: str, folder: Path) -> Path | None:
    """Return the newest run of `map_array` in a folder that has a name, and whose folder is called after it.

    The others' manifests are not read, of which there may be thousands.
    """
    readable = re.escape(job_name(name, _SOME_TOKEN).removesuffix(_SOME_TOKEN))
    called = re.compile(rf"(\d{{8}}-\d{{6}}-)?{readable}[0-9a-f]{{{len(_SOME_TOKEN)}}}")
    found = manifests_in(folder, lambda each: called.fullmatch(each) is not None)
    ours = [(manifest.created, path) for path, manifest in found if manifest.name == name and not manifest.single]
    return max(ours)[1] if ours else None


_SOME_TOKEN = "0" * TOKEN_LENGTH


_NOT_THERE = (FileNotFoundError, NotADirectoryError, PermissionError)


def manifests_in(folder: Path, wanted: Callable[[str], bool] = bool) -> Iterator[tuple[Path, Manifest]]:
    """Yield the run folders in a folder that this user may read, and their manifests; *wanted* chooses by name.

    Raises:
        OSError: the storage fails. A run that is not seen may be submitted again.
    """
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if wanted(entry.name) and entry.is_dir(follow_symlinks=False)]
    except _NOT_THERE:
        return
    parent = folder.resolve()
    for name in names:
        try:
            manifest = Manifest.of(Location(parent / name))
        except (*_NOT_THERE, RunFolderError):  # no run, another user's, or one that is being removed
            continue
        yield parent / name, manifest
