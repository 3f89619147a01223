"""A vocabulary for tables about `RunState`, and the player that runs them; used by test_state*.py.

A table is a list of laws. A law is a sentence and its steps: at which second which events come, and which
effects follow. The player stands for the collector, the watcher and the executor of effects: it answers the requests of
`RunState`, sends ticks, and compares the effects of each step with those of the table.
"""

from __future__ import annotations

from array import array
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import pytest

from slurmlaunch import errors
from slurmlaunch.backends.base import Snapshot, TaskRecord, TaskState
from slurmlaunch.client.events import (
    ArrayRefused,
    AttemptSeen,
    CancelJobs,
    CancellationSeen,
    CancellationsRecorded,
    CancelRequested,
    ClaimsSeen,
    DamageSeen,
    EndMarkSeen,
    EndsRead,
    JobsSeen,
    OutcomesSeen,
    ReadEnds,
    ReadTasks,
    RecordCancellations,
    RecordEnds,
    RetryEnded,
    RoundAdded,
    RunLost,
    SchedulerReported,
    Settle,
    SubmitRound,
    TaskFiles,
    TasksBeganAgain,
    TasksRead,
    Tick,
    UnsafeSeen,
    Warn,
    WatchEnded,
)
from slurmlaunch.client.ledger import ItemStatus
from slurmlaunch.client.state import RunState
from slurmlaunch.runfolder.layout import EndMark, RunFolder
from slurmlaunch.runfolder.outcomes import Recorded
from slurmlaunch.runfolder.plan import ArrayPlan, Blocks, RoundPlan, Slices
from slurmlaunch.runfolder.records import Header, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from slurmlaunch.client.events import Effect, Event
    from slurmlaunch.runfolder.rounds import SchedulerEnd

LATENCY = 70.0
"""Seconds that a file may exist and not be visible, in all tables."""

ANY: Any = object()
"""Stands for effects that a law says nothing about."""

_FOLDER = RunFolder(Path("/nowhere"))
_FIRST_JOB = 7
_TICKS = 4
"""The number of ticks in a step: the answers to one tick's effects may cause effects at the next tick."""


# Events.

Happening: TypeAlias = "Callable[[RunState], Iterable[Event]]"
"""A maker of events; it sees the state to find the round and the job of a task."""


def attempt(task: int, number: int = 0) -> Happening:
    """Have the outcome file of an attempt appear."""
    return lambda _: [AttemptSeen(task, number)]


def values(task: int, *items: int, attempt: int = 0) -> Happening:
    """Have an attempt record values, one record for each item."""
    records = [Recorded(_FOLDER.outcome_file(task, attempt), 0, Header(Kind.VALUES, 1, each, 0, 0)) for each in items]
    return lambda _: [AttemptSeen(task, attempt), *(OutcomesSeen(task, each) for each in records)]


def raised(task: int, items: int | tuple[int, ...], error: BaseException, attempt: int = 0) -> Happening:
    """Have an attempt record one failure, which may be that of several consecutive items."""
    first, number = (items, 1) if isinstance(items, int) else (items[0], len(items))
    recorded = Recorded(_FOLDER.outcome_file(task, attempt), 0, Header(Kind.FAILURE, number, first, 0, 0))
    return lambda state: [
        AttemptSeen(task, attempt),
        OutcomesSeen(task, recorded, error if state.wants_errors else None),
    ]


def damaged(task: int, *items: int) -> Happening:
    """Damage the record of consecutive items, or one whose header is unreadable then."""
    lost = range(items[0], items[-1] + 1) if items else None
    return lambda _: [DamageSeen(task, _FOLDER.outcome_file(task, 0), 33, lost)]


def unsafe(task: int) -> Happening:
    """Let others write to the outcome file of a task."""
    return lambda _: [UnsafeSeen(task, _FOLDER.outcome_file(task, 0), "it may be written by others")]


def notes(task: int, attempt: int = 0, **said: Any) -> Happening:
    """Have an attempt record something about itself."""
    return lambda _: [AttemptSeen(task, attempt, said)]


def mark(task: int, status: int, start: int = 0) -> Happening:
    """Have a start of a task leave its end mark, after the client has read its earlier records."""
    return lambda _: [EndMarkSeen(EndMark(task, start, int(status)))]


def claims(task: int, *blocks: int, round_: int = 0) -> Happening:
    """Have a task claim blocks of a dynamic round, each one position."""
    return lambda _: [ClaimsSeen(round_, tuple((range(block, block + 1), task) for block in blocks))]


def snapshot(states: Mapping[int, str], state: RunState, **said: Any) -> Snapshot:
    """Return one answer of the scheduler."""
    jobs: dict[str, dict[int, TaskRecord]] = {}
    for task, word in states.items():
        view = state.tasks.view(task)
        jobs.setdefault(str(view.job_id), {})[view.element] = TaskRecord(TaskState(word), **said)
    return Snapshot(0.0, {job_id: records.get for job_id, records in jobs.items()})


def scheduler(states: Mapping[int, str], **said: Any) -> Happening:
    """Have the scheduler report the states of tasks; *said* are further fields of their records."""
    return lambda state: [SchedulerReported(snapshot(states, state, **said))]


def cancelled(*items: int, round_: int = 0) -> Happening:
    """Have another client cancel items."""
    return lambda _: [CancellationSeen(round_, range(each, each + 1)) for each in items]


def cancel(*items: int, only_queued: bool = False) -> Happening:
    """Have the user cancel items."""
    return lambda _: [CancelRequested(items, only_queued)]


def recorded(*items: int, failed: Sequence[int] = (), round_: int = 0) -> Happening:
    """Report that the cancellation of items is on disk, or could not be written."""
    written, unwritten = (
        ((round_, tuple(range(each, each + 1) for each in some)),) if some else () for some in (items, failed)
    )
    return lambda _: [CancellationsRecorded(written, unwritten)]


def added(*items: int, tasks: int = 1, automatic: bool = True, retries: int | None = None) -> Happening:
    """Have another client make a round, and submit it."""

    def events(state: RunState) -> list[Event]:
        number = state.tasks.rounds[-1].number + 1
        plan = _next_plan(state, items, tasks=tasks, automatic=automatic, retries=retries)
        return [RoundAdded(number, plan), JobsSeen(number, {0: str(_FIRST_JOB + number)})]

    return events


def reopened(*items: int, tasks: int = 1) -> Happening:
    """Have the user retry items that have settled, in a view that continues from this one."""

    def events(state: RunState) -> list[Event]:
        number = state.tasks.rounds[-1].number + 1
        plan = _next_plan(state, items, tasks=tasks, automatic=False)
        return [RoundAdded(number, plan, reopen=True), JobsSeen(number, {0: str(_FIRST_JOB + number)}, ours=True)]

    return events


def again(number: int, *items: int) -> Happening:
    """Report a round that the state has already."""
    return lambda state: [RoundAdded(number, _next_plan(state, items))]


def made(*items: int) -> Happening:
    """Make the round that `SubmitRound` requests."""
    return lambda state: [RoundAdded(state.tasks.rounds[-1].number + 1, _next_plan(state, items))]


def submitted(round_: int = 1, array: int = 0) -> Happening:
    """Give an array of a round its job id."""
    return lambda _: [JobsSeen(round_, {array: str(_FIRST_JOB + round_)}, ours=True)]


def began_again(task: int, attempts: int) -> Happening:
    """Find, when a retry is about to be made, that another attempt of a task has begun."""
    return lambda _: [TasksBeganAgain({task: attempts})]


def retry_ended(error: Exception | None = None) -> Happening:
    """End the submission of a retry."""
    return lambda _: [RetryEnded(error)]


def refused(array_: int = 0, round_: int = 0, error: str = "no") -> Happening:
    """Have an array refused for good."""
    return lambda _: [ArrayRefused(round_, array_, errors.SubmissionError(error))]


def lost() -> Happening:
    """Remove the run folder."""
    return lambda _: [RunLost(errors.ResultLost("the run folder is gone"))]


def _next_plan(
    state: RunState, items: Sequence[int], *, tasks: int = 1, automatic: bool = True, retries: int | None = None
) -> RoundPlan:
    last = state.tasks.rounds[-1].plan
    options = last.options if retries is None else {**last.options, "retries": retries}
    first = last.tasks.stop
    return last._replace(
        slices=Slices(len(items), tasks),
        first_task=first,
        arrays=(ArrayPlan("later", first, tasks),),
        items=array("Q", items),
        automatic=automatic,
        blocks=Blocks(len(items), tasks, "dynamic", 1) if last.blocks else None,
        options=options,
    )


# Laws.


class Step(NamedTuple):
    """The events of one second, and their effects.

    Attributes:
        second: the time.
        happenings: the makers of the events.
        late: the findings of the last read of ended tasks.
        settles: how items settle in this step: a status, or the name of the class of an error.
        submits: the items of the round that is submitted, if one is.
        cancels: the jobs that are cancelled: ids, and elements or None for all.
        records: the ends that are recorded: states, by task.
        warns: words of the warning, if there is one.
    """

    second: float
    happenings: tuple[Happening, ...]
    late: tuple[Happening, ...] = ()
    settles: Mapping[int, str] = MappingProxyType({})
    submits: Sequence[int] | None = None
    cancels: Any = ()
    records: Any = MappingProxyType({})
    warns: str | None = None


def at(second: float, *happenings: Happening, **effects: Any) -> Step:
    """Return a step."""
    return Step(second, happenings, **effects)


def items(status: str, *numbers: int) -> dict[int, str]:
    """Return that status for each of the items."""
    return dict.fromkeys(numbers, status)


class Law(NamedTuple):
    """A sentence, and the steps that it is about."""

    sentence: str
    steps: tuple[Step, ...]
    run: Mapping[str, Any]


def law(sentence: str, *steps: Step, **run: Any) -> Any:
    """Return a parameter for a test; *run* are arguments of `played`."""
    return pytest.param(Law(sentence, steps, run), id=sentence)


def new_state(
    number: int = 6,
    tasks: int = 3,
    *,
    arrays: Sequence[int] | None = None,
    dynamic: bool = False,
    latency: float = LATENCY,
    **options: Any,
) -> RunState:
    """Return the state of a run that was just submitted.

    Args:
        number: the number of items; two to a task by default.
        tasks: the number of tasks.
        arrays: the number of tasks of each array, if there is more than one; these have no jobs yet.
        dynamic: whether tasks claim items one by one.
        latency: see `RunState`.
        options: options of the run: ``retries``, ``retry_exceptions``.
    """
    starts = [0, tasks] if arrays is None else [sum(arrays[:i]) for i in range(len(arrays) + 1)]
    planned = tuple(ArrayPlan("test", first, stop - first) for first, stop in pairwise(starts))
    plan = RoundPlan(Slices(number, tasks), 0, planned, 1, 1, 1, options=options)
    if dynamic:
        plan = plan._replace(blocks=Blocks(number, tasks, "dynamic", 1))
    state = RunState(_FOLDER, number, [(0, plan)], latency=latency)
    if arrays is None:
        state.handle(JobsSeen(0, {0: str(_FIRST_JOB)}), 0.0)
    return state


class Player:
    """Plays laws: sends the events of each step and ticks, and answers the state's requests.

    Attributes:
        state: the state.
        effects: the effects of the last step, without those that were answered.
    """

    def __init__(self, state: RunState, *, slow: bool = False, ends: Sequence[SchedulerEnd] = ()) -> None:
        """Begin.

        Args:
            state: the state.
            slow: whether rounds are made and cancellations written only when a table says so.
            ends: the ends that earlier clients have recorded.
        """
        self.state = state
        self.effects: list[Effect] = []
        self._slow, self._ends = slow, ends
        self._now = 0.0
        self._late: tuple[Happening, ...] = ()
        self._settled: dict[int, str] = {}
        self._ever_settled: set[int] = set()
        self._over = self._ends_read = False

    def play(self, step: Step) -> None:
        """Send the events of a step, and some ticks."""
        self.effects, self._settled = [], {}
        self._now, self._late = step.second, step.late
        for happening in step.happenings:
            self._happen(happening)
        for _ in range(_TICKS):
            for round_ in self.state.tasks.rounds:
                if round_.claims:
                    self.send(ClaimsSeen(round_.number))
            self.send(Tick())
        if not self.state.ledger.open and not self._over:
            self._over = True
            self.send(WatchEnded())

    def check(self, step: Step) -> None:
        """Compare the effects of the step that was just played with the table.

        Raises:
            AssertionError: they differ.
        """
        ends = [end for each in self.effects if isinstance(each, RecordEnds) for end in each.ends]
        cancels = [job for each in self.effects if isinstance(each, CancelJobs) for job in each.jobs]
        found = {
            "settles": (step.settles, self._settled),
            "submits": (
                [] if step.submits is None else [tuple(step.submits)],
                [each.items for each in self.effects if isinstance(each, SubmitRound)],
            ),
            "cancels": (step.cancels if step.cancels is ANY else list(step.cancels), cancels),
            "records": (step.records, {end.task: end.state for end in ends}),
            "warns": (step.warns, self._warning(step.warns)),
        }
        for what, (expected, actual) in found.items():
            if expected is not ANY and expected != actual:
                msg = f"at second {step.second}, {what}: expected {expected}, found {actual}"
                raise AssertionError(msg)

    def _warning(self, words: str | None) -> str | None:
        """Return the warnings of a step; the words alone if there is one warning, and it has them."""
        warnings = [each.message for each in self.effects if isinstance(each, Warn)]
        return words if words and len(warnings) == 1 and words in warnings[0] else "; ".join(warnings) or None

    def send(self, event: Event) -> None:
        """Send an event, and then answer the state's requests."""
        if isinstance(event, RoundAdded) and event.reopen:
            self._ever_settled.difference_update(event.plan.items or ())
        for effect in self.state.handle(event, self._now):
            if isinstance(effect, Settle):
                self._note(effect)
            elif isinstance(effect, ReadTasks):
                late, self._late = self._late, ()
                for happening in late:
                    self._happen(happening)
                self.send(TasksRead(tuple(TaskFiles(task) for task in effect.tasks)))
            elif isinstance(effect, ReadEnds):
                assert not self._ends_read, "recorded ends are read once"
                self._ends_read = True
                self.send(EndsRead(tuple(self._ends)))
            elif isinstance(effect, RecordCancellations) and not self._slow:
                self.send(CancellationsRecorded(effect.ranges))
            else:
                self.effects.append(effect)
                if isinstance(effect, SubmitRound) and not self._slow:
                    number = self.state.tasks.rounds[-1].number + 1
                    for happening in (made(*effect.items), submitted(number), retry_ended()):
                        self._happen(happening)

    def _happen(self, happening: Happening) -> None:
        for event in happening(self.state):
            self.send(event)

    def _note(self, effect: Settle) -> None:
        for item in effect.items:
            assert item not in self._ever_settled, "an item settles once"
            self._ever_settled.add(item)
            assert self.state.ledger.status(item) is effect.status
            ended = effect.status is ItemStatus.ENDED
            self._settled[item] = type(self.state.ledger.error_of(item)).__name__ if ended else effect.status.name


def play(each: Law) -> None:
    """Play a law from its first step to its last."""
    played(*each.steps, **each.run)


def played(*steps: Step, slow: bool = False, ends: Sequence[SchedulerEnd] = (), **run: Any) -> RunState:
    """Play steps; return the state that they lead to. The arguments are those of `Player` and of `new_state`."""
    player = Player(new_state(**run), slow=slow, ends=ends)
    for step in steps:
        player.play(step)
        player.check(step)
    return player.state
