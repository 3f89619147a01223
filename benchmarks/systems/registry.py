"""All systems, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from systems.base import CPUS, NODES
from systems.by_hand import ByHand
from systems.clusterfutures import Clusterfutures
from systems.dask_jobqueue import DaskJobqueue
from systems.executorlib import BySbatch, InAllocation
from systems.floor import EmptyArray, Pool
from systems.hyperqueue import HyperQueue
from systems.parsl import Parsl
from systems.slurmlaunch import (
    FirstOutcome,
    OneItemPerTask,
    Slurmlaunch,
    Streamed,
    Submit,
    TaskStart,
    Unresolved,
    Watched,
    WatchedAtOnce,
)
from systems.submitit import Submitit

if TYPE_CHECKING:
    from systems.base import System

CLOUDPICKLE = "import cloudpickle"

FLOORS: tuple[System, ...] = (EmptyArray(), EmptyArray(CLOUDPICKLE, "floor in Python"), Pool())

OURS: tuple[System, ...] = (
    Slurmlaunch(),
    Slurmlaunch(tasks=NODES, cpus=CPUS, name=f"slurmlaunch, {NODES} tasks of {CPUS} processes"),
    OneItemPerTask(),
    Submit(),
    Streamed(),
    FirstOutcome(),
    Unresolved(),
    Watched(),
    WatchedAtOnce(),
    TaskStart(),
)

PEERS: tuple[System, ...] = (
    Submitit(),
    ByHand(Submitit(srun=False)),
    ByHand(Submitit(srun=False, cpus=CPUS), pool=True),
    Clusterfutures(),
    ByHand(Clusterfutures()),
    InAllocation(),
    ByHand(InAllocation()),
    BySbatch(),
    ByHand(BySbatch()),
    BySbatch(stay=True, name="executorlib, workers by sbatch"),
    DaskJobqueue(),
    ByHand(DaskJobqueue()),
    Parsl(),
    ByHand(Parsl()),
    HyperQueue(),
    ByHand(HyperQueue()),
)

SYSTEMS: dict[str, System] = {each.name: each for each in (*FLOORS, *OURS, *PEERS)}
