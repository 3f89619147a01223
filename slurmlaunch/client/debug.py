"""One item in this process, with a debugger where it raises: `Future.debug`.

It reads the run folder and nothing else, so that it works from a copy on a machine without Slurm. It uses the modules
that this process has imported, and changes no variable and no run.
"""

from __future__ import annotations

import contextlib
import hashlib
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slurmlaunch import context
from slurmlaunch.client.options import SUBMITTED
from slurmlaunch.client.rerun import CURRENT
from slurmlaunch.client.sbatch_options import refused
from slurmlaunch.debugger import open_debugger
from slurmlaunch.errors import RunFolderError
from slurmlaunch.messages import say
from slurmlaunch.runfolder.function import load_function, take_search_path
from slurmlaunch.runfolder.layout import MODULES
from slurmlaunch.runfolder.modules import ModulesReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slurmlaunch.client.run import Run
    from slurmlaunch.runfolder.layout import Manifest


def debug(run: Run, item: int, code: str) -> Any:
    """Run an item here; return its value, or open a debugger where it raises, and then raise that."""
    if code not in (CURRENT, SUBMITTED):
        raise refused("code", f"of debug must be {CURRENT!r} or {SUBMITTED!r}, not {code!r}")
    manifest = run.manifest_of(-1)
    with _search_path(manifest):
        function = load_function(manifest.function_in(run.folder), writable=True)
        arguments = run.explanations.arguments.row_of(item)
        _check_modules(run, item, manifest, code)
        value = _call(function, arguments, _task(run, item))
    kind = type(value).__name__
    say(f"item {item} of {manifest.name} raised nothing in this process, and returned a value of {kind}")
    return value


@contextlib.contextmanager
def _search_path(manifest: Manifest) -> Iterator[None]:
    """Search for modules where the client of the submission did, until the block ends."""
    before = list(sys.path)
    take_search_path(manifest.sys_path)
    try:
        yield
    finally:
        sys.path[:] = before


def _task(run: Run, item: int) -> context.Task:
    number = run.tasks.task_of(item)
    task = context.Task(run.folder.path, number, 0, threads=run.rounds[-1].plan.threads, seed=run.manifest.seed)
    task.item = item
    return task


def _call(function: Callable[..., Any], arguments: tuple[Any, ...], task: context.Task) -> Any:
    outer = context.swap(task)
    try:
        return function(*arguments)
    except Exception as error:
        open_debugger(error)  # while the task is the current one
        raise
    finally:
        context.swap(outer)


# The modules.


def _check_modules(run: Run, item: int, manifest: Manifest, code: str) -> None:
    """Name the modules that differ from the submission's; with the submission's code, refuse them."""
    other = list(_other_modules(run, manifest))
    if not other:
        return
    what = f"this process has imported another version of {', '.join(other)} than the run was submitted with"
    if code == CURRENT:
        say(what)
        return
    folder = str(run.folder.path)
    command = f"slurmlaunch debug {shlex.quote(folder)} {item}"
    raise RunFolderError(f"{what}. The code of the submission runs in a process of its own: {command}", path=folder)


def _other_modules(run: Run, manifest: Manifest) -> Iterator[str]:
    path = manifest.source(run.folder, MODULES)
    if path is None:
        return
    with contextlib.closing(ModulesReader(path)) as reader:
        for name, recorded in sorted(reader.hashes().items()):
            file = getattr(sys.modules.get(name), "__file__", None)
            with contextlib.suppress(OSError):
                if file and hashlib.sha256(Path(file).read_bytes()).hexdigest() != recorded:
                    yield name
