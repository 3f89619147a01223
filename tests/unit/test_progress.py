"""The status of a run, and the progress that is shown while a program waits."""

from __future__ import annotations

import concurrent.futures
import io
import json
import re
import sys
from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch import Executor
from slurmlaunch.client import progress
from slurmlaunch.client.wording import pace
from tests.support.waiting import Gate, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from slurmlaunch import FutureArray


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        """Say yes."""
        return True


def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Return a terminal that is stderr; not a fixture, as pytest sets stderr after those."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    return terminal


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """Return a gate, which opens when the test is over."""
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()


@pytest.fixture
def waiting(gate: Gate, tmp_path: Path) -> FutureArray[str]:
    """Return a run of three items in one task; the second waits at the gate."""
    gate.open("a")
    futures = Executor(tmp_path / "runs", cluster="local", name="letters").map_array(gate.enter, "abc", tasks=1)
    gate.await_arrival("b")
    wait_until(futures[0].done)
    return futures


@pytest.fixture
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_AFTER", 0.0)
    monkeypatch.delenv("SLURMLAUNCH_PROGRESS", raising=False)


def wait_a_little(futures: FutureArray[Any], *, wanted: bool | None = None) -> None:
    """Wait for a run that is not done."""
    assert not futures.wait(0.1, progress=wanted)


def test_status(waiting: FutureArray[str], gate: Gate) -> None:
    """A status counts items, in the hands of processes or not, and tasks; it is text, HTML and JSON."""
    status = waiting.status()
    assert status.counts == {"pending": 1, "running": 1, "done": 1, "failed": 0, "cancelled": 0} == waiting.counts()
    assert [future.running() for future in waiting] == [False, True, False]
    assert status.summary() == "1 of 3 done, 1 running, 1 pending"
    assert str(status).startswith("letters: 1 of 3 done")
    assert json.loads(json.dumps(status.to_dict()))["tasks"] == {"RUNNING": 1}
    assert (waiting[:1].status().items, waiting[:1].status().summary()) == (1, "1 of 1 done")
    assert "slurmlaunch.attach(" in waiting._repr_html_()


def test_html_is_escaped(tmp_path: Path) -> None:
    """A name that looks like HTML is shown as it is."""
    futures = Executor(tmp_path / "<script>", cluster="inline").map_array(abs, [1])
    assert "<script>" not in futures._repr_html_()


@pytest.mark.usefixtures("_at_once")
def test_a_terminal_has_one_line(waiting: FutureArray[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In a terminal one line is rewritten, and stays when the wait is over, also by an error."""
    terminal = open_terminal(monkeypatch)
    wait_a_little(waiting)
    text = terminal.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("\n")
    lines = re.split(r"\r|\x1b\[K\n?", text)
    assert {*filter(None, lines)} == {"letters: 1 of 3 done, 1 running, 1 pend"[:39]}
    with pytest.raises(concurrent.futures.TimeoutError):
        waiting.results(0.1)
    assert terminal.getvalue().endswith("\n")


@pytest.mark.usefixtures("_at_once")
def test_a_file(waiting: FutureArray[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A file gets a line only if that is wanted."""
    wait_a_little(waiting)
    assert capsys.readouterr().err == ""
    wait_a_little(waiting, wanted=True)
    assert "letters: 1 of 3 done" in capsys.readouterr().err


@pytest.mark.usefixtures("_at_once")
def test_silence(waiting: FutureArray[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal gets nothing if that is not wanted, and nothing from iterators."""
    terminal = open_terminal(monkeypatch)
    wait_a_little(waiting, wanted=False)
    with pytest.raises(concurrent.futures.TimeoutError):
        list(waiting.iter_results(0.1))
    with pytest.raises(concurrent.futures.TimeoutError):
        list(waiting.as_completed(0.1))
    monkeypatch.setenv("SLURMLAUNCH_PROGRESS", "0")
    wait_a_little(waiting, wanted=True)
    assert terminal.getvalue() == ""


def test_a_short_wait_shows_nothing(waiting: FutureArray[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is shown for the first seconds."""
    terminal = open_terminal(monkeypatch)
    wait_a_little(waiting)
    assert terminal.getvalue() == ""


@pytest.mark.parametrize(
    ("rate", "left", "words"),
    [
        (0.0, 5, ""),
        (2.0, 0, ""),
        (42.0, 84, "42.0/s, 2 s left"),
        (0.5, 60, "30.0/min, 2 min 0 s left"),
        (0.005, 90, "18.0/h, 5 h 0 min left"),
    ],
)
def test_pace(rate: float, left: int, words: str) -> None:
    """A rate is told per second, minute or hour, with the time that is left."""
    assert pace(rate, left) == words
