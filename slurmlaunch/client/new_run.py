"""A run that a call makes: its folder, everything in it that tasks read, and its first round.

The executor makes one for each call, and submits it, or shows its scripts. `slurmlaunch.runfolder` knows the format of
the files, and `plan` decides how many tasks there are. Nothing is submitted here.
"""

from __future__ import annotations

import platform
import secrets
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slurmlaunch.client.code import Snapshot
from slurmlaunch.client.environment import record
from slurmlaunch.client.options import LIVE, TOKEN_LENGTH, job_name
from slurmlaunch.client.pickling import description_of, pickle_arguments, pickle_function, sources_of, travelling
from slurmlaunch.client.plan import LongSlices
from slurmlaunch.client.rounds import array_job, make_plan
from slurmlaunch.client.run import Run
from slurmlaunch.messages import warn
from slurmlaunch.runfolder import files, runs_folder
from slurmlaunch.runfolder.function import shared_bytes, write_function
from slurmlaunch.runfolder.interpreter import Interpreter
from slurmlaunch.runfolder.items import write_items
from slurmlaunch.runfolder.layout import (
    FOLDERS,
    FUNCTION,
    ITEMS_INDEX,
    MODULES,
    UNGUESSABLE,
    Manifest,
    RunFolder,
    salt_of,
)
from slurmlaunch.runfolder.rounds import Round

if TYPE_CHECKING:
    from collections.abc import Callable

    from slurmlaunch.backends.base import Backend
    from slurmlaunch.client.plan import Call
    from slurmlaunch.runfolder.plan import RoundPlan

_SECRET_BYTES = 16
_OF_A_SCRIPT = "0" * TOKEN_LENGTH
"""The token of a run that is only shown."""


class NewRun:
    """A run that a call makes.

    Attributes:
        folder: the run folder.
    """

    def __init__(
        self, call: Call, backend: Backend, runs: Path, *, place: Path | None = None, is_shown: bool = False
    ) -> None:
        """Choose its name.

        Args:
            call: the function, its items, and how they run.
            backend: where they run.
            runs: the folder that holds the run folders.
            place: the path by which other processes find a run that can be resumed.
            is_shown: nothing is made of it but the `script`.
        """
        self._call, self._backend, self._runs, self._place = call, backend, runs, place
        self._token = _OF_A_SCRIPT if is_shown else secrets.token_hex(TOKEN_LENGTH // 2)
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{job_name(call.name, self._token)}"
        self.folder = RunFolder(runs / (name if place is None else f"{place.name}.{self._token}.new"))
        self.folder.salt = salt_of(self._token)

    def make_folder(self) -> None:
        """Make the run folder, and the folders in it."""
        with files.undisturbed():
            for each in (self.folder.root, *(self.folder.root / part for part in FOLDERS)):
                each.mkdir()

    def write(self) -> Run:
        """Write everything that tasks read, the manifest last, because it makes the folder a run; return a view of it.

        Raises:
            NotPicklable: the function or an argument does not pickle.
            OptionError: the plan does not fit the call, or there is too much source.
        """
        call, folder = self._call, self.folder
        with travelling(call.options.by_value) as noted:
            pickled = pickle_function(call.function, single=call.single)
            sha256 = {FUNCTION: write_function(folder.function, pickled)}
            count = write_items(folder, call.rows, pickle_arguments)
            sha256[ITEMS_INDEX] = folder.index_sha256
            code = self._write_code(sha256)
        self._describe(
            count,
            cells=sources_of(noted),
            shared=shared_bytes(pickled),
            secret=secrets.token_hex(_SECRET_BYTES),
            sha256=sha256,
            **code,
        )
        with files.undisturbed():
            self._environment.write(folder.environment(0))
        run = self.make_round()
        with files.undisturbed():
            self._manifest.write(folder)
        return run

    def _write_code(self, sha256: dict[str, str]) -> dict[str, Any]:
        """Write the user's modules, and note their hash; return what the manifest says of the code."""
        options, names = self._call.options, {FUNCTION: FUNCTION}
        snapshot = Snapshot(options.code_exclude, live=options.code == LIVE)
        if snapshot:
            sha256[MODULES] = snapshot.write(self.folder.root / MODULES)
            if self._backend.name != "inline":  # which runs what this process has imported
                snapshot.warn_of_changes(self._call.function)
            names[MODULES] = MODULES
        return {"files": names, "code": snapshot.identity()}

    def make_round(self) -> Run:
        """Make the first round, within the limits of the queue that are known now; return a view of the run."""
        plan, _ = self._plan(partial(files.can_link, self.folder.function))
        with files.undisturbed():
            return self._view(Round.make(self.folder, 0, plan))

    def take_place(self) -> bool:
        """Move it to its place, if it has one; remove it and return False if another process was first."""
        try:
            if self._place is not None:
                self.folder.move(self._place.name)
        except FileExistsError:
            self.folder.root.remove()
            return False
        return True

    def script(self) -> str:
        """Return the scripts that would be submitted, with a comment on how its tasks share the items."""
        self._describe(sum(1 for _ in self._call.rows))
        plan, about = self._plan(partial(runs_folder.can_link, self._runs))
        first = Round(self.folder, 0, plan)
        run = self._view(first)
        jobs = (array_job(run, first, number) for number in range(len(plan.arrays)))
        known = f"{UNGUESSABLE}{self._token}"
        scripts = "\n".join(self._backend.script(replace(job, recognized_by=known)) for job in jobs)
        shebang, newline, rest = scripts.partition("\n")
        return shebang + newline + "".join(f"# {line}\n" for line in (about or "").splitlines()) + rest

    def _describe(self, items: int, **more: Any) -> None:
        """Note what manifest and environment say of this moment."""
        call = self._call
        self._manifest = Manifest(
            run=self._token,
            name=call.name,
            items=items,
            single=call.single,
            backend=self._backend.name,
            clusters=call.options.clusters,
            cwd=str(Path.cwd()),
            made_in=str(self._runs),
            client=platform.node(),
            seed=call.options.seed or 0,
            interpreter=Interpreter.current().to_json(),
            bound=call.bound,
            **description_of(call.function, call.options),
        )._replace(**more)
        self._environment = record(call.options)

    def _plan(self, can_share: Callable[[], bool]) -> tuple[RoundPlan, str | None]:
        """Return the plan of the first round, and what a person should know about it."""
        call, limits = self._call, self._backend.limits()
        shape = call.options.shape(single_item=call.single, available=limits.cpus)
        planned, items = call.plan(self._manifest.items, limits, shape, can_share)
        if planned.notice:
            warn(planned.notice, LongSlices)
        made = make_plan(planned, call.options, self._environment, self._manifest, 0, shape, self._backend)
        return made._replace(items=items), planned.about

    def _view(self, first: Round) -> Run:
        run = Run(self.folder, self._manifest, self._backend, [first])
        run.environments.add(0, self._environment)
        return run
