"""Races that the collector decides, by the order in which it reads a run folder; the state machine has its own tables.

A poll reads cancellations first, then end marks, then the list of attempts, then claims, then outcomes. It reports an
ended task's outcomes before the task's end mark.
"""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import Mock

import pytest

from slurmlaunch.client.events import AttemptSeen, EndMarkSeen, OutcomesSeen, RoundAdded, Tick
from slurmlaunch.runfolder.layout import Status
from slurmlaunch.runfolder.outcomes import OutcomeWriter
from slurmlaunch.runfolder.plan import ArrayPlan, Slices
from slurmlaunch.runfolder.rounds import Round, write_cancellations
from tests.unit.test_collector import Watched, poll, write_value

if TYPE_CHECKING:
    from slurmlaunch.client.events import Event


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    """Return a run without any events so far."""
    return Watched(tmp_path / "run")


def events(watched: Watched) -> list[Event]:
    """Return the events of a poll, each of which is handled before the next one."""
    found = []
    for event in watched.watch.collector.poll():
        found.append(event)
        watched.watch.handle(event)
    return found


def made(watched: Watched, *items: int) -> Round:
    """Add a round of one task, as another client would."""
    number, plan = len(watched.run.rounds), watched.run.rounds[-1].plan
    first = plan.tasks.stop
    later = plan._replace(
        slices=Slices(len(items), 1), first_task=first, arrays=(ArrayPlan("later", first, 1),), items=array("Q", items)
    )
    return Round.make(watched.folder, number, later)


def test_files_of_a_round_that_is_not_known_yet(watched: Watched) -> None:
    """The files of a task whose round this client does not know are read once it does, also if the round is over."""
    writer = OutcomeWriter(watched.folder, 3)
    write_value(writer, 0, "again")
    watched.end(3, Status.VALUES)
    watched.poll()
    assert {} == watched.statuses
    added = made(watched, 0)
    watched.watch.handle(RoundAdded(added.number, added.plan))
    poll(watched.watch)

    assert {0: "VALUE"} == watched.statuses
    assert watched.run.tasks.view(3).end_mark


def test_a_mark_that_is_listed_before_the_outcome_file(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """The outcome file of a start was there before its end mark, so its outcomes are reported before the mark."""
    poll(watched.watch)
    attempts = watched.watch.collector._attempts  # noqa: SLF001
    cached = watched.folder.outcomes.modified()  # by a network file system, which shows the old time
    monkeypatch.setattr(attempts, "_folder", Mock(wraps=watched.folder.outcomes, modified=lambda **_: cached))
    write_value(OutcomeWriter(watched.folder, 0), 0, "a")
    watched.end(0, 128 + 9)
    kinds = [type(event) for event in events(watched)]

    assert kinds.index(AttemptSeen) < kinds.index(OutcomesSeen) < kinds.index(EndMarkSeen) < kinds.index(Tick)
    assert {0: "VALUE", 1: "ENDED"} == watched.statuses


def test_cancellations_are_read_before_outcomes(watched: Watched) -> None:
    """An item with both a cancellation and an outcome is cancelled for each client that attaches later."""
    writer = OutcomeWriter(watched.folder, 0)
    write_value(writer, 0, "a")
    write_value(writer, 1, "b")
    watched.end(0, Status.VALUES)
    write_cancellations(watched.folder, 0, "another", [range(1, 2)])
    poll(watched.watch)

    assert {0: "VALUE", 1: "CANCELLED"} == watched.statuses


def test_an_earlier_attempt_that_is_not_listed(watched: Watched) -> None:
    """The file of an earlier attempt may be missing, or visible later than a later one's, whose outcomes count."""
    first, second = OutcomeWriter(watched.folder, 0), OutcomeWriter(watched.folder, 0)
    content = Path(first.path).read_bytes()
    Path(first.path).unlink()
    write_value(second, 1, "second")
    watched.end(0, Status.STOPPED)
    watched.poll()
    assert {1: "VALUE"} == watched.statuses

    Path(first.path).touch(0o600)
    Path(first.path).write_bytes(content)
    OutcomeWriter(watched.folder, 0)
    watched.poll()
    assert {1: "VALUE"} == watched.statuses
    assert 3 == watched.run.tasks.view(0).attempts


def test_the_mark_of_the_last_start_is_reported_last(watched: Watched) -> None:
    """If several end marks of a task are listed together, the mark of the last start counts."""
    for _ in range(2):
        OutcomeWriter(watched.folder, 0)
    watched.end(0, 128 + 9, start=1)
    watched.end(0, Status.REQUEUE, start=0)
    marks = [event.mark.start for event in events(watched) if isinstance(event, EndMarkSeen)]

    assert 1 == marks[-1]
    assert {0: "ENDED", 1: "ENDED"} == watched.statuses
