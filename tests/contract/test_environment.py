"""The environment of tasks: that of the submission, whoever submits them; and what of it is stored."""

from __future__ import annotations

import json
import os
import resource
from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch import attach
from tests.conftest import elsewhere
from tests.support import scripts
from tests.support.waiting import Gate, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from slurmlaunch import Executor, FutureArray
    from tests.conftest import ExecutorFactory

SUBMITTED = """
import os, resource, signal, subprocess, sys, time
from pathlib import Path
from slurmlaunch import Executor
from tests.support.waiting import Gate

gate = Gate.__new__(Gate)
gate.folder = Path(sys.argv[2])

def look(gate):
    if not gate.arrived:
        gate.enter("first")
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(90)
    time_limit = None
    if "SLURM_JOB_ID" in os.environ:
        words = ["squeue", "--noheader", "--format=%l", "--jobs", os.environ["SLURM_JOB_ID"]]
        time_limit = subprocess.run(words, capture_output=True, text=True).stdout.strip()
    umask = os.umask(0o077)
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return [os.environ.get(name) for name in ("VALUE", "ABSENT", "A_TOKEN", "B_TOKEN")], umask, soft, time_limit

array = Executor("runs", cluster=sys.argv[1], retries=2).map_array(look, [gate])
print(array.folder, flush=True)
time.sleep(90)
"""


def secrets_of(*texts: str, folder: Path) -> list[str]:
    """Return the files of a run folder that hold one of the texts."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert folder / "environment" in files
    return [str(path) for path in files if any(text.encode() in path.read_bytes() for text in texts)]


@elsewhere
def test_a_retry_by_another_process(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An automatic retry in the place of a killed client runs with the variables, umask and limits of the submission.

    Secrets are those of the process that submits it; a warning names the missing ones.
    """
    gate = Gate(tmp_path / "gate")
    theirs = ("VALUE=first", "A_TOKEN=not-to-be-stored", "B_TOKEN=not-stored-either", "SBATCH_TIMELIMIT=7")
    within = ["sh", "-c", 'umask 027; ulimit -S -n 300; exec env "$@"', "sh", *theirs]
    client = scripts.start(tmp_path, SUBMITTED, backend, gate.folder, within=within)
    assert client.stdout
    folder = client.stdout.readline().strip()
    gate.await_arrival("first")
    client.kill()
    scripts.finish(client)
    ours = {"VALUE": "second", "ABSENT": "here", "A_TOKEN": "of this process", "SBATCH_TIMELIMIT": "3"}
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    gate.open()

    array: FutureArray[Any] = attach(folder)
    [(variables, umask, soft, time_limit)] = array.results(timeout=90)

    assert ["first", None, "of this process", None] == variables
    assert (0o027, 300) == (umask, soft)
    assert ("7:00" if backend == "slurm" else None) == time_limit
    [warning] = [record.message for record in caplog.records if "secret" in record.message]
    assert "B_TOKEN" in warning
    assert "A_TOKEN" not in warning
    assert not secrets_of("not-to-be-stored", "not-stored-either", folder=array.folder)


@pytest.mark.parametrize("backend", ["local"], indirect=True)
def test_the_clients_own_retry(make_executor: ExecutorFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An automatic retry has the variables of the submission, secrets too; the caller of `retry` gives its own."""
    first, second = tmp_path / "first", tmp_path / "second"

    def look(*markers: Path) -> list[str | None]:
        seen = [os.environ.get(name) for name in ("VALUE", "A_TOKEN", "GIVEN_PASSWORD")]
        for marker in markers:
            if not marker.exists():
                marker.write_text(str(seen), encoding="utf-8")
                raise OSError(marker)
        return seen

    monkeypatch.setenv("VALUE", "first")
    monkeypatch.setenv("A_TOKEN", "one secret")
    executor = make_executor(retries=1, retry_exceptions=OSError, env={"GIVEN_PASSWORD": "another secret"})
    array = executor.map_array(look, [first], [second])
    monkeypatch.setenv("VALUE", "second")
    monkeypatch.delenv("A_TOKEN")
    with pytest.raises(OSError, match="second"):
        array.results(timeout=90)
    again = array.retry()

    submitted = "['first', 'one secret', 'another secret']"
    assert [submitted, submitted] == [marker.read_text(encoding="utf-8") for marker in (first, second)]
    assert [["second", None, "another secret"]] == again.results(timeout=90)
    plan = json.loads((array.folder / "rounds/2/plan.json").read_text(encoding="utf-8"))
    assert {"GIVEN_PASSWORD": None} == plan["options"]["env"]


@elsewhere
def test_secrets_are_not_stored(make_executor: ExecutorFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that look secret, or that the user names, reach the tasks, but no file of the run folder."""
    ours = {
        "X_TOKEN": "tok-17",
        "DB": "pg://me:pass-17@host/db",
        "COPY": "-H tok-17",
        "odd": "odd-17",
        "PLAIN": "plain-17",
    }
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    given = {"MY_KEY": "key-17", "OPEN": "open-17"}

    def lengths(names: tuple[str, ...]) -> list[int]:
        return [len(os.environ[name]) for name in names]

    executor = make_executor(env=given, env_secret=["odd"])
    array = executor.map_array(lengths, [(*ours, *given)])

    assert [[len(value) for value in (*ours.values(), *given.values())]] == array.results(timeout=90)
    assert not secrets_of("tok-17", "pass-17", "odd-17", "key-17", folder=array.folder)
    assert "key-17" not in executor.script(lengths)
    environment = array.folder / "environment"
    assert 0o600 == environment.stat().st_mode & 0o777
    assert "plain-17" in environment.read_text(encoding="utf-8")


@elsewhere
def test_limits_and_umask_of_the_first_submission(executor: Executor) -> None:
    """Tasks have the soft limits and the umask of the process that submits them."""

    def look() -> tuple[int, int]:
        return os.umask(0o077), resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    umask = os.umask(0o026)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    try:
        future = executor.submit(look)
    finally:
        os.umask(umask)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    wait_until(future.done)
    assert (0o026, soft - 1) == future.result()
