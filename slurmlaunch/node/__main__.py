"""``python -m slurmlaunch.node RUN_FOLDER TASK_INDEX``: run one task.

The exit status is one of `slurmlaunch.runfolder.layout.Status`.
"""

from __future__ import annotations

import gc

# What is imported and made here stays to the end: looking for garbage in it is a tenth of
# the start. A pool process has the collector on before it calls the function.
gc.disable()

import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from slurmlaunch.errors import SlurmlaunchError
from slurmlaunch.node.supervisor import Supervisor
from slurmlaunch.runfolder.journal import round_of_task
from slurmlaunch.runfolder.layout import Manifest, RunFolder, Status

if TYPE_CHECKING:
    from slurmlaunch.runfolder.journal import Round

_ARGUMENTS = 3


def main(arguments: list[str]) -> int:
    """Run the task that the command line names; return the exit status."""
    if len(arguments) != _ARGUMENTS or not arguments[2].isdecimal():
        print("usage: python -m slurmlaunch.node RUN_FOLDER TASK_INDEX", file=sys.stderr)  # noqa: T201
        return Status.NODE
    folder, task = RunFolder(Path(arguments[1]).absolute()), int(arguments[2])
    try:
        return _run(folder, Manifest.read(folder), round_of_task(folder, task), task)
    except SlurmlaunchError as error:
        print(f"slurmlaunch: {error}", file=sys.stderr)  # noqa: T201
    except Exception:  # noqa: BLE001  (any status of Python's own could be taken for one of ours)
        traceback.print_exc()
    return Status.NODE


def _run(folder: RunFolder, manifest: Manifest, its_round: Round, task: int) -> int:
    if its_round.plan.ranks is None:
        return Supervisor(folder, manifest, its_round, task).run()
    from slurmlaunch.node.mpi import MpiSupervisor  # here, since most tasks have none

    return MpiSupervisor(folder, manifest, its_round, task, its_round.plan.ranks).run()


if __name__ == "__main__":
    status = main(sys.argv)
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is on disk. To take the interpreter down piece by piece costs as much as a
    # seventh of a short task, and the end mark comes after it.
    os._exit(status)
