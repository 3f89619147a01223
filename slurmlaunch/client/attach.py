"""Finding a run again, and running again what is missing of it."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from slurmlaunch.backends.allocation import AllocationBackend
from slurmlaunch.backends.inline import InlineBackend
from slurmlaunch.backends.local import LocalBackend
from slurmlaunch.backends.slurm import SlurmBackend
from slurmlaunch.client.ledger import Fate
from slurmlaunch.client.options import Options, refuse_fixed
from slurmlaunch.client.rounds import add_round
from slurmlaunch.client.run import Run
from slurmlaunch.client.submission import Submission
from slurmlaunch.client.watcher import WATCHER
from slurmlaunch.runfolder.changes import latency_of
from slurmlaunch.runfolder.clients import ClientId
from slurmlaunch.runfolder.journal import read_rounds
from slurmlaunch.runfolder.layout import Manifest, RunFolder

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Mapping

    from slurmlaunch.backends.base import Backend
    from slurmlaunch.runfolder.journal import Round


_VIEWS: WeakValueDictionary[tuple[Path, int], Run] = WeakValueDictionary()
"""The views that were unpickled: a thousand futures that are unpickled one by one share one."""


@cache
def backend_of(name: str, clusters: str | None = None) -> Backend:
    """Return the backend of that name: one for all runs of this process, as they share its queries."""
    if name == "slurm":
        return SlurmBackend(clusters)
    if name == "allocation":
        return AllocationBackend()
    return LocalBackend() if name == "local" else InlineBackend()


def find_run(run_folder: str | os.PathLike[str], rounds: int | None = None) -> Run:
    """Return the run of a folder, what is known of it taken in, and watched if items are open.

    Args:
        run_folder: the run folder.
        rounds: how many of its rounds to look at; by default all.

    Raises:
        RunFolderError: it is no run folder, or cannot be used.
        UnsafeRunFolder: another user owns it or may write to it.
        UnknownProtocol: a newer slurmlaunch wrote it.
    """
    folder = RunFolder(Path(run_folder).resolve())
    known = _VIEWS.get((folder.path, rounds or 0))
    if rounds is not None and known is not None:
        return known
    manifest = Manifest.read(folder)
    found = list(read_rounds(folder))[:rounds]
    run = Run(folder, manifest, backend_of(manifest.backend, manifest.clusters), found)
    if rounds is not None:
        _VIEWS[folder.path, rounds] = run
    submission = Submission(run)
    submission.take_refusals()
    WATCHER.watch(run)
    if run.ledger.open:
        submission.take_up()
    return run


def _await_states(run: Run) -> None:
    """Wait until it is known how the tasks are of a run that another process submitted, where anything is missing.

    Without that a task that was taken away at night would be taken for one that goes on.
    """
    client = run.tasks.rounds[-1].plan.client
    if not run.ledger.open or client is None or client == ClientId.current():
        return
    with run.changed:
        known = bool(run.tasks.told)  # what the scheduler has not named by now it may never name
    until = time.monotonic() + latency_of(run.folder.path) + _ANSWER_WITHIN
    unclear = [task for each in run.tasks.rounds for task in each.plan.tasks if run.tasks.place(task).job_id]
    # Fewer each time: what ends meanwhile is not waited for, or a long run would never let go.
    while (unclear := [task for task in unclear if _is_unclear(run, task, known=known)]) and time.monotonic() < until:
        time.sleep(_TICK)


_ANSWER_WITHIN, _TICK = 40.0, 0.05
"""Seconds within which the scheduler is asked for a job that is new to this machine, and between two looks."""


def _is_unclear(run: Run, task: int, *, known: bool) -> bool:
    state = run.tasks.states.get(task)
    return (not known if state is None else state.is_final) and bool(run.tasks.open_items(task))


def retry(run: Run, wanted: Collection[int], changes: Mapping[str, Any]) -> Run:
    """Make and submit a round for those of the wanted items that have failed or are missing; return the view with it.

    Raises:
        SubmissionError: the scheduler refused it.
        UnknownOption: a change is no option.
        OptionError: a value cannot be, or is the run's for good.
    """
    refuse_fixed(changes)
    _await_states(run)
    while True:
        latest = find_run(run.folder.path)
        items = [item for item in unfinished(latest, run) if item in wanted]
        if not items:
            return latest
        try:
            options = Options.from_json(latest.tasks.rounds[-1].plan.options).changed(**changes)
            added = add_round(latest, items, options)
        except FileExistsError:
            continue  # another client was first: what it runs again is not ours to run
        finally:
            latest.on_demand = True  # this view has served its purpose
        again = Run(latest.folder, latest.manifest, latest.backend, [*latest.tasks.rounds, added])
        Submission(again).submit()
        if run.kept_by is not None:
            run.kept_by.add(again)
        WATCHER.watch(again)
        return again


def unfinished(run: Run, earlier: Run) -> list[int]:
    """Return the items that have failed, were cancelled, or were never submitted.

    What ended without an outcome is not on disk: of that an earlier view may know.
    """
    will_come = cache(Submission(run).will_come)  # an array has many items, and its journal is read for it
    with run.changed:
        return [item for item in range(run.manifest.items) if _is_unfinished(run, item, earlier, will_come)]


def _is_unfinished(run: Run, item: int, earlier: Run, will_come: Callable[[Round, int], bool]) -> bool:
    fate, tasks = run.ledger.fate(item), run.tasks
    if fate != Fate.OPEN:
        return fate != Fate.VALUE
    place = tasks.place(tasks.task_of(item))
    arrays = [place.array] if tasks.is_given(item) else range(len(place.round.plan.arrays))
    if not any((place.round.number, number) in tasks.jobs for number in arrays):
        return not any(will_come(place.round, number) for number in arrays)
    ended = earlier.ledger.fate(item) == Fate.ENDED
    return ended and earlier.tasks.round_of(item).number == tasks.round_of(item).number
