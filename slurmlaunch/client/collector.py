"""From the run folder to events: tasks that have started, outcome files that have grown, end marks.

The watcher polls each run with a `Collector` again and again. It decides nothing: `RunState` does that. A poll reads
two modification times, lists the folders that have changed, and opens the outcome files that may have grown, as many
as the rate limit allows.
"""

from __future__ import annotations

from collections import ChainMap, Counter
from itertools import chain
from typing import TYPE_CHECKING

from slurmlaunch.client import events
from slurmlaunch.errors import LOG_LINES, ResultLost, UnsafeRunFolder
from slurmlaunch.outcome import Failure
from slurmlaunch.runfolder.changes import NewNames, is_on_network
from slurmlaunch.runfolder.claims import ClaimReader
from slurmlaunch.runfolder.layout import EndMark, numbers_in
from slurmlaunch.runfolder.outcomes import OutcomeFile
from slurmlaunch.runfolder.plan import Blocks
from slurmlaunch.runfolder.records import Damage, Kind
from slurmlaunch.runfolder.rounds import CancellationReader, Round

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slurmlaunch.client.events import Event, ReadTasks
    from slurmlaunch.client.run import Run
    from slurmlaunch.runfolder.files import Location
    from slurmlaunch.runfolder.outcomes import Recorded

_SLOW_EVERY = 1.0
"""Seconds between two looks for cancellations, job ids and claims."""

_FIRST_GAP = 0.02
"""Seconds after which a folder that has just changed is listed again."""

_LOG_BYTES = 1 << 16
_UNBOUNDED = 1 << 40
_OUR_ERRORS = f"{ResultLost.__module__}."


class Collector:
    """Reports the changes in one run folder.

    Attributes:
        network: whether the folder is on a network file system.
        visits: how many "folders", files of running tasks ("growing") and files of ended tasks ("ended") were visited.
        unchanged: how many of the visited files of running tasks had not grown.
    """

    def __init__(self, run: Run, *, network: bool | None = None) -> None:
        """Begin with nothing seen; *network* overrides the system's list of mounts."""
        self.network = is_on_network(run.folder.path.parent) if network is None else network
        self.visits: Counter[str] = Counter()
        self.unchanged = 0
        self._run, self._state = run, run.state
        self._end_marks, self._attempts = (
            NewNames(folder, run.clock, network=self.network, first_gap=_FIRST_GAP)
            for folder in (run.folder.ended, run.folder.outcomes)
        )
        self._files: dict[tuple[int, int], OutcomeFile] = {}
        self._growing: dict[tuple[int, int], None] = {}
        self._unread: dict[int, EndMark] = {}
        self._foreign: set[str] = set()
        self._claims: dict[int, ClaimReader] = {}
        self._slow_at = self._claims_at = 0.0
        self._ends_seen = 0
        self._marked: set[int] = set()
        self._follow_rounds()

    def poll(self, growing: float = _UNBOUNDED, ended: float = _UNBOUNDED) -> Iterator[Event]:
        """Yield an event for each change; each has to be handled before the next one is taken.

        Args:
            growing: how many files may be read of tasks that run.
            ended: how many of tasks that have ended, which are read to the end once.

        Raises:
            OSError: the folder cannot be read now; the next poll reports the rest.
        """
        now, before = self._run.clock(), self.progress
        if now >= self._slow_at:
            self._slow_at = now + _SLOW_EVERY
            yield from self._new_cancellations()
            yield from self._new_jobs()
        if len(self._run.rounds) != self._rounds:
            self._follow_rounds()
        self._list_end_marks()
        yield from self._list_attempts()
        if self._unread or now >= self._claims_at:  # before the end of a task is decided, its claims are known
            self._claims_at = now + _SLOW_EVERY
            yield from self._new_claims()
        yield from self._read_growing(growing)
        yield from self._read_ended(ended)
        if self._state.adopts_round:
            yield from self._next_round()
        yield events.Tick()
        if before != self.progress:
            yield from self._new_jobs()  # another client's job may be over before the next slow poll

    @property
    def all_ended(self) -> bool:
        """Whether every task has left an end mark, perhaps of an earlier start."""
        return len(self._marked) == sum(len(each.plan.tasks) for each in self._run.rounds)

    @property
    def progress(self) -> tuple[int, ...]:
        """Numbers of which at least one changes with every news."""
        return self._state.ledger.open, len(self._files), self._ends_seen, len(self._run.rounds)

    def read_tasks(self, request: ReadTasks) -> Iterator[Event]:
        """Yield everything that is left in the files of tasks, then `TasksRead`."""
        files = []
        for task in request.tasks:
            if task in self._unread:
                yield from self._read_task(task)
            view = self._state.tasks.view(task)
            for attempt in range(view.attempts):
                self.visits["ended"] += 1
                yield from self._read(task, attempt, final=True)
            last = self._run.folder.outcome_file(task, max(0, view.attempts - 1))
            size = last.status().st_size if last.exists() else 0
            log_tail = _tail(self._state.tasks.log(task, "err")) if task in request.logs else ""
            files.append(events.TaskFiles(task, size, log_tail))
        yield events.TasksRead(tuple(files))

    def read_ends(self) -> events.EndsRead:
        """Return the ends that earlier clients recorded."""
        return events.EndsRead(tuple(end for each in self._run.rounds for end in each.ends()))

    # Folders.

    def _follow_rounds(self) -> None:
        """Read the files of new rounds, which were passed over before."""
        self._rounds = len(self._run.rounds)
        self._cancellations = CancellationReader(self._run.folder, [each.number for each in self._run.rounds])
        self._end_marks.forget(self._foreign)
        self._attempts.forget(self._foreign)
        self._foreign.clear()

    def _is_ours(self, task: int, name: str) -> bool:
        if task in self._state.tasks:
            return True
        self._foreign.add(name)
        return False

    def _new_cancellations(self) -> Iterator[Event]:
        self.visits["folders"] += 1
        yield from (events.CancellationSeen(number, items) for number, items in self._cancellations.new())

    def _new_jobs(self) -> Iterator[Event]:
        for round_ in self._run.rounds:
            if len(self._state.tasks.rounds[round_.number].jobs) < len(round_.plan.arrays):
                self.visits["folders"] += 2
                yield events.JobsSeen(round_.number, round_.journal().job_ids)

    def _next_round(self) -> Iterator[Event]:
        """Yield a round that another client made, perhaps of the items that wait for a retry here."""
        self.visits["folders"] += 1
        try:
            added = Round.read(self._run.folder, len(self._run.rounds))
        except FileNotFoundError:
            return
        yield events.RoundAdded(added.number, added.plan)

    def _new_claims(self) -> Iterator[Event]:
        for view in self._state.tasks.rounds:
            if view.claims is None:
                continue
            claims: tuple[tuple[range, int], ...] = ()
            if view.claims.unclaimed:
                self.visits["folders"] += 1
                folder = self._run.folder.claims(view.number)
                blocks = view.plan.blocks if isinstance(view.plan.blocks, Blocks) else None
                reader = self._claims.setdefault(view.number, ClaimReader(folder, blocks, self._run.clock))
                claims = tuple((claim.positions, claim.task) for claim in reader.new())
            yield events.ClaimsSeen(view.number, claims)

    def _list_end_marks(self) -> None:
        self.visits["folders"] += 1
        for mark in filter(None, map(EndMark.parse, sorted(self._end_marks.new()))):
            if not self._is_ours(mark.task, mark.filename):
                continue
            self._marked.add(mark.task)
            known = self._unread.get(mark.task)
            if known is None or mark.start >= known.start:
                self._unread[mark.task] = mark
                self._ends_seen += 1
            if self._state.tasks.view(mark.task).attempts <= mark.start:
                self._attempts.forget()  # its outcome file, if any, was there before the mark

    def _list_attempts(self) -> Iterator[Event]:
        self.visits["folders"] += 1
        entries = self._attempts.new_entries()
        for name in sorted(entry.name for entry in entries if not entry.is_dir(follow_symlinks=False)):
            numbers = numbers_in(name)
            if len(numbers) == len(("task", "attempt")) and self._is_ours(numbers[0], name):
                key = task, attempt = numbers[0], numbers[1]
                self._files[key] = OutcomeFile(self._run.folder.outcome_file(task, attempt), self._run.folder.salt)
                self._growing[key] = None
                yield events.AttemptSeen(task, attempt)

    # Outcome files.

    def _read_growing(self, most: float) -> Iterator[Event]:
        """Read some of the files that may have grown, in turn."""
        for key in list(self._growing):
            if most <= 0:
                return
            if key[0] not in self._unread:
                most -= 1
                self.visits["growing"] += 1
                del self._growing[key]
                self._growing[key] = None  # at the end, also if it cannot be read now
                yield from self._read(*key)
                self._drop_finished(key)

    def _read_ended(self, most: float) -> Iterator[Event]:
        for task in list(self._unread):
            if most <= 0:
                return
            most -= max(1, self._state.tasks.view(task).attempts)
            yield from self._read_task(task)

    def _read_task(self, task: int) -> Iterator[Event]:
        """Yield the records of a task before its end mark, and then the mark."""
        for attempt in range(self._state.tasks.view(task).attempts):
            self.visits["ended"] += 1
            yield from self._read(task, attempt)
            self._drop_finished((task, attempt))
        yield events.EndMarkSeen(self._unread.pop(task))

    def _drop_finished(self, key: tuple[int, int]) -> None:
        if not self._state.tasks.has_open(key[0]):
            self._growing.pop(key, None)

    def _read(self, task: int, attempt: int, *, final: bool = False) -> Iterator[Event]:
        file = self._files.get((task, attempt))
        if file is None:
            return  # removed, or not listed yet while that of a later attempt is
        before, known = file.position, len(file.notes)
        try:
            if not (final or self.network or file.has_grown):
                self.unchanged += 1
                return
            for found in chain(file.read(final=final), [None]):  # after the last record there may be notes, too
                if len(file.notes) > known:
                    yield events.AttemptSeen(task, attempt, dict(ChainMap(*reversed(file.notes[known:]))))
                    known = len(file.notes)
                if isinstance(found, Damage):
                    yield _damage_in(file, task, found)
                elif found is not None:
                    yield events.OutcomesSeen(task, found, self._error_in(found))
        except UnsafeRunFolder as error:
            yield events.UnsafeSeen(task, file.path, str(error))
        except FileNotFoundError:
            return  # a listing may be ahead of the file, or behind it
        if file.checkpoints and file.position != before:
            yield events.AttemptSeen(task, attempt, checkpoints=file.checkpoints)

    def _error_in(self, recorded: Recorded) -> BaseException | None:
        if recorded.header.kind != Kind.FAILURE or not self._state.wants_errors:
            return None
        try:
            content = recorded.read()
        except ResultLost as error:
            return error
        if not (self._state.wants_classes or content.raised.startswith(_OUR_ERRORS)):
            return RuntimeError(content.raised)  # unpickling it may take long, and every other run would wait
        outcome = content.outcome(recorded.header.first)
        return outcome.error if isinstance(outcome, Failure) else None


def _damage_in(file: OutcomeFile, task: int, damage: Damage) -> events.DamageSeen:
    items = None  # of a torn tail: the record was never finished
    if damage.header is not None and damage.stop <= file.path.status().st_size:
        items = range(damage.header.first, damage.header.stop)
    return events.DamageSeen(task, file.path, damage.offset, items)


def _tail(log: Location) -> str:
    try:
        lines = log.read_from(-_LOG_BYTES).decode(errors="replace").splitlines(keepends=True)
    except FileNotFoundError:  # the task wrote none
        return ""
    except OSError as error:
        return f"(it cannot be read: {error})"
    return "".join(lines[-LOG_LINES:]).rstrip()
