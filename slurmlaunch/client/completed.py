"""The iterator of `FutureArray.as_completed`, for ``for`` and for ``async for``.

It takes its steps and its ways to wait from the array, and knows no run.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

F = TypeVar("F")


class Wait(NamedTuple):
    """A condition to wait for; *limited* says whether the caller's timeout counts."""

    ready: Callable[[], bool]
    limited: bool


class Completed(Iterator[F], AsyncIterator[F]):
    """Futures as they settle."""

    def __init__(
        self,
        steps: Iterator[F | Wait],
        deadline: float | None,
        wait: Callable[[Callable[[], bool], float | None], None],
        wait_async: Callable[[Callable[[], bool], float | None], Awaitable[None]],
    ) -> None:
        """Begin.

        Args:
            steps: the futures, and what to wait for before the next one.
            deadline: until when to wait for all of them (monotonic), or None.
            wait: waits for a condition, and raises at the deadline.
            wait_async: the same in a coroutine.
        """
        self._steps, self._deadline, self._wait, self._wait_async = steps, deadline, wait, wait_async

    def __next__(self) -> F:
        for step in self._steps:
            if not isinstance(step, Wait):
                return step
            self._wait(step.ready, self._deadline if step.limited else None)
        raise StopIteration

    async def __anext__(self) -> F:
        for step in self._steps:
            if not isinstance(step, Wait):
                return step
            await self._wait_async(step.ready, self._deadline if step.limited else None)
        raise StopAsyncIteration
