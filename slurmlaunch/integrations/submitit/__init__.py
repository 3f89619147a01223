"""submitit's interface on slurmlaunch: ``submitit.AutoExecutor(folder, cluster="slurmlaunch")``.

submitit finds `SlurmlaunchExecutor` and `SlurmlaunchJobEnvironment` by entry points, and imports this file whenever
it lists its clusters; so imports of the client stand in functions. Here submitit's parameters become an `Executor`,
and its submissions the items of a run: each has a task of its own, unless ``slurmlaunch_tasks`` or
``slurmlaunch_chunksize`` is set. `job` is its job, and `calls` runs in tasks. Source: submitit's docs/plugins.md.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from slurmlaunch.byvalue import refuse_coroutines
from slurmlaunch.errors import OptionError
from slurmlaunch.messages import warn

try:
    from submitit.core import core
    from submitit.slurm.slurm import SlurmExecutor
except ImportError as error:
    raise ImportError("submitit is not installed here: pip install 'slurmlaunch[submitit]'", name=error.name) from error

from slurmlaunch.integrations.submitit.calls import NAME, SlurmlaunchJobEnvironment, as_items
from slurmlaunch.integrations.submitit.job import SlurmlaunchJob, fixed_part

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from submitit.core.utils import DelayedSubmission

    from slurmlaunch.client.executor import Executor
    from slurmlaunch.client.futures import FutureArray

__all__ = ["SlurmlaunchExecutor", "SlurmlaunchJob", "SlurmlaunchJobEnvironment"]

_RENAMED = {"array_parallelism": "throttle", "job_name": "name", "num_gpus": "gpus_per_node"}
"""submitit's names for options of slurmlaunch or sbatch."""

_IGNORED: dict[str, tuple[str, tuple[Any, ...]]] = {
    "signal_delay_s": ("slurmlaunch chooses when to warn a task of its time limit", (90, 120, None)),
    "srun_args": ("calls start without srun", (None, [], ())),
    "use_srun": ("calls start without srun", (True, False, None)),
}
"""Parameters without a meaning here: why, and the defaults of submitit and of launchers on it, such as Hydra's, which
pass them at each use without a user's doing."""

_CALL = ("tasks", "chunksize")
_NOT_OPTIONS = ("stderr_to_stdout", "additional_parameters", "teardown", *_CALL, *_IGNORED)


class _Parameters(set[str]):
    """The names of all parameters; iterating leaves out those that submitit's own executor for Slurm also has.

    submitit iterates over the names of each executor to find the owner of a name without a prefix, and the last
    one wins: ``partition`` would no longer reach submitit's executor, also in code that does not use this one.
    """

    __slots__ = ()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(set(super().__iter__()) - SlurmExecutor._valid_parameters()))  # noqa: SLF001


class SlurmlaunchExecutor(core.Executor):
    """submitit's executor on slurmlaunch.

    Args:
        folder: holds the run folders.
        max_num_timeout: how often a job that reached its time limit is requeued.
        max_pickle_size_gb: ignored: data that all jobs share is pickled once.
        python: the command that starts Python on the node, as for a shell.
        cluster: ``"slurm"``, ``"local"`` or ``"inline"``, as for `slurmlaunch.Executor`.
    """

    job_class = SlurmlaunchJob

    def __init__(
        self,
        folder: str | Path,
        max_num_timeout: int = 3,
        max_pickle_size_gb: float = 1.0,
        python: str | None = None,
        cluster: str | None = None,
    ) -> None:
        from slurmlaunch.client.executor import Executor

        super().__init__(folder)
        del max_pickle_size_gb
        self.max_num_timeout = max_num_timeout
        options: dict[str, Any] = {} if python is None else {"python": shlex.split(python)}
        self._executor = Executor(fixed_part(folder), cluster=cluster, **options)

    @classmethod
    def name(cls) -> str:
        """Return the name of the cluster."""
        return NAME

    @classmethod
    def affinity(cls) -> int:
        """Return 0: submitit uses this executor only by name."""
        return 0

    @classmethod
    def _equivalence_dict(cls) -> core.EquivalenceDict:
        return {
            "name": "name",
            "timeout_min": "time",
            "mem_gb": "mem",
            "nodes": "nodes",
            "cpus_per_task": "cpus_per_task",
            "gpus_per_node": "gpus_per_node",
            "tasks_per_node": "ntasks_per_node",
        }

    @classmethod
    def _valid_parameters(cls) -> _Parameters:
        from slurmlaunch.client.options import OURS
        from slurmlaunch.client.sbatch_options import NAMES

        return _Parameters([*NAMES, *OURS, "profile", *_NOT_OPTIONS, *_RENAMED])

    def _convert_parameters(self, params: dict[str, Any]) -> dict[str, Any]:
        converted = super()._convert_parameters(params)
        if "mem_gb" in params:
            converted["mem"] = f"{int(params['mem_gb'] * 1024)}M"
        return converted

    def _internal_update_parameters(self, **kwargs: Any) -> None:
        """Check and set parameters.

        Raises:
            UnknownOption, OptionError: as for `slurmlaunch.Executor`.
        """
        for name in _IGNORED.keys() & kwargs.keys():
            reason, defaults = _IGNORED[name]
            if kwargs[name] not in defaults:
                warn(f"slurmlaunch_{name} is ignored: {reason}")
        self._configured({**self.parameters, **kwargs})  # raises errors here rather than at the first submission
        super()._internal_update_parameters(**kwargs)

    def _configured(self, parameters: Mapping[str, Any], default_name: str | None = None) -> Executor:
        """Return the executor with these parameters."""
        if parameters.get("teardown"):
            raise OptionError(
                "slurmlaunch_teardown: not supported, clean up at the end of the function", option="teardown"
            )
        options = {_RENAMED.get(name, name): value for name, value in parameters.items() if name not in _NOT_OPTIONS}
        options |= _additional(parameters.get("additional_parameters") or {})
        if (ranks := _ranks(parameters)) > 1:
            options["ntasks"] = ranks
        options["env"] = {**(options.get("env") or {}), "SUBMITIT_EXECUTOR": NAME}
        options.setdefault("requeues", self.max_num_timeout)
        options.setdefault("name", default_name)
        if not options.keys() & {"threads", "processes"}:
            options["threads"] = options.get("cpus_per_task")  # a call has all CPUs of its task
        return self._executor.options(**options)

    def _internal_process_submissions(self, delayed_submissions: list[DelayedSubmission]) -> list[core.Job[Any]]:
        from slurmlaunch.client.wording import name_of

        submissions = list(delayed_submissions)
        for each in submissions:
            refuse_coroutines(each.function)
        executor = self._configured(self.parameters, name_of(submissions[0].function))
        joined = bool(self.parameters.get("stderr_to_stdout")) and executor.cluster != "inline"
        calls, rows = as_items(submissions, stderr_to_stdout=joined)
        cut: dict[str, Any] = {name: self.parameters.get(name) for name in _CALL}
        if not any(cut.values()):
            cut["tasks"] = len(rows)  # a submitit job has its id at once, so no two tasks may share calls
        futures: FutureArray[Any] = executor.starmap_array(calls, rows, **cut)
        ranks = range(_ranks(self.parameters))
        return [SlurmlaunchJob(self.folder, future.job_id or "", ranks, future=future) for future in futures]


def _ranks(parameters: Mapping[str, Any]) -> int:
    """Return how many processes call a function together."""
    return int(parameters.get("nodes") or 1) * int(parameters.get("ntasks_per_node") or 1)


def _additional(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options in ``additional_parameters``: known ones by name, others as flags for sbatch."""
    from slurmlaunch.client.options import OURS
    from slurmlaunch.client.sbatch_options import NAMES

    options = {name.lstrip("-").replace("-", "_"): value for name, value in parameters.items()}
    unknown = options.keys() - NAMES - OURS.keys()
    flags = [f"--{name.replace('_', '-')}={options.pop(name)}" for name in list(options) if name in unknown]
    return {**options, "sbatch": flags} if flags else options
