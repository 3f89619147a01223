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

from slurmlaunch.client.recovery import grown
from slurmlaunch.client.rounds import add_round
from slurmlaunch.client.run import error_for_each
from slurmlaunch.client.submission import Submission
from slurmlaunch.runfolder.journal import Round

if TYPE_CHECKING:
    from slurmlaunch.client.options import Options
    from slurmlaunch.client.recovery import Cause
    from slurmlaunch.client.run import Run

_log = logging.getLogger("slurmlaunch")

PATIENCE = 60.0
"""Seconds that an item is held while other items of the run go on: further ones may join it."""


class Retrying:
    """Runs again the items of a run that are held."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._submitting: threading.Thread | None = None

    def go_on(self) -> None:
        """Take over the round that another client made, or make one where it is time."""
        run, held = self._run, self._run.held
        with run.changed:
            held.release([item for item in held if not run.ledger.is_open(item)])
        if not held or held.options is None or (self._submitting and self._submitting.is_alive()):
            return
        try:
            run.extend(Round.read(run.folder, len(run.tasks.rounds)))
        except FileNotFoundError:
            waited = time.monotonic() - held.since > PATIENCE
            if waited or run.ledger.open == len(held):
                self._submitting = threading.Thread(
                    target=self._submit, args=[held.options], name="slurmlaunch-retry", daemon=True
                )
                self._submitting.start()

    def _submit(self, options: Options) -> None:
        run = self._run
        with run.changed:
            held = run.held.causes()
        try:
            run.extend(add_round(run, sorted(held), grown(options, held.values()), automatic=True))
            Submission(run).submit(patiently=True)
        except FileExistsError:
            return  # another client was first: the next look takes its round over
        except Exception as error:  # noqa: BLE001  (whatever it is, nobody is to wait for what will not run)
            _log.warning("slurmlaunch could not submit a retry: %s", error)
            self._settle(held, error)
        else:
            _log.info("slurmlaunch runs %d items of %s again", len(held), run.folder.path)

    def _settle(self, held: dict[int, Cause], error: Exception) -> None:
        def cause_of(item: int) -> BaseException:
            cause = error_for_each(held[item].error)(item)
            note = f"it could not be run again: {error}"
            cause.__dict__["__notes__"] = [*(n for n in getattr(cause, "__notes__", ()) if n != note), note]
            return cause

        with self._run.changed:
            self._run.held.release(held)  # and not what has come to be held since
        self._run.ended(sorted(held), cause_of, final=True)
