"""Outcomes between processes: of nodes, and of a file that another process appends to."""

from __future__ import annotations

import datetime as dt
import linecache
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest

from slurmlaunch import Executor
from slurmlaunch.errors import UnpicklableResult
from slurmlaunch.outcome import Failure
from slurmlaunch.runfolder import records
from slurmlaunch.runfolder.layout import RunFolder
from slurmlaunch.runfolder.outcomes import OutcomeFile, Recorded
from slurmlaunch.runfolder.records import Kind
from tests.support.awkward import Bomb, Mute, Trap, Unspeakable
from tests.support.frames import own_frames
from tests.support.tasks import OneRun, rows
from tests.support.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Return a run folder with a folder for outcomes."""
    (tmp_path / "outcomes").mkdir(mode=0o700)
    return RunFolder(tmp_path)


def test_classes_that_were_made_where_it_ran_arrive() -> None:
    """An exception whose class is defined inside the function is caught by its name and its bases."""

    def function() -> None:
        class LocalError(LookupError):
            pass

        raise LocalError("here")

    outcome = cloudpickle_apart(function)

    assert isinstance(outcome, Failure)
    assert [cls.__name__ for cls in type(outcome.error).__mro__[:2]] == ["LocalError", "LookupError"]
    assert outcome.error.args == ("here",)


def cloudpickle_apart(function: Callable[[], Any]) -> Any:
    """Return the outcome of a function that ran in a separate process."""
    program = (
        "import sys, pickle\nfrom slurmlaunch.outcome import failure_of\n"
        "try:\n    pickle.load(sys.stdin.buffer)()\n"
        "except Exception as error:\n    sys.stdout.buffer.write(failure_of(error).dump())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=cloudpickle.dumps(function), capture_output=True, check=True
    )
    return Failure.load(done.stdout)


def test_arguments_that_do_not_unpickle_say_where(tmp_path: Path) -> None:
    """An error while an item's arguments are unpickled is the item's failure, with the user's frames alone."""
    run = OneRun(tmp_path / "run", lambda _: None, rows([0, Trap(), 2]))

    ended = run.run()

    assert (ended.status, sorted(run.values())) == (1, [0, 2])
    assert isinstance(run.errors()[1], LookupError)
    assert re.findall(r"in (\w+)$", str(run.errors()[1].__cause__), re.MULTILINE) == ["spring"]


def fails_inside(_: object) -> None:
    """Raise from a frame below."""
    dt.date.fromisoformat("no date")


def test_the_traceback_begins_with_the_users_code(tmp_path: Path) -> None:
    """The remote traceback has the user's frames, and none of ours."""
    run = OneRun(tmp_path / "run", fails_inside, rows([0]))

    assert run.run().status == 1
    text = str(run.errors()[0].__cause__)
    assert re.findall(r"in (\w+)$", text, re.MULTILINE) == ["fails_inside"]
    assert "slurmlaunch" not in re.sub(r'File "[^"]*/tests/', "", text)


def test_an_unpicklable_result_says_where_in_the_users_terms(tmp_path: Path) -> None:
    """An item whose value does not pickle fails, and its traceback shows none of our frames."""
    run = OneRun(tmp_path / "run", lambda _: threading.Lock(), rows([0]))

    assert run.run().status == 1
    error = run.errors()[0]
    assert isinstance(error, UnpicklableResult)
    assert error.type_name == "_thread.lock"
    assert own_frames(str(error.__cause__)) == []


def behave_badly(item: int) -> object:
    """Raise or return objects that are hard to pickle; some items return the process id instead."""
    if item == 1:
        raise Mute(Unspeakable())
    if item == 2:
        return Bomb(SystemExit)
    if item == 3:
        raise ValueError(Bomb(KeyboardInterrupt))
    return os.getpid()


def test_no_outcome_takes_its_process_along(tmp_path: Path) -> None:
    """However awkward an item's exception or result is, its process continues with the next item."""
    run = OneRun(tmp_path / "run", behave_badly, rows(range(5)))

    assert run.run().status == 1

    assert [type(run.errors()[item]).__name__ for item in (1, 2, 3)] == ["Mute", "UnpicklableResult", "ValueError"]
    assert (sorted(run.values()), len(set(run.values().values()))) == ([0, 4], 1)


def test_a_reader_keeps_up_with_another_process(folder: RunFolder) -> None:
    """However a writer's bytes arrive, every record is read once, in order, and none is called damaged."""
    written = b"".join(
        records.encode(Kind.VALUES, os.urandom(size), first=i)
        for i, size in enumerate([0, 1, 50, 5000, 200_000, 3, 70_000] * 20)
    )
    source, path = folder.path / "source", folder.outcomes / "0.0"
    source.write_bytes(written)
    Path(path).touch(0o600)
    program = """
import random, sys
with open(sys.argv[1], "rb") as source, open(sys.argv[2], "ab", buffering=0) as target:
    while piece := source.read(random.choice([1, 7, 40, 3000, 100000])):
        target.write(piece)
"""
    found: list[int] = []
    file = OutcomeFile(path)

    def read() -> bool:
        for each in file.read():
            assert isinstance(each, Recorded)
            found.append(each.header.first)
        return len(found) == 140

    with subprocess.Popen([sys.executable, "-c", program, source, path]):
        wait_until(read)

    assert found == list(range(140))


def test_source_of_a_cell(tmp_path: Path) -> None:
    """The traceback of a function that is defined in a notebook's cell shows the cell's lines."""
    source = "def divide(number):\n    return 1 / number  # in a cell\n"
    name = str(tmp_path / "ipykernel_1" / "2.py")
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    cell: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, name, "exec"), cell)  # noqa: S102  (as IPython does)

    futures = Executor(tmp_path / "runs", cluster="local").map_array(cell["divide"], [0])

    error = futures[0].exception(PATIENCE)
    assert "return 1 / number  # in a cell" in str(error and error.__cause__)
    assert "ZeroDivisionError('division by zero') at line 2 of a notebook's cell" in str(futures.failures())
