"""Finding a run again, from any process, and retrying its failed and missing items.

Used by futures, by `slurmlaunch.attach` and by unpickled futures. It decides which items a
manual retry runs; making and submitting the round is up to `submission`, as for automatic
retries, and both report it to the run as `RoundAdded`.
"""

from __future__ import annotations

import contextlib
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slurmlaunch.client.environment import record
from slurmlaunch.client.item_status import ItemStatus
from slurmlaunch.client.options import Options, refuse_fixed
from slurmlaunch.client.run import Run
from slurmlaunch.client.state import RoundAdded
from slurmlaunch.client.submission import Submission, add_round
from slurmlaunch.client.watcher import Watch, current_client
from slurmlaunch.runfolder.clients import ClientId
from slurmlaunch.runfolder.layout import Manifest, RunFolder
from slurmlaunch.runfolder.rounds import Round, read_rounds

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Mapping


def find_run(run_folder: str | os.PathLike[str], rounds: int | None = None) -> Run:
    """Return a view of a run, watched if items are open.

    Args:
        run_folder: the run folder.
        rounds: how many of its rounds to cover; by default all.

    Raises:
        RunFolderError, UnsafeRunFolder, UnknownProtocol: as `slurmlaunch.attach` does.
    """
    client = current_client()
    path = Path(run_folder).resolve()
    known = client.views.get((path, rounds or 0))
    if rounds is not None and known is not None:
        return known
    watch = _open(path, rounds)
    if rounds is not None:
        client.views[path, rounds] = watch.run
    client.watcher.keep_watching(watch)
    if watch.run.ledger.open:
        watch.submission.take_over()
    return watch.run


def _open(path: Path, rounds: int | None = None) -> Watch:
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


def retry(run: Run, wanted: Collection[int], changes: Mapping[str, Any]) -> Run:
    """Make and submit a round of those of the wanted items that have failed or are missing; return a view with it.

    Raises:
        SubmissionError: the scheduler refused it.
        UnknownOption: a change is no option.
        OptionError: a value is invalid, or cannot change within a run.
    """
    refuse_fixed(changes)
    # A mistake is reported even if nothing is missing.
    Options.from_json(run.rounds[-1].plan.options).changed(**changes)
    _await_states(run)
    watch = _open(run.folder.path)
    again = watch.run
    again.environments = run.environments  # which know the secrets of this process
    while True:
        if again.ledger.open:
            watch.submission.take_over()
        items = [item for item in unfinished(again, run) if item in wanted]
        if not items:
            break
        options = Options.from_json(again.rounds[-1].plan.options).changed(**changes)
        try:
            earlier = again.environments.of_round(again.rounds[-1].number)
            added = add_round(again, items, options, record(options, earlier))
        except FileExistsError:  # another client was first: what it retries is not ours to retry
            with contextlib.suppress(FileNotFoundError):  # this view has the round if it was its own automatic retry
                added = Round.read(run.folder, len(again.rounds))
                again.handle(RoundAdded(added.number, added.plan, reopen=True))
            watch.submission.read_refusals()
            watch.first_poll()
            continue
        again.handle(RoundAdded(added.number, added.plan, reopen=True))
        watch.submission.submit(added)
        if run.keep is not None:
            run.keep(again)
        break
    current_client().watcher.keep_watching(watch)
    return again


_ANSWER_WITHIN, _TICK = 40.0, 0.05
"""Seconds within which the scheduler is queried for a job that is new to this machine, and between two checks."""


def _await_states(run: Run) -> None:
    """Wait until the states of the tasks of another process's run are known, if any item is missing.

    Otherwise a task that was cancelled overnight would be taken for one that runs.
    """
    client = run.rounds[-1].plan.client
    if not run.ledger.open or client is None or client == ClientId.current():
        return
    with run.changed:
        # A task of which the scheduler says nothing by now may stay unknown for ever.
        known = any(view.record is not None for view in list(run.tasks.views.values()))
        unclear = [task for each in run.tasks.rounds for number in each.jobs for task in each.tasks_of(number)]
    until = time.monotonic() + run.state.latency + _ANSWER_WITHIN
    # Fewer each time: a task that ends meanwhile is not waited for, or a long run would never let go.
    while (unclear := [task for task in unclear if _is_unclear(run, task, known=known)]) and time.monotonic() < until:
        time.sleep(_TICK)


def _is_unclear(run: Run, task: int, *, known: bool) -> bool:
    state = run.tasks.view(task).state
    return (not known if state is None else state.is_final) and bool(run.tasks.open_items(task))


def unfinished(run: Run, earlier: Run) -> list[int]:
    """Return the items that failed, were cancelled, or were never submitted.

    Nothing on disk tells of items that ended without an outcome; an earlier view may know of them.
    """
    may_come = cache(Submission(run).may_be_submitted)  # an array has many items, and its journal is read for it
    with run.changed:
        return [item for item in range(run.manifest.items) if _is_unfinished(run, item, earlier, may_come)]


def _is_unfinished(run: Run, item: int, earlier: Run, may_come: Callable[[Round, int], bool]) -> bool:
    status, tasks = run.ledger.status(item), run.tasks
    if status != ItemStatus.OPEN:
        return status != ItemStatus.VALUE
    view = tasks.view(tasks.task_of(item))
    round_ = view.round
    arrays = range(len(round_.plan.arrays)) if tasks.claimant_of(item) is None else [view.array]
    if round_.jobs.keys().isdisjoint(arrays):
        on_disk = next(each for each in run.rounds if each.number == round_.number)
        return not any(may_come(on_disk, number) for number in arrays)
    ended = earlier.ledger.status(item) == ItemStatus.ENDED
    return ended and earlier.tasks.round_of(item).number == round_.number
