"""Finding a run again, from any process.

Used by `slurmlaunch.attach`, by futures that are unpickled, and by `rerun`. It submits nothing of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from slurmlaunch.client.run import Run
from slurmlaunch.client.state import ReadEnds, ReadTasks
from slurmlaunch.client.watcher import Watch, current_client
from slurmlaunch.errors import RunFolderError
from slurmlaunch.runfolder.layout import Manifest, RunFolder
from slurmlaunch.runfolder.rounds import read_rounds

if TYPE_CHECKING:
    import os

    from slurmlaunch.client.state import Effect


def find_run(run_folder: str | os.PathLike[str], rounds: int | None = None) -> Run:
    """Return a view of a run, watched if items are open.

    Args:
        run_folder: the run folder.
        rounds: how many of its rounds to cover; by default all.

    Raises:
        RunFolderError, UnsafeRunFolder, UnknownProtocol: as `slurmlaunch.attach` does.
    """
    client = current_client()
    try:
        path = Path(run_folder).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links that form a ring, a NUL character
        raise RunFolderError(f"no run folder at {run_folder!r}: {error}", path=str(run_folder)) from error
    known = client.views.get((path, rounds or 0))
    if rounds is not None and known is not None:
        return known
    watch = open_view(path, rounds)
    if rounds is not None:
        client.views[path, rounds] = watch.run
    client.watcher.keep_watching(watch)
    if watch.run.ledger.open:
        watch.submission.take_over()
    return watch.run


def open_view(path: Path, rounds: int | None = None) -> Watch:
    """Return a new view of a run, with everything that its folder shows now."""
    run = _view(path, rounds)
    current_client().runs.add(run)
    watch = Watch(run)
    watch.submission.read_refusals()
    watch.first_poll()
    return watch


def inspect(path: Path) -> Run:
    """Return a view of a run as its folder shows it now, which nobody watches; nothing is written or submitted."""
    run = _view(path)
    run.state.latency = 0.0  # what is not visible yet is not there now
    inspection = _Inspection(run)
    inspection.submission.read_refusals()
    for _ in range(2):  # the second one ends the items of tasks that the first one found to have ended
        inspection.first_poll()
    return run


class _Inspection(Watch):
    """Executes only the effects that read."""

    def _execute(self, effect: Effect) -> None:
        if isinstance(effect, (ReadTasks, ReadEnds)):
            super()._execute(effect)


def _view(path: Path, rounds: int | None = None) -> Run:
    folder = RunFolder(path)
    manifest = Manifest.read(folder)
    backend = current_client().backend(manifest.backend, manifest.clusters)
    return Run(folder, manifest, backend, list(read_rounds(folder))[:rounds])
