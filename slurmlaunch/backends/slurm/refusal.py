"""The error for an array that sbatch refuses or does not confirm, with advice.

To change the advice for a complaint of Slurm's, edit the table `_ADVICE`; the caller decides whether to try again.
"""

from __future__ import annotations

import getpass
import re
import shlex
from typing import TYPE_CHECKING

from slurmlaunch.backends.sbatch_tables import SHORT
from slurmlaunch.errors import SubmissionError

if TYPE_CHECKING:
    from slurmlaunch.backends.base import ArrayJob
    from slurmlaunch.backends.slurm.commands import Cluster, Command, Finished

# What to do about an option of sbatch.
_ACCOUNT = "Give your account with account=...; `sacctmgr show associations user=$USER` lists those you may use."
_PARTITION = "Give another partition with partition=...; `sinfo --summarize` lists them."
_QOS = "Give another QOS with qos=..., or none; `sacctmgr show qos` lists them."
_TIME = "Give a time within the limit with time=...; `sinfo --format='%P %l'` lists the limits of the partitions."
_TASKS = "The site limits how much you may have queued: give map_array fewer tasks=, or wait for your other jobs."
_MEMORY = "Ask for less with mem=... or mem_per_cpu=..."
_CPUS = "Ask for fewer with cpus_per_task=... (or ntasks=, nodes=)."
_NODES = "Ask for fewer with nodes=..., or check nodelist=... and exclude=..."
_GPUS = "Check gpus=... and gres=...; `sinfo --format='%P %G'` lists what nodes have."
_FEATURES = "Check constraint=...; `sinfo --format='%P %f'` lists what nodes have."

# Slurm's complaints, and what to do about each. The first match counts, so the narrow ones stand first. The reason of a
# limit (QOSMaxWallDurationPerJobLimit) stands in a line before "Job violates accounting/QOS policy (job submit limit,
# user's size and/or time limits)", which names every kind of limit and so says nothing.
# Source of the words: slurm_errtab in Slurm's src/common/slurm_errno.c, the reasons in its job_state_reason.c (until
# 23.02 in slurm_protocol_defs.c), and the errors of its sbatch.
_OF_A_LIMIT = r"\b(?:QOS|Assoc|Max)(?:[A-Z]\w*)?"
_NO_ROOM = (
    rf"{_OF_A_LIMIT}Submit|too many.*\bjobs\b|(maximum|limit).*\b(queued|submitted) jobs\b|"
    r"(maximum|limit|exceed\w*|more than|at most|only).*\b\d+ (\w+ )?jobs\b"
)
_ANY_LIMIT = "job violates accounting/QOS policy"
_ADVICE = {
    _NO_ROOM: _TASKS,
    rf"{_OF_A_LIMIT}Minutes": "A task's size times its time is limited: ask for less time=... or for a smaller task.",
    rf"{_OF_A_LIMIT}Min": "This QOS is for larger jobs: ask for more of what it names, or give another with qos=...",
    rf"{_OF_A_LIMIT}(?:Wall|TimeLimit)": (
        "The QOS or the account limits the time of a job: give less with time=..., or another qos=... or account=..."
    ),
    rf"{_OF_A_LIMIT}Mem": _MEMORY,
    rf"{_OF_A_LIMIT}C(?:pu|PU)": _CPUS,
    rf"{_OF_A_LIMIT}GRES": _GPUS,
    rf"{_OF_A_LIMIT}(?<!Per)Node": _NODES,
    rf"{_OF_A_LIMIT}Jobs": _TASKS,
    r"invalid qos|QOSNotAllowed|QOS not permitted": _QOS,
    r"PartitionTimeLimit": _TIME,
    r"PartitionNodeLimit": _NODES,
    rf"{_OF_A_LIMIT}(?:Per|Grp|Limit)|usage ?threshold": (
        "The QOS or the account limits this: ask for less, or give another qos=... or account=...; "
        "`sacctmgr show qos` and `sacctmgr show associations user=$USER` list the limits."
    ),
    _ANY_LIMIT: (
        "A limit of your account or QOS is hit, of queued jobs, of size or of time: ask for less, or give map_array "
        "fewer tasks=; `sacctmgr show associations user=$USER` and `sacctmgr show qos` list the limits."
    ),
    r"invalid account|must specify account|invalid.*account/partition|AccountNotAllowed": _ACCOUNT,
    r"invalid partition|no partition|partition.*(not available|down|inactive)": _PARTITION,
    r"group not permitted|access/permission denied": "Ask your site, or try another partition= or account=.",
    r"invalid --time|time-min specification": (
        "Write a time as minutes (90), 'HH:MM:SS', 'D-HH:MM:SS' or '1h30m', as in time='1h30m'."
    ),
    r"invalid (--(mem|tmp)|memory constraint)": "Write memory as megabytes (4000) or with a unit, as in mem='4G'.",
    r"mutually exclusive": "Give only one of these options.",
    r"time ?limit": _TIME,
    r"invalid job array|\barray.*(size|limit)": (
        "The array is longer than the cluster allows: give map_array fewer tasks= or a larger chunksize=."
    ),
    r"memory specification|memory required": _MEMORY,
    r"cpu count|more (processors|tasks) than|processors requested|task count|tasks requested|number of (cpus|tasks)|"
    r"threads per core": _CPUS,
    r"generic resource|trackable resource|gres|\bgpus?\b": _GPUS,
    r"(invalid|preferred) feature|features not subset": _FEATURES,
    r"invalid node name": "Check nodelist=... and exclude=...; `sinfo --Node` lists the nodes.",
    r"node configuration is not available|node count specification|invalid node|number of nodes": (
        "No node has all that was asked for: check cpus_per_task=, mem=, gpus=, constraint= and nodes=."
    ),
    r"nodes? not (in this partition|available)": "Check nodelist=..., exclude=... and partition=...",
    r"dependency": "Check dependency=...: does the job still exist?",
    r"reservation": "Check reservation=...; `scontrol show reservations` lists them.",
    r"license": "Check licenses=...; `scontrol show licenses` lists them.",
    r"burst ?buffer": "Check bb=... or bbf=...",
    r"mail.type": "Check mail_type=...",
    r"wckey": "Check wckey=...; `sacctmgr show wckeys user=$USER` lists those you may use.",
    r"cluster name|eligible clusters|problem talking to the database|'.*' can't be reached": (
        "Check clusters=...; `sacctmgr show clusters` lists them."
    ),
    r"unrecognized option|invalid option|unknown option|invalid directive|requires an argument|ambiguous": (
        "This cluster's sbatch does not know an option: check the executor's options, and sbatch=[...]."
    ),
    r"unable to contact|connection refused|controller not|unable to establish|lookup failed|authentication|munge": (
        "Slurm cannot be reached from this machine just now; cluster='local' (or SLURMLAUNCH_CLUSTER=local) runs the "
        "same tasks here."
    ),
}

# A site's own checks (job_submit.lua) word their complaints freely, in a line that names the option, or at least speaks
# of it and says that something is missing or wrong. The first match counts here, too: a partition is often named for
# the limit that it has.
_WORDS = {
    "account": (r"accounts?|projects?|allocations?|budgets?|billing|charged?|grants?", _ACCOUNT),
    "time": (r"wall ?-?_?(time|clock)|run ?-?time|time", _TIME),
    "mem": (r"mem|memory|ram", "Give the memory of a task with mem=..."),
    "qos": (r"qos|quality of service", _QOS),
    "partition": (r"partitions?|queues?", _PARTITION),
    "gres": (r"gres|gpus?", _GPUS),
    "cpus_per_task": (r"cpus?|cores?", "Check cpus_per_task=..."),
    "nodes": (r"nodes?", "Check nodes=..."),
    "constraint": (r"constraints?|features?", _FEATURES),
}
_LACK = (
    r"must|need|please|specif|provid|missing|lacks?\b|requir|without|\bno\b|\bnot\b|n't\b|\bset\b|\bgive|invalid|"
    r"unknown|expired|exceed|reject|valid|\bonly\b|too (long|large|many|much)|limit"
)
_OPTION = re.compile(r"(?<![\w-])(?:--([a-z][a-z-]+)|-([A-Za-z])(?![\w-]))")
# How to list the values of an option, which one query tells after a refusal.
_WITHIN = 1.0
_OF_USER = ("sacctmgr", "--noheader", "--parsable2", "show", "associations")
_LISTS = {
    _PARTITION: ("partition", ("sinfo", "--noheader", "--format=%P"), "The partitions"),
    _TIME: ("time", ("sinfo", "--noheader", "--format=%P %l"), "The limits"),
    _ACCOUNT: ("account", (*_OF_USER, "format=account"), "Your accounts"),
    _QOS: ("qos", (*_OF_USER, "format=qos"), "Yours"),
}
# After these complaints the job may still be in the queue.
_AMBIGUOUS = re.compile(
    r"timed out|zero bytes were transmitted|message send failure|message receive failure", re.IGNORECASE
)
# Complaints that pass by themselves, the controller's own rate limit included.
_TRANSIENT = re.compile(
    r"unable to contact|connection refused|connection timed out|unable to establish (controller|communication)"
    r"|not responding|temporarily|try again|rate limit|RPC limit",
    re.IGNORECASE,
)


def submission_error(
    command: Command, done: Finished, job: ArrayJob, cluster: Cluster, *, in_doubt: bool = False
) -> SubmissionError:
    """Return the error for an sbatch that did not accept a job.

    Args:
        command: the command that submitted it.
        done: how that ended.
        job: the job.
        cluster: is asked, for a second at most, which values an option may have.
        in_doubt: whether an earlier try got no answer.
    """
    name = job.name
    where = [f"--clusters={job.options['clusters']}"] if "clusters" in job.options else []
    look = f"`{shlex.join(['squeue', *where, f'--name={name}'])}`"
    stderr = done.stderr.strip()
    if done.missing:
        what = f"there is no {command.words[0]} on PATH: is this a machine of the cluster?"
        advice = "Executor(cluster='local') runs the same tasks on this machine."
    elif is_ambiguous(done):
        what = f"sbatch did not say whether Slurm took the job: {stderr or 'no job id'}"
        advice = f"The job may still be in the queue: {look} shows it."
    elif in_doubt:
        what = f"sbatch refused the job: {done.error}"
        advice = f"An earlier try got no answer: {look} shows whether the job is in the queue."
    else:
        what = f"sbatch refused the job: {done.error}"
        advice = advice_on(stderr)
        advice = _on(cluster, advice) + _values(advice, job, cluster)
    return SubmissionError(
        "\n".join(filter(None, (what, advice))),
        command=command.words,
        stderr=stderr,
        returncode=done.returncode,
        job_name=name,
        ambiguous=in_doubt or is_ambiguous(done),
        no_room=advice_on(stderr) == _TASKS or advice_on(stderr) == _ADVICE[_ANY_LIMIT],
        transient=is_transient(done),
    )


def _on(cluster: Cluster, advice: str) -> str:
    """Return an advice whose commands ask the cluster; accounts are the same on all."""
    return re.sub(r"`(sinfo|scontrol)\b", lambda found: f"`{' '.join(cluster.words(found[1]))}", advice)


def _values(advice: str, job: ArrayJob, cluster: Cluster) -> str:
    """Return which value the option of an advice had, and which are valid, as far as Slurm says so in time."""
    if advice not in _LISTS:
        return ""
    option, words, what = _LISTS[advice]
    given = job.options.get(option) or job.environment.variables.get(f"SBATCH_{option.upper()}")
    text = f" You gave {option}={given!r}." if given else ""
    done = cluster.call(*words, *([f"user={getpass.getuser()}"] if "associations" in words else []), timeout=_WITHIN)
    rows = [line.replace("*", " ").split() for line in done.stdout.splitlines() if done.ok]
    if option == "time":
        names = [f"{row[1]} in {row[0]}" for row in rows if len(row) > 1]
    else:
        names = [name for row in rows for name in ",".join(row).split(",") if name]
    return f"{text} {what}: {', '.join(dict.fromkeys(names))}." if names else text


def is_submit_limit(done: Finished) -> bool:
    """Whether the user may have no more jobs in the queue, as far as sbatch names the limit."""
    return not done.ok and advice_on(done.stderr) == _TASKS


def is_transient(done: Finished) -> bool:
    """Whether the same submission may be accepted in a moment."""
    return not done.ok and not done.missing and _TRANSIENT.search(done.stderr) is not None


def is_ambiguous(done: Finished) -> bool:
    """Whether the job may have been submitted although sbatch did not confirm it."""
    lost = done.ok or done.timed_out or _AMBIGUOUS.search(done.stderr) is not None  # ok: without a job id
    return lost and not done.missing


def advice_on(stderr: str) -> str:
    """Return what to do about a refusal, by the words of sbatch; empty if they say nothing that is known."""
    for words, advice in _ADVICE.items():
        if re.search(words, stderr, re.IGNORECASE):
            return advice
    for long, short in _OPTION.findall(stderr):
        name = long.replace("-", "_") or SHORT.get(short, "")
        if name:
            return _WORDS[name][1] if name in _WORDS else f"Check {name}=..."
    for words, advice in _WORDS.values():
        if re.search(rf"(?im)^(?=.*(?:{_LACK})).*\b(?:{words})\b", stderr):
            return advice
    return "Check the value of that option." if re.search(r"(?i)invalid (specification|value)", stderr) else ""
