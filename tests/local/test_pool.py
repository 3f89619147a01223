"""The pool of a task: outcomes of items when processes die, outcomes are large, or one item is slow."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import math
import os
import signal
import subprocess
import sys
import threading
import time
from array import array
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch import current_task
from slurmlaunch.errors import StorageFailure, WorkerDied
from slurmlaunch.node.pool import Assignment, WorkerHandle
from slurmlaunch.node.queue import Queue
from slurmlaunch.runfolder.layout import Status
from slurmlaunch.runfolder.outcomes import OutcomeFile, Recorded
from slurmlaunch.runfolder.plan import PackedSlices
from slurmlaunch.runfolder.records import Damage, Kind
from slurmlaunch.runfolder.rounds import CancellationReader, write_cancellations
from tests.support.tasks import OneRun, finish, rows
from tests.support.waiting import Gate, Story, is_alive, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


class OnceRunning:
    """A channel whose worker finishes its item between two looks at it."""

    new = 0

    def __init__(self) -> None:
        self._looks = [0]

    @property
    def current(self) -> int | None:
        """The position of the running item, at the first look alone."""
        return self._looks.pop() if self._looks else None


def test_output_of_an_item_that_ends_meanwhile() -> None:
    """Output is an item's also if that ends while its supervisor looks for the item."""
    worker = WorkerHandle.__new__(WorkerHandle)
    worker.assignment = Assignment(array("Q", [7, 8]))
    worker.assignment.wrote = True
    worker._channel = OnceRunning()  # type: ignore[assignment]  # noqa: SLF001

    assert list(worker._writers()) == [range(7, 8)]  # noqa: SLF001


@pytest.fixture
def story(tmp_path: Path) -> Story:
    """Return a file that items append lines to."""
    return Story(tmp_path / "story")


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """Return a gate for items to wait at; it opens when the test is over."""
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()


def damages(run: OneRun) -> list[Damage]:
    """Return the damaged records of all outcome files."""
    files = [OutcomeFile(run.folder.outcomes / name, run.folder.salt) for name in run.folder.outcomes.names()]
    found = [each for file in files for each in file.read(final=True)]
    return [each for each in found if isinstance(each, Damage)]


# A process that dies.


def deeper(_: object) -> list[Any]:
    """Call itself by way of compiled code, until its stack ends."""
    return list(map(deeper, [0]))


def overflow() -> None:
    """Recurse until the stack overflows, with Python's recursion limit switched off."""
    sys.setrecursionlimit(10**9)
    deeper(0)


WAYS: dict[str, tuple[Callable[[], Any], int | None, int | None]] = {
    "SIGKILL": (functools.partial(signal.raise_signal, signal.SIGKILL), signal.SIGKILL, None),
    "SIGSEGV": (functools.partial(ctypes.string_at, 0), signal.SIGSEGV, None),
    "SIGABRT": (os.abort, signal.SIGABRT, None),
    "exit status 7": (functools.partial(os._exit, 7), None, 7),
    "exit status 0": (functools.partial(os._exit, 0), None, 0),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_death_costs_the_running_item_alone(tmp_path: Path, story: Story, way: str) -> None:
    """However a worker dies in the middle of many short items, the running item fails, and all others run once."""
    die, number, status = WAYS[way]
    deadly = {100, 101, 2500, 2999}

    def tell(item: int) -> int:
        story.tell(item)
        if item in deadly:
            die()
        return -item

    run = OneRun(tmp_path / "run", tell, rows(range(3000)), processes=2)

    assert run.run().status == 1

    errors = run.errors()
    assert errors.keys() == deadly
    for item, error in errors.items():
        assert isinstance(error, WorkerDied)
        assert (error.signal, error.exit_code, error.item, error.task) == (number, status, item, 0)
        assert way in str(error)
    assert run.values() == {item: -item for item in range(3000) if item not in deadly}
    assert Counter(story.lines) == Counter(map(str, range(3000)))
    assert run.recorded() == list(range(3000))


def test_a_stack_that_ends_costs_one_item(tmp_path: Path) -> None:
    """An infinite recursion without Python's limit costs only its item: a crash, or an error from 3.12 on."""

    def recurse(item: int) -> int:
        if item == 5:
            overflow()
        return item

    run = OneRun(tmp_path / "run", recurse, rows(range(10)))

    run.run()

    assert run.values() == {item: item for item in range(10) if item != 5}
    error = run.errors()[5]
    assert isinstance(error, RecursionError) or (isinstance(error, WorkerDied) and error.signal == signal.SIGSEGV)


def test_processes_that_die_together_cost_one_item_each(tmp_path: Path, gate: Gate) -> None:
    """If several workers are killed at once, each costs its running item, and the other items run."""
    run = OneRun(tmp_path / "run", gate.enter, rows(range(6)), processes=3)
    node = run.start()
    gate.await_arrival(0, 1, 2)

    for item in range(3):
        os.kill(gate.process_of(item), signal.SIGKILL)
    gate.await_arrival(3, 4, 5)
    gate.open()

    assert finish(node).status == 1
    assert {item: getattr(error, "signal", None) for item, error in run.errors().items()} == dict.fromkeys(range(3), 9)
    assert run.values() == {3: "3", 4: "4", 5: "5"}


def test_an_idle_process_that_dies_costs_nothing(tmp_path: Path, gate: Gate, story: Story) -> None:
    """The death of an idle worker costs no item."""

    def work(item: int) -> int:
        story.tell(f"{item} {os.getpid()}")
        if item == 0:
            gate.enter()
        return item

    run = OneRun(tmp_path / "run", work, rows(range(2)), processes=2)
    node = run.start()
    wait_until(lambda: run.values() == {1: 1})
    (idle,) = [int(line.split()[1]) for line in story.lines if line.startswith("1 ")]
    os.kill(idle, signal.SIGKILL)
    wait_until(lambda: not is_alive(idle))
    gate.open()

    assert (finish(node).status, run.values(), len(story.lines)) == (0, {0: 0, 1: 1}, 2)


class DiesWhereItIsLoaded:
    """A function that kills the process that unpickles it, a number of times."""

    def __init__(self, story: Story, times: int) -> None:
        self.story, self.times = story, times

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.story.tell("loaded")
        if len(self.story.lines) <= self.times:
            os._exit(5)

    def __call__(self, item: int) -> int:
        """Return the item."""
        return item


def test_a_death_while_loading_is_tried_again(tmp_path: Path, story: Story) -> None:
    """A worker that dies before the function is loaded costs no item: another replaces it."""
    run = OneRun(tmp_path / "run", DiesWhereItIsLoaded(story, 2), rows(range(5)))

    assert (run.run().status, run.values()) == (0, {item: item for item in range(5)})


def test_deaths_while_loading_are_not_tried_for_ever(tmp_path: Path, story: Story) -> None:
    """If every worker dies before the function is loaded, all items fail, and the error gives the reason."""
    run = OneRun(tmp_path / "run", DiesWhereItIsLoaded(story, 10**6), rows(range(5)))

    assert run.run().status == 1

    assert len(story.lines) < 10
    for item, error in run.errors().items():
        assert isinstance(error, WorkerDied)
        assert "exit status 5, each time before it had loaded the function" in str(error), item
    assert len(run.errors()) == 5


class LoadsOnlyOnce:
    """A function that kills every process that unpickles it but the first."""

    def __init__(self, story: Story) -> None:
        self.story = story

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        try:
            self.story.path.with_name("first").mkdir()
        except FileExistsError:
            self.story.tell("dies")
            os._exit(5)

    def __call__(self, item: int) -> int:
        """Return the item; the first waits until others have died often enough."""
        if item == 0:
            wait_until(lambda: len(self.story.lines) >= 3)
        return item


def test_workers_that_loaded_run_all_items(tmp_path: Path, story: Story) -> None:
    """If only some workers can load the function, as when memory is short, these run all items."""
    run = OneRun(tmp_path / "run", LoadsOnlyOnce(story), rows(range(20)), processes=4)

    assert (run.run().status, run.values()) == (0, {item: item for item in range(20)})
    assert len(story.lines) < 10


def test_the_output_of_a_dead_process_stays(tmp_path: Path) -> None:
    """A line that was printed before the process was killed is in the log."""

    def say(_: int) -> None:
        print("before", flush=False)  # noqa: T201
        print("to stderr", file=sys.stderr)  # noqa: T201
        signal.raise_signal(signal.SIGKILL)

    ended = OneRun(tmp_path / "run", say, rows([0])).run()

    assert (ended.out, ended.err) == ("before\n", "to stderr\n")


# A slow item.


def test_a_slow_item_holds_back_no_other(tmp_path: Path, gate: Gate, story: Story) -> None:
    """While one item of thousands takes long, all others get values, and each runs once."""

    def work(item: int) -> int:
        story.tell(item)
        if item == 700:
            gate.enter()
        return item

    run = OneRun(tmp_path / "run", work, rows(range(2000)), processes=2)
    node = run.start()
    gate.await_arrival(0)

    wait_until(lambda: len(run.recorded()) == 1999)
    assert 700 not in run.values()
    gate.open()

    assert (finish(node).status, run.values()) == (0, {item: item for item in range(2000)})
    assert Counter(story.lines) == Counter(map(str, range(2000)))
    assert run.recorded() == list(range(2000))


def test_outcomes_are_on_disk_while_others_run(tmp_path: Path, gate: Gate) -> None:
    """An outcome is on disk soon after the end of its item, though the worker continues with the next items."""

    def work(item: int) -> int:
        if item == 40:
            gate.enter()
        return item

    run = OneRun(tmp_path / "run", work, rows(range(80)))
    node = run.start()

    wait_until(lambda: len(run.recorded()) == 40)
    gate.open()

    assert (finish(node).status, len(run.values())) == (0, 80)


# Cancelling.


def test_a_cancelled_item_ends(tmp_path: Path, gate: Gate, story: Story) -> None:
    """A cancelled item ends if it runs, never starts if it waits, and all other items have values."""

    def work(item: int) -> int:
        story.tell(item)
        if item in {0, 1}:
            gate.enter(item)
        return item

    run = OneRun(tmp_path / "run", work, rows(range(10)), processes=1)
    node = run.start()
    gate.await_arrival(0)
    first = gate.process_of(0)

    write_cancellations(run.folder, 0, "client", [range(1), range(4, 6)])
    gate.await_arrival(1)
    assert not is_alive(first)
    gate.open()

    assert (finish(node).status, sorted(run.outcomes())) == (0, [1, 2, 3, 6, 7, 8, 9])
    assert sorted(story.lines) == ["0", "1", "2", "3", "6", "7", "8", "9"]


def test_cancellations_side_by_side(tmp_path: Path) -> None:
    """Two cancellations within one step of the file system's time are both read, with a poll between them."""
    folder = OneRun(tmp_path / "run", len, rows(range(9))).folder
    reader, now = CancellationReader(folder, [0]), int(time.time())
    found = []
    for item in (1, 5):
        write_cancellations(folder, 0, "client", [range(item, item + 1)])
        os.utime(folder.cancelled, (now, now))
        found += list(reader.new())

    assert [(0, range(1, 2)), (0, range(5, 6))] == found


def test_a_cancellation_of_another_round_is_none(tmp_path: Path, gate: Gate) -> None:
    """A cancellation applies to its own round; later rounds run the item."""
    run = OneRun(tmp_path / "run", gate.enter, rows(range(2)))
    write_cancellations(run.folder, 1, "client", [range(2)])
    gate.open()

    assert (run.run().status, run.values()) == (0, {0: "0", 1: "1"})


@pytest.mark.slow
def test_cancelling_many_costs_no_other(tmp_path: Path, story: Story) -> None:
    """If ranges of very short items are cancelled while they run, no other item fails or is lost."""
    number = 400_000

    def work(item: int) -> int:
        if not item % 20_000:
            story.tell(item)
        return item

    run = OneRun(tmp_path / "run", work, rows(range(number)), processes=2)
    node = run.start()
    wait_until(lambda: len(story.lines) > 2)
    unwanted = [range(start, start + 10) for start in range(0, number, 20)]
    write_cancellations(run.folder, 0, "client", unwanted)

    assert finish(node).status == 0
    recorded = run.recorded()
    assert len(set(recorded)) == len(recorded)
    assert {item for item in range(number) if item % 20 >= 10} <= set(recorded)
    assert not run.errors()


# Large outcomes.


def content(item: int, size: int) -> bytes:
    """Return that many bytes, others for each item."""
    block = hashlib.sha256(str(item).encode()).digest() * 1024
    return (block * (size // len(block) + 1))[:size]


# Around the sizes that fit into shared memory, that fill it, and that are written in pieces.
SIZES = [0, 1, 65_000, 65_500, 65_536, 66_000, 200_000, 262_144, 300_000, 1_000_000]


def test_outcomes_of_any_size_arrive(tmp_path: Path) -> None:
    """Values of all sizes, from several processes at once, arrive whole and once."""
    sizes = [*SIZES * 4, 20_000_000, *SIZES]
    run = OneRun(tmp_path / "run", content, list(enumerate(sizes)), processes=4)

    assert (run.run().status, damages(run), run.recorded()) == (0, [], list(range(len(sizes))))

    values = run.values()
    for item, size in enumerate(sizes):
        assert values[item] == content(item, size), (item, size)


@pytest.mark.parametrize("unit", [1, "1"])
def test_items_in_any_order(tmp_path: Path, unit: Any) -> None:
    """Items in a slice in another order keep their values, wherever a record ends."""
    order = [0, *(item for odd in range(1, 60, 2) for item in (odd + 1, odd))]
    run = OneRun(
        tmp_path / "run", lambda item: item * unit, rows(range(61)), items=array("Q", order), slices=PackedSlices([61])
    )
    run.run()

    assert {item: item * unit for item in range(61)} == run.values()


class Count(int):
    """A number of its own kind."""


def test_numbers_keep_their_types(tmp_path: Path) -> None:
    """Numbers among other values, in any order, keep their type and all of their bits, however many there are."""
    kinds = [1, 2.5, True, -(2**63), 2**63, None, -0.0, math.inf, Count(3), "4", [5]]

    def pick(item: int) -> Any:
        if not item % 1000:
            raise KeyError(item)
        return kinds[item % len(kinds)] if item < 6000 else item

    run = OneRun(tmp_path / "run", pick, rows(range(20_000)), processes=2)
    run.run()
    values = run.values()

    assert [*range(0, 20_000, 1000)] == sorted(run.errors())
    expected = {item: pick(item) for item in range(20_000) if item % 1000}
    assert expected == values
    assert all(type(expected[item]) is type(value) for item, value in values.items())
    assert math.copysign(1, values[6]) == -1
    files = [OutcomeFile(run.folder.outcomes / name, run.folder.salt) for name in run.folder.outcomes.names()]
    kinds_of_records = {each.header.kind for file in files for each in file.read() if isinstance(each, Recorded)}
    assert {Kind.INTEGERS, Kind.FLOATS, Kind.SERIES, Kind.FAILURE} == kinds_of_records


def test_large_failures_arrive(tmp_path: Path) -> None:
    """A large exception arrives, beside large values of other workers."""

    def fail(item: int) -> bytes:
        if item % 2:
            raise ValueError(content(item, 150_000))
        return content(item, 150_000)

    run = OneRun(tmp_path / "run", fail, rows(range(20)), processes=3)

    assert (run.run().status, damages(run)) == (1, [])
    assert all(run.errors()[item].args == (content(item, 150_000),) for item in range(1, 20, 2))
    assert all(run.values()[item] == content(item, 150_000) for item in range(0, 20, 2))


@pytest.mark.slow
def test_a_very_large_outcome_arrives(tmp_path: Path) -> None:
    """Values of 100 MB from two processes at once arrive."""
    run = OneRun(tmp_path / "run", content, [(item, 100_000_000) for item in range(2)], processes=2)

    assert run.run().status == 0
    assert all(run.values()[item] == content(item, 100_000_000) for item in range(2))


def kill_while_growing(path: Path, least: int) -> None:
    """Kill this process as soon as a file has grown by so much."""
    before = path.stat().st_size

    def watch() -> None:
        while path.stat().st_size < before + least:
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def test_a_death_while_appending_spoils_nothing(tmp_path: Path) -> None:
    """A worker that is killed while it writes a large value costs at most that item; the file stays readable."""

    def work(item: int) -> bytes:
        if item % 8 == 3:
            task = current_task()
            kill_while_growing(task.run_folder / "outcomes" / f"{task.task}.{task.attempt}", 6_000_000)
            return content(item, 60_000_000)
        return content(item, 100_000 if item % 2 else 100)  # all of them together are less than that

    run = OneRun(tmp_path / "run", work, rows(range(40)), processes=3)

    run.run()

    assert (damages(run), run.recorded()) == ([], list(range(40)))
    assert all(item % 8 == 3 and isinstance(error, WorkerDied) for item, error in run.errors().items())
    for item, value in run.values().items():
        assert value == (content(item, len(value))), item


# A full disk.


@pytest.fixture(params=[1, 3, pytest.param(0, marks=needs_root)])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, list[str], int]]:
    """Return a run's folder with space for 3 MB of outcomes, the words that go before a command, and the processes.

    A limit of the process makes the node fail at once, a full disk after its patience.
    """
    if request.param:
        yield tmp_path, ["bash", "-c", 'ulimit -f 3000; exec "$@"', "_"], request.param
        return
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3100k", "none", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no tmpfs may be mounted here")
    yield folder, [], 2
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_large_value_that_finds_no_room_fails(small: tuple[Path, list[str], int]) -> None:
    """On a full disk a large value is a StorageFailure of its item; recorded values stay, smaller ones are recorded."""
    folder, prefix, processes = small
    run = OneRun(folder / "run", content, [(item, 900_000) for item in range(9)], processes=processes)

    ended = run.run(prefix=prefix)

    assert (ended.status, ended.err, damages(run), run.recorded()) == (1, "", [], list(range(9)))
    assert len(run.values()) == 3
    assert all(value == content(item, 900_000) for item, value in run.values().items())
    for error in run.errors().values():
        assert isinstance(error, StorageFailure)
        assert error.what.partition(":")[0] in {"No space left on device", "File too large"}


def test_a_task_that_finds_no_room_says_so(small: tuple[Path, list[str], int], tmp_path: Path) -> None:
    """If small values fill the disk, the node ends with a status for it and the reason; recorded values stay."""
    folder, prefix, processes = small
    story = Story(tmp_path / "story")

    def work(item: int) -> bytes:
        story.tell(os.getpid())
        return content(item, 30_000)

    run = OneRun(folder / "run", work, rows(range(1000)), processes=processes)

    ended = run.run(prefix=prefix)

    assert ended.status == (Status.STORAGE if prefix else Status.DISK_FULL)
    assert ("No space left on device" in ended.err) or ("File too large" in ended.err)
    assert damages(run) == []
    values = run.values()
    assert 50 < len(values) < 110
    assert all(value == content(item, 30_000) for item, value in values.items())
    wait_until(lambda: not any(is_alive(int(process)) for process in set(story.lines)))


# User code that changes its process.


def test_prints_are_in_the_log_at_once(tmp_path: Path, gate: Gate) -> None:
    """A line that an item prints is in the log while the item runs, and an unfinished line soon after."""

    def say(item: int) -> None:
        print("line", item)  # noqa: T201
        gate.enter(item)
        print("no line", end="")  # noqa: T201

    run = OneRun(tmp_path / "run", say, rows([0]))
    node = run.start()
    gate.await_arrival(0)
    assert node.stdout is not None
    assert node.stdout.readline() == "line 0\n"
    gate.open()

    assert finish(node) == (0, "no line", "")


def close_stdout() -> None:
    """Close the stream, and its file descriptor."""
    sys.stdout.close()
    with contextlib.suppress(OSError):  # the second time
        os.close(2)


def replace_stdout() -> None:
    """Put something else in its place."""
    sys.stdout = None
    sys.stderr = object()


def close_everything() -> None:
    """Close all file descriptors, as daemons do."""
    os.closerange(0, 1000)


def leave() -> None:
    """Go to a folder, and remove it."""
    folder = current_task().run_folder / f"gone-{os.getpid()}"
    folder.mkdir()
    os.chdir(folder)
    folder.rmdir()


def take_signals() -> None:
    """Ignore all signals that can be ignored."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)


def clear_environment() -> None:
    """Forget all variables, modules' paths and limits."""
    os.environ.clear()
    sys.path.clear()
    sys.setrecursionlimit(200)


@pytest.mark.parametrize(
    "deed",
    [close_stdout, replace_stdout, close_everything, leave, take_signals, clear_environment],
    ids=lambda deed: deed.__name__,
)
def test_an_item_may_treat_its_process_as_it_likes(tmp_path: Path, story: Story, deed: Callable[[], None]) -> None:
    """An item may do anything to its process but end it: it gets its value, as all others do, and each runs once."""

    def work(item: int) -> int:
        story.tell(item)
        if item in {1, 20}:
            deed()
        return -item

    run = OneRun(tmp_path / "run", work, rows(range(40)), processes=2)

    assert (run.run().status, run.errors()) == (0, {})

    assert run.values() == {item: -item for item in range(40)}
    assert Counter(story.lines) == Counter(map(str, range(40)))


def test_a_function_that_forks_and_returns_twice_counts_once(tmp_path: Path) -> None:
    """If a function forks and returns in both processes, or raises in the child, the worker's own value counts."""

    def fork(item: int) -> tuple[int, bool]:
        child = os.fork()
        if not child and item % 2:
            raise SystemExit(3)
        if child:
            os.waitpid(child, 0)
        return item, bool(child)

    run = OneRun(tmp_path / "run", fork, rows(range(20)), processes=2)

    assert run.run() == (0, "", "")
    assert run.values() == {item: (item, True) for item in range(20)}
    assert run.recorded() == list(range(20))


def test_leftovers_of_an_item_delay_nothing(tmp_path: Path, story: Story) -> None:
    """Processes and daemon threads that outlive their item neither delay the end of the task nor cost other items."""

    def leave_behind(item: int) -> int:
        child = os.fork()
        if not child:
            os.close(1)
            os.close(2)
            time.sleep(600)
        program = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        story.tell(child)
        story.tell(program.pid)
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
        return item

    run = OneRun(tmp_path / "run", leave_behind, rows(range(4)), processes=2)
    node = run.start()
    try:
        assert finish(node) == (0, "", "")
    finally:
        for line in story.lines:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(line), signal.SIGKILL)

    assert run.values() == {item: item for item in range(4)}


def ends_by_sigterm(start: str) -> str:
    """Start a child in some way, send it SIGTERM, and return its exit status."""
    import multiprocessing

    if start == "subprocess":
        program = subprocess.Popen(["sleep", "600"])
        program.terminate()
        return str(program.wait(30))
    if start == "os.fork":
        child = os.fork()
        if not child:
            time.sleep(600)
            os._exit(1)
        os.kill(child, signal.SIGTERM)
        return str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
    process.start()
    process.terminate()
    process.join(30)
    return str(process.exitcode)


def test_an_items_processes_have_default_signals(tmp_path: Path) -> None:
    """SIGTERM ends a process that an item started, however, from whichever thread and however soon."""

    def ask(start: str) -> list[str]:
        found = [ends_by_sigterm(start) for _ in range(20)]
        thread = threading.Thread(target=lambda: found.append(ends_by_sigterm(start)))
        thread.start()
        thread.join()
        return found

    ways = ["subprocess", "os.fork", "multiprocessing"]
    run = OneRun(tmp_path / "run", ask, rows(ways))

    assert run.run().status == 0
    assert run.values() == dict.fromkeys(range(3), ["-15"] * 21)


def ignored_and_blocked() -> tuple[str, ...]:
    """Return which signals a program that is started here has ignored, and blocked."""
    status = subprocess.check_output(["cat", "/proc/self/status"], text=True)
    return tuple(line for line in status.splitlines() if line.startswith(("SigIgn", "SigBlk")))


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")
def test_programs_that_an_item_starts_have_no_signals_ignored(tmp_path: Path) -> None:
    """A program that an item starts has the same signals ignored and blocked as one that is started here."""
    run = OneRun(tmp_path / "run", lambda _: ignored_and_blocked(), rows([0]))

    assert run.run().status == 0
    assert run.values() == {0: ignored_and_blocked()}


def test_an_items_own_handlers_are_its_childrens_too(tmp_path: Path) -> None:
    """A handler set by the function also holds in the processes that it forks, as it would anywhere else."""

    def ask(_: int) -> int:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(9))
        child = os.fork()
        if not child:
            signal.raise_signal(signal.SIGTERM)
            os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    run = OneRun(tmp_path / "run", ask, rows([0]))

    assert (run.run().status, run.values()) == (0, {0: 9})


# Workers and items.


def test_items_run_side_by_side(tmp_path: Path, gate: Gate) -> None:
    """The task runs as many items at once as it has workers, each in a process of its own."""
    run = OneRun(tmp_path / "run", gate.enter, rows(range(5)), processes=3)
    node = run.start()
    gate.await_arrival(0, 1, 2)

    assert len({gate.process_of(item) for item in range(3)}) == 3
    assert gate.arrived == {"0", "1", "2"}
    gate.open()
    assert finish(node).status == 0


def test_there_are_no_more_processes_than_items(tmp_path: Path) -> None:
    """A task starts no worker without work, and each worker unpickles the function once."""
    story = Story(tmp_path / "story")
    run = OneRun(tmp_path / "run", DiesWhereItIsLoaded(story, 0), rows(range(3)), processes=8)

    assert run.run().status == 0
    assert len(story.lines) <= 3


def test_a_task_runs_its_own_items(tmp_path: Path) -> None:
    """A task runs the items of its slice; where its round has a list, those of the list."""
    items = array("Q", [2, 3, 7, 11, 12, 17])
    run = OneRun(tmp_path / "run", lambda item: item * item, rows(range(20)), tasks=2, items=items, processes=2)

    assert run.run(1).status == 0
    assert run.values() == {item: item * item for item in (11, 12, 17)}
    assert run.run(0).status == 0
    assert run.values() == {item: item * item for item in items}


# The queue.


def test_a_queue_hands_out_each_item_once() -> None:
    """Workers get items in order, returned ones first, cancelled ones never."""
    queue = Queue(range(10))
    assert (len(queue), list(queue.take(3))) == (10, [0, 1, 2])

    queue.put_back(array("Q", [1, 2]))
    queue.cancel(range(2, 5))

    assert [list(queue.take(2)) for _ in range(4)] == [[1, 5], [6, 7], [8, 9], []]
    assert not queue


def test_a_closed_queue_hands_out_nothing() -> None:
    """A closed queue gives no items, neither its own nor those that are put back."""
    queue = Queue(range(10))
    queue.closed = True
    queue.put_back([3])

    assert (len(queue), list(queue.take(5))) == (0, [])
