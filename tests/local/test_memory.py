"""The memory of large arrays: on the node once for all its processes, and nowhere twice."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.support import scripts
from tests.support.tasks import OneRun, rows
from tests.support.waiting import Gate

if TYPE_CHECKING:
    from collections.abc import Iterable

pytestmark = pytest.mark.slow

SIZE = 200_000_000
"""Bytes of an array against which a Python with NumPy, about 40 MB, is little."""

LITTLE = 60_000_000
"""Bytes that a process may take for itself."""


def share_of(processes: Iterable[int]) -> int:
    """Return the memory of processes together, in bytes; shared pages count once (Pss in proc_pid_smaps(5))."""
    texts = [Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii") for process in processes]
    return sum(int(kilobytes) * 1024 for text in texts for kilobytes in re.findall(r"^Pss: +(\d+)", text, re.MULTILINE))


def highest() -> int:
    """Return the peak memory of this process, in bytes."""
    (kilobytes,) = re.findall(r"^VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    return int(kilobytes) * 1024


def test_processes_share_an_array(tmp_path: Path) -> None:
    """Four processes that have read an array of the function share one copy, and the recorded peak shows it."""
    gate, processes = Gate(tmp_path / "gate"), 4
    field = np.ones(SIZE // 8)

    def read(item: int) -> float:
        total = float(field.sum())
        gate.enter(item)
        return total

    run = OneRun(tmp_path / "run", read, rows(range(processes)), cpus_per_task=processes, processes=processes)
    node = run.start()
    gate.await_arrival(*range(processes))
    found = share_of([node.pid, *map(gate.process_of, range(processes))])
    gate.open()
    node.communicate()

    assert dict.fromkeys(range(processes), SIZE / 8) == run.values()
    assert SIZE < found < SIZE + (processes + 1) * LITTLE
    notes: dict[str, Any] = {}
    for line in re.findall(rb'\{"[^}]*\}', Path(run.folder.outcomes / "0.0").read_bytes()):
        notes |= json.loads(line)
    assert SIZE < notes["peak"] < SIZE + (processes + 1) * LITTLE


def test_a_process_holds_a_result_once(tmp_path: Path) -> None:
    """A large result is written from its own memory, which is freed before the next result."""

    def make(item: int) -> Any:
        return np.full(SIZE // 8, item) if item < 3 else highest()

    run = OneRun(tmp_path / "run", make, rows(range(4)))

    assert run.run().status == 0
    values = run.values()
    assert [0, 1, 2] == [values[item][-1] for item in range(3)]
    assert SIZE < values[3] < SIZE + 2 * LITTLE


def test_a_process_holds_an_argument_once(tmp_path: Path) -> None:
    """A large argument is read into its final memory, which is freed before the next argument."""

    def look(field: Any) -> tuple[int, int]:
        return int(field[-1]), highest()

    run = OneRun(tmp_path / "run", look, ((np.full(SIZE // 8, item),) for item in range(3)))

    assert run.run().status == 0
    values = run.values()
    assert [0, 1, 2] == [values[item][0] for item in range(3)]
    assert SIZE < values[2][1] < SIZE + 2 * LITTLE


def test_a_client_holds_submitted_arrays_once(tmp_path: Path) -> None:
    """Arrays that are submitted, in the function or among the items, are written from where they are."""
    text = f"""
        import sys, functools, numpy as np, slurmlaunch
        from tests.local.test_memory import highest
        field, item = np.ones({SIZE} // 8), np.ones({SIZE} // 8)
        before = highest()
        with slurmlaunch.Executor(sys.argv[1], cluster="local") as executor:
            futures = executor.map_array(functools.partial(lambda a, b: len(a) + len(b), field), [item])
            print(futures.results(60)[0], highest() - before)
    """
    length, more = map(int, scripts.run(tmp_path, text, tmp_path / "runs").split())

    assert length == 2 * SIZE // 8
    assert more < LITTLE


@pytest.mark.parametrize(("count", "size"), [(20, SIZE // 10), (2, SIZE)])
def test_a_client_holds_results_once(tmp_path: Path, count: int, size: int) -> None:
    """A client holds each result once, and little more at any moment."""
    run = OneRun(tmp_path / "run", lambda item: np.full(size // 8, item), rows(range(count)))
    assert run.run().status == 0
    Path(run.folder.ended / "0.0.0").touch(0o600)

    text = """
        import sys, numpy, slurmlaunch
        from tests.local.test_memory import highest
        before = highest()
        results = slurmlaunch.attach(sys.argv[1]).results(60)
        print([int(each[-1]) for each in results] == list(range(len(results))), highest() - before)
    """
    right, more = scripts.run(tmp_path, text, run.folder.path).split()

    assert right == "True"
    assert int(more) < count * size + LITTLE
