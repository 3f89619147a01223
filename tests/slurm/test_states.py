"""The states of tasks: the output of squeue and sacct, its interpretation, and the number of queries."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurmlaunch.backends.base import TaskRecord, TaskState
from slurmlaunch.backends.slurm.commands import Cluster, Command, Finished
from slurmlaunch.backends.slurm.job_states import Elements, Group, JobStates, Row
from slurmlaunch.backends.slurm.queries import sacct_rows, squeue_rows
from slurmlaunch.backends.slurm.shared_states import Content, Intervals, SharedStates
from slurmlaunch.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

# Recorded on Slurm 22.05: an array of ten, three at a time, of which 5, 7 and 8 were cancelled while they were pending.
SQUEUE = """\
81_0|COMPLETED|n1|N/A|None
81_1|FAILED|n1|N/A|NonZeroExitCode
81_[4,6,9%2]|PENDING|n/a|N/A|JobArrayTaskLimit
81_3|RUNNING|n1|N/A|None
81_2|COMPLETING|n1|N/A|None
"""
SACCT = """\
81_0|COMPLETED|0:0|n1
81_0.batch|COMPLETED|0:0|n1
81_1|FAILED|1:0|n1
81_1.batch|FAILED|1:0|n1
81_2|RUNNING|0:0|n1
81_2.batch|RUNNING|0:0|n1
81_3|CANCELLED by 1001|0:15|n1
81_3.batch|CANCELLED|0:15|n1
81_3.extern|COMPLETED|0:0|n1
81_[4,6,9%2]|PENDING|0:0|None assigned
"""
AFTER_SCANCEL = """\
81_[6,9%5]|CANCELLED|n/a|N/A|JobArrayTaskLimit
81_4|CANCELLED|n2|N/A|None
81_0|COMPLETED|n1|N/A|None
"""

START = 1_000_000.0
GONE = Intervals().gone

numbers = st.frozensets(st.integers(0, 400))


# Elements.


@settings(deadline=None)
@given(numbers)
def test_elements_are_read_as_they_are_written(members: frozenset[int]) -> None:
    """A set's text is read as the same set, throttle or not, and its members come back in order."""
    elements = Elements.of(members)
    assert list(elements) == sorted(members)
    assert (Elements.parse(str(elements)) or Elements()) == elements
    if members:
        assert Elements.parse(f"{elements}%7") == elements


@settings(deadline=None)
@given(numbers, numbers)
def test_elements_are_sets(one: frozenset[int], other: frozenset[int]) -> None:
    """Union, intersection, difference, size, membership and the largest are those of sets."""
    left, right = Elements.of(one), Elements.of(other)
    assert left | right == Elements.of(one | other)
    assert left & right == Elements.of(one & other)
    assert left - right == Elements.of(one - other)
    assert (len(left), bool(left), left.largest) == (len(one), bool(one), max(one, default=-1))
    assert all((number in left) == (number in one) for number in one | other)


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 300), st.integers(2, 9))
def test_elements_may_have_a_step(first: int, length: int, step: int) -> None:
    """``0-98:2%5`` is every second element."""
    text = f"{first}-{first + length}:{step}%5"
    assert Elements.parse(text) == Elements.of(range(first, first + length + 1, step))


@pytest.mark.parametrize("text", ["", "x", "1,,2", "1-2-3", "-1", "1-9:0", "0-99999999999999", "1;2", "1 2"])
def test_other_text_is_no_element_list(text: str) -> None:
    """Text that Slurm would never print is refused as an element list."""
    assert Elements.parse(text) is None


@settings(deadline=None)
@given(st.text("0123456789-,:%[]_.|", max_size=30))
def test_no_row_breaks_the_reader(text: str) -> None:
    """Reading rows raises nothing for any text in place of an id."""
    assert len([*squeue_rows(f"{text}|RUNNING|n1|N/A|None"), *sacct_rows(f"12_{text}|RUNNING|0:0|n1")]) <= 2


def test_a_hundred_thousand_pending_elements_are_one_row() -> None:
    """A bracket is never expanded into its elements."""
    (row,) = squeue_rows("12_[0-99999%500]|PENDING|n/a|N/A|Priority")
    assert len(row.elements) == 100_000
    assert len(json.dumps(JobStates().after_squeue([row], START).to_json())) < 200


# Rows.


def test_rows_of_squeue() -> None:
    """Each line of squeue is an element, a single job or a bracket; other lines are none."""
    rows = list(squeue_rows("CLUSTER: alpha\n77|RUNNING|n1|N/A|None\n77+1|RUNNING|n1|N/A|None\n" + SQUEUE))
    single = rows.pop(0)
    assert (single.job, str(single.elements), single.shared) == ("77", "0", False)
    assert [(row.job, str(row.elements), row.shared, row.record.state.value) for row in rows] == [
        ("81", "0", False, "COMPLETED"),
        ("81", "1", False, "FAILED"),
        ("81", "4,6,9", True, "PENDING"),
        ("81", "3", False, "RUNNING"),
        ("81", "2", False, "COMPLETING"),
    ]
    assert rows[1].record == TaskRecord(TaskState.FAILED, node="n1", reason="NonZeroExitCode")
    assert rows[2].record == TaskRecord(TaskState.PENDING, reason="JobArrayTaskLimit")


def test_rows_of_sacct() -> None:
    """Each line of sacct is a task, a step of one, or a bracket; the user who cancelled is kept as the reason."""
    assert [(row.job, str(row.elements), row.step) for row in sacct_rows("7|RUNNING||n1\n7.batch|RUNNING||n1")] == [
        ("7", "0", None),
        ("7", "0", "batch"),
    ]
    rows = list(sacct_rows(SACCT))
    assert [row.step for row in rows[-4:]] == [None, "batch", "extern", None]
    assert rows[-4].record == TaskRecord(TaskState.CANCELLED, "0:15", "n1", "CANCELLED by 1001")
    assert rows[-1] == Row("81", Elements.of([4, 6, 9]), TaskRecord(TaskState.PENDING, "0:0"), shared=True)


@pytest.mark.parametrize("text", ["7_[1,3,5...%3]", "7_[1,3,5,...]", "7_[1,3,51"])
def test_a_list_that_was_cut_says_so(text: str) -> None:
    """Only the whole numbers of a cut list count, and the list is marked as incomplete."""
    (row,) = squeue_rows(f"{text}|PENDING|n/a|N/A|None")
    assert row.elided
    assert set(row.elements) <= {1, 3, 5}


# Their interpretation.


def states_of(states: JobStates, length: int = 10) -> list[str | None]:
    """Return the first four letters of each element's state."""
    records = [states.get(element) for element in range(length)]
    return [record.state.value[:4] if record else None for record in records]


def with_accounts(states: JobStates, rows: Iterable[Row]) -> JobStates:
    """Return the states after sacct answered at once."""
    return states.after_sacct(rows, START, GONE, failed=False)


def test_squeue_gives_the_states_of_elements() -> None:
    """Own rows and the bracket give each element's state; any other element is unknown."""
    states = JobStates().after_squeue(squeue_rows(SQUEUE), START)
    assert states_of(states) == ["COMP", "FAIL", "COMP", "RUNN", "PEND", "UNKN", "PEND", "UNKN", "UNKN", "PEND"]
    assert states.needs_sacct()


def test_an_own_row_outranks_the_bracket() -> None:
    """While an element starts, both rows contain it, and its own row is newer."""
    for text in (
        "9_3|RUNNING|n1|N/A|None\n9_[3-5]|PENDING|n/a|N/A|x",
        "9_[3-5]|PENDING|n/a|N/A|x\n9_3|RUNNING|n1|N/A|None",
    ):
        assert states_of(JobStates().after_squeue(squeue_rows(text), START), 6)[3:] == ["RUNN", "PEND", "PEND"]


def test_a_bracket_may_be_final() -> None:
    """A job that was cancelled as a whole has ended, also if it never started."""
    states = JobStates().after_squeue(squeue_rows(AFTER_SCANCEL), START)
    assert [states_of(states)[element] for element in (0, 4, 6, 9)] == ["COMP", "CANC", "CANC", "CANC"]
    assert states.get(6) == TaskRecord(TaskState.CANCELLED)


@pytest.mark.parametrize("others", ["", "9_0|RUNNING|n1|N/A|None\n"])
def test_the_rest_of_an_array_may_have_no_numbers(others: str) -> None:
    """Slurm 26.05 names the job alone once its last pending elements are cancelled: no other element has ended."""
    states = JobStates().after_squeue(squeue_rows("9_0|RUNNING|n1|N/A|None\n9_[1-2]|PENDING|n/a|N/A|x"), START)
    states = states.after_squeue(squeue_rows(f"{others}9|CANCELLED|n/a|N/A|JobArrayTaskLimit"), START)
    assert states_of(states, 3) == ["RUNN", "CANC", "CANC"]
    states = states.after_squeue(squeue_rows(f"{others}9|CANCELLED|n/a|N/A|JobArrayTaskLimit"), START)
    assert states_of(states, 3) == ["RUNN", "CANC", "CANC"]


@pytest.mark.parametrize(
    ("accounts", "known_after"), [("9_0|RUNNING|0:0|n1\n9_[1-2%1]|CANCELLED by 0|0:0|None assigned", 0), (None, 70)]
)
def test_the_rest_of_an_array_may_never_have_been_seen(
    slurm: FakeSlurm, accounts: str | None, known_after: int
) -> None:
    """A client that comes after the cancellation learns the elements from sacct, or after a while by themselves."""
    slurm.squeue, slurm.sacct = "9|CANCELLED|n/a|N/A|JobArrayTaskLimit\n9_0|RUNNING|n1|N/A|None", accounts or DISABLED
    process = slurm.process()
    found: list[list[str | None]] = []
    for seconds in (0, 60, 160):
        slurm.now = START + seconds
        content = process.query({"9": 0.0})
        found.append([state(content, "9", element) for element in range(3)])
    late = [seconds < known_after for seconds in (0, 60, 160)]
    assert found == [["RUNNING", *[None if unknown else "CANCELLED"] * 2] for unknown in late]
    slurm.squeue = slurm.squeue.replace("RUNNING", "COMPLETED")
    for _ in range(3):
        slurm.now += 200
        content = process.query({"9": 0.0})
    assert [state(content, "9", element) for element in range(3)] == ["COMPLETED", "CANCELLED", "CANCELLED"]
    assert slurm.asked.count("sacct") <= 3


@pytest.mark.parametrize("name", ["9_0", "9_[0-1%2]"])
@pytest.mark.parametrize(
    ("state", "reason", "kept"),
    [
        ("CANCELLED", "Priority", False),
        ("CANCELLED", "Resources", False),
        ("CANCELLED", "JobArrayTaskLimit", False),
        ("CANCELLED", "ReqNodeNotAvail, UnavailableNodes:n1", False),
        ("CANCELLED", "QOSMaxCpuPerUserLimit", False),
        ("TIMEOUT", "BeginTime", False),
        ("CANCELLED", "DependencyNeverSatisfied", True),
        ("TIMEOUT", "TimeLimit", True),
        ("FAILED", "NonZeroExitCode", True),
        ("FAILED", "RaisedSignal:9(Killed)", True),
        ("FAILED", "JobLaunchFailure", True),
        ("NODE_FAIL", "NodeDown", True),
        ("PENDING", "Priority", True),
    ],
)
def test_a_reason_to_wait_is_no_reason_of_an_end(name: str, state: str, reason: str, kept: bool) -> None:  # noqa: FBT001
    """An element that ended has no reason that says why it was pending before; one that is pending has."""
    record = JobStates().after_squeue(squeue_rows(f"{name}|{state}|n/a|N/A|{reason}"), START).get(0)
    assert record == TaskRecord(TaskState(state), reason=reason if kept else None)


def test_a_final_state_counts_only_when_squeue_agrees() -> None:
    """An element that sacct reports as preempted is alive as long as squeue reports it."""
    states = JobStates().after_squeue(squeue_rows("9_0|PENDING|n/a|N/A|BeginTime"), START)
    states = with_accounts(states, sacct_rows("9_0|PREEMPTED|0:0|n1"))
    assert states_of(states, 1) == ["PEND"]


def test_an_element_that_starts_again_is_alive() -> None:
    """A final state is dropped once squeue shows the element as alive."""
    states = JobStates().after_squeue(squeue_rows("9_0|FAILED|n1|N/A|x"), START)
    assert states_of(states.after_squeue(squeue_rows("9_0|PENDING|n/a|N/A|BeginTime"), START), 1) == ["PEND"]


def test_the_queues_end_is_newer_than_the_accounts() -> None:
    """An earlier attempt's end in sacct does not change a failure that squeue reported."""
    states = JobStates().after_squeue(squeue_rows("9_0|FAILED|n1|N/A|x"), START)
    assert states_of(with_accounts(states, sacct_rows("9_0|PREEMPTED|0:0|n1")), 1) == ["FAIL"]


@pytest.mark.parametrize(("task", "state"), [("COMPLETED", "OUT_"), ("FAILED", "OUT_"), ("TIMEOUT", "TIME")])
def test_out_of_memory_is_found_in_the_steps(task: str, state: str) -> None:
    """A task that ended while one of its steps was out of memory is OUT_OF_MEMORY, unless its state says more."""
    text = f"9_0|{task}|0:0|n1\n9_0.batch|COMPLETED|0:0|n1\n9_0.0|OUT_OF_MEMORY|0:125|n1"
    assert states_of(with_accounts(JobStates(), sacct_rows(text)), 1) == [state]
    seen = JobStates().after_squeue(squeue_rows(f"9_0|{task}|n1|N/A|None"), START)
    assert states_of(with_accounts(seen, sacct_rows(text)), 1) == [state]


def look(states: JobStates, now: float, queue: str = "", accounts: str | None = "") -> JobStates:
    """Return the states after one query, in which sacct answers or, with None, fails."""
    states = states.after_squeue(squeue_rows(queue), now)
    return states.after_sacct(sacct_rows(accounts or ""), now, GONE, failed=accounts is None)


def test_sacct_names_the_signal_that_squeue_leaves_out() -> None:
    """The state of a batch script that was killed is squeue's, its signal sacct's; both are kept."""
    queue, accounts = "9_0|FAILED|n1|N/A|JobLaunchFailure", "9_0|FAILED|0:9|n1\n9_0.batch|CANCELLED|0:9|"
    states = look(JobStates(), START, queue, "")
    assert states.get(0) == TaskRecord(TaskState.FAILED, None, "n1", "JobLaunchFailure")
    assert states.needs_sacct()

    states = look(states, START + 30, queue, accounts)
    assert states.get(0) == TaskRecord(TaskState.FAILED, "0:9", "n1", "JobLaunchFailure")
    assert not states.needs_sacct()
    assert look(states, START + 60, queue) == states


def test_an_element_that_vanished_while_pending_was_cancelled() -> None:
    """An element that left the bracket without a row is cancelled after two polls, 70 s apart, and not before."""
    states = look(JobStates(), START, "9_[0-4%2]|PENDING|n/a|N/A|x")
    rest = "9_[0-1,3-4%2]|PENDING|n/a|N/A|x"
    for later in (10, 20, 10 + GONE - 1):
        states = look(states, START + later, rest)
        assert states_of(states, 5) == ["PEND"] * 5
    states = look(states, START + 10 + GONE, rest)
    assert states_of(states, 5) == ["PEND", "PEND", "CANC", "PEND", "PEND"]


def test_one_query_reports_no_cancellation() -> None:
    """A first missing row is not an end, however long ago the last poll was."""
    states = look(JobStates(), START, "9_[0-1]|PENDING|n/a|N/A|x")
    assert states_of(look(states, START + 9999, "9_[0]|PENDING|n/a|N/A|x"), 2) == ["PEND", "PEND"]


def test_an_element_listed_again_is_not_lost() -> None:
    """If an element is seen again, the wait for its end starts over."""
    full, less = "9_[0-1]|PENDING|n/a|N/A|x", "9_[0]|PENDING|n/a|N/A|x"
    states = JobStates()
    for later, queue in enumerate((full, less, full, less)):
        states = look(states, START + later * GONE, queue)
    assert states_of(states, 2) == ["PEND", "PEND"]


def test_sacct_explains_elements_that_vanished_while_running() -> None:
    """The state from sacct counts when it arrives; if it never does, the element failed."""
    running = look(JobStates(), START, "9_0|RUNNING|n1|N/A|None\n9_1|RUNNING|n1|N/A|None")
    lagging = look(running, START + 30, "9_1|RUNNING|n1|N/A|None", "9_0|RUNNING|0:0|n1")
    assert states_of(lagging, 2) == ["RUNN", "RUNN"]
    told = look(lagging, START + 60, "9_1|RUNNING|n1|N/A|None", "9_0|TIMEOUT|0:0|n1")
    assert states_of(told, 2) == ["TIME", "RUNN"]
    assert states_of(look(lagging, START + 30 + GONE, "9_1|RUNNING|n1|N/A|None"), 2) == ["FAIL", "RUNN"]


def test_accounts_that_fail_are_waited_for_longer_but_not_for_ever() -> None:
    """With sacct failing, a missing element ends only after several times as long."""
    states = look(JobStates(), START, "9_[0]|PENDING|n/a|N/A|x")
    states = look(states, START, "", None)
    assert states_of(look(states, START + GONE, "", None), 1) == ["PEND"]
    assert states_of(look(states, START + 20 * GONE, "", None), 1) == ["CANC"]


def test_an_unknown_job_is_over() -> None:
    """All elements of a job without a row in squeue and sacct were cancelled."""
    states = look(JobStates(), START)
    assert states.get(3) is None
    assert states_of(look(states, START + GONE), 2) == ["CANC", "CANC"]


def test_a_list_that_was_cut_makes_nothing_lost() -> None:
    """Elements that may be in the cut part of a list are not reported as lost."""
    states = look(JobStates(), START, "9_[0-9]|PENDING|n/a|N/A|x")
    for later in (0, 100, 200):
        states = look(states, START + later, "9_[0,3,...]|PENDING|n/a|N/A|x")
    assert not states.needs_sacct()


def test_the_queue_alone_may_be_silent() -> None:
    """If squeue fails, the final states of sacct count, except those of tasks that Slurm requeues."""
    states = JobStates().after_squeue(squeue_rows("9_0|RUNNING|n1|N/A|x\n9_1|RUNNING|n1|N/A|x"), START)
    rows = list(sacct_rows("9_0|COMPLETED|0:0|n1\n9_1|NODE_FAIL|0:0|n1"))
    assert states_of(states.after_sacct_alone(rows), 2) == ["COMP", "RUNN"]


@settings(deadline=None)
@given(st.lists(st.tuples(numbers, st.sampled_from(TaskState)), max_size=4), numbers)
def test_states_are_read_as_they_are_written(
    parts: list[tuple[frozenset[int], TaskState]], seen: frozenset[int]
) -> None:
    """The states of a job are the same after writing and reading the shared file."""
    groups = tuple(Group(Elements.of(members), TaskRecord(state, "1:0", None, "é|"), 1.5) for members, state in parts)
    states = JobStates(groups, groups, groups, Elements.of(seen), 2.5, gone=True)
    assert JobStates.from_json(json.loads(json.dumps(states.to_json()))) == states


# The number of queries to Slurm.


class FakeSlurm:
    """A runner that gives the test's answers, and counts; and a clock."""

    def __init__(self) -> None:
        """Answer nothing, at the start."""
        self.now = START
        self.asked: list[str] = []
        self.squeue: str | Finished = ""
        self.sacct: str | Finished = ""

    def __call__(self, command: Command, /) -> Finished:
        """Answer a command."""
        program = command.words[0]
        self.asked.append(program)
        answer = self.squeue if program == "squeue" else self.sacct
        return answer if isinstance(answer, Finished) else Finished(0, answer)

    def process(self, cluster: str | None = None) -> SharedStates:
        """Return the states as a second process sees them."""
        return SharedStates(Cluster(self, cluster), Intervals(), clock=lambda: self.now)


DOWN = Finished(1, stderr="slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
DISABLED = Finished(1, stderr="Slurm accounting storage is disabled")


@pytest.fixture
def slurm(runtime: Path) -> FakeSlurm:
    """Return a Slurm whose answers are shared below a folder of the test's own."""
    return FakeSlurm()


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the user's runtime folder."""
    folder = tmp_path / "runtime"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    return folder


def state(content: Content | None, job: str = "9", element: int = 0) -> str | None:
    """Return an element's state in the newest content."""
    record = content.jobs[job].get(element) if content and job in content.jobs else None
    return record.state.value if record else None


def watch(slurm: FakeSlurm, processes: list[SharedStates], jobs: dict[str, float], seconds: int) -> None:
    """Have the processes poll their jobs once a second."""
    for _ in range(seconds):
        slurm.now += 1
        for process in processes:
            process.query(jobs)


def test_a_job_just_submitted_is_not_asked_for(slurm: FakeSlurm) -> None:
    """No query is made in a job's first 30 s; then its state is known."""
    slurm.squeue = "9_0|RUNNING|n1|N/A|None"
    process = slurm.process()
    watch(slurm, [process], {"9": START}, 29)
    assert (process.query({"9": START}), slurm.asked) == (None, [])
    watch(slurm, [process], {"9": START}, 1)
    assert (state(process.query({"9": START})), slurm.asked) == ("RUNNING", ["squeue"])


def test_a_job_of_old_is_asked_for_at_once(slurm: FakeSlurm) -> None:
    """A job that another process submitted is queried when it is first watched."""
    slurm.squeue = "9_0|RUNNING|n1|N/A|None"
    assert state(slurm.process().query({"9": 0.0})) == "RUNNING"


def test_a_run_of_a_minute_costs_three_queries_at_most(slurm: FakeSlurm) -> None:
    """Watching a run for a minute, with ending tasks and a failing one, takes at most three commands."""
    slurm.squeue = "9_0|COMPLETED|n1|N/A|None\n9_1|FAILED|n1|N/A|x\n9_2|RUNNING|n1|N/A|None\n9_[3-9]|PENDING|n/a|N/A|x"
    watch(slurm, [slurm.process()], {"9": START}, 45)
    slurm.squeue = (
        "9_0|COMPLETED|n1|N/A|None\n9_1|FAILED|n1|N/A|x\n9_2|COMPLETED|n1|N/A|None\n9_[3-9]|PENDING|n/a|N/A|x"
    )
    watch(slurm, [slurm.process()], {"9": START}, 20)
    assert len(slurm.asked) <= 3


def test_ten_processes_query_as_often_as_one(slurm: FakeSlurm) -> None:
    """In two minutes ten processes with jobs of their own make no more queries than one."""
    slurm.squeue = "9_0|RUNNING|n1|N/A|None"
    watch(slurm, [slurm.process()], {"9": START}, 120)
    alone, slurm.asked = len(slurm.asked), []
    slurm.now = began = START + 10_000
    processes = [(slurm.process(), {str(number): began}) for number in range(9, 19)]
    for _ in range(120):
        slurm.now += 1
        for process, jobs in processes:
            process.query(jobs)
    assert len([word for word in slurm.asked if word == "squeue"]) == alone


def test_real_processes_ask_once(runtime: Path, tmp_path: Path) -> None:
    """Of processes that start at the same moment one queries; the others use its answer or wait for it."""
    code = f"""
import sys
from pathlib import Path
from slurmlaunch.backends.slurm.commands import Cluster, Finished
from slurmlaunch.backends.slurm.shared_states import Intervals, SharedStates
def run(command):
    with open({str(tmp_path / "asked")!r}, "a") as file:
        file.write(command.words[0] + "\\n")
    return Finished(0, "9_0|RUNNING|n1|N/A|None")
snapshots = SharedStates(Cluster(run), Intervals())
sys.stdin.readline()
found = snapshots.query({{"9": 0.0}})
print(found is None or found.jobs["9"].get(0).state.value)
sys.stdin.readline()
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    for _ in range(2):
        for process in processes:
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
    said = {process.communicate()[0].strip() for process in processes}
    assert "RUNNING" in said
    assert said <= {"RUNNING", "True"}
    assert (tmp_path / "asked").read_text() == "squeue\n"


@pytest.mark.parametrize(
    ("squeue", "sacct"),
    [
        ("9_0|RUNNING|n1|N/A|None\n9_1|RUNNING|n1|N/A|None", ""),
        (DOWN, "9_0|RUNNING|0:0|n1\n9_1|RUNNING|0:0|n1"),
        (DOWN, DOWN),
    ],
    ids=["up", "no controller", "neither"],
)
def test_the_age_grows_while_nothing_ends(slurm: FakeSlurm, squeue: str | Finished, sacct: str | Finished) -> None:
    """The interval of queries grows to three minutes, also while Slurm is away, and is short again after an end."""
    slurm.squeue, slurm.sacct = squeue, sacct
    process = slurm.process()

    def gaps(seconds: int) -> list[float]:
        times: list[float] = []
        for _ in range(seconds):
            slurm.now += 1
            before = len(slurm.asked)
            process.query({"9": START})
            times += [slurm.now] * (len(slurm.asked) > before)
        return [later - earlier for earlier, later in itertools.pairwise(times)]

    growing = gaps(1200)
    assert growing == sorted(growing)
    assert (growing[0], growing[-1]) == (45, 180)
    slurm.squeue = "9_0|COMPLETED|n1|N/A|None\n9_1|RUNNING|n1|N/A|None"
    assert gaps(300)[0] == 30


def test_a_new_job_forces_no_question(slurm: FakeSlurm) -> None:
    """Watching another job forces no query: the last answers stand until the next one is due."""
    slurm.squeue = "9_0|RUNNING|n1|N/A|None\n10_0|RUNNING|n1|N/A|None"
    process = slurm.process()
    process.query({"9": 0.0})
    slurm.now += 20
    snapshot = slurm.process().query({"10": 0.0})
    assert (state(snapshot, "10"), state(snapshot, "9"), slurm.asked) == (None, "RUNNING", ["squeue"])
    slurm.now += 40
    assert state(process.query({"9": 0.0}), "10") == "RUNNING"


def test_the_dead_watch_nothing(slurm: FakeSlurm, runtime: Path) -> None:
    """The jobs of a dead process are not queried."""
    slurm.process().query({"9": 0.0})
    (file,) = runtime.glob("slurmlaunch/*.json")
    content = json.loads(file.read_text())
    ended = subprocess.Popen(["true"])
    ended.wait()
    content["watchers"] |= {f"{ended.pid}-123-0": {"77": 0.0}, f"{os.getpid()}-1-0": {"78": 0.0}, "odd": {"79": 0.0}}
    file.write_text(json.dumps(content))
    slurm.now += 100
    slurm.process().query({"10": 0.0})
    watched = json.loads(file.read_text())["watchers"].values()
    assert sorted(job for jobs in watched for job in jobs) == ["10", "9"]


def test_clusters_share_nothing(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each cluster and each configuration has separate answers."""
    slurm.squeue = "9_0|RUNNING|n1|N/A|None"
    slurm.process().query({"9": 0.0})
    slurm.process("other").query({"9": 0.0})
    monkeypatch.setenv("SLURM_CONF", "/another/slurm.conf")
    slurm.process().query({"9": 0.0})
    assert slurm.asked == ["squeue"] * 3


def test_sacct_is_queried_for_ends_that_squeue_no_longer_lists(slurm: FakeSlurm) -> None:
    """An end that squeue no longer shows is looked up in sacct, once."""
    slurm.squeue = "9_0|RUNNING|n1|N/A|None\n9_1|RUNNING|n1|N/A|None"
    process = slurm.process()
    process.query({"9": 0.0})
    slurm.squeue, slurm.sacct = "9_1|RUNNING|n1|N/A|None", "9_0|NODE_FAIL|0:0|n1\n9_1|RUNNING|0:0|n1"
    slurm.now += 60
    assert state(process.query({"9": 0.0})) == "NODE_FAIL"
    slurm.now += 60
    process.query({"9": 0.0})
    assert slurm.asked == ["squeue", "squeue", "sacct", "squeue"]


def test_a_site_without_accounts_is_not_asked_for_them(slurm: FakeSlurm) -> None:
    """If accounting is off, squeue alone is used, and sacct is tried once."""
    slurm.squeue, slurm.sacct = "9_0|RUNNING|n1|N/A|None\n9_[1]|PENDING|n/a|N/A|x", DISABLED
    process = slurm.process()
    process.query({"9": 0.0})
    slurm.squeue = "9_0|RUNNING|n1|N/A|None"
    for _ in range(3):
        slurm.now += 100
        snapshot = process.query({"9": 0.0})
    assert (state(snapshot, "9", 0), state(snapshot, "9", 1)) == ("RUNNING", "CANCELLED")
    assert slurm.asked.count("sacct") == 1


def test_a_scheduler_away_is_reported_once(slurm: FakeSlurm, caplog: pytest.LogCaptureFixture) -> None:
    """While every command fails the last answer stands, one warning is logged, and the recovery is noticed."""
    slurm.squeue = "9_0|RUNNING|n1|N/A|None"
    process = slurm.process()
    first = process.query({"9": 0.0})
    up, slurm.squeue, slurm.sacct = slurm.squeue, DOWN, DOWN
    with caplog.at_level(logging.INFO, "slurmlaunch"):
        for _ in range(5):
            slurm.now += 400
            later = process.query({"9": 0.0})
            assert later
            assert first
            assert (later.taken, later.jobs) == (first.taken, first.jobs)
        slurm.squeue = up
        slurm.now += 400
        newer = process.query({"9": 0.0})
    assert newer
    assert first
    assert newer.taken > first.taken
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "Unable to contact slurm controller" in caplog.text


def test_a_scheduler_that_never_answered_has_no_snapshot(slurm: FakeSlurm) -> None:
    """Before the first answer there is no snapshot, and no error."""
    slurm.squeue = slurm.sacct = Finished(None, stderr="no such program", missing=True)
    assert slurm.process().query({"9": 0.0}) is None


def test_squeue_that_forgot_a_single_job_has_answered(slurm: FakeSlurm) -> None:
    """Slurm's error for one unknown job id is an answer: the job is not in the queue."""
    slurm.squeue = Finished(1, stderr="slurm_load_jobs error: Invalid job id specified")
    slurm.sacct = "9_0|COMPLETED|0:0|n1"
    assert state(slurm.process().query({"9": 0.0})) == "COMPLETED"


def test_a_clock_that_was_set_back_stops_nothing(slurm: FakeSlurm) -> None:
    """Answers with a time in the future count as too old."""
    process = slurm.process()
    process.query({"9": START})
    slurm.now -= 100_000
    slurm.squeue = "9_0|RUNNING|n1|N/A|None"
    assert state(process.query({"9": START})) == "RUNNING"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 99}', '{"version": 1}', '{"version":1,"asked":"x"}'])
def test_a_damaged_file_is_an_empty_one(slurm: FakeSlurm, runtime: Path, content: str) -> None:
    """A damaged shared file is ignored, and Slurm is queried."""
    slurm.squeue = "9_0|RUNNING|n1|N/A|None"
    slurm.process().query({"9": 0.0})
    (file,) = runtime.glob("slurmlaunch/*.json")
    file.write_text(content)
    assert state(slurm.process().query({"9": 0.0})) == "RUNNING"
    assert slurm.asked == ["squeue", "squeue"]


def open_to_others(folder: Path) -> None:
    """Make a folder that others may write to."""
    folder.mkdir()
    folder.chmod(0o777)


def link_elsewhere(folder: Path) -> None:
    """Make a folder that is a link to another."""
    other = folder.with_name("elsewhere")
    other.mkdir(mode=0o700)
    folder.symlink_to(other)


def make_for_another(folder: Path) -> None:
    """Make a folder that belongs to another user."""
    folder.mkdir(mode=0o700)
    if os.geteuid() != 0:
        pytest.skip("only root can give folders away")
    os.chown(folder, 12345, -1)


def make_where_others_may_rename(folder: Path) -> None:
    """Make a private folder in one that others may write to."""
    folder.mkdir(mode=0o700)
    folder.parent.chmod(0o777)


@pytest.mark.parametrize("make", [open_to_others, link_elsewhere, make_for_another, make_where_others_may_rename])
def test_a_folder_that_is_not_ours_alone_is_not_used(
    slurm: FakeSlurm,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    make: Callable[[Path], None],
) -> None:
    """A folder that others may write to is not used, but one of the user's own, of which a warning tells once."""
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "temporary" / f"slurmlaunch-{os.geteuid()}"
    make(folder)
    slurm.squeue = "9_0|RUNNING|n1|N/A|None"
    for process in (slurm.process(), slurm.process()):
        assert state(process.query({"9": 0.0})) == "RUNNING"
    assert slurm.asked == ["squeue"]
    assert list(folder.glob("*")) == []
    (file,) = tmp_path.glob("cache/slurmlaunch/*.json")
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert [str(folder) in message and str(file.parent) in message for message in caplog.messages] == [True]


def test_without_a_folder_of_its_own_a_process_asks_for_itself(
    slurm: FakeSlurm, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no folder is the user's alone, nothing is read or written; the process queries Slurm itself."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(runtime / "cache"))
    open_to_others(runtime / "slurmlaunch")
    (runtime / "cache").mkdir()
    open_to_others(runtime / "cache" / "slurmlaunch")
    slurm.squeue = "9_0|RUNNING|n1|N/A|None"
    process = slurm.process()
    assert state(process.query({"9": 0.0})) == "RUNNING"
    assert (state(process.query({"9": 0.0})), slurm.asked) == ("RUNNING", ["squeue"])
    assert list(runtime.glob("**/*.json")) == []


def test_a_link_in_the_place_of_the_states_is_not_followed(slurm: FakeSlurm, runtime: Path, tmp_path: Path) -> None:
    """What a link leads to is neither read nor changed; the states take the link's place."""
    slurm.squeue = "9_0|RUNNING|n1|N/A|None"
    slurm.process().query({"9": 0.0})
    (file,) = runtime.glob("slurmlaunch/*.json")
    other = file.rename(tmp_path / "other")
    before = other.read_bytes()
    file.symlink_to(other)
    slurm.process().query({"9": 0.0})
    assert (slurm.asked, other.read_bytes(), file.is_symlink()) == (["squeue", "squeue"], before, False)


def test_without_a_runtime_folder_the_temporary_one_serves(
    slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a runtime folder, answers are shared in a private folder below the temporary one."""
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    slurm.process().query({"9": 0.0})
    (file,) = tmp_path.glob("slurmlaunch-*/*.json")
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_the_pace_may_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURMLAUNCH_QUERY_INTERVAL sets the shortest interval in seconds, and scales the others with it."""
    monkeypatch.setenv(Intervals.VARIABLE, "3")
    assert Intervals.from_environment() == Intervals(3.0, 18.0, 7.0)
    monkeypatch.delenv(Intervals.VARIABLE)
    assert Intervals.from_environment() == Intervals(30.0, 180.0, 70.0)
    for wrong in ("soon", "0", "-1", "inf", "nan"):
        monkeypatch.setenv(Intervals.VARIABLE, wrong)
        with pytest.raises(OptionError, match=re.escape(wrong)):
            Intervals.from_environment()
