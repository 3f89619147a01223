"""``python -P -m slurmlaunch.node RUN_FOLDER TASK_INDEX``: run one task.

The batch script and the local backend start this command; run folders of 0.1.0 name it.
The exit status is one of `slurmlaunch.runfolder.layout.Status`.
"""

from __future__ import annotations

import gc

# Everything imported here lives to the end: collecting garbage among it would take a tenth of
# the start. A worker enables the collector before it calls the function.
gc.disable()

import os
import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]  # the working directory: batch scripts of 0.1.0 start Python without -P

from pathlib import Path

from slurmlaunch.errors import SlurmlaunchError
from slurmlaunch.node.supervisor import Supervisor
from slurmlaunch.node.system import flush_streams, log
from slurmlaunch.runfolder.layout import RunFolder, Status
from slurmlaunch.runfolder.outcomes import TaskClosed
from slurmlaunch.runfolder.rounds import read_task
from slurmlaunch.runfolder.storage import Patience, status_of


def main(arguments: list[str]) -> int:
    """Run the task that the command line names; return the exit status."""
    try:
        match arguments:
            case [_, path, task] if task.isdecimal():
                return _run(RunFolder(Path(path).absolute()), int(task))
        log("usage: python -m slurmlaunch.node RUN_FOLDER TASK_INDEX")
    except TaskClosed:
        log("slurmlaunch: this start of the task runs nothing, since what the task had left belongs to a retry")
        return Status.VALUES
    except Exception as error:  # noqa: BLE001  (Python's own exit status could be mistaken for one of ours)
        status = status_of(error)
        if status is not None or isinstance(error, SlurmlaunchError):
            log(f"slurmlaunch: {error}")
            return status or Status.NODE
        import traceback

        log(traceback.format_exc())
    return Status.NODE


def _run(folder: RunFolder, task: int) -> int:
    manifest, round_ = read_task(folder, task, Patience())
    if round_.plan.ranks is None:
        return Supervisor(folder, manifest, round_, task).run()
    from slurmlaunch.node.mpi import MpiSupervisor  # late, since most tasks have no ranks

    return MpiSupervisor(folder, manifest, round_, task, round_.plan.ranks).run()


if __name__ == "__main__":
    status = main(sys.argv)
    flush_streams()
    # Everything is on disk. Taking the interpreter down piece by piece would cost a
    # seventh of a short task, and the end mark comes after it.
    os._exit(status)
