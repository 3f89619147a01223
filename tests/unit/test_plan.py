"""How a run is cut into slices and arrays."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurmlaunch.backends.base import Limits
from slurmlaunch.client.plan import DEFAULT_TASKS, STATIC, Plan, plan
from slurmlaunch.errors import OptionError, SubmissionError
from slurmlaunch.runfolder.plan import Slices

FREE = Limits()

counts = st.integers(min_value=1, max_value=300)
item_counts = st.integers(min_value=0, max_value=2000)
maybe_limit = st.none() | st.integers(min_value=1, max_value=50)
any_limits = st.builds(Limits, max_array_size=maybe_limit, max_array_tasks=maybe_limit)


@st.composite
def any_slices(draw: st.DrawFn) -> Slices:
    """Make balanced slices, or slices of one length."""
    items = draw(item_counts)
    count = draw(counts)
    if draw(st.booleans()):
        return Slices(items, -(-items // count), count)
    return Slices(items, count)


@st.composite
def any_plan(draw: st.DrawFn) -> Plan:
    """Make a plan by tasks, by chunksize or by default."""
    asked: dict[str, Any] = {draw(st.sampled_from(["tasks", "chunksize", "processes"])): draw(counts)}
    return plan(
        draw(item_counts),
        limits=draw(any_limits),
        first_task=draw(st.integers(min_value=0, max_value=10**6)),
        **asked,
    )


class TestSlices:
    """The arithmetic that client and node share."""

    @given(any_slices())
    def test_cover_in_order(self, slices: Slices) -> None:
        """The slices of all tasks, one after the other, are all positions in order."""
        positions = [i for task in range(slices.tasks) for i in slices.slice_of(task)]

        assert list(range(slices.items)) == positions

    @given(any_slices())
    def test_task_of_inverts_slice_of(self, slices: Slices) -> None:
        """The task of a position is the one whose slice contains it."""
        owners = [task for task in range(slices.tasks) for _ in slices.slice_of(task)]

        assert owners == [slices.task_of(item) for item in range(slices.items)]

    @given(item_counts, counts)
    def test_balanced(self, items: int, tasks: int) -> None:
        """Balanced slices differ by at most one item, and the longer come first."""
        slices = Slices(items, tasks)
        lengths = [len(slices.slice_of(task)) for task in range(tasks)]

        assert sorted(lengths, reverse=True) == lengths
        assert lengths[0] - lengths[-1] <= 1
        assert slices.longest == lengths[0]

    @given(st.integers(min_value=1, max_value=2000), counts)
    def test_chunks(self, items: int, chunksize: int) -> None:
        """With a chunksize every slice but the last has that length."""
        slices = Slices(items, -(-items // chunksize), chunksize)
        lengths = [len(slices.slice_of(task)) for task in range(slices.tasks)]

        assert {chunksize} >= set(lengths[:-1])
        assert 1 <= lengths[-1] <= chunksize

    def test_huge(self) -> None:
        """10^8 items in 10^5 tasks are three numbers."""
        slices = Slices(10**8, 10**5)

        assert range(99_999_000, 100_000_000) == slices.slice_of(99_999)
        assert slices.task_of(10**8 - 1) == 99_999

    def test_no_items(self) -> None:
        """No items make no slices, and the longest of none is 0."""
        assert Slices(0, 0).longest == 0

    @pytest.mark.parametrize("index", [-1, 3])
    def test_out_of_range(self, index: int) -> None:
        """An index that is not there is an IndexError, a negative one too."""
        slices = Slices(3, 3)

        with pytest.raises(IndexError, match=f"no task {index}"):
            slices.slice_of(index)
        with pytest.raises(IndexError, match=f"no position {index}"):
            slices.task_of(index)

    @pytest.mark.parametrize(
        ("items", "tasks", "chunksize"),
        [(-1, 1, None), (3, 0, None), (3, -1, None), (3, 3, 2), (3, 1, 2), (3, 3, 0), (-1, -1, 1)],
    )
    def test_losing_items(self, items: int, tasks: int, chunksize: int | None) -> None:
        """Numbers that would lose or repeat a position are refused."""
        with pytest.raises(ValueError, match="exactly once"):
            Slices(items, tasks, chunksize)

    @given(any_slices())
    def test_json(self, slices: Slices) -> None:
        """Slices are the same after JSON, and unknown keys are ignored."""
        text = json.dumps({**slices.to_json(), "a newer version's": 1})

        assert slices == Slices.from_json(json.loads(text))


class TestPlan:
    """The numbers that the client decides."""

    @given(any_plan())
    def test_arrays_cover_tasks(self, planned: Plan) -> None:
        """The arrays, one after the other, contain each task of the round once."""
        tasks = [task for array in planned.arrays for task in array]

        assert list(range(planned.first_task, planned.first_task + planned.slices.tasks)) == tasks

    @given(any_plan())
    def test_no_empty_task(self, planned: Plan) -> None:
        """No task is submitted without an item."""
        slices = planned.slices

        assert all(len(slices.slice_of(task)) > 0 for task in range(slices.tasks))

    @given(item_counts, any_limits, counts)
    def test_array_limits(self, items: int, limits: Limits, chunksize: int) -> None:
        """No array is longer than any of the cluster's limits."""
        lengths = [len(each) for each in plan(items, limits=limits, chunksize=chunksize).arrays]
        named = (limits.max_array_size, limits.max_array_tasks)

        assert all(max(lengths, default=0) <= limit for limit in named if limit is not None)

    @given(st.integers(min_value=0, max_value=10**8), any_limits, counts)
    def test_default_is_one_array(self, items: int, limits: Limits, processes: int) -> None:
        """By default a run is one array of at most 1000 tasks, or nothing."""
        planned = plan(items, limits=limits, processes=processes)

        assert len(planned.arrays) == min(items, 1)
        assert planned.slices.tasks <= DEFAULT_TASKS

    @given(item_counts, any_limits, counts)
    def test_notice_means_grown(self, items: int, limits: Limits, processes: int) -> None:
        """Slices longer than one item per process are reported, and no others."""
        planned = plan(items, limits=limits, processes=processes)

        assert (planned.slices.longest > processes) == (planned.notice is not None)

    def test_default_feeds_the_pool(self) -> None:
        """By default a task gets one item for each of its processes."""
        planned = plan(80, limits=FREE, processes=8)

        assert Slices(80, 10) == planned.slices
        assert planned.slices.longest == 8

    @pytest.mark.parametrize(
        ("limits", "tasks", "word"),
        [
            (FREE, 1000, "by default"),
            (Limits(max_array_size=1001), 1000, "by default"),
            (Limits(max_array_size=400, max_array_tasks=500), 400, "MaxArraySize"),
            (Limits(max_array_size=400, max_array_tasks=300), 300, "max_array_tasks"),
        ],
    )
    def test_growth(self, limits: Limits, tasks: int, word: str) -> None:
        """Default slices grow to the tightest limit, and the notice names it."""
        planned = plan(5000, limits=limits)

        assert tasks == planned.slices.tasks
        assert planned.notice is not None
        assert word in planned.notice
        assert f"{tasks} tasks with up to {-(-5000 // tasks)} items each" in planned.notice

    def test_over_max_array_size(self) -> None:
        """MaxArraySize is one more than the largest index, so an array may be as long as it."""
        planned = plan(2500, limits=Limits(max_array_size=1001), chunksize=1)

        expected = (range(1001), range(1001, 2002), range(2002, 2500))
        assert expected == planned.arrays
        assert planned.notice is None

    @given(counts, counts)
    def test_tasks_are_slices(self, items: int, tasks: int) -> None:
        """There are as many tasks as requested, or as items if those are fewer."""
        assert Slices(items, min(items, tasks)) == plan(items, limits=FREE, tasks=tasks).slices

    @pytest.mark.parametrize("asked", [{}, {"tasks": 3}, {"chunksize": 3}])
    def test_nothing_for_nothing(self, asked: dict[str, Any]) -> None:
        """No items are no tasks and no arrays."""
        planned = plan(0, limits=FREE, **asked)

        assert Plan(Slices(0, 0, asked.get("chunksize")), arrays=()) == planned

    @pytest.mark.parametrize(
        ("items", "cpus", "processes", "tasks"), [(64, 2, 1, 64), (1000, 2, 1, 64), (2000, 32, 2, 128)]
    )
    def test_one_machine(self, items: int, cpus: int, processes: int, tasks: int) -> None:
        """Where there is no queue, more tasks than keep all CPUs at work would only cost their starts."""
        planned = plan(items, limits=Limits(cpus=cpus), processes=processes)

        assert (tasks, None) == (planned.slices.tasks, planned.notice)
        assert 1000 == plan(1000, limits=Limits(cpus=cpus), chunksize=1).slices.tasks
        assert "5000 items go into" in str(plan(5000, limits=Limits(cpus=cpus)).notice)

    def test_later_round(self) -> None:
        """Task indices rise across rounds, while slices cut positions from 0."""
        first = plan(10, limits=FREE, tasks=4)
        second = plan(3, limits=FREE, first_task=first.slices.tasks)

        assert (range(4, 7),) == second.arrays
        assert range(1) == second.slices.slice_of(0)

    def test_limit_of_zero(self) -> None:
        """Where arrays are switched off, a plan of several tasks is an error that says so; one task needs no array."""
        for schedule in (STATIC, "auto", "dynamic"):
            with pytest.raises(SubmissionError, match=r"MaxArraySize=0.*submit.*tasks=1"):
                plan(2, limits=Limits(max_array_size=0), schedule=schedule)
        assert plan(2, limits=Limits(max_array_size=0), tasks=1).arrays == (range(1),)
        assert plan(1, limits=Limits(max_array_size=0)).arrays == (range(1),)

    def test_submit_limit(self) -> None:
        """A known limit of tasks in the queue limits the tasks by default, and each array."""
        limits = Limits(max_array_size=1001, max_submitted=8)
        assert plan(100, limits=limits, schedule="auto").arrays == (range(8),)
        assert list(map(len, plan(100, limits=limits, tasks=20).arrays)) == [8, 8, 4]

    def test_both(self) -> None:
        """Tasks and chunksize exclude each other, and the error names both."""
        with pytest.raises(OptionError, match=r"tasks.*chunksize"):
            plan(10, limits=FREE, tasks=2, chunksize=5)

    @pytest.mark.parametrize("option", ["tasks", "chunksize"])
    @pytest.mark.parametrize("value", [0, -1, 1.5, True, "many"])
    def test_no_count(self, option: str, value: Any) -> None:
        """Anything but a whole number of at least 1 is refused, with the option's name."""
        asked: dict[str, Any] = {option: value}
        with pytest.raises(OptionError, match=option) as caught:
            plan(10, limits=FREE, **asked)

        assert option == caught.value.option
