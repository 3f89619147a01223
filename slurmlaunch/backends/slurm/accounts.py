"""What sacctmgr says of a user: the accounts, and how many tasks they may have in the queue.

The backend asks after a refusal, the doctor as a check: it costs a query of Slurm's database.
"""

from __future__ import annotations

import os
import pwd
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from slurmlaunch.backends.slurm.commands import Cluster

_OF_ACCOUNT = "Account,QOS,DefaultQOS,MaxJobs,MaxSubmit,GrpSubmit"
_OF_QOS = "Name,MaxSubmitPU,MaxJobsPU,MaxWall"

Row = dict[str, str]


class Accounts(NamedTuple):
    """The accounts that a job of this user may have, and the QOS that apply; limits are of the least of them."""

    names: list[str]  # of all of the user's accounts
    accounts: list[Row]  # those of the job
    qos: list[Row]

    @property
    def submit(self) -> int | None:
        """How many tasks the user may have in the queue; None if there is no limit."""
        rows = [row[column] for row in self.accounts for column in ("MaxSubmit", "GrpSubmit")]
        return least([*rows, *(row["MaxSubmitPU"] for row in self.qos)])

    @property
    def jobs(self) -> int | None:
        """How many tasks of the user may run at once; None if there is no limit."""
        return least([*(row["MaxJobs"] for row in self.accounts), *(row["MaxJobsPU"] for row in self.qos)])

    @property
    def walls(self) -> list[str]:
        """The time limits."""
        return sorted({row["MaxWall"] for row in self.qos} - {""})


def accounts_of(cluster: Cluster, name: str, account: str | None, qos: str | None) -> Accounts | None:
    """Ask for this user's accounts on a cluster of that name, for jobs with this account and QOS.

    Returns:
        None if sacctmgr does not answer.
    """
    user = pwd.getpwuid(os.geteuid()).pw_name
    rows = _rows(cluster, "associations", (f"user={user}", f"cluster={name}"), _OF_ACCOUNT)
    if rows is None:
        return None
    chosen = [row for row in rows if not account or row["Account"] == account]
    wanted = {qos} if qos else {row["DefaultQOS"] or row["QOS"].partition(",")[0] for row in chosen}
    known = _rows(cluster, "qos", (), _OF_QOS) or []
    names = sorted({row["Account"] for row in rows})
    return Accounts(names, chosen, [row for row in known if row["Name"] in wanted])


def default_account(cluster: Cluster, name: str) -> str | None:
    """Ask for the account of this user's jobs that give none, on a cluster of that name."""
    user = pwd.getpwuid(os.geteuid()).pw_name
    rows = _rows(cluster, "user", (user, "withassoc", f"cluster={name}"), "DefaultAccount") or []
    return next((row["DefaultAccount"] for row in rows if row["DefaultAccount"]), None)


def asked(option: str, given: Mapping[str, str | bool], variables: Mapping[str, str]) -> str | None:
    """Return the account or the QOS that a job asks for, by an option or by sbatch's variable."""
    value = given.get(option) or variables.get(f"SBATCH_{option.upper()}")
    return str(value) if value else None


def least(numbers: Iterable[str]) -> int | None:
    """Return the least of the limits; an empty text is none."""
    return min((int(text) for text in numbers if text.isdigit()), default=None)


def _rows(cluster: Cluster, what: str, conditions: tuple[str, ...], columns: str) -> list[Row] | None:
    done = cluster.call("sacctmgr", "--noheader", "--parsable2", "show", what, *conditions, f"format={columns}")
    if not done.ok:
        return None
    names = columns.split(",")
    rows = [line.split("|") for line in done.stdout.splitlines()]
    return [dict(zip(names, row, strict=True)) for row in rows if len(row) == len(names)]
