"""The error for an array that sbatch refuses or does not confirm, with advice.

To change the advice for a complaint of Slurm's, edit the table `_ADVICE`; the caller decides whether to try again.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from slurmlaunch.errors import SubmissionError

if TYPE_CHECKING:
    from slurmlaunch.backends.slurm.commands import Command, Finished

# Slurm's complaints, and what to do about each. The first match counts, so the narrow ones stand first.
# Source of the words: slurm_errtab in Slurm's src/common/slurm_errno.c, and the errors of its sbatch.
_ADVICE = {
    r"invalid account|must specify account|invalid.*account/partition": (
        "Give your account with account=...; `sacctmgr show associations user=$USER` lists those you may use."
    ),
    r"invalid partition|no partition|partition.*(not available|down|inactive)": (
        "Give another partition with partition=...; `sinfo --summarize` lists them."
    ),
    r"group not permitted|access/permission denied": "Ask your site, or try another partition= or account=.",
    r"invalid qos": "Give another QOS with qos=..., or none; `sacctmgr show qos` lists them.",
    r"time ?limit": (
        "Give a time within the partition's limit with time=...; `sinfo --format='%P %l'` lists the limits."
    ),
    r"invalid job array|job array.*(size|limit)": (
        "The array is longer than the cluster allows: give map_array fewer tasks= or a larger chunksize=."
    ),
    r"submit(jobs?)?(peruser)?limit|job submit limit|too many.*jobs|QOSMax|AssocMax|AssocGrp|QOSGrp": (
        "The site limits how much you may have queued: give map_array fewer tasks=, or wait for your other jobs."
    ),
    r"memory specification|memory required": "Ask for less with mem=... or mem_per_cpu=...",
    r"cpu count": "Ask for fewer with cpus_per_task=... (or ntasks=, nodes=).",
    r"generic resource|gres|\bgpus?\b": "Check gpus=... and gres=...; `sinfo --format='%P %G'` lists what nodes have.",
    r"invalid feature": "Check constraint=...; `sinfo --format='%P %f'` lists what nodes have.",
    r"node configuration is not available|node count specification|invalid node": (
        "No node has all that was asked for: check cpus_per_task=, mem=, gpus=, constraint= and nodes=."
    ),
    r"dependency": "Check dependency=...: does the job still exist?",
    r"unrecognized option|invalid option|unknown option|invalid directive|requires an argument|ambiguous": (
        "This cluster's sbatch does not know an option: check the executor's options, and sbatch=[...]."
    ),
    r"invalid (specification|value)|invalid --": "Check the value of that option.",
    r"unable to contact|connection refused|controller not|unable to establish|lookup failed": (
        "Slurm cannot be reached from this machine just now; cluster='local' (or SLURMLAUNCH_CLUSTER=local) runs the "
        "same tasks here."
    ),
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
_NO_ROOM = re.compile(
    r"submit(jobs?)?(peruser|peraccount)?limit|job submit limit|MaxSubmit|GrpSubmit|job violates.*submit", re.IGNORECASE
)


def submission_error(command: Command, done: Finished, name: str, *, in_doubt: bool = False) -> SubmissionError:
    """Return the error for an sbatch that did not accept the job of that name.

    *in_doubt* is True if an earlier try got no answer.
    """
    stderr = done.stderr.strip()
    if done.missing:
        what = f"there is no {command.words[0]} on PATH: is this a machine of the cluster?"
        advice = "Executor(cluster='local') runs the same tasks on this machine."
    elif is_ambiguous(done):
        what = f"sbatch did not say whether Slurm took the job: {stderr or 'no job id'}"
        advice = f"The job may still be in the queue: `squeue --name={name}` shows it."
    elif in_doubt:
        what = f"sbatch refused the job: {done.error}"
        advice = f"An earlier try got no answer: `squeue --name={name}` shows whether the job is in the queue."
    else:
        what = f"sbatch refused the job: {done.error}"
        advice = next((advice for words, advice in _ADVICE.items() if re.search(words, stderr, re.IGNORECASE)), "")
    return SubmissionError(
        "\n".join(filter(None, (what, advice))),
        command=command.words,
        stderr=stderr,
        returncode=done.returncode,
        job_name=name,
        ambiguous=in_doubt or is_ambiguous(done),
        no_room=_NO_ROOM.search(stderr) is not None,
        transient=is_transient(done),
    )


def is_transient(done: Finished) -> bool:
    """Whether the same submission may be accepted in a moment."""
    return not done.ok and not done.missing and _TRANSIENT.search(done.stderr) is not None


def is_ambiguous(done: Finished) -> bool:
    """Whether the job may have been submitted although sbatch did not confirm it."""
    lost = done.ok or done.timed_out or _AMBIGUOUS.search(done.stderr) is not None  # ok: without a job id
    return lost and not done.missing
