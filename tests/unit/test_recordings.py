"""What each tested version of Slurm prints is read alike: states, refusals and settings.

`tests/support/recordings.py` recorded the answers, and has the jobs and the refusals by their names.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from slurmlaunch.backends.base import TaskState
from slurmlaunch.backends.slurm import SlurmBackend
from slurmlaunch.backends.slurm.commands import Cluster, Command, Finished
from slurmlaunch.backends.slurm.job_states import JobStates
from slurmlaunch.backends.slurm.queries import sacct, squeue
from slurmlaunch.backends.slurm.refusal import advice_on

FILES = sorted((Path(__file__).parents[1] / "data" / "slurm").glob("*.json"))
NOW = 1_000_000.0

STATES = {
    "early": {
        "ends": "COMPLETED FAILED FAILED RUNNING RUNNING",
        "overdue": "RUNNING",
        "throttled": "RUNNING RUNNING" + 5 * " PENDING" + " UNKNOWN" + 2 * " PENDING",
        "unsatisfied": "PENDING PENDING",
        "greedy": 4 * "PENDING ",
    },
    "requeued": {
        "ends": "COMPLETED FAILED FAILED CANCELLED CANCELLED",
        "overdue": "RUNNING",
        "throttled": "PENDING RUNNING RUNNING" + 4 * " PENDING" + " UNKNOWN" + 2 * " PENDING",
        "unsatisfied": "PENDING PENDING",
        "greedy": 4 * "PENDING ",
    },
    "late": {
        "ends": "COMPLETED FAILED FAILED CANCELLED CANCELLED",
        "overdue": "TIMEOUT",
        "throttled": 7 * "CANCELLED " + "UNKNOWN" + 2 * " CANCELLED",
        "unsatisfied": "PENDING PENDING",
        "greedy": 4 * "COMPLETED ",
    },
}
"""The states of each job's elements, from 0 on, at each moment."""

ADVICE = {
    "partition": "partition=",
    "account": "account=",
    "qos": "qos=",
    "time": "time=",
    "time syntax": "time='1h30m'",
    "memory": "mem=",
    "memory syntax": "mem='4G'",
    "cpus": "cpus_per_task=",
    "nodes": "nodes=",
    "nodelist": "nodelist=",
    "gpus": "gres=",
    "constraint": "constraint=",
    "array": "fewer tasks=",
    "submit limit": "fewer tasks=",
    "reservation": "reservation=",
    "license": "licenses=",
    "option": "does not know an option",
}
"""A part of the advice on each refusal."""


class Recording:
    """The answers of one version."""

    def __init__(self, file: Path) -> None:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        self.version: str = content["slurm"]
        self.jobs: dict[str, str] = content["jobs"]
        self._answers: list[dict[str, Any]] = content["answers"]

    def answer(self, moment: str, program: str) -> Finished:
        """Return what a program answered at a moment."""
        words = shlex.split(program)
        found = [
            each
            for each in self._answers
            if each["moment"] == moment and shlex.split(each["command"])[: len(words)] == words
        ]
        assert len(found) == 1
        return Finished(found[0]["returncode"], found[0]["stdout"], found[0]["stderr"])

    def at(self, moment: str) -> Cluster:
        """Return a cluster that answers as this version did at a moment."""

        def replay(command: Command, /) -> Finished:
            return self.answer(
                moment, shlex.join(command.words[:3] if command.words[0] == "scontrol" else command.words[:1])
            )

        return Cluster(replay)


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def recording(request: pytest.FixtureRequest) -> Recording:
    """Return the answers of each version."""
    return Recording(request.param)


def states_of(rows: tuple[Any, ...] | None, accounts: tuple[Any, ...] | None, job: str, before: JobStates) -> JobStates:
    """Return the states of a job after both queries answered."""
    assert rows is not None
    assert accounts is not None
    states = before.after_squeue((row for row in rows if row.job == job), NOW)
    return states.after_sacct((row for row in accounts if row.job == job), NOW, 10.0, failed=False)


def test_states_are_the_same_on_every_version(recording: Recording) -> None:
    """Elements that wait, run, ended, were cancelled or requeued have these states on every version."""
    names = {number: name for name, number in recording.jobs.items()}
    known = dict.fromkeys(names, JobStates())
    for moment, expected in STATES.items():
        cluster = recording.at(moment)
        rows, accounts = squeue(cluster, names).rows, sacct(cluster, names, 0.0).rows
        found = {}
        for number, name in names.items():
            known[number] = states_of(rows, accounts, number, known[number])
            elements = range(len(expected.get(name, "").split()))
            records = [known[number].get(element) for element in elements]
            found[name] = [record.state.name if record else "None" for record in records]
        assert {name: found[name] for name in expected} == {name: text.split() for name, text in expected.items()}


def test_a_long_list_is_read_whole(recording: Recording) -> None:
    """No version shortens a list of 500 elements where the queries ask it not to."""
    rows = [
        row
        for row in squeue(recording.at("early"), set(recording.jobs.values())).rows or ()
        if row.job == recording.jobs["held"]
    ]

    assert [(list(row.elements), row.elided, row.record.state) for row in rows] == [
        (list(range(0, 999, 2)), False, TaskState.PENDING)
    ]


def test_an_unknown_job_is_no_failed_query(recording: Recording) -> None:
    """A job that Slurm no longer knows has no rows: squeue's complaint about it is an answer."""
    assert squeue(recording.at("unknown"), {"59999999"}).rows == ()


def test_refusals_come_with_the_same_advice(recording: Recording) -> None:
    """Each refusal gets the advice on its cause, in the words of every version."""
    refused = {moment: recording.answer(moment, "sbatch") for moment in ADVICE}

    assert [moment for moment, done in refused.items() if done.ok] == []
    wrong = {moment: done.stderr for moment, done in refused.items() if ADVICE[moment] not in advice_on(done.stderr)}
    assert wrong == {}


def test_the_limits_are_read(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of a cluster are read from what every version shows of them."""
    monkeypatch.setenv("SLURM_CONF", recording.version)
    backend = SlurmBackend(run=recording.at("settings").run)

    assert backend.limits().max_array_size == 1001
    assert backend.settings()["SLURM_VERSION"] == recording.version
    assert backend.cluster_name() == backend.settings()["ClusterName"]
