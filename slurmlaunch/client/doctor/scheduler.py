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

from slurmlaunch.backends.slurm.accounts import accounts_of, asked, default_account
from slurmlaunch.backends.slurm.commands import Cluster, Command, for_submission, run
from slurmlaunch.backends.slurm.refusal import advice_on
from slurmlaunch.client.doctor.findings import error, ok, skipped, warning
from slurmlaunch.client.watcher import current_client
from slurmlaunch.errors import SchedulerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from slurmlaunch.backends.base import Limits
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
        advice = advice_on(str(failure)) or f"Does `scontrol ping` answer on {socket.gethostname()}? Ask your site."
        yield error("slurm", str(failure), advice)
        return
    version = settings.get("SLURM_VERSION", "unknown")
    found = f"version {version}, cluster {settings.get('ClusterName')}"
    found += f"; of {clusters}, this one is checked" if clusters and "," in clusters else ""
    yield ok("slurm", found, version=version)
    yield _check_accounting(cluster, settings)
    yield _check_arrays(backend.limits(), settings)
    yield from _check_partition(cluster, given, settings)
    yield from _check_account(cluster, given, settings)
    yield _check_mpi(cluster, settings)


def check_request(script: str) -> Check:
    """Return whether Slurm would accept the job, by ``sbatch --test-only``, which submits nothing."""
    words = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]
    command = Command(("sbatch", "--test-only"), for_submission(os.environ, words), _TIMEOUT, stdin=script)
    done = run(command)
    if not done.ok:
        return error("request", f"sbatch --test-only refuses the job: {done.error}", advice_on(done.stderr))
    # Slurm 26.05 puts a stray word between the two parts.
    start = re.search(r"\bto start at (\S+).*?( using .*)", done.stderr)
    found = f"a job would start at {start[1]},{start[2]}" if start else "sbatch --test-only accepts the job"
    return ok("request", found, start=start and start[1])


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


def _check_arrays(limits: Limits, settings: Mapping[str, str]) -> Check:
    size = settings.get("MaxArraySize", "unknown")
    if size == "0":
        advice = "submit works, and map_array does with tasks=1; ask your site for arrays."
        return error("arrays", "arrays are switched off (MaxArraySize=0)", advice, longest=0)
    reasons = [f"MaxArraySize={size}"]
    if limits.max_array_tasks is not None:
        reasons.append(f"max_array_tasks={limits.max_array_tasks}")
    sizes = (limits.max_array_size, limits.max_array_tasks)
    longest = min(each for each in sizes if each is not None)
    found = f"an array has at most {longest} tasks, with indices from 0 to {longest - 1} ({', '.join(reasons)})"
    if longest < _FEW_ELEMENTS:
        advice = "A run has no more tasks than that by default; more tasks=... make several arrays."
        return warning("arrays", found, advice, longest=longest)
    return ok("arrays", found, longest=longest)


def _check_partition(cluster: Cluster, given: Mapping[str, str | bool], settings: Mapping[str, str]) -> Iterator[Check]:
    done = cluster.call("scontrol", "--oneliner", "show", "partition")
    if not done.ok:
        yield warning("partition", f"scontrol show partition fails: {done.error}", "Ask your site.")
        return
    rows = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in done.stdout.splitlines()]
    partitions = {row["PartitionName"]: row for row in rows if "PartitionName" in row}
    default = next((name for name, row in partitions.items() if row.get("Default") == "YES"), None)
    wanted = asked("partition", given, os.environ) or default
    chosen = wanted.split(",") if wanted else []
    data = {"partitions": sorted(partitions), "default": default}
    if problem := _partition_problem(chosen, partitions, asked("reservation", given, os.environ)):
        found, advice = problem
        yield error("partition", found, advice, **data)
        return
    row = partitions[chosen[0]]
    of_all = f"the default partition is {default}" if default else "there is no default partition"
    named = f"{chosen[0]}, the default partition" if chosen == [default] else f"{', '.join(chosen)} ({of_all})"
    limit, usual = row.get("MaxTime", "unknown"), row.get("DefaultTime", "NONE")
    usual = limit if usual == "NONE" else usual
    without = "also without time=..." if usual == limit else f"{_time_limit(usual)} without time=..."
    yield ok("partition", f"{named}: {_time_limit(limit)}, {without}", time_limit=limit, default_time=usual, **data)
    yield _check_memory(row, given, settings)


def _partition_problem(
    chosen: list[str], partitions: Mapping[str, Mapping[str, str]], reservation: str | None
) -> tuple[str, str] | None:
    """Return why jobs cannot start in the partitions, and what to do; None if they can."""
    known = ", ".join(sorted(partitions))
    if not chosen:
        return "there is no default partition, and none is given", f"Give one with partition=...: {known}."
    unknown = [name for name in chosen if name not in partitions]
    if unknown:
        return f"there is no partition {', '.join(unknown)}", f"Give another with partition=...: {known}."
    for name in chosen:
        state = partitions[name].get("State")
        if state != "UP":
            return f"the partition {name} is {state}", f"Jobs do not start there: give another: {known}."
    if partitions[chosen[0]].get("ReqResv") == "YES" and not reservation:
        advice = "Give it with reservation=...; `scontrol show reservations` lists them."
        return f"jobs in the partition {chosen[0]} need a reservation", advice
    return None


def _time_limit(limit: str) -> str:
    return "no time limit" if limit == "UNLIMITED" else f"a time limit of {limit}"


def _check_memory(partition: Mapping[str, str], given: Mapping[str, str | bool], settings: Mapping[str, str]) -> Check:
    """Return how much memory a task has that asks for none."""
    if "MEMORY" not in settings.get("SelectTypeParameters", "").upper():
        return ok("memory", "Slurm does not count memory: the tasks on a node share it", default=None)
    asks = next((option for option in ("mem", "mem_per_cpu", "mem_per_gpu") if option in given), None)
    if asks:
        return ok("memory", f"your tasks have {asks}={given[asks]}", default=None)
    for option, of_what in (("DefMemPerCPU", "for each CPU"), ("DefMemPerNode", "on a node")):
        size = next((text for row in (partition, settings) if (text := row.get(option, "")).isdigit()), "0")
        if int(size):
            found = f"a task has {int(size)} MB {of_what} ({option}), if mem=... or mem_per_cpu=... asks for no other"
            return ok("memory", found, default=int(size), setting=option)
    advice = "No other task shares its node then: give mem=... or mem_per_cpu=..."
    return warning("memory", "a task takes all memory of its node if it does not ask for less", advice, default=None)


def _check_account(cluster: Cluster, given: Mapping[str, str | bool], settings: Mapping[str, str]) -> Iterator[Check]:
    if settings.get("AccountingStorageType", "").strip() in _NONE:
        yield skipped("account", "this Slurm keeps no accounts")
        return
    account, qos = (asked(option, given, os.environ) for option in ("account", "qos"))
    name = settings.get("ClusterName", "")
    default = default_account(cluster, name)
    found = accounts_of(cluster, name, account or default, qos)
    if found is None:
        yield skipped("account", "sacctmgr does not answer")
        return
    yield _check_association(
        account, default, found.names, enforced="associations" in settings.get("AccountingStorageEnforce", "")
    )
    yield _check_limits(cluster, found)


def _check_association(account: str | None, default: str | None, accounts: list[str], *, enforced: bool) -> Check:
    data = {"accounts": accounts, "default": default, "asked": account}
    known = f"you may use {', '.join(accounts)}" if accounts else "you are in no account"
    if account and account not in accounts:
        text = f"{account!r} is no account of yours"
        text += "" if enforced else "; Slurm does not check accounts here, and jobs run"
        return error("account", text, f"Give one with account=...: {known}.", **data)
    if not accounts:
        if enforced:
            return error("account", known, "Ask your site for an account.", **data)
        return ok("account", f"{known}, and Slurm does not ask for one", **data)
    used = account or (f"{default}, your default" if default else "you have no default account")
    return ok("account", f"{used}; {known}", **data)


def _check_limits(cluster: Cluster, accounts: Accounts) -> Check:
    submit, jobs, walls = accounts.submit, accounts.jobs, accounts.walls
    queued = cluster.call("squeue", "--noheader", "--array", "--format=%i", f"--user={os.geteuid()}")
    mine = len(queued.stdout.split()) if queued.ok else 0
    limits = [f"you may have {submit} tasks in the queue"] if submit is not None else []
    limits += [f"{jobs} may run at once"] if jobs else []
    limits += [f"the time limit is at most {', '.join(walls)}"] if walls else []
    shown = ", ".join(limits) or "your accounts and QOS set no limit of tasks in the queue"
    found = f"{shown}; in the queue now: {mine}"
    data = {"submit": submit, "jobs": jobs, "queued": mine, "qos": sorted(row["Name"] for row in accounts.qos)}
    if submit is not None and mine >= submit:
        return error("limits", found, "sbatch refuses more: wait for your other jobs, or cancel some.", **data)
    if submit is not None and submit < _FEW_JOBS:
        advice = "Each task of an array counts. Runs get no more tasks than that, and wait for room."
        return warning("limits", found, advice, **data)
    return ok("limits", found, **data)


def _check_mpi(cluster: Cluster, settings: Mapping[str, str]) -> Check:
    done = cluster.call("srun", "--mpi=list")
    if not done.ok:
        return skipped("mpi", f"srun --mpi=list: {done.error}")
    lines = (done.stdout + done.stderr).splitlines()
    kinds = sorted({line.strip() for line in lines if re.fullmatch(r"\s*(?:none|cray\w*|pm\w+|openmpi)\s*", line)})
    usual = settings.get("MpiDefault")
    default = f"; {usual} is the default" if usual else ""
    return ok("mpi", f"srun knows {', '.join(kinds) or 'no type of MPI'}{default}", kinds=kinds, default=usual)
