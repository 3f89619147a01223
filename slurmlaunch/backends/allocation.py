"""The allocation backend: tasks as steps of an allocation that the user already has, without a queue.

It is a `LocalBackend` whose scheduler has the capacity of the allocation's nodes, and whose tasks are started by ``srun
--exact``: Slurm gives each step its CPUs and memory on one of the nodes. As many steps run at once as fit; srun would
wait for the others too, but asks the controller again and again meanwhile. Of sbatch's options the resources of a task
count, and ``time``. A task without a memory option gets its share of the allocation's by its CPUs: a step would take
all of it. The client creates it; functions and items are unknown here.
"""

from __future__ import annotations

import functools
import math
import os
import re
import shutil
from typing import TYPE_CHECKING, NamedTuple

from slurmlaunch.backends.base import Limits, parse_memory
from slurmlaunch.backends.local import LocalBackend, refusal, task_environment
from slurmlaunch.backends.local.process import LIFELINE_FD
from slurmlaunch.backends.local.scheduler import LocalScheduler, TaskResources
from slurmlaunch.backends.slurm.commands import Command, for_steps, run
from slurmlaunch.errors import OptionError
from slurmlaunch.runfolder.layout import PARENT_DEATH_VARIABLE, Status

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from slurmlaunch.backends.base import ArrayJob

_NODES = "SLURM_JOB_CPUS_PER_NODE"

# Options of sbatch that srun reads too, and that describe the resources of a step. Nodes are for ranks.
_PASSED_ON = (
    "constraint", "exclude", "gpu_bind", "gpu_freq", "gpus", "gpus_per_node", "gpus_per_task", "gres", "gres_flags",
    "hint", "mem_bind", "mem_per_gpu", "nodelist", "threads_per_core", "tres_per_task",
)  # fmt: skip
_OF_RANKS = ("nodes", "ntasks_per_node", "distribution")
_GPUS = {"gpus", "gpus_per_node", "gpus_per_task", "gres", "tres_per_task"}

_MEBIBYTE = 1 << 20
_SINFO_SECONDS = 10.0

# The client's lifeline does not reach beyond this machine, so this shell watches it: its end of
# file ends the step. SIGTERM reaches srun by itself, which then kills the step at once: the
# shell reports this as an end from outside, and not as the node's own.
_WATCHED = f"""\
unset {PARENT_DEATH_VARIABLE}
trap stopped=1 TERM
"$@" {LIFELINE_FD}<&- &
srun=$!
{{ read -r -u {LIFELINE_FD} _; kill -TERM "$srun"; }} 2>/dev/null &
watch=$!
while wait "$srun"; status=$?; kill -0 "$srun" 2>/dev/null; do :; done
kill "$watch" 2>/dev/null
[ -z "$stopped" ] || [ "$status" -lt 128 ] || status={Status.STOPPED}
exit "$status"
"""


class _Node(NamedTuple):
    """The allocation's share of a node: CPUs, and bytes of memory."""

    cpus: int
    memory: float


def _nodes() -> list[_Node]:
    """Return the nodes, from the environment that Slurm set; none outside an allocation."""
    return [_Node(cpus, _memory(cpus)) for cpus in _cpus_per_node(os.environ.get(_NODES, ""))]


def fits(wanted: TaskResources, running: Collection[TaskResources]) -> bool:
    """Whether a task may start beside the running ones."""
    # Only Slurm knows the nodes of the running ones. If it chose worse than this assumes, srun waits.
    free = _nodes()
    for each in running:
        _place(each, free)
    return _place(wanted, free)


class AllocationBackend(LocalBackend):
    """The `slurmlaunch.backends.base.Backend` of an allocation."""

    name = "allocation"

    def __init__(self) -> None:
        self.scheduler = LocalScheduler(fits)

    def limits(self) -> Limits:
        """Return no limits: a task too large for the allocation is refused."""
        return Limits()

    def cluster_name(self) -> str | None:
        """Return Slurm's name of the cluster that the allocation is on."""
        return os.environ.get("SLURM_CLUSTER_NAME")

    def launcher(self, ranks: int, cpus_per_task: int, options: Mapping[str, str | bool]) -> tuple[str, ...]:
        """Return the command line of one step for all ranks."""
        return ("srun", "--kill-on-bad-exit=1", *_step_words(options, ranks, cpus_per_task))

    def at_once(self, job: ArrayJob) -> int:
        """Return how many tasks of an array run at once if no other tasks run."""
        resources, count = self.resources(job), 0
        while count < job.length and fits(resources, [resources] * count):
            count += 1
        return max(1, count)

    def resources(self, job: ArrayJob) -> TaskResources:
        """Return the task's share of the allocation; Slurm itself enforces its memory."""
        asked = TaskResources.of(job)
        reserved = sum(parse_memory(word.partition("=")[2]) for word in _memory_words(job.options))
        if not math.isfinite(reserved):
            reserved = 0.0  # all memory, shared with other steps
        elif "mem" not in job.options:
            reserved *= job.cpus_per_task
        elif job.ranks > 1:
            reserved /= job.ranks  # sbatch counts it per node, and Slurm decides how many ranks a node gets
        return asked._replace(memory=math.inf, reserved=reserved)

    def starter(self, job: ArrayJob) -> tuple[str, ...]:
        """Return the words that start a task on a node; a task with ranks starts here, and its ranks there."""
        if job.ranks > 1:
            return ()
        return ("srun", *_step_words(job.options, 1, job.cpus_per_task))

    def command(self, job: ArrayJob) -> tuple[str, ...]:
        """Return the command line of a task, as `TaskProcess` takes it, without the task index at its end."""
        starter = self.starter(job)
        watched = (shutil.which("bash") or "/bin/bash", "-c", _WATCHED, job.name, *starter) if starter else ()
        return (*watched, *super().command(job))

    def environment(self, job: ArrayJob) -> dict[str, str]:
        """Return the environment of srun, which the tasks inherit."""
        return task_environment(job, for_steps(job.environment.variables))

    def submit(self, job: ArrayJob) -> str:
        """Put the array in the queue of this process; return its job id."""
        if not _is_inside():
            raise refusal(job, _OUTSIDE)
        if not fits(self.resources(job), ()):
            nodes = ", ".join(f"{node.cpus} CPUs" for node in _nodes())
            what = f"{job.ranks} × {job.cpus_per_task}" if job.ranks > 1 else str(job.cpus_per_task)
            raise refusal(
                job, f"the allocation has no room for a task of {what} CPUs and its memory: its nodes have {nodes}"
            )
        return super().submit(job)


_OUTSIDE = (
    "cluster='allocation' runs tasks as steps of an allocation, and this process is in none. "
    "Get one first, as in: salloc --nodes=2 --ntasks=16 --time=01:00:00 python script.py"
)


def require_allocation() -> None:
    """Raise an `OptionError` outside an allocation."""
    if not _is_inside():
        raise OptionError(_OUTSIDE, option="cluster")


def _is_inside() -> bool:
    return "SLURM_JOB_ID" in os.environ and _NODES in os.environ


def _cpus_per_node(text: str) -> Iterator[int]:
    """Read ``8(x2),4``: two nodes with eight CPUs, one with four."""
    for cpus, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        yield from [int(cpus)] * int(times or 1)


def _memory(cpus: int) -> float:
    """Return the bytes that the allocation has on a node: its limit, or without one, the node's memory."""
    for name, factor in (("SLURM_MEM_PER_NODE", 1), ("SLURM_MEM_PER_CPU", cpus)):
        if limit := float(os.environ.get(name, "0")):
            return limit * _MEBIBYTE * factor
    return _nodes_own_memory(os.environ.get("SLURM_JOB_NODELIST", ""))


@functools.cache
def _nodes_own_memory(nodes: str) -> float:
    """Return the memory of the smallest of the nodes in bytes; `math.inf` if Slurm does not say."""
    words = ("sinfo", "--noheader", f"--nodes={nodes}", "--format=%m")
    output = run(Command(words, os.environ, _SINFO_SECONDS)).stdout if nodes else ""
    megabytes = [int(number) for number in re.findall(r"\d+", output)]  # "8000+" where some have more
    return float(min(megabytes, default=math.inf)) * _MEBIBYTE


def _place(wanted: TaskResources, free: list[_Node]) -> bool:
    """Take the resources of a task's ranks from the first nodes that have them; False if one finds none."""
    cpus = wanted.cpus // wanted.ranks
    for _ in range(wanted.ranks):
        for i, node in enumerate(free):
            if cpus <= node.cpus and wanted.reserved <= node.memory:
                free[i] = _Node(node.cpus - cpus, node.memory - wanted.reserved)
                break
        else:
            return False
    return True


def _step_words(options: Mapping[str, str | bool], ranks: int, cpus_per_task: int) -> Iterator[str]:
    yield from ("--exact", f"--ntasks={ranks}", f"--cpus-per-task={cpus_per_task}")  # exact: not whole nodes
    if ranks == 1:
        yield "--nodes=1"
    yield from _memory_words(options)
    if not options.keys() & _GPUS:
        yield "--gres=none"  # a step would take all GPUs of the allocation, and the next one wait for them
    for name in (*_PASSED_ON, *(_OF_RANKS if ranks > 1 else ())):
        value = options.get(name)
        if value is not None and value is not False:
            word = f"--{name.replace('_', '-')}"
            yield word if value is True else f"{word}={value}"


def _memory_words(options: Mapping[str, str | bool]) -> tuple[str, ...]:
    """Return the memory of a step: the option, or a task's share of the allocation's."""
    for name in ("mem", "mem_per_cpu"):
        if name in options:
            return (f"--{name.replace('_', '-')}={options[name]}",)
    per_node = os.environ.get("SLURM_MEM_PER_NODE", "0")
    most = max(_cpus_per_node(os.environ.get(_NODES, "")), default=0)
    if per_node == "0" or not most:
        return ()
    return (f"--mem-per-cpu={max(1, int(per_node) // most)}",)
