"""The executor: from a function and its items to a run that is submitted."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import platform
import re
import secrets
import shutil
import sys
import threading
import time
import warnings
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

import cloudpickle

from slurmlaunch.backends.allocation import require_allocation
from slurmlaunch.backends.base import Limits
from slurmlaunch.backends.container import own_folders
from slurmlaunch.client.attach import backend_of
from slurmlaunch.client.futures import Future, FutureArray
from slurmlaunch.client.options import Options, check_cluster, job_name
from slurmlaunch.client.pickling import name_of, pickle_arguments, pickle_function, travelling
from slurmlaunch.client.plan import STATIC, Costs, pack, plan
from slurmlaunch.client.rounds import make_plan, ranks_plan
from slurmlaunch.client.run import Run
from slurmlaunch.client.submission import Submission, array_job
from slurmlaunch.client.watcher import WATCHER
from slurmlaunch.errors import OptionError, SchedulerError
from slurmlaunch.runfolder.function import write_function
from slurmlaunch.runfolder.items import write_items
from slurmlaunch.runfolder.journal import Round
from slurmlaunch.runfolder.layout import FOLDERS, Manifest, RunFolder, python_version, salt_of
from slurmlaunch.runfolder.records import make_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from slurmlaunch.backends.base import Backend
    from slurmlaunch.client.options import Shape
    from slurmlaunch.client.plan import Cost
    from slurmlaunch.runfolder.plan import RoundPlan

__all__ = ["Executor"]

P = ParamSpec("P")
T = TypeVar("T")

FOLDER_VARIABLE, CLUSTER_VARIABLE = "SLURMLAUNCH_FOLDER", "SLURMLAUNCH_CLUSTER"

_JOBLIB = "slurmlaunch.integrations.joblib"
"""Loaded by name when it is asked for, because the client knows none of its neighbours."""

_NO_LIMITS = Limits()
_TOKEN_LENGTH = 8


class Executor(concurrent.futures.Executor):
    """Runs functions on Slurm, on this machine, or in this thread.

    Args:
        folder: where run folders are made; on storage that the nodes share. By
            default ``$SLURMLAUNCH_FOLDER``, else ``./slurmlaunch-runs``.
        cluster: ``"slurm"``, ``"allocation"`` (steps of the allocation that this process
            is in), ``"local"`` or ``"inline"``; by default ``$SLURMLAUNCH_CLUSTER``, else slurm
            where sbatch is on PATH, else local.
        options: sbatch's long option names with underscores (``time``,
            ``partition``, ``cpus_per_task``, ...), and ours: ``throttle``,
            ``processes``, ``threads``, ``python``, ``modules``, ``setup``, ``container``,
            ``env``, ``by_value``, ``name``, ``sbatch``, ``seed``.

    Raises:
        UnknownOption: an option is neither sbatch's nor ours, or ours to set.
        OptionError: a value cannot be, or this process is in no allocation.
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None = None, *, cluster: str | None = None, **options: Any
    ) -> None:
        chosen = cluster or os.environ.get(CLUSTER_VARIABLE) or ("slurm" if shutil.which("sbatch") else "local")
        self._cluster = check_cluster(chosen)
        if self._cluster == "allocation":
            require_allocation()
        self._folder = Path(folder or os.environ.get(FOLDER_VARIABLE) or "slurmlaunch-runs").expanduser().absolute()
        self._options = Options.parse(**options)
        if self._cluster == "slurm":
            self._options = _on_named_clusters(self._options)
        self._ours = _Submitted()

    @property
    def folder(self) -> Path:
        """Where run folders are made."""
        return self._folder

    @property
    def cluster(self) -> str:
        """Where tasks run: ``"slurm"``, ``"allocation"``, ``"local"`` or ``"inline"``."""
        return self._cluster

    @property
    def throttle(self) -> int | None:
        """How many tasks of a run may be at work at once, or None."""
        return self._options.throttle

    def shape(self, *, single_item: bool = False) -> Shape:
        """Return the CPUs of a task, and how its processes share them.

        *single_item* is true for what `submit` makes: by default its item has all CPUs.
        """
        return self._options.shape(single_item=single_item, available=self._backend().limits().cpus)

    @property
    def ranks(self) -> int:
        """How many processes call the function of a task together (``ntasks``)."""
        return self._options.ranks

    def options(self, **changes: Any) -> Executor:
        """Return an executor with some options changed: same folder, same shutdown.

        Args:
            changes: as for `Executor`; None takes an option back.

        Raises:
            UnknownOption: an option is neither sbatch's nor ours, or ours to set.
            OptionError: a value cannot be.
        """
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._options = self._options.changed(**changes)
        return other

    def joblib_backend(self, **options: Any) -> Any:
        """Return a backend for ``joblib.parallel_config(backend=ex.joblib_backend())``.

        Args:
            options: ``tasks``, ``chunksize`` and ``schedule``, as for `map_array`.

        Raises:
            MissingPackage: joblib is not installed.
        """
        return import_module(_JOBLIB).SlurmlaunchBackend(self, **options)

    def __repr__(self) -> str:
        options = {**self._options.slurm}
        shown = "".join(f", {name}={value!r}" for name, value in options.items())
        return f"Executor({str(self._folder)!r}, cluster={self._cluster!r}{shown})"

    # Calls.

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run one call as one task; it has all of the task's CPUs.

        Returns:
            Its future, once the scheduler has accepted it.

        Raises:
            NotPicklable: the function or an argument does not pickle.
            SubmissionError: the scheduler refused it.
            RuntimeError: the executor was shut down.
        """
        call = functools.partial(fn, *args, **kwargs) if args or kwargs else fn
        array: FutureArray[T] = self._submit(_Call(call, [()], single=True, options=self._options))
        return array[0]

    def map_array(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        tasks: int | None = None,
        chunksize: int | None = None,
        throttle: int | None = None,
        schedule: str = STATIC,
        cost: Cost | None = None,
        name: str | None = None,
    ) -> FutureArray[T]:
        """Run the function on each item, as one job array.

        Args:
            fn: the function.
            iterables: its arguments, zipped; they must be equally long.
            tasks: how many slices to cut the items into, or
            chunksize: how many items each slice has; by default one per
                process of a task, or more where the tasks would be too many.
            throttle: how many tasks may run at once (``%N``).
            schedule: ``"static"``: each task has its slice from the start.
                ``"dynamic"``: *tasks* is how many tasks there are, and each takes
                block after block of the items, until none is left. *chunksize* is
                how many items it takes at once; by default many at first, and
                fewer and fewer. ``"guided"``: the same, with blocks that shrink
                more evenly, of which none but the last is shorter than *chunksize*.
            cost: what an item costs, in any unit: a function of the item's
                arguments, or as many numbers as there are items. Static slices
                are then packed so that each costs about the same.
            name: what the run is called; by default the function's name.

        Returns:
            One future per item, in order, once the scheduler has accepted the first array.

        Raises:
            ValueError: the iterables are not equally long, or *tasks* and
                *chunksize* are both given for static slices, or one is below 1;
                there is no such *schedule*; *cost* gives too few or too many
                numbers, or such that are negative or not finite.
            NotPicklable, SubmissionError, RuntimeError: as for `submit`.
        """
        how = _How(tasks, chunksize, throttle, schedule, cost, name)
        return self._submit(self._mapped(fn, _zip_equal(iterables), how))

    def starmap_array(
        self,
        fn: Callable[..., T],
        argument_tuples: Iterable[Iterable[Any]],
        *,
        tasks: int | None = None,
        chunksize: int | None = None,
        throttle: int | None = None,
        schedule: str = STATIC,
        cost: Cost | None = None,
        name: str | None = None,
    ) -> FutureArray[T]:
        """Run the function on each tuple of arguments; otherwise as `map_array`."""
        rows = (tuple(row) for row in argument_tuples)
        return self._submit(self._mapped(fn, rows, _How(tasks, chunksize, throttle, schedule, cost, name)))

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
    ) -> Iterator[T]:
        """Return an iterator over the results, as `concurrent.futures.Executor.map` does.

        The items are sliced as for `map_array`: a chunk feeds all processes of
        a task. It stops at the shortest iterable; what is left is cancelled
        when the iterator is closed.

        Raises:
            ValueError: *chunksize* is below 1.
            concurrent.futures.TimeoutError: a result is not there in time,
                counted in seconds from this call.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        call = self._mapped(fn, zip(*iterables, strict=False), _How(chunksize=chunksize))
        return _results_of(self._submit(call), deadline)

    def script(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        tasks: int | None = None,
        chunksize: int | None = None,
        throttle: int | None = None,
        schedule: str = STATIC,
        cost: Cost | None = None,
        name: str | None = None,
    ) -> str:
        """Return what `map_array` would submit, without submitting or writing anything.

        With no iterables it is what `submit` would.
        """
        how = _How(tasks, chunksize, throttle, schedule, cost, name)
        call = self._mapped(fn, _zip_equal(iterables), how)
        if not iterables:
            call = _Call(fn, [()], single=True, options=call.options)
        count = sum(1 for _ in call.rows)
        backend, token = self._backend(), "0" * _TOKEN_LENGTH
        folder = self._folder_of(call, token)
        manifest = self._manifest(call, token, count)
        first = Round(folder, 0, self._plan(call, backend, manifest, stacklevel=3))
        run = Run(folder, manifest, backend, [first])
        return "\n".join(backend.script(array_job(run, first, i)) for i in range(len(first.plan.arrays)))

    def _mapped(self, fn: Callable[..., Any], rows: Iterable[tuple[Any, ...]], how: _How) -> _Call:
        # Refuses before anything is taken.
        plan(1, limits=_NO_LIMITS, tasks=how.tasks, chunksize=how.chunksize, schedule=how.schedule)
        if how.cost is not None and how.schedule != STATIC:
            raise OptionError(
                f"cost packs static slices, and schedule is {how.schedule!r}: give one of them", option="cost"
            )
        if self._options.ranks > 1 and how.schedule != STATIC:
            raise OptionError(
                f"the ranks of a task share its slice: schedule={how.schedule!r} is not for them", option="schedule"
            )
        given = {"throttle": how.throttle, "name": how.name}
        options = self._options.changed(**{key: value for key, value in given.items() if value is not None})
        return _Call(fn, rows, options=options, how=how)

    # From a call to a run.

    def _submit(self, call: _Call) -> FutureArray[Any]:
        self._ours.check_open()
        backend = self._backend()
        token = secrets.token_hex(_TOKEN_LENGTH // 2)
        folder = self._make_folder(call, token)
        run: Run | None = None
        try:
            run = self._write(call, backend, folder, token)
            with self._ours.submission(run):
                Submission(run).submit()
        except BaseException as error:
            # Where nothing can have been submitted nothing is lost, and nothing is to be left behind.
            doubtful = getattr(error, "ambiguous", False) or not isinstance(error, Exception)  # Ctrl-C at sbatch, too
            if run is None or not (run.tasks.jobs or doubtful):
                shutil.rmtree(folder.path, ignore_errors=True)
            raise
        WATCHER.watch(run)
        array: FutureArray[Any] = FutureArray(run)
        if self._cluster == "inline":
            array.wait()  # what is held for a retry runs during the call, too
        return array

    def _backend(self) -> Backend:
        clusters = self._options.slurm.get("clusters")
        return backend_of(self._cluster, clusters if isinstance(clusters, str) else None)

    def _folder_of(self, call: _Call, token: str) -> RunFolder:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        folder = RunFolder(self._folder.resolve() / f"{stamp}-{job_name(call.name, token)}")
        folder.salt = salt_of(token)
        return folder

    def _make_folder(self, call: _Call, token: str) -> RunFolder:
        self._folder.mkdir(parents=True, exist_ok=True)
        folder = self._folder_of(call, token)
        make_folder(folder.path)
        for part in FOLDERS:
            make_folder(folder.path / part)
        return folder

    def _write(self, call: _Call, backend: Backend, folder: RunFolder, token: str) -> Run:
        """Write all that the tasks read: the manifest last, since with it the folder is a run."""
        with travelling(call.options.by_value):
            shared = write_function(folder, pickle_function(call.function))
            count = write_items(folder, call.rows, pickle_arguments)
        manifest = self._manifest(call, token, count)._replace(shared=shared)
        first = Round.make(folder, 0, self._plan(call, backend, manifest))
        manifest.write(folder)
        return Run(folder, manifest, backend, [first])

    def _manifest(self, call: _Call, token: str, items: int) -> Manifest:
        clusters = self._options.slurm.get("clusters")
        return Manifest(
            run=token,
            name=call.name,
            function=f"{getattr(call.function, '__module__', '?')}.{name_of(call.function)}",
            items=items,
            single=call.single,
            backend=self._cluster,
            clusters=clusters if isinstance(clusters, str) else None,
            cwd=str(Path.cwd()),
            sys_path=_search_path(call.options),
            python=python_version(),
            cloudpickle=cloudpickle.__version__,
            client=platform.node(),
            created=time.time(),
            seed=call.options.seed or 0,
        )

    def _plan(self, call: _Call, backend: Backend, manifest: Manifest, *, stacklevel: int = 5) -> RoundPlan:
        limits = backend.limits()
        shape = call.options.shape(single_item=call.single, available=limits.cpus)
        # Fewer tasks are enough on one machine, but not where a task has a time limit for all of its items.
        timed = call.how.schedule == STATIC and "time" in call.options.slurm
        planned = plan(
            manifest.items,
            limits=dataclasses.replace(limits, cpus=None) if timed else limits,
            tasks=call.how.tasks,
            chunksize=call.how.chunksize,
            processes=shape.processes,
            schedule=call.how.schedule,
            throttle=call.options.throttle,
        )
        if planned.notice:
            warnings.warn(planned.notice, LongSlices, stacklevel=stacklevel)
        items = None
        if call.costs is not None:
            costs = call.costs.of(manifest.items)
            slices, items = pack(costs, planned.slices.tasks, longest_first=shape.processes > 1)
            planned = dataclasses.replace(planned, slices=slices)
        ranks = ranks_plan(call.options, backend, shape)
        return make_plan(planned, call.options, manifest, 0, shape, items=items, ranks=ranks)

    # The end.

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Take no more calls.

        Args:
            wait: return only when everything that was submitted has settled.
            cancel_futures: cancel what has not started; a task that has started
                goes on to the end of its slice (`FutureArray.cancel` ends that, too).

        Raises:
            SchedulerError: the scheduler could not be told of a cancel; all
                others were, and were waited for.
        """
        errors = []
        for run in self._ours.close() if cancel_futures else ():
            try:
                run.cancel(range(run.manifest.items), only_queued=True)
            except SchedulerError as error:
                errors.append(error)
        if wait:
            for run in self._ours.close():
                FutureArray(run).wait()
        if errors:
            raise errors[0]


def _on_named_clusters(options: Options) -> Options:
    """Take over which cluster the environment names: that of whoever attaches to a run may name another, or none."""
    named = os.environ.get("SLURM_CLUSTERS") or os.environ.get("SBATCH_CLUSTERS")
    return options.changed(clusters=named) if named and "clusters" not in options.slurm else options


class LongSlices(UserWarning):
    """The slices are longer than one item per process, since the tasks would be too many."""


class _How(NamedTuple):
    """What a call says of how its items are cut, beside the executor's options; see `Executor.map_array`."""

    tasks: int | None = None
    chunksize: int | None = None
    throttle: int | None = None
    schedule: str = STATIC
    cost: Cost | None = None
    name: str | None = None


class _Call:
    """What is to be run: a function, its items, and how."""

    def __init__(
        self,
        function: Callable[..., Any],
        rows: Iterable[tuple[Any, ...]],
        *,
        options: Options,
        single: bool = False,
        how: _How | None = None,
    ) -> None:
        if not callable(function):
            raise TypeError(f"{function!r} is not callable: give a function, and its arguments after it")
        self.function, self.options, self.single, self.how = function, options, single, how or _How()
        self.costs = None if self.how.cost is None else Costs(self.how.cost)
        self.rows = rows if self.costs is None else self.costs.watching(rows)

    @property
    def name(self) -> str:
        """What the run is called."""
        return self.options.name or name_of(self.function).rpartition(".")[2].strip("<>")


class _Submitted:
    """The runs of an executor and of those made from it, and whether they take more."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open = True
        self._under_way = 0
        self._runs: list[Run] = []

    def check_open(self) -> None:
        with self._changed:
            if not self._open:
                raise RuntimeError("cannot schedule new futures after shutdown")

    @contextlib.contextmanager
    def submission(self, run: Run) -> Iterator[None]:
        """Submit a run: it is kept if that succeeds, and until then a shutdown waits.

        Raises:
            RuntimeError: the executor was shut down meanwhile.
        """
        with self._changed:
            self.check_open()
            self._under_way += 1
        try:
            yield
            self.add(run)
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def add(self, run: Run) -> None:
        """Keep a run, until it is over: a shutdown waits for it."""
        with self._changed:
            self._runs = [each for each in self._runs if not each.over]
            self._runs.append(run)
            run.kept_by = self

    def close(self) -> list[Run]:
        """Take no more; return those that are not settled."""
        with self._changed:
            self._open = False
            self._changed.wait_for(lambda: not self._under_way)
            return [run for run in self._runs if not run.over]


def _search_path(options: Options) -> list[str]:
    entries = [str(Path(entry).absolute()) for entry in sys.path]
    # What is installed here is not what is installed in an image, even where it is seen there.
    return entries if options.container is None else own_folders(entries)


def _zip_equal(iterables: tuple[Iterable[Any], ...]) -> Iterator[tuple[Any, ...]]:
    """Zip iterables that must be equally long (`zip` with *strict* raises the same, but says it of its arguments)."""
    try:
        yield from zip(*iterables, strict=True)
    except ValueError as error:
        unequal = _UNEQUAL.match(str(error))
        if unequal is None:
            raise
        short = unequal["number"] if unequal["how"] == "shorter" else 1
        message = f"the iterables are not equally long: number {short} is shorter than another"
        raise ValueError(message) from None


_UNEQUAL = re.compile(r"zip\(\) argument (?P<number>\d+) is (?P<how>shorter|longer) than argument")


def _results_of(array: FutureArray[T], deadline: float | None) -> Iterator[T]:
    """Yield results in order; when it is closed, cancel what is left."""
    finished = False
    try:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        yield from array.iter_results(left)
        finished = True
    finally:
        if not finished:
            array.cancel()
