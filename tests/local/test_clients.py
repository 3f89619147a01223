"""Client identity of real processes: ended, and forked."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from slurmlaunch.runfolder.clients import ClientId, writer_name


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
