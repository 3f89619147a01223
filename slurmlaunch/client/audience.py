"""Who waits for the items of a run: the futures that somebody holds, and what they have yet to hear.

A future is made when it is first asked for, and there is one for each item. It is
kept while its item is open, and until it has heard what that has come to; from then
on it is remembered only for as long as somebody else holds it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from slurmlaunch.client.weakly import Weakly

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable


class Told(Protocol):
    """A future, as a run sees it."""

    def done(self) -> bool:
        """Whether it has been told."""

    def set_result(self, result: Any) -> None:
        """Be told the value of its item."""

    def set_exception(self, exception: BaseException | None) -> None:
        """Be told what its item came to instead."""

    def tell_cancelled(self) -> None:
        """Be told that its item is cancelled."""

    def settle(self, value: Any) -> None:
        """Be made with a value that its item has already."""


T = TypeVar("T", bound=Told)


class Audience:
    """The futures of one run, of whatever kind: who asks for one says how it is made.

    Its users hold the lock of the run.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, Told] = {}
        self._hearing: dict[int, Told] = {}
        self._settled: Weakly[Told] = Weakly()

    def find(self, item: int) -> Told | None:
        """Return the future of an item, where somebody holds one."""
        return self._waiting.get(item) or self._settled.get(item)

    def admit(self, item: int, future: Told, *, settled: bool) -> None:
        """Take in the future of an item; where this has *settled*, it is told next."""
        if settled:
            self._settled[item] = self._hearing[item] = future
        else:
            self._waiting[item] = future

    def admit_done(self, first: int, values: Iterable[Any], make: Callable[[int], T]) -> list[T]:
        """Return the futures of items in a row that have settled with these values; one that is there stays the one."""
        futures: list[Told] = []
        for item, value in enumerate(values, first):
            future = self._settled.get(item)
            if future is None:
                self._settled[item] = future = make(item)
                future.settle(value)
            futures.append(future)
        return cast("list[T]", futures)  # a run has one kind of future, and this module need not know it

    def asked(self, items: range) -> Iterable[int]:
        """Return those of the items that someone holds a waiting future of, or more of them where that is quicker."""
        if len(self._waiting) < len(items):
            return [item for item in self._waiting if item in items]
        return items

    def call(self, items: Iterable[int]) -> list[tuple[int, Told]]:
        """Return the futures that wait for these items, which have settled: they are told next."""
        called = []
        for item in items:
            future = self._waiting.pop(item, None)
            if future is not None:
                self.admit(item, future, settled=True)
                called.append((item, future))
        return called

    def dismiss(self, called: Iterable[tuple[int, Told]]) -> None:
        """Let those go that have been told."""
        for item, _ in called:
            self._hearing.pop(item, None)

    @property
    def is_there(self) -> bool:
        """Whether anybody holds a future, or one has yet to be told."""
        return bool(self._waiting or self._hearing) or self._settled.any_left()

    def all_told(self, items: Collection[int] | None = None) -> bool:
        """Whether no future of these items, or of any, has yet to hear what its item has come to."""
        return all(future.done() for item, future in self._hearing.items() if items is None or item in items)
