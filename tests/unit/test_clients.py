"""Client identity: a process is recognised after its id was reused, and replaced only if that is safe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from slurmlaunch.runfolder.clients import SILENT_FOR, ClientId, writer_name


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


def test_an_ended_process() -> None:
    """A process has ended if no process of its id runs, a zombie aside, or one that started at another time."""
    with subprocess.Popen(["sleep", "600"]) as process:
        client = ClientId.of_process(process.pid)
        seen = [client.has_ended, client._replace(started="1").has_ended]
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        seen.append(client.has_ended)
    seen.append(client.has_ended)

    assert seen == [False, True, True, True]


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


def test_a_forked_child_is_another_client() -> None:
    """A forked child has an identity and a file name of its own; threads share those of their process."""
    before = ClientId.current(), writer_name()
    with ThreadPoolExecutor(1) as pool:
        assert before == pool.submit(lambda: (ClientId.current(), writer_name())).result()
    code = """
import os
from slurmlaunch.runfolder.clients import ClientId, writer_name
mine = ClientId.current(), writer_name()
if os.fork():
    _, status = os.wait()
    raise SystemExit(os.waitstatus_to_exitcode(status))
theirs = ClientId.current(), writer_name()
os._exit(mine[0] == theirs[0] or mine[1] == theirs[1] or theirs[0].pid != os.getpid())
"""
    assert 0 == subprocess.run([sys.executable, "-c", code], check=False).returncode
