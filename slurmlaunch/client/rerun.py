"""A round that a person asks for: a retry, or a run that is resumed. Which items it has, and what they run.

Futures and `resuming` use it. `submission` makes the round and submits it, as for automatic retries (`retries`), and
both report it to the run as `RoundAdded`. It polls nothing.
"""

from __future__ import annotations

import contextlib
import functools
import time
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from slurmlaunch.client.arguments import bound_arguments
from slurmlaunch.client.attach import open_view
from slurmlaunch.client.call_checks import check_function
from slurmlaunch.client.code import Snapshot
from slurmlaunch.client.environment import record, with_secrets_of
from slurmlaunch.client.events import RoundAdded, TasksBeganAgain
from slurmlaunch.client.ledger import ItemStatus
from slurmlaunch.client.options import LIVE, SUBMITTED, Options, refuse_fixed
from slurmlaunch.client.pickling import description_of, pickle_function, sources_of, travelling
from slurmlaunch.client.rounds import Program, add_round, close_tasks
from slurmlaunch.client.sbatch_options import refused
from slurmlaunch.client.submission import Submission
from slurmlaunch.client.watcher import current_client
from slurmlaunch.client.wording import time_of
from slurmlaunch.errors import RunFolderError
from slurmlaunch.messages import say
from slurmlaunch.runfolder.clients import ClientId
from slurmlaunch.runfolder.function import load_function, shared_bytes, write_function
from slurmlaunch.runfolder.interpreter import Interpreter
from slurmlaunch.runfolder.layout import FUNCTION, MODULES
from slurmlaunch.runfolder.modules import ModulesReader
from slurmlaunch.runfolder.rounds import Round, check_kept

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from slurmlaunch.client.rounds import Planning
    from slurmlaunch.client.run import Run
    from slurmlaunch.client.watcher import Watch


CURRENT = "current"
"""The code and the environment of now, as opposed to those of the submission."""


def retry(run: Run, what: Retry) -> Run:
    """Make and submit a round of those of the wanted items that have failed or are missing; return a view with it.

    Raises:
        As `slurmlaunch.FutureArray.retry` does.
    """
    what.check(Options.from_json(run.rounds[-1].plan.options))
    await_states(run)
    again = submit_missing(open_view(run.folder), run, what)
    if again.submitting and run.keep is not None:
        run.keep(again)
    return again


class Rerun(Protocol):
    """What a person wants to run, of a run that exists."""

    @property
    def planning(self) -> Planning | None:
        """How the tasks of the round share its items; by default as in the round before."""

    def missing(self, run: Run, earlier: Run) -> list[int]:
        """Return the items to run, new ones included; an earlier view may know more of how the others ended."""

    def options(self, run: Run) -> Options:
        """Return the options of the round."""

    def program(self, run: Run, options: Options) -> Program:
        """Return what the round runs, and where."""

    def summary(self, run: Run, items: Sequence[int]) -> str:
        """Return a line for the user; an empty one if there is nothing to say."""


def submit_missing(watch: Watch, earlier: Run, what: Rerun) -> Run:
    """Make and submit a round of what is missing of a run; return a view with it, which is watched.

    Args:
        watch: a view of the run as it is now.
        earlier: another view, which may know more of how items ended, or the same.
        what: which items, and what they run.
    """
    again = watch.run
    again.environments = earlier.environments  # which know the secrets of this process
    while True:
        if again.ledger.open:
            watch.submission.take_over()
        items = what.missing(again, earlier)
        summary = what.summary(again, items)
        try:
            added = _add_round(again, items, what) if items else None
        except FileExistsError:  # another client was first: what it runs is not ours to run
            check_kept(again.folder)
            with contextlib.suppress(FileNotFoundError):  # this view has the round if it was its own automatic retry
                added = Round.read(again.folder, len(again.rounds))
                again.handle(RoundAdded(added.number, added.plan, reopen=True))
            watch.submission.read_refusals()
            watch.first_poll()
            continue
        if summary:
            say(summary)
        if added is not None:
            again.handle(RoundAdded(added.number, added.plan, reopen=True))
            watch.submission.submit(added)
        current_client().watcher.keep_watching(watch)
        return again


def _add_round(run: Run, items: Sequence[int], what: Rerun) -> Round:
    options = what.options(run)
    return add_round(run, items, options, program=what.program(run, options), planning=what.planning)


# What they run.


class Retry(NamedTuple):
    """What a person wants to run again."""

    wanted: Collection[int]
    function: Callable[..., Any] | None  # None is that of the last round
    code: str  # CURRENT or SUBMITTED
    changes: Mapping[str, Any]  # options
    planning: Planning | None = None

    def check(self, options: Options) -> None:
        """Raise for mistakes, which are reported even if nothing is missing."""
        if self.code not in (CURRENT, SUBMITTED):
            raise refused("code", f"of a retry must be {CURRENT!r} or {SUBMITTED!r}, not {self.code!r}")
        refuse_fixed(self.changes)
        options.changed(**self.changes)
        if self.function is not None:
            check_function(self.function)

    def missing(self, run: Run, earlier: Run) -> list[int]:
        """Return those of the wanted items that have failed or are missing."""
        return without_running(run, [item for item in unfinished(run, earlier) if item in self.wanted], earlier)

    def options(self, run: Run) -> Options:
        """Return those of the last round, with the changes."""
        return Options.from_json(run.rounds[-1].plan.options).changed(**self.changes)

    def program(self, run: Run, options: Options) -> Program:
        """Return what the next round of a run with these options runs, and where."""
        if self.code == SUBMITTED:
            latest = run.environments.of_round(run.rounds[-1].number)
            environment = with_secrets_of(options, run.environments.of_round(0), latest)
            program = Program({"repeated": run.manifest.created}, environment)
        else:
            program = program_now(run, options, self.function)
        if self.function is None:
            return program
        return with_function(program, _with_arguments(self.function, run), run, options)

    def summary(self, run: Run, items: Sequence[int]) -> str:
        """Return a line that says what has changed since the last round of a run; an empty one if nothing has."""
        if not items:
            return ""
        changed = run.explanations.changed_code()
        if self.code == SUBMITTED:
            changed = f"code and environment as submitted at {time_of(run.manifest.created)}"
            if not run.folder.environment(0).exists():  # as 0.1.0 submitted it
                changed = f"function as submitted at {time_of(run.manifest.created)}; no environment was recorded"
        return f"{len(items)} item{'s' * (len(items) != 1)}; {changed}" if changed else ""


def program_now(run: Run, options: Options, function: Callable[..., Any] | None) -> Program:
    """Return the program of the last round with the modules and the environment of now.

    Args:
        run: the run.
        options: those of the next round.
        function: the function that runs in place of the last one, if any.
    """
    before = run.manifest_of(-1)
    recorded = before.source(run.folder, MODULES)
    # Another process has other modules, as long as it does not give a function that uses them.
    ours = function is not None or run.rounds[0].plan.client == ClientId.current()
    with contextlib.ExitStack() as opened:
        earlier = opened.enter_context(contextlib.closing(ModulesReader(recorded))) if recorded else ()
        snapshot = Snapshot(
            options.code_exclude,
            by_value=options.by_value,
            live=options.code == LIVE,
            earlier=earlier,
            earlier_live=before.code.get("live", ()),
            imported=ours,
        )
    if function is not None and snapshot and run.backend.name != "inline":
        snapshot.warn_of_changes(function)
    changes = {
        **run.rounds[-1].plan.manifest,
        "files": {name: path for name, path in before.files.items() if name != MODULES},
        "code": snapshot.identity(),
        "created": time.time(),
        "interpreter": Interpreter.current().to_json(),
        "repeated": before.repeated or before.created,
    }
    environment = record(options, run.environments.of_round(run.rounds[-1].number))
    return Program(changes, environment, {MODULES: snapshot.write} if snapshot else {})


def with_function(program: Program, called: Callable[..., Any], run: Run, options: Options) -> Program:
    """Return a program that calls another function, which holds all arguments that the items have in common."""
    before = run.manifest_of(-1)
    with travelling(options.by_value) as noted:
        pickled = pickle_function(called, single=before.single)
    described = description_of(called, options) | {"shared": shared_bytes(pickled), "repeated": None}
    described["cells"] = {**before.cells, **sources_of(noted)}
    # Modules that the items need may lie where only the first submission found them.
    described["sys_path"] += [entry for entry in before.sys_path if entry not in described["sys_path"]]
    files = {**program.files, FUNCTION: lambda path: write_function(path, pickled)}
    # A checkpoint is a call of the earlier function.
    return Program({**program.manifest, **described}, program.environment, files, resumes=False)


def _with_arguments(function: Callable[..., Any], run: Run) -> Callable[..., Any]:
    """Return the function with the arguments that the run's call bound to the earlier one.

    Raises:
        RunFolderError: they cannot be read here.
    """
    manifest = run.manifest_of(-1)
    bound = manifest.bound
    if not (bound or (bound is None and manifest.single)):
        return function
    path = manifest.function_in(run.folder)
    try:
        earlier = load_function(path, manifest.function_sha256, writable=True)
    except Exception as error:  # the user's modules may raise anything
        what = f"{type(error).__name__}: {error}"
        msg = f"the arguments of the call lie beside its function in {path}, which cannot be loaded here ({what})"
        raise RunFolderError(msg, path=str(path)) from error
    args, kwargs = bound_arguments(earlier, bound)
    return functools.partial(function, *args, **kwargs) if args or kwargs else function


# Which items.


_ANSWER_WITHIN, _TICK = 40.0, 0.05
"""Seconds within which the scheduler is queried for a job that is new to this machine, and between two checks."""


def await_states(run: Run) -> None:
    """Wait until the states of the tasks of another process's run are known, if any item is missing.

    Otherwise a task that was cancelled overnight would count as running.
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
    while (unclear := _unclear(run, unclear, known=known)) and time.monotonic() < until:
        time.sleep(_TICK)


def _unclear(run: Run, tasks: list[int], *, known: bool) -> list[int]:
    """Return those of the tasks that left items, and may have ended as well as run, or of which no end is settled yet.

    Unclaimed items are left by all tasks of their round, once none of them runs.
    """
    silent = [task for task in tasks if _is_silent(run, task, known=known)]
    left = {
        each.number
        for each in run.tasks.rounds
        if all(_is_silent(run, task, known=known) for task in each.plan.tasks) and run.tasks.unclaimed_items(each)
    }
    return [task for task in silent if run.tasks.view(task).round.number in left or run.tasks.open_items(task)]


def _is_silent(run: Run, task: int, *, known: bool) -> bool:
    state = run.tasks.view(task).state
    return not known if state is None else state.is_final


def unfinished(run: Run, earlier: Run) -> list[int]:
    """Return the items that failed, were cancelled, or were never submitted.

    Nothing on disk tells of items that ended without an outcome; an earlier view may know of them.
    """
    may_come = cache(Submission(run).may_be_submitted)  # an array has many items, and its journal is read for it
    with run.changed:
        return [item for item in range(run.manifest.items) if _is_unfinished(run, item, earlier, may_come)]


def without_running(run: Run, items: list[int], earlier: Run) -> list[int]:
    """Have the tasks that left items without outcomes not start again; return the items without those that have."""
    left = [item for item in items if run.ledger.status(item) in {ItemStatus.OPEN, ItemStatus.ENDED}]
    began = close_tasks(run, left, earlier.tasks)
    if not began:
        return items
    run.handle(TasksBeganAgain(began))
    running = {item for item in left if not run.tasks.left_by([item]).keys().isdisjoint(began)}
    return [item for item in items if item not in running]


def _is_unfinished(run: Run, item: int, earlier: Run, may_come: Callable[[Round, int], bool]) -> bool:
    status, tasks = run.ledger.status(item), run.tasks
    if status != ItemStatus.OPEN:
        return status != ItemStatus.VALUE
    view = tasks.view(tasks.task_of(item))
    round_ = view.round
    arrays = range(len(round_.plan.arrays)) if tasks.claimant_of(item) is None else [view.array]
    if round_.jobs.keys().isdisjoint(arrays):
        return not any(may_come(run.rounds[round_.number], number) for number in arrays)
    ended = earlier.ledger.status(item) == ItemStatus.ENDED
    return ended and earlier.tasks.round_of(item).number == round_.number
