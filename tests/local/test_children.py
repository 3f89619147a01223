"""Processes that items start: they end with the item's cancellation, with the task, and with a killed client."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING

import pytest

from slurmlaunch import Executor
from tests.support.waiting import is_alive, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Start = Callable[[], int]

_KEPT: list[object] = []


def in_the_group() -> int:
    """Start a program as `subprocess` does by default."""
    return subprocess.Popen(["sleep", "1000"]).pid


def in_a_session() -> int:
    """Start a program in a session of its own."""
    return subprocess.Popen(["sleep", "1000"], start_new_session=True).pid


def in_a_shell() -> int:
    """Start a program in the background of a shell, which leads a group."""
    shell = subprocess.Popen(["sh", "-c", "sleep 1000 & echo $!; wait"], process_group=0, stdout=subprocess.PIPE)
    assert shell.stdout
    return int(shell.stdout.readline())


def as_a_daemon() -> int:
    """Start a program as daemons are: what started it ends at once."""
    command = ["sh", "-c", "setsid nohup sleep 1000 >/dev/null 2>&1 & echo $!"]
    return int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def in_a_pool() -> int:
    """Start a program in a process of a pool."""
    pool = ProcessPoolExecutor(1, get_context("fork"))
    _KEPT.append(pool)
    return pool.submit(in_a_session).result()


WAYS = [in_the_group, in_a_session, in_a_shell, as_a_daemon, in_a_pool]


def start_and_wait(start: Start, file: Path) -> None:
    """Start a program, publish its process id, and run until this process is killed."""
    beside = file.with_suffix(".new")
    beside.write_text(str(start()))
    beside.rename(file)
    time.sleep(1000)


def process_in(file: Path) -> int:
    """Wait for the id of the program."""
    wait_until(file.exists)
    return int(file.read_text())


@pytest.mark.parametrize("start", WAYS)
def test_a_cancelled_item(tmp_path: Path, start: Start) -> None:
    """The cancellation of one of two running items ends what that item started, and nothing of the other."""
    executor = Executor(tmp_path / "runs", cluster="local", cpus_per_task=2)
    array = executor.map_array(start_and_wait, [start] * 2, [tmp_path / "a", tmp_path / "b"], tasks=1)
    first, second = process_in(tmp_path / "a"), process_in(tmp_path / "b")

    assert array[0].cancel()

    wait_until(lambda: not is_alive(first))
    assert is_alive(second)
    array.cancel()
    wait_until(lambda: not is_alive(second))


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("start", WAYS)
def test_a_killed_client(tmp_path: Path, start: Start, ranks: int) -> None:
    """The client's death ends the items and all that they started, also in ranks."""
    program = f"""
import sys, time
from pathlib import Path
from slurmlaunch import Executor, current_task
from tests.local.test_children import {start.__name__}, start_and_wait
folder = Path(sys.argv[1])
def work():
    start_and_wait({start.__name__}, folder / str(current_task().rank))
Executor(folder / "runs", cluster="local", ntasks={ranks}, launcher=[]).submit(work)
time.sleep(1000)
"""
    client = subprocess.Popen([sys.executable, "-c", program, tmp_path])
    started = [process_in(tmp_path / str(rank)) for rank in range(ranks)]
    client.kill()
    client.wait()
    for each in started:
        wait_until(lambda each=each: not is_alive(each))  # type: ignore[misc]


def test_an_item_that_returned(tmp_path: Path) -> None:
    """What an item left running ends with its task, however soon."""
    left = Executor(tmp_path, cluster="local").submit(in_a_session).result()
    wait_until(lambda: not is_alive(left))
