"""Held folders: who exchanges a run folder, or a folder above it, gains nothing, and the user is told."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import slurmlaunch
from slurmlaunch import Executor, SlurmlaunchError
from slurmlaunch.client.resuming import place_of
from slurmlaunch.errors import RunFolderError, UnsafeRunFolder
from slurmlaunch.runfolder import files
from slurmlaunch.runfolder.files import Location, create, read_owned, undisturbed, write_whole
from slurmlaunch.runfolder.function import write_function
from slurmlaunch.runfolder.layout import FOLDERS, RUN_VARIABLE, Manifest
from tests.support.tasks import REPOSITORY, OneRun, rows
from tests.support.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

# One module opens files.

# Calls on paths that are not in a run folder, or on a `Location`, by the file and the beginning of the call.
ELSEWHERE = {
    "backends/container.py": ("",),
    "backends/local/process.py": ("Path(f'/proc/", "os.scandir('/proc')"),
    "backends/local/scheduler.py": ("log.open(",),
    "backends/pending_reasons.py": ("resources.files(",),
    "backends/slurm/shared_states.py": ("",),
    "caps.py": ("path.read_text(",),
    "client/attach.py": ("os.scandir(folder)", "os.path.lexists(path / MANIFEST)"),  # the folder of runs
    "client/configuration.py": ("",),
    "client/debug.py": ("Path(file).read_bytes(",),
    "client/doctor/full.py": ("path.open('x'", "shutil.rmtree(self._scripts"),  # where nobody may exchange it
    "client/doctor/items.py": ("(place / GROWING).open(",),
    "client/doctor/on_node.py": ("Path('/proc/", "Path(f'/proc/", "Path('/sys/", "file.open("),
    "debugger.py": ("Path('~/.pdbrc').",),
    "cli/doctor.py": ("path.open('x'",),
    "cli/main.py": ("os.open(os.devnull",),
    "cli/map.py": ("open(sys.stdin",),
    "client/code.py": ("open(file", "open(cache_from_source(", "os.stat(file)"),
    "client/pickling.py": ("pickler.file.truncate(",),
    "client/runs.py": ("os.scandir(folder)",),
    "client/versions.py": ("",),
    "integrations/submitit/job.py": ("fixed_part(folder).glob('*/manifest.json')",),
    "node/debug.py": ("Path(file).stat()",),
    "node/finder.py": ("Path(file).stat()",),
    "node/output.py": ("os.open(f'/proc/",),
    "node/pool.py": ("os.open(f'/proc/{self.pid}/fd/",),
    "node/system.py": ("Path('/proc/", "os.listdir('/proc')", "path.read_text("),
    "node/task.py": ("Path(spec and spec.origin or '').read_text(",),
    "runfolder/changes.py": ("Path('/proc/self/mounts')",),
    "runfolder/clients.py": ("Path(f'/proc/",),
    "runfolder/environment.py": ("Path('/proc/self/status')",),
    "runfolder/modules.py": ("Path(module.file or '').stat()", "Path(file).read_bytes()"),
    "runfolder/records.py": ("self.path.open(",),
    "runfolder/rounds.py": ("entry.stat(",),
    "runfolder/runs_folder.py": ("",),
    "runfolder/storage_notes.py": ("file.stat(",),
}
OPENERS = {
    "open", "fdopen", "memmap", "read_text", "read_bytes", "write_text", "write_bytes", "touch", "listdir", "scandir",
    "walk", "iterdir", "glob", "rglob", "stat", "lstat", "truncate", "utime", "hardlink_to", "symlink_to", "link",
    "symlink", "rmtree", "makedirs", "copyfile", "copytree", "chmod", "lexists",
}  # fmt: skip


def test_one_module_opens_files() -> None:
    """No other module opens, lists or looks at a file by its path, but for files that are in no run folder."""
    package = REPOSITORY / "slurmlaunch"
    found = []
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or name == "runfolder/files.py":
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            text = ast.unparse(node)
            if called in OPENERS and not text.startswith(ELSEWHERE.get(name, ("nothing",))):
                found.append(f"{name}: {text}")

    assert [] == found


# Descriptors.

WITHOUT_DESCRIPTORS = 197
"""The calls of an inline submission, in a folder such as ``/tmp/a/runs``, when everything was opened by its path."""


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process hold two folders."""
    monkeypatch.setattr(files, "MOST_HELD", 2)


def held() -> int:
    """Return how many folders this process holds."""
    return sum(place() is not None for place in list(files._recent.values()))  # noqa: SLF001


def few_more() -> int:
    """Return a limit of descriptors that leaves less than 256: other tests of this process may hold some."""
    return max(map(int, os.listdir("/proc/self/fd"))) + 192  # noqa: PTH208


def made(path: Path) -> Location:
    """Make a folder with a file; return it."""
    folder = Location(path)
    folder.mkdir()
    write_whole(folder / "file", [path.name.encode()])
    return folder


def test_no_more_than_some_are_held(tmp_path: Path) -> None:
    """However many run folders a process uses, it holds no more than some, and finds all of them again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (few_more(), hard))
    try:
        folders = [made(tmp_path / str(number)) for number in range(300)]
        assert [str(number).encode() for number in range(300)] == [read_owned(each / "file") for each in folders]
        assert held() <= files.MOST_HELD
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
@pytest.mark.parametrize("runs", [400, pytest.param(2000, marks=pytest.mark.long)])
def test_many_submissions(tmp_path: Path, runs: int) -> None:
    """Hundreds and thousands of runs fit into a process that may have 256 descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (few_more(), hard))
    try:
        with Executor(tmp_path, cluster="inline") as executor:
            assert list(range(runs)) == [executor.submit(abs, number).result(PATIENCE) for number in range(runs)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_exchanged_folder(tmp_path: Path, few: None) -> None:
    """A folder that had to be closed must be the one that it was when it is opened again; the error says so."""
    del few
    folder = made(tmp_path / "run")
    assert read_owned(folder / "file") == b"run"
    (tmp_path / "run").rename(tmp_path / "away")
    other = made(tmp_path / "run")
    assert read_owned(folder / "file") == b"run"  # it is still held

    others = [made(tmp_path / name) for name in "abc"]
    for use in (lambda: read_owned(folder / "file"), lambda: create(folder / "new", b""), folder.names):
        with pytest.raises(UnsafeRunFolder, match="exchanged"):
            use()
    assert [["file"]] * 4 == [each.names() for each in (other, *others)]


def test_a_number_that_is_another_folder(tmp_path: Path) -> None:
    """If something closes all descriptors and opens another folder, nothing is read or written there."""
    folder = made(tmp_path / "run")
    (tmp_path / "other").mkdir(0o700)
    program = f"""
import os
from slurmlaunch.runfolder.files import Location, read_owned, write_whole
folder = Location({str(tmp_path / "run")!r})
assert read_owned(folder / "file") == b"run"
os.closerange(3, 100)
others = [os.open({str(tmp_path / "other")!r}, os.O_RDONLY) for _ in range(20)]
assert read_owned(folder / "file") == b"run"
write_whole(folder / "new", [b"x"])
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert (sorted(folder.names()), list((tmp_path / "other").iterdir())) == (["file", "new"], [])


def test_a_removed_folder(tmp_path: Path) -> None:
    """A folder that was removed is not listed as an empty one, and another one of its name is not taken for it."""
    folder = made(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    for use in (folder.names, folder.modified, lambda: create(folder / "new", b"")):
        with pytest.raises(FileNotFoundError):
            use()
    made(tmp_path / "run")
    with pytest.raises(UnsafeRunFolder, match="exchanged"):
        folder.names()


def test_each_use_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is compared before each use, but only once where none of the user's code runs in between."""
    folder, compared, really = made(tmp_path / "run"), 0, os.fstat

    def fstat(descriptor: int) -> os.stat_result:
        nonlocal compared
        compared += 1
        return really(descriptor)

    monkeypatch.setattr(os, "fstat", fstat)

    def compares(use: Callable[[], object]) -> int:
        before = compared
        use()
        return compared - before

    exists = (folder / "file").exists
    assert [compares(exists), compares(exists)] == [1, 1]
    with undisturbed():
        assert [compares(exists), compares(exists)] == [1, 0]
        with undisturbed():
            assert compares(exists) == 0
        with ThreadPoolExecutor(1) as other:
            assert compares(lambda: other.submit(exists).result()) == 1
    assert compares(exists) == 1


def test_few_calls(tmp_path: Path) -> None:
    """A folder that is held costs a submission at most two calls more for each of its subfolders and tasks."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    program = f"""
import os, slurmlaunch
with slurmlaunch.Executor({str(tmp_path / "runs")!r}, cluster="inline") as executor:
    for number in range(3):
        os.access(f"/mark{{number}}", os.R_OK)
        executor.submit(abs, -1).result()
"""
    (tmp_path / "program.py").write_text(program)
    log = tmp_path / "strace"
    command = ["strace", "-qq", "-o", str(log), "-e", "trace=%file,%desc", sys.executable]
    subprocess.run([*command, str(tmp_path / "program.py")], check=True)
    _, _, second, _ = re.split(r"access\(\"/mark.*", log.read_text(errors="replace"))
    looks = len((tmp_path / "runs").parents) - 3  # one at each folder above, to resolve links
    assert second.count("\n") <= WITHOUT_DESCRIPTORS + 2 * (len(FOLDERS) + 1 + 1) + looks


def close_all(number: int, other: str) -> str:
    """Close all descriptors, open another folder under their numbers, and return a class of ``__main__``'s kind."""
    os.closerange(3, 200)
    for _ in range(40):
        os.open(other, os.O_RDONLY)
    return f"{number}" * 100_000  # so large that the worker itself appends it


def test_items_that_close_all_descriptors(tmp_path: Path) -> None:
    """Items that close all descriptors, and open another folder, change no file there, and the others run."""
    other = tmp_path / "other"
    other.mkdir(0o700)
    run = OneRun(tmp_path / "run", close_all, [(number, str(other)) for number in range(3)])
    ended = run.run()
    assert (ended.status in {0, 1}, sorted(run.outcomes())) == (True, [0, 1, 2])
    assert list(other.iterdir()) == []


def waiting_run(place: Path, witness: Path) -> None:
    """Make a run folder whose item has not run."""
    OneRun(place, witness.touch, [()], name="other")


def touch(witness: Path, *, fails: bool) -> None:
    """Make a file; fail."""
    witness.touch()
    assert not fails


def ended_run(place: Path, witness: Path, *, fails: bool = False) -> None:
    """Make a run folder whose item has run, and perhaps failed."""
    with Executor(place.with_name("others"), cluster="inline") as executor:
        array = executor.map_array(touch, [witness], kwargs={"fails": fails})
    array.folder.rename(place)
    witness.unlink()


def folder_of_files(place: Path, _: Path) -> None:
    """Make a folder that has nothing to do with runs."""
    (place / "chapters").mkdir(parents=True, mode=0o700)
    (place / "chapters" / "one").write_text("precious")


class Decoy:
    """Another folder of the user's, as after unpacking somebody's archive, that takes the place of a run folder."""

    def __init__(self, place: Path, make: Callable[[Path, Path], None]) -> None:
        self._place, self._witness = place, place.with_name("witness")
        make(place, self._witness)
        place.chmod(0o700)
        self._before = self._content()

    def takes(self, path: Path) -> None:
        """Put it into the place of another folder, which moves beside it."""
        path.rename(self._place.with_name("away"))
        self._place.rename(path)
        self._place = path

    def is_untouched(self) -> bool:
        """Whether nothing of it has changed, and nothing of it ran."""
        return self._before == self._content() and not self._witness.exists()

    def _content(self) -> dict[str, bytes]:
        return {
            path.relative_to(self._place).as_posix(): path.read_bytes() if path.is_file() else b""
            for path in self._place.rglob("*")
        }


class Exchange:
    """Before some step that a process takes in a run folder, a decoy takes its place."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, below: Path, decoy: Decoy, step: int) -> None:
        """Count the steps in run folders below a folder."""
        self.steps, self._step, self._below, self._decoy = 0, step, below, decoy
        self._really = Location._call  # noqa: SLF001
        monkeypatch.setattr(Location, "_call", self._call_of())

    def _call_of(self) -> Callable[..., Any]:
        def call(place: Location, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
            path = Path(place.root)
            ours = path.is_relative_to(self._below) and path.is_dir()  # no run before, whose files may be linked
            if self.steps == self._step and ours:
                self._decoy.takes(path)
            self.steps += ours
            return self._really(place, function, *arguments, **options)

        return call


@pytest.mark.parametrize("step", range(0, 60, 3))
def test_an_exchange_at_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Whenever a run folder is exchanged for another run of the user's, nothing of that is run or changed."""
    decoy = Decoy(tmp_path / "decoy", waiting_run)
    exchange = Exchange(monkeypatch, tmp_path / "runs", decoy, step)
    executor = Executor(tmp_path / "runs", cluster="inline")
    try:
        assert executor.submit(abs, -7).result(PATIENCE) == 7
    except (SlurmlaunchError, OSError):
        assert step < exchange.steps
    assert decoy.is_untouched()


@pytest.mark.parametrize("cluster", ["inline", "local"])
def test_an_exchange_before_a_retry(tmp_path: Path, cluster: str) -> None:
    """A process that has a run runs nothing of another one in its place, and writes nothing there."""
    decoy = Decoy(tmp_path / "decoy", partial(ended_run, fails=True))
    with Executor(tmp_path / "runs", cluster=cluster) as executor:
        futures = executor.map_array(int, ["no number"])
        futures.wait(PATIENCE)
        decoy.takes(futures.folder)
        with suppress(SlurmlaunchError):
            futures.retry().wait(PATIENCE)
    assert decoy.is_untouched()


def removals(folder: Path) -> dict[str, Callable[[], object]]:
    """Return what removes, or may remove, a run folder; the run is made first, so that only the removal is left."""
    with Executor(folder, cluster="inline") as executor:
        array = executor.map_array(abs, [-7], name="run")
    return {
        "remove": array.remove,
        "clean": lambda: slurmlaunch.clean(folder, older_than="1h"),
        "rest": lambda: slurmlaunch.clean(folder, older_than="1h"),
    }


@pytest.mark.parametrize("how", ["remove", "clean", "rest"])
def test_an_exchange_during_a_removal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Whenever a run folder that is removed is exchanged for another folder of the user's, that stays as it is."""
    step, happened = 0, True
    while happened:
        place = tmp_path / str(step)
        place.mkdir()
        act = removals(place / "runs")[how]
        (run,) = (path for path in (place / "runs").iterdir() if path.is_dir())
        if how == "rest":
            shutil.rmtree(run / "rounds")
        for path in (run, *run.rglob("*")):
            os.utime(path, (0, 0), follow_symlinks=False)
        decoy = Decoy(place / "decoy", folder_of_files if how == "rest" else ended_run)
        with monkeypatch.context() as patch:
            exchange = Exchange(patch, place, decoy, step)
            with suppress(SlurmlaunchError, OSError):
                act()
        assert decoy.is_untouched(), step
        step, happened = step + (1 if how == "rest" else 5), step < exchange.steps
    assert step > 10


@pytest.mark.parametrize("how", ["made", "moved", "linked"])
def test_others_do_not_choose_what_is_cleaned(tmp_path: Path, how: str) -> None:
    """Where others may put another folder of the user's runs, `clean` removes runs only where they were made."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    named, private = shared / "slurmlaunch-runs", tmp_path / "private" / "runs"
    with Executor(named if how == "made" else private, cluster="inline") as executor:
        executor.submit(abs, -7)
    if how == "moved":
        private.rename(named)
    elif how == "linked":
        named.symlink_to(private)
    cleaned = slurmlaunch.clean(named, older_than=0)
    assert (len(cleaned.removed), len(cleaned.kept)) == ((1, 0) if how == "made" else (0, 1))


def test_an_exchange_before_a_run_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is put in the place of the rest of a run, where a new one goes, is not removed."""
    for step in range(12):
        runs = tmp_path / str(step) / "runs"
        place_of("run", runs).mkdir(parents=True, mode=0o700)
        decoy = Decoy(tmp_path / str(step) / "decoy", folder_of_files)
        with monkeypatch.context() as patch:
            exchange = Exchange(patch, runs, decoy, step)
            with suppress(SlurmlaunchError, OSError), Executor(runs, cluster="inline") as executor:
                executor.map_array(abs, [-7], name="run", resume=True)
        assert step < exchange.steps
        assert decoy.is_untouched(), step


def test_a_named_pipe_in_a_files_place(tmp_path: Path) -> None:
    """A named pipe is not read, and nobody waits for its writer."""
    folder = made(tmp_path / "run")
    os.mkfifo(tmp_path / "run" / "pipe", 0o600)
    with pytest.raises(RunFolderError, match="is not a file"):
        read_owned(folder / "pipe")
    assert (folder / "pipe").read() == b""


# The node knows its run.


def test_the_identity_reaches_the_tasks(tmp_path: Path) -> None:
    """A task knows the SHA-256 of its run's manifest and its secret, which are in no command line and no script."""
    with Executor(tmp_path, cluster="local") as executor:
        future = executor.submit(lambda: (os.environ[RUN_VARIABLE], Path("/proc/self/cmdline").read_bytes()))
        identity, command = future.result(PATIENCE)
        folder = future.log("out").parents[1]
    content = (folder / "manifest.json").read_bytes()
    manifest = json.loads(content)

    assert identity == f"{hashlib.sha256(content).hexdigest()}-{manifest['secret']}"
    assert re.fullmatch("[0-9a-f]{32}", manifest["secret"])
    assert manifest["secret"].encode() not in command
    assert manifest["secret"] not in "".join(path.name for path in folder.rglob("*"))
    for name in ("function", "items.index"):
        assert manifest["sha256"][name] == hashlib.sha256((folder / name).read_bytes()).hexdigest()


@pytest.mark.parametrize("protocol", [1, 2])
def test_a_node_refuses_the_folder_of_another_run(tmp_path: Path, protocol: int) -> None:
    """A node that was told its run runs nothing of another one, whatever its protocol; one that was not told does."""
    run = OneRun(tmp_path / "run", print, rows(["executed"]))
    other = OneRun(tmp_path / "other", print, rows(["executed"]), protocol=protocol, name="other")
    Manifest.read(run.folder)
    Manifest.read(other.folder)
    ours, theirs = {RUN_VARIABLE: run.folder.identity}, {RUN_VARIABLE: other.folder.identity[:-1] + "x"}

    for env in (ours, theirs):
        ended = other.run(env=env)
        assert (ended.status, ended.out, "exchanged" in ended.err) == (4, "", True)
        assert other.folder.outcomes.names() == []
    assert (run.run(env=ours).out, other.run().out) == ("executed\n", "executed\n")


def test_ranks_refuse_the_folder_of_another_run(tmp_path: Path) -> None:
    """Ranks compare the folder themselves: it may have been exchanged since their supervisor did."""
    launcher = tmp_path / "launcher"
    launcher.write_text('#!/bin/sh\nfor file in "$RUNS"/*/manifest.json; do echo >> "$file"; done\nexec "$@"\n')
    launcher.chmod(0o755)
    runs, env = tmp_path / "runs", {"RUNS": str(tmp_path / "runs")}
    with Executor(runs, cluster="local", ntasks=2, launcher=[str(launcher)], env=env) as executor:
        error = executor.submit((tmp_path / "witness").touch).exception(PATIENCE)
    assert "is not the folder of the run that this task belongs to" in str(error)
    assert not (tmp_path / "witness").exists()


def test_other_modules_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules that are not those of the manifest are not imported, however right their own checksums are."""
    monkeypatch.syspath_prepend(tmp_path)
    folders = {}
    with Executor(
        tmp_path / "runs", cluster="local", setup=[f"until [ -e {tmp_path}/go ]; do sleep 0.02; done"]
    ) as executor:
        for answer in ("1", "12"):
            (tmp_path / "their_own_module.py").write_text(f"def answer():\n    return {answer}\n")
            monkeypatch.delitem(sys.modules, "their_own_module", raising=False)
            future = executor.submit(import_module("their_own_module").answer)
            folders[answer] = future.log("out").parents[1] / "modules"
        folders["12"].write_bytes(folders["1"].read_bytes())
        (tmp_path / "go").touch()
        error = future.exception(PATIENCE)
    assert f"{folders['12']} is damaged" in str(error)


def test_another_function_is_not_run(tmp_path: Path) -> None:
    """A function that is not the one of the manifest is not unpickled; the error says so."""
    from slurmlaunch.client.pickling import pickle_function

    run = OneRun(tmp_path / "run", abs, rows([-1]))
    write_function(run.folder.function, pickle_function(print))
    assert run.run().out == ""
    assert "not the one that was submitted" in str(run.errors()[0])


# What the kernel sees.


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_each_open_is_relative(tmp_path: Path) -> None:
    """In whole local runs only the run folder itself is opened by its path, all below it relative to a descriptor."""
    program = f"""
import slurmlaunch
def work(x):
    return x + 1
if __name__ == "__main__":
    with slurmlaunch.Executor({str(tmp_path / "runs")!r}, cluster="local") as executor:
        for schedule in ("static", "dynamic", "auto"):
            futures = executor.map_array(work, [0, 1, "a"], tasks=2, schedule=schedule)
            futures.wait()
        futures.retry().wait()
        assert executor.options(ntasks=2, launcher=[]).submit(work, 1).result(60) == 2
        print(futures[0].stdout())
"""
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    log = tmp_path / "strace"
    names = "trace=open,openat,openat2,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,unlink,unlinkat,creat"
    command = ["strace", "-f", "-qq", "-s", "4096", "-o", str(log), "-e", names, sys.executable]
    subprocess.run([*command, str(tmp_path / "program.py")], check=True, capture_output=True)
    calls, runs = log.read_text(errors="replace").splitlines(), re.escape(str(tmp_path / "runs"))
    opened = {found[0] for line in calls if (found := re.search(rf'"{runs}/2[^/"]+"', line))}

    assert [] == [line for line in calls if re.search(rf"{runs}/2[^/]+/", line)]
    assert len(opened) == 4
