"""`Executor`: from a function and its items to a submitted run.

Users create it, and the integrations and the command line submit through it. It checks a call, has a `NewRun` made of
it or an earlier run resumed, submits that and hands it to the watcher. It does not collect results.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import threading
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never, ParamSpec, TypeVar

from slurmlaunch.backends.allocation import require_allocation
from slurmlaunch.caps import usable_cpus
from slurmlaunch.client import html
from slurmlaunch.client.attach import newest_of
from slurmlaunch.client.call_checks import (
    check_function,
    rows_of,
    unknown_keywords,
    with_kwargs,
    zip_equal,
    zip_shortest,
)
from slurmlaunch.client.cleaning import await_removal, discard, unless_removed
from slurmlaunch.client.configuration import DEFAULT, OF_YOURS, options_of, path_of, settings_for, values_of_profile
from slurmlaunch.client.default_folder import warn_of_place
from slurmlaunch.client.futures import Future, FutureArray
from slurmlaunch.client.new_run import NewRun
from slurmlaunch.client.options import check_cluster, is_option, misplaced_option, with_options_listed
from slurmlaunch.client.plan import Call, How
from slurmlaunch.client.resuming import check_place, place_of, resume
from slurmlaunch.client.submission import Submission
from slurmlaunch.client.watcher import current_client
from slurmlaunch.errors import RunFolderError, SchedulerError, SubmissionError
from slurmlaunch.messages import say
from slurmlaunch.outcome import BARE, BARE_IF_OURS
from slurmlaunch.runfolder import runs_folder
from slurmlaunch.runfolder.plan import AUTO

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from slurmlaunch.backends.base import Backend
    from slurmlaunch.client.options import Shape
    from slurmlaunch.client.plan import Cost
    from slurmlaunch.client.run import Run

__all__ = ["Executor"]

P = ParamSpec("P")
T = TypeVar("T")

_JOBLIB = "slurmlaunch.integrations.joblib"
"""Loaded by name when it is asked for, because the client knows none of its neighbours."""

_CONCURRENT_TASKS = 100
"""How many tasks are assumed to run at once on a cluster without a throttle, for callers that ask for a number."""


@with_options_listed
class Executor(concurrent.futures.Executor):
    """Runs functions on Slurm, on this machine, or in this thread.

    Args:
        folder: holds the run folders, on storage that the nodes share. Default: ``$SLURMLAUNCH_FOLDER``, else
            ``./slurmlaunch-runs``.
        cluster: ``"slurm"``, ``"allocation"`` (steps of the allocation that this process is in), ``"local"`` or
            ``"inline"``. Default: ``$SLURMLAUNCH_CLUSTER``, else slurm if sbatch is on PATH, else local.
        profile: a profile of the configuration files (see "Site defaults" in docs/command-line.md); what is given here
            too wins. Their defaults apply without a profile.
        options: sbatch's long option names with underscores (``time``, ``partition``, ``cpus_per_task``, ...), and
            slurmlaunch's own, listed below.

    Raises:
        UnknownOption: an option is neither sbatch's nor ours, or one that slurmlaunch sets itself.
        OptionError: a value is wrong, also in a configuration file; a configuration file is not safe; no file has
            the profile; or this process is in no allocation.
        SchedulerError: the configuration has values for a cluster, and Slurm does not say which this is.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        cluster: str | None = None,
        profile: str | None = None,
        **options: Any,
    ) -> None:
        settings = settings_for(profile, {"folder": folder or None, "cluster": cluster or None, **options})
        self._cluster = check_cluster(settings.used["cluster"].value)
        if self._cluster == "allocation":
            require_allocation()
        self._folder = path_of(settings.used["folder"].value)
        self._defaults = {option: each.value for option, each in settings.defaults.items()}
        self._options = options_of(settings.used)
        self._is_default_folder = settings.used["folder"].source == DEFAULT
        self._runs = _Runs()

    @property
    def folder(self) -> Path:
        """The folder that holds the run folders."""
        return self._folder

    @property
    def cluster(self) -> str:
        """The kind of backend: ``"slurm"``, ``"allocation"``, ``"local"`` or ``"inline"``."""
        return self._cluster

    @property
    def throttle(self) -> int | None:
        """How many tasks of a run may run at once, or None."""
        return self._options.throttle

    @property
    def _max_workers(self) -> int:
        """About how many tasks run at once: by this attribute Dask and others choose how many calls to submit."""
        cpus = usable_cpus() // self._options.shape().cpus_per_task
        tasks = _CONCURRENT_TASKS if self._cluster == "slurm" else max(1, cpus)
        return min(tasks, self.throttle or tasks)

    def shape(self, *, single_item: bool = False) -> Shape:
        """Return the CPUs of a task and how its processes share them; *single_item* for a task of `submit`."""
        return self._options.shape(single_item=single_item, available=self._backend().limits().cpus)

    @property
    def ranks(self) -> int:
        """How many processes call the function of a task together (sbatch's ``ntasks``)."""
        return self._options.ranks

    def options(self, **changes: Any) -> Executor:
        """Return an executor with some options changed; None restores a default. Same folder, same shutdown.

        ``profile=`` changes those that the profile holds. They are the defaults of the new executor, as those of the
        configuration files are.

        Raises:
            UnknownOption, OptionError: as for `Executor`; or the profile has another folder or cluster.
        """
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        if profile := changes.pop("profile", None):
            own = values_of_profile(profile, self._folder, self._cluster)
            other._defaults = {**self._defaults, **own}
            changes = {**own, **changes}
        restored = {option: other._defaults.get(option) for option, value in changes.items() if value is None}
        other._options = self._options.changed(**{**changes, **restored})
        return other

    def joblib_backend(self, **options: Any) -> Any:
        """Return a backend for ``joblib.parallel_config``; *options*: tasks, chunksize, schedule as for `map_array`.

        Raises:
            MissingPackage: joblib is not installed.
        """
        return import_module(_JOBLIB).SlurmlaunchBackend(self, **options)

    def __repr__(self) -> str:
        shown = "".join(f", {name}={value!r}" for name, value in self._options.slurm.items())
        return f"Executor({str(self._folder)!r}, cluster={self._cluster!r}{shown})"

    def _repr_html_(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self._options.slurm.items())
        runs = [FutureArray[Any](run).status() for run in self._runs.current()]
        told = [f"options: {options}" if options else "", f"run folders: {self._folder}"]
        told += [f"{status.name}: {status.summary()}" for status in runs]
        return html.box(
            [html.row(f"<b>Executor</b> on {html.text(self._cluster)}"), *map(html.small, filter(None, told))]
        )

    # Calls.

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run one call as one task, with all of the task's CPUs.

        Returns:
            The call's future, once the scheduler has accepted the job.

        Raises:
            NotPicklable: the function or an argument does not pickle.
            SubmissionError: the scheduler refused the job.
            RuntimeError: the executor was shut down.
            TypeError: the function is not callable, or asynchronous.
            UnknownOption: a keyword is an option, and the function has no such parameter.
        """
        check_function(fn)
        for name in unknown_keywords(fn, kwargs):
            if is_option(name):
                raise misplaced_option(name, kwargs[name], "ex.options({}=...).submit(...)")
        call = functools.partial(fn, *args, **kwargs) if args or kwargs else fn
        bound = [""] * len(args) + list(kwargs)
        with BARE_IF_OURS:
            array: FutureArray[T] = self._submit(Call(call, [()], self._options, bound=bound))
        return array[0]

    def map_array(  # noqa: PLR0913  (keywords that users write, each by its name)
        self, fn: Callable[..., T], *iterables: Iterable[Any],
        kwargs: Mapping[str, Any] | None = None, tasks: int | None = None, chunksize: int | None = None,
        throttle: int | None = None, schedule: str = AUTO, cost: Cost | None = None, name: str | None = None,
        resume: bool | str = False, **misplaced: Never,
    ) -> FutureArray[T]:  # fmt: skip
        """Run the function on each item, as one job array.

        Args:
            fn: the function.
            iterables: the function's arguments, zipped; they must have equal length.
            kwargs: keyword arguments that all items have in common; they are stored once, with the function.
            tasks: the number of slices that the items are cut into, or
            chunksize: the number of items in each slice. With either, a task has its slice from the start.
            throttle: how many tasks may run at once (sbatch's ``%N``).
            schedule: ``"auto"``, where neither *tasks* nor *chunksize* nor *cost* is given: there is one task for each
                item, or for as many items as a task has processes, up to the limits of the cluster and 1000 tasks,
                and the tasks share the items. Each takes one item per process first, and more at once if they turn
                out to be short; tasks that start when no item is left are cancelled. ``"static"``: each task has its
                slice from the start. ``"dynamic"``: *tasks* is the number of
                tasks, and each claims block after block of *chunksize* items until none is left; by default the
                blocks are large at first and shrink. ``"guided"``: the same with blocks that shrink more evenly;
                only the last is shorter than *chunksize*.
            cost: the cost of each item in any unit: a function of the item's arguments, or one number per item.
                Static slices are then packed so that each costs about the same.
            name: the run's name; by default the function's.
            resume: resume the newest run of this *name* in the folder of runs, or make it: items that are done keep
                their results, those that run are waited for, and only what failed, is missing or is new is submitted.
                Items are the same if their arguments pickle alike or are equal. A line on stderr says how many are
                done, and which code has changed since; ``"strict"`` raises if any has.
            misplaced: nothing: options of the executor go into `options`, and the function's keywords into *kwargs*.

        Returns:
            One future per item, in order, once the scheduler has accepted the first array.

        Raises:
            TypeError: there are no iterables, or one is not iterable; *kwargs* do not fit the function; the function
                is not callable, or asynchronous.
            UnknownOption: another keyword was given.
            OptionError: *resume* without a *name*, or the run of that name is another call's: it has another function,
                other *kwargs*, another cluster or seed; or it is ``"strict"``, and code has changed.
            ValueError: the iterables have different lengths; *tasks* and *chunksize* are both given for static
                slices, or one is below 1; *schedule* is unknown; *cost* gives too few or too many numbers, or
                one that is negative or not finite.
            NotPicklable, SubmissionError, RuntimeError: as for `submit`.
        """
        _refuse(misplaced)
        function = with_kwargs(fn, kwargs, len(iterables) or None)
        if not iterables:
            raise TypeError("map_array(fn, items) runs the function on each item: give the items, or use submit(fn)")
        how = How(tasks, chunksize, throttle, schedule, cost, name, resume)
        with BARE_IF_OURS:
            return self._submit(self._call(function, zip_equal(fn, iterables), how, bound=kwargs or ()))

    def starmap_array(  # noqa: PLR0913  (as many as map_array)
        self, fn: Callable[..., T], argument_tuples: Iterable[Iterable[Any]], *,
        kwargs: Mapping[str, Any] | None = None, tasks: int | None = None, chunksize: int | None = None,
        throttle: int | None = None, schedule: str = AUTO, cost: Cost | None = None, name: str | None = None,
        resume: bool | str = False, **misplaced: Never,
    ) -> FutureArray[T]:  # fmt: skip
        """Run the function on each tuple of arguments; otherwise as `map_array`."""
        _refuse(misplaced)
        how = How(tasks, chunksize, throttle, schedule, cost, name, resume)
        function = with_kwargs(fn, kwargs)
        with BARE_IF_OURS:
            return self._submit(self._call(function, rows_of(argument_tuples), how, bound=kwargs or ()))

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        **misplaced: Never,
    ) -> Iterator[T]:
        """Return an iterator over the results, as `concurrent.futures.Executor.map` does.

        The tasks share the items as for `map_array`; with *chunksize*, each has a slice of so many, which feeds all of
        its processes. The shortest iterable determines the number of items. Closing the iterator cancels all items
        without a result.

        Raises:
            TypeError: an argument is not iterable.
            ValueError: *chunksize* is below 1.
            TimeoutError: a result is missing *timeout* seconds after this call.
        """
        _refuse(misplaced)
        check_function(fn)
        deadline = None if timeout is None else time.monotonic() + timeout
        call = self._call(fn, zip_shortest(fn, iterables), How(chunksize=chunksize))
        with BARE_IF_OURS:
            return _results_of(self._submit(call), deadline)

    def script(
        self, fn: Callable[..., Any], *iterables: Iterable[Any], kwargs: Mapping[str, Any] | None = None,
        tasks: int | None = None, chunksize: int | None = None, throttle: int | None = None, schedule: str = AUTO,
        cost: Cost | None = None, name: str | None = None, **misplaced: Never,
    ) -> str:  # fmt: skip
        """Return the batch scripts that `map_array` would submit, or `submit` if there are no iterables.

        Where the tasks would share the items, a comment at its head says so, and why there are so many tasks.
        Nothing is submitted, and no file is left behind.
        """
        _refuse(misplaced)
        function, how = with_kwargs(fn, kwargs, len(iterables)), How(tasks, chunksize, throttle, schedule, cost, name)
        call = self._call(function, zip_equal(fn, iterables), how)
        if not iterables:
            call = Call(function, [()], call.options)
        return NewRun(call, self._backend(), self._folder.resolve(), is_shown=True).script()

    def _call(
        self, fn: Callable[..., Any], rows: Iterable[tuple[Any, ...]], how: How, *, bound: Iterable[str] = ()
    ) -> Call:
        given = {key: value for key in ("throttle", "name") if (value := getattr(how, key)) is not None}
        options = self._options.changed(**given)
        how.check(options)
        return Call(fn, rows, options, how, bound=bound)

    # From a call to a run.

    def _submit(self, call: Call) -> FutureArray[Any]:
        self._runs.check_open()
        array: FutureArray[Any] | None = None
        while array is None:
            array = self._resume(call) if call.resume else None
            if array is None and (run := self._start(call)) is not None:
                array = FutureArray(run)
        if self._cluster == "inline":
            array.wait()  # automatic retries run during the call, too
        return array

    def _resume(self, call: Call) -> FutureArray[Any] | None:
        """Resume the newest run of the call's name; None if there is none."""
        rows, folder = call.collected(), self._folder.resolve()
        while (path := newest_of(call.name, folder)) is not None:
            if not await_removal(path):
                with unless_removed(path), self._runs.submission():
                    run, items = resume(path, call, rows, self._backend())
                    self._runs.add(run)
                    return FutureArray(run, items)
        check_place(call.name, folder)
        return None

    def _start(self, call: Call) -> Run | None:
        """Make a run and submit it; return it, watched, or None if it is made, and is to be resumed."""
        place = place_of(call.name, self._folder.resolve()) if call.resume else None
        new = self._make_folder(call, place)
        run: Run | None = None
        try:
            run = new.write()
            if not new.take_place():
                return None
            with self._runs.submission():
                submitted = _submit_first_round(run, call, new)
                if submitted is None:
                    return None
                run = submitted
                self._runs.add(run)
        except BaseException as error:
            # If sbatch cannot have accepted a job, no folder stays behind. After Ctrl-C it may have.
            doubtful = getattr(error, "ambiguous", False) or not isinstance(error, Exception)
            if run is None or not (run.job_ids or doubtful):
                discard(run) if run is not None and new.folder.path == place else new.folder.root.remove()
            raise
        current_client().watch(run)
        return run

    def _make_folder(self, call: Call, place: Path | None) -> NewRun:
        """Make the folder of a new run."""
        try:
            if self._is_default_folder:
                warn_of_place(self._folder, self._cluster)
            new = NewRun(call, self._backend(), runs_folder.make_private(self._folder), place=place)
            new.make_folder()
        except OSError as error:
            message = f"the folder for the run folders, {self._folder}, cannot be used: {_reason(error)}; {OF_YOURS}"
            raise RunFolderError(message, path=str(self._folder)) from error
        return new

    def _backend(self) -> Backend:
        return current_client().backend(self._cluster, self._options.clusters)

    # The end.

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        """Wait for all items; after an error in the block, say first that this delays the error, and how to stop it."""
        runs = self._runs.close() if kind is not None else ()
        left = sum(run.ledger.open for run in runs)
        if kind is not None and left:
            folders = " and ".join(f"slurmlaunch.attach({str(run.folder.path)!r})" for run in runs)
            say(  # nothing else would be seen until the items are done
                f"{kind.__name__} was raised in a with block: {error}\nIt passes on when {left} items are "
                f"done. Ctrl-C ends the waiting, and cancel() of {folders} in another process ends the items."
            )
        self.shutdown()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Accept no more calls.

        Args:
            wait: return only when all submitted items have settled.
            cancel_futures: cancel the tasks that have not started; the others finish their slices
                (`FutureArray.cancel` ends them, too).

        Raises:
            SchedulerError: a cancellation failed; the others were made, and waited for.
        """
        errors = []
        for run in self._runs.close() if cancel_futures else ():
            try:
                run.cancel(range(run.manifest.items), only_queued=True)
            except SchedulerError as error:
                errors.append(error)
        if wait:
            for run in self._runs.close():
                FutureArray(run).wait()
        if errors:
            raise errors[0]


class _Runs:
    """The runs of an executor and of the executors made from it by `Executor.options`."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open = True
        self._submitting = 0
        self._runs: list[Run] = []

    def check_open(self) -> None:
        with self._changed:
            if not self._open:
                raise RuntimeError("cannot schedule new futures after shutdown")

    @contextlib.contextmanager
    def submission(self) -> Iterator[None]:
        """Submit a run in the block, and add it; a shutdown waits for the block."""
        with self._changed:
            self.check_open()
            self._submitting += 1
        try:
            yield
        finally:
            with self._changed:
                self._submitting -= 1
                self._changed.notify_all()

    def add(self, run: Run) -> None:
        """Keep a run until it is over, so that a shutdown waits for it."""
        with self._changed:
            self._runs = [each for each in self._runs if not each.over]
            self._runs.append(run)
            run.keep = self.add

    def current(self) -> list[Run]:
        """Return the runs that were not over when the last one was added."""
        with self._changed:
            return list(self._runs)

    def close(self) -> list[Run]:
        """Accept no more runs; return those that are not over."""
        with self._changed:
            self._open = False
            self._changed.wait_for(lambda: not self._submitting)
            return [run for run in self._runs if not run.over]


def _submit_first_round(run: Run, call: Call, new: NewRun) -> Run | None:
    """Submit a run; in shorter arrays, if its first is longer than the queue of the user may be.

    None if the call is to resume it for that: other processes may have seen its first round.
    """
    try:
        Submission(run).submit(run.rounds[0])
    except SubmissionError as error:
        if error.limit is None or run.rounds[0].plan.arrays[0].length <= error.limit:
            raise
        if call.resume:
            return None
        run.folder.round(0).remove()
        run = new.make_round()
        Submission(run).submit(run.rounds[0])
    return run


def _reason(error: OSError) -> str:
    path = Path(error.filename or "")
    if isinstance(error, FileExistsError) and path.is_symlink():
        return f"{path} is a symbolic link to {path.readlink()}, which is no folder"
    return f"{path} is a file" if isinstance(error, FileExistsError) else str(error)


def _refuse(misplaced: Mapping[str, object]) -> None:
    """Raise the error for the first keyword of a call that is no parameter of it."""
    for name, value in misplaced.items():
        raise misplaced_option(name, value, "ex.options({}=...).map_array(...)")


def _results_of(array: FutureArray[T], deadline: float | None) -> Iterator[T]:
    """Yield results in order; closing it cancels the items without a result."""
    try:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        with BARE:
            yield from array.iter_results(left)
    finally:
        if not array.done():
            array.cancel()
