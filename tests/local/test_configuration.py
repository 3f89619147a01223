"""Configuration files: which are read, which value wins, and what is refused."""

from __future__ import annotations

import json
import os
import re
import textwrap
from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch import Container, Executor
from slurmlaunch.cli.main import main
from slurmlaunch.client import configuration
from slurmlaunch.client.configuration import settings_for
from slurmlaunch.errors import OptionError, SchedulerError, UnknownOption

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from slurmlaunch.client.options import Options

Write = Any
"""A function that writes one of the three files; it returns its path."""

GPU = """
    [defaults]
    account = "project_42"
    time = 60

    [profiles.gpu]
    partition = "gpu"
    time = "02:00:00"
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Return a function that writes the site's, the user's, or the variable's file; there are no others."""
    paths = {name: tmp_path / name / "slurmlaunch" / "config.toml" for name in ("site", "user", "variable")}
    monkeypatch.setattr(configuration, "SITE", paths["site"])
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    for name in ("SLURMLAUNCH_CONFIG", "SLURMLAUNCH_FOLDER", "SLURMLAUNCH_CLUSTER", "SLURM_CLUSTERS"):
        monkeypatch.delenv(name, raising=False)

    def write(text: str, file: str = "user") -> Path:
        paths[file].parent.mkdir(parents=True)
        paths[file].write_text(textwrap.dedent(text).lstrip(), encoding="utf-8")
        if file == "variable":
            monkeypatch.setenv("SLURMLAUNCH_CONFIG", str(paths[file]))
        return paths[file]

    return write


def options_of(executor: Executor) -> Options:
    """Return the options of an executor."""
    options: Options = vars(executor)["_options"]
    return options


def slurm(executor: Executor) -> dict[str, Any]:
    """Return sbatch's options of an executor."""
    return dict(options_of(executor).slurm)


# Precedence.


@pytest.mark.usefixtures("write")
def test_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without files nothing is set; a file in the working directory does not count, a relative path in XDG neither."""
    (tmp_path / "slurmlaunch").mkdir()
    for path in (tmp_path / "config.toml", tmp_path / "slurmlaunch" / "config.toml"):
        path.write_text('[defaults]\naccount = "evil"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", ".")

    assert slurm(Executor(cluster="local")) == {}


def test_defaults_and_profile(write: Write) -> None:
    """The call wins over the profile, and the profile over the defaults."""
    write(GPU)

    assert slurm(Executor(cluster="local")) == {"account": "project_42", "time": "60"}
    chosen = slurm(Executor(cluster="local", profile="gpu"))
    assert chosen == {"account": "project_42", "partition": "gpu", "time": "02:00:00"}
    assert slurm(Executor(cluster="local", profile="gpu", time=5, account=False)) == {"partition": "gpu", "time": "5"}


def test_files_in_order(write: Write) -> None:
    """Of one table the variable's file wins, then the user's; but a profile of any file wins over defaults."""
    write('[defaults]\nqos = "s"\naccount = "s"\npartition = "s"\n[profiles.p]\ncomment = "s"\n', "site")
    write('[defaults]\naccount = "u"\npartition = "u"\ncomment = "u"\n')
    write('[defaults]\npartition = "v"\n', "variable")

    assert slurm(Executor(cluster="local", profile="p")) == {
        "qos": "s", "account": "u", "partition": "v", "comment": "s",
    }  # fmt: skip


def test_folder_and_cluster(write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The call's wins, then the profile's, then the variable's, then the defaults'; a folder may have variables."""
    monkeypatch.setenv("PLACE", str(tmp_path))
    write('[defaults]\nfolder = "$PLACE/d"\ncluster = "inline"\n[profiles.p]\nfolder = "$PLACE/p"\n')
    default = Executor()
    assert (default.folder, default.cluster) == (tmp_path / "d", "inline")

    monkeypatch.setenv("SLURMLAUNCH_FOLDER", str(tmp_path / "v"))
    monkeypatch.setenv("SLURMLAUNCH_CLUSTER", "local")
    assert (Executor().folder, Executor().cluster) == (tmp_path / "v", "local")
    assert Executor(profile="p").folder == tmp_path / "p"
    assert Executor(tmp_path / "c", profile="p").folder == tmp_path / "c"


def test_none_restores_the_configured_default(write: Write) -> None:
    """None is the default of the files, False and an empty list leave an option out, also in a later change."""
    write(GPU)

    assert slurm(Executor(cluster="local", time=None)) == {"account": "project_42", "time": "60"}
    executor = Executor(cluster="local", time=5)
    assert slurm(executor.options(time=None))["time"] == "60"
    assert "account" not in slurm(executor.options(account=[]))
    assert slurm(executor.options(profile="gpu"))["time"] == "02:00:00"
    assert slurm(executor.options(profile="gpu", time=7).options(time=None))["time"] == "02:00:00"


def test_options_that_exclude_each_other(write: Write) -> None:
    """Of mem and mem_per_cpu, which sbatch does not take together, the one that counts more drops the other."""
    write('[defaults]\nmem_per_cpu = "2G"\n[profiles.big]\nmem = "100G"\n')

    executor = Executor(cluster="local")
    assert slurm(executor) == {"mem_per_cpu": "2G"}
    assert slurm(Executor(cluster="local", profile="big")) == {"mem": "100G"}
    assert slurm(Executor(cluster="local", mem="1G")) == {"mem": "1G"}
    assert slurm(executor.options(mem="1G")) == {"mem": "1G"}


def test_a_profile_for_an_executor_that_has_another_cluster(write: Write) -> None:
    """`options` changes neither folder nor cluster, so a profile that does is refused there."""
    write('[profiles.here]\ncluster = "inline"\ntime = 5\n')

    assert slurm(Executor(cluster="inline").options(profile="here")) == {"time": "5"}
    with pytest.raises(OptionError, match="only a new executor"):
        Executor(cluster="local").options(profile="here")


def test_values(write: Write) -> None:
    """A profile holds what an executor takes, with TOML's times and tables."""
    write("""
        [defaults]
        time = 01:30:00
        mail_type = ["END", "FAIL"]
        requeue = true
        setup = ["module purge", '''
        export A=1
        export B=2''']
        env = {OMP_PROC_BIND = "true"}
        retries = 2

        [defaults.container]
        image = "/images/python.sif"
        binds = ["/scratch"]
    """)
    options = options_of(Executor(cluster="local"))

    assert options.slurm == {"time": "01:30:00", "mail_type": "END,FAIL", "requeue": True}
    assert options.setup == ("module purge", "export A=1", "export B=2")
    assert (options.env, options.retries) == ({"OMP_PROC_BIND": "true"}, 2)
    assert options.container == Container("/images/python.sif", ["/scratch"])


@pytest.mark.slurm
def test_clusters_by_name(write: Write, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table counts on the Slurm cluster of its name: more than defaults, less than a profile."""
    write(f"""
        [defaults]
        account = "d"
        time = 1
        [clusters.{cluster.name}]
        account = "c"
        qos = "c"
        [clusters.elsewhere]
        comment = "never"
        [profiles.p]
        qos = "p"
    """)

    assert slurm(Executor(cluster="slurm", profile="p")) == {"account": "c", "time": "1", "qos": "p"}
    assert slurm(Executor(cluster="local")) == {"account": "d", "time": "1"}
    monkeypatch.setenv("SLURM_CONF", "/nonexistent")
    with pytest.raises(SchedulerError, match="values for a cluster"):
        Executor(cluster="slurm")


# What is refused.


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('[defaults]\naccount = "a"\npartitoin = "small"\n', 3, "did you mean partition"),
        ('[profiles.a]\n\ntime = "soon"\n', 3, "'soon' is no time"),
        ('[profiles.a]\nsetup = """\n[profiles.b]\n"""\n[profiles.b]\nthrottle = 0\n', 6, "at least 1"),
        ('[defaults]\noutput = "x"\n', 2, "logs are in the run folder"),
        ("[default]\ntime = 5\n", 1, "no table of a configuration"),
        ("defaults = 5\n", 1, "must be a table"),
        ("[profiles]\ngpu = 5\n", 2, "must be a table"),
        ("[defaults]\ncontainer = {binds = []}\n", 2, "container"),
        ("[defaults]\ncluster = 'lumi'\n", 2, "clusters='lumi'"),
        ("[clusters.lumi]\ncluster = 'slurm'\n", 2, "chooses the cluster"),
        ("[defaults]\nfolder = '/scratch/$NO_SUCH_VARIABLE'\n", 2, "not set"),
        ("[defaults]\nfolder = 5\n", 2, "no path"),
        ("[defaults]\nprofile = 'gpu'\n", 2, "names a profile"),
        ("[defaults]\ntime = 5\ntime =\n", 3, "no TOML"),
    ],
)  # fmt: skip
def test_wrong_files(write: Write, text: str, line: int, words: str) -> None:
    """An unknown name or a bad value is an error with file and line, whether it is used or not."""
    path = write(text)

    with pytest.raises((OptionError, UnknownOption), match=re.escape(words)) as caught:
        Executor(cluster="local")

    assert str(caught.value).startswith(str(path))
    assert f"line {line}" in str(caught.value)


def test_values_that_do_not_fit_together(write: Write) -> None:
    """The error of a call names the file of the value that it does not show."""
    path = write("[defaults]\ncpus_per_task = 2\n")

    with pytest.raises(OptionError, match=re.escape(f"cpus_per_task is set in {path}, line 2")):
        Executor(cluster="local", threads=8)


def test_unknown_profiles(write: Write) -> None:
    """The error names those that there are, and how to give sbatch's option of that name."""
    write(GPU)

    with pytest.raises(OptionError, match="'cpu' is no profile: the profiles are gpu"):
        Executor(cluster="local", profile="cpu")
    with pytest.raises(OptionError, match="--profile="):
        Executor(cluster="local").options(profile="task")
    assert Executor(cluster="local", sbatch=["--profile=task"])


@pytest.mark.parametrize("file", ["site", "user", "variable"])
def test_files_of_others(write: Write, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that others may write to, or that neither root nor the user owns, is refused by its name."""
    path = write(GPU, file)
    for mode in (0o620, 0o602):
        path.chmod(mode)
        with pytest.raises(OptionError, match=f"{path}: others may write"):
            settings_for()
    path.chmod(0o600)
    assert settings_for()
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:  # the file is another user's as soon as this process is
        monkeypatch.setattr("os.geteuid", lambda: 12345)
    with pytest.raises(OptionError, match=f"{path}: it belongs to user"):
        settings_for()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda _path: None, "names it: No such file"),
        (lambda path: path.mkdir(), "cannot be read: Is a directory"),
        (os.mkfifo, "it is no file"),
        (lambda path: path.write_bytes(b"\xff"), "cannot be read"),
    ],
)
def test_what_the_variable_names(
    write: Write, make: Callable[[Path], object], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable must name a file, from the root: nothing depends on the working directory."""
    write(GPU)
    make(tmp_path / "named")
    monkeypatch.setenv("SLURMLAUNCH_CONFIG", str(tmp_path / "named"))
    with pytest.raises(OptionError, match=words):
        settings_for()

    monkeypatch.setenv("SLURMLAUNCH_CONFIG", "named.toml")
    with pytest.raises(OptionError, match="a path from the root"):
        settings_for()


# The command.


def test_config(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    """`slurmlaunch config` shows each value with its file, line and table, and no secret."""
    site = write('[defaults]\nenv = {A = "1", API_TOKEN = "hush"}\n', "site")
    user = write(GPU)

    assert main(["config", "--profile", "gpu", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [(each["path"], each["read"]) for each in shown["files"]] == [(str(site), True), (str(user), True)]
    assert shown["profiles"] == ["gpu"]
    assert shown["settings"]["time"] == {
        "value": "02:00:00", "source": str(user), "line": 7, "table": "profiles.gpu",
    }  # fmt: skip
    assert shown["settings"]["env"]["value"] == {"A": "1", "API_TOKEN": "(secret)"}
    assert shown["settings"]["folder"]["source"] == "default"

    assert main(["config"]) == 0
    assert re.search(rf"^time +60 +{user}, line 3, \[defaults\]$", capsys.readouterr().out, re.MULTILINE)
    assert main(["config", "--profile", "cpu"]) == 2
    assert "'cpu' is no profile" in capsys.readouterr().err


def test_map_takes_a_profile(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    """`slurmlaunch map --profile` uses it; flags win."""
    write(GPU)

    assert main(["map", "--profile", "gpu", "--time=5", "--cluster=slurm", "--dry-run", "echo", "a"]) == 0
    script = capsys.readouterr().out
    assert "#SBATCH --partition=gpu" in script
    assert "#SBATCH --time=5" in script
