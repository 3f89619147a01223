"""The environment of a run: which variables are secret, what is stored, and how another process completes it."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from slurmlaunch.client.environment import Environments, record
from slurmlaunch.client.options import Options
from slurmlaunch.errors import RunFolderError
from slurmlaunch.runfolder.environment import Environment, secret_names
from slurmlaunch.runfolder.layout import RunFolder
from tests.support.files import located


@pytest.mark.parametrize(
    ("variable", "is_secret"),
    [
        ("API_TOKEN=x", True),
        ("aws_secret_access_key=x", True),
        ("PASS=x", True),
        ("MYSQL_PWD=x", True),
        ("GITHUB_PAT=x", True),
        ("PROXY_AUTH=x", True),
        ("CREDENTIALS=x", True),
        ("SESSION_COOKIES=x", True),
        ("SENTRY_DSN=x", True),
        ("KEY2=x", True),
        ("PGPASSWORD=x", True),
        ("BROKER=amqp://user:word@host/v", True),
        ("CACHE=redis://:word@host", True),
        ("PWD=/home/me", False),
        ("OLDPWD=/home/me", False),
        ("PATH=/bin", False),
        ("MONKEY=x", False),
        ("COMPASS=x", False),
        ("TOKENIZERS_PARALLELISM=false", False),
        ("KEYBOARD=x", False),
        ("PAGE=https://host:8080/path", False),
        ("REPOSITORY=ssh://git@host/path", False),
    ],
)
def test_what_looks_secret(variable: str, *, is_secret: bool) -> None:
    """A variable is secret by a word of its name, or by a login in a URL."""
    name, _, value = variable.partition("=")

    assert secret_names({name: value}) == ({name} if is_secret else set())


def test_copies_of_secrets() -> None:
    """A value that contains another secret is one; short values and paths are not looked for."""
    variables = {
        "A_TOKEN": "abcdef", "HEADER": "Bearer abcdef", "DB": "pg://me:ghijkl@host", "BARE": "ghijkl",
        "B_KEY": "1", "NUMBER": "21", "KEY_FOLDER": "/home/me", "FILE": "/home/me/file", "NAMED": "mnopqr",
        "IN": "xmnopqrx",
    }  # fmt: skip

    assert secret_names(variables, ["NAMED", "absent"]) == variables.keys() - {"NUMBER", "FILE"}


def test_what_is_stored(tmp_path: Path) -> None:
    """The file holds everything but the values of secrets, and damage is reported."""
    limits = {"RLIMIT_NOFILE": 300, "RLIMIT_CORE": resource.RLIM_INFINITY}
    path = tmp_path / "environment"
    Environment({"A": "ü\udcff"}, {"B": "hidden", "C": None}, 0o027, limits).write(located(path))

    assert "hidden" not in path.read_text(encoding="utf-8")
    assert Environment.read(located(path)) == Environment({"A": "ü\udcff"}, {"B": None, "C": None}, 0o027, limits)
    path.write_text('{"variables": {}}', encoding="utf-8")
    with pytest.raises(RunFolderError, match="damaged"):
        Environment.read(located(path))


def test_the_same_environment_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that submits again shares the record and its file, as long as both are unchanged."""
    paths = [tmp_path / name for name in "abcd"]
    first = record(Options())
    first.write(located(paths[0]))
    again = record(Options())
    again.write(located(paths[1]))
    monkeypatch.setenv("KEPT", "another")
    changed = record(Options())
    changed.write(located(paths[2]))
    paths[2].write_text("damaged", encoding="utf-8")
    changed.write(located(paths[3]))

    assert first is again
    assert [2, 2, 1, 1] == [path.stat().st_nlink for path in paths]
    assert ["KEPT" in Environment.read(located(paths[number])).variables for number in (0, 1, 3)] == [
        False,
        False,
        True,
    ]
    assert changed.variables["KEPT"] == "another"


def test_this_process_is_described_as_it_is() -> None:
    """The umask and the soft limits are those of this process, and asking for them changes neither."""
    umask = os.umask(0o013)
    try:
        environment = Environment.of_this_process()
    finally:
        assert os.umask(umask) == 0o013
    assert environment.umask == 0o013
    assert environment.limits["RLIMIT_NOFILE"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_what_belongs_to_the_process_that_submits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Slurm is, and the session, are not taken over; nor is a job around the process that recorded it."""
    recorded = {"SLURM_CONF": "/there", "XDG_RUNTIME_DIR": "/there", "SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "3"}
    for name, value in {**recorded, "KEPT": "there"}.items():
        monkeypatch.setenv(name, value)
    record(Options()).write(located(tmp_path / "environment"))
    for name in recorded:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KEPT", "here")
    monkeypatch.setenv("SLURM_CONF", "/here")

    variables = Environments(RunFolder(tmp_path)).for_submission(0).variables

    assert (variables["KEPT"], variables["SLURM_CONF"]) == ("there", "/here")
    assert not variables.keys() & {"XDG_RUNTIME_DIR", "SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES"}


def test_the_own_environment_of_a_round(tmp_path: Path) -> None:
    """A round without its own environment has that of the latest round before it that has one."""
    folder = RunFolder(tmp_path)
    for number, name in ((0, "A"), (2, "B")):
        Path(folder.environment(number)).parent.mkdir(parents=True, exist_ok=True)
        Environment({name: "x"}).write(folder.environment(number))

    environments = Environments(folder)
    assert ["A", "A", "B", "B"] == [*(name for number in range(4) for name in environments.of_round(number).variables)]


def test_a_run_without_an_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of 0.1.0 has none: later submissions have that of the process that makes them."""
    monkeypatch.setenv("KEPT", "here")

    assert Environments(RunFolder(tmp_path)).for_submission(1).variables["KEPT"] == "here"


def test_limits_above_the_hard_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A soft limit is set as high as this process may, and one warning says so."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = {"RLIMIT_NOFILE": resource.RLIM_INFINITY, "RLIMIT_CORE": 0, "RLIMIT_UNKNOWN": 1}
    environments = Environments(RunFolder(tmp_path))
    environments.add(0, Environment({}, {}, 0o077, limits))

    for _ in range(2):
        assert environments.for_submission(0).limits == {"RLIMIT_NOFILE": hard, "RLIMIT_CORE": 0}

    [warning] = [each.message for each in caplog.records]
    assert f"RLIMIT_NOFILE={hard}" in warning
