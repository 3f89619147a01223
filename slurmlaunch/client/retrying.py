"""Running again by itself what was ended from outside.

An item whose end is worth another attempt (`recovery`) does not settle: it is
held. When nothing else of the run is open, or the first has waited for long
enough, all that are held go into a further round, which whoever is first to
make submits; other clients of the run, which hold the same items, take it over
from the disk.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from slurmlaunch.client.options import Options
from slurmlaunch.client.recovery import Cause, grown, wants
from slurmlaunch.runfolder.rounds import Round

if TYPE_CHECKING:
    from collections.abc import Iterable

    from slurmlaunch.client.run import Run

_log = logging.getLogger("slurmlaunch")

PATIENCE = 60.0
"""Seconds that an item is held while other items of the run go on: further ones may join it."""


class Retrying:
    """The items of a run that are held, to be run again.

    What is held is guarded by the run's lock: whoever settles items holds them, and a thread submits them.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._held: dict[int, Cause] = {}
        self._since = 0.0
        self._tries: dict[int, int] = {}
        self._submitting: threading.Thread | None = None
        for each in run.rounds[1:]:
            self._count(each)

    @property
    def _options(self) -> Options:
        return Options.from_json(self._run.rounds[-1].plan.options)

    @property
    def enabled(self) -> bool:
        """Whether the run retries at all."""
        return bool(self._run.rounds) and bool(self._run.rounds[-1].plan.options.get("retries"))

    def hold(self, item: int, error: BaseException) -> bool:
        """Hold an item that has come to this, if that is worth another attempt; say whether it is."""
        if not self.enabled or item in self._held:
            return item in self._held
        options = self._options
        if self._tries.get(item, 0) >= options.retries or not wants(options, error):
            return False
        if not self._held:
            self._since = time.monotonic()
        self._held[item] = self._run.cause_of(item, error)
        return True

    @property
    def holds_any(self) -> bool:
        """Whether any item is held."""
        return bool(self._held)

    def holds(self, item: int) -> bool:
        """Whether an item is held."""
        return item in self._held

    def go_on(self) -> None:
        """Take over the round that another client made, or make one where it is time."""
        with self._run.changed:
            self._held = {item: cause for item, cause in self._held.items() if self._run.ledger.is_open(item)}
        if not self._held or (self._submitting and self._submitting.is_alive()):
            return
        try:
            self._take_over(Round.read(self._run.folder, len(self._run.rounds)))
        except FileNotFoundError:
            waited = time.monotonic() - self._since > PATIENCE
            if waited or self._run.ledger.open == len(self._held):
                self._submitting = threading.Thread(target=self._submit, name="slurmlaunch-retry", daemon=True)
                self._submitting.start()

    def _take_over(self, added: Round) -> None:
        with self._run.changed:
            self._run.extend(added)
            self._count(added)
            self._let_go(added.plan.items or ())

    def _let_go(self, items: Iterable[int]) -> None:
        for item in items:
            self._held.pop(item, None)

    def _count(self, added: Round) -> None:
        """Count a round as a try of its items; one that a person made lets them begin anew."""
        for item in added.plan.items or ():
            self._tries[item] = self._tries.get(item, 0) + 1 if added.plan.automatic else 0

    def _submit(self) -> None:
        run = self._run
        with run.changed:
            held = dict(self._held)
        try:
            added = run.add_round(sorted(held), grown(self._options, held.values()), automatic=True)
            self._take_over(added)
            run.submission.submit(patiently=True)
        except FileExistsError:
            return  # another client was first: the next look takes its round over
        except Exception as error:  # noqa: BLE001  (whatever it is, nobody is to wait for what will not run)
            _log.warning("slurmlaunch could not submit a retry: %s", error)
            self._settle(held, error)
        else:
            _log.info("slurmlaunch runs %d items of %s again", len(held), run.folder.path)

    def _settle(self, held: dict[int, Cause], error: Exception) -> None:
        def cause_of(item: int) -> BaseException:
            cause = held[item].error
            cause.__dict__["__notes__"] = [f"it could not be run again: {error}"]
            return cause

        with self._run.changed:
            self._let_go(held)  # and not what has come to be held since
        self._run.ended(held, cause_of, final=True)
