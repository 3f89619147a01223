"""The doctor's job: one item on a node, and what its findings mean beside those of this machine.

`report` calls `check_job`. The item is `slurmlaunch.client.doctor.on_node.look_around`, submitted by an ordinary
`Executor`, so that the job fails as the user's would.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import os
import platform
import secrets
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from slurmlaunch import caps
from slurmlaunch.client.doctor import on_node
from slurmlaunch.client.doctor.findings import WARNING, error, ok, skipped, warning
from slurmlaunch.client.doctor.here import version_of
from slurmlaunch.client.submission import leave_quietly
from slurmlaunch.errors import ItemError, RunFolderError, SlurmlaunchError, SubmissionError
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
_LOG_LINES = 10


class Waiting(NamedTuple):
    """A job that has not started in time, and was cancelled."""

    job_id: str
    reason: str


class _Watched(NamedTuple):
    """What the client saw of the job, in seconds since the epoch."""

    submitted: float
    accepted: float
    ended: float
    exchange: tuple[float, float] | None  # when the client made its file, and when it saw the node's answer


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
        future = _submit(executor, str(folder), secret, imports, caps.VARIABLES, caps.OURS)
    except SubmissionError as refusal:
        yield error("job", str(refusal))
        return
    try:
        accepted = time.time()
        exchange = _exchange(future, files, None if wait else START_WITHIN)
        seen = future.result()
    except TimeoutError:
        reason = future.reason or "Slurm has not said why"
        future.run.cancel()
        yield Waiting(future.job_id or "", reason)
        return
    except KeyboardInterrupt:
        future.run.cancel()
        raise
    except (Exception, concurrent.futures.CancelledError) as failure:  # noqa: BLE001  (whatever it is, it is the finding)
        yield _failed(future, failure)
        return
    watched = _Watched(submitted, accepted, time.time(), exchange)
    yield _ran(future, seen)
    yield _check_storage(files, seen, watched)
    yield _check_python(seen)
    yield _check_packages(seen, here)
    clock = _check_clock(files, seen, watched)
    yield clock
    yield _check_commands(seen, executor.cluster)
    yield _check_cpus(seen, executor)
    yield _check_threads(seen)
    yield _timing(seen, watched, ahead=clock.data["difference"] if clock.level == WARNING else 0.0)


def _submit(executor: Executor, *arguments: Any) -> Future[dict[str, Any]]:
    """Submit the item from another thread, which Ctrl-C does not interrupt: the job is known then, and cancelled."""
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        submission = threads.submit(executor.submit, on_node.look_around, *arguments)
        try:
            future = submission.result()
            leave_quietly(future.run.folder)
        except KeyboardInterrupt:
            submission.result().run.cancel()
            raise
    return future


def _ran(future: Future[Any], seen: dict[str, Any]) -> Check:
    found = f"{future.job_id} ran on {seen['host']}"
    if seen["host"] == platform.node():
        found += ", which is this machine: it does not show what other nodes see of the folder"
    return ok("job", found, job_id=future.job_id, host=seen["host"])


def _exchange(future: Future[Any], files: on_node.Files, within: float | None) -> tuple[float, float] | None:
    """Wait for the task's file, make ours, and return when that was and when the answer was seen.

    Returns:
        None if the task has ended without it.

    Raises:
        TimeoutError: the task has not started in time.
    """
    until = None if within is None else time.monotonic() + within
    while files.names().isdisjoint({on_node.STARTED, on_node.RENAMED}):  # the task renames its first file
        if future.done():
            return None
        if until is not None and time.monotonic() > until and not future.state.has_begun:
            raise TimeoutError
        time.sleep(_STEP)
    began = time.time()
    create(files[on_node.PING], b"")
    while on_node.PONG not in files.names():
        if future.done():
            return None
        time.sleep(_STEP)
    return began, time.time()


def _failed(future: Future[Any], failure: BaseException) -> Check:
    """Return what the error says; its log is removed with the folder."""
    log = ""
    with contextlib.suppress(SlurmlaunchError, OSError):  # there is none
        log = future.stderr().rstrip()
    end = "\n".join(log.splitlines()[-_LOG_LINES:])
    advice = "Check what the node lacks: the folder, the Python (python=...), a module, a line of setup=..."
    what = str(failure)
    if isinstance(failure, ItemError):
        what, advice = failure.what, failure.advice or advice
    where = f" on {node}" if (node := getattr(failure, "node", None)) else ""
    found = f"{future.job_id} failed{where}: {what.rstrip()}"
    found += f"\nthe end of its log:\n{end}" if end and end.splitlines()[-1] not in what else ""
    return error("job", found, advice, job_id=future.job_id, error=type(failure).__name__, log=log)


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
    delay = None if watched.exchange is None else (watched.exchange[1] - watched.exchange[0]) / 2
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
    found += "" if there == here else f", and {here} here, which read each other's pickles"  # else the job has failed
    return ok("node python", found, **seen["python"])


def _check_packages(seen: dict[str, Any], here: dict[str, str]) -> Check:
    there = seen["packages"]
    missing = sorted(here.keys() - there.keys())
    other = sorted(
        f"{name} {there[name]} ({here[name]} here)" for name in here.keys() & there.keys() if here[name] != there[name]
    )
    failed = {name: answer for name, answer in seen["imports"].items() if isinstance(answer, str)}
    imported = {name: answer for name, answer in seen["imports"].items() if name not in failed}
    data = {"missing": missing, "other": other, "not_importable": failed, "imported": imported}
    advice = "Install them for the node's Python, or name the Python of this environment with python=..."
    if failed:
        lost = "; ".join(f"{name} ({why})" for name, why in failed.items())
        advice += " If a library is missing, load its module with modules=[...]."
        return error("packages", f"the node cannot import {lost}", advice, **data)
    if there.get("slurmlaunch") != (mine := version_of("slurmlaunch")):
        return error("packages", f"slurmlaunch is {there.get('slurmlaunch')} on the node, {mine} here", advice, **data)
    if missing or other:
        shown = [*missing, *other]
        more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
        return warning(
            "packages", f"missing on the node, or of another version: {', '.join(shown[:_SHOWN])}{more}", advice, **data
        )
    named = "".join(f"; {name} is imported in {seconds:.1f} s" for name, seconds in imported.items())
    return ok("packages", f"the node has the {len(here)} packages of this machine{named}", **data)


def _check_clock(files: on_node.Files, seen: dict[str, Any], watched: _Watched) -> Check:
    """Compare the clocks: the node answered between two moments that the client has measured."""
    moment, (earliest, latest) = seen["began"], (watched.submitted, watched.ended)
    if watched.exchange is not None and on_node.PONG not in dict(seen["storage"]):
        with contextlib.suppress(OSError, RunFolderError, ValueError):
            moment, (earliest, latest) = float(files[on_node.PONG].read()), watched.exchange
    least, most = moment - latest, moment - earliest
    data = {"difference": (least + most) / 2, "within": (most - least) / 2}
    if least > _CLOCK or most < -_CLOCK:
        found = f"the node's clock is {'ahead' if least > 0 else 'behind'} by {abs(data['difference']):.0f} s"
        advice = (
            "Tell your site. slurmlaunch does not need equal clocks, but make and other tools that compare times do."
        )
        return warning("clock", found, advice, **data)
    bound = max(abs(least), abs(most))
    return ok("clock", f"the clocks of the node and of this machine differ by less than {bound + 0.05:.1f} s", **data)


def _check_commands(seen: dict[str, Any], cluster: str) -> Check:
    failed = {name: complaint for name, complaint in seen["slurm"].items() if complaint}
    if cluster != "slurm":
        return skipped("node commands", f"tasks of cluster={cluster!r} call none of Slurm's commands")
    if not failed:
        return ok("node commands", f"{', '.join(seen['slurm'])} work on the node", failed={})
    complaints: dict[str, list[str]] = {}
    for name, complaint in failed.items():
        complaints.setdefault(complaint, []).append(name)
    found = "; ".join(f"{', '.join(names)} ({complaint})" for complaint, names in complaints.items())
    uses = {
        "scontrol": "tasks that reach their time limit start again only while a client runs",
        "srun": "ranks (ntasks=) need launcher=...",
        "sbatch": "tasks cannot submit runs of their own",
        "scancel": "tasks cannot cancel jobs",
    }
    advice = "; ".join(uses[name] for name in failed)
    return warning("node commands", f"these fail on the node: {found}", f"Without them: {advice}.", failed=failed)


def _check_cpus(seen: dict[str, Any], executor: Executor) -> Check:
    cpus = executor.shape(single_item=True).cpus_per_task
    memory = seen["memory"]
    found = f"a task with cpus_per_task={cpus} may run on {seen['cpus']} of the node's {seen['all_cpus']} CPUs"
    found += "" if seen["cpus"] <= cpus else ", as Slurm does not bind it: only thread variables limit its threads"
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
        line = f"unset {' '.join(foreign)}"
        advice = f"Items keep it, whatever threads= says. The set-up line `{line}` removes it: setup=[...]"
        return warning("threads", found, advice, variables=foreign)
    own = {name: value for name, value in seen["variables"].items() if name not in foreign}
    shown = ", ".join(f"{name}={value}" for name, value in own.items())
    found = f"your {shown} holds on the node" if own else "no prolog or module sets thread variables; slurmlaunch does"
    return ok("threads", found, variables=own)


def _timing(seen: dict[str, Any], watched: _Watched, *, ahead: float) -> Check:
    """Return how long each stage took, as far as its beginning is known; *ahead* is how far the node's clock is."""
    starts = {name: moment - ahead for name, moment in seen["starts"].items() if name != "job"}
    by_node = [
        ("batch script", starts.get("script") if seen["starts"].get("job") else None),
        ("Python", starts.get("supervisor")), ("imports", starts.get("process")), ("item", seen["began"] - ahead),
        ("result", seen["ended"] - ahead),
    ]  # fmt: skip
    later = [(name, moment) for name, moment in by_node if moment is not None]
    moments = [("submission", watched.submitted), ("queue", watched.accepted)]
    if "job" in seen["starts"]:  # by Slurm's clock, in whole seconds
        moments.append(("prolog", min(seen["starts"]["job"] + 0.5, later[0][1])))
    moments += [*later, ("", watched.ended)]
    # In this order, also where clocks differ by less than a second.
    times = [min(watched.ended, time) for time in itertools.accumulate((time for _, time in moments), max)]
    stages = {name: end - start for (name, _), (start, end) in zip(moments, itertools.pairwise(times), strict=False)}
    total = watched.ended - watched.submitted
    shown = ", ".join(f"{name} {seconds:.1f}" for name, seconds in stages.items())
    return ok("timing", f"{total:.1f} s from submission to result: {shown}", total=total, stages=stages)
