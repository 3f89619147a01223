"""slurmlaunch: run Python functions on Slurm, with the interface of `concurrent.futures`.

    from slurmlaunch import Executor

    ex = Executor(partition="small", time="00:10:00", cpus_per_task=8)
    results = ex.map_array(process, files, throttle=10).results()   # one job array
    future = ex.submit(train, seed=3)                               # one job

The parts, and how they reach each other::

    login node                    shared storage                 compute node, one per task

    client ──────function, items──▶ run folder ◀────reads──── supervisor ──items──▶ worker
    Executor, futures               (a protocol)  ◀──outcomes─────┘     ◀─results──   │
      ▲         │                      │                              ▲          user's function
      │         └─sbatch──▶ Slurm ─────┼──starts──▶ batch script ─────┘
    watcher ◀──new outcomes────────────┘
      └─────◀──states─────── Slurm

- The client is the user's process: `client/` plans tasks, writes the run folder, submits and hands out futures.
- The run folder is the only channel between client and tasks: `runfolder/` holds its format and nothing else.
- The batch script, written by `backends/`, starts Python on the node and records how it ended.
- The supervisor, in `node/`, is the task's main process: it hands out items, records outcomes, runs no user code.
- A worker, also in `node/`, is a process that runs items.
- The watcher, in `client/`, is a thread that reads new outcomes and scheduler states and settles futures.

This file names the public interface and imports nothing until a name is used, so that a node loads only its own part.
"""

from __future__ import annotations

TYPE_CHECKING = False

_MODULES = {
    "backends.base": ("TaskState",),
    "backends.container": ("Container",),
    "client.cleaning": ("Cleaned", "clean"),
    "client.code": ("Code",),
    "client.doctor.report": ("Check", "Report", "doctor"),
    "client.executor": ("Executor",),
    "client.futures": ("Future", "FutureArray", "attach"),
    "client.item_details": ("Attempt",),
    "client.runs": ("RunList", "RunSummary", "runs"),
    "client.status": ("Status",),
    "command": ("Command",),
    "context": ("Task", "cpu_count", "current_task", "task_pool"),
    "errors": (
        "FunctionExited", "ItemError", "MissingPackage", "NodeFailure", "NodeStartError", "NotPicklable", "OptionError",
        "OutOfMemory", "Preempted", "ResultLost", "RunFolderError", "SchedulerError", "SlurmlaunchError",
        "StorageFailure", "SubmissionError", "TaskCancelled", "TaskEnded", "TimeLimitExceeded", "UnknownOption",
        "UnknownProtocol", "UnpicklableResult", "UnsafeRunFolder", "WorkerDied",
    ),
    "integrations": ("register_joblib",),
    "integrations.dask": ("dask_cluster",),
}  # fmt: skip
"""The public names, by the module of this package that each comes from."""

_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__version__ = "0.1.0"
__all__ = [name for names in (("__version__",), *_MODULES.values()) for name in names]

if TYPE_CHECKING:  # for type checkers alone, which read no table
    from slurmlaunch.backends.base import *
    from slurmlaunch.backends.container import *
    from slurmlaunch.client.cleaning import *
    from slurmlaunch.client.code import *
    from slurmlaunch.client.doctor.report import *
    from slurmlaunch.client.executor import *
    from slurmlaunch.client.futures import *
    from slurmlaunch.client.item_details import *
    from slurmlaunch.client.runs import *
    from slurmlaunch.client.status import *
    from slurmlaunch.command import *
    from slurmlaunch.context import *
    from slurmlaunch.errors import *
    from slurmlaunch.integrations import *
    from slurmlaunch.integrations.dask import *
else:

    def __getattr__(name: str) -> object:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        return value


def __dir__() -> list[str]:
    return __all__
