"""Thread caps: the variables, the CPU masks and the GPUs of a process."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurmlaunch import caps

if TYPE_CHECKING:
    from collections.abc import Mapping

names = st.sampled_from([*caps.VARIABLES, "PATH", "HOME", "OMP_PLACES"])
environments = st.dictionaries(names, st.sampled_from(["1", "5", "", "x"]))


# Variables.


@given(environments, st.integers(1, 300))
def test_every_variable_is_set_once(environ: dict[str, str], threads: int) -> None:
    """Each variable has the user's value, or else the cap; the caps are noted as ours."""
    capped = {**environ, **caps.variables(threads, environ)}

    assert {name: capped[name] for name in environ} == environ
    assert {capped[name] for name in caps.VARIABLES if name not in environ} <= {str(threads)}
    assert set(capped[caps.OURS].split(":")) - {""} == set(caps.VARIABLES) - environ.keys()
    assert capped[caps.SHARE] == str(threads)


@given(environments, st.integers(1, 300), st.integers(1, 300))
def test_our_variables_are_not_taken_for_the_users(environ: dict[str, str], outer: int, inner: int) -> None:
    """A task inside a task is capped as if there were no outer one, and its submission inherits no cap."""
    in_task = {**environ, **caps.variables(outer, environ)}

    assert caps.without_ours(in_task) == environ
    assert caps.variables(inner, in_task) == caps.variables(inner, environ)


def test_pools_of_tests_are_capped() -> None:
    """pytest-xdist's ``-n auto``, which counts the machine's CPUs, has the share of the process."""
    assert caps.variables(3, {})["PYTEST_XDIST_AUTO_NUM_WORKERS"] == "3"


def test_variables_set_in_a_task_stay() -> None:
    """Variables that a task's set-up lines set before us keep their values."""
    # The batch script has set one variable itself, before Python started.
    environ = {"PYTHON_CPU_COUNT": "4", caps.OURS: "PYTHON_CPU_COUNT", "OMP_NUM_THREADS": "2"}

    capped = {**environ, **caps.variables(4, environ)}

    assert [capped[name] for name in ("PYTHON_CPU_COUNT", "OMP_NUM_THREADS", "MKL_NUM_THREADS")] == ["4", "2", "4"]
    assert caps.without_ours(capped) == {"OMP_NUM_THREADS": "2"}


# Masks.


@st.composite
def machines(draw: st.DrawFn) -> dict[int, frozenset[int]]:
    """Draw a machine: its CPUs, each with the CPUs of its core."""
    cores, per_core = draw(st.integers(1, 16)), draw(st.integers(1, 4))
    cpus = list(range(cores * per_core))
    if draw(st.booleans()):  # hardware threads numbered side by side, or core after core
        groups = [cpus[i * per_core : (i + 1) * per_core] for i in range(cores)]
    else:
        groups = [cpus[i::cores] for i in range(cores)]
    return {cpu: frozenset(group) for group in groups for cpu in group}


@given(machines(), st.data())
def test_masks_divide_the_granted_cpus(machine: dict[int, frozenset[int]], data: st.DataObject) -> None:
    """Each process has its own CPUs, every CPU is used, and no core is split while there is a core for each process."""
    mask = data.draw(st.sets(st.sampled_from(sorted(machine)), min_size=1))
    processes = data.draw(st.integers(1, len(mask)))

    shares = caps.masks(mask, len(mask), processes, machine.__getitem__)

    assert shares is not None
    assert (len(shares), all(shares)) == (processes, True)
    assert sorted(cpu for share in shares for cpu in share) == sorted(mask)
    cores = {machine[cpu] & mask for cpu in mask}
    if processes <= len(cores):
        assert all(any(core <= share for share in shares) for core in cores)


@given(machines(), st.integers(1, 20))
def test_shares_differ_by_little(machine: dict[int, frozenset[int]], processes: int) -> None:
    """On a whole machine the shares differ by at most one core, or by one CPU if cores are split."""
    shares = caps.masks(machine.keys(), len(machine), processes, machine.__getitem__)

    if processes > len(machine):
        assert shares is None
    else:
        assert shares is not None
        sizes = list(map(len, shares))
        assert max(sizes) - min(sizes) <= max(map(len, machine.values()))


@given(machines(), st.integers(1, 100), st.integers(1, 8))
def test_a_mask_that_is_not_the_tasks_is_left_alone(
    machine: dict[int, frozenset[int]], granted: int, processes: int
) -> None:
    """A mask of neither the granted CPUs nor their cores' threads is the node's, so there are no shares."""
    per_core = len(next(iter(machine.values())))

    shares = caps.masks(machine.keys(), granted, processes, machine.__getitem__)

    own = len(machine) in {granted, granted * per_core} and processes <= len(machine)
    assert (shares is not None) == own


def test_threads_of_granted_cores_belong_to_the_task() -> None:
    """If the scheduler counts cores, each process gets all hardware threads of its cores."""
    machine = {cpu: frozenset({cpu % 4, cpu % 4 + 4}) for cpu in range(8)}

    shares = caps.masks({1, 2, 5, 6}, 2, 2, machine.__getitem__)

    assert shares == [frozenset({1, 5}), frozenset({2, 6})]


@pytest.mark.parametrize(
    ("text", "expected"), [("0", [0]), ("0-3\n", [0, 1, 2, 3]), ("0,4", [0, 4]), ("1-2,8,10-11", [1, 2, 8, 10, 11])]
)
def test_the_kernels_lists_are_read(text: str, expected: list[int]) -> None:
    """Lists of CPUs are read as the kernel writes them."""
    assert caps._cpu_list(text) == expected  # noqa: SLF001 - machines with such lists are rare


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux")
def test_this_machine_is_divided() -> None:
    """The cores that this machine reports make masks that a process can be given."""
    mask = os.sched_getaffinity(0)

    shares = caps.masks(mask, len(mask), 1)

    assert (shares, caps.usable_cpus()) == ([frozenset(mask)], len(mask))


# GPUs.


@pytest.mark.parametrize(
    ("environ", "processes", "expected"),
    [
        ({}, 2, [{}, {}]),
        ({"CUDA_VISIBLE_DEVICES": ""}, 2, [{}, {}]),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, 1, [{}]),
        ({"CUDA_VISIBLE_DEVICES": "4,5"}, 2, [{"CUDA_VISIBLE_DEVICES": "4"}, {"CUDA_VISIBLE_DEVICES": "5"}]),
        (
            {"ROCR_VISIBLE_DEVICES": "a,b,c"},
            2,
            [{"ROCR_VISIBLE_DEVICES": "a,c"}, {"ROCR_VISIBLE_DEVICES": "b"}],
        ),
        ({"HIP_VISIBLE_DEVICES": "7"}, 2, [{"HIP_VISIBLE_DEVICES": "7"}] * 2),
        (
            {"CUDA_VISIBLE_DEVICES": "0,1"},
            3,
            [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}, {"CUDA_VISIBLE_DEVICES": "0"}],
        ),
    ],
)
def test_gpus_are_divided(environ: Mapping[str, str], processes: int, expected: list[dict[str, Any]]) -> None:
    """Each process sees its own GPUs, or shares one if there are fewer than processes; a single process sees all."""
    assert [caps.share_of_gpus(environ, i, processes, amd=False) for i in range(processes)] == expected


@pytest.mark.parametrize(("amd", "cuda"), [(False, "3"), (True, "0")])
def test_gpus_are_numbered_as_their_vendor_does(*, amd: bool, cuda: str) -> None:
    """Slurm sets every vendor's variable; AMD's other variables count within ROCR_VISIBLE_DEVICES."""
    environ = dict.fromkeys(caps.GPU_VARIABLES, "0,1,2,3")

    assert caps.share_of_gpus(environ, 3, 4, amd=amd) == {
        "CUDA_VISIBLE_DEVICES": cuda,
        "ROCR_VISIBLE_DEVICES": "3",
        "HIP_VISIBLE_DEVICES": "0",
        "GPU_DEVICE_ORDINAL": "0",
        "ZE_AFFINITY_MASK": "3",
    }
