"""The rounds that a client makes: what their tasks run, how these share the items, what the scheduler is told of them.

`new_run` makes the first round of a run, `rerun` and the watcher further ones; `submission` submits them. Nothing here
submits anything, or speaks to a scheduler.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from slurmlaunch.backends.base import ArrayJob, parse_time
from slurmlaunch.backends.container import folders_inside
from slurmlaunch.client.options import Options, job_name
from slurmlaunch.client.plan import STATIC, plan
from slurmlaunch.runfolder.clients import ClientId
from slurmlaunch.runfolder.interpreter import Interpreter
from slurmlaunch.runfolder.layout import ENVIRONMENT, FURTHER_ITEMS, RUN_VARIABLE
from slurmlaunch.runfolder.outcomes import close_task
from slurmlaunch.runfolder.plan import ArrayPlan, Measured, RanksPlan, RoundPlan
from slurmlaunch.runfolder.rounds import Round
from slurmlaunch.runfolder.runs_folder import others_may_exchange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from slurmlaunch.backends.base import Backend, Limits
    from slurmlaunch.backends.container import Container
    from slurmlaunch.client.options import Shape
    from slurmlaunch.client.plan import Plan
    from slurmlaunch.client.run import Run
    from slurmlaunch.client.tasks import Tasks
    from slurmlaunch.runfolder.environment import Environment
    from slurmlaunch.runfolder.files import Location
    from slurmlaunch.runfolder.layout import Manifest

_LONGEST_WARNING = 60
"""Seconds that running items get to finish before a time limit."""


class Program(NamedTuple):
    """What the tasks of a round run, and where."""

    manifest: Mapping[str, Any]  # the keys of the run's manifest that have other values in the round
    environment: Environment | None = None  # in which its tasks start; None is that of the round before
    files: Mapping[str, Callable[[Location], str | None]] = MappingProxyType({})  # as for `Round.make`
    resumes: bool = True  # from the checkpoints of earlier rounds


Planning: TypeAlias = "Callable[[int, Limits, Shape, int], Plan]"
"""Plans a round of so many items; its last argument is the index of the round's first task."""


def add_round(
    run: Run,
    items: Sequence[int],
    options: Options,
    *,
    program: Program | None = None,
    planning: Planning | None = None,
) -> Round:
    """Make a round on disk that runs some items of a run, again or for the first time.

    Args:
        run: a view of the run that has all its rounds.
        items: the items, in order.
        options: how the round runs.
        program: what a person has it run; None if ``retries=`` caused it, which runs what the last round ran.
        planning: how the tasks share the items; by default as in the largest round.

    Raises:
        FileExistsError: another client made one first.
        OptionError: the options do not fit together.
    """
    before = run.rounds[-1]
    limits = run.backend.limits()
    shape = options.shape(single_item=run.manifest.single, available=limits.cpus)
    largest = max((each.plan for each in run.rounds), key=lambda each: each.slices.tasks)
    planning = planning or partial(_plan_as_before, largest)
    planned = planning(len(items), limits, shape, before.plan.tasks.stop)
    number = before.number + 1
    automatic = program is None
    program = program or Program(before.plan.manifest)
    manifest = run.manifest.changed(program.manifest)
    own = {name: run.folder.in_round(number, name) for name in program.files}
    environment = program.environment or run.environments.of_round(before.number)
    growth = _growth(before.plan)
    made = make_plan(planned, options, environment, manifest, number, shape, run.backend)._replace(
        automatic=automatic,
        items=array("Q", items),
        manifest={
            **growth,
            **program.manifest,
            "files": {**growth.get("files", {}), **manifest.files, **own},
            "sha256": {**growth.get("sha256", {}), **manifest.sha256},
        },
    )
    checkpoints = run.tasks.last_checkpoints(items) if program.resumes else {}
    files = dict(program.files) if program.environment is None else {**program.files, ENVIRONMENT: environment.write}
    added = Round.make(run.folder, number, made, checkpoints=checkpoints, files=files)
    run.environments.add(number, environment)
    return added


def _plan_as_before(before: RoundPlan, items: int, limits: Limits, _: Shape, first_task: int) -> Plan:
    # As many tasks as the largest round had, so that a choice of tasks= or chunksize= still applies, also after the
    # retry of a single item.
    blocks = before.blocks
    return plan(
        items,
        limits=limits,
        tasks=before.slices.tasks,
        chunksize=blocks.chunksize if blocks else None,
        first_task=first_task,
        schedule=blocks.schedule if blocks else STATIC,
    )


def _growth(plan: RoundPlan) -> dict[str, Any]:
    """Return the changes to the manifest by which rounds up to one of a plan have added items."""
    if "items" not in plan.manifest:
        return {}
    parts = {
        key: {name: each for name, each in plan.manifest.get(key, {}).items() if name.startswith(FURTHER_ITEMS)}
        for key in ("files", "sha256")
    }
    return {"items": plan.manifest["items"], **parts}


def close_tasks(run: Run, items: Iterable[int], known: Tasks | None = None) -> dict[int, int]:
    """Have the tasks that left these items without outcomes not start again, before a round takes the items over.

    Returns:
        The tasks that have started again, and how many of their attempts have begun at least. They run their items.
    """
    with run.changed:
        left = run.tasks.left_by(items, known)
    return {task: number + 1 for task, number in left.items() if not close_task(run.folder, task, number)}


def make_plan(
    planned: Plan,
    options: Options,
    environment: Environment,
    manifest: Manifest,
    number: int,
    shape: Shape,
    backend: Backend,
) -> RoundPlan:
    """Return the plan of a round as it is written to disk, but for a list of its items."""
    arrays = tuple(
        ArrayPlan(job_name(manifest.name, f"{manifest.run}-{number}-{i}"), each.start, len(each))
        for i, each in enumerate(planned.arrays)
    )
    limit, warning = _time_limit(options, environment)
    variables = {name: None if name in environment.secrets else value for name, value in options.env.items()}
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
        requeues=_requeues(options, planned, manifest),
        options=replace(options, env=variables).to_json(),
        client=ClientId.current(),
        items=None,
        blocks=planned.blocks,
        ranks=_ranks_plan(options, backend, shape, manifest),
    )


def _requeues(options: Options, planned: Plan, manifest: Manifest) -> int:
    """Return how often a task may be requeued; a machine's own tasks are where they share items."""
    if isinstance(planned.blocks, Measured) and options.slurm.get("no_requeue"):
        return 0
    return options.requeues if manifest.backend == "slurm" or isinstance(planned.blocks, Measured) else 0


def _ranks_plan(options: Options, backend: Backend, shape: Shape, manifest: Manifest) -> RanksPlan | None:
    """Return how the tasks of a round start their ranks; None if each has one rank."""
    if options.ranks == 1:
        return None
    launcher = backend.launcher(options.ranks, shape.cpus_per_task, options.slurm)
    if launcher is None:
        return None
    chosen = launcher if options.launcher is None else options.launcher
    return RanksPlan(options.ranks, chosen, (*_python(options, manifest), "-P", "-m", "slurmlaunch.node.rank"))


def _python(options: Options, manifest: Manifest) -> tuple[str, ...]:
    """Return the words that start Python on the node, as the client of the run was started."""
    return (*options.python, *Interpreter.from_json(manifest.interpreter).options)


def _time_limit(options: Options, environment: Environment) -> tuple[float | None, int | None]:
    """Return the time limit in seconds, and how long before it a task is warned: at most a fifth of it."""
    text = options.slurm.get("time") or environment.variables.get("SBATCH_TIMELIMIT")
    try:
        limit = parse_time(str(text))
    except ValueError:
        return None, None
    if not math.isfinite(limit):
        return None, None
    return limit, max(1, min(_LONGEST_WARNING, int(limit / 5)))


def _identity(identity: str, container: Container | None) -> dict[str, str]:
    """Return the variables by which a node recognizes its run; none of a run that is only shown."""
    if not identity:
        return {}
    inside = container.variables(RUN_VARIABLE, identity) if container else {}
    return {RUN_VARIABLE: identity, **inside}


def array_job(run: Run, round_: Round, number: int) -> ArrayJob:
    """Return everything that the scheduler gets to know of an array."""
    plan, planned = round_.plan, round_.plan.arrays[number]
    options = Options.from_json(plan.options)
    environment = run.environments.for_submission(round_.number)
    variables = dict(environment.variables)
    throttle = round_.throttle
    jobs = run.tasks.rounds[round_.number].jobs
    earlier = [jobs[each] for each in sorted(jobs) if each < number]
    manifest = run.manifest_of(round_.number)
    folders = folders_inside(run.folder.path, Path(manifest.cwd), manifest.sys_path) if options.container else ()
    return ArrayJob(
        run_folder=run.folder.path,
        name=planned.name,
        round=round_.number,
        array=number,
        first_task=planned.first_task,
        length=planned.length,
        throttle=throttle,
        cwd=Path(manifest.cwd),
        python=_python(options, manifest),
        cpus_per_task=plan.cpus_per_task,
        threads=plan.threads,
        options=options.slurm,
        flags=options.sbatch,
        env={name: value for name, value in options.env.items() if value is not None},
        secret_env={
            **_identity(run.folder.identity, options.container),
            **{name: variables.pop(name) for name, value in options.env.items() if value is None and name in variables},
        },
        environment=replace(environment, variables=variables),
        modules=options.modules,
        setup=options.setup,
        # One throttle for all arrays of a round: each waits for the one before it.
        after=earlier[-1] if throttle and earlier else None,
        warning=plan.warning if plan.requeues else None,
        may_requeue=bool(plan.requeues),
        container=options.container,
        folders=folders,
        ranks=plan.ranks.number if plan.ranks else 1,
        exposed=manifest.backend == "slurm" and others_may_exchange(run.folder.path),
        shares=isinstance(plan.blocks, Measured),
        held=run.folder.unread(),
    )
