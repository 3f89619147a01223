"""slurmlaunch: launch Python on Slurm, with the interface of `concurrent.futures`.

    from slurmlaunch import Executor

    ex = Executor(partition="small", time="00:10:00", cpus_per_task=8)
    results = ex.map_array(process, files, throttle=10).results()   # one job array
    future = ex.submit(train, seed=3)                               # one job

Names are loaded when they are first used, so that a node loads only its side.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from slurmlaunch.backends.base import TaskState
    from slurmlaunch.backends.container import Container
    from slurmlaunch.client.attempts import Attempt
    from slurmlaunch.client.executor import Executor
    from slurmlaunch.client.futures import Future, FutureArray, attach
    from slurmlaunch.command import Command
    from slurmlaunch.context import Task, cpu_count, current_task, task_pool
    from slurmlaunch.errors import (
        ItemError,
        MissingPackage,
        NodeFailure,
        NodeStartError,
        NotPicklable,
        OptionError,
        OutOfMemory,
        Preempted,
        ResultLost,
        RunFolderError,
        SchedulerError,
        SlurmlaunchError,
        SubmissionError,
        TaskCancelled,
        TaskEnded,
        TimeLimitExceeded,
        UnknownOption,
        UnknownProtocol,
        UnpicklableResult,
        UnsafeRunFolder,
        WorkerDied,
    )
    from slurmlaunch.integrations.dask import dask_cluster

_HOMES = {
    "slurmlaunch.backends.base": ("TaskState",),
    "slurmlaunch.backends.container": ("Container",),
    "slurmlaunch.client.attempts": ("Attempt",),
    "slurmlaunch.client.executor": ("Executor",),
    "slurmlaunch.client.futures": ("Future", "FutureArray", "attach"),
    "slurmlaunch.command": ("Command",),
    "slurmlaunch.context": ("Task", "cpu_count", "current_task", "task_pool"),
    "slurmlaunch.errors": (
        "ItemError",
        "MissingPackage",
        "NodeFailure",
        "NodeStartError",
        "NotPicklable",
        "OptionError",
        "OutOfMemory",
        "Preempted",
        "ResultLost",
        "RunFolderError",
        "SchedulerError",
        "SlurmlaunchError",
        "SubmissionError",
        "TaskCancelled",
        "TaskEnded",
        "TimeLimitExceeded",
        "UnknownOption",
        "UnknownProtocol",
        "UnpicklableResult",
        "UnsafeRunFolder",
        "WorkerDied",
    ),
    "slurmlaunch.integrations.dask": ("dask_cluster",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__version__ = "0.1.0"
__all__ = [
    "Attempt",
    "Command",
    "Container",
    "Executor",
    "Future",
    "FutureArray",
    "ItemError",
    "MissingPackage",
    "NodeFailure",
    "NodeStartError",
    "NotPicklable",
    "OptionError",
    "OutOfMemory",
    "Preempted",
    "ResultLost",
    "RunFolderError",
    "SchedulerError",
    "SlurmlaunchError",
    "SubmissionError",
    "Task",
    "TaskCancelled",
    "TaskEnded",
    "TaskState",
    "TimeLimitExceeded",
    "UnknownOption",
    "UnknownProtocol",
    "UnpicklableResult",
    "UnsafeRunFolder",
    "WorkerDied",
    "__version__",
    "attach",
    "cpu_count",
    "current_task",
    "dask_cluster",
    "task_pool",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__


class _JoblibAwaited:
    """A finder that finds nothing itself: see `slurmlaunch.integrations.arrival`."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "joblib.parallel":
            return None
        from slurmlaunch.integrations.arrival import registering_spec

        return registering_spec(path, target, cls)


def _be_known_to_joblib() -> None:
    import sys

    if "joblib.parallel" in sys.modules:
        from slurmlaunch.integrations.arrival import register

        register()
    else:
        sys.meta_path.insert(0, _JoblibAwaited)


_be_known_to_joblib()
