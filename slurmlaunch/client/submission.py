"""Submitting the rounds of a run, now or later, by this client or in the place of one that is gone.

The first array of a round is submitted during the call, the others from a
thread; where a limit on what one may have in the queue is hit, they wait for
room. A client that was killed leaves its intents in the round's journal: its
jobs are found by their names, what waited is submitted by whoever comes next,
and what nobody will submit any more is said to be so.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from slurmlaunch.backends.base import ArrayJob
from slurmlaunch.backends.container import folders_inside
from slurmlaunch.client.options import Options
from slurmlaunch.client.sbatch_options import as_count
from slurmlaunch.errors import SchedulerError, SlurmlaunchError, SubmissionError
from slurmlaunch.runfolder.clients import ClientId

if TYPE_CHECKING:
    from collections.abc import Iterable

    from slurmlaunch.client.run import Run
    from slurmlaunch.runfolder.journal import Round

_NEVER_SUBMITTED = "it was never submitted: the client that was to do so is gone. Submit it with .retry()"

_SHORTEST_WAIT, _LONGEST_WAIT = 5.0, 60.0
"""Seconds between two tries of a submission for which there was no room."""

_SBATCH_OUTLIVES, _LOOK_AGAIN = 10.0, 0.5
"""Seconds for which the sbatch of a client that was killed may go on, and between two looks for its job."""

_KEEP_UP_EVERY = 30.0
"""Seconds between two looks at what other clients are to submit."""

_log = logging.getLogger("slurmlaunch")


def array_job(run: Run, its_round: Round, number: int) -> ArrayJob:
    """Return all that the scheduler is told of an array."""
    plan, array = its_round.plan, its_round.plan.arrays[number]
    options = Options.from_json(plan.options)
    throttle = its_round.throttle
    jobs = run.tasks.jobs
    earlier = [jobs[key] for key in sorted(jobs) if key[0] == its_round.number and key[1] < number]
    return ArrayJob(
        run_folder=run.folder.path,
        name=array.name,
        round=its_round.number,
        array=number,
        first_task=array.first_task,
        length=array.length,
        throttle=throttle,
        cwd=Path(run.manifest.cwd),
        python=options.python,
        cpus_per_task=plan.cpus_per_task,
        threads=plan.threads,
        options=options.slurm,
        flags=options.sbatch,
        env=options.env,
        modules=options.modules,
        setup=options.setup,
        # One throttle for all arrays of a round: each waits for the one before it.
        after=earlier[-1] if throttle and earlier else None,
        warning=plan.warning if plan.requeues else None,
        may_requeue=bool(plan.requeues),
        container=options.container,
        folders=_folders_inside(run) if options.container else (),
        ranks=plan.ranks.number if plan.ranks else 1,
    )


def _folders_inside(run: Run) -> tuple[Path, ...]:
    return folders_inside(run.folder.path, Path(run.manifest.cwd), run.manifest.sys_path)


class Submission:
    """Submits the arrays of one run."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._unanswered: dict[str, float] = {}
        self._keep_up_at = 0.0

    def submit(self, *, patiently: bool = False) -> None:
        """Submit the last round: its first array now, the others from a thread.

        Args:
            patiently: the first one, too, waits for room in the queue and for a scheduler that is away.

        Raises:
            SubmissionError: the scheduler refused the first array.
        """
        latest = self._run.tasks.rounds[-1]
        self._run.tasks.ours.add(latest.number)
        if not latest.plan.arrays:
            return
        try:
            if not patiently:
                self._submit_array(latest, 0)
            elif not self._submit_when_there_is_room(latest, 0):
                return  # the interpreter ends: others go on with it
        except BaseException as error:
            refused = isinstance(error, SlurmlaunchError) and not getattr(error, "ambiguous", False)
            with contextlib.suppress(OSError):  # a full disk may be the very reason
                for number in range(len(latest.plan.arrays)):
                    latest.refused(number, str(error)) if refused else latest.abandoned(number)
            raise
        if len(latest.plan.arrays) > 1:
            self._submit_in_thread(latest, range(1, len(latest.plan.arrays)))

    def _submit_in_thread(self, its_round: Round, numbers: Iterable[int]) -> None:
        # No daemon: a script that ends has its arrays submitted, as far as there is room for them.
        threading.Thread(
            target=self._submit_rest, args=(its_round, list(numbers)), name="slurmlaunch-submit", daemon=False
        ).start()

    def _submit_rest(self, its_round: Round, numbers: Iterable[int]) -> None:
        for number in numbers:
            try:
                if not self._submit_when_there_is_room(its_round, number):
                    return
            except (SlurmlaunchError, OSError) as error:
                with contextlib.suppress(OSError):  # a full disk may be the very reason
                    its_round.refused(number, str(error))
                self._refuse(its_round, number, error)

    def _submit_when_there_is_room(self, its_round: Round, number: int) -> bool:
        """Submit an array, as often as that has to wait; False where the interpreter ends first."""
        pause = _SHORTEST_WAIT
        while self._run.ledger.open:
            try:
                self._submit_array(its_round, number)
            except (SubmissionError, SchedulerError) as error:
                why = _worth_waiting_for(error)
                if why is None:
                    raise
                if pause == _SHORTEST_WAIT:
                    its_round.waiting(number, ClientId.current())
                    _log.warning("slurmlaunch waits %s: %s", why, error.stderr.strip())
            else:
                return True
            if not _sleep(_jittered(pause)):
                where = self._run.folder.path
                _log.warning("slurmlaunch ends with arrays not submitted: slurmlaunch.attach(%r) goes on", str(where))
                return False
            pause = min(_LONGEST_WAIT, pause * 2)
        return True

    def _submit_array(self, its_round: Round, number: int) -> None:
        run = self._run
        job = array_job(run, its_round, number)
        if job.container is not None:
            job.container.prepare(job.folders)
        its_round.intend(number)
        job_id = self._submit_once(job)
        with run.changed:
            run.tasks.jobs[its_round.number, number] = job_id
        try:
            its_round.submitted(number, job_id)
        except OSError as error:  # it runs all the same, and can be found by its name
            _log.warning("slurmlaunch could not write down job %s of %s: %s", job_id, run.folder.path, error)
        with contextlib.suppress(OSError):  # it is accepted all the same, and whoever watches it looks again
            run.look_for_cancellations()
        if not run.ledger.open:  # cancelled while it was being submitted, perhaps by another client
            run.backend.cancel(job_id)

    def _submit_once(self, job: ArrayJob) -> str:
        """Submit an array, unless it was before, by a command that did not answer."""
        backend, since = self._run.backend, self._unanswered.get(job.name)
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

    # Refusals.

    def take_refusals(self) -> None:
        """Settle the items of the arrays that others were refused for good, as the journals say."""
        for each in self._run.tasks.rounds:
            if each.number in self._run.tasks.ours:
                continue  # whoever submits here says so himself
            for number, error in each.refusals().items():
                self._refuse(each, number, SubmissionError(error))

    def _refuse(self, its_round: Round, number: int, error: BaseException) -> None:
        self._run.tasks.given_up.add((its_round.number, number))
        refused = its_round.plan.arrays[number]
        tasks = range(refused.first_task, refused.first_task + refused.length)
        if its_round.plan.blocks is not None:
            with self._run.changed:
                self._run.tasks.ends.update(dict.fromkeys(tasks, error))  # other tasks may take what these would have
            return
        self._run.ended([item for task in tasks for item in self._run.tasks.items_of(task)], lambda _: error)

    def will_come(self, its_round: Round, number: int) -> bool:
        """Whether an array that is not submitted may yet be, by a client that lives."""
        if number in its_round.refusals() or number in its_round.abandonments():
            return False
        if its_round.plan.client is None:
            return True
        return not all(map(its_round.may_replace, (its_round.plan.client, *its_round.waits().values())))

    # In the place of a client that is gone.

    def take_up(self) -> None:
        """Take up what clients that are gone have left: find their jobs, and submit what waited for room.

        Where the scheduler does not answer, this goes on in a thread: nothing is
        called "never submitted" that could not be looked for.
        """
        try:
            self._find_lost_jobs()
        except SchedulerError as error:
            where = self._run.folder.path
            _log.warning("slurmlaunch cannot look for the jobs of %s, and keeps trying: %s", where, error)
            threading.Thread(target=self._take_up_later, name="slurmlaunch-find", daemon=True).start()
        else:
            self._resume()

    def _take_up_later(self) -> None:
        pause = _SHORTEST_WAIT
        while self._run.ledger.open:
            time.sleep(_jittered(pause))
            pause = min(_LONGEST_WAIT, pause * 2)
            with contextlib.suppress(SchedulerError):
                self._find_lost_jobs()
                self._resume()
                return

    def keep_up(self) -> None:
        """Take in, now and then, what has become of arrays that others are to submit: refused, or left undone."""
        waits = any(self._missing(each) for each in self._run.tasks.rounds)
        if not waits or time.monotonic() < self._keep_up_at:
            return
        self._keep_up_at = time.monotonic() + _KEEP_UP_EVERY
        self.take_refusals()
        if any(map(self._is_left, self._run.tasks.rounds)):
            with contextlib.suppress(SchedulerError):  # it is asked again the next time
                self._find_lost_jobs()
                self._resume()

    def _missing(self, its_round: Round) -> list[int]:
        """Return the arrays of a round that may yet be submitted, as far as this client knows."""
        tasks = self._run.tasks
        every = ((its_round.number, number) for number in range(len(its_round.plan.arrays)))
        return [each[1] for each in every if each not in tasks.jobs and each not in tasks.given_up]

    def _is_left(self, its_round: Round) -> bool:
        """Whether nobody who lives will submit what is missing of a round."""
        missing = self._missing(its_round)
        if not missing or its_round.plan.client is None:
            return False
        if its_round.abandonments().issuperset(missing):
            return True
        waits = [who for number, who in its_round.waits().items() if number in missing]
        return all(map(its_round.may_replace, (its_round.plan.client, *waits)))

    def _resume(self) -> None:
        """Submit what waited for room, or was to be run again, and is left; give up on what was never submitted."""
        self.take_refusals()
        for each in filter(self._is_left, self._run.tasks.rounds):
            missing = self._missing(each)
            if not (each.plan.automatic or each.waits()):
                for number in missing:
                    self._refuse(each, number, SubmissionError(_NEVER_SUBMITTED))
            elif each.take_over(ClientId.current()):
                each.waiting(missing[0], ClientId.current())  # others leave it to us
                self._submit_in_thread(each, missing)

    def _find_lost_jobs(self) -> None:
        """Find the jobs that a client submitted and did not live to write down."""
        for each in self._run.tasks.rounds:
            intents = {entry["intent"]: entry["time"] for entry in each.journal() if "intent" in entry}
            known = {*each.refusals(), *(number for r, number in self._run.tasks.jobs if r == each.number)}
            for number in intents.keys() - known:
                job_id = self._find_lost(each, number, intents[number])
                if job_id is not None:
                    each.submitted(number, job_id)
                    self._run.tasks.jobs[each.number, number] = job_id

    def _find_lost(self, its_round: Round, number: int, when: float) -> str | None:
        name = its_round.plan.arrays[number].name
        maker = its_round.plan.client
        while (job_id := self._run.backend.find(name, when)) is None:
            # The sbatch of a client that was killed lives on, and submits a moment later.
            if maker is None or not maker.has_ended or not 0 <= time.time() - when < _SBATCH_OUTLIVES:
                break
            time.sleep(_LOOK_AGAIN)
        return job_id

    # The throttle.

    def set_throttle(self, throttle: int | None) -> None:
        """Change how many tasks of the last round run at once.

        Raises:
            OptionError: it is below 1.
            SchedulerError: the scheduler did not do it.
        """
        run, latest = self._run, self._run.tasks.rounds[-1]
        throttle = None if throttle is None else as_count("throttle", throttle)
        with run.changed:
            jobs = [run.tasks.jobs[key] for key in sorted(run.tasks.jobs) if key[0] == latest.number]
        before = None
        for job_id in jobs:
            run.backend.set_throttle(job_id, throttle, after=before if throttle else None)
            before = job_id
        latest.throttled(throttle)


def _worth_waiting_for(error: SubmissionError | SchedulerError) -> str | None:
    """Return what to wait for after a submission that failed; None where the same would fail again."""
    if isinstance(error, SchedulerError) or error.ambiguous:
        return "for sbatch to answer"
    if error.no_room:
        return "for room in the queue"
    return "for the scheduler to come back" if error.transient else None


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(0.8, 1.2)  # noqa: S311  (so that clients do not come back at once)


def _sleep(seconds: float) -> bool:
    """Sleep; return False at once when the interpreter ends, which is not to wait for room."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if not threading.main_thread().is_alive():
            return False
        time.sleep(min(left, 0.2))
    return True
