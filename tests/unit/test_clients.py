"""Client identity: a process is recognised after its id was reused, and replaced only if that is safe."""

from __future__ import annotations

import json
import os
import time

import pytest

from slurmlaunch.runfolder.clients import SILENT_FOR, ClientId


def test_a_client_on_disk() -> None:
    """A client is a list of three in JSON, and one word in the names of jobs."""
    me = ClientId.current()

    assert ClientId(*json.loads(json.dumps(me))) == me
    assert (me.pid, me.is_here, me.has_ended) == (os.getpid(), True, False)
    assert ClientId.parse(str(me)) == me
    assert ClientId.parse("a-machine-12-345") == ClientId("a-machine", 12, "345")


@pytest.mark.parametrize("text", ["", "123", "a-b-c", "-", "machine-x-1"])
def test_other_words(text: str) -> None:
    """Other text names no client."""
    assert ClientId.parse(text) is None


@pytest.mark.parametrize(
    ("machine", "started", "silent", "expected"),
    [
        (None, None, 10 * SILENT_FOR, False),
        (None, "1", 0.0, True),
        ("another-machine", "1", SILENT_FOR / 2, False),
        ("another-machine", "1", SILENT_FOR * 2, True),
    ],
    ids=["alive", "ended", "elsewhere", "silent elsewhere"],
)
def test_the_takeover_rule(machine: str | None, started: str | None, silent: float, expected: bool) -> None:  # noqa: FBT001
    """A client may be replaced if it has ended, or is on another machine and silent for long."""
    me = ClientId.current()
    client = ClientId(machine or me.machine, me.pid, started or me.started)

    assert client.may_be_replaced(time.time() - silent) is expected
