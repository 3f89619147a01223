"""`doctor`: checks this machine, the storage, Slurm and a node, and says for each what was found and what to do.

`slurmlaunch.doctor` and ``slurmlaunch doctor`` call it. The checks themselves are in the files beside it.
"""

from __future__ import annotations

import contextlib
import secrets
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from slurmlaunch.client.configuration import options_of, path_of, settings_for
from slurmlaunch.client.doctor import job
from slurmlaunch.client.doctor.behaviours import BEHAVIOURS, choose
from slurmlaunch.client.doctor.findings import ERROR, OK, SKIPPED, WARNING, Check, error, skipped
from slurmlaunch.client.doctor.full import LONGEST, Site, check_behaviours
from slurmlaunch.client.doctor.here import check_folder, check_python
from slurmlaunch.client.doctor.job import Waiting, check_job
from slurmlaunch.client.doctor.on_node import look_around
from slurmlaunch.client.doctor.page import page_of
from slurmlaunch.client.doctor.scheduler import check_request, check_slurm
from slurmlaunch.client.executor import Executor
from slurmlaunch.client.watcher import current_client
from slurmlaunch.errors import RunFolderError
from slurmlaunch.runfolder import runs_folder
from slurmlaunch.runfolder.files import Location

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Iterable

    from slurmlaunch.client.doctor.full import Behaviour

__all__ = ["Check", "Report", "doctor"]

_MARKS = {OK: "ok", WARNING: "warning", ERROR: "ERROR", SKIPPED: "skipped"}
_TIME = "5"  # minutes
_ONE_PROCESS = {"ntasks": False, "ntasks_per_node": False, "nodes": False, "retries": 0}
"""The options of the job, since the check of the storage is made by one process."""
_WIDTH = 100


@dataclass(frozen=True)
class Report:
    """What `doctor` found; ``str()`` is for a terminal or a ticket.

    Attributes:
        checks: what each check found, in the order in which they were made.
        waiting: why the job had not started in time, in words; None if it had, or was not submitted.
    """

    checks: tuple[Check, ...]
    waiting: str | None = None

    @property
    def errors(self) -> tuple[Check, ...]:
        """The checks that found something that lets runs fail."""
        return tuple(each for each in self.checks if each.level == ERROR)

    @property
    def warnings(self) -> tuple[Check, ...]:
        """The checks that found something that does not stop runs."""
        return tuple(each for each in self.checks if each.level == WARNING)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a dict of numbers, strings, lists and dicts, ready for JSON."""
        return {"checks": [asdict(each) for each in self.checks], "waiting": self.waiting}

    def page(self) -> str:
        """Return the report in Markdown, with versions and measurements, for a bug report."""
        return page_of(self.checks, self.waiting)

    def __str__(self) -> str:
        lines = [line_of(each) for each in self.checks]
        if self.waiting is not None:
            lines.append(self.waiting)
        return "\n".join([*lines, self.summary()])

    def summary(self) -> str:
        """Return the number of errors and warnings in words."""
        counts = {"error": len(self.errors), "warning": len(self.warnings)}
        return ", ".join(f"{count} {word}{'' if count == 1 else 's'}" for word, count in counts.items())


def line_of(check: Check) -> str:
    """Return a check as a line, or as several."""
    indent = " " * 26
    words = [
        wrapped
        for line in (*check.found.splitlines(), *([f"→ {check.advice}"] if check.advice else []))
        for wrapped in textwrap.wrap(line, _WIDTH - len(indent), break_long_words=False, break_on_hyphens=False)
    ]
    return f"{_MARKS[check.level]:<8}  {check.name:<14}  " + f"\n{indent}".join(words)


def doctor(
    folder: str | os.PathLike[str] | None = None,
    *,
    dry: bool = False,
    wait: bool = False,
    full: bool | Collection[str] = False,
    imports: Iterable[str] = (),
    on_check: Callable[[Check], object] | None = None,
    **options: Any,
) -> Report:
    """Check the folder for run folders, Slurm, and a node by one small job.

    Args:
        folder: as for `Executor`.
        dry: submit no job.
        wait: wait for the job for as long as it takes; otherwise it is cancelled if it has not started after 60 s.
        full: also try what the documentation promises, by about 20 more small jobs, which takes some minutes; or the
            names of the behaviours to try. `Report.page` is for a bug report then.
        imports: modules that must be importable on the node.
        on_check: called with each check when it was made.
        options: those of `Executor`, ``cluster`` and ``profile`` included; the job has a time limit of 5 minutes
            unless they give one.

    Returns:
        The report; what is wrong is in it, and raises no error.

    Raises:
        OptionError, UnknownOption: as for `Executor`.
        LookupError: there is no behaviour of a name in *full*.
    """
    behaviours = choose(BEHAVIOURS if full is True else full or ())
    given = {"folder": folder or None, **options}
    profile = given.pop("profile", None)
    settings = settings_for(profile, given).used
    chosen, cluster = options_of(settings), settings["cluster"].value
    checks = _Checks(on_check)
    checks.add([check_python()])
    place = _make_place(path_of(settings["folder"].value), checks)
    try:
        if place is not None:
            checks.add(check_folder(place))
        if cluster == "slurm":
            checks.add(check_slurm(chosen))
        if place is None:
            return checks.report()
        given.update(_ONE_PROCESS, folder=Path(place), cluster=cluster, time=chosen.slurm.get("time", _TIME))
        _try_job(Executor(profile=profile, **given), place, checks, _How(dry, wait, tuple(imports)))
        if behaviours:
            clusters = chosen.slurm.get("clusters")
            backend = current_client().backend(cluster, str(clusters) if clusters else None)
            site = Site(place, profile, given, backend)
            _try_behaviours(site, behaviours, checks, longest=None if wait else LONGEST)
        return checks.report()
    finally:
        if place is not None and not checks.keep:
            current_client().watcher.stop_watching(Path(place))
            place.remove()


class _How(NamedTuple):
    dry: bool
    wait: bool
    imports: tuple[str, ...]


class _Checks:
    """The checks that were made, in order."""

    def __init__(self, on_check: Callable[[Check], object] | None) -> None:
        self._on_check = on_check
        self._made: list[Check] = []
        self.keep = False  # the folder, with the runs of a behaviour that is not as promised
        self.waiting: str | None = None

    def add(self, found: Iterable[Check | Waiting]) -> None:
        """Add checks one by one, as they are made."""
        for check in found:
            if isinstance(check, Waiting):
                self.waiting = self._in_words(check)
                continue
            self._made.append(check)
            self.keep = self.keep or (check.level == ERROR and "promise" in check.data)
            if self._on_check is not None:
                self._on_check(check)

    def _in_words(self, waiting: Waiting) -> str:
        estimate = next((each.data["start"] for each in self._made if each.name == "request"), None)
        expected = f" At its submission Slurm expected it to start at {estimate}." if estimate else ""
        which = f"Job {waiting.job_id}" if waiting.job_id else "The job"
        return (
            f"{which} has not started after {job.START_WITHIN:.0f} s and was cancelled: {waiting.reason}."
            f"{expected} The doctor waits for it with --wait (wait=True)."
        )

    @property
    def job_ran(self) -> bool:
        """Whether the job was submitted, and ran."""
        return any(each.name == "job" and each.level == OK for each in self._made)

    @property
    def room(self) -> int | None:
        """How many more tasks the user may have in the queue, by the check of the limits; None is no limit."""
        limits = next((each.data for each in self._made if each.name == "limits"), {})
        return None if limits.get("submit") is None else limits["submit"] - limits["queued"]

    def has_error(self, *names: str) -> bool:
        """Whether one of these checks found an error."""
        return any(each.level == ERROR and each.name in names for each in self._made)

    def report(self) -> Report:
        """Return the report."""
        return Report(tuple(self._made), self.waiting)


def _make_place(folder: Path, checks: _Checks) -> Location | None:
    """Make an empty folder for the checks below that of the run folders; None if it cannot, and a check says why."""
    try:
        place = Location(runs_folder.make_private(folder) / f"doctor-{secrets.token_hex(8)}")
        place.mkdir()
    except (OSError, RunFolderError) as failure:
        why = getattr(failure, "strerror", None) or failure
        checks.add([error("folder", f"{folder} cannot be used: {why}", "Give another with --folder=...")])
        return None
    return place


def _try_job(executor: Executor, place: Location, checks: _Checks, how: _How) -> None:
    slurm = executor.cluster == "slurm"
    if slurm and not checks.has_error("programs", "slurm"):
        checks.add([check_request(executor.script(look_around))])
    if how.dry or executor.cluster == "inline":
        checks.add([skipped("job", "no job was submitted" if how.dry else "cluster='inline' has no tasks of its own")])
    elif checks.has_error("programs", "slurm", "space", "request"):
        checks.add([skipped("job", "no job was submitted, because of the errors above")])
    else:
        checks.add(check_job(executor, place, how.imports, wait=how.wait))


def _try_behaviours(site: Site, behaviours: list[Behaviour], checks: _Checks, *, longest: float | None) -> None:
    if not checks.job_ran:
        checks.add(each.skipped("not tried, because the job above did not run") for each in behaviours)
        return
    with contextlib.closing(check_behaviours(site, behaviours, room=checks.room, longest=longest)) as made:
        checks.add(made)
