"""Folders, runs and values with characters that a shell or Slurm treats specially."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slurmlaunch import Executor, OptionError, attach
from tests.conftest import elsewhere

if TYPE_CHECKING:
    from tests.conftest import ExecutorFactory

NAMES = [
    "a b; touch oops",
    'it\'s "quoted" `and` $(more) $HOME & ~',
    "%j %A_%a %% %x",
    "Übergrößen-日本",
    "-n --array=0-9",
    "#hash *?[a]{b,c}!",
]


@elsewhere
@pytest.mark.parametrize("name", NAMES)
def test_folders(backend: str, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run folders and working directories may have any name; results arrive, and logs are in the run folder."""
    (tmp_path / name / "cwd" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / name / "cwd" / name)
    with Executor(tmp_path / name / "runs", cluster=backend) as executor:
        future = executor.submit(lambda: (os.write(1, b"said\n"), str(Path.cwd())))

    assert (5, str(tmp_path / name / "cwd" / name)) == future.result(timeout=90)
    assert "said\n" == future.stdout()
    assert future.result() == attach(future.run.folder)[0].result()
    assert {name} == {path.name for path in tmp_path.iterdir()}
    assert {"cwd", "runs"} == {path.name for path in (tmp_path / name).iterdir()}
    assert [] == list(Path.cwd().iterdir())


@elsewhere
def test_backslash(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory may have a backslash; on Slurm a run folder's path may not, as the logs would be lost."""
    folder = tmp_path / "back\\slash \\n"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with Executor(tmp_path / "runs", cluster=backend) as executor:
        assert str(folder) == executor.submit(lambda: str(Path.cwd())).result(timeout=90)

    with Executor(folder / "runs", cluster=backend) as executor:
        if backend == "slurm":
            with pytest.raises(OptionError, match="backslash"):
                executor.submit(int)
            assert [] == list(executor.folder.iterdir())
        else:
            assert 0 == executor.submit(int).result()


def test_names_of_runs(make_executor: ExecutorFactory) -> None:
    """A run may have any name; its readable characters are part of the folder's name."""
    array = make_executor(name="it's Größe/%j\n#SBATCH; 日本").map_array(int, [1])

    assert [1] == array.results()
    assert "-it-s-Groe-j-SBATCH-" in array.folder.name


@elsewhere
def test_values(make_executor: ExecutorFactory) -> None:
    """Variables for the tasks arrive unchanged."""
    env = {"A": "two\nlines", "B": 'it\'s "quoted" `and` $(more) $HOME %j \\ ~', "C": "日本", "D": ""}

    assert env == make_executor(env=env).submit(lambda: {name: os.environ[name] for name in env}).result()


@elsewhere
def test_environment_of_the_client(make_executor: ExecutorFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task has the client's variables, and its module search path after its own."""
    monkeypatch.setenv("FROM_THE_CLIENT", "it's $HOME\nhere")
    monkeypatch.syspath_prepend("/no/such/folder")

    def look() -> tuple[str | None, bool]:
        import sys

        return os.environ.get("FROM_THE_CLIENT"), "/no/such/folder" in sys.path

    assert ("it's $HOME\nhere", True) == make_executor().submit(look).result()
