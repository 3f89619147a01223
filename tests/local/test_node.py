"""The node as a process: ``python -m slurmlaunch.node RUN_FOLDER TASK``, started by hand."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest

from slurmlaunch.errors import FunctionExited, NodeStartError, RunFolderError, WorkerDied
from slurmlaunch.node import system
from slurmlaunch.runfolder.claims import Claimer
from slurmlaunch.runfolder.layout import PARENT_DEATH_VARIABLE, STARTED_VARIABLE, Manifest, Status
from slurmlaunch.runfolder.outcomes import OutcomeFile, OutcomeWriter, close_task
from slurmlaunch.runfolder.plan import ArrayPlan, Blocks, RoundPlan, Slices
from slurmlaunch.runfolder.records import Kind
from slurmlaunch.runfolder.rounds import Round, round_of_task
from tests.support.frames import own_frames
from tests.support.tasks import REPOSITORY, OneRun, finish, rows
from tests.support.waiting import Gate, Story, is_alive, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


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


def reciprocal(number: int) -> float:
    """Fail for 0."""
    return 1 / number


# The exit status.


@pytest.mark.parametrize(("numbers", "status"), [([1, 2], 0), ([1, 0], 1), ([0], 1)])
def test_the_status_tells_of_the_outcomes(tmp_path: Path, numbers: list[int], status: int) -> None:
    """A task exits with 0 if all items have values, with 1 if one failed, and prints nothing else of its own."""
    run = OneRun(tmp_path / "run", reciprocal, rows(numbers))

    ended = run.run()

    assert (ended.status, ended.out, ended.err == "") == (status, "", status == 0)
    assert [item in run.values() for item in range(len(numbers))] == [bool(number) for number in numbers]


@pytest.mark.parametrize(
    "arguments", [[], ["{run}"], ["{run}", "x"], ["{run}", "-1"], ["{run}", "0", "0"], ["{run}", "²"]]
)
def test_other_arguments_are_refused(tmp_path: Path, arguments: list[str]) -> None:
    """Anything but a run folder and a task index ends with status 4 and the usage."""
    run = OneRun(tmp_path / "run", abs, rows([1]))
    words = [word.format(run=run.folder.path) for word in arguments]

    done = subprocess.run(
        [sys.executable, "-m", "slurmlaunch.node", *words], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == "usage: python -m slurmlaunch.node RUN_FOLDER TASK_INDEX\n"


def test_folders_and_tasks_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    """A folder that is no run, or a task that the run does not have, gives exit status 4 and a one-line message."""
    run = OneRun(tmp_path / "run", abs, rows([1]))
    no_task = run.run(7)
    Path(run.folder.manifest).unlink()
    no_run = run.run(0)

    assert [no_task.status, no_run.status] == [4, 4]
    assert no_task.err == f"slurmlaunch: no round of {run.folder.path} has a task 7\n"
    assert re.fullmatch(rf"slurmlaunch: {run.folder.path} is no run folder: .*manifest\.json.*\n", no_run.err)


def test_a_node_that_cannot_record_says_so(tmp_path: Path, story: Story) -> None:
    """If outcomes cannot be recorded, no item runs, and the node exits with status 4 and the reason."""
    run = OneRun(tmp_path / "run", story.tell, rows([1]))
    Path(run.folder.outcomes).rmdir()

    ended = run.run()

    assert (ended.status, "No such file or directory" in ended.err, story.lines) == (4, True, [])


def test_a_python_without_cloudpickle_says_so(tmp_path: Path) -> None:
    """A Python without cloudpickle exits with an error that names the missing package."""
    run = OneRun(tmp_path / "run", abs, rows([1]))

    done = subprocess.run(
        [sys.executable, "-S", "-m", "slurmlaunch.node", run.folder.path, "0"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode not in {0, 75, 143}
    assert "No module named 'cloudpickle'" in done.stderr
    assert list(Path(run.folder.outcomes).iterdir()) == []


# A function that cannot be loaded.


def failures_recorded(run: OneRun) -> int:
    """Return how many records of failures there are."""
    files = [OutcomeFile(run.folder.outcomes / name, run.folder.salt) for name in run.folder.outcomes.names()]
    records = [each for file in files for each in file.read(final=True)]
    return sum(each.header is not None and each.header.kind == Kind.FAILURE for each in records)


def one_error(run: OneRun) -> NodeStartError:
    """Return the error that all items have in common."""
    assert run.run().status == 1
    errors = run.errors()
    assert sorted(errors) == list(range(20))
    assert failures_recorded(run) == 1
    error = errors[0]
    assert isinstance(error, NodeStartError)
    return error


@pytest.mark.parametrize("minor", [minor for minor in range(11, 15) if minor != sys.version_info.minor])
def test_another_pythons_pickle_is_not_read(tmp_path: Path, story: Story, minor: int) -> None:
    """A pickle of another minor version of Python is not read: all items fail, and the error names both versions."""
    run = OneRun(tmp_path / "run", DescribesItself(story), rows(range(20)), processes=2, python=f"3.{minor}")

    error = one_error(run)

    assert f"Python 3.{minor}" in str(error)
    assert f"Python {sys.version_info.major}.{sys.version_info.minor}" in str(error)
    assert "python=[" in str(error)
    assert story.lines == []


def test_another_cloudpickles_pickle_is_not_read(tmp_path: Path, story: Story) -> None:
    """A pickle of another major version of cloudpickle is not read either; the error names both versions."""
    run = OneRun(tmp_path / "run", DescribesItself(story), rows(range(20)), processes=2, cloudpickle="2.2.1")

    error = one_error(run)

    assert "cloudpickle 2.2.1" in str(error)
    assert f"node has {cloudpickle.__version__}" in str(error)
    assert story.lines == []


class DescribesItself:
    """Logs its unpickling."""

    def __init__(self, story: Story) -> None:
        self.story = story

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.story.tell("unpickled")

    def __call__(self, item: int) -> int:
        """Return the item."""
        return item


def by_reference(path: Path, function: Any, **changes: Any) -> OneRun:
    """Return a run whose function is pickled by reference to its module."""
    run = OneRun(path, abs, rows(range(20)), processes=2, **changes)
    from slurmlaunch.client.pickling import pickle_function
    from slurmlaunch.runfolder.function import write_function

    sha256 = {"function": write_function(run.folder.function, pickle_function(function))}
    Manifest.read(run.folder)._replace(sha256=sha256).write(run.folder)
    return run


def test_a_module_that_is_missing_is_named_once(tmp_path: Path, beside: Callable[[str], Any]) -> None:
    """If the function's module is missing on the node, one error for all items names it and the remedy."""
    run = by_reference(tmp_path / "run", beside("def double(x): return 2 * x").double)

    error = one_error(run)

    assert "No module named 'lies_beside'" in str(error)
    assert 'by_value=["lies_beside"]' in str(error)


def test_another_version_is_named(tmp_path: Path, beside: Callable[[str], Any]) -> None:
    """The error about a module says if its distribution is another one on the node than at the submission."""
    code = {"distributions": {"/client/site-packages": {"numpy": "1.0", "Lies-Beside": "2.0"}}}
    run = by_reference(tmp_path / "run", beside("def double(x): return 2 * x").double, code=code)

    assert "; the client has Lies-Beside 2.0, and the node has none" in str(one_error(run))


def test_a_module_that_fails_says_where(tmp_path: Path, beside: Callable[[str], Any]) -> None:
    """If the import of the function's module raises, the error has the exception and its traceback."""
    module = beside("def double(x): return 2 * x")
    path = tmp_path / "beside"
    run = by_reference(tmp_path / "run", module.double, sys_path=[str(REPOSITORY), str(path)])
    (path / "lies_beside.py").write_text("\n\nraise LookupError('not on this node')\n")

    error = one_error(run)

    assert "LookupError: not on this node" in str(error)
    assert 'lies_beside.py", line 3' in str(error.__cause__)
    assert own_frames(str(error.__cause__)) == []


def test_a_module_beside_the_script_is_found(tmp_path: Path, beside: Callable[[str], Any]) -> None:
    """The node can import all modules that the client could, and its own are not hidden."""
    module = beside("def double(x): return 2 * x")
    path = tmp_path / "beside"
    (path / "json.py").write_text("raise RuntimeError('not the one of the standard library')")
    run = by_reference(tmp_path / "run", module.double, sys_path=[str(path)])

    ended = run.run()

    assert (ended.status, ended.err, run.values()) == (0, "", {item: 2 * item for item in range(20)})


@pytest.mark.parametrize("name", ["function", "items"])
@pytest.mark.parametrize("spoil", ["flip", "empty", "remove"])
def test_a_damaged_run_fails_its_items(tmp_path: Path, name: str, spoil: str) -> None:
    """If the function or the items are damaged, each item fails with an error that names the file."""
    run = OneRun(tmp_path / "run", reciprocal, rows(range(1, 4)))
    path = run.folder.path / name
    content = bytearray(path.read_bytes())
    content[60] ^= 1
    path.unlink()
    if spoil != "remove":
        path.touch(0o600)
        path.write_bytes(content if spoil == "flip" else b"")

    assert run.run().status == 1

    # The first block of items is whole: it is short, and ends before the flipped bit.
    assert sorted(run.errors()) == ([1, 2] if (name, spoil) == ("items", "flip") else [0, 1, 2])
    assert all(str(path) in f"{error} {getattr(error, 'file', '')}" for error in run.errors().values())


# Starting again.


@pytest.mark.parametrize("numbers", [[1, 2, 4], [1, 0, 4]])
def test_a_finished_task_has_nothing_left_to_do(tmp_path: Path, story: Story, numbers: list[int]) -> None:
    """A task that is started again after its end runs nothing, and ends as it did, failures included."""

    def work(number: int) -> float:
        story.tell(number)
        return 1 / number

    run = OneRun(tmp_path / "run", work, rows(numbers), processes=2)
    first = run.run()
    outcomes = {item: repr(outcome) for item, outcome in run.outcomes().items()}

    again = [run.run() for _ in range(2)]

    assert again == [first._replace(err="")] * 2
    assert sorted(story.lines) == sorted(map(str, numbers))
    assert {item: repr(outcome) for item, outcome in run.outcomes().items()} == outcomes
    assert run.recorded() == [0, 1, 2]


def test_a_requeued_task_resumes(tmp_path: Path, story: Story, gate: Gate) -> None:
    """A task that is started again after its end runs the items without an outcome, and no others."""

    def work(item: int) -> int:
        story.tell(item)
        if item in {10, 11}:
            gate.enter(item)
        return item

    run = OneRun(tmp_path / "run", work, rows(range(14)), processes=2)
    node = run.start()
    gate.await_arrival(10, 11)
    node.send_signal(signal.SIGTERM)
    assert finish(node).status == 143
    recorded = run.recorded()
    gate.open()

    assert run.run().status == 0

    assert set(range(10)) <= set(recorded)
    assert run.values() == {item: item for item in range(14)}
    assert run.recorded() == list(range(14))
    assert sorted(map(int, story.lines)) == sorted([*range(14), 10, 11])
    assert sorted(path.name for path in Path(run.folder.outcomes).iterdir()) == ["0.0", "0.1"]


LISTED_LATE = """
import sys

from slurmlaunch.node.__main__ import main
from slurmlaunch.runfolder.claims import ClaimReader

listings, list_claims = [], ClaimReader.new


def listed_late(reader):
    listings.append(reader)
    return list_claims(reader) if len(listings) > 1 else iter(())


ClaimReader.new = listed_late
sys.exit(main(sys.argv[-3:]))
"""


def test_claims_that_a_network_file_system_lists_late(tmp_path: Path) -> None:
    """A requeued task runs the items that it had claimed, even if it finds the claims only at its second look."""
    run = OneRun(tmp_path / "run", abs, rows(range(4)), blocks=Blocks(4, 1, "dynamic", 1))
    OutcomeWriter(run.folder, 0).close()
    earlier = Claimer(run.folder.claims(0), 0, 0, 4)
    assert [earlier.claim() for _ in range(5)] == [range(n, n + 1) for n in range(4)] + [None]

    assert run.run(prefix=[sys.executable, "-c", LISTED_LATE]).status == 0

    assert run.values() == {item: item for item in range(4)}


def test_outcomes_survive_a_killed_supervisor(tmp_path: Path, story: Story, gate: Gate) -> None:
    """After a SIGKILL the next attempt runs only the missing items; a torn record does not count."""

    def work(item: int) -> int:
        story.tell(item)
        if item == 10:
            gate.enter(item)
        return item

    run = OneRun(tmp_path / "run", work, rows(range(12)))
    node = run.start()
    gate.await_arrival(10)
    wait_until(lambda: len(run.recorded()) == 10)
    node.kill()
    assert finish(node).status == -signal.SIGKILL
    file = Path(run.folder.outcome_file(0, 0))
    file.write_bytes(file.read_bytes()[:-100])  # the times of the last items, and a part of their outcomes
    lost = sorted(set(range(10)) - set(run.recorded()))
    gate.open()

    assert run.run().status == 0

    assert lost
    assert run.values() == {item: item for item in range(12)}
    assert sorted(map(int, story.lines)) == sorted([*range(12), 10, *lost])


def test_a_death_just_before_the_time_limit_is_left_for_the_next_start(tmp_path: Path, gate: Gate) -> None:
    """An item whose worker died too late to confirm why is neither lost nor done."""

    def work(item: int) -> int:
        if item:
            gate.enter(item)
        return item

    run = OneRun(tmp_path / "run", work, rows(range(2)), time_limit=20.0, warning=30, requeues=1)
    node = run.start(
        env={STARTED_VARIABLE: str(int(time.time()) - 18)}
    )  # with so little left it ends when it is warned
    gate.await_arrival(1)
    wait_until(lambda: run.recorded() == [0])
    process = gate.process_of(1)
    os.kill(process, signal.SIGKILL)
    wait_until(lambda: not os.path.lexists(f"/proc/{process}"))
    node.send_signal(signal.SIGUSR1)
    status = finish(node).status

    # On a machine that stands still for a second it is the item's failure after all.
    assert (status, tuple(run.recorded())) in {(Status.REQUEUE, (0,)), (Status.FAILURES, (0, 1))}


# An end from outside.


@pytest.mark.parametrize("everywhere", [False, True], ids=["supervisor", "all processes"])
def test_sigterm_is_no_items_failure(tmp_path: Path, gate: Gate, *, everywhere: bool) -> None:
    """SIGTERM, to the node alone or as Slurm sends it to all, keeps the values so far and records nothing else."""

    def work(item: int) -> int:
        if item >= 20:
            gate.enter(item)
        return item

    run = OneRun(tmp_path / "run", work, rows(range(40)), processes=2)
    node = run.start()
    wait_until(lambda: len(gate.arrived) == 2)
    processes = [gate.process_of(item) for item in gate.arrived]

    if everywhere:
        os.killpg(node.pid, signal.SIGTERM)
    else:
        node.send_signal(signal.SIGTERM)

    assert finish(node) == (143, "", "")
    assert run.values() == {item: item for item in range(20)}
    assert run.errors() == {}
    assert not any(map(is_alive, processes))


def test_a_death_in_the_same_moment_is_no_items_failure(tmp_path: Path, gate: Gate) -> None:
    """A worker that is killed just before the SIGTERM to the node was killed by the same end: no failure."""
    run = OneRun(tmp_path / "run", gate.enter, rows(range(4)), processes=2)
    node = run.start()
    gate.await_arrival(0, 1)

    os.kill(node.pid, signal.SIGSTOP)  # so that it sees both at once
    os.kill(gate.process_of(0), signal.SIGKILL)
    os.kill(node.pid, signal.SIGTERM)
    os.kill(node.pid, signal.SIGCONT)

    assert finish(node).status == 143
    assert run.outcomes() == {}


def ignore_all() -> None:
    """Ignore SIGTERM, in every way there is."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})


def test_items_that_ignore_sigterm_are_killed(tmp_path: Path, gate: Gate) -> None:
    """An item that ignores SIGTERM does not keep the node from ending, and its process is killed."""

    def work(item: int) -> None:
        ignore_all()
        with contextlib.suppress(TimeoutError):
            gate.enter(item)
        time.sleep(600)

    run = OneRun(tmp_path / "run", work, rows([0, 1]), processes=2)
    node = run.start()
    gate.await_arrival(0, 1)
    processes = [gate.process_of(item) for item in (0, 1)]

    os.killpg(node.pid, signal.SIGTERM)

    assert finish(node).status == 143
    assert not any(map(is_alive, processes))
    assert run.outcomes() == {}


@pytest.mark.parametrize("size", [10, 10**7])
def test_a_failure_caused_by_the_end_is_none(tmp_path: Path, gate: Gate, size: int) -> None:
    """An item whose program is ended by the SIGTERM to the whole task has no outcome, and runs again."""

    def work(item: int) -> int:
        if item:
            with subprocess.Popen(["sleep", "600"]) as program:
                (gate.folder / "0.here").write_text(str(program.pid), encoding="utf-8")
            if program.returncode:
                raise ValueError("x" * size)
        return item

    run = OneRun(tmp_path / "run", work, rows(range(2)))
    node = run.start()
    gate.await_arrival(0)
    wait_until(lambda: run.values() == {0: 0})
    for process in (node.pid, -node.pid):  # first the eldest, as Slurm does
        os.kill(process, signal.SIGTERM)

    assert (finish(node).status, run.recorded()) == (143, [0])


def test_an_item_may_take_sigterm_itself(tmp_path: Path, gate: Gate, story: Story) -> None:
    """A SIGTERM handler set by the function is called, and the item's result counts."""

    def work(item: int) -> str:
        signal.signal(signal.SIGTERM, lambda *_: gate.open())
        return gate.enter(item) + " in time"

    run = OneRun(tmp_path / "run", work, rows([0]))
    node = run.start()
    gate.await_arrival(0)

    os.kill(gate.process_of(0), signal.SIGTERM)

    assert finish(node).status == 0
    assert run.values() == {0: "0 in time"}


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
@pytest.mark.parametrize("busy", [True, False])
def test_nothing_outlives_a_killed_supervisor(tmp_path: Path, gate: Gate, story: Story, *, busy: bool) -> None:
    """When the supervisor is killed, its workers end, busy or idle."""

    def work(item: int) -> None:
        story.tell(os.getpid())
        if busy or item == 0:
            gate.enter(item)

    run = OneRun(tmp_path / "run", work, rows(range(2)), processes=2)
    node = run.start()
    gate.await_arrival(0)
    wait_until(lambda: len(story.lines) == 2)

    node.kill()

    assert finish(node).status == -signal.SIGKILL
    wait_until(lambda: not any(is_alive(int(line)) for line in story.lines))


def test_a_client_pipe_that_does_not_exist(tmp_path: Path) -> None:
    """If a container has the variable but not the descriptor, the node runs without watching the client."""
    run = OneRun(tmp_path / "run", abs, rows([-1]))

    assert (run.run(env={PARENT_DEATH_VARIABLE: "77"}).status, run.values()) == (0, {0: 1})


def test_a_node_ends_with_its_client(tmp_path: Path, gate: Gate) -> None:
    """When the client dies, the node and its workers end as by SIGTERM; items do not see the pipe."""

    def work(item: int) -> str:
        return gate.enter(item) if item else os.environ.get(PARENT_DEATH_VARIABLE, "none")

    run = OneRun(tmp_path / "run", work, rows([0, 1]))
    reading, writing = os.pipe()
    node = run.start(env={PARENT_DEATH_VARIABLE: str(reading)}, pass_fds=[reading])
    os.close(reading)
    gate.await_arrival(1)
    assert node.poll() is None

    os.close(writing)

    assert finish(node).status == 143
    assert run.values() == {0: "none"}
    assert not is_alive(gate.process_of(1))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGUSR2])
def test_a_signal_to_a_worker_ends_its_item_from_outside(tmp_path: Path, gate: Gate, number: signal.Signals) -> None:
    """A signal that comes from outside is no failure of the function, whatever that makes of a KeyboardInterrupt."""

    def work(item: int) -> str:
        try:
            return gate.enter(item)
        except KeyboardInterrupt as interrupt:
            raise ValueError(item) from interrupt

    run = OneRun(tmp_path / "run", work, rows([0, 1]))
    node = run.start()
    gate.await_arrival(0)

    os.kill(gate.process_of(0), number)
    gate.await_arrival(1)
    gate.open()

    assert finish(node).status == 1
    error = run.errors()[0]
    assert isinstance(error, WorkerDied)
    assert (error.signal, error.item) == (number, 0)
    assert run.values() == {1: "1"}


def test_a_function_may_handle_an_interrupt(tmp_path: Path, gate: Gate) -> None:
    """A function that returns after a SIGINT has a value, and its later items fail as themselves."""

    def work(item: int) -> str:
        try:
            return gate.enter(item)
        except KeyboardInterrupt:
            return "interrupted"
        finally:
            if item:
                raise KeyError(item)

    run = OneRun(tmp_path / "run", work, rows([0, 1]))
    node = run.start()
    gate.await_arrival(0)
    os.kill(gate.process_of(0), signal.SIGINT)
    gate.await_arrival(1)
    gate.open()

    assert finish(node).status == 1
    assert run.values() == {0: "interrupted"}
    assert isinstance(run.errors()[1], KeyError)


@pytest.mark.parametrize("schedule", [None, "dynamic"])
def test_a_start_leaves_the_items_of_later_rounds_alone(tmp_path: Path, story: Story, schedule: str | None) -> None:
    """A task that the scheduler starts again after a retry took over some of its items runs only the others."""
    blocks = None if schedule is None else Blocks(4, 1, schedule, 1)
    run = OneRun(tmp_path / "run", story.tell, rows(range(4)), blocks=blocks)
    plan = RoundPlan(Slices(2, 1), 1, (ArrayPlan("again", 1, 1),), 1, 1, 1, items=array("Q", [1, 3]))
    Round.make(run.folder, 1, plan)

    assert run.run().status == 0
    assert story.lines == ["0", "2"]
    assert run.run(1).status == 0
    assert story.lines == ["0", "2", "1", "3"]


def test_a_task_waits_for_its_round_to_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round that its node does not see yet, because it remembers that there was none, is no error."""
    folder = OneRun(tmp_path / "run", len, rows([0])).folder
    plan = RoundPlan(Slices(1, 1), 1, (ArrayPlan("again", 1, 1),), 1, 1, 1, items=array("Q", [0]))
    monkeypatch.setattr(time, "sleep", lambda _: Round.make(folder, 1, plan))

    assert round_of_task(folder, 1, within=lambda: 60).number == 1
    with pytest.raises(RunFolderError, match="has a task 2"):
        round_of_task(folder, 2)


@pytest.mark.parametrize("schedule", [None, "dynamic"])
def test_a_start_of_a_closed_task_runs_nothing(tmp_path: Path, story: Story, schedule: str | None) -> None:
    """A task can be closed until its next attempt has begun; from then on the scheduler starts it in vain."""
    blocks = None if schedule is None else Blocks(4, 2, schedule, 1)
    run = OneRun(tmp_path / "run", story.tell, rows(range(4)), blocks=blocks, tasks=2 if schedule else 1)
    assert close_task(run.folder, 0, 0)
    assert close_task(run.folder, 0, 0)

    ended = run.run()
    assert (0, "") == (ended.status, ended.out)
    assert "belongs to a retry" in ended.err
    assert story.lines == []
    if schedule:
        assert run.run(1).status == 0
        assert sorted(story.lines) == ["0", "1", "2", "3"]
        assert not close_task(run.folder, 1, 0)
        assert close_task(run.folder, 1, 1)


def test_an_attempt_has_at_least_the_number_of_its_start(tmp_path: Path, story: Story) -> None:
    """Starts that were killed before they began an attempt count: an end mark of one says nothing about the next."""
    run = OneRun(tmp_path / "run", story.tell, rows([0]))

    assert run.run(env={"SLURM_RESTART_COUNT": "2"}).status == 0
    assert {"0.0": 0, "0.1": 0} == {
        path.name: path.stat().st_size for path in Path(run.folder.outcomes).iterdir() if path.name != "0.2"
    }
    assert run.recorded() == [0]
    run = OneRun(tmp_path / "closed", story.tell, rows([0]))
    assert close_task(run.folder, 0, 1)
    assert run.run(env={"SLURM_RESTART_COUNT": "2"}).status == 0
    assert story.lines == ["0"]


def test_ctrl_c_is_no_end(tmp_path: Path, gate: Gate) -> None:
    """SIGINT, which a terminal sends to all, does not end the supervisor, only the items that run."""
    run = OneRun(tmp_path / "run", gate.enter, rows([0, 1]))
    node = run.start()
    gate.await_arrival(0)

    os.killpg(node.pid, signal.SIGINT)
    gate.await_arrival(1)
    gate.open()

    assert finish(node).status == 1
    assert isinstance(run.errors()[0], WorkerDied)
    assert run.values() == {1: "1"}


# Traces in an item's outcome.


def end_somehow(item: int) -> None:
    """End in a way that is no ordinary exception."""
    if item == 0:
        sys.exit("by sys.exit")
    if item == 1:
        raise KeyboardInterrupt
    if item == 2:
        raise GeneratorExit
    os._exit(9)


def test_each_exit_is_reported_as_itself(tmp_path: Path) -> None:
    """sys.exit and KeyboardInterrupt are outcomes of their items; only the end of a process is a WorkerDied."""
    run = OneRun(tmp_path / "run", end_somehow, rows(range(4)))

    assert run.run().status == 1

    assert [type(run.errors()[item]) for item in range(4)] == [
        FunctionExited,
        KeyboardInterrupt,
        GeneratorExit,
        WorkerDied,
    ]
    assert "by sys.exit" in str(run.errors()[0])


def test_the_peak_of_memory_is_recorded(tmp_path: Path) -> None:
    """An attempt notes its start, its end, its node and the peak of its workers' memory."""

    def use(_: int) -> int:
        return len(b"x" * 200_000_000)

    run = OneRun(tmp_path / "run", use, rows([0]))
    assert run.run().status == 0

    file = OutcomeFile(run.folder.outcome_file(0, 0), run.folder.salt)
    list(file.read(final=True))
    notes: dict[str, Any] = {key: value for note in file.notes for key, value in note.items()}
    assert notes["node"] == os.uname().nodename
    assert notes["started"] <= notes["ended"]
    assert 200_000_000 < notes["peak"] < 2_000_000_000


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        (200 << 20, " of 200 MiB"),
        (1536 << 20, " of 1.5 GiB"),
        (1000 << 20, " of 1000 MiB"),
        (4 << 40, " of 4 TiB"),
        ("max", ""),
    ],
)
def test_the_memory_limit_in_words(limit: object, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit is shown in the unit in which it was given, or one that is as short."""
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    monkeypatch.setattr(system, "_ROOT", tmp_path)
    monkeypatch.setattr(system, "_memory_cgroups", lambda: [(tmp_path, "memory.events", "memory.max")])

    assert text == system.memory_limit_text()
