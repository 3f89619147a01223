"""The items that are held, to be run again: what they have come to is not the last word on them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from slurmlaunch.client.options import Options
from slurmlaunch.client.recovery import Cause, wants

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from slurmlaunch.runfolder.journal import Round


class Held:
    """The items of a run that are held, by what they have come to. Who changes it holds the lock of the run.

    Attributes:
        options: how the last round runs, None where there is none: they say what is run again.
        since: when the first of those that are held was taken in.
    """

    def __init__(self, rounds: Iterable[Round]) -> None:
        self.options: Options | None = None
        self.since = 0.0
        self._causes: dict[int, Cause] = {}
        self._tries: dict[int, int] = {}
        for number, each in enumerate(rounds):
            self.count(each, first=not number)

    @property
    def enabled(self) -> bool:
        """Whether the run runs anything again by itself."""
        return self.options is not None and bool(self.options.retries)

    def __len__(self) -> int:
        return len(self._causes)

    def __iter__(self) -> Iterator[int]:
        return iter(self._causes)

    def __contains__(self, item: int) -> bool:
        return item in self._causes

    def wants(self, item: int, error: BaseException) -> bool:
        """Whether an item that has come to this is worth another attempt."""
        options = self.options
        if options is None or self._tries.get(item, 0) >= options.retries:
            return False
        return wants(options, error)

    def add(self, item: int, cause: Cause) -> None:
        """Hold an item."""
        if not self._causes:
            self.since = time.monotonic()
        self._causes[item] = cause

    def release(self, items: Iterable[int]) -> None:
        """Hold these no longer."""
        for item in items:
            self._causes.pop(item, None)

    def causes(self) -> dict[int, Cause]:
        """Return why each is held."""
        return dict(self._causes)

    def count(self, added: Round, *, first: bool = False) -> None:
        """Count a further round as a try of its items, and hold them no longer.

        One that a person made lets them begin anew.
        """
        self.options = Options.from_json(added.plan.options)
        items = () if first else added.plan.items or ()
        for item in items:
            self._tries[item] = self._tries.get(item, 0) + 1 if added.plan.automatic else 0
        self.release(items)
