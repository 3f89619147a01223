"""The list of runs, how `attach` finds one by other things than its folder, and how runs are removed."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, NoReturn, TypeVar

import pytest

import slurmlaunch
from slurmlaunch import Executor, OptionError, RunFolderError, attach
from slurmlaunch.client import default_folder
from slurmlaunch.client.attach import locate, manifests_in
from slurmlaunch.runfolder.clients import ClientId
from slurmlaunch.runfolder.files import Location
from slurmlaunch.runfolder.layout import RunFolder
from slurmlaunch.runfolder.rounds import Round, claim_removal
from tests.support.tasks import OneRun

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from slurmlaunch import FutureArray
    from tests.support.waiting import Gate

pytestmark = pytest.mark.parametrize("backend", ["local"], indirect=True)


T = TypeVar("T")


def copied(finished: FutureArray[int], folder: Path, *, without: tuple[str, ...] = (), name: str = "copy") -> Path:
    """Return a copy of a finished run, with these of its folders emptied."""
    run = folder / name
    shutil.copytree(finished.folder, run)
    for each in without:
        shutil.rmtree(run / each)
        (run / each).mkdir(0o700)
    return run


def leave(run: Path) -> None:
    """Have a process that has ended be the one that made the run, and that submitted nothing."""
    (run / "rounds/0/journal").unlink()
    plan = run / "rounds/0/plan.json"
    content = json.loads(plan.read_text())
    plan.write_text(json.dumps({**content, "client": [os.uname().nodename, 1 << 22, "1"]}))


class TestRuns:
    """`slurmlaunch.runs`."""

    def test_states(self, executor: Executor, finished: FutureArray[int], gate: Gate) -> None:
        """Each run has a row with its state, also runs that nobody will end."""
        running = executor.map_array(gate.enter, ["a"], name="waits")
        executor.map_array(abs, [-1], name="good").wait()
        failed = copied(finished, executor.folder)
        gone = copied(finished, executor.folder, without=("outcomes", "ended"), name="gone")
        never = copied(finished, executor.folder, without=("outcomes", "ended"), name="never")
        leave(never)
        damaged = copied(finished, executor.folder, without=("rounds",), name="damaged")
        (executor.folder / "no run").mkdir()

        found = slurmlaunch.runs(executor.folder)

        assert ["good", "waits"] == [run.name for run in found[:2]]
        states = {run.folder: run.state for run in found}
        assert {"running": running.folder, "failed": failed, "gone": gone, "damaged": damaged}.items() <= {
            state: folder for folder, state in states.items()
        }.items()
        assert ("never submitted", "done", 6) == (states[never], found[0].state, len(found))
        gate.open()

    def test_content(self, finished: FutureArray[int]) -> None:
        """A list prints as a table, as HTML, and as a dict for JSON."""
        found = slurmlaunch.runs(finished.folder.parent)

        everything = json.loads(json.dumps(found.to_dict()))["runs"]
        (run,) = (each for each in everything if each["folder"] == str(finished.folder))  # other tests add runs
        assert ({"done": 4, "failed": 2}, "failed", "local") == (
            {word: number for word, number in run["counts"].items() if number}, run["state"], run["cluster"],
        )  # fmt: skip
        assert run["size"] > 1000
        assert list(finished.job_ids) == run["job_ids"]
        assert ["square", "4 done, 2 failed", finished.folder.name] == [
            each for each in ("square", "4 done, 2 failed", finished.folder.name) if each in repr(found)
        ]
        assert "<table>" in found._repr_html_()
        assert any(f"attach({str(finished.folder)!r})" in repr(each) for each in found)

    def test_writes_nothing(self, finished: FutureArray[int]) -> None:
        """A list writes nothing into the folders that it lists."""
        before = finished.folder.stat().st_mtime_ns

        slurmlaunch.runs(finished.folder.parent).to_dict()

        assert before == finished.folder.stat().st_mtime_ns

    def test_default_folder(self, finished: FutureArray[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """The folder is by default that of an executor; one that does not exist has no runs."""
        monkeypatch.setenv("SLURMLAUNCH_FOLDER", str(finished.folder.parent))
        assert finished.folder in [run.folder for run in slurmlaunch.runs()]
        monkeypatch.delenv("SLURMLAUNCH_FOLDER")
        monkeypatch.chdir(tmp_path)
        assert f"no runs in {tmp_path}/slurmlaunch-runs" == repr(slurmlaunch.runs())

    def test_many(self, finished: FutureArray[int], tmp_path: Path) -> None:
        """A list reads one file of each run; a table looks only into the runs that it shows."""
        for number in range(30):
            run = tmp_path / f"run {number}"
            run.mkdir(0o700)
            shutil.copy(finished.folder / "manifest.json", run)

        found = slurmlaunch.runs(tmp_path)

        assert 30 == len(found) == len(list(manifests_in(tmp_path)))
        assert "and 10 more: slices such as runs()[20:] show them" in repr(found)
        assert 20 == sum("_content" in vars(run) for run in found)


class TestAttach:
    """What finds a run besides its folder."""

    @pytest.fixture(autouse=True)
    def here(self, executor: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have the default folder be the executor's."""
        monkeypatch.setenv("SLURMLAUNCH_FOLDER", str(executor.folder))

    def test_found(self, executor: Executor) -> None:
        """A name finds its newest run; the beginning of a name or a folder, a job id, or nothing find theirs."""
        earlier, later = (executor.map_array(abs, [number], name="sweep") for number in (1, 2))
        other = executor.map_array(abs, [3], name="other.run")
        for array in (earlier, later, other):
            array.wait()

        assert later.folder == attach("sweep").folder == attach("swe").folder
        assert other.folder == attach().folder == attach("oth").folder
        assert earlier.folder == attach(earlier.folder.name).folder == attach(earlier.job_ids[0]).folder

    def test_not_found(self, executor: Executor, tmp_path: Path) -> None:
        """The error names the nearest runs: of an unknown name, of a parent folder, of a beginning of several."""
        with pytest.raises(RunFolderError, match="there are no runs in"):
            attach()
        for name in ("first", "fifth"):
            executor.map_array(abs, [1], name=name).wait()

        with pytest.raises(
            RunFolderError, match=r"(?s)no run in .*'firts'; there are:.*-first-\w+ \(first, 1 items"
        ) as error:
            attach("firts")
        assert "fifth" not in str(error.value).partition("\n")[2].partition("\n")[0]
        with pytest.raises(RunFolderError, match=r"(?s)several runs .* begin with 'fi'; there are:.*fifth.*first"):
            attach("fi")
        with pytest.raises(RunFolderError, match=r"(?s)is no run folder.*there are:.*fifth.*first"):
            attach(executor.folder)
        with pytest.raises(RunFolderError, match=r"no run folder at .*nowhere$"):
            attach(tmp_path / "nowhere")

    def test_jobs_of_two_clusters(self, executor: Executor) -> None:
        """Where two clusters have a job of one number, only the number with its cluster finds a run."""
        executor.folder.mkdir(exist_ok=True)
        for place, clusters, job_id in (("a", None, "7"), ("b", "other", "7"), ("c", "one,other", "8;one")):
            run = OneRun(executor.folder / place, abs, [(1,)], backend="slurm", clusters=clusters)
            Round.read(run.folder, 0).submitted(0, job_id)

        with pytest.raises(RunFolderError, match=r"(?s)clusters have a job 7_0; give the run folder:.*b on other"):
            locate("7_0", executor.folder)
        assert ["b", "c", "c", "c"] == [
            locate(job, executor.folder).name for job in ("7;other", "8", "8;one", "8_0;one")
        ]


class TestRemoval:
    """`FutureArray.remove` and `slurmlaunch.clean`."""

    def test_remove(self, executor: Executor, capfd: pytest.CaptureFixture[str]) -> None:
        """A finished run is removed, and a line says what was freed."""
        array = executor.map_array(abs, [1])
        array.wait()

        array.remove()

        assert not array.folder.exists()
        assert re.search(r"removed .*-abs-\w+, \d+ KiB freed", capfd.readouterr().err)

    def test_running(self, executor: Executor, gate: Gate) -> None:
        """A run with a job that runs is not removed."""
        array = executor.map_array(gate.enter, ["a"])

        with pytest.raises(RunFolderError, match="is not removed: local lists a job of it"):
            array.remove()

        assert not slurmlaunch.clean(executor.folder, older_than=0, keep_failed=False).removed
        gate.open()

    def test_clean(self, executor: Executor, finished: FutureArray[int], capfd: pytest.CaptureFixture[str]) -> None:
        """Old runs go; those that failed, were written to lately, or are held here stay."""
        held, dropped = executor.map_array(abs, [1], name="held"), executor.map_array(abs, [1], name="dropped")
        held.wait()
        dropped.wait()
        gone = dropped.folder
        failed = copied(finished, executor.folder)
        del dropped

        assert not slurmlaunch.clean(executor.folder, older_than="1h").removed
        assert (gone,) == slurmlaunch.clean(executor.folder, older_than=0, dry_run=True).removed
        assert gone.exists()
        cleaned = slurmlaunch.clean(executor.folder, older_than=timedelta(0))

        assert ((gone,), False) == (cleaned.removed, gone.exists())
        assert {
            held.folder: "this process uses it", failed: "items have no result; keep_failed=False removes it",
        } == cleaned.kept  # fmt: skip
        assert "slurmlaunch: removed 1 run, " in capfd.readouterr().err
        assert [1] == held.results()
        assert (failed,) == slurmlaunch.clean(executor.folder, older_than=0, keep_failed=False).removed

    def test_other_clients(self, executor: Executor, finished: FutureArray[int]) -> None:
        """A run that a living process made, or attached to, is kept; once it has ended, the run goes."""
        run = copied(finished, executor.folder)
        alive = ClientId.of_process(os.getppid())
        (run / "clients").mkdir(0o700, exist_ok=True)
        (run / "clients" / str(alive)).touch(0o600)

        kept = slurmlaunch.clean(executor.folder, older_than=0, keep_failed=False).kept

        assert {run: f"process {alive.pid} on {alive.machine} uses it"} == kept
        (run / "clients" / str(alive)).rename(run / "clients" / str(alive._replace(started="1")))
        assert (run,) == slurmlaunch.clean(executor.folder, older_than=0, keep_failed=False).removed

    def test_attached_elsewhere(self, executor: Executor, finished: FutureArray[int]) -> None:
        """Attaching to a run is recorded in it, which keeps other processes from removing it."""
        run = copied(finished, executor.folder)

        attach(run)

        assert run / "clients" / str(ClientId.current()) in (run / "clients").iterdir()

    def test_interrupted(self, executor: Executor, finished: FutureArray[int]) -> None:
        """The rest of a removal whose process was killed is no run to attach to, and the next one removes it."""
        begun, late = (copied(finished, executor.folder, name=name) for name in ("begun", "late"))
        for run in (begun, late):
            claim_removal(RunFolder(run), 1, ClientId.current()._replace(started="1"))
        shutil.rmtree(late / "rounds")
        shutil.rmtree(late / "outcomes")

        with pytest.raises(RunFolderError, match="was removed in part"):
            attach(begun)
        assert (begun, late) == slurmlaunch.clean(executor.folder, older_than="100d").removed
        assert [] == list(executor.folder.iterdir())

    def test_storage_away(
        self, executor: Executor, finished: FutureArray[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A run is kept while the storage does not say whether it has rounds, and which clients use it."""
        run = copied(finished, executor.folder)
        status, names = Location.status, Location.names

        def fail_at(name: str, location: Location, method: Callable[[Location], T]) -> T:
            if location.name == name:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return method(location)

        for name in ("rounds", "clients"):
            with monkeypatch.context() as patch:
                patch.setattr(Location, "status", lambda each, name=name: fail_at(name, each, status))
                patch.setattr(Location, "names", lambda each, name=name: fail_at(name, each, names))
                cleaned = slurmlaunch.clean(executor.folder, older_than=0, keep_failed=False)
            assert (cleaned.removed, [*cleaned.kept], run.exists()) == ((), [run], True)

    def test_race(self, executor: Executor, finished: FutureArray[int]) -> None:
        """A retry and a removal exclude each other: whichever takes the next round first."""
        run = copied(finished, executor.folder)
        array = attach(run)
        claim_removal(RunFolder(run), 1, ClientId.of_process(os.getppid()))

        with pytest.raises(RunFolderError, match="is being removed"):
            array.retry()
        shutil.rmtree(run / "rounds/1")
        again = array.retry()
        again.wait()
        assert {run: "this process uses it"} == slurmlaunch.clean(executor.folder, older_than=0, keep_failed=False).kept

    def test_not_asked(self, executor: Executor, finished: FutureArray[int], monkeypatch: pytest.MonkeyPatch) -> None:
        """A run is kept whose jobs the scheduler tells nothing of."""
        run = copied(finished, executor.folder)
        manifest = run / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"backend": "local"', '"backend": "slurm"'))
        monkeypatch.setenv("PATH", "/nowhere")

        (why,) = slurmlaunch.clean(executor.folder, older_than=0, keep_failed=False).kept.values()

        assert why.startswith("its jobs cannot be asked about: `squeue")
        assert "unknown" != slurmlaunch.runs(executor.folder)[0].state

    def test_no_time(self, executor: Executor) -> None:
        """A time that is none is refused."""
        for wrong in (-1, "soon", True):
            with pytest.raises(OptionError, match="older_than"):
                slurmlaunch.clean(executor.folder, older_than=wrong)


@pytest.mark.usefixtures("executor")
class TestPlace:
    """The default folder."""

    def test_gitignore(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Git ignores the runs in the default folder."""
        monkeypatch.chdir(tmp_path)
        Executor(cluster="inline").map_array(abs, [1])

        assert "*\n" == (tmp_path / "slurmlaunch-runs/.gitignore").read_text()

    def test_away(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """A file system that is away, of which advice would speak, does not fail a call."""

        def fail(_: object) -> NoReturn:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

        monkeypatch.setattr(shutil, "disk_usage", fail)
        default_folder.warn_of_place(tmp_path, "local")
        of_another = default_folder._problem_of  # noqa: SLF001
        known = {tmp_path: "is full"}
        monkeypatch.setattr(default_folder, "_problem_of", lambda path, on: known.get(path) or of_another(path, on))
        monkeypatch.setenv("SCRATCH", "/")
        default_folder.warn_of_place(tmp_path, "slurm")

    def test_bad(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        """A default folder that nodes cannot share, or that is nearly full, is said once, with a better one."""
        monkeypatch.setattr(default_folder, "is_on_network", lambda path: not path.is_relative_to(tmp_path))
        free = [1 << 40]
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free[0]))
        monkeypatch.delenv("SCRATCH", raising=False)
        monkeypatch.setenv("WORK", "/")
        for cluster in ("slurm", "slurm", "local"):
            default_folder.warn_of_place(tmp_path / "a", cluster)
        free[0] = 1
        default_folder.warn_of_place(tmp_path / "b", "local")

        first, second = capfd.readouterr().err.splitlines()
        assert first.startswith(f"slurmlaunch: {tmp_path}/a is temporary, and each machine has its own")
        assert first.endswith('A better place: export SLURMLAUNCH_FOLDER="$WORK/slurmlaunch-runs"')
        assert second.startswith(f"slurmlaunch: {tmp_path}/b is on a file system that is nearly full. Name another")
