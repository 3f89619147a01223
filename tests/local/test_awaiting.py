"""Waiting for items in coroutines, while they run."""

from __future__ import annotations

import asyncio
import concurrent.futures
from typing import TYPE_CHECKING

import pytest

from slurmlaunch import Executor
from tests.support.waiting import PATIENCE, Gate

if TYPE_CHECKING:
    from pathlib import Path


def test_await_and_async_for(tmp_path: Path) -> None:
    """A coroutine gets futures as they settle, a timeout, and all results, while others of its loop go on."""
    gate = Gate(tmp_path / "gate")
    array = Executor(tmp_path / "runs", cluster="local").map_array(gate.enter, "ab", tasks=1)
    gate.open("a")

    async def watch() -> list[str]:
        completed = array.as_completed()
        first = await asyncio.wait_for(anext(completed), PATIENCE)
        assert first.index == 0
        with pytest.raises(concurrent.futures.TimeoutError, match="1 of 2 items were done"):
            [future async for future in array.as_completed(timeout=0.01)]
        waiting = asyncio.ensure_future(array)
        await asyncio.sleep(0)
        gate.open("b")
        assert [future.index async for future in completed] == [1]
        return await asyncio.wait_for(waiting, PATIENCE)

    assert asyncio.run(watch()) == array.results()
