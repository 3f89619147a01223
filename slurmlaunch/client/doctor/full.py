"""``doctor(full=True)``: every behaviour of the table on the user's own cluster, side by side, and what it took.

`report` calls `check_behaviours`; `behaviours` has the table. Each behaviour makes its runs in a folder of its own.
Whatever happens, all runs are cancelled and their jobs have left the queue when the last check has been made; only the
folders of behaviours that failed are kept.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import cloudpickle

from slurmlaunch.backends.base import TaskState
from slurmlaunch.client.attach import manifests_in
from slurmlaunch.client.doctor import items
from slurmlaunch.client.doctor.findings import ERROR, OK, SKIPPED, Check, ok
from slurmlaunch.client.executor import Executor
from slurmlaunch.client.futures import open_run, read_run
from slurmlaunch.client.watcher import current_client
from slurmlaunch.errors import RunFolderError, SchedulerError, SlurmlaunchError, SubmissionError
from slurmlaunch.runfolder.runs_folder import others_may_exchange

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping

    from slurmlaunch.backends.base import Backend
    from slurmlaunch.client.futures import FutureArray
    from slurmlaunch.runfolder.files import Location

T = TypeVar("T")

LONGEST = 600.0
"""Seconds after which behaviours that have not ended are stopped, unless the user waits."""

_SIDE_BY_SIDE = 10
"""Behaviours at once; together they have at most 16 tasks in the queue."""

_TASKS_EACH = 3
_STOP_EVERY = 1.0
_LEAVES_WITHIN = 120.0
"""Seconds for which cancelled jobs may stay in the queue."""

_LOG_LINES = 20
_ISSUES = "https://github.com/slurmlaunch/slurmlaunch/issues"

_log = logging.getLogger("slurmlaunch")


class NotAvailable(Exception):
    """A behaviour cannot be tried here; the text says why."""


class Broken(Exception):
    """A behaviour is not as promised; the text says what was seen."""


class Behaviour(NamedTuple):
    """One promise of the documentation, and the function that tries it and returns what it saw.

    The function raises `Broken` or any other exception if the promise is not kept, and `NotAvailable` if it cannot try.
    """

    name: str
    promise: str
    check: Callable[[Trial], str]

    def skipped(self, why: str, advice: str = "", seconds: float = 0.0) -> Check:
        """Return the check of a behaviour that was not tried, or was stopped."""
        return Check(self.name, SKIPPED, why, advice, {"promise": self.promise, "seconds": seconds})


def expect(kept: object, seen: object) -> None:
    """Raise `Broken` with what was seen, unless the promise was kept."""
    if not kept:
        raise Broken(str(seen))


class Site:
    """The place where all behaviours are tried, and the runs that several of them look at.

    Attributes:
        folder: holds a folder for each behaviour.
        backend: the backend of all runs.
        measured: figures by name, most of them in seconds.
        node: the versions on the node, once they are known.
    """

    def __init__(self, folder: Location, profile: str | None, options: Mapping[str, Any], backend: Backend) -> None:
        """Begin with an empty folder; *profile* and *options* are those of an `Executor`."""
        self.folder, self.backend = Path(folder), backend
        self.measured: dict[str, float] = {}
        self.node: dict[str, str] = {}
        self._place, self._profile = folder, profile
        self._options = {name: value for name, value in options.items() if name != "folder"}
        self._shared: dict[str, concurrent.futures.Future[Any]] = {}
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._scripts = ""  # a folder of this machine, once there is a script
        self._lock = threading.Lock()
        self.stopped = False

    def executor(self, name: str, **changes: Any) -> Executor:
        """Return an executor whose runs lie in the folder of that name; its tasks have one CPU."""
        if self.stopped:
            raise NotAvailable("stopped")
        shape = {"cpus_per_task": 1, "processes": 1, "threads": 1}
        options = {**self._options, **shape, "folder": self.folder / name, **changes}
        return Executor(profile=self._profile, **options)

    def files(self, name: str) -> Location:
        """Return a new folder for the files of a behaviour."""
        made = self._place / f"{name}-files"
        made.mkdir()
        return made

    def shared(self, name: str, make: Callable[[], T]) -> T:
        """Return what *make* returns, or raise what it raises; it is called once, whoever asks first."""
        with self._lock:
            first = name not in self._shared
            future = self._shared.setdefault(name, concurrent.futures.Future())
        if first:
            try:
                future.set_result(make())
            except BaseException as error:  # noqa: BLE001  (raised by result(), in this thread too)
                future.set_exception(error)
        result: T = future.result()
        return result

    def script(self, name: str, text: str, words: object, environment: Mapping[str, str], umask: int) -> str:
        """Run a Python script to its end in the folder of that name, and return what it printed.

        Its executor and *words* are pickled on its standard input. A second call runs the file of the first, which is
        on this machine: a folder of runs may be one that another user can exchange.

        Raises:
            Broken: it failed.
        """
        with self._lock:
            self._scripts = self._scripts or tempfile.mkdtemp(prefix="slurmlaunch-doctor-")
        folder, path = self.folder / name, Path(self._scripts) / f"{name}.py"
        if others_may_exchange(path.parent):
            raise NotAvailable(f"another user may exchange {path.parent}, from which a script would run")
        with contextlib.suppress(FileExistsError):
            (self._place / name).mkdir()
        with contextlib.suppress(FileExistsError), path.open("x", encoding="utf-8") as file:
            file.write(text)
        executor = (str(folder), self._profile, self._options)
        with self._lock:
            if self.stopped:
                raise NotAvailable("stopped")
            process = subprocess.Popen(
                [sys.executable, str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=folder,
                env={**os.environ, **environment},
                umask=umask,
                start_new_session=True,  # a Ctrl-C is for the doctor, which stops it
            )
            self._processes.add(process)
        with process:
            out, err = process.communicate(cloudpickle.dumps((executor, words)))
        expect(process.returncode == 0, f"a script ended with {process.returncode}: {err.decode(errors='replace')}")
        return out.decode().strip()

    def cancel(self, name: str) -> None:
        """Cancel the open runs of a folder."""
        with contextlib.suppress(SlurmlaunchError, OSError):
            for array in self._runs(name):
                if not array.done():
                    with contextlib.suppress(SchedulerError):
                        array.cancel()

    def stop(self) -> None:
        """Have all behaviours end: their scripts are killed, their runs cancelled; and no other script starts."""
        with self._lock:
            self.stopped = True
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        for name in self._names():
            self.cancel(name)

    def why_pending(self, name: str) -> str | None:
        """Ask Slurm why items of the folder's runs are pending; return None if none is, or if a task runs."""
        with contextlib.suppress(SlurmlaunchError, OSError):
            for path, _ in manifests_in(self.folder / name):
                status = read_run(path).status()
                states = {name for name, number in status.tasks.items() if number}
                if status.counts["pending"] and TaskState.PENDING in states and TaskState.RUNNING not in states:
                    return next(iter(status.reasons), "Slurm has not said why")
        return None

    def log(self, name: str) -> str:
        """Return the last lines of the logs of a folder's runs."""
        lines = [line for array in self._runs(name) for line in array.logs().splitlines()]
        return "\n".join(lines[-_LOG_LINES:])

    def nodes(self, name: str) -> set[str]:
        """Return the machines on which items of a folder's runs were."""
        return {node for array in self._runs(name) for future in array if (node := future.node)}

    def left_in_queue(self, job_ids: Iterable[str]) -> set[str]:
        """Wait until jobs have left the queue; return those that are there after a time for which Slurm may need them.

        Raises:
            SchedulerError: Slurm does not answer.
        """
        ids, until, pause = set(job_ids), time.monotonic() + _LEAVES_WITHIN, 0.5
        while (left := self.backend.listed(ids)) and time.monotonic() < until:
            time.sleep(pause)
            pause *= 1.5
        return left

    def clear(self, kept: Iterable[Path]) -> None:
        """Wait until all jobs have left the queue, and remove all folders but those that are kept."""
        left = {job_id for name in self._names() for array in self._runs(name) for job_id in array.job_ids}
        with contextlib.suppress(SchedulerError):
            left = self.left_in_queue(left)
        if left:
            _log.warning("slurmlaunch has not seen these jobs leave the queue: scancel %s", " ".join(sorted(left)))
        current_client().watcher.stop_watching(self.folder)
        names = {path.name for path in kept}
        for name in self._names():
            if name not in names:
                (self._place / name).remove()
        if self._scripts:
            shutil.rmtree(self._scripts, ignore_errors=True)

    def _names(self) -> list[str]:
        with contextlib.suppress(OSError, RunFolderError):
            return self._place.names()
        return []

    def _runs(self, name: str) -> Iterator[FutureArray[Any]]:
        for path, _ in manifests_in(self.folder / name):
            with contextlib.suppress(OSError, RunFolderError):
                yield open_run(path)


class Trial:
    """One behaviour on a site.

    Attributes:
        site: the site.
        folder: the folder with the runs that it looks at.
    """

    def __init__(self, site: Site, behaviour: Behaviour) -> None:
        self.site, self.folder = site, site.folder / behaviour.name
        self._behaviour, self._began = behaviour, False

    def executor(self, **changes: Any) -> Executor:
        """Return an executor for runs of this behaviour, with some options changed."""
        return self.site.executor(self._behaviour.name, **changes)

    def files(self) -> Location:
        """Return a new folder for files by which client and items tell each other how far they are."""
        return self.site.files(self._behaviour.name)

    def shares(self, name: str, make: Callable[[], T]) -> T:
        """Return a run that several behaviours look at, and made in the folder of that name."""
        self.folder = self.site.folder / name
        return self.site.shared(name, make)

    def run(self) -> Check:
        """Try the behaviour, and return what came of it."""
        began, self._began = time.monotonic(), True
        try:
            check = self._check(OK, self._behaviour.check(self))
        except (Exception, concurrent.futures.CancelledError) as error:  # noqa: BLE001  (whatever it is, it was seen)
            check = self._failed_with(error)
        if self.site.stopped:
            check = self._behaviour.skipped("stopped before it had ended")
        self.site.cancel(self._behaviour.name)
        check.data["seconds"] = round(time.monotonic() - began, 1)
        return check

    def _failed_with(self, error: BaseException) -> Check:
        if isinstance(error, NotAvailable) or (isinstance(error, SubmissionError) and error.no_room):
            return self._behaviour.skipped(f"not available: {error}")
        return self._failed(str(error) if isinstance(error, Broken) else f"{type(error).__name__}: {error}")

    def late(self, seconds: float) -> Check:
        """Return what is known of a behaviour that has not ended in so many seconds."""
        why = f"not tried within {seconds:.0f} s, as others had not ended" if not self._began else None
        if why is None and (pending := self.site.why_pending(self.folder.name)):
            why = f"not done after {seconds:.0f} s, and a task is pending: {pending}"
        if why is not None:
            return self._behaviour.skipped(
                f"not available: {why}", "Give it more time with --wait (wait=True).", seconds
            )
        check = self._failed(f"it was not done after {seconds:.0f} s")
        check.data["seconds"] = seconds
        return check

    def _failed(self, seen: str) -> Check:
        log, nodes = "", set()
        with contextlib.suppress(SlurmlaunchError, OSError):
            log, nodes = self.site.log(self.folder.name), self.site.nodes(self.folder.name)
        found = f"promised: {self._behaviour.promise}\nseen: {seen}\nkept: {self.folder}"
        advice = f"Attach the page to a report at {_ISSUES}."
        return self._check(ERROR, found, advice, seen=seen, log=log, nodes=sorted(nodes), folder=str(self.folder))

    def _check(self, level: str, found: str, advice: str = "", **data: Any) -> Check:
        return Check(self._behaviour.name, level, found, advice, {"promise": self._behaviour.promise, **data})


def check_behaviours(
    site: Site, chosen: Iterable[Behaviour], *, room: int | None, longest: float | None
) -> Generator[Check]:
    """Try behaviours, and yield what came of each, and then the versions and the measurements.

    Args:
        site: where.
        chosen: the behaviours; those that take long should come first.
        room: how many tasks the user may have in the queue; None is no limit.
        longest: seconds after which those that have not ended are stopped.
    """
    calls = dict(getattr(site.backend, "calls", {}))
    began, kept = time.monotonic(), []
    threads = _SIDE_BY_SIDE if room is None else min(_SIDE_BY_SIDE, max(1, room // _TASKS_EACH))
    try:
        with concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="slurmlaunch-doctor") as pool:
            trials: dict[concurrent.futures.Future[Check], Trial] = {}
            try:
                for trial in (Trial(site, each) for each in chosen):
                    trials[pool.submit(trial.run)] = trial
                for check in _as_they_end(trials, longest):
                    if check.level == ERROR:
                        kept.append(Path(check.data["folder"]))
                    yield check
            finally:
                _stop(site, trials)
    finally:
        site.clear(kept)
    here = items.system(str(site.folder))
    yield ok("system", f"{here['operating system']}, {here['file system']}", here=here, node=site.node)
    now = getattr(site.backend, "calls", {})
    called = {name: count - calls.get(name, 0) for name, count in now.items()}
    measured = {name: round(value, 3) for name, value in site.measured.items()}
    measured["seconds"] = round(time.monotonic() - began, 1)
    shown = [f"{name} {value:g}" for name, value in measured.items()]
    shown += [f"{name} {count}×" for name, count in called.items()]
    yield ok("measurements", ", ".join(shown), **measured, calls=called)


def _stop(site: Site, trials: Iterable[concurrent.futures.Future[Check]]) -> None:
    """Return when no trial runs any more."""
    left = {future for future in trials if not future.cancel()}
    while left:  # a thread may submit a run while the others are cancelled
        site.stop()
        left = concurrent.futures.wait(left, _STOP_EVERY).not_done


def _as_they_end(trials: Mapping[concurrent.futures.Future[Check], Trial], longest: float | None) -> Iterator[Check]:
    left = dict(trials)
    try:
        for done in concurrent.futures.as_completed(trials, longest):
            del left[done]
            yield done.result()
    except TimeoutError:
        for future, trial in left.items():
            yield future.result() if future.done() else trial.late(longest or 0.0)
