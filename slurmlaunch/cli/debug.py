"""``slurmlaunch debug RUN ITEM``: one item in a new process with the submission's code, and a debugger where it raises.

`main` dispatches to it. It finds the run and describes the item's task as for a submission; this process then becomes
`slurmlaunch.node.debug`, started as the local backend starts a task. It submits nothing, and needs no Slurm.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from slurmlaunch.backends.local import LocalBackend
from slurmlaunch.backends.soft_limits import set_soft_limits
from slurmlaunch.cli.exit_status import VerbError
from slurmlaunch.cli.parsers import RunParser, items_in
from slurmlaunch.client.attach import inspect, locate
from slurmlaunch.client.futures import FutureArray
from slurmlaunch.client.rounds import array_job
from slurmlaunch.messages import say
from slurmlaunch.runfolder.interpreter import Interpreter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from slurmlaunch.backends.base import ArrayJob
    from slurmlaunch.runfolder.layout import Manifest

_DESCRIPTION = """\
Run one item again at this terminal, and open the debugger where it raises: pdb,
or what PYTHONBREAKPOINT names. If it raises nothing, its value is printed.

The item runs in a new process with everything as at its submission: the code of
your modules, arguments, random numbers, current_task(), module search path,
working directory, variables, set-up lines. Nothing is submitted or recorded,
and a copy of the run folder will do, on a machine without Slurm.
"""
_EXAMPLES = """\
examples:
  slurmlaunch debug slurmlaunch-runs/20260131-101500-process-1f2e3d4c 7
  PYTHONBREAKPOINT=ipdb.set_trace slurmlaunch debug process 7

The exit status is 0 if the item returned a value, 1 if it raised, 2 if it could
not be run, and 3 if there is no such run or item.
"""

_OF_THE_TERMINAL = (
    "COLORTERM", "COLUMNS", "DISPLAY", "FORCE_COLOR", "LINES", "NO_COLOR", "PYTHONBREAKPOINT", "PYTHON_BASIC_REPL",
    "PYTHON_COLORS", "TERM", "WAYLAND_DISPLAY",
)  # fmt: skip
"""Variables that are this process's, whatever the submission had."""


def main(arguments: Sequence[str]) -> int:
    """Become the process that runs the item."""
    parser = RunParser("debug", _DESCRIPTION, _EXAMPLES, acts=True, items="ITEM")
    parser.add_argument(
        "--python", metavar="WORDS", type=shlex.split, help="the Python that runs the item; by default the run's"
    )
    given = parser.read(arguments)
    if given.items is None:
        parser.error("give a run and an item, as in: slurmlaunch debug process 7")
    run = inspect(locate(given.run, given.folder))
    items = items_in(given.items, FutureArray(run))
    if len(items) != 1:
        raise VerbError(f"debug runs one item, and {given.items} names {len(items)}: write one, such as 7")
    (item,) = items
    task = run.tasks.task_of(item)
    view = run.tasks.view(task)
    number = view.round.number
    job = replace(array_job(run, run.rounds[number], view.array), module="slurmlaunch.node.debug")
    _become(_on_this_machine(job, run.manifest_of(number), given.python), task, item)
    raise AssertionError  # this process is another program by now


def _on_this_machine(job: ArrayJob, manifest: Manifest, python: list[str] | None) -> ArrayJob:
    """Return the job with what this machine has; a line names what the run had and this machine has not."""
    path, options = job.environment.variables.get("PATH"), Interpreter.from_json(manifest.interpreter).options
    if job.cwd is not None and not job.cwd.is_dir():
        say(f"there is no folder {job.cwd} here, and the item runs in {Path.cwd()}")
        job = replace(job, cwd=Path.cwd())
    if python is not None:
        return replace(job, container=None, python=(*python, *options))
    if job.modules or job.setup:  # which may bring the program
        return job
    programs = job.container.programs if job.container else job.python[:1]
    image = job.container.path if job.container else None
    if any(shutil.which(each, path=path) for each in programs) and (image is None or image.exists()):
        return job
    missing = f"image {image}" if image is not None and not image.exists() else " or ".join(programs)
    say(f"there is no {missing} here, and the item runs in {sys.executable}; --python names another")
    return replace(job, container=None, python=(sys.executable, *options))


def _become(job: ArrayJob, task: int, item: int) -> None:
    backend = LocalBackend()
    env = {name: value for name, value in backend.environment(job).items() if name not in _OF_THE_TERMINAL}
    words = (*backend.command(job), str(task), str(item))
    set_soft_limits(os.getpid(), job.environment.limits)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(words[0], words, {**env, **_of_the_terminal(os.environ)})  # noqa: S606  (no shell is wanted)


def _of_the_terminal(variables: Mapping[str, str]) -> dict[str, str]:
    return {name: variables[name] for name in _OF_THE_TERMINAL if name in variables}
