"""Runs without a client, nodes without a scheduler: a folder is written, a node started on it, its outcomes read.

Functions travel by value, with everything they use of their module, so no node has to import a test module's imports.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cloudpickle

from slurmlaunch.client.pickling import pickle_arguments, pickle_function, travelling
from slurmlaunch.client.wording import name_of
from slurmlaunch.outcome import Failure, Value
from slurmlaunch.runfolder.function import shared_bytes, write_function
from slurmlaunch.runfolder.items import write_items
from slurmlaunch.runfolder.layout import FOLDERS, FUNCTION, ITEMS_INDEX, Manifest, RunFolder, python_version, salt_of
from slurmlaunch.runfolder.outcomes import OutcomeFile
from slurmlaunch.runfolder.plan import ArrayPlan, RoundPlan, Slices
from slurmlaunch.runfolder.records import Damage
from slurmlaunch.runfolder.rounds import Round
from tests.support.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from slurmlaunch.outcome import Outcome

REPOSITORY = Path(__file__).parents[2]


class Ended(NamedTuple):
    """How a node ended.

    Attributes:
        status: its exit status, negative for a signal.
        out: its standard output.
        err: its standard error.
    """

    status: int
    out: str
    err: str


class OneRun:
    """A run on disk, as a client would have written it.

    Attributes:
        folder: its run folder.
    """

    def __init__(
        self, path: Path, function: Callable[..., Any], rows: Iterable[tuple[Any, ...]], **changes: Any
    ) -> None:
        """Write the run folder.

        Args:
            path: the path of the new folder.
            function: the function to run.
            rows: the arguments of each item.
            changes: fields of the plan (``slices``, ...) or of the manifest (``python``, ...), and ``tasks``.
        """
        self.folder = RunFolder(path)
        self.folder.salt = salt_of("0")
        for each in (path, *(path / name for name in FOLDERS)):
            each.mkdir(mode=0o700)
        with travelling([function.__module__]):
            pickled = pickle_function(function)
            sha256 = {FUNCTION: write_function(self.folder.function, pickled)}
        items = write_items(self.folder, rows, pickle_arguments)
        plan: dict[str, Any] = {"cpus_per_task": 1, "processes": 1, "threads": 1}
        plan |= {name: changes.pop(name) for name in RoundPlan._fields if name in changes}
        tasks = changes.pop("tasks", 1)
        slices = plan.pop("slices", None) or Slices(len(plan.get("items", range(items))), tasks)
        Round.make(self.folder, 0, RoundPlan(slices, 0, (ArrayPlan("test", 0, slices.tasks),), **plan))
        manifest: dict[str, Any] = {"name": "test", "run": "0", "backend": "local", "items": items}
        manifest |= {"function": name_of(function), "cwd": str(path.parent), "sys_path": [str(REPOSITORY)]}
        manifest |= {"python": python_version(), "cloudpickle": cloudpickle.__version__, "client": "", "created": 0.0}
        sha256[ITEMS_INDEX] = self.folder.index_sha256
        manifest |= {"shared": shared_bytes(pickled), "sha256": sha256, "secret": "0" * 32}
        Manifest(**manifest | changes).write(self.folder)

    def start(
        self, task: int = 0, *, env: Mapping[str, str] | None = None, prefix: Iterable[str] = (), **options: Any
    ) -> subprocess.Popen[str]:
        """Start the node of a task, in a session of its own, below a command if one is given."""
        return subprocess.Popen(
            [*prefix, sys.executable, "-P", "-m", "slurmlaunch.node", str(self.folder.path), str(task)],
            env={**os.environ, "PYTHONUNBUFFERED": "", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )

    def run(self, task: int = 0, **options: Any) -> Ended:
        """Run the node of a task to its end."""
        return finish(self.start(task, **options))

    def outcomes(self) -> dict[int, Outcome[Any]]:
        """Return the outcome of each item that has one: the whole record of the lowest attempt."""
        found: dict[int, Outcome[Any]] = {}
        for name in sorted(self.folder.outcomes.names(), key=lambda name: [int(n) for n in name.split(".")]):
            for recorded in OutcomeFile(self.folder.outcomes / name, self.folder.salt).read(final=True):
                if not isinstance(recorded, Damage):
                    content = recorded.read()
                    for item in range(recorded.header.first, recorded.header.stop):
                        found.setdefault(item, content.outcome(item))
        return found

    def recorded(self) -> list[int]:
        """Return the items that have been recorded, as often as they have been."""
        files = [OutcomeFile(self.folder.outcomes / name, self.folder.salt) for name in self.folder.outcomes.names()]
        records = [each for file in files for each in file.read(final=True)]
        return sorted(
            item
            for each in records
            if not isinstance(each, Damage)
            for item in range(each.header.first, each.header.stop)
        )

    def values(self) -> dict[int, Any]:
        """Return the value of each item that has one."""
        return {item: outcome.value for item, outcome in self.outcomes().items() if isinstance(outcome, Value)}

    def errors(self) -> dict[int, BaseException]:
        """Return the error of each item that failed."""
        return {item: outcome.error for item, outcome in self.outcomes().items() if isinstance(outcome, Failure)}


def finish(node: subprocess.Popen[str]) -> Ended:
    """Wait for a node to end."""
    with node:
        try:
            out, err = node.communicate(timeout=PATIENCE)
        except BaseException:
            node.kill()
            raise
    return Ended(node.returncode, out, err)


def rows(items: Iterable[Any]) -> list[tuple[Any]]:
    """Return the argument tuples of a function with one argument."""
    return [(item,) for item in items]
