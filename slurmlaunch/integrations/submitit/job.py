"""submitit's job: a future of slurmlaunch with the methods of `submitit.Job`.

The executor creates it, and submitit's users pickle it. It finds its run again by folder and job id.
"""

from __future__ import annotations

import concurrent.futures
import traceback
from typing import TYPE_CHECKING, Any

from submitit.core import core, utils

from slurmlaunch.errors import ItemError, RunFolderError, SlurmlaunchError
from slurmlaunch.integrations.submitit.calls import Paths
from slurmlaunch.runfolder.layout import Manifest, RunFolder
from slurmlaunch.runfolder.rounds import read_rounds

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from slurmlaunch.client.futures import Future


class SlurmlaunchJob(core.Job[core.R]):
    """A future as submitit's job, whose tasks are its ranks; by default the future is searched for in the folder.

    Raises:
        RunFolderError: there is no such job.
    """

    _cancel_at_deletion = False

    def __init__(
        self, folder: Path | str, job_id: str, tasks: Sequence[int] = (0,), *, future: Future[core.R] | None = None
    ) -> None:
        self._future = _find(folder, job_id) if future is None else future
        self._tasks = tuple(tasks)
        several = self._tasks if len(self._tasks) > 1 else ()
        self._sub_jobs = [type(self)(folder, job_id, (rank,), future=self._future) for rank in several]

    def __del__(self) -> None:
        if self._cancel_at_deletion and not self.done():
            self.cancel(check=False)

    @property
    def future(self) -> Future[core.R]:
        """The job's `slurmlaunch.Future`."""
        return self._future

    @property
    def job_id(self) -> str:
        """The id of the job, as ``"123_4"``; empty until its array is submitted."""
        return self._future.job_id or ""

    @property
    def paths(self) -> Paths:
        """The files of the job."""
        return Paths(self._future.run.folder, self._future.log("out"), self.job_id, self.task_id or 0)

    def submission(self) -> utils.DelayedSubmission:
        """Return the submission."""
        from slurmlaunch.client.arguments import ArgumentsReader
        from slurmlaunch.runfolder.function import load_function

        folder = RunFolder(self._future.run.folder)
        manifest = Manifest.read(folder)
        calls: Any = load_function(manifest.function_in(folder))
        submitted: utils.DelayedSubmission = calls.submission(
            *ArgumentsReader(folder, manifest).row_of(self._future.index)
        )
        return submitted

    def cancel(self, check: bool = True) -> None:  # noqa: FBT001, FBT002  (submitit's own signature)
        """Cancel the job; without *check*, a scheduler that does not answer is no error."""
        try:
            self._future.cancel()
        except SlurmlaunchError:
            if check:
                raise

    def wait(self) -> None:
        """Wait until the job is done."""
        concurrent.futures.wait([self._future])

    def done(self, force_check: bool = False) -> bool:  # noqa: FBT001, FBT002
        """Tell whether the job is done; *force_check* is ignored."""
        del force_check
        return self._future.done()

    def result(self) -> core.R:
        """Return the function's result; see `results`."""
        results: Any = self.results()
        return results if self._sub_jobs else results[0]  # type: ignore[no-any-return]

    def results(self) -> list[core.R]:
        """Wait, and return the function's result on each rank.

        Raises:
            submitit.core.utils.FailedJobError: the function raised; its exception is the cause.
            submitit.core.utils.UncompletedJobError: the function did not finish.
        """
        if (error := self.exception()) is not None:
            raise error
        if not self._sub_jobs and self.task_id == 0:
            return [self._future.result()]
        future: Any = self._future
        ranks: list[core.R] = future.ranks()
        return ranks if self._sub_jobs else [ranks[self.task_id or 0]]

    def exception(self) -> utils.UncompletedJobError | utils.FailedJobError | None:
        """Wait, and return the exception that `results` raises, or None."""
        self.wait()
        error = None if self._future.cancelled() else self._future.exception()
        if self._future.cancelled():
            failure: utils.UncompletedJobError = utils.UncompletedJobError(f"Job {self.job_id} was cancelled")
        elif error is None:
            return None
        elif isinstance(error, ItemError):
            failure = utils.UncompletedJobError(f"Job {self.job_id}: {error}")
        else:
            trace = "".join(traceback.format_exception(error))
            failure = utils.FailedJobError(f"Job {self.job_id} failed; its logs: {self.paths.stderr}\n{trace}")
        failure.__cause__ = error
        return failure

    @property
    def state(self) -> str:
        """The state of the job in Slurm's words."""
        return str(self._future.state)

    def get_info(self, mode: str = "force") -> dict[str, str]:
        """Return the state and the node of the job; *mode* is ignored."""
        del mode
        node = next((attempt.node for attempt in reversed(self._future.attempts) if attempt.node), None)
        return {"JobID": self.job_id, "State": self.state, "NodeList": node or "None assigned"}

    def stdout(self) -> str | None:
        """Return the standard output of all ranks; None before the start."""
        return self._get_logs_string("stdout")

    def stderr(self) -> str | None:
        """Return the standard error of all ranks; None before the start."""
        return self._get_logs_string("stderr")

    def _interrupt(self, timeout: bool = False) -> None:  # noqa: FBT001, FBT002
        """Requeue the job as a preemption does, after a checkpoint of its function."""
        del timeout
        self._future.requeue()


def _find(folder: Path | str, job_id: str) -> Future[Any]:
    """Return the future of a job in a folder, also if another process submitted it."""
    from slurmlaunch.client.futures import open_run

    number, _, element = job_id.rpartition("_")
    for manifest in sorted(fixed_part(folder).glob("*/manifest.json"), reverse=True):
        for each in read_rounds(RunFolder(manifest.parent)):
            for array, known in each.journal().job_ids.items():
                if known == number and element.isdigit():
                    task = each.plan.arrays[array].first_task + int(element)
                    return open_run(manifest.parent)[each.plan.items_of(task)[0]]
    raise RunFolderError(f"no run in {folder} has the job {job_id}", path=str(folder))


def fixed_part(folder: Path | str) -> Path:
    """Return the part of a folder's path that does not depend on the job's id: ``log`` for ``log/%j``."""
    return utils.JobPaths.get_first_id_independent_folder(folder)
