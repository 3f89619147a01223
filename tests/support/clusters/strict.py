"""A site with strict rules: what its users, its nodes and its Slurm do not allow.

A user of this machine (`tests.support.users`) is the client. Another one has jobs there. `tests/slurm/test_strict.py`
has the tests; some of them run only with ``SLURMLAUNCH_TEST_CLUSTER=strict``.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, NamedTuple

from tests.support.cluster import ClusterSpec
from tests.support.clusters.kind import Kind
from tests.support.users import two_users

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.support.cluster import Cluster
    from tests.support.users import Machine

    Start = Callable[[ClusterSpec], AbstractContextManager[Cluster]]

_JOB_SUBMIT = """\
function slurm_job_submit(job, partitions, user)
  if job.account == nil or job.account == "" then
    slurm.log_user("Please give an account (-A): jobs without one are rejected here.")
    return slurm.ERROR
  end
  if job.time_limit == slurm.NO_VAL then
    slurm.log_user("Please give a time limit (-t).")
    return slurm.ERROR
  end
  return slurm.SUCCESS
end
function slurm_job_modify(job, record, partitions, user) return slurm.SUCCESS end
return slurm.SUCCESS
"""

_TASK_PROLOG = """\
#!/bin/sh
echo "export OMP_NUM_THREADS=1"
echo "export SITE=strict"
echo "print The prolog was here."
"""

# An overlay, since a file that is hidden by another one would still be there, and could not be executed.
_NODE = """\
set -eu
mount --make-rprivate /
over=$(mktemp -d {folder}/node.XXXXXX)
mkdir "$over/upper" "$over/work"
mount -t overlay overlay -o "lowerdir=/usr/bin,upperdir=$over/upper,workdir=$over/work" /usr/bin
cd /usr/bin
rm srun sbatch scancel scontrol
cd /
mount -t tmpfs tmpfs {slow}
mount --bind {home} {home}
mount -o remount,bind,ro {home}
exec "$@"
"""

_SLOW = ("sacct", "sbatch", "scancel", "scontrol", "sinfo", "squeue")


class Strict(Kind):
    """The kind itself: its tests make clusters of their own."""

    suites = ("slurm/test_strict.py",)

    def missing(self) -> list[str]:
        """Return what this machine lacks."""
        return super().missing() if os.geteuid() == 0 else ["Only root can be two users, and mount on nodes."]


class Site(NamedTuple):
    """A strict cluster, and its two users."""

    cluster: Cluster
    machine: Machine
    slow: Path  # a folder for PATH, with client commands that take two seconds each

    def runs(self, text: str, *arguments: object, slow: bool = False, **variables: str) -> subprocess.Popen[str]:
        """Start a script of the user, who has an account and a time limit for all jobs."""
        path = "/usr/local/bin:/usr/bin:/bin"
        given = {
            "PATH": f"{self.slow}:{path}" if slow else path,
            "TMPDIR": "/tmp",  # noqa: S108  (the home folder is read-only on the nodes)
            "SBATCH_ACCOUNT": "test",
            "SBATCH_TIMELIMIT": "10",
            "SLURMLAUNCH_CLUSTER": "slurm",
            "SLURMLAUNCH_FOLDER": str(self.machine.shared / "runs"),
            "SLURMLAUNCH_LATENCY": "1",
        }
        return self.machine.victim.start(
            text, *arguments, cwd=self.machine.shared, **{**given, **variables}, **self.cluster.env
        )


@contextlib.contextmanager
def strict_site(start: Start, *, submit_limit: int = 0, array_size: int = 5) -> Iterator[Site]:
    """Start a strict cluster for two users.

    Args:
        start: starts a cluster for a block.
        submit_limit: how many jobs a user may have submitted, by the QOS; 0 is a site without accounting.
        array_size: Slurm's MaxArraySize; 0 switches arrays off.
    """
    with two_users() as machine:
        home, place = machine.victim.home, machine.shared.parent
        slow = _slow_commands(place)
        node = _NODE.format(folder=place, home=home, slow=slow)
        prolog = place / "task-prolog"
        prolog.write_text(_TASK_PROLOG, encoding="utf-8")
        prolog.chmod(0o755)
        lines = [
            f"MaxArraySize={array_size}",
            "PrivateData=jobs",
            "JobSubmitPlugins=lua",
            "SchedulerParameters=default_queue_depth=100",  # Slurm's default: all others are, too
            "JobAcctGatherType=jobacct_gather/none",
            f"TaskProlog={prolog}",
        ]
        if submit_limit:
            lines.append("AccountingStorageEnforce=limits,qos")
        spec = ClusterSpec(
            accounting=bool(submit_limit),
            users=True,
            lines=tuple(lines),
            files={"job_submit.lua": _JOB_SUBMIT},
            node_command=("unshare", "--mount", "sh", "-c", node, "sh"),
        )
        with start(spec) as cluster:
            if submit_limit:
                cluster.run("sacctmgr", "-i", "modify", "qos", "normal", "set", f"MaxSubmitJobsPerUser={submit_limit}")
                for user in (machine.victim, machine.rival):
                    cluster.run("sacctmgr", "-i", "add", "user", user.name, "account=test")
            yield Site(cluster, machine, slow)


def _slow_commands(place: Path) -> Path:
    folder = place / "slow"
    folder.mkdir()
    for name in _SLOW:
        (folder / name).write_text(f'#!/bin/sh\nsleep 2\nexec /usr/bin/{name} "$@"\n', encoding="utf-8")
        (folder / name).chmod(0o755)
    folder.chmod(0o755)
    return folder
