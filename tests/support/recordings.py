"""Records what Slurm's commands print, as test data: ``python -m tests.support.recordings``.

It starts a cluster, brings a few jobs into many states, and writes the answers of `squeue`, `sacct`, `scontrol` and
`sbatch` to ``tests/data/slurm/VERSION.json``. SLURMLAUNCH_TEST_CLUSTER chooses the kind of cluster, and so the version.
`tests/unit/test_recordings.py` has the parsers read them all. It must not know what the answers mean.
"""

from __future__ import annotations

import functools
import getpass
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from slurmlaunch.backends.slurm.commands import Cluster as Client
from slurmlaunch.backends.slurm.commands import Command, Finished, run
from slurmlaunch.backends.slurm.queries import sacct, squeue
from tests.support import clusters
from tests.support.cluster import Cluster, ClusterSpec, clean_environment, slurm_version

FOLDER = Path(__file__).parents[1] / "data" / "slurm"

JOBS = {
    "ends": ("--array=0-4", "case $SLURM_ARRAY_TASK_ID in 1) exit 3;; 2) kill -9 $$;; [34]) exec sleep 600;; esac"),
    "overdue": ("--array=0", "--time=1", "exec sleep 600"),
    "throttled": ("--array=0-9%2", "exec sleep 600"),
    "unsatisfied": ("--array=0-1", "--dependency=afterok:{ends}", "true"),
    "held": ("--array=0-998:2", "--hold", "true"),
    "greedy": ("--array=0-3", "--exclusive", "--nodes=2", "true"),
}
"""Jobs by name: options of sbatch, and what each element runs. ``{ends}`` is the number of that job."""

REFUSALS = {
    "partition": ("--partition=nope",),
    "account": ("--account=nope",),
    "qos": ("--qos=nope",),
    "time": ("--partition=short", "--time=10:00:00"),
    "time syntax": ("--time=1h30",),
    "memory": ("--mem=100T",),
    "memory syntax": ("--mem=lots",),
    "cpus": ("--cpus-per-task=500",),
    "nodes": ("--nodes=3",),
    "nodelist": ("--nodelist=n9",),
    "gpus": ("--gres=gpu:1",),
    "constraint": ("--constraint=nope",),
    "array": ("--array=0-5000",),
    "submit limit": ("--account=small", "--array=0-9"),
    "reservation": ("--reservation=nope",),
    "license": ("--licenses=nope",),
    "option": ("--nope=1",),
}  # fmt: skip
"""Options of sbatch that Slurm refuses, by what is wrong with them."""

_LINES = (
    "AccountingStorageEnforce=associations,limits,qos,safe",
    "EnforcePartLimits=ALL",
    "PartitionName=short Nodes=ALL MaxTime=60",
)


class _Recorder:
    """Runs commands, and keeps each with its answer."""

    def __init__(self) -> None:
        self.answers: list[dict[str, Any]] = []
        self._moment = ""

    def at(self, moment: str) -> Client:
        """Return a client whose answers are of this moment."""
        self._moment = moment
        return Client(self.run)

    def run(self, command: Command, /) -> Finished:
        """Run a command and keep its answer."""
        done = run(command)
        answer = {"returncode": done.returncode, "stdout": done.stdout, "stderr": done.stderr}
        self.answers.append({"moment": self._moment, "command": shlex.join(command.words), **answer})
        return done


def main() -> int:
    """Record on the chosen kind of cluster."""
    if not clusters.is_inside():
        return subprocess.run(clusters.chosen().command("tests.support.recordings"), check=False).returncode
    spec = clusters.chosen().adapt(ClusterSpec(nodes=2, cpus_per_node=8, lines=_LINES))
    with Cluster(spec) as cluster, tempfile.TemporaryDirectory() as folder:
        environment = clean_environment() | cluster.env
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        recorder = _Recorder()
        place = str(cluster.folder)
        jobs = _record_states(cluster, recorder)
        _record_refusals(cluster, recorder)
    version = slurm_version().split()[-1]
    recording = {"slurm": version, "jobs": jobs, "answers": recorder.answers}
    FOLDER.mkdir(exist_ok=True)
    text = json.dumps(recording, indent=1).replace(place, "/cluster")
    (FOLDER / f"{version}.json").write_text(f"{text}\n", encoding="utf-8")
    return 0


def _record_states(cluster: Cluster, recorder: _Recorder) -> dict[str, str]:
    jobs: dict[str, str] = {}
    for name, (*options, script) in JOBS.items():
        words = [option.format_map(jobs) for option in options]
        jobs[name] = cluster.run(
            "sbatch", "--parsable", f"--job-name={name}", "--output=/dev/null", "--time=30", *words, "--wrap", script
        ).strip()
    begun = time.time()
    ask = functools.partial(_ask, recorder, jobs, begun)

    _wait(cluster, f"{jobs['ends']}_4", "RUNNING")
    _wait(cluster, f"{jobs['ends']}_1", "FAILED")
    cluster.run("scontrol", "hold", f"{jobs['throttled']}_5")
    cluster.run("scancel", f"{jobs['throttled']}_7")
    ask("early")
    cluster.run("scancel", f"{jobs['ends']}_3")
    cluster.run("scontrol", "requeue", f"{jobs['throttled']}_0")
    cluster.run("scancel", f"{jobs['ends']}_4")
    _wait(cluster, f"{jobs['ends']}_3", "CANCELLED")
    ask("requeued")
    client = recorder.at("settings")
    client.call("scontrol", "show", "config")
    client.call("scontrol", "show", "job", f"{jobs['throttled']}_1")
    client.call("scontrol", "show", "job", "59999999")
    squeue(recorder.at("unknown"), {"59999999"})
    _wait(cluster, f"{jobs['overdue']}_0", "TIMEOUT", patience=150)
    cluster.run("scancel", jobs["throttled"], jobs["held"])
    time.sleep(8)  # sacct lags
    ask("late")
    return jobs


def _ask(recorder: _Recorder, jobs: dict[str, str], begun: float, moment: str) -> None:
    client = recorder.at(moment)
    squeue(client, jobs.values())
    sacct(client, jobs.values(), begun)


def _wait(cluster: Cluster, element: str, state: str, patience: float = 60) -> None:
    deadline = time.monotonic() + patience
    while cluster.run("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={element}").split() != [state]:
        assert time.monotonic() < deadline, f"{element} is not {state}"
        time.sleep(0.2)


def _record_refusals(cluster: Cluster, recorder: _Recorder) -> None:
    cluster.run("sacctmgr", "-i", "add", "account", "small")
    cluster.run("sacctmgr", "-i", "add", "user", getpass.getuser(), "account=small", "MaxSubmitJobs=4")
    for name, options in REFUSALS.items():
        recorder.at(name).call("sbatch", "--parsable", *options, "--wrap", "true")


if __name__ == "__main__":
    sys.exit(main())
