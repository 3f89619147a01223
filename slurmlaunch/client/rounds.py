"""What the rounds of a run come to: the plan of each as it stands on disk, and the making of a further one."""

from __future__ import annotations

import math
import os
from array import array
from typing import TYPE_CHECKING

from slurmlaunch.backends.base import parse_time
from slurmlaunch.client.options import job_name
from slurmlaunch.client.plan import STATIC, plan
from slurmlaunch.runfolder.clients import ClientId
from slurmlaunch.runfolder.journal import Round
from slurmlaunch.runfolder.plan import ArrayPlan, RanksPlan, RoundPlan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slurmlaunch.backends.base import Backend
    from slurmlaunch.client.options import Options, Shape
    from slurmlaunch.client.plan import Plan
    from slurmlaunch.client.run import Run
    from slurmlaunch.runfolder.layout import Manifest

_LONGEST_WARNING = 60
"""Seconds that items in flight get to come to their end at a time limit."""


def add_round(run: Run, items: Sequence[int], options: Options, *, automatic: bool = False) -> Round:
    """Make a round that runs some items of a run again; *automatic* says that nobody asked for it.

    Raises:
        FileExistsError: another client made one first.
        OptionError: the options do not fit together.
    """
    before = run.tasks.rounds[-1]
    limits = run.backend.limits()
    shape = options.shape(single_item=run.manifest.single, available=limits.cpus)
    blocks = before.plan.blocks
    # As many tasks as before, so that a choice of tasks= or chunksize= holds on.
    planned = plan(
        len(items),
        limits=limits,
        tasks=before.plan.slices.tasks,
        chunksize=blocks.chunksize if blocks else None,
        first_task=before.plan.tasks.stop,
        schedule=blocks.schedule if blocks else STATIC,
    )
    number = before.number + 1
    ranks = ranks_plan(options, run.backend, shape)
    made = make_plan(planned, options, run.manifest, number, shape, items=array("Q", items), ranks=ranks)
    return Round.make(run.folder, number, made._replace(automatic=automatic), run.tasks.last_checkpoints(items))


def make_plan(
    planned: Plan,
    options: Options,
    manifest: Manifest,
    number: int,
    shape: Shape,
    *,
    items: array[int] | None = None,
    ranks: RanksPlan | None = None,
) -> RoundPlan:
    """Return the plan of a round as it stands on disk."""
    arrays = tuple(
        ArrayPlan(job_name(manifest.name, f"{manifest.run}-{number}-{i}"), each.first_task, each.length)
        for i, each in enumerate(planned.arrays)
    )
    limit, warning = _time_limit(options)
    return RoundPlan(
        slices=planned.slices,
        first_task=planned.first_task,
        arrays=arrays,
        cpus_per_task=shape.cpus_per_task,
        processes=shape.processes,
        threads=shape.threads,
        throttle=options.throttle,
        time_limit=limit,
        warning=warning,
        requeues=options.requeues if manifest.backend == "slurm" else 0,
        options=options.to_json(),
        client=ClientId.current(),
        items=items,
        blocks=planned.blocks,
        ranks=ranks,
    )


def ranks_plan(options: Options, backend: Backend, shape: Shape) -> RanksPlan | None:
    """Return how the tasks of a round have ranks; None where they have one each."""
    if options.ranks == 1:
        return None
    launcher = backend.launcher(options.ranks, shape.cpus_per_task, options.slurm)
    if launcher is None:
        return None
    chosen = launcher if options.launcher is None else options.launcher
    return RanksPlan(options.ranks, chosen, (*options.python, "-m", "slurmlaunch.node.rank"))


def _time_limit(options: Options) -> tuple[float | None, int | None]:
    """Return the time limit in seconds, and how long before it a task is warned: a fifth of it at most."""
    text = options.slurm.get("time") or os.environ.get("SBATCH_TIMELIMIT")
    try:
        limit = parse_time(str(text))
    except ValueError:
        return None, None
    if not math.isfinite(limit):
        return None, None
    return limit, max(1, min(_LONGEST_WARNING, int(limit / 5)))
