"""A run that a call resumes: ``resume=True`` of `Executor.map_array`.

The executor uses it. The items of the call are matched with those of the run by their arguments (`comparison`). What is
done is taken, what runs is watched, and a round runs what failed, is missing or is new (`rerun`).
"""

from __future__ import annotations

import contextlib
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from slurmlaunch.client.arguments import bound_arguments
from slurmlaunch.client.attach import announce, open_view
from slurmlaunch.client.cleaning import unless_removed
from slurmlaunch.client.code import differences_of_code, joined
from slurmlaunch.client.comparison import are_equal, changes_of, key_of, match
from slurmlaunch.client.ledger import ItemStatus
from slurmlaunch.client.options import TOKEN_LENGTH, job_name
from slurmlaunch.client.pickling import pickle_arguments
from slurmlaunch.client.plan import STRICT
from slurmlaunch.client.rerun import (
    await_states,
    program_now,
    submit_missing,
    unfinished,
    with_function,
    without_running,
)
from slurmlaunch.client.sbatch_options import refused
from slurmlaunch.client.watcher import current_client
from slurmlaunch.client.wording import full_name_of, time_of
from slurmlaunch.errors import RunFolderError, StorageFailure
from slurmlaunch.runfolder.files import Location, can_link, sha256_of
from slurmlaunch.runfolder.function import load_function
from slurmlaunch.runfolder.items import ItemReader, write_further
from slurmlaunch.runfolder.layout import FUNCTION, FURTHER_ITEMS, MANIFEST, MODULES, Manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from slurmlaunch.backends.base import Backend, Limits
    from slurmlaunch.client.options import Options, Shape
    from slurmlaunch.client.plan import Call, Plan
    from slurmlaunch.client.rounds import Program
    from slurmlaunch.client.run import Run


def resume(path: Path, call: Call, rows: Sequence[tuple[Any, ...]], backend: Backend) -> tuple[Run, Sequence[int]]:
    """Resume a run; return a view of it, which is watched, and the item that each row of arguments is.

    Args:
        path: the run folder.
        call: the call that resumes it.
        rows: the arguments of its items.
        backend: where it submits.

    Raises:
        OptionError: the run is another call's, or its code has changed and the call is strict.
        RunFolderError: the folder cannot be used.
        SubmissionError: the scheduler refused the round.
    """
    watch = open_view(path)
    announce(watch.run.folder)
    if not watch.run.rounds:
        raise RunFolderError(f"{path} has no round", path=str(path))
    run, resumption = watch.run, _Resumption(call, rows, watch.run)
    resumption.check(backend)
    if run.ledger.open:
        run.on_demand = True
        run.keep_for(resumption)
        current_client().watcher.keep_watching(watch)
        watch.submission.take_over()
        await_states(run)
        watch = open_view(run.folder)
    again = submit_missing(watch, run, resumption)
    return again, resumption.items


# The place of the run in the folder of runs.


def place_of(name: str, folder: Path) -> Path:
    """Return the path of a new run that can be resumed: a name has one, so that of two processes only one makes it."""
    return folder / job_name(name, sha256_of(name.encode())[:TOKEN_LENGTH])


def check_place(name: str, folder: Path) -> None:
    """Remove what a removal has left in the place of a run, if anything.

    Raises:
        RunFolderError: something else is there.
    """
    place, what = place_of(name, folder), ""
    with unless_removed(place):
        there = Location(place)  # one, so that what was seen is what is removed
        names = set(there.names())
        if MANIFEST in names:
            found = Manifest.of(there).name
            what = "" if found == name else f"is of the run {found!r}"
        elif names - {"clients"}:
            what = "is no run folder"
        else:
            there.remove()
    if what:
        msg = f"{place} {what}, and is the place of the run {name!r}. Move it away, or give another name="
        raise RunFolderError(msg, path=str(place))


# What is resumed.


class _Resumption:
    """One call that resumes a run.

    Attributes:
        items: the item that each row is, once `missing` was called.
    """

    def __init__(self, call: Call, rows: Sequence[tuple[Any, ...]], run: Run) -> None:
        self._call, self._rows, self._first = call, rows, run
        self.items: Sequence[int] = ()
        self._new: list[tuple[Any, ...]] = []
        self._undecided = 0
        self._changed: list[str] = []

    def planning(self, items: int, limits: Limits, shape: Shape, first_task: int) -> Plan:
        """Plan a round as the call says."""
        can_share = partial(can_link, self._first.folder.function)
        return self._call.plan_of_some(items, limits, shape, can_share, first_task)

    # Whether it is this call's run.

    def check(self, backend: Backend) -> None:
        """Raise `OptionError` if the run is not this call's."""
        run, manifest, call = self._first, self._first.manifest_of(-1), self._call
        where, otherwise = f"the run {call.name!r} in {run.folder.path}", "Give another name=, or remove that run"
        ours = full_name_of(call.function)
        if ours not in {run.manifest.function, manifest.function}:
            raise refused("name", f"{where} is of {manifest.function}, and this call of {ours}. {otherwise}")
        if run.backend is not backend:
            theirs = ", ".join(filter(None, [f"cluster={manifest.backend!r}", manifest.clusters]))
            raise refused("resume", f"{where} was submitted with {theirs}. {otherwise}")
        if (call.options.seed or 0) != manifest.seed:
            raise refused("seed", f"{where} has seed={manifest.seed}, and this call {call.options.seed}. {otherwise}")
        if set(call.bound) != set(manifest.bound or ()) or (call.bound and self._other_kwargs(manifest)):
            raise refused("kwargs", f"{where} has other keyword arguments than this call. {otherwise}")

    def _other_kwargs(self, manifest: Manifest) -> bool:
        earlier, now = (
            dict(sorted(bound_arguments(each, manifest.bound).kwargs.items()))
            for each in (self._loaded(manifest), self._call.function)
        )
        key = key_of((now,))
        return not ((key is not None and key == key_of((earlier,))) or are_equal(earlier, now))

    def _loaded(self, manifest: Manifest) -> Callable[..., Any]:
        return load_function(manifest.function_in(self._first.folder), manifest.function_sha256, writable=True)

    # What is left to run, as `rerun.Rerun` has it.

    def missing(self, run: Run, earlier: Run) -> list[int]:
        """Match the rows with the items of the run; return those that failed or are missing, and the new ones."""
        found, self._undecided = match(_rows_of(run), self._rows)
        self._new = [row for row, item in zip(self._rows, found, strict=True) if item is None]
        total = run.manifest.items
        further = count(total)
        items = [next(further) if item is None else item for item in found]
        self.items = range(len(items)) if items == list(range(len(items))) else items
        known = {item for item in found if item is not None}
        failed = [item for item in unfinished(run, earlier) if item in known]
        self._changed = self._changes(run, known.difference(failed))
        if self._changed and self._call.resume == STRICT:
            what = f"{joined(self._changed)}, and results from before would be kept"
            raise refused("resume", f"{what}. resume=True keeps them; another name= runs all items again")
        return [*without_running(run, failed, earlier), *range(total, total + len(self._new))]

    def options(self, _: Run) -> Options:
        """Return those of the call."""
        return self._call.options

    def program(self, run: Run, options: Options) -> Program:
        """Return the function of the call, with the modules and the environment of now."""
        program = program_now(run, options, self._call.function)
        program = with_function(program, self._call.function, run, options)
        # A checkpoint is a call of the earlier function.
        program = program._replace(resumes=not self._changed)
        if not self._new:
            return program
        first = run.manifest.items
        write = partial(write_further, salt=run.folder.salt, arguments=self._new, dumps=pickle_arguments, first=first)
        return program._replace(
            manifest={**program.manifest, "items": first + len(self._new)},
            files={**program.files, f"{FURTHER_ITEMS}{first}": write},
        )

    def summary(self, run: Run, items: Sequence[int]) -> str:
        """Return how much is done and left, what could not be compared, and which code has changed."""
        known = [item for item in self.items if item < run.manifest.items]
        done = run.ledger.count(ItemStatus.VALUE, known)
        left = len(self.items) - done - len(items)
        parts = [f"{self._call.name} resumes: {done} of {len(self.items)} items are done"]
        parts += [f"{left} in progress"] if left else []
        parts += [f"{len(items)} submitted now"] if items else []
        text = ", ".join(parts)
        if self._undecided:
            text += f"; {self._undecided} could not be compared with earlier items, and count as new"
        if self._changed:
            text += f"; {joined(self._changed)}: results from before are kept, another name= runs all items again"
        return text

    # The code.

    def _changes(self, run: Run, kept: set[int]) -> list[str]:
        """Return what has changed since the code of items was recorded whose results are kept, or that run."""
        numbers = sorted({run.tasks.round_of(item).number for item in kept})
        manifests = map(run.manifest_of, reversed(numbers))
        codes = {(each.files[FUNCTION], each.files.get(MODULES)): each for each in manifests}
        found = [change for each in reversed(codes.values()) for change in self._changes_since(each)]
        return list(dict.fromkeys(found))

    def _changes_since(self, manifest: Manifest) -> list[str]:
        changes = differences_of_code(self._first.folder, manifest)
        when = time_of(manifest.created)
        try:
            earlier = self._loaded(manifest)
        except StorageFailure:
            raise
        except Exception as error:  # noqa: BLE001  (the user's modules may raise anything)
            return [*changes, f"the function of {when} does not load here ({type(error).__name__}: {error})"]
        found = changes_of(earlier, self._call.function)
        return changes + [f"{name} changed since {when}{f' ({lines})' if lines else ''}" for name, lines in found]


def _rows_of(run: Run) -> list[tuple[Any, ...] | None]:
    """Return the arguments of all items of a run; None for those that do not load here."""
    rows: list[tuple[Any, ...] | None] = []
    with contextlib.closing(ItemReader(run.folder)) as reader:
        for item in range(run.manifest.items):
            try:
                rows.append(reader[item])
            except StorageFailure:
                raise
            except Exception:  # noqa: BLE001  (the user's modules may raise anything)
                rows.append(None)
    return rows
