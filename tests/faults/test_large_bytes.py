"""Outcome files with large arrays that are torn, flipped, doubled or missing: never a wrong value."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slurmlaunch import Executor, NodeStartError, ResultLost, attach
from tests.faults.test_bytes import NEVER, Deed, deeds

if TYPE_CHECKING:
    from slurmlaunch import FutureArray

pytestmark = pytest.mark.slow

ITEMS, TASKS = 6, 3


def work(number: int) -> Any:
    """Return a large array, or a small one for every third item."""
    return np.full(40_000 if number % 3 else 10, number, "f8")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> FutureArray[Any]:
    """Return a run that has ended."""
    from tests import faults  # its functions travel by value: no node imports pytest

    executor = Executor(tmp_path_factory.mktemp("whole"), cluster="local", by_value=[faults])
    array = executor.map_array(work, range(ITEMS), tasks=TASKS)
    array.wait()
    executor.shutdown()
    return array


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(done=st.lists(deeds, min_size=1, max_size=3))
def test_whatever_is_done_to_large_values(
    whole: FutureArray[Any], monkeypatch: pytest.MonkeyPatch, done: list[Deed]
) -> None:
    """Each item has its true value, or is lost with its file and position."""
    monkeypatch.setenv("SLURMLAUNCH_LATENCY", "0.05")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # the client may still write there
        copy = shutil.copytree(whole.folder, Path(folder, "copy"))
        for each in done:
            each.do(copy / "outcomes")
        found = attach(copy).results(timeout=NEVER, return_exceptions=True)
        touched = {each.task for each in done}

        for item, is_ in enumerate(found):
            if isinstance(is_, np.ndarray):
                assert np.array_equal(work(item), is_)
                continue
            task = item * TASKS // ITEMS
            assert task in touched
            if isinstance(is_, NodeStartError):
                # A Python that cannot start ends with status 1 too: without its file failures look the same.
                assert ("remove", task) in {(each.kind, each.task) for each in done}
                continue
            assert isinstance(is_, ResultLost), (item, is_)
            assert is_.file is not None
            assert is_.file.startswith(str(copy / "outcomes" / f"{task}."))
            assert isinstance(is_.offset, int)


def test_a_value_that_is_changed_after_it_was_seen(whole: FutureArray[Any], tmp_path: Path) -> None:
    """A value changed between its discovery and its read is reported as lost; it is never wrong."""
    array = attach(shutil.copytree(whole.folder, tmp_path / "copy"))
    array.wait()
    Deed("flip", 0, 0.9, 3).do(array.folder / "outcomes")

    first, second = array.results(return_exceptions=True)[:2]

    assert np.array_equal(work(0), first)
    assert isinstance(second, ResultLost)
