"""A manual retry waits for the states of another process's tasks: in which order they come, and until when.

Nothing sleeps here: each sleep of the retry lets the next thing happen, at the next second.
"""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch.client import rerun
from slurmlaunch.runfolder.clients import ClientId
from tests.support.state_tables import LATENCY, attempt, mark, new_state, scheduler, values

if TYPE_CHECKING:
    from tests.support.state_tables import Happening

ALL_RUN = {0: "RUNNING", 1: "RUNNING", 2: "PENDING"}
AT_MOST = LATENCY + 40.0


def seconds_waited(
    monkeypatch: pytest.MonkeyPatch, before: list[Happening], later: list[Happening], *, ours: bool = False
) -> float:
    """Return how long a retry waits for states if the first events come before it, and one more each second."""
    state, now = new_state(), [0.0]

    def happen(happening: Happening) -> None:
        for event in happening(state):
            state.handle(event, now[0])

    def sleep(_: float) -> None:
        now[0] += 1.0
        if later:
            happen(later.pop(0))

    for each in before:
        happen(each)
    client = ClientId.current() if ours else ("another machine", 1, "0")
    run: Any = SimpleNamespace(
        state=state,
        tasks=state.tasks,
        ledger=state.ledger,
        changed=threading.RLock(),
        rounds=[SimpleNamespace(plan=SimpleNamespace(client=client))],
    )
    monkeypatch.setattr(rerun, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: now[0]))
    rerun.await_states(run)
    return now[0]


@pytest.mark.parametrize(
    ("before", "later", "seconds"),
    [
        pytest.param([], [], AT_MOST, id="a scheduler that does not answer is waited for, but not for ever"),
        pytest.param([], [scheduler({}), scheduler(ALL_RUN)], 2, id="the first answer that names all tasks is enough"),
        pytest.param([scheduler(ALL_RUN)], [], 0, id="tasks that run are not waited for"),
        pytest.param(
            [scheduler({0: "RUNNING"})], [], 0, id="a task that an earlier answer did not name may never be named"
        ),
        pytest.param(
            [scheduler({0: "NODE_FAIL"})],
            [attempt(0), values(0, 0), values(0, 1)],
            3,
            id="the outcomes of a task that has ended are waited for, although its end is known",
        ),
        pytest.param(
            [scheduler({0: "NODE_FAIL"})],
            [attempt(0), scheduler({0: "RUNNING"})],
            2,
            id="a task that is alive after all is not waited for",
        ),
        pytest.param(
            [],
            [
                scheduler({0: "RUNNING", 1: "RUNNING"}),
                scheduler({0: "FAILED", 1: "TIMEOUT"}),
                scheduler({2: "PENDING"}),
            ],
            3,
            id="a task that ends after it was known to run is not waited for",
        ),
        pytest.param(
            [],
            [values(0, 0, 1), values(1, 2, 3), mark(2, 137), values(2, 4, 5)],
            4,
            id="tasks whose items have all settled are not waited for",
        ),
        pytest.param(
            [values(0, 0, 1), values(1, 2, 3), values(2, 4, 5)], [], 0, id="a run that is over is not waited for"
        ),
    ],
)
def test_waits(
    monkeypatch: pytest.MonkeyPatch, before: list[Happening], later: list[Happening], seconds: float
) -> None:
    """A retry waits until each task is known to run, or to have ended without outcomes."""
    assert seconds == seconds_waited(monkeypatch, list(before), list(later))


def test_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry does not wait for states if this process watches the run already."""
    assert 0 == seconds_waited(monkeypatch, [], [], ours=True)
