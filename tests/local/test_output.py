"""The output of items: each has its own, exactly, and the log of the task has everything."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

from slurmlaunch import Executor
from slurmlaunch.runfolder.output import OutputFile
from slurmlaunch.runfolder.records import Kind
from tests.support.printing import check_output, print_in_all_ways
from tests.support.tasks import OneRun
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest


LINES = 10_000
KILLED = 5


def print_all(item: int) -> None:
    """Print so many lines in each way; one item kills its process then."""
    print_in_all_ways(item, LINES, killed=item == KILLED)


def run_of(path: Path, function: Callable[[int], object], items: int, **plan: object) -> tuple[OneRun, str]:
    """Run a task to its end; return it, and what it has written into its log."""
    run = OneRun(path / "run", function, ((item,) for item in range(items)), **plan)
    return run, run.run().out


def written(run: OneRun, item: int, kind: Kind = Kind.STDOUT) -> bytes:
    """Return what an item wrote alone; nothing of it was cut."""
    found = OutputFile(run.folder.output_file(0, 0), run.folder.salt).read(kind, item)
    assert (None, False) == found[1:]
    return found.data


def test_side_by_side(tmp_path: Path) -> None:
    """Of eight items side by side each has all that it printed, in order, one up to its process's kill."""
    run, log = run_of(tmp_path, print_all, 8, processes=8)

    for item in range(8):
        check_output(written(run, item).decode(), item, LINES, killed=item == KILLED)
        assert f"error {item}".encode() == written(run, item, Kind.STDERR)
    assert b"c " in written(run, KILLED)
    assert Counter(b"".join(written(run, item) for item in range(8))) == Counter(log.encode())
    assert ["0.0"] == run.folder.output_file(0, 0).parent.names()  # type: ignore[union-attr]


def leave_a_program(item: int) -> None:
    """Start a program that prints later, and do not wait for it; the next item is still running then."""
    print("item", item)  # noqa: T201
    if item == 0:
        subprocess.Popen(["sh", "-c", "sleep 0.3; echo late"])
    else:
        time.sleep(0.6)


def test_left_behind(tmp_path: Path) -> None:
    """A program that outlives its item writes into the log, and into the output of no item."""
    run, log = run_of(tmp_path, leave_a_program, 2)

    assert [b"item 0\n", b"item 1\n"] == [written(run, 0), written(run, 1)]
    assert ["item 0", "item 1", "late"] == sorted(log.splitlines())


def print_rarely(item: int) -> None:
    """Print at the end of many short items, and then in each."""
    if item >= 5000:
        print("item", item)  # noqa: T201


def test_blocks(tmp_path: Path) -> None:
    """In a block of short items the output is that of the block until one prints, and then that of single items."""
    run, log = run_of(tmp_path, print_rarely, 5300)
    file = OutputFile(run.folder.output_file(0, 0), run.folder.salt)

    found = [file.read(Kind.STDOUT, item) for item in range(5300)]

    assert "".join(f"item {item}\n" for item in range(5000, 5300)) == log
    alone = [item for item, each in enumerate(found) if each.block is None and each.data]
    assert list(range(alone[0], 5300)) == alone
    assert all(found[item].data == f"item {item}\n".encode() for item in alone)
    [block] = {each.block for each in found if each.block}
    assert block.start <= 5000 < block.stop == alone[0]


def print_much(item: int) -> None:
    """Print a long line."""
    print(f"{item}" * 600)  # noqa: T201


def test_cut(tmp_path: Path) -> None:
    """What goes beyond the limit is cut, which the item's output says; the log has it."""
    run, log = run_of(tmp_path, print_much, 3, options={"max_log": 1000})
    file = OutputFile(run.folder.output_file(0, 0), run.folder.salt)

    found = [file.read(Kind.STDOUT, item) for item in range(3)]

    assert [(601, False), (399, True), (0, True)] == [(len(each.data), each.cut) for each in found]
    assert len(log) == 3 * 601


def close_all(item: int) -> None:
    """Print, and close the descriptors of the process, as daemons do."""
    print("item", item, flush=True)  # noqa: T201
    os.closerange(0, 256)


def test_closed_descriptors(tmp_path: Path) -> None:
    """An item that closes all descriptors has its output, and so has the next one in another process."""
    run, _ = run_of(tmp_path, close_all, 3)

    assert [b"item 0\n", b"item 1\n", b"item 2\n"] == [written(run, item) for item in range(3)]


def test_future(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A future shows the output while its item runs, a line says what was cut, and `tail` prints it."""
    go_on = tmp_path / "go-on"

    def wait(item: int) -> None:
        print("begun", item)  # noqa: T201
        while not go_on.exists():
            time.sleep(0.01)
        sys.stderr.write("x" * 2000)

    with Executor(tmp_path / "runs", cluster="local", max_log="1K") as executor:
        array = executor.map_array(wait, range(1), tasks=1)
        wait_until(lambda: array[0].stdout() == "begun 0\n")
        go_on.touch()
        array.results()

        error = array[0].stderr()
        array[0].tail(follow=True)

    assert "begun 0\n" == array[0].stdout()
    assert error.startswith("x" * 1000)
    assert "max_log=" in error
    assert str(array[0].log("err")) in error
    assert array.logs(0) == "begun 0\n" + "x" * 2000
    assert "begun 0\n" in capfd.readouterr().out
