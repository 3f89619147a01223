"""The doctor's checks of Slurm from this machine: they query, and submit nothing.

``report`` calls `check_slurm` where runs go to Slurm. Each answer of a command that fails is a finding of its own, and
the other checks go on without it.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
from typing import TYPE_CHECKING

from slurmlaunch.backends.slurm.accounts import accounts_of, asked
from slurmlaunch.backends.slurm.commands import Cluster, Command, for_submission, run
from slurmlaunch.backends.slurm.refusal import advice_on
from slurmlaunch.client.doctor.findings import error, ok, skipped, warning
from slurmlaunch.client.watcher import current_client
from slurmlaunch.errors import SchedulerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from slurmlaunch.backends.slurm.accounts import Accounts
    from slurmlaunch.client.doctor.findings import Check
    from slurmlaunch.client.options import Options

_PROGRAMS = ("sbatch", "squeue", "sacct", "scancel", "scontrol")
_FEW_ELEMENTS = 100
_FEW_JOBS = 20
_TIMEOUT = 60.0
_NONE = ("", "(null)", "accounting_storage/none", "N/A")


def check_slurm(options: Options) -> Iterator[Check]:
    """Yield what Slurm says of the cluster, the partition, the account and the limits."""
    given = options.slurm
    clusters = str(given["clusters"]) if "clusters" in given else None
    cluster = Cluster(run, clusters.partition(",")[0] if clusters else None)
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if missing:
        advice = "Is this a login node of the cluster? `module avail slurm` may offer them."
        yield error("programs", f"not on PATH: {', '.join(missing)}", advice, missing=missing)
    if "sbatch" in missing or "scontrol" in missing:
        return
    yield from _check_programs()
    backend = current_client().backend("slurm", clusters)
    try:
        settings = getattr(backend, "settings")()  # noqa: B009  (of the Slurm backend alone)
    except SchedulerError as failure:
        yield error("slurm", str(failure), f"Does `scontrol ping` answer on {socket.gethostname()}? Ask your site.")
        return
    version = settings.get("SLURM_VERSION", "unknown")
    yield ok("slurm", f"version {version}, cluster {settings.get('ClusterName')}", version=version)
    yield _check_accounting(cluster, settings)
    yield _check_arrays(settings)
    yield _check_partition(cluster, given)
    yield from _check_account(cluster, given, settings)
    yield _check_mpi(cluster)


def check_request(script: str) -> Check:
    """Return whether Slurm would accept the job, by ``sbatch --test-only``, which submits nothing."""
    words = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]
    command = Command(("sbatch", "--test-only"), for_submission(os.environ, words), _TIMEOUT, stdin=script)
    done = run(command)
    if not done.ok:
        return error("request", f"sbatch --test-only refuses the job: {done.error}", advice_on(done.stderr))
    lines = [line.removeprefix("sbatch: ") for line in done.stderr.splitlines() if " to start at " in line]
    estimate = lines[-1] if lines else "sbatch --test-only accepts the job"
    return ok("request", re.sub(r"^Job \d+ to", "a job would", estimate), estimate=estimate)


def _check_programs() -> Iterator[Check]:
    if shutil.which("srun") is None:
        advice = "Ranks (ntasks=) need it; give launcher=..., as mpirun, if it is missing on the nodes too."
        yield warning("programs", "srun is not on PATH", advice, missing=["srun"])
    else:
        yield ok("programs", f"{', '.join((*_PROGRAMS, 'srun'))} are on PATH", missing=[])


def _check_accounting(cluster: Cluster, settings: Mapping[str, str]) -> Check:
    kind = settings.get("AccountingStorageType", "").strip()
    advice = (
        "Runs work. But why a job ended (out of memory, time limit) is known for some minutes only, as long as squeue "
        "shows it: keep the client running, or attach soon."
    )
    if kind in _NONE:
        return warning("accounting", "this Slurm keeps no accounts (AccountingStorageType)", advice, kind=kind)
    done = cluster.call("sacct", "--noheader", "--allocations", "--format=JobID", "--starttime=now-1minutes")
    if not done.ok:
        return warning("accounting", f"sacct fails: {done.error}", advice, kind=kind)
    return ok("accounting", f"sacct answers ({kind})", kind=kind)


def _check_arrays(settings: Mapping[str, str]) -> Check:
    size = settings.get("MaxArraySize", "1001")
    tasks = re.search(r"\bmax_array_tasks=(\d+)", settings.get("SchedulerParameters", ""))
    longest = max(0, int(size) - 1) if size.isdigit() else 1000
    longest = min(longest, int(tasks[1])) if tasks else longest
    found = f"an array has at most {longest} tasks (MaxArraySize={size}" + (f", {tasks[0]})" if tasks else ")")
    if size == "0":
        advice = "submit works, and map_array does with tasks=1; ask your site for arrays."
        return error("arrays", "arrays are switched off (MaxArraySize=0)", advice, longest=longest)
    if longest < _FEW_ELEMENTS:
        advice = "A run with more tasks needs several arrays: give map_array a larger chunksize=, or fewer tasks=."
        return warning("arrays", found, advice, longest=longest)
    return ok("arrays", found, longest=longest)


def _check_partition(cluster: Cluster, given: Mapping[str, str | bool]) -> Check:
    done = cluster.call("scontrol", "--oneliner", "show", "partition")
    if not done.ok:
        return warning("partition", f"scontrol show partition fails: {done.error}", "Ask your site.")
    rows = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in done.stdout.splitlines()]
    partitions = {row["PartitionName"]: row for row in rows if "PartitionName" in row}
    default = next((name for name, row in partitions.items() if row.get("Default") == "YES"), None)
    chosen = [*str(given["partition"]).split(",")] if "partition" in given else [default] if default else []
    known = ", ".join(sorted(partitions))
    data = {"partitions": sorted(partitions), "default": default}
    if not chosen:
        found = "there is no default partition, and none is given"
        return error("partition", found, f"Give one with --partition=...; partitions: {known}.", **data)
    unknown = [name for name in chosen if name not in partitions]
    if unknown:
        found = f"there is no partition {', '.join(unknown)}"
        return error("partition", found, f"Give another with --partition=...; partitions: {known}.", **data)
    down = [name for name in chosen if partitions[name].get("State") != "UP"]
    if down:
        found = f"the partition {down[0]} is {partitions[down[0]].get('State')}"
        return error("partition", found, "Jobs in it do not start: give another with --partition=...", **data)
    row = partitions[chosen[0]]
    limit, usual = row.get("MaxTime", "?"), row.get("DefaultTime", "?")
    found = f"{', '.join(chosen)}: time limit {limit}, {usual if usual != 'NONE' else limit} without time=..."
    return ok("partition", f"{found}; default partition: {default or 'none'}", **data)


def _check_account(cluster: Cluster, given: Mapping[str, str | bool], settings: Mapping[str, str]) -> Iterator[Check]:
    if settings.get("AccountingStorageType", "").strip() in _NONE:
        yield skipped("account", "this Slurm keeps no accounts")
        return
    account, qos = (asked(option, given, os.environ) for option in ("account", "qos"))
    found = accounts_of(cluster, settings.get("ClusterName", ""), account, qos)
    if found is None:
        yield skipped("account", "sacctmgr does not answer")
        return
    accounts = found.names
    enforced = "associations" in settings.get("AccountingStorageEnforce", "")
    known = f"you may use {', '.join(accounts)}" if accounts else "you are in no account"
    if account and account not in accounts:
        advice = f"Give one with --account=...: {known}."
        yield error("account", f"{account!r} is no account of yours", advice, accounts=accounts)
    elif not accounts and enforced:
        yield error("account", known, "Ask your site for an account.", accounts=accounts)
    else:
        yield ok("account", f"{account or 'the default'}; {known}", accounts=accounts)
    yield _check_limits(cluster, found)


def _check_limits(cluster: Cluster, accounts: Accounts) -> Check:
    submit, jobs, walls = accounts.submit, accounts.jobs, accounts.walls
    queued = cluster.call("squeue", "--noheader", "--array", "--format=%i", f"--user={os.geteuid()}")
    mine = len(queued.stdout.split()) if queued.ok else 0
    limits = [f"{submit} tasks in the queue" if submit is not None else "", f"{jobs} run at once" if jobs else ""]
    limits += [f"a time of {', '.join(walls)}"] if walls else []
    shown = ", ".join(filter(None, limits))
    found = (f"you may have {shown}" if shown else "no limit of your own") + f"; in the queue now: {mine}"
    data = {"submit": submit, "jobs": jobs, "queued": mine, "qos": sorted(row["Name"] for row in accounts.qos)}
    if submit is not None and mine >= submit:
        return error("limits", found, "sbatch refuses more: wait for your other jobs, or cancel some.", **data)
    if submit is not None and submit < _FEW_JOBS:
        advice = "Each task of an array counts. Runs get no more tasks than that, and wait for room."
        return warning("limits", found, advice, **data)
    return ok("limits", found, **data)


def _check_mpi(cluster: Cluster) -> Check:
    done = cluster.call("srun", "--mpi=list")
    if not done.ok:
        return skipped("mpi", f"srun --mpi=list: {done.error}")
    lines = (done.stdout + done.stderr).splitlines()
    kinds = sorted({line.strip() for line in lines if re.fullmatch(r"\s*(?:none|cray\w*|pm\w+|openmpi)\s*", line)})
    return ok("mpi", f"srun knows {', '.join(kinds) or 'no type of MPI'}", kinds=kinds)
