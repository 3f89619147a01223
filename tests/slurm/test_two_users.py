"""What another user may do who can rename or write to the folders around a run: nothing of the user's is his.

Two ordinary users share a project folder in which both may rename everything. One of them runs slurmlaunch there, the
other one attacks. He reads nothing, runs nothing and changes no file, and the first one gets a result that is right, or
an error. That he can make runs fail is no promise of slurmlaunch's.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import textwrap
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.conftest import started_cluster
from tests.support.cluster import ClusterSpec
from tests.support.images import make_image
from tests.support.tasks import OneRun
from tests.support.users import Machine, two_users
from tests.support.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.cluster import Cluster
    from tests.support.users import User

PRIVATE = "a word that only one of them knows"


@contextmanager
def users_with_files() -> Iterator[Machine]:
    """Make two users, and files of the first one that the second one may not even see."""
    with two_users() as machine:
        project = machine.victim.home / "project"
        for name in ("logs", "ended"):
            (project / name).mkdir(parents=True)
        for path in (machine.victim.home / "diary", machine.victim.home / ".bashrc"):
            path.write_text("# mine\n")
            path.chmod(0o600)
        machine.victim.owns(*machine.victim.home.rglob("*"))
        yield machine


@pytest.fixture
def machine() -> Iterator[Machine]:
    """Make two users with files."""
    with users_with_files() as machine:
        yield machine


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    """Start a Slurm that every user of this machine may use."""
    with started_cluster(ClusterSpec(nodes=1, accounting=False, users=True)) as cluster:
        yield cluster


SWAPPED = """
    import os, sys
    from slurmlaunch import Executor

    class Argument:
        def __reduce__(self):  # when the run folder has been made, and nothing is in it yet
            (run,) = (name for name in os.listdir("slurmlaunch-runs") if not name.startswith("."))
            print(run, flush=True)
            input()
            return str, (sys.argv[1],)

    try:
        print("result", Executor(cluster="local").submit(str.upper, Argument()).result(60))
    except Exception as error:
        print("error", type(error).__name__, error)
"""

SWAP = """
    import os, sys
    run, diary = sys.argv[1:]
    os.umask(0)
    os.rename("slurmlaunch-runs", "aside")
    for folder in ("rounds", "outcomes", "ended", "cancelled", "logs"):
        os.makedirs(f"slurmlaunch-runs/{run}/{folder}")
    for name in ("function", "manifest.json", "environment"):
        open(f"slurmlaunch-runs/{run}/{name}.new", "w").close()
    for name in ("items", "items.index"):
        os.symlink(diary, f"slurmlaunch-runs/{run}/{name}.new")
"""

READ = """
    import os, sys
    for folder, _, names in os.walk("."):
        for name in names:
            try:
                if sys.argv[1].encode() in open(f"{folder}/{name}", "rb").read():
                    print(folder, name)
            except OSError:
                pass
"""


def test_a_swap_at_the_creation_of_a_run_folder(machine: Machine) -> None:
    """If another folder is put in the place of a run folder as it is written, nothing goes there."""
    victim, rival, shared = machine
    before = victim.belongings()
    client = victim.start(SWAPPED, PRIVATE, cwd=shared)
    assert client.stdout is not None
    run = client.stdout.readline().strip()
    rival.does(SWAP, run, victim.home / "diary", cwd=shared)

    said, _ = client.communicate("\n", timeout=PATIENCE)

    assert rival.does(READ, PRIVATE, cwd=shared) == ""
    assert before == victim.belongings()
    assert said.startswith(("error", f"result {PRIVATE.upper()}\n"))


HELD = """
    import subprocess, sys, time
    from slurmlaunch import Executor

    executor = Executor(cluster="slurm", hold=True)
    futures = [executor.submit(str.upper, sys.argv[1]) for _ in range(2)]
    print(*(future.run.folder.name for future in futures), flush=True)
    input()
    jobs = ",".join(future.run.job_ids[0] for future in futures)
    subprocess.run(["scontrol", "release", jobs], check=True)
    for future in futures:
        try:
            print("result", future.result(60))
        except Exception as error:
            print("error", type(error).__name__)
    while subprocess.run(["squeue", "--noheader", "--jobs", jobs], capture_output=True, check=True).stdout:
        time.sleep(0.05)
"""

LINK = """
    import os, sys
    home, first, second = sys.argv[1:]
    os.rename("slurmlaunch-runs", "aside")
    os.makedirs(f"slurmlaunch-runs/{first}/logs")
    for stream in ("out", "err"):
        os.symlink(f"{home}/.bashrc", f"slurmlaunch-runs/{first}/logs/0-0-0.{stream}")
    os.symlink(f"{home}/project", f"slurmlaunch-runs/{second}")
"""


@pytest.mark.slurm
def test_a_link_in_the_place_of_a_log(machine: Machine, slurm: Cluster) -> None:
    """Slurm and the batch script follow no link to a file of the user's, or to a folder, as another user may put it."""
    victim, rival, shared = machine
    before = victim.belongings()
    client = victim.start(HELD, PRIVATE, cwd=shared, **slurm.env)
    assert client.stdout is not None
    runs = client.stdout.readline().split()
    rival.does(LINK, victim.home, *runs, cwd=shared)

    said, complaint = client.communicate("\n", timeout=PATIENCE)

    assert before == victim.belongings()
    assert ["error", "error"] == [line.split()[0] for line in said.splitlines()], complaint


MOVE = """
    import os, sys
    os.rename("slurmlaunch-runs", "aside")
    os.rename("unpacked", "slurmlaunch-runs")
"""


@pytest.mark.slurm
def test_another_run_of_the_users_in_its_place(machine: Machine, slurm: Cluster) -> None:
    """A node runs nothing from another run folder, even if the user owns it, as after unpacking somebody's archive."""
    victim, rival, shared = machine
    client = victim.start(HELD, PRIVATE, cwd=shared, **slurm.env)
    assert client.stdout is not None
    witness, unpacked = victim.home / "witness", shared / "unpacked"
    unpacked.mkdir()
    for run in client.stdout.readline().split():
        OneRun(unpacked / run, witness.touch, [()])
    victim.owns(unpacked, *unpacked.rglob("*"))
    before = {path: path.stat().st_mtime_ns for path in unpacked.rglob("*")}
    rival.does(MOVE, cwd=shared)

    said, complaint = client.communicate("\n", timeout=PATIENCE)

    assert not witness.exists()
    assert before == {
        shared / "unpacked" / path.relative_to(shared / "slurmlaunch-runs"): path.stat().st_mtime_ns
        for path in (shared / "slurmlaunch-runs").rglob("*")
    }
    assert ["error", "error"] == [line.split()[0] for line in said.splitlines()], complaint


ARRAY = """
    import sys
    from slurmlaunch import Executor

    def answer(item):
        import time
        time.sleep(0.02)
        return item * item

    executor = Executor(cluster="slurm", hold=True)
    array = executor.map_array(answer, range(24), tasks=12)
    print(array.folder.name, array.job_ids[0], flush=True)
    input()
    found = array.results(return_exceptions=True)
    print(all(value == item * item or isinstance(value, Exception) for item, value in enumerate(found)))
"""

EXCHANGE = """
    import ctypes, os, sys, time
    run, archive = sys.argv[1:]
    os.umask(0)
    for number in (0, 1):
        os.mkdir(f"bait{number}")
    os.symlink(archive, f"bait0/{run}")
    for name in ("rounds", "outcomes", "ended", "cancelled", "logs"):
        os.makedirs(f"bait1/{run}/{name}")
    for element in range(12):
        os.symlink(os.path.dirname(archive) + "/.bashrc", f"bait1/{run}/logs/0-0-{element}.out")
    def exchange(bait):
        if ctypes.CDLL(None).renameat2(-100, b"slurmlaunch-runs", -100, bait, 2) != 0:
            os.rename("slurmlaunch-runs", "spare")  # a file system without an exchange in one step
            os.rename(bait, "slurmlaunch-runs")
            os.rename("spare", bait)
    number = 0
    while number < 200 or not os.path.exists("stop"):
        bait = b"bait%d" % (number // 2 % 2)  # back with the second exchange
        exchange(bait)
        number += 1
        if number == 4:
            print("begun", flush=True)
        time.sleep(0.003)
"""


def _exchanges(machine: Machine, slurm: Cluster) -> None:
    """Let the rival exchange the folder of runs 200 times, or more, while an array of the victim's runs."""
    victim, rival, shared = machine
    witness = shared / "witness"
    archive = OneRun(victim.home / "archive", witness.touch, [()], tasks=1).folder.path
    victim.owns(archive, *archive.rglob("*"))
    before = victim.belongings()
    client = victim.start(ARRAY, cwd=shared, **slurm.env)
    assert client.stdout is not None
    run, job = client.stdout.readline().split()
    attack = rival.start(EXCHANGE, run, archive, cwd=shared)
    assert attack.stdout is not None
    assert attack.stdout.readline() == "begun\n"
    slurm.run("scontrol", "release", job)

    said, complaint = client.communicate("\n", timeout=PATIENCE)
    (shared / "stop").touch()

    attack.communicate(timeout=PATIENCE)
    assert attack.returncode == 0
    assert not witness.exists()
    assert before == victim.belongings()
    assert said == "True\n", complaint


@pytest.mark.slurm
def test_an_exchange_of_folders_during_an_array(machine: Machine, slurm: Cluster) -> None:
    """While folders are exchanged, tasks run only what was submitted, and write only into their run folder."""
    _exchanges(machine, slurm)


@pytest.mark.slurm
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_exchanges_of_folders(slurm: Cluster) -> None:
    """The same in fifty runs."""
    for _ in range(50):
        with users_with_files() as machine:
            _exchanges(machine, slurm)


HARMLESS = """\
with open({witness!r}, "a") as _witness:
    _witness.write("imported\\n")
import sysconfig as _sysconfig
exec(open(_sysconfig.get_path("stdlib") + "/token.py").read())
"""


def put_module(folder: Path, rival: User) -> Path:
    """Let the rival put a module into a folder; return the file that tells of its imports."""
    witness = folder / "witness"
    (folder / "token.py").write_text(HARMLESS.format(witness=str(witness)))
    rival.owns(folder / "token.py")
    return witness


INNOCENT = """
    import sys
    from slurmlaunch import Executor

    def where(_):
        import multiprocessing, token, tokenize
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            there = pool.apply(eval, ("__import__('token').__file__",))
        return {token.__file__, there}

    executor = Executor(cluster=sys.argv[1], code=sys.argv[2])
    array = executor.options(cpus_per_task=2, processes=2).map_array(where, range(2))
    ranks = executor.options(ntasks=2).submit(where, 0)
    found = set().union(*array.results(), ranks.result())
    import token
    print(found == {token.__file__})
"""


@pytest.mark.parametrize("backend", ["local", pytest.param("slurm", marks=pytest.mark.slurm)])
def test_a_module_in_the_clients_folder(backend: str, request: pytest.FixtureRequest) -> None:
    """A module that another user puts into the folder of the client, however harmless it looks, is not imported."""
    env = request.getfixturevalue("slurm").env if backend == "slurm" else {}
    with two_users() as (victim, rival, shared):
        witness = put_module(shared, rival)
        clients = [victim.start(INNOCENT, backend, code, cwd=shared, **env) for code in ("submitted", "live")]
        words = ["-P", "-m", "slurmlaunch", "map", "--cluster", backend, "--quiet", "echo", "a", "b"]
        clients.append(victim.run(victim.python, *words, cwd=shared, **env))

        said = [client.communicate(timeout=PATIENCE) for client in clients]

        assert ["True\n", "True\n", "a\nb\n"] == [out for out, _ in said], said
        assert not witness.exists()


REPOSITORY = """
    import os, subprocess, sys
    git = lambda *words: subprocess.run(["git", *words], check=True, capture_output=True)
    git("init")
    git("config", "filter.theirs.clean", f"touch {sys.argv[1]}; cat")
    open(".gitattributes", "w").write("bait filter=theirs")
    open("bait", "w").close()
    git("add", ".")
    git("-c", "user.name=R", "-c", "user.email=r", "commit", "-m", "bait")
    os.utime("bait", (0, 0))  # git has to look at it
    os.remove(sys.argv[1])
"""

VERSIONS = """
    import sys
    sys.path.insert(0, sys.argv[1])
    import own
    from slurmlaunch import Executor

    array = Executor(cluster="inline").map_array(own.double, [1])
    print(array.results(), array.code.commits)
"""


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_repository_of_another_user() -> None:
    """No program runs that a repository names in which another user has put the user's modules."""
    with two_users() as (victim, rival, shared):
        own = shared / "own"
        own.mkdir()
        (own / "own.py").write_text("def double(x):\n    return 2 * x\n")
        (victim.home / ".gitconfig").write_text("[safe]\n\tdirectory = *\n")
        victim.owns(own, own / "own.py", victim.home / ".gitconfig")
        rival.owns(shared)
        rival.does(REPOSITORY, shared / "witness", cwd=shared)
        assert victim.does(VERSIONS, own, cwd=victim.home) == "[2] {}\n"
        assert not (shared / "witness").exists()


CONTAINED = """
    import sys
    from slurmlaunch import Container, Executor

    def where(_):
        import os, token
        return token.__file__.startswith(os.getcwd())

    image, *binds = sys.argv[1:]
    executor = Executor(cluster="local", container=Container(image, runtime="charliecloud", binds=binds))
    array = executor.map_array(where, range(2))
    print(array.results())
"""


@pytest.mark.long
@pytest.mark.skipif(shutil.which("ch-run") is None, reason="needs charliecloud")
def test_a_module_in_the_clients_folder_in_a_container() -> None:
    """Nor is it in a container, whose Python starts in that folder."""
    with two_users() as (victim, rival, shared):
        witness = put_module(shared, rival)
        image, binds = make_image(shared.parent, python=victim.python)
        victim.owns(image, *image.rglob("*"))  # ch-run needs a place to bind folders at
        client = victim.start(
            CONTAINED, image, *binds, cwd=shared, TMPDIR=tempfile.gettempdir()
        )  # which ch-run shows inside

        said = client.communicate(timeout=PATIENCE)

        assert (said[0], witness.exists()) == ("[False, False]\n", False), said


_CALLS = (
    "trace=?open,openat,?creat,mkdirat,?mkdir,?rename,renameat,renameat2,linkat,?link,unlinkat,?unlink,symlinkat,?chmod"
)

TRACED = """
    import sys
    from slurmlaunch import Executor

    executor = Executor(cluster=sys.argv[1], retries=1)
    array = executor.map_array(bytes, [1, 2_000_000, 3, 4], schedule="dynamic", tasks=2)
    print(array.folder, [len(each) for each in array.results()], executor.options(ntasks=2).submit(abs, -1).result())
"""


@pytest.mark.long
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("backend", ["local", pytest.param("slurm", marks=pytest.mark.slurm)])
def test_every_open_is_relative(backend: str, request: pytest.FixtureRequest) -> None:
    """Client, batch script and node open nothing below the run folder by its path, and neither does Slurm."""
    with two_users() as (victim, _, shared):
        cluster = request.getfixturevalue("slurm") if backend == "slurm" else None
        trace = ("strace", "-f", "-qq", "--seccomp-bpf", "-e", _CALLS, "-o")
        daemon = None
        if cluster is not None:
            traced = [*trace[:3], *trace[4:], str(shared / "daemon"), "-p", str(cluster.pid("slurmd-n1"))]
            daemon = subprocess.Popen(traced)
        script = victim.home / "script.py"
        script.write_text(textwrap.dedent(TRACED))
        victim.owns(script)
        command = (*trace, shared / "client", victim.python, script, backend)
        client = victim.run(*command, cwd=shared, **(cluster.env if cluster else {}))

        said, complaint = client.communicate(timeout=PATIENCE)
        if daemon is not None:
            daemon.terminate()
            daemon.wait(PATIENCE)

        assert said.split(maxsplit=1)[1:] == ["[1, 2000000, 3, 4] 1\n"], complaint
        runs = re.escape(str(shared / "slurmlaunch-runs"))
        calls = "".join(
            path.read_text() for path in (shared / "client", shared / "daemon") if path.exists()
        ).splitlines()
        assert any(re.search(rf'"{runs}/[^/"]+"', line) for line in calls)  # the run folder itself
        assert [line for line in calls if re.search(rf'"{runs}/[^/"]+/', line)] == []
