"""The doctor's job: one item on a node, and what its findings mean beside those of this machine.

`report` calls `check_job`. The item is `slurmlaunch.client.doctor.on_node.look_around`, submitted by an ordinary
`Executor`, so that the job fails as the user's would.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import platform
import secrets
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from slurmlaunch import caps
from slurmlaunch.client.doctor import on_node
from slurmlaunch.client.doctor.findings import error, ok, skipped, warning
from slurmlaunch.client.doctor.here import version_of
from slurmlaunch.errors import SlurmlaunchError, SubmissionError
from slurmlaunch.runfolder.files import create

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slurmlaunch.client.doctor.findings import Check
    from slurmlaunch.client.executor import Executor
    from slurmlaunch.client.futures import Future
    from slurmlaunch.runfolder.files import Location

START_WITHIN = 60.0
"""Seconds within which the job should start."""

_STEP = 0.01
_SLOW_STORAGE = 5.0
_CLOCK = 5.0
_SHOWN = 5
_LOG_LINES = 5


class Waiting(NamedTuple):
    """A job that has not started in time, and was cancelled."""

    job_id: str
    reason: str


class _Watched(NamedTuple):
    """What the client saw of the job, in seconds since the epoch."""

    submitted: float
    accepted: float
    ended: float
    round_trip: float | None  # seconds from the client's file to the node's answer


def check_job(
    executor: Executor, folder: Location, imports: tuple[str, ...], *, wait: bool
) -> Iterator[Check | Waiting]:
    """Submit the job and yield what it found; or, last, a `Waiting`.

    Args:
        executor: submits it.
        folder: an empty folder below that of the run folders.
        imports: modules that must be importable on the node.
        wait: whether to wait for a job that does not start in time.
    """
    secret = secrets.token_hex(8)
    files = on_node.Files(folder, secret)
    create(files[on_node.TAKEN], b"")
    create(files[on_node.APPENDED], b"client\n")
    here, submitted = on_node.packages(), time.time()
    try:
        arguments = (str(folder), secret, imports, caps.VARIABLES, caps.OURS)
        future = executor.submit(on_node.look_around, *arguments)
    except SubmissionError as refusal:
        yield error("job", str(refusal))
        return
    accepted = time.time()
    try:
        round_trip = _exchange(future, files, None if wait else START_WITHIN)
    except KeyboardInterrupt:
        future.run.cancel()
        raise
    except TimeoutError:
        reason = future.reason or "Slurm has not said why"
        future.run.cancel()
        yield Waiting(future.job_id or "", reason)
        return
    try:
        seen = future.result()
    except (Exception, concurrent.futures.CancelledError) as failure:  # noqa: BLE001  (whatever it is, it is the finding)
        yield _failed(future, failure)
        return
    watched = _Watched(submitted, accepted, time.time(), round_trip)
    yield ok("job", f"{future.job_id} ran on {seen['host']}", job_id=future.job_id, host=seen["host"])
    yield _check_storage(files, seen, watched)
    yield _check_python(seen)
    yield _check_packages(seen, here, imports)
    yield _check_clock(seen, watched)
    yield _check_commands(seen, executor.cluster)
    yield _check_cpus(seen, executor)
    yield _check_threads(seen)
    yield _timing(seen, watched)


def _exchange(future: Future[Any], files: on_node.Files, within: float | None) -> float | None:
    """Wait for the task's file, make ours, and return the seconds until its answer is seen.

    Returns:
        None if the task has ended without it.

    Raises:
        TimeoutError: the task has not started in time.
    """
    until = None if within is None else time.monotonic() + within
    while files.names().isdisjoint({on_node.STARTED, on_node.RENAMED}):  # the task renames its first file
        if future.done():
            return None
        if until is not None and time.monotonic() > until and future.state.is_queued:
            raise TimeoutError
        time.sleep(_STEP)
    began = time.monotonic()
    create(files[on_node.PING], b"")
    while on_node.PONG not in files.names():
        if future.done():
            return None
        time.sleep(_STEP)
    return time.monotonic() - began


def _failed(future: Future[Any], failure: BaseException) -> Check:
    log = ""
    try:
        log = "\n".join(future.stderr().rstrip().splitlines()[-_LOG_LINES:])
    except (SlurmlaunchError, OSError):  # there is none
        log = ""
    found = "\n".join(filter(None, (f"it failed: {failure}", log)))
    advice = "See the log for what the node lacks: the folder, the Python (--python=...), a module, a line of --setup."
    return error("job", found, advice, job_id=future.job_id, error=type(failure).__name__)


def _check_storage(files: on_node.Files, seen: dict[str, Any], watched: _Watched) -> Check:
    failed = dict(seen["storage"])
    names, appended = files.names(), files[on_node.APPENDED].read()
    if appended != b"client\nnode\n":
        failed.setdefault("append", f"the file holds {appended!r}")
    for name, operation in ((on_node.LINKED, "make a hard link"), (on_node.RENAMED, "rename")):
        if name not in names:
            failed.setdefault(operation, "this machine does not see it")
    if failed:
        found = "; ".join(f"{operation}: {reason}" for operation, reason in failed.items())
        advice = "Run folders need this: give a folder on storage that nodes share: Executor(folder=...)."
        return error("storage", f"on the node and here, these fail: {found}", advice, failed=failed)
    delay = None if watched.round_trip is None else watched.round_trip / 2
    found = "hard links, O_EXCL, append and rename work on the node and here"
    found += f"; a new file is seen after {delay:.2f} s" if delay is not None else ""
    if delay is not None and delay > _SLOW_STORAGE:
        return warning(
            "storage", found, "Results arrive as late as that. Another file system may be quicker.", delay=delay
        )
    return ok("storage", found, delay=delay)


def _check_python(seen: dict[str, Any]) -> Check:
    here, there = platform.python_version(), seen["python"]["version"]
    found = f"Python {there} ({seen['python']['executable']})"
    if there != here:
        advice = "What one pickles the other may not read: name the same Python with --python=... (python=...)."
        return warning("node python", f"{found}, and {here} here", advice, **seen["python"])
    return ok("node python", found, **seen["python"])


def _check_packages(seen: dict[str, Any], here: dict[str, str], imports: tuple[str, ...]) -> Check:
    there = seen["packages"]
    missing = sorted(here.keys() - there.keys())
    other = sorted(
        f"{name} {there[name]} ({here[name]} here)" for name in here.keys() & there.keys() if here[name] != there[name]
    )
    data = {"missing": missing, "other": other, "not_importable": seen["missing"]}
    advice = "Install them for the node's Python, or name the Python of this environment with python=..."
    if seen["missing"] or there.get("slurmlaunch") != version_of("slurmlaunch"):
        lost = ", ".join(seen["missing"]) or f"slurmlaunch {version_of('slurmlaunch')}"
        return error("packages", f"the node cannot import {lost}", advice, **data)
    if missing or other:
        shown = [*missing, *other]
        more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
        return warning(
            "packages", f"missing on the node, or of another version: {', '.join(shown[:_SHOWN])}{more}", advice, **data
        )
    named = f"; it finds {', '.join(imports)}" if imports else ""
    return ok("packages", f"the node has the {len(here)} packages of this machine{named}", **data)


def _check_clock(seen: dict[str, Any], watched: _Watched) -> Check:
    # The item began after the submission and ended before its result was seen, by any right clock.
    early, late = watched.submitted - seen["began"], seen["ended"] - watched.ended
    wrong = max(early, late)
    if wrong > _CLOCK:
        found = f"the node's clock is {'behind' if early > late else 'ahead'} by {wrong:.0f} s or more"
        advice = (
            "Tell your site. slurmlaunch does not need equal clocks, but make and other tools that compare times do."
        )
        return warning("clock", found, advice, difference=wrong)
    window = watched.ended - watched.submitted
    return ok("clock", f"the clocks of node and client differ by less than {max(window, _CLOCK):.0f} s", difference=0.0)


def _check_commands(seen: dict[str, Any], cluster: str) -> Check:
    failed = {name: complaint for name, complaint in seen["slurm"].items() if complaint}
    if cluster != "slurm":
        return skipped("node commands", f"tasks of cluster={cluster!r} call none of Slurm's commands")
    if not failed:
        return ok("node commands", f"{', '.join(seen['slurm'])} work on the node", failed={})
    found = "; ".join(f"{name}: {complaint}" for name, complaint in failed.items())
    uses = {
        "scontrol": "tasks that reach their time limit are not requeued",
        "srun": "ranks (ntasks=) need launcher=...",
        "sbatch": "tasks cannot submit runs of their own",
        "scancel": "tasks cannot cancel jobs",
    }
    advice = "; ".join(uses[name] for name in failed)
    return warning(
        "node commands", f"on the node these fail: {found}", advice[0].upper() + advice[1:] + ".", failed=failed
    )


def _check_cpus(seen: dict[str, Any], executor: Executor) -> Check:
    cpus = executor.shape(single_item=True).cpus_per_task
    memory = seen["memory"]
    found = f"a task with cpus_per_task={cpus} may run on {seen['cpus']} of the node's"
    found += "" if seen["cpus"] == cpus else " (Slurm does not bind it: thread variables alone limit it)"
    found += (
        f"; its control group limits memory to {memory / (1 << 30):.1f} GiB"
        if memory
        else "; no control group limits its memory"
    )
    data = {"cpus": seen["cpus"], "asked": cpus, "memory": memory}
    if seen["cpus"] < cpus:
        return warning("cpus", found, "Check --cpus-per-task, and the threads per core of the nodes.", **data)
    return ok("cpus", found, **data)


def _check_threads(seen: dict[str, Any]) -> Check:
    foreign = {name: value for name, value in seen["variables"].items() if os.environ.get(name) != value}
    if foreign:
        found = (
            ", ".join(f"{name}={value}" for name, value in foreign.items())
            + " on the node, set by a prolog or a module"
        )
        names = " ".join(foreign)
        advice = f"Items keep it, whatever threads= says. Remove it with --setup='unset {names}' (setup=[...])."
        return warning("threads", found, advice, variables=foreign)
    own = {name: value for name, value in seen["variables"].items() if name not in foreign}
    shown = ", ".join(f"{name}={value}" for name, value in own.items())
    found = f"your {shown} holds on the node" if own else "no prolog or module sets thread variables; slurmlaunch does"
    return ok("threads", found, variables=own)


def _timing(seen: dict[str, Any], watched: _Watched) -> Check:
    """Return how long each stage took, as far as its beginning and its end are known."""
    starts = seen["starts"]
    moments = [
        ("submission", watched.submitted), ("queue", watched.accepted), ("prolog", starts.get("job")),
        ("batch script", starts.get("script") if "job" in starts else None),
        ("Python", starts.get("supervisor")), ("imports", starts.get("process")), ("item", seen["began"]),
        ("result", seen["ended"]), ("", watched.ended),
    ]  # fmt: skip
    known = [(name, moment) for name, moment in moments if moment is not None]
    # Slurm gives the start of a job in whole seconds.
    stages = {name: max(0.0, end - start) for (name, start), (_, end) in itertools.pairwise(known)}
    total = watched.ended - watched.submitted
    shown = ", ".join(f"{name} {seconds:.1f}" for name, seconds in stages.items())
    return ok("timing", f"{total:.1f} s from submission to result: {shown}", total=total, stages=stages)
