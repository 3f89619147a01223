"""Tasks in containers: with charliecloud for real, and the command lines of the other runtimes word by word."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import slurmlaunch
from slurmlaunch import Container, Executor, NodeStartError, OptionError, SubmissionError, TaskCancelled
from slurmlaunch.backends.base import ArrayJob
from slurmlaunch.backends.container import asks_for_gpus, folders_inside, own_folders
from slurmlaunch.cli.main import main
from slurmlaunch.client.options import Options
from slurmlaunch.runfolder.layout import RUN_VARIABLE, Status
from tests.conftest import elsewhere
from tests.support import scripts
from tests.support.images import NAME, make_image
from tests.support.waiting import PATIENCE, is_alive, wait_until

if TYPE_CHECKING:
    from tests.conftest import ExecutorFactory
    from tests.support.cluster import Cluster
    from tests.support.waiting import Gate

GOLDEN = Path(__file__).parents[1] / "data/containers"

# The command lines.


def job(container: Container, **changes: Any) -> ArrayJob:
    """Return an array of one task in a container."""
    folders = (Path("/project/me/runs/1"), Path("/home/me/code"), Path("/scratch/me/modules"))
    return ArrayJob(
        folders[0], "law", cwd=folders[1], python=("python3",), container=container, folders=folders, **changes
    )


@pytest.mark.parametrize("runtime", ["apptainer", "singularity", "podman", "charliecloud", None])
def test_command_line(runtime: str | None) -> None:
    """Each runtime binds the node's and the user's folders, changes folder, shows the GPUs, and starts the node.

    A folder that the user binds at its own path is not bound twice.
    """
    image = "docker.io/library/python:3.11" if runtime == "podman" else "/images/python.sif"
    container = Container(image, binds=["/scratch", "/data/sets:/mnt"], runtime=runtime, flags=["--verbose"])

    command = job(container, options={"gpus_per_task": "1"}).command("7")

    golden = GOLDEN / f"container-{runtime or 'found'}.txt"
    assert golden.read_text(encoding="utf-8").splitlines() == list(command)


def test_script_has_the_command_line(tmp_path: Path) -> None:
    """The batch script has the same command line, and unsets the variables of the client's Python."""
    container = Container("docker://python:3.11", runtime="apptainer")

    script = Executor(tmp_path / "runs", cluster="slurm", container=container).script(len, ["a"])

    assert "unset PYTHONPATH PYTHONHOME\n" in script
    assert "exec apptainer exec --bind=" in script
    assert f"docker://python:3.11 python3 -P -m slurmlaunch.node {tmp_path}/runs/" in script


def test_read_only_binds() -> None:
    """A bind can be read-only if the runtime supports it."""
    container = Container("image.sif", binds=[("/data:/mnt:ro")])
    assert "--bind=/data:/mnt:ro" in job(container).command("0")
    with pytest.raises(OptionError, match="only read"):
        Container("image", binds=["/data:/mnt:ro"], runtime="charliecloud")


@pytest.mark.parametrize("flag", ["--nv", "--rocm"])
def test_another_vendors_gpus(flag: str) -> None:
    """If the user's options give a GPU flag, no other is added."""
    command = job(Container("image.sif", flags=[flag]), options={"gpus": "1"}).command("0")
    assert [word for word in command if word in {"--nv", "--rocm"}] == [flag]


@pytest.mark.parametrize(
    ("options", "flags", "expected"),
    [
        ({}, (), False),
        ({"gpus": "1"}, (), True),
        ({"gpus_per_node": "2"}, (), True),
        ({"gres": "gpu:1"}, (), True),
        ({"gres": "nvme:1"}, (), False),
        ({"tres_per_task": "cpu:1,gres/gpu:1"}, (), True),
        ({}, ("--gpus-per-task=1",), True),
        ({}, ("--gres=gpu:1",), True),
        ({}, ("-G1",), True),
        ({}, ("--nice", "-xgpu1"), False),
    ],
)
def test_tasks_with_gpus(options: dict[str, str | bool], flags: tuple[str, ...], *, expected: bool) -> None:
    """A task that requests GPUs from Slurm, by any option, sees them in its container."""
    assert asks_for_gpus(options, flags) == expected


CLEAN = """\
#!{python} -P
# An apptainer that hands on no variables but those that are meant for the inside, as with its --cleanenv.
import os, sys
mark = "APPTAINERENV_"
kept = {{name[len(mark):]: value for name, value in os.environ.items() if name.startswith(mark)}}
command = sys.argv[sys.argv.index("--cleanenv") + 2:]
os.execve(command[0], command, {{"PATH": os.environ["PATH"], "PYTHONPATH": {path!r}, **kept}})
"""


def test_the_identity_reaches_a_clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node in a container that gets none of the host's variables still knows its run."""
    program = tmp_path / "apptainer"
    program.write_text(CLEAN.format(python=sys.executable, path=":".join(filter(None, sys.path))), encoding="utf-8")
    program.chmod(0o700)
    (tmp_path / "image.sif").touch()
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    container = Container(tmp_path / "image.sif", flags=["--cleanenv"])
    with Executor(tmp_path / "runs", cluster="local", container=container, python=[sys.executable]) as executor:
        future = executor.submit(lambda: os.environ.get(RUN_VARIABLE))
        content = (future.run.folder / "manifest.json").read_bytes()
        assert future.result(PATIENCE) == f"{hashlib.sha256(content).hexdigest()}-{json.loads(content)['secret']}"


def test_neither_is_there(tmp_path: Path) -> None:
    """A node that has none of the programs says so, and names the remedy."""
    command = job(Container("docker://python")).command("0")

    done = subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)

    assert done.returncode == Status.NODE
    assert "none of apptainer singularity is on the PATH" in done.stderr
    assert "modules=[...]" in done.stderr


def test_the_first_that_is_there(tmp_path: Path) -> None:
    """Of the two programs that read the same images the node's own is used, and it becomes the node's command."""
    program = tmp_path / "singularity"
    program.write_text('#!/bin/sh\necho singularity $$ "$@"\n', encoding="utf-8")
    program.chmod(0o700)
    with subprocess.Popen(
        job(Container("docker://python")).command("0"), env={"PATH": str(tmp_path)}, stdout=subprocess.PIPE, text=True
    ) as process:
        said, _ = process.communicate()

    assert said.startswith(f"singularity {process.pid} exec --bind=")
    assert said.endswith("docker://python python3 -P -m slurmlaunch.node /project/me/runs/1 0\n")


# Bound folders.


def test_own_folders() -> None:
    """Of the search path the user's own folders are bound, and nothing that belongs to the host's Python."""
    path = [
        "/home/me/code", "/opt/py/lib/python311.zip", "/opt/py/lib/python3.11", "/opt/py/lib/python3.11/lib-dynload",
        "/opt/py/lib/python3.14t", "/opt/py/lib/python314t.zip",
        "/home/me/.venv/lib/python3.11/site-packages", "/usr/lib/python3/dist-packages", "/home/me/lib/python",
    ]  # fmt: skip
    assert own_folders(path) == ["/home/me/code", "/home/me/lib/python"]


def test_folders_inside(tmp_path: Path) -> None:
    """A folder inside another is bound with it; a missing one is not bound; the root never is."""
    code, runs = tmp_path / "code", tmp_path / "runs"
    (code / "modules").mkdir(parents=True)
    found = folders_inside(runs / "1", code, [str(code / "modules"), str(tmp_path / "absent"), str(tmp_path / "code")])
    assert found == (code, runs / "1")
    assert folders_inside(code / "runs", Path("/"), ["/" + "x" * 300]) == (code / "runs",)  # no file has such a name


@pytest.mark.parametrize("runtime", ["apptainer", "podman"])
def test_a_folder_that_cannot_be_bound(runtime: str) -> None:
    """A name that the runtime would read as something else is refused, before anything is submitted."""
    container = Container("docker://python", runtime=runtime)
    with pytest.raises(OptionError, match="cannot be bound"):
        container.command(["true"], cwd=Path("/"), folders=[Path("/data:1")], gpus=False)


def test_places_in_an_image(tmp_path: Path) -> None:
    """For charliecloud, mount points are made in the image, and nowhere else."""
    (tmp_path / "data").mkdir()
    (tmp_path / "file").touch()
    image = tmp_path / "image"
    image.mkdir()
    (image / "out").symlink_to(tmp_path)
    binds = [f"{tmp_path}/data:/mnt/data", f"{tmp_path}/file:/etc/file"]

    Container(image, binds=binds, runtime="charliecloud").prepare([Path("/project/run")])
    Container(image, binds=binds, runtime="charliecloud", flags=["--write"]).prepare([Path("/project/other")])
    Container(image, binds=binds, runtime="apptainer").prepare([Path("/project/other")])

    made = sorted(str(path.relative_to(image)) for path in image.rglob("*") if not path.is_symlink())
    assert made == ["etc", "etc/file", "mnt", "mnt/data", "project", "project/run"]
    with pytest.raises(OptionError, match="leads out of the image"):
        Container(image, binds=["/data:/out/data"], runtime="charliecloud").prepare([])
    (image / "project/file").touch()
    with pytest.raises(OptionError, match="Make it"):
        Container(image, runtime="charliecloud").prepare([Path("/project/file/run")])


# The user's options.


def test_paths_are_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A path means the file that it meant to the client, wherever the node starts; a reference stays as it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert Container("image.sif", binds=["data:/mnt", "~/x"]) == Container(
        tmp_path / "image.sif", binds=[f"{tmp_path}/data:/mnt", "/home/me/x:/home/me/x"]
    )
    for reference, runtime in [("docker://python", None), ("localhost/python", "podman"), ("python", "charliecloud")]:
        assert Container(reference, runtime=runtime).image == reference
        assert Container(reference, runtime=runtime).path is None


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"image": ""}, "image"),
        ({"image": 3}, "image"),
        ({"image": "a\nb"}, "line break"),
        ({"image": "a.sif", "runtime": "docker"}, "'apptainer', 'singularity', 'podman', 'charliecloud'"),
        ({"image": "a.sif", "binds": ["/a,/b"]}, "list"),
        ({"image": "a.sif", "binds": ["/a:b"]}, "absolute"),
        ({"image": "a.sif", "binds": ["/a:/b:rx"]}, "SOURCE"),
        ({"image": "a.sif", "binds": [":/b"]}, "SOURCE"),
        ({"image": "a.sif", "binds": {"/a": "/b"}}, "list"),
        ({"image": "a.sif", "flags": [1]}, "flags"),
    ],
)
def test_refused(arguments: dict[str, Any], named: str) -> None:
    """A value that cannot be is refused at once."""
    with pytest.raises(OptionError, match=named):
        Container(**arguments)


def test_an_image_that_is_not_there(tmp_path: Path) -> None:
    """An image is checked at submission, if it is a path; a missing one leaves nothing behind."""
    executor = Executor(tmp_path / "runs", cluster="local", container=Container(tmp_path / "image.sif"))
    with pytest.raises(OptionError, match=rf"there is no image {tmp_path}/image\.sif"):
        executor.submit(abs, 1)
    assert [] == list((tmp_path / "runs").iterdir())
    with pytest.raises(OptionError, match=r"slurmlaunch\.Container"):
        Executor(tmp_path, cluster="slurm", container=3)
    Executor(tmp_path, cluster="slurm", container="docker://python:3.11")


def test_python_inside() -> None:
    """The default in a container is its python3; a Python named by the user is kept, in whatever order options come."""
    container = Container("docker://python")
    assert Options().changed(container=container).python == ("python3",)
    assert Options().changed(container=container, python="py").python == ("py",)
    assert Options().changed(python="py").changed(container=container).python == ("py",)
    assert Options().changed(container=container, python="py").changed(python=None).python == ("python3",)
    assert Options().changed(container=container).changed(container=None) == Options()


def test_json() -> None:
    """It comes back from a manifest as it was."""
    options = Options().changed(container=Container("docker://python", binds=["/a"], runtime="podman", flags=["--x"]))
    assert Options.from_json(options.to_json()) == options


def test_no_program_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that is missing on this machine is reported at once."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        Executor(tmp_path / "runs", cluster="local", container="docker://python") as executor,
        pytest.raises(SubmissionError, match=r"'apptainer' or 'singularity'.*runtime="),
    ):
        executor.submit(len, "a")


def test_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """``slurmlaunch map`` takes all of it, and its errors name the flags."""
    monkeypatch.chdir(tmp_path)
    flags = ["--container", "docker://python", "--container-bind", "/data:/mnt", "--container-bind=/scratch"]
    options = ["--cluster=slurm", "--folder=runs", "--container-runtime=apptainer", "--container-flag=--nv"]

    assert main(["map", *flags, *options, "--dry-run", "echo", "a"]) == 0

    script = capsys.readouterr().out
    assert "--bind=/data:/mnt --bind=/scratch:/scratch" in script
    assert "--nv docker://python python3 -P" in script
    for wrong, message in [
        (["--container=a.sif", "--container-runtime=docker"], "error: --container-runtime='docker' is none of"),
        (["--container=a.sif", "--container-bind=/a,/b"], "error: --container-bind '/a,/b' is none of"),
        (["--container-bind=/data"], "need --container IMAGE"),
    ]:
        assert main(["map", *wrong, "echo", "a"]) == 2
        assert message in capsys.readouterr().err


# A real container.


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Container:
    """Return an image that has all that a node needs."""
    return container_of(tmp_path_factory.mktemp("complete"))


def container_of(folder: Path, **options: Any) -> Container:
    """Make an image for charliecloud."""
    if shutil.which("ch-run") is None:
        if os.environ.get("SLURMLAUNCH_REQUIRE_SLURM") == "1":
            pytest.fail("ch-run is missing")
        pytest.skip("needs ch-run. On Debian: apt-get install charliecloud-runtime")
    path, binds = make_image(folder, **options)
    return Container(path, binds=binds, runtime="charliecloud")


@pytest.fixture(autouse=True)
def of_a_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Act as a user with a name, as ch-run requires, in a folder without the host's Python."""
    monkeypatch.setenv("USER", "tester")
    monkeypatch.chdir(tmp_path)


def surroundings(item: int) -> dict[str, Any]:
    """Return an item's view of its surroundings."""
    return {
        "item": item,
        "system": Path("/etc/os-release").read_text(encoding="utf-8"),
        "prefix": sys.prefix,
        "cwd": str(Path.cwd()),
        "data": Path("/mnt/value").read_text(encoding="utf-8"),
        "env": {name: os.environ.get(name) for name in ("MINE", "GIVEN", "OMP_NUM_THREADS", "PYTHONPATH")},
        "python_cpu_count": os.environ.get("PYTHON_CPU_COUNT"),
        "cpus": slurmlaunch.cpu_count(),
        "installed": [name for name in ("filelock", "threadpoolctl", "numpy") if importlib.util.find_spec(name)],
    }


@elsewhere
def test_items_run_inside(
    make_executor: ExecutorFactory, image: Container, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Items find the image, its Python, the user's binds, the caps, and the client's variables and folder."""
    monkeypatch.setenv("MINE", "mine")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/value").write_text("42", encoding="utf-8")
    container = Container(image.image, binds=[*image.binds, "data:/mnt"], runtime=image.runtime)
    executor = make_executor(container=container, cpus_per_task=2, env={"GIVEN": "given"}, by_value=__name__)

    found = executor.map_array(surroundings, range(4), tasks=2).results()

    assert [each.pop("item") for each in found] == [0, 1, 2, 3]
    assert found == [found[0]] * 4
    assert found[0] == {
        "system": f'PRETTY_NAME="{NAME}"\n',
        "prefix": "/usr/local",
        "cwd": str(tmp_path),
        "data": "42",
        "env": {"MINE": "mine", "GIVEN": "given", "OMP_NUM_THREADS": "1", "PYTHONPATH": None},
        "python_cpu_count": "1",
        "cpus": 1,
        "installed": [],  # a node needs none of them
    }


def test_commands_run_inside(image: Container, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The commands of ``slurmlaunch map`` run in the image, and see the folder that is bound."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/value").write_text("42", encoding="utf-8")
    binds = [f"--container-bind={each}" for each in (*image.binds, "data:/mnt", "/usr/bin:/bin")]
    options = ["--cluster=local", "--folder=runs", "--container", image.image, "--container-runtime=charliecloud"]
    inside = ". /etc/os-release; read -r value </mnt/value; echo {} $value $PRETTY_NAME"

    assert main(["map", "--quiet", *options, *binds, inside, "--", "-a", "b"]) == 0

    assert capfd.readouterr().out == f"-a 42 {NAME}\nb 42 {NAME}\n"


def test_debug_inside(image: Container, tmp_path: Path) -> None:
    """``slurmlaunch debug`` runs an item in the image, and without it on this machine, which it says."""
    with Executor(tmp_path / "runs", cluster="local", container=image) as executor:
        array = executor.map_array(lambda _: __import__("sys").prefix, [0])
        assert array.results() == ["/usr/local"]
    command = [sys.executable, "-m", "slurmlaunch", "debug", str(array.folder), "0"]

    inside = subprocess.run(command, capture_output=True, text=True, check=True)
    plan = array.folder / "rounds/0/plan.json"
    plan.write_text(plan.read_text().replace(image.image, "/gone"))
    here = subprocess.run(command, capture_output=True, text=True, check=True)

    assert inside.stdout == "'/usr/local'\n"
    assert here.stdout == f"{sys.prefix!r}\n"
    assert "there is no image /gone here, and the item runs in" in here.stderr


SCRIPT = """
    import sys
    from slurmlaunch import Container, Executor
    from beside import where

    if __name__ == "__main__":
        folder, cluster, image, *binds = sys.argv[1:]
        container = Container(image, binds=binds, runtime="charliecloud")
        with Executor(folder, cluster=cluster, container=container) as executor:
            print(executor.submit(where).result())
"""


@elsewhere
def test_modules_beside_the_script(backend: str, image: Container, tmp_path: Path) -> None:
    """A script that is started from another folder finds its own modules in the container, too."""
    (tmp_path / "code").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "code/beside.py").write_text("import sys\ndef where(): return __file__, sys.prefix\n", encoding="utf-8")

    arguments = (tmp_path / "runs", backend, image.image, *image.binds)
    printed = scripts.run(tmp_path / "code", SCRIPT, *arguments, cwd=tmp_path / "elsewhere")

    assert printed == f"('{tmp_path}/code/beside.py', '/usr/local')\n"


@elsewhere
def test_the_example(backend: str, image: Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example describes the image that it is given."""
    monkeypatch.setenv("SLURMLAUNCH_CLUSTER", backend)
    example = Path(__file__).parents[2] / "examples/container.py"

    printed = subprocess.check_output([sys.executable, example, image.image, "charliecloud", *image.binds], text=True)

    assert printed == f"system: {NAME}\nPython: {platform.python_version()} of /usr/local\n"


@elsewhere
@pytest.mark.parametrize("missing", ["slurmlaunch", "cloudpickle"])
def test_a_package_is_missing_in_the_image(
    make_executor: ExecutorFactory, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image without a required package is reported at once, with the package to install."""
    monkeypatch.setenv("SLURMLAUNCH_LATENCY", "100000")
    container = container_of(tmp_path, without=missing)

    error = make_executor(container=container).submit(len, "a").exception(timeout=60)

    assert isinstance(error, NodeStartError)
    assert f"Install {missing} for the Python in the image {container.image}" in str(error)


@elsewhere
def test_the_container_does_not_start(
    make_executor: ExecutorFactory, image: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime's message is shown, without a wait."""
    monkeypatch.setenv("SLURMLAUNCH_LATENCY", "100000")
    executor = make_executor(container=image, python="no-such-python")

    error = executor.submit(len, "a").exception(timeout=60)

    assert isinstance(error, NodeStartError)
    assert "no-such-python: No such file or directory" in str(error)
    assert f"image {image.image}" in str(error)


class WaitsForAnotherStart:
    """A function that never ends in the first attempt of its task, and returns the number of the next attempt."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def __call__(self) -> int:
        """Wait at the gate, which the test does not open."""
        attempt = slurmlaunch.current_task().attempt
        if not attempt:
            self.gate.enter(0)
        return attempt

    def checkpoint(self) -> types.SimpleNamespace:
        """Run the same call again."""
        return types.SimpleNamespace(function=self, args=(), kwargs={})


@pytest.mark.slurm
@pytest.mark.parametrize("backend", ["slurm"], indirect=True)
def test_a_warning_reaches_the_node(
    make_executor: ExecutorFactory, image: Container, gate: Gate, cluster: Cluster
) -> None:
    """USR1 reaches the node through script and container: the item gives a checkpoint and resumes in a new attempt."""
    future = make_executor(container=image, by_value=__name__).submit(WaitsForAnotherStart(gate))
    gate.await_arrival(0)

    cluster.run("scancel", "--signal=USR1", "--batch", future.run.job_ids[0])

    assert future.result() == 1


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.parametrize("backend", ["slurm"], indirect=True)
def test_the_end_reaches_the_node(
    make_executor: ExecutorFactory, image: Container, cluster: Cluster, tmp_path: Path
) -> None:
    """Cancelling a job ends all processes in its container."""
    note = tmp_path / "pid"

    def wait(note: Path) -> None:
        import time

        note.with_suffix(".new").write_text(str(os.getpid()), encoding="utf-8")
        note.with_suffix(".new").rename(note)
        time.sleep(1000)

    future = make_executor(container=image, by_value=__name__).submit(wait, note)
    wait_until(note.exists)
    cluster.run("scancel", future.run.job_ids[0])

    assert isinstance(future.exception(), TaskCancelled)
    wait_until(lambda: not is_alive(int(note.read_text(encoding="utf-8"))))
