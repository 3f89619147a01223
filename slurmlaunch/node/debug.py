"""``python -P -m slurmlaunch.node.debug RUN_FOLDER TASK_INDEX ITEM``: one item at a terminal, with a debugger.

``slurmlaunch debug`` starts it, in the working directory and with the variables of the submission. It is to the item
what a worker is: it has its ``__main__``, its modules as they were, its task. Nothing is recorded.
"""

from __future__ import annotations

import linecache
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from slurmlaunch import caps, context
from slurmlaunch.debugger import open_debugger
from slurmlaunch.errors import NodeStartError, SlurmlaunchError
from slurmlaunch.node import finder, main_module
from slurmlaunch.node.task import cloudpickle_version
from slurmlaunch.outcome import users_frames
from slurmlaunch.runfolder.function import Work
from slurmlaunch.runfolder.interpreter import Interpreter
from slurmlaunch.runfolder.layout import RunFolder
from slurmlaunch.runfolder.rounds import read_task
from slurmlaunch.runfolder.storage import Patience

if TYPE_CHECKING:
    from collections.abc import Sequence

_RAISED, _NOT_RUN, _INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str]) -> int:
    """Run the item; return 0 if it returned a value, 1 if it raised, 2 if it could not be run."""
    path, task, item = arguments
    try:
        return _debug(RunFolder(Path(path)), int(task), int(item))
    except (SlurmlaunchError, OSError) as error:
        _say(f"error: {error.what if isinstance(error, NodeStartError) else error}")
        return _NOT_RUN
    except KeyboardInterrupt:
        return _INTERRUPTED


def _debug(folder: RunFolder, task: int, item: int) -> int:
    manifest, round_ = read_task(folder, task, Patience())
    manifest.check_versions(cloudpickle_version())
    context.swap(_task(folder, task, item, round_.plan.threads, manifest.seed))
    if round_.plan.ranks is not None:
        context.current_task().ranks = round_.plan.ranks.number
        _say(f"this is rank 0 of the {round_.plan.ranks.number} ranks of the item; for MPI it is alone")
    caps.apply(round_.plan.threads)
    main_module.install(manifest.function_in(folder))
    finder.install(finder.modules_of(folder, manifest), manifest.created)
    Interpreter.from_json(manifest.interpreter).take_over()
    try:
        work = Work(folder, manifest)
        main_module.function_is_loaded()
        value = work.call(item)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  (any exception of the function is its outcome)
        _show(error, manifest.created)
        return _RAISED
    _say(f"item {item} of {manifest.name} raised nothing, and returned:")
    print(repr(value))  # noqa: T201  (what the command prints)
    return 0


def _task(folder: RunFolder, number: int, item: int, threads: int, seed: int) -> context.Task:
    task = context.Task(folder.path, number, 0, threads=threads, seed=seed)
    task.item = item
    return task


def _show(error: BaseException, created: float) -> None:
    """Open the debugger where the item raised; or the user's code, as the function was loaded."""
    if isinstance(error, NodeStartError) and error.__cause__ is not None:
        _say(f"error: {error.what}")
        error = error.__cause__
    frames = users_frames(error) or error.__traceback__
    for file in sorted({frame.f_code.co_filename for frame, _ in traceback.walk_tb(frames)}):
        if _has_changed(file, created):
            _say(f"{file} changed after the submission, and its lines are shown as they are now")
    if not open_debugger(error):
        traceback.print_exception(type(error), error, frames)


def _has_changed(file: str, created: float) -> bool:
    entry = linecache.cache.get(file, ())
    if len(entry) > 1 and entry[1] is None:  # as it was: see `finder`
        return False
    try:
        return Path(file).stat().st_mtime > created
    except OSError:
        return False


def _say(text: str) -> None:
    print(f"slurmlaunch: {text}", file=sys.stderr)  # noqa: T201  (a person reads it)


if __name__ == "__main__":
    # By its own name, by which tracebacks leave out its frames.
    sys.exit(import_module("slurmlaunch.node.debug").main(sys.argv[1:]))
