"""Submitting the rounds of a run: now, later, or in the place of a client that has ended.

Used by the executor, `rerun` and the watcher. The first array of a round is submitted
during the call, the others by `waiting_line`; if a limit on queued jobs is reached, they wait
there for room. A client that is killed leaves its intents in the round's journal: another client
finds its jobs by their names and submits the arrays that waited; items that nobody will
submit fail with an error that says so. The run gets events about all of this.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from slurmlaunch.client.events import ArrayNotNeeded, ArrayRefused, CancelJobs, CancellationSeen, JobsSeen
from slurmlaunch.client.options import Options
from slurmlaunch.client.rounds import array_job
from slurmlaunch.client.sbatch_options import as_count
from slurmlaunch.client.waiting_line import Obstacle, line_of
from slurmlaunch.errors import SchedulerError, SlurmlaunchError, SubmissionError
from slurmlaunch.runfolder.clients import ClientId
from slurmlaunch.runfolder.rounds import CancellationReader, Round
from slurmlaunch.runfolder.storage import status_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from slurmlaunch.backends.base import ArrayJob
    from slurmlaunch.client.run import Run
    from slurmlaunch.client.waiting_line import WaitingLine

_NEVER_SUBMITTED = (
    "This array was never submitted, because the process that should have submitted it has ended. "
    "Call .retry() to submit it."
)

_CHOOSE_LIMITS = ("account", "partition", "qos")
"""The options of sbatch by which Slurm finds a limit on jobs in the queue."""

_SBATCH_OUTLIVES, _FIND_AGAIN = 10.0, 0.5
"""Seconds for which the sbatch of a killed client may still run, and between two searches for its job."""

_FOLLOW_EVERY = 30.0
"""Seconds between two checks of the arrays that other clients should submit."""

_log = logging.getLogger("slurmlaunch")


class _Arrays:
    """Arrays of a round in the line of its backend (`waiting_line.Waiting`)."""

    def __init__(
        self,
        submission: Submission,
        round_: Round,
        numbers: Iterable[int],
        ended: Callable[[Exception | None], None] | None = None,
    ) -> None:
        self._submission, self._round, self._numbers, self._ended = submission, round_, list(numbers), ended
        self._noted: set[int] = set()
        self.run_folder = submission.run.folder.path
        self.shares = (submission.limited_by(round_), self.run_folder)

    @property
    def is_left(self) -> bool:
        """Whether there is one to submit."""
        return bool(self._numbers)

    def is_needed(self) -> bool:
        """Whether items are left for them."""
        return self._submission.is_needed(self._round)

    def attempt(self) -> Obstacle | None:
        """Submit the next; if it is refused for good, its items fail."""
        number, refused = self._numbers[0], None
        try:
            obstacle = self._submission.attempt(self._round, number)
            if obstacle is not None:
                return obstacle
        except Exception as error:  # noqa: BLE001  (whatever it is, nobody may wait for items that will not run)
            refused = error
        ended, self._ended = self._ended, None
        if refused is None:
            del self._numbers[0]
        elif ended is None:
            del self._numbers[0]
            self._submission.refuse(self._round, number, refused)
        else:
            self._numbers.clear()
            self._submission.give_up(self._round, refused)
        if ended is not None:
            ended(refused)
        return None

    def note(self) -> None:
        """Record in the journal that the next waits."""
        for number in self._numbers[:1]:
            if number not in self._noted:
                self._noted.add(number)
                with contextlib.suppress(OSError):
                    self._round.waiting(number, ClientId.current())


class Submission:
    """Submits the arrays of one run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._unanswered: dict[str, float] = {}
        self._follow_at = 0.0
        self._search_again = False

    @property
    def _line(self) -> WaitingLine:
        return line_of(self.run.backend)

    def submit(self, latest: Round, *, ended: Callable[[Exception | None], None] | None = None) -> None:
        """Submit a round: its first array now, the others from the thread of the waiting line.

        If only the user's other jobs leave no room for the first array, it waits in the line, too.

        Args:
            latest: the round, which this client has made.
            ended: has the first array also wait for other obstacles, such as a scheduler that is away; is called when
                the array is submitted, or with the error if it is refused after it has waited.

        Raises:
            SubmissionError: the scheduler refused the first array.
        """
        self.run.submitting.add(latest.number)
        numbers = range(len(latest.plan.arrays))
        if not numbers:
            return
        try:
            with advice_on_interrupt(self.run):
                waits, obstacle = self._submit_first(latest, patiently=ended is not None)
        except BaseException as error:
            self.give_up(latest, error)
            raise
        if waits:
            self._line.join(_Arrays(self, latest, numbers, ended), obstacle)
            return
        if ended is not None:
            ended(None)
        if numbers[1:]:
            self._line.join(_Arrays(self, latest, numbers[1:]))

    def _submit_first(self, latest: Round, *, patiently: bool) -> tuple[bool, Obstacle | None]:
        """Submit the first array; return whether it has to wait, and for what, unless others in the line do, too."""
        length = latest.plan.arrays[0].length
        others_wait = not self._line.is_empty and self._line.holds(self.limited_by(latest))
        if patiently:
            obstacle = None if others_wait else self.attempt(latest, 0)
            return others_wait or obstacle is not None, obstacle
        limit = self.run.backend.limits().max_submitted if others_wait else None
        if limit is not None and length <= limit:
            return True, None
        try:
            self._submit_array(latest, 0)
        except SubmissionError as error:
            if error.limit is None or length > error.limit:
                raise
            return True, self._obstacle(latest, error)
        return False, None

    def give_up(self, round_: Round, error: BaseException) -> None:
        """Record that no array of a round will be submitted by this client."""
        refused = isinstance(error, SlurmlaunchError) and not getattr(error, "ambiguous", False)
        with contextlib.suppress(OSError):  # a full disk may be the very reason
            for number in range(len(round_.plan.arrays)):
                round_.refused(number, str(error)) if refused else round_.abandoned(number)

    def refuse(self, round_: Round, number: int, error: Exception) -> None:
        """Record that an array is refused for good, and fail its items."""
        with contextlib.suppress(OSError):  # a full disk may be the very reason
            round_.refused(number, str(error))
        self.run.handle(ArrayRefused(round_.number, number, error))

    def limited_by(self, round_: Round) -> tuple[object, ...]:
        """Return the options of a round that choose the limits on jobs in the queue."""
        options = Options.from_json(round_.plan.options)
        variables = self.run.environments.of_round(round_.number).variables
        given = (options.slurm.get(name, variables.get(f"SBATCH_{name.upper()}")) for name in _CHOOSE_LIMITS)
        return (*given, *options.sbatch)

    def attempt(self, round_: Round, number: int) -> Obstacle | None:
        """Submit an array, if items are left for it; return what is in the way and passes by itself.

        Raises:
            Exception: the same would fail again.
        """
        if not self.is_needed(round_):
            with contextlib.suppress(OSError):
                round_.not_needed(number)
            self.run.handle(ArrayNotNeeded(round_.number, number))
            return None
        try:
            self._submit_array(round_, number)
        except (SubmissionError, SchedulerError, OSError) as error:
            obstacle = self._obstacle(round_, error)
            if obstacle is None:
                raise
            return obstacle
        return None

    def _obstacle(self, round_: Round, error: SubmissionError | SchedulerError | OSError) -> Obstacle | None:
        """Return what to wait for after a failed submission; None if the same would fail again."""
        if isinstance(error, OSError):
            if status_of(error) is None:
                return None
            return Obstacle("the storage of the run folder", str(error), self.run.folder.path)
        if isinstance(error, SchedulerError) or error.ambiguous:
            waits_for = "sbatch to answer"
        elif error.no_room:
            waits_for = "room in the queue"
        elif error.transient:
            waits_for = "the scheduler to come back"
        else:
            return None
        return Obstacle(waits_for, error.stderr.strip(), self.limited_by(round_))

    def is_needed(self, round_: Round) -> bool:
        """Whether items are left for the arrays of a round."""
        return bool(self.run.ledger.open) and self.run.tasks.rounds[round_.number].needed

    def _submit_array(self, round_: Round, number: int) -> None:
        run = self.run
        job = array_job(run, round_, number)
        if run.manifest.backend == "slurm":  # whose script goes to the run folder by its path
            job = replace(job, recognized_by=run.folder.secret_file())
        if job.container is not None:
            job.container.prepare(job.folders)
        round_.intend(number)
        job_id = self._submit_once(job)
        run.handle(JobsSeen(round_.number, {number: job_id}))
        try:
            round_.submitted(number, job_id)
        except OSError as error:  # the job runs all the same, and can be found by its name
            _log.warning("slurmlaunch could not record job %s of %s: %s", job_id, run.folder.path, error)
        with contextlib.suppress(OSError):  # the job is accepted all the same, and the watcher reads cancellations, too
            for cancelled in CancellationReader(run.folder, [each.number for each in run.rounds]).new():
                run.handle(CancellationSeen(*cancelled))
        for effect in run.handle(JobsSeen(round_.number, {number: job_id}, ours=True)):
            if isinstance(effect, CancelJobs):
                run.cancel_jobs(effect)

    def _submit_once(self, job: ArrayJob) -> str:
        """Submit an array, unless an earlier command that did not answer has done so."""
        backend, since = self.run.backend, self._unanswered.get(job.name)
        job_id = None if since is None else backend.find(job.name, since)
        if job_id is not None:
            return job_id
        began = time.time()
        try:
            return backend.submit(job)
        except SubmissionError as error:
            if error.ambiguous:
                self._unanswered.setdefault(job.name, began)
            raise

    # Arrays that other clients submit, or left.

    def read_refusals(self) -> None:
        """Report the arrays that were refused to other clients, as the journals say."""
        for each in self.run.rounds:
            if each.number not in self.run.submitting:  # this client reports its own refusals itself
                journal = each.journal()
                for number, error in journal.refusals.items():
                    self.run.handle(ArrayRefused(each.number, number, SubmissionError(error)))
                for number in journal.not_needed:
                    self.run.handle(ArrayNotNeeded(each.number, number))

    def may_be_submitted(self, round_: Round, number: int) -> bool:
        """Whether a client that runs may yet submit an array."""
        journal, client = round_.journal(), round_.plan.client
        if number in journal.refusals or number in journal.abandoned:
            return False
        return client is None or not all(map(round_.may_replace, (client, *journal.waits.values())))

    def take_over(self) -> None:
        """Find the jobs of clients that have ended, and submit the arrays that they left.

        If the scheduler does not answer, `follow` does this later: no array is called "never submitted" before its
        job was searched for.
        """
        try:
            self._submit_left()
        except SchedulerError as error:
            self._search_again = True
            where = self.run.folder.path
            _log.warning("slurmlaunch cannot search for the jobs of %s, and keeps trying: %s", where, error)

    def follow(self) -> None:
        """Check, at intervals, whether arrays that other clients should submit were refused or left."""
        if not any(map(self._missing, self.run.rounds)) or time.monotonic() < self._follow_at:
            return
        self._follow_at = time.monotonic() + _FOLLOW_EVERY
        self.read_refusals()
        if self._search_again or any(map(self._is_left, self.run.rounds)):
            with contextlib.suppress(SchedulerError):  # the next check asks it again
                self._submit_left()
                self._search_again = False

    def _missing(self, round_: Round) -> list[int]:
        """Return the arrays of a round that may yet be submitted, as far as this client knows."""
        return self.run.tasks.rounds[round_.number].missing_arrays

    def _is_left(self, round_: Round) -> bool:
        """Whether no running client will submit the missing arrays of a round."""
        missing = self._missing(round_)
        if not missing or round_.plan.client is None:
            return False
        journal = round_.journal()
        if journal.abandoned.issuperset(missing):
            return True
        waits = [who for number, who in journal.waits.items() if number in missing]
        return all(map(round_.may_replace, (round_.plan.client, *waits)))

    def _submit_left(self) -> None:
        """Submit arrays that waited for room, or belong to a retry, and are left; report that nobody submits others."""
        self._find_lost_jobs()
        self.read_refusals()
        for each in filter(self._is_left, self.run.rounds):
            missing = self._missing(each)
            if not (each.plan.automatic or each.journal().waits):
                for number in missing:
                    self.run.handle(ArrayRefused(each.number, number, SubmissionError(_NEVER_SUBMITTED)))
            elif each.take_over(ClientId.current()):
                each.waiting(missing[0], ClientId.current())  # other clients leave it to this one
                self._line.join(_Arrays(self, each, missing))

    def _find_lost_jobs(self) -> None:
        """Find the jobs that a client submitted without recording their ids."""
        for each in self.run.rounds:
            journal, jobs = each.journal(), self.run.tasks.rounds[each.number].jobs
            for number in journal.intents.keys() - journal.refusals.keys() - journal.job_ids.keys() - jobs.keys():
                job_id = self._find_lost(each, number, journal.intents[number])
                if job_id is not None:
                    each.submitted(number, job_id)
                    self.run.handle(JobsSeen(each.number, {number: job_id}))

    def _find_lost(self, round_: Round, number: int, when: float) -> str | None:
        name, maker = round_.plan.arrays[number].name, round_.plan.client
        while (job_id := self.run.backend.find(name, when)) is None:
            # The sbatch of a killed client lives on, and submits a moment later.
            if maker is None or not maker.has_ended or not 0 <= time.time() - when < _SBATCH_OUTLIVES:
                break
            time.sleep(_FIND_AGAIN)
        return job_id

    # The throttle.

    def set_throttle(self, throttle: int | None) -> None:
        """Change how many tasks of the last round run at once.

        Raises:
            OptionError: it is below 1.
            SchedulerError: the scheduler did not do it.
        """
        run, latest = self.run, self.run.rounds[-1]
        throttle = None if throttle is None else as_count("throttle", throttle)
        with run.changed:
            jobs = [job_id for _, job_id in sorted(run.tasks.rounds[-1].jobs.items())]
        before = None
        for job_id in jobs:
            run.backend.set_throttle(job_id, throttle, after=before if throttle else None)
            before = job_id
        latest.throttled(throttle)


@contextlib.contextmanager
def advice_on_interrupt(run: Run) -> Iterator[None]:
    """Print, at Ctrl-C, that the jobs continue, or may have been submitted, and how to come back to them."""
    try:
        yield
    except KeyboardInterrupt:
        if run.ledger.open and run.backend.name == "slurm":
            say_how_to_come_back(run)
        raise


_SAID: set[Path] = set()
"""The run folders of which this process has said how to come back to them."""


def leave_quietly(run_folder: Path) -> None:
    """Say nothing of the run when this process ends: its user named the run, and knows how to come back to it."""
    _SAID.add(run_folder)


def say_how_to_come_back(run: Run) -> None:
    """Print, once for a run, that its jobs go on without this process, and how to come back to them or end them."""
    if run.folder.path in _SAID:
        return
    _SAID.add(run.folder.path)
    folder, jobs = str(run.folder.path), ", ".join(run.job_ids)
    what = f"The jobs {jobs} go on." if jobs else "sbatch may have submitted a job, which then goes on."
    if not jobs and line_of(run.backend).holds(run.folder.path):
        what = "No job of this run is submitted yet."
    it = "them" if jobs else "it"
    print(  # noqa: T201  (where the user presses Ctrl-C, or ends a script)
        f"\n{what} Come back to {it}, from any process, with\n"
        f"    fs = slurmlaunch.attach({folder!r})\n"
        f"or end {it} with fs.cancel().",
        file=sys.stderr,
    )
