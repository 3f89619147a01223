"""submitit's interface on slurmlaunch: ``submitit.AutoExecutor(folder, cluster="slurmlaunch")``.

submitit finds `SlurmlaunchExecutor` and `SlurmlaunchJobEnvironment` by the entry
points of this package, and imports this module whenever it lists its clusters;
so what only a client needs is imported later.

A submission becomes an item of a run: its arguments, and its function where that
is not the same for all. Each item has a task of its own, as with submitit, if
``slurmlaunch_tasks`` or ``slurmlaunch_chunksize`` says nothing else.

Sources: submitit's docs/plugins.md, docs/structure.md and docs/checkpointing.md.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import shlex
import sys
import time
import traceback
import warnings
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakValueDictionary

from slurmlaunch import caps, context
from slurmlaunch.errors import ItemError, OptionError, RunFolderError, SlurmlaunchError
from slurmlaunch.runfolder.layout import RunFolder
from slurmlaunch.runfolder.manifest import Manifest
from slurmlaunch.runfolder.rounds import read_rounds, round_of_task

try:
    from submitit.core import core, utils
    from submitit.slurm.slurm import SlurmExecutor, SlurmJobEnvironment
except ImportError as error:
    message = "submitit is not installed here: pip install 'slurmlaunch[submitit]'"
    raise ImportError(message, name=error.name) from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from slurmlaunch.client.executor import Executor
    from slurmlaunch.client.futures import Future, FutureArray

NAME = "slurmlaunch"

# On the node.

_RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
_HIDDEN = "SUBMITIT_SLURMLAUNCH_"


class Calls:
    """The function of a run: calls what an item says.

    Args:
        function: what all items call; None where each brings its own.
        stderr_to_stdout: whether standard error goes where standard output goes.
    """

    def __init__(self, function: Callable[..., Any] | None, *, stderr_to_stdout: bool = False) -> None:
        self.function = function
        self.stderr_to_stdout = stderr_to_stdout

    def __call__(self, args: Sequence[Any], kwargs: Mapping[str, Any], function: Any = None) -> Any:
        """Call the function; leave the traceback of a failure in the log too, where submitit's users look for it."""
        _hide_rank_variables()
        if self.stderr_to_stdout:
            os.dup2(sys.stdout.fileno(), sys.stderr.fileno())
        try:
            return (self.function if function is None else function)(*args, **kwargs)  # type: ignore[misc]
        except Exception:
            traceback.print_exc()
            raise

    def submission(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], function: Any = None
    ) -> utils.DelayedSubmission:
        """Return an item as it was submitted."""
        called: Any = self.function if function is None else function
        return utils.DelayedSubmission(called, *args, **kwargs)


class CheckpointableCalls(Calls):
    """The same where functions know how they are gone on with: ``checkpoint`` or ``__submitit_checkpoint__``."""

    def checkpoint(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], function: Any = None
    ) -> utils.DelayedSubmission | None:
        """Return how an item is gone on with; None where its function does not know."""
        later = self.submission(args, kwargs, function)._checkpoint_function()  # noqa: SLF001  (the protocol's own)
        return later and utils.DelayedSubmission(self, later.args, later.kwargs, later.function)


def _hide_rank_variables() -> None:
    """Leave the variables of PyTorch to submitit's `TorchDistributedEnvironment`, which refuses where they are set."""
    ours = os.environ.get(caps.OURS, "").split(":")
    for name in _RANK_VARIABLES:
        if name in ours and name in os.environ:
            os.environ[_HIDDEN + name] = os.environ.pop(name)


def _told(name: str, default: int) -> int:
    """Return a number that slurmlaunch has told the ranks of a task."""
    ours = os.environ.get(caps.OURS, "").split(":")
    value = os.environ.get(_HIDDEN + name, os.environ.get(name) if name in ours else None)
    return default if value is None else int(value)


class SlurmlaunchJobEnvironment(SlurmJobEnvironment):
    """What ``submitit.JobEnvironment()`` is in a task of slurmlaunch's, also one that submitit knows nothing of."""

    _PATIENCE: ClassVar[float] = 60.0

    @classmethod
    def name(cls) -> str:
        """Return the name of the cluster."""
        return NAME

    def activated(self) -> bool:
        """Whether this process is in such a task."""
        return _task() is not None or os.environ.get("SUBMITIT_EXECUTOR") == NAME

    @property
    def array_job_id(self) -> str | None:
        """The id of the task's job."""
        return self._place()[0]

    @property
    def array_task_id(self) -> str | None:
        """The task's number in its job."""
        return self._place()[1]

    @property
    def raw_job_id(self) -> str:
        """The id that Slurm gives this element of the array; elsewhere what the run is called."""
        return os.environ.get("SLURM_JOB_ID") or context.current_task().run_folder.name

    def _place(self) -> tuple[str | None, str | None]:
        task = _task()
        backend = Manifest.read(RunFolder(task.run_folder)).backend if task else "slurm"
        if task is None or backend == "slurm":
            return os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
        if backend == "inline":  # it has its id when it is over
            return None, None
        its_round = round_of_task(RunFolder(task.run_folder), task.index)
        array, element = its_round.plan.element_of(task.index)
        deadline = time.monotonic() + self._PATIENCE
        # The client writes the id down when the job is submitted, which may be after its first task has started.
        while (job_id := its_round.job_ids().get(array)) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return job_id, str(element)

    @property
    def paths(self) -> Paths:
        """Where things are."""
        task = context.current_task()
        folder = RunFolder(task.run_folder)
        its_round = round_of_task(folder, task.index)
        stdout = folder.log(its_round.number, *its_round.plan.element_of(task.index), "out")
        return Paths(folder.path, stdout, self.job_id, self.global_rank)

    @property
    def num_tasks(self) -> int:
        """How many processes call the function together."""
        return _told("WORLD_SIZE", 1)

    @property
    def num_nodes(self) -> int:
        """On how many nodes they are."""
        return self.num_tasks // _told("LOCAL_WORLD_SIZE", self.num_tasks)

    @property
    def node(self) -> int:
        """The number of this node among those."""
        return _told("NODE_RANK", 0)

    @property
    def global_rank(self) -> int:
        """The number of this process among all."""
        return _told("RANK", 0)

    @property
    def local_rank(self) -> int:
        """Its number among those of its node."""
        return _told("LOCAL_RANK", 0)


def _task() -> context.Task | None:
    try:
        return context.current_task()
    except SlurmlaunchError:
        return None


class Paths(utils.JobPaths):
    """Where the files of a job are: what submitit has per job lies in a run folder."""

    def __init__(self, folder: Path, stdout: Path, job_id: str | None, rank: int = 0) -> None:
        """Find them, from the run folder and the log of standard output."""
        super().__init__(str(folder), job_id=job_id, task_id=rank)
        self._run_folder, self._stdout = RunFolder(folder), stdout

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self._run_folder.path

    @property
    def submission_file(self) -> Path:
        """What was submitted."""
        return self._run_folder.rounds

    @property
    def submitted_pickle(self) -> Path:
        """The function."""
        return self._run_folder.function

    @property
    def result_pickle(self) -> Path:
        """The results, those of the other jobs of the run among them."""
        return self._run_folder.outcomes

    @property
    def stdout(self) -> Path:
        """The log of standard output."""
        return self._stdout

    @property
    def stderr(self) -> Path:
        """The log of standard error."""
        return self._stdout.with_suffix(".err")


# The client.


class _Watcher(core.InfoWatcher):
    """What is known of jobs, where submitit asks its own watcher; slurmlaunch's has asked already."""

    def __init__(self) -> None:
        super().__init__()
        self.futures: WeakValueDictionary[str, Future[Any]] = WeakValueDictionary()

    def get_info(self, job_id: str, mode: str = "standard") -> dict[str, str]:
        """Return what is known of a job; *mode* makes no difference."""
        del mode
        future = self.futures.get(job_id)
        if future is None:
            return {}
        node = next((attempt.node for attempt in reversed(future.attempts) if attempt.node), None)
        return {"JobID": job_id, "State": str(future.state), "NodeList": node or "None assigned"}

    def get_state(self, job_id: str, mode: str = "standard") -> str:
        """Return the state of a job, in Slurm's words."""
        del mode
        future = self.futures.get(job_id)
        return "UNKNOWN" if future is None else str(future.state)

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        """Return whether a job is over."""
        del mode
        future = self.futures.get(job_id)
        return future is not None and future.done()

    def update(self) -> None:
        """Do nothing: states come by themselves."""

    def register_job(self, job_id: str) -> None:
        """Do nothing: a job brings its future."""


class SlurmlaunchJob(core.Job[core.R]):
    """A future, as submitit's job.

    Args:
        folder: the executor's folder.
        job_id: the id of the job: ``"123_4"``.
        tasks: the ranks that it has.
        future: its future; by default it is looked for in the folder.

    Raises:
        RunFolderError: there is no such job.
    """

    watcher = _Watcher()
    _cancel_at_deletion = False

    def __init__(
        self,
        folder: Path | str,
        job_id: str,
        tasks: Sequence[int] = (0,),
        *,
        future: Future[core.R] | None = None,
    ) -> None:
        self._future = _find(folder, job_id) if future is None else future
        self._tasks = tuple(tasks)
        several = self._tasks if len(self._tasks) > 1 else ()
        self._sub_jobs = [type(self)(folder, job_id, (rank,), future=self._future) for rank in several]
        self._register_in_watcher()

    def _register_in_watcher(self) -> None:
        self.watcher.futures[self.job_id] = self._future

    @property
    def future(self) -> Future[core.R]:
        """The future: a `concurrent.futures.Future`, with all that slurmlaunch's has."""
        return self._future

    @property
    def job_id(self) -> str:
        """The id of the job, as ``"123_4"``; empty as long as a later array of a long run is not submitted."""
        return self._future.job_id or ""

    @property
    def paths(self) -> Paths:
        """Where things are."""
        return Paths(self._future.run.folder, self._future.log("out"), self.job_id, self.task_id or 0)

    def submission(self) -> utils.DelayedSubmission:
        """Return what was submitted."""
        from slurmlaunch.runfolder.items import ItemReader
        from slurmlaunch.runfolder.work import load_function

        folder = RunFolder(self._future.run.folder)
        Manifest.read(folder)  # which tells how to read the rest
        calls: Any = load_function(folder)
        with contextlib.closing(ItemReader(folder)) as items:
            submitted: utils.DelayedSubmission = calls.submission(*items[self._future.index])
        return submitted

    def cancel(self, check: bool = True) -> None:  # noqa: FBT001, FBT002  (submitit's own signature)
        """Cancel the job; unless *check*, a scheduler that cannot be told is no error."""
        try:
            self._future.cancel()
        except SlurmlaunchError:
            if check:
                raise

    def wait(self) -> None:
        """Wait for its end."""
        concurrent.futures.wait([self._future])

    def done(self, force_check: bool = False) -> bool:  # noqa: FBT001, FBT002
        """Return whether it is over; *force_check* makes no difference."""
        del force_check
        return self._future.done()

    def result(self) -> core.R:
        """Return what the function returned; see `results`."""
        results = self.results()
        if self._sub_jobs:
            return results  # type: ignore[return-value]  # the documentation's word; submitit itself refuses here
        return results[0]

    def results(self) -> list[core.R]:
        """Wait, and return what the function returned, on each rank.

        Raises:
            submitit.core.utils.FailedJobError: the function raised; its
                exception is the cause.
            submitit.core.utils.UncompletedJobError: it came to no end.
        """
        error = self.exception()
        if error is not None:
            raise error
        if not self._sub_jobs and self.task_id == 0:
            return [self._future.result()]
        future: Any = self._future
        ranks: list[core.R] = future.ranks()
        return ranks if self._sub_jobs else [ranks[self.task_id or 0]]

    def exception(self) -> utils.UncompletedJobError | utils.FailedJobError | None:
        """Wait, and return what `results` would raise, or None."""
        self.wait()
        error = None if self._future.cancelled() else self._future.exception()
        if self._future.cancelled():
            told: utils.UncompletedJobError = utils.UncompletedJobError(f"Job {self.job_id} was cancelled")
        elif error is None:
            return None
        elif isinstance(error, ItemError):
            told = utils.UncompletedJobError(f"Job {self.job_id}: {error}")
        else:
            trace = "".join(traceback.format_exception(error))
            told = utils.FailedJobError(f"Job {self.job_id} failed; its logs: {self.paths.stderr}\n{trace}")
        told.__cause__ = error
        return told

    @property
    def state(self) -> str:
        """What the job is doing, in Slurm's words."""
        return str(self._future.state)

    def get_info(self, mode: str = "force") -> dict[str, str]:
        """Return what is known of the job; *mode* makes no difference."""
        return self.watcher.get_info(self.job_id, mode)

    def stdout(self) -> str | None:
        """Return what the job has printed, all ranks together; None before it has started."""
        return self._get_logs_string("stdout")

    def stderr(self) -> str | None:
        """Return what the job has written to standard error, all ranks together; None before it has started."""
        return self._get_logs_string("stderr")

    def _interrupt(self, timeout: bool = False) -> None:  # noqa: FBT001, FBT002
        """Have Slurm requeue the job, as it does at a preemption: its function is asked for a checkpoint."""
        del timeout
        self._future.requeue()


def _find(folder: Path | str, job_id: str) -> Future[Any]:
    """Return the future of a job that was submitted from a folder, perhaps by another process."""
    from slurmlaunch.client.futures import attach

    number, _, element = job_id.rpartition("_")
    for run_folder in _run_folders(folder):
        for each in read_rounds(run_folder):
            for array, known in each.job_ids().items():
                if known == number and element.isdigit():
                    task = each.plan.arrays[array].first_task + int(element)
                    return attach(run_folder.path)[each.plan.items_of(task)[0]]
    raise RunFolderError(f"no run in {folder} has the job {job_id}", path=str(folder))


def _run_folders(folder: Path | str) -> Iterator[RunFolder]:
    for path in sorted(_fixed(folder).glob("*/manifest.json"), reverse=True):
        yield RunFolder(path.parent)


def _fixed(folder: Path | str) -> Path:
    """Return the part of a folder that does not depend on a job's id, as ``log/%j`` does."""
    return utils.JobPaths.get_first_id_independent_folder(folder)


# Its options.

_OTHERWISE = {
    "array_parallelism": "throttle",
    "job_name": "name",
    "num_gpus": "gpus_per_node",
}
"""What submitit's executor for Slurm calls otherwise."""

_IGNORED = {
    "signal_delay_s": "slurmlaunch warns a task before its time limit by itself",
    "srun_args": "a call is started without srun",
    "use_srun": "a call is started without srun",
}
_CALL = ("tasks", "chunksize")
_OWN = ("stderr_to_stdout", "additional_parameters", "teardown", *_CALL, *_OTHERWISE, *_IGNORED)


class _Parameters(set[str]):
    """The names of all parameters, iterated over without those that submitit's executors have too.

    submitit iterates over the names of each executor to find whose a name
    without a prefix is, and the last one wins: it would take ``partition`` from
    its own executor for Slurm, and that from code that never heard of us.
    """

    __slots__ = ()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(set(super().__iter__()) - SlurmExecutor._valid_parameters()))  # noqa: SLF001


class SlurmlaunchExecutor(core.Executor):
    """submitit's executor on slurmlaunch.

    Args:
        folder: where run folders are made.
        max_num_timeout: how often a job that came to its time limit is started again.
        max_pickle_size_gb: not used: what is common to all jobs is pickled once.
        python: how to start Python on the node, as a shell would read it.
        cluster: ``"slurm"``, ``"local"`` or ``"inline"``, as `slurmlaunch.Executor` takes it.
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
        options = {} if python is None else {"python": shlex.split(python)}
        self._executor = Executor(_fixed(folder), cluster=cluster, **options)

    @classmethod
    def name(cls) -> str:
        """Return the name of the cluster."""
        return NAME

    @classmethod
    def affinity(cls) -> int:
        """Return 0: it is there, and only used where it is asked for."""
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
        from slurmlaunch.client.options import names

        return _Parameters([*names(), *_OWN])

    def _convert_parameters(self, params: dict[str, Any]) -> dict[str, Any]:
        converted = super()._convert_parameters(params)
        if "mem_gb" in params:
            converted["mem"] = f"{int(params['mem_gb'] * 1024)}M"
        return converted

    def _internal_update_parameters(self, **kwargs: Any) -> None:
        """Take parameters.

        Raises:
            UnknownOption, OptionError: one of them cannot be.
        """
        for name in _IGNORED.keys() & kwargs.keys():
            warnings.warn(f"slurmlaunch_{name} is ignored: {_IGNORED[name]}", stacklevel=4)
        parameters = {**self.parameters, **kwargs}
        self._configured(parameters)  # raises here, rather than at the first submission
        super()._internal_update_parameters(**kwargs)

    def _configured(self, parameters: Mapping[str, Any], default_name: str | None = None) -> Executor:
        """Return the executor with these parameters."""
        if parameters.get("teardown"):
            raise OptionError(
                "slurmlaunch_teardown: not offered, clean up at the end of the function", option="teardown"
            )
        options = {_OTHERWISE.get(name, name): value for name, value in parameters.items() if name not in _NOT_OPTIONS}
        options |= _additional(parameters.get("additional_parameters") or {})
        ranks = _ranks(parameters)
        if ranks > 1:
            options["ntasks"] = ranks
        options["env"] = {**(options.get("env") or {}), "SUBMITIT_EXECUTOR": NAME}
        options.setdefault("requeues", self.max_num_timeout)
        options.setdefault("name", default_name)
        if not options.keys() & {"threads", "processes"}:
            options["threads"] = options.get("cpus_per_task")  # a call has all CPUs of its task
        return self._executor.options(**options)

    def _internal_process_submissions(self, delayed_submissions: list[utils.DelayedSubmission]) -> list[core.Job[Any]]:
        from slurmlaunch.client.pickling import name_of

        submissions = list(delayed_submissions)
        executor = self._configured(self.parameters, name_of(submissions[0].function))
        joined = bool(self.parameters.get("stderr_to_stdout")) and executor.cluster != "inline"
        calls, rows = _as_items(submissions, stderr_to_stdout=joined)
        cut: dict[str, Any] = {name: self.parameters.get(name) for name in _CALL}
        if not any(cut.values()):
            cut["chunksize"] = 1
        futures: FutureArray[Any] = executor.starmap_array(calls, rows, **cut)
        ranks = range(_ranks(self.parameters))
        return [SlurmlaunchJob(self.folder, future.job_id or "", ranks, future=future) for future in futures]


_NOT_OPTIONS = {*_OWN} - {*_OTHERWISE}


def _ranks(parameters: Mapping[str, Any]) -> int:
    """Return how many processes call a function together."""
    return int(parameters.get("nodes") or 1) * int(parameters.get("ntasks_per_node") or 1)


def _additional(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that ``additional_parameters`` sets: sbatch's by their names, and others unread."""
    from slurmlaunch.client.options import names

    named = {name.lstrip("-").replace("-", "_"): value for name, value in parameters.items()}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in named.items() if name not in names()]
    return {**{name: value for name, value in named.items() if name in names()}, **({"sbatch": flags} if flags else {})}


def _as_items(
    submissions: Sequence[utils.DelayedSubmission], *, stderr_to_stdout: bool
) -> tuple[Calls, list[tuple[Any, ...]]]:
    """Return the function of a run and its items.

    A function that all have in common is pickled once. Not so one that can be
    checkpointed: it keeps its state in itself, and each item is to have its own.
    """
    functions = [each.function for each in submissions]
    if any(map(_is_checkpointable, functions)):
        rows = [(each.args, each.kwargs, each.function) for each in submissions]
        return CheckpointableCalls(None, stderr_to_stdout=stderr_to_stdout), rows
    if all(function is functions[0] for function in functions):
        return Calls(functions[0], stderr_to_stdout=stderr_to_stdout), [
            (each.args, each.kwargs) for each in submissions
        ]
    rows = [(each.args, each.kwargs, each.function) for each in submissions]
    return Calls(None, stderr_to_stdout=stderr_to_stdout), rows


def _is_checkpointable(function: object) -> bool:
    return hasattr(function, "checkpoint") or hasattr(function, "__submitit_checkpoint__")
