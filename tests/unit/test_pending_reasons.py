"""Why jobs are pending: each reason of Slurm in words, and which of them never go away by themselves."""

from __future__ import annotations

import re

import pytest

from slurmlaunch.backends.base import TaskRecord, TaskState
from slurmlaunch.backends.pending_reasons import Kind, explain, in_words
from slurmlaunch.client.sbatch_options import NAMES as SBATCH_OPTIONS


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("PartitionTimeLimit", Kind.REQUEST),
        ("PartitionConfig", Kind.REQUEST),
        ("QOSMaxCpuPerJobLimit", Kind.REQUEST),
        ("AssocMaxMemPerNode", Kind.REQUEST),
        ("QOSMinGRES", Kind.REQUEST),
        ("BadConstraints", Kind.REQUEST),
        ("Constraints", Kind.REQUEST),
        ("InvalidQOS", Kind.REQUEST),
        ("AccountNotAllowed", Kind.REQUEST),
        ("DependencyNeverSatisfied", Kind.REQUEST),
        ("AssocGrpCpuLimit", Kind.LIMIT),
        ("AssocGrpCPUMinutesLimit", Kind.LIMIT),
        ("QOSGrpNodeLimit", Kind.LIMIT),
        ("QOSMaxCpuPerUserLimit", Kind.LIMIT),
        ("MaxCpuPerAccount", Kind.LIMIT),
        ("MaxGRESRunMinsPerUser", Kind.LIMIT),
        ("AssocMaxJobsLimit", Kind.LIMIT),
        ("Priority", Kind.LATER),
        ("Resources", Kind.LATER),
        ("Resources,None", Kind.LATER),
        ("None,Resources", Kind.LATER),
        ("Nodes_required_for_job_are_DOWN,_DRAINED_or_reserved_for_jobs_in_higher_priority_partitions", Kind.LATER),
        ("(Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions)", Kind.LATER),
        ("PartitionTimeLimit,Resources", Kind.LATER),  # of a job with two partitions: one takes it
        ("JobArrayTaskLimit", Kind.OWN),
        ("Dependency", Kind.OWN),
        ("BeginTime", Kind.OWN),
        ("JobHeldUser", Kind.OWN),
        ("ReqNodeNotAvail", Kind.SITE),
        ("ReqNodeNotAvail,_UnavailableNodes:n[1-2]", Kind.SITE),
        ("ReqNodeNotAvail, UnavailableNodes:n1,n2", Kind.SITE),
        ("ReqNodeNotAvail(Unavailable:n1)", Kind.SITE),
        ("ReservationDeleted", Kind.SITE),
        ("ReservationInvalid", Kind.SITE),
        ("PartitionDown", Kind.SITE),
        ("Licenses", Kind.SITE),
        ("JobHeldAdmin", Kind.SITE),
        ("JobHoldMaxRequeue", Kind.SITE),
        ("launch failed requeued held", Kind.SITE),
        ("launch_failed_requeued_held", Kind.SITE),
        ("SomethingNew", Kind.UNKNOWN),
        ("the site's own Resources are low", Kind.UNKNOWN),
        ("", Kind.UNKNOWN),
    ],
)
def test_kinds(text: str, kind: Kind) -> None:
    """Words, lists, words with details and free text are read; an unknown one is shown as it is, and is no warning."""
    reason = explain(text)
    assert reason.kind is kind
    assert text in str(reason) or text.replace("_", " ").strip("()") in str(reason)
    if kind is Kind.UNKNOWN:
        assert str(reason) == text
        assert not reason.never_starts


def test_reasons_that_need_a_person() -> None:
    """A request that cannot be met and a hold need somebody; the others pass."""
    needing = ("PartitionNodeLimit", "JobHeldUser", "JobHeldAdmin", "launch failed requeued held", "JobHoldMaxRequeue")
    assert all(explain(text).never_starts for text in needing)
    passing = ("Priority", "Resources,None", "AssocGrpCpuLimit", "Licenses", "Reservation", "JobArrayTaskLimit")
    assert not any(explain(text).never_starts for text in passing)


def test_each_request_names_options() -> None:
    """The advice for what cannot start as asked names options that sbatch has."""
    from slurmlaunch.backends.pending_reasons import _table

    for word, reason in _table().items():
        named = re.findall(r"\b([a-z_]+)=", reason.advice + reason.meaning)
        assert {*named} <= {*SBATCH_OPTIONS, "throttle"}, word
        assert named or reason.kind is not Kind.REQUEST, word
        assert reason.meaning, word


def test_in_words() -> None:
    """The expected start is told in local time, except of what never starts; what does not wait has no reason."""
    waiting = TaskRecord(TaskState.PENDING, reason="Priority", starts=1_800_000_000.0)
    assert re.fullmatch(
        r"it starts later \(Priority\): jobs with a higher priority come first; "
        r"Slurm expects its start at 2027-01-1\d \d\d:\d\d",
        in_words(waiting) or "",
    )
    never = TaskRecord(TaskState.PENDING, reason="PartitionTimeLimit", starts=1_800_000_000.0)
    assert in_words(never) == (
        "it does not start as asked (PartitionTimeLimit): its time limit is above its partition's maximum; "
        "change time= or partition="
    )
    held = TaskRecord(TaskState.PENDING, reason="JobHeldUser")
    told = {(None, None): "release when", ("7", None): "release 7 when", ("7", "other"): "-M other release 7 when"}
    told["8;one", "one,other"] = "-M one release 8 when"
    for of, command in told.items():
        assert f"run scontrol {command} it is to start" in str(in_words(held, *of))
    assert in_words(TaskRecord(TaskState.RUNNING, reason="None")) is None
    assert in_words(TaskRecord(TaskState.PENDING)) is None
