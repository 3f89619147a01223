"""Finding a run again, from any process.

Used by `slurmlaunch.attach`, by futures that are unpickled, and by `rerun`. It submits nothing of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from slurmlaunch.client.run import Run
from slurmlaunch.client.watcher import Watch, current_client
from slurmlaunch.errors import RunFolderError
from slurmlaunch.runfolder.layout import Manifest, RunFolder
from slurmlaunch.runfolder.rounds import read_rounds

if TYPE_CHECKING:
    import os


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
    folder = RunFolder(path)
    manifest = Manifest.read(folder)
    client = current_client()
    run = Run(folder, manifest, client.backend(manifest.backend, manifest.clusters), list(read_rounds(folder))[:rounds])
    client.runs.add(run)
    watch = Watch(run)
    watch.submission.read_refusals()
    watch.first_poll()
    return watch
