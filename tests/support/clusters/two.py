"""Two clusters under one slurmdbd, one of which is not the client's own."""

from __future__ import annotations

from tests.support.clusters.kind import Kind


class Two(Kind):
    """The kind itself: its tests make both clusters."""

    suites = ("slurm/test_two_clusters.py",)
