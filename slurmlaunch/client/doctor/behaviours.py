"""The table of behaviours that ``doctor(full=True)`` tries: promises of the documentation, each with its function.

Each function makes small runs by an ordinary `Executor` and compares what comes back. What the items do is in `items`;
how the functions are run, stopped and reported is the matter of `full`. Those that take long come first in the table.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import json
import math
import os
import secrets
import statistics
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from slurmlaunch.client.doctor import items
from slurmlaunch.client.doctor.full import Behaviour, Broken, NotAvailable, expect
from slurmlaunch.client.futures import open_run
from slurmlaunch.errors import NodeStartError, SchedulerError, TimeLimitExceeded, WorkerDied
from slurmlaunch.runfolder.files import create

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from slurmlaunch.client.doctor.full import Trial
    from slurmlaunch.client.futures import FutureArray
    from slurmlaunch.runfolder.files import Location

_ITEMS = 8
_MANY = 1000
_LARGE = 32 << 20
"""Bytes of a large argument, and of the result."""
_HOUR = 3600.0
_STEP = 0.02
_CLOCKS_DIFFER = 1.0
"""Seconds by which the clocks of two nodes may differ."""
_SEEN_WITHIN = 180.0
"""Seconds within which a file of the other side must be seen."""
_ROUND_TRIPS = 3
_UMASK = 0o027
_OF_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

_SCRIPT = """\
import os, pickle, sys, time
from slurmlaunch import Executor

FACTOR = 7

class Scaled:
    def __init__(self, number):
        self.value = number * FACTOR

def work(number):
    umask = os.umask(0)
    os.umask(umask)
    return Scaled(number).value, os.environ.get("DOCTOR_WORD"), os.path.realpath(os.getcwd()), umask, time.time()

if __name__ == "__main__":
    (folder, profile, options), number = pickle.load(sys.stdin.buffer)
    executor = Executor(folder, profile=profile, **options)
    print(executor.map_array(work, range(number), tasks=1, name="doctor", resume=True).folder)
"""
"""A user's script: its function and its class exist in it alone, and it ends while its items run."""

_WORD = secrets.token_hex(4)


def _needs_arrays(trial: Trial) -> None:
    if trial.site.backend.limits().max_array_size == 0:
        raise NotAvailable("the cluster has job arrays switched off (MaxArraySize=0)")


# One run whose items return, print, raise and die: several behaviours look at it.


def _mixed(trial: Trial) -> FutureArray[Any]:
    _needs_arrays(trial)

    def make() -> FutureArray[Any]:
        executor = trial.site.executor("mixed", cpus_per_task=2, processes=2)
        return executor.map_array(items.mixed, range(_ITEMS), tasks=2)

    array = trial.shares("mixed", make)
    array.wait()
    return array


def _values(array: FutureArray[Any]) -> list[dict[str, Any]]:
    """Return the values of the items that neither raise nor die."""
    return [future.result() for future in array if future.index not in {items.RAISES, items.DIES}]


def _error(trial: Trial) -> str:
    array = _mixed(trial)
    error = array[items.RAISES].exception()
    expect(type(error) is json.JSONDecodeError, f"item {items.RAISES} ended with {error!r}")
    remote = str(getattr(error, "__cause__", None))
    expect("json/decoder.py" in remote, f"the traceback of the node is {remote}")
    kept = [each["item"] for each in _values(array)]
    expect(kept == [each for each in range(_ITEMS) if each not in {items.RAISES, items.DIES}], f"values of {kept}")
    return f"{type(error).__name__} with the node's traceback, and {len(kept)} values"


def _killed(trial: Trial) -> str:
    array = _mixed(trial)
    error = array[items.DIES].exception()
    expect(isinstance(error, WorkerDied) and error.signal == 9, f"item {items.DIES} ended with {error!r}")  # noqa: PLR2004
    expect(getattr(error, "item", None) == items.DIES, f"the error names item {getattr(error, 'item', None)}")
    return f"WorkerDied names item {items.DIES} and SIGKILL; {len(_values(array))} others have values"


def _output(trial: Trial) -> str:
    array = _mixed(trial)
    _values(array)
    for future in array:
        seen = future.stdout(), future.stderr()
        expect(f"out {future.index}\n" in seen[0] and f"err {future.index}\n" in seen[1], f"{future.index}: {seen}")
    return "each item has its own lines, also those that raised or died"


def _caps(trial: Trial) -> str:
    values = _values(_mixed(trial))
    for value in values:
        expect(value["cpus"] == 1, f"cpu_count() is {value['cpus']} where two processes share two CPUs")
        _check_threads(value, 1)
    masks = {(each["task"], each["process"]): frozenset(each["affinity"]) for each in values}
    of_tasks = [[mask for (of, _), mask in masks.items() if of == task] for task in {task for task, _ in masks}]
    bound = all(len(set(those)) == len(those) and not frozenset.intersection(*those) for those in of_tasks if those[1:])
    widest = max(map(len, masks.values()))
    expect(bound or widest > 2, f"two processes of a task run on the same {widest} CPUs")  # noqa: PLR2004
    shown = "CPUs of its own" if bound else f"all {widest} CPUs of the node, since Slurm does not bind the task"
    return f"cpu_count() and thread variables are 1 where two processes share two CPUs; each may run on {shown}"


def _check_threads(value: dict[str, Any], share: int) -> None:
    for name in _OF_THREADS:
        wanted = str(share) if name not in os.environ else os.environ[name]
        seen = value["variables"].get(name)
        source = ", which a prolog, a module or setup= sets," if name in value["foreign"] else ""
        expect(seen == wanted, f"{name}={seen} on the node{source} and not {wanted}")


def _retry(trial: Trial) -> str:
    array = _mixed(trial)
    before = {value["item"]: value for value in _values(array)}
    began = time.monotonic()
    values = array.retry(items.mended).results(progress=False)
    expect([value["item"] for value in values] == list(range(_ITEMS)), f"after it items {values}")
    again = [value["item"] for value in values if value != before.get(value["item"])]
    expect(again == sorted({items.RAISES, items.DIES}), f"items {again} ran again")
    return f"items {again} ran again, and no other, in {time.monotonic() - began:.1f} s"


# Values.


def _in_order(trial: Trial, schedule: str) -> str:
    _needs_arrays(trial)
    array = trial.executor().map_array(items.clock, range(_MANY), tasks=2, schedule=schedule)
    values = array.results(progress=False)
    expect([item for item, _ in values] == list(range(_MANY)), f"other items than 0 to {_MANY - 1}, or another order")
    if schedule == "static":
        half = [moment for _, moment in values[: _MANY // 2]]
        trial.site.measured["no_op_items_per_second"] = round(len(half) / max(half[-1] - half[0], 1e-6))
    return f"{_MANY} values of two tasks, in order"


def _submit(trial: Trial) -> str:
    executor = trial.executor(cpus_per_task=2, processes=1, threads=2)
    cpus = executor.shape(single_item=True).threads  # a machine with one CPU has no more
    value = executor.submit(items.call, 3, power=4).result()
    expect(value["value"] == 3**4, f"call(3, power=4) returned {value['value']}")
    expect(value["cpus"] == cpus, f"cpu_count() is {value['cpus']} in a task with {cpus} CPUs")
    return f"the arguments arrived, and cpu_count() is {cpus}"


def _large(trial: Trial) -> str:
    data = os.urandom(_LARGE)
    began = time.monotonic()
    value = trial.executor().submit(items.backwards, data).result()
    expect(value == data[::-1], f"{len(value)} bytes that differ from those sent")
    return f"{_LARGE >> 20} MiB went there and back in {time.monotonic() - began:.1f} s, queue included"


# Ends.


def _time_limit(trial: Trial) -> str:
    executor = trial.executor(time="1" if trial.site.backend.name == "slurm" else "3s", requeues=0)
    array = executor.map_array(items.stay, [0.0, _HOUR], tasks=1)
    began = time.monotonic()
    error = array[1].exception()
    expect(isinstance(error, TimeLimitExceeded), f"it ended with {error!r}")
    expect(array[0].result() == 0.0, "the item before it has no value")
    return f"TimeLimitExceeded after {time.monotonic() - began:.0f} s; the item before it has its value"


def _cancel(trial: Trial) -> str:
    _needs_arrays(trial)
    files = trial.files()
    array = trial.executor(throttle=1).map_array(items.linger, [0, 1], [str(files)] * 2, [0] * 2, tasks=2)
    _await_name(files, items.BEGAN, array)
    for item in (1, 0):  # the pending one, and then the one that runs
        expect(array[item].cancel() and array[item].cancelled(), f"cancel() of item {item} did nothing")
    began = time.monotonic()
    left = trial.site.left_in_queue(array.job_ids)
    expect(not left, f"{left} is still in the queue after {time.monotonic() - began:.0f} s")
    return f"both are cancelled, and their job had left the queue after {time.monotonic() - began:.1f} s"


def _throttle(trial: Trial) -> str:
    _needs_arrays(trial)
    array = trial.executor(throttle=1).map_array(items.doze, range(3), [2.0] * 3, tasks=3)
    times = sorted(array.results(progress=False))
    overlaps = [before[1] - after[0] for before, after in itertools.pairwise(times)]
    expect(max(overlaps) < _CLOCKS_DIFFER, f"two tasks ran at once, for {max(overlaps):.1f} s")
    return f"three tasks ran one after the other, {-max(overlaps):.1f} s apart at least"


def _requeue(trial: Trial) -> str:
    files = trial.files()
    executor = trial.executor(**({"requeue": True} if trial.site.backend.name == "slurm" else {}))
    array = executor.map_array(items.linger, [0, 1], [str(files)] * 2, [1] * 2, tasks=1)
    _await_name(files, items.BEGAN, array)
    array[0].result()
    try:
        array[1].requeue()
    except SchedulerError as refused:
        raise NotAvailable(str(refused)) from refused
    began = time.monotonic()
    values = array.results(progress=False)
    expect(values == [(0, 0), (1, 1)], f"(item, attempt) were {values}")
    return f"a requeued task kept its value and ran the other item again, after {time.monotonic() - began:.0f} s"


# Another process.


def _of_a_script(trial: Trial) -> FutureArray[Any]:
    return open_run(trial.shares("script", functools.partial(_run_script, trial, 4)))


def _run_script(trial: Trial, number: int) -> str:
    return trial.site.script("script", _SCRIPT, number, {"DOCTOR_WORD": _WORD}, _UMASK)


def _attach(trial: Trial) -> str:
    array = _of_a_script(trial)
    values = [value[0] for value in array[:4].results(progress=False)]
    expect(values == [0, 7, 14, 21], f"the values were {values}")
    return "4 values of a function and a class of a script that had ended"


def _environment(trial: Trial) -> str:
    seen = {value[1:4] for value in _of_a_script(trial)[:4].results(progress=False)}
    wanted = (_WORD, os.path.realpath(trial.site.folder / "script"), _UMASK)
    expect(seen == {wanted}, f"variable, working directory and umask were {seen}, and not {wanted}")
    return "a variable, the working directory and the umask of the script"


def _resume(trial: Trial) -> str:
    before = _of_a_script(trial)[:4].results(progress=False)
    folder = _run_script(trial, 6)
    after = open_run(folder).results(progress=False)
    expect([value[0] for value in after] == [0, 7, 14, 21, 28, 35], f"the values were {[value[0] for value in after]}")
    expect(after[:4] == before, "items that were done ran again")
    return "4 items kept their values, and 2 new ones ran"


# Several processes for one item.


def _ranks(trial: Trial) -> str:
    values = _on_two_ranks(trial, items.place_among_ranks)
    expect(values == [(0, 2), (1, 2)], f"(rank, ranks) were {values}")
    return "two ranks, each with its number"


def _mpi(trial: Trial) -> str:
    if importlib.util.find_spec("mpi4py") is None:
        raise NotAvailable("mpi4py is not installed")
    values = _on_two_ranks(trial, items.sum_of_ranks)
    if isinstance(values[0], str):
        why, *_ = values[0].splitlines()
        raise NotAvailable(f"mpi4py does not load on the node: {why}")
    expect(values == [(2, 3)] * 2, f"(size of the communicator, sum of the ranks + 1) were {values}")
    return "one communicator of two processes"


def _on_two_ranks(trial: Trial, function: Any) -> list[Any]:
    try:
        return trial.executor(ntasks=2).submit(function).ranks()
    except NodeStartError as error:
        raise NotAvailable(error.what) from error


# Files.


def _files(trial: Trial) -> str:
    files = trial.files()
    settled: Future[float] = Future()
    future = trial.executor().submit(items.answer, str(files), _ROUND_TRIPS)
    future.add_done_callback(lambda _: settled.set_result(time.time()))
    _await_name(files, items.BEGAN, future.run)
    sent, received, growing = [], [], files / items.GROWING
    before = growing.read()
    for number in range(_ROUND_TRIPS):
        create(files / f"{items.PING}-{number}", b"")
        sent.append(time.time())
        _await_name(files, f"{items.PONG}-{number}", future.run)
        received.append(time.time())
    _await(lambda: len(growing.read()) > len(before), "what an item has appended to a file", future.run)
    grown, value = time.time(), future.result()
    trial.site.node.update(value["system"])
    seen, answered = zip(*value["moments"], strict=True)
    trip = _median(received, sent)
    trial.site.measured |= {
        "round_trip": trip,
        "client_to_node": _median(seen, sent),
        "node_to_client": _median(received, answered),
        "growth_seen": grown - value["grown"],
        "result_after_end": settled.result() - value["ended"],
    }
    return f"a file went there and an answer came back in {trip:.2f} s"


def _median(later: Sequence[float], earlier: Sequence[float]) -> float:
    return statistics.median(end - begin for end, begin in zip(later, earlier, strict=True))


def _await_name(files: Location, name: str, array: FutureArray[Any]) -> None:
    """Wait until a file of a task is seen here; a listing shows it, since a network file system caches absent names."""
    _await(lambda: name in files.names(), f"the file {name} of an item", array)


def _await(seen: Callable[[], bool], what: str, array: FutureArray[Any]) -> None:
    """Wait until something is seen that an item of a run does.

    Raises:
        Broken: all items have ended, and it is not seen.
    """
    late = math.inf
    while not seen():
        if array.done():
            late = min(late, time.monotonic() + _SEEN_WITHIN)
            array.results(progress=False)  # raises what ended them
        if time.monotonic() > late:
            raise Broken(f"{what} is not seen {_SEEN_WITHIN:.0f} s after its end")
        time.sleep(_STEP)


_TABLE = (
    Behaviour("time limit", "An item that hits its time limit fails with TimeLimitExceeded; others keep their values.",
              _time_limit),
    Behaviour("requeue", "A task that Slurm requeues keeps its values and runs the other items again.", _requeue),
    Behaviour("throttle", "throttle=1 runs one task at a time.", _throttle),
    Behaviour("cancel", "cancel() ends pending and running items, and their jobs leave the queue.", _cancel),
    Behaviour("attach", "Another process finds a run whose client has ended; __main__ travels with its function.",
              _attach),
    Behaviour("environment", "Items have the variables, the working directory and the umask of the submission.",
              _environment),
    Behaviour("resume", "resume=True keeps what is done and submits the rest.", _resume),
    Behaviour("error", "An exception of an item is raised with the node's traceback; the others keep their values.",
              _error),
    Behaviour("killed", "An item whose process is killed is named; the others keep their values.", _killed),
    Behaviour("output", "stdout() and stderr() are what that item wrote.", _output),
    Behaviour("caps", "Items see their share of the CPUs, in cpu_count(), thread variables and affinity.", _caps),
    Behaviour("retry", "retry() runs what failed, and nothing else.", _retry),
    *(
        Behaviour(schedule, f'The values of schedule="{schedule}" are in order.',
                  functools.partial(_in_order, schedule=schedule))
        for schedule in ("static", "dynamic", "auto")
    ),
    Behaviour("submit", "submit() passes all arguments, and its task has all of its CPUs.", _submit),
    Behaviour("large", "Large arguments and results arrive unchanged.", _large),
    Behaviour("files", "Client and node see each other's new files.", _files),
    Behaviour("ranks", "ntasks=2 calls the function in two processes.", _ranks),
    Behaviour("mpi4py", "The ranks of an item share an MPI communicator.", _mpi),
)  # fmt: skip

BEHAVIOURS = {each.name: each for each in _TABLE}
"""All behaviours by name, in the order in which they begin."""


def choose(names: Collection[str]) -> list[Behaviour]:
    """Return the behaviours of these names, in the order of the table.

    Raises:
        LookupError: there is none of that name.
    """
    for name in names:
        if name not in BEHAVIOURS:
            raise LookupError(f"there is no behaviour {name!r}; there are {', '.join(BEHAVIOURS)}")
    return [each for name, each in BEHAVIOURS.items() if name in names]
