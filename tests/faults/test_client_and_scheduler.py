"""Killed clients and their successors, and a scheduler that is away, slow, full or silent, on a real Slurm."""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slurmlaunch import Executor, RunFolderError, SchedulerError, SubmissionError, TaskCancelled, WorkerDied, attach
from slurmlaunch.backends.slurm import SlurmBackend, commands
from slurmlaunch.client import state, submission, waiting_line
from slurmlaunch.client.attach import find_run
from slurmlaunch.client.rounds import array_job
from slurmlaunch.client.watcher import Client, current_client
from slurmlaunch.runfolder.layout import Manifest, RunFolder
from tests.faults.wrapped import HANGS, IS_AWAY, TIMES_OUT, TIMES_OUT_AFTERWARDS, Wrapped
from tests.support.cluster import ClusterSpec
from tests.support.waiting import PATIENCE, Gate, Story, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from slurmlaunch import FutureArray
    from tests.support.cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

REPOSITORY = Path(__file__).parents[2]


def squares(count: int) -> list[int]:
    """Return the expected results of these tests' items."""
    return [item * item for item in range(count)]


def told_square(story: Story) -> Callable[[int], int]:
    """Return a function that squares a number, and logs its calls."""

    def square(number: int) -> int:
        story.tell(number)
        return number * number

    return square


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings that slurmlaunch has logged."""
    return [r.getMessage() for r in caplog.records if r.name == "slurmlaunch" and r.levelno >= logging.WARNING]


def client(folder: Path, text: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a client of the repository's package."""
    folder.mkdir(exist_ok=True)
    script = folder / f"client-{time.monotonic_ns()}.py"
    script.write_text(textwrap.dedent(text), encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, str(script), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> str:
    """Wait for a client that should succeed; return its output."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


SQUARES = """
    import sys
    from pathlib import Path
    from slurmlaunch import Executor
    from tests.support.waiting import Story

    story = Story(Path(sys.argv[1], "story"))

    def square(number):
        import time
        time.sleep(0.15)
        story.tell(number)
        return number * number

    array = Executor(sys.argv[1], cluster="slurm").map_array(square, range(6), tasks=3)
    array.results(timeout=120)
    """


class TestKilledClient:
    """A client that is killed, and another that attaches to its run."""

    @pytest.mark.parametrize("kills", [8, pytest.param(20, marks=pytest.mark.long)])
    def test_at_any_moment(self, wrapped: Wrapped, tmp_path: Path, kills: int) -> None:
        """Killed at random moments, a run has one outcome per item, and a retry gives the others."""
        slow = 'sleep 0.$((RANDOM % 7)); "$real" "$@"; status=$?; sleep 0.$((RANDOM % 7)); exit $status'
        wrapped.behave("sbatch", lines=slow)
        moments = random.Random(3)
        delays = [0.0, 0.02, 0.05, *(moments.uniform(0.0, 2.5) for _ in range(kills - 3))]
        with ThreadPoolExecutor(4) as threads:
            stories = list(threads.map(self._killed, [tmp_path / str(i) for i in range(kills)], delays))

        assert [Counter(range(6))] * kills == [Counter(set(story)) for story in stories]
        # Only running, unrecorded items may have been called twice: no task was killed.
        assert [6] * kills == [len(story) for story in stories]

    def _killed(self, folder: Path, delay: float) -> list[int]:
        folder.mkdir()
        process = client(folder.parent / f"{folder.name}-client", SQUARES, folder)
        wait_until(lambda: any(folder.glob("*/rounds")))
        time.sleep(delay)
        process.kill()
        process.communicate()
        run_folder = next(path for path in folder.iterdir() if path.is_dir())
        try:
            array: FutureArray[int] = attach(run_folder)
        except RunFolderError:  # it was no run yet, so nothing was submitted, and nothing will be
            assert not (run_folder / "manifest.json").exists()
            return [*range(6)]
        found = array.results(timeout=90, return_exceptions=True)
        assert all(isinstance(each, SubmissionError) or each == i * i for i, each in enumerate(found)), found
        assert squares(6) == array.retry().results(timeout=90)
        assert squares(6) == attach(run_folder).results(timeout=0)
        return [int(line) for line in Story(folder / "story").lines]

    def test_while_another_watches(self, wrapped: Wrapped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A client that attached before the submitter was killed gets a SubmissionError per item, and may submit."""
        monkeypatch.setattr(submission, "_FOLLOW_EVERY", 1.0)
        monkeypatch.setattr(submission, "_SBATCH_OUTLIVES", 1.0)
        folder = tmp_path / "runs"
        folder.mkdir()
        wrapped.behave("sbatch", lines=HANGS)
        process = client(tmp_path / "client", SQUARES, folder)
        wait_until(lambda: any(folder.glob("*/rounds/0/journal")))
        array: FutureArray[int] = attach(next(path for path in folder.iterdir() if path.is_dir()))
        assert not array.wait(timeout=3)
        process.kill()
        process.communicate()

        assert {SubmissionError} == {type(each) for each in array.results(timeout=60, return_exceptions=True)}
        wrapped.behave()
        assert squares(6) == array.retry().results(timeout=90)

    @pytest.mark.usefixtures("wrapped")
    def test_while_making_a_retry(self, tmp_path: Path) -> None:
        """The files of a retry that a killed client did not finish disturb no other client."""
        with Executor(tmp_path / "runs", cluster="slurm") as executor:
            array = executor.map_array(lambda x: 1 // x, [0, 1], tasks=1)
        (array.folder / "rounds" / "1.half.new").mkdir(mode=0o700)
        (array.folder / "rounds" / "1").mkdir(mode=0o700)

        again = array.retry()

        assert ["ZeroDivisionError", 1] == [
            type(e).__name__ if isinstance(e, BaseException) else e for e in again.results(90, return_exceptions=True)
        ]
        assert 2 == len(again.job_ids)

    @pytest.mark.long
    @pytest.mark.usefixtures("wrapped")
    def test_after_the_waiting_items_were_cancelled(self, cluster: Cluster, tmp_path: Path) -> None:
        """A client that comes after someone cancelled all pending elements learns so while the others still run."""
        text = """
            import os, sys, time
            from slurmlaunch import Executor

            def wait(item, file=f"{sys.argv[1]}/open"):
                while not os.path.exists(file):
                    time.sleep(0.1)
                return item

            array = Executor(sys.argv[1], cluster="slurm").map_array(wait, range(5), tasks=5, throttle=2)
            print(array.folder, array.job_ids[0])
            """
        folder, job = ended(client(tmp_path / "client", text, tmp_path)).split()
        wait_until(lambda: Counter(line.split()[1] for line in queue(job))["RUNNING"] == 2)
        cluster.run("scancel", f"{job}_[2-4]")
        array: FutureArray[int] = attach(folder)

        assert [TaskCancelled] * 3 == [type(each) for each in array[2:].results(timeout=60, return_exceptions=True)]
        (tmp_path / "open").touch()
        assert [0, 1] == array[:2].results(timeout=60)

    @pytest.mark.usefixtures("wrapped")
    def test_two_jobs_of_one_name(self, tmp_path: Path) -> None:
        """A second job of a run waits for the first, and then has no work."""
        story = Story(tmp_path / "story")
        gate = Gate(tmp_path / "gate")

        def enter(number: int) -> int:
            story.tell(number)
            gate.enter(number)
            return number * number

        array = Executor(tmp_path / "runs", cluster="slurm").map_array(enter, range(4), tasks=2)
        run = find_run(array.folder)
        second = run.backend.submit(array_job(run, run.rounds[0], 0))
        gate.await_arrival(0, 2)
        gate.open()

        assert squares(4) == array.results(timeout=90)
        wait_until(lambda: not queue(second))
        assert sorted(map(str, range(4))) == sorted(story.lines)
        assert squares(4) == attach(array.folder).results(timeout=5)

    def test_a_copy_needs_no_slurm(self, wrapped: Wrapped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A finished run is readable on a machine without Slurm's commands."""
        with Executor(tmp_path / "runs", cluster="slurm") as executor:
            array = executor.map_array(lambda x: x * x, range(4), tasks=2)
        copy = shutil.copytree(array.folder, tmp_path / "copy")
        calls = len(wrapped.calls())
        (tmp_path / "nothing").mkdir()
        monkeypatch.setenv("PATH", str(tmp_path / "nothing"))

        assert squares(4) == attach(copy).results(timeout=5)
        assert calls == len(wrapped.calls())

    @pytest.mark.usefixtures("wrapped")
    def test_a_copied_run_keeps_recorded_ends(
        self, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A copy of a run has the recorded end of a task that was ended from outside."""
        gate = Gate(tmp_path / "gate")
        array = Executor(tmp_path / "runs", cluster="slurm").map_array(gate.enter, "ab", tasks=2)
        gate.await_arrival("a", "b")
        cluster.run("scancel", array[0].job_id or "")
        assert isinstance(array[0].exception(timeout=60), TaskCancelled)
        gate.open("b")
        assert "b" == array[1].result(timeout=60)
        copy = shutil.copytree(array.folder, tmp_path / "copy")
        (tmp_path / "nothing").mkdir()
        monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
        monkeypatch.setattr(state, "SCHEDULER_SILENT_FOR", 1.0)
        current_client().backends.clear()

        first, second = attach(copy).results(timeout=60, return_exceptions=True)
        assert (TaskCancelled, "b") == (type(first), second)


def queue(*job_ids: str) -> list[str]:
    """Return the elements of jobs that wait or run, as the queue shows them."""
    command = ["squeue", "--noheader", "--array", "--format=%i %T", f"--jobs={','.join(job_ids)}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()


def await_saved_state(cluster: Cluster, job_id: str) -> None:
    """Wait until the controller has saved the state of a job: one that is stopped before may forget its start."""
    saved = cluster.folder / "state" / "job_state"
    before = saved.stat().st_mtime_ns if saved.exists() else 0
    cluster.run("scontrol", "update", f"JobId={job_id}", "Comment=a change")  # it saves what has changed
    wait_until(lambda: saved.exists() and saved.stat().st_mtime_ns > before)


class TestSchedulerAway:
    """Slurm's daemons stop and restart; its commands fail and hang."""

    def test_daemons_stopped(
        self, own_cluster: Callable[[ClusterSpec], Cluster], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Results arrive without slurmctld, or without slurmdbd and its database; states follow later."""
        cluster = own_cluster(ClusterSpec(nodes=1, cpus_per_node=2))
        gate, executor = Gate(tmp_path / "gate"), Executor(tmp_path / "runs", cluster="slurm")
        array = executor.map_array(gate.enter, "abcd", tasks=4)
        gate.await_arrival("a", "b")
        await_saved_state(cluster, array.job_ids[0])

        cluster.stop_daemon("slurmctld", signal.SIGTERM)
        gate.open("a", "b")
        assert ["a", "b"] == array[:2].results(timeout=30)
        time.sleep(3)  # meanwhile sacct alone answers
        cluster.start_daemon("slurmctld")
        gate.await_arrival("c", "d")
        cluster.stop_daemon("slurmdbd")
        cluster.stop_daemon("mariadbd")
        cluster.run("scancel", array[2].job_id or "")
        gate.open("d")

        assert "d" == array[3].result(timeout=60)
        assert isinstance(array[2].exception(timeout=60), TaskCancelled)
        assert {"Slurm does not report the states of your jobs"} >= {
            text.partition(" (")[0] for text in warnings_of(caplog)
        }
        cluster.start_daemon("mariadbd")
        cluster.start_daemon("slurmdbd")
        assert squares(2) == executor.map_array(lambda x: x * x, range(2)).results(timeout=60)

    @pytest.mark.long
    @pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL])
    def test_controller_away_for_a_minute(
        self,
        own_cluster: Callable[[ClusterSpec], Cluster],
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
        sig: int,
    ) -> None:
        """Outcomes arrive at once, cancelled items do not start, others and a retry start when the controller is back.

        Meanwhile, the client makes few calls.
        """
        cluster = own_cluster(ClusterSpec(nodes=1, cpus_per_node=2))
        wrapped = Wrapped(tmp_path / "wrapped")
        monkeypatch.setenv("PATH", wrapped.path)
        story, gate = Story(tmp_path / "story"), Gate(tmp_path / "gate")

        def enter(item: str) -> str:
            story.tell(item)
            return gate.enter(item)

        executor = Executor(tmp_path / "runs", cluster="slurm", retries=1)
        array = executor.map_array(enter, "abc", tasks=3)
        gate.await_arrival("a", "b")
        waiting = executor.submit(enter, "d")
        await_saved_state(cluster, array.job_ids[0])
        cluster.stop_daemon("slurmctld", sig)
        calls = len(wrapped.calls())
        gate.open("b")
        os.kill(gate.process_of("a"), signal.SIGKILL)
        (gate.folder / "a.here").unlink()
        with pytest.raises(SchedulerError, match="Unable to contact"):
            array[2].cancel()
        assert "b" == array[1].result(timeout=30)
        time.sleep(60)
        assert not array[0].done()
        made = Counter(line.partition(" ")[0] for line in wrapped.calls()[calls:])
        # Queries begin with an interval of a second here, which grows to six; each that fails takes Slurm nine.
        most = {"sbatch": 6, "scancel": 1, "squeue": 12, "sacct": 12}
        assert made <= Counter(most), made
        cluster.start_daemon("slurmctld")
        gate.open()

        assert ["a", "d"] == [array[0].result(timeout=90), waiting.result(timeout=90)]
        assert (2, True) == (len(array.job_ids), array[2].cancelled())
        assert Counter("aabd") == Counter(story.lines)
        assert 1 == sum("trying again" in text for text in warnings_of(caplog))

    def test_no_accounts(self, own_cluster: Callable[[ClusterSpec], Cluster], tmp_path: Path) -> None:
        """A site without accounting: the queue, and the files."""
        cluster = own_cluster(ClusterSpec(nodes=1, accounting=False))
        gate = Gate(tmp_path / "gate")
        array = Executor(tmp_path / "runs", cluster="slurm").map_array(gate.enter, "abc", tasks=3)
        gate.await_arrival("a", "b", "c")
        os.kill(gate.process_of("a"), signal.SIGKILL)
        cluster.run("scancel", array[1].job_id or "")
        gate.open("c")

        kinds = [type(each) for each in array.results(timeout=60, return_exceptions=True)]
        assert [WorkerDied, TaskCancelled, str] == kinds
        gate.open()
        assert ["a", "b", "c"] == array.retry().results(timeout=60)

    @pytest.mark.parametrize("lines", [HANGS, IS_AWAY])
    def test_commands(
        self,
        wrapped: Wrapped,
        tmp_path: Path,
        lines: str,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        cluster: Cluster,
    ) -> None:
        """While every command hangs or fails, results arrive with one warning; later, states are known again."""
        monkeypatch.setattr(commands, "TIMEOUT", 1.0)
        gate = Gate(tmp_path / "gate")
        array = Executor(tmp_path / "runs", cluster="slurm").map_array(gate.enter, "ab", tasks=2)
        gate.await_arrival("a", "b")
        wrapped.behave(lines=lines)
        before = len(wrapped.calls(["squeue"]))
        wait_until(lambda: len(wrapped.calls(["squeue"])) >= before + 2)
        gate.open("a")

        assert "a" == array[0].result(PATIENCE)
        assert squares(0) == attach(array.folder)[:0].results(timeout=5)
        wrapped.behave()
        cluster.run("scancel", array[1].job_id or "")
        assert isinstance(array[1].exception(timeout=60), TaskCancelled)
        # Each inquiry warns once; those of earlier tests' runs may not have ended.
        asking = Counter(each.thread for each in caplog.records if each.getMessage() in warnings_of(caplog))
        assert {1} == {*asking.values()}, warnings_of(caplog)


class TestSubmission:
    """sbatch calls that fail for a moment, give no answer, or are refused by a limit."""

    def test_timed_out_afterwards(self, wrapped: Wrapped, tmp_path: Path) -> None:
        """The job of an sbatch that lost the answer is found by its name: one job, each item called once."""
        story = Story(tmp_path / "story")
        wrapped.behave("sbatch", lines=TIMES_OUT_AFTERWARDS)
        array = Executor(tmp_path / "runs", cluster="slurm").map_array(told_square(story), range(4), tasks=2)

        assert squares(4) == array.results(timeout=90)
        assert (1, 1) == (len(wrapped.calls(["sbatch"])), len(array.job_ids))
        assert sorted(story.lines) == ["0", "1", "2", "3"]

    def test_away_for_a_moment(
        self, wrapped: Wrapped, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A short outage is retried, and logged once."""
        pauses: list[float] = []
        monkeypatch.setattr(Client, "backend", lambda *_: SlurmBackend(sleep=pauses.append))
        counter = tmp_path / "tries"
        lines = f'echo >>{counter}; [ "$(wc -l <{counter})" -gt 2 ] || {{ {IS_AWAY}; }}; exec "$real" "$@"'
        wrapped.behave("sbatch", lines=lines)

        assert [0, 1] == Executor(tmp_path / "runs", cluster="slurm").map_array(int, range(2)).results(timeout=60)
        assert (2, 3) == (len(pauses), len(wrapped.calls(["sbatch"])))
        assert 1 == len(warnings_of(caplog))

    def test_away_for_long(self, wrapped: Wrapped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """After a long outage submission raises an error, and leaves nothing behind."""
        pauses: list[float] = []
        monkeypatch.setattr(Client, "backend", lambda *_: SlurmBackend(sleep=pauses.append))
        wrapped.behave("sbatch", lines=IS_AWAY)

        with pytest.raises(SubmissionError, match="Unable to contact slurm controller"):
            Executor(tmp_path / "runs", cluster="slurm").submit(int)
        assert [] == list((tmp_path / "runs").iterdir())

    def test_no_answer_at_all(self, wrapped: Wrapped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """If it stays unknown whether sbatch made a job, an attaching client finds none, and may submit the array."""
        monkeypatch.setattr(Client, "backend", lambda *_: SlurmBackend(sleep=lambda _: None))
        wrapped.behave("sbatch", lines=f'[ -e {tmp_path}/there ] || {{ {TIMES_OUT} ; }}; exec "$real" "$@"')
        executor = Executor(tmp_path / "runs", cluster="slurm")
        with pytest.raises(SubmissionError, match="did not say whether Slurm took the job"):
            executor.map_array(lambda x: x * x, range(4), tasks=2)
        (tmp_path / "there").touch()
        array: FutureArray[int] = attach(next((tmp_path / "runs").iterdir()))

        assert {SubmissionError} == {type(each) for each in array.results(timeout=60, return_exceptions=True)}
        assert squares(4) == array.retry().results(timeout=90)

    def test_wait_for_room(
        self,
        own_cluster: Callable[[ClusterSpec], Cluster],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Later arrays wait for capacity; if the waiting client is killed, an attaching client submits them.

        All have the environment of the first submission, and know their run; a warning names the secrets that the
        other client lacks.
        """
        cluster = own_cluster(ClusterSpec(lines=("AccountingStorageEnforce=limits", "MaxArraySize=4")))
        cluster.run(
            "sacctmgr",
            "-i",
            "modify",
            "user",
            "where",
            f"user={os.environ.get('USER', 'root')}",
            "set",
            "MaxSubmitJobs=5",
        )
        monkeypatch.setattr(waiting_line, "SHORTEST_WAIT", 0.5)
        story = Story(tmp_path / "story")
        executor = Executor(tmp_path / "runs", cluster="slurm")
        array = executor.map_array(told_square(story), range(9), tasks=9)
        assert squares(9) == array.results(timeout=120)
        assert 3 <= len(array.job_ids)
        assert sorted(story.lines) == sorted(map(str, range(9)))

        gate = Gate(tmp_path / "gate")
        script = """
            import os, sys, time
            from pathlib import Path
            from slurmlaunch import Executor
            from tests.support.waiting import Gate

            gate = Gate.__new__(Gate)
            gate.folder = Path(sys.argv[2])
            os.environ.update(PLACE="there", A_TOKEN="not-to-be-stored")
            enter = lambda item: " ".join((gate.enter(item), os.environ["PLACE"], os.environ["SLURMLAUNCH_RUN"]))
            print(Executor(sys.argv[1], cluster="slurm").map_array(enter, "abcdefgh", tasks=8).folder, flush=True)
            time.sleep(600)
            """
        process = client(tmp_path / "client", script, tmp_path / "killed", gate.folder)
        assert process.stdout
        folder = Path(process.stdout.readline().strip())
        gate.await_arrival("a", "b", "c", "d")
        wait_until(lambda: b'"waiting"' in (folder / "rounds" / "0" / "journal").read_bytes())
        process.kill()
        process.communicate()
        monkeypatch.setenv("PLACE", "here")
        first, second = attach(folder), attach(folder)
        gate.open()

        run = RunFolder(folder)
        Manifest.read(run)
        assert (
            [f"{item} there {run.identity}" for item in "abcdefgh"]
            == first.results(timeout=120)
            == second.results(timeout=10)
        )
        assert any("A_TOKEN of " in record.message for record in caplog.records)
        wait_until(lambda: not queue(*first.job_ids))
        assert len(first.job_ids) == len({*first.job_ids, *second.job_ids})


class TestCancelling:
    """Cancellations around a submission."""

    def test_while_it_is_submitted(self, wrapped: Wrapped, tmp_path: Path) -> None:
        """Items that another client cancels during sbatch neither run nor stay in the queue."""
        story = Story(tmp_path / "story")
        wrapped.behave("sbatch", lines='sleep 2; exec "$real" --hold "$@"')
        with ThreadPoolExecutor(1) as thread:
            executor = Executor(tmp_path / "runs", cluster="slurm")
            submitted = thread.submit(lambda: executor.map_array(told_square(story), range(4), tasks=2))
            wait_until(lambda: any((tmp_path / "runs").glob("*/rounds/0/journal")))
            there = attach(next((tmp_path / "runs").iterdir()))
            assert there.cancel()
            array = submitted.result()

        assert {"cancelled": 4} == {word: n for word, n in array.counts().items() if n}
        wait_until(lambda: not queue(*array.job_ids))
        assert [] == story.lines

    def test_one_item_of_a_slice(self, wrapped: Wrapped, tmp_path: Path) -> None:
        """A cancelled item of a slice never starts; its neighbours run, and Slurm is not called."""
        gate, story = Gate(tmp_path / "gate"), Story(tmp_path / "story")

        def enter(item: str) -> str:
            story.tell(item)
            return gate.enter(item)

        array = Executor(tmp_path / "runs", cluster="slurm").map_array(enter, "abc", tasks=1)
        gate.await_arrival("a")
        assert array[1].cancel()
        time.sleep(3)  # a node polls for cancellations once in a while
        gate.open()

        assert ("a", "c") == (array[0].result(timeout=60), array[2].result(timeout=60))
        assert (True, ["a", "c"]) == (array[1].cancelled(), story.lines)
        assert [] == wrapped.calls(["scancel"])

    def test_all_at_once(self, wrapped: Wrapped, tmp_path: Path) -> None:
        """Cancelling a whole run is one scancel."""
        gate = Gate(tmp_path / "gate")
        array = Executor(tmp_path / "runs", cluster="slurm").map_array(gate.enter, range(50), tasks=50)
        gate.await_arrival(0)

        assert array.cancel()
        assert [f"scancel {array.job_ids[0]}"] == wrapped.calls(["scancel"])
        wait_until(lambda: not queue(*array.job_ids))

    @pytest.mark.usefixtures("wrapped")
    def test_ctrl_c(self, tmp_path: Path) -> None:
        """Ctrl-C leaves the jobs running, and a message says how to attach."""
        gate = Gate(tmp_path / "gate")
        script = """
            import sys
            from pathlib import Path
            from slurmlaunch import Executor
            from tests.support.waiting import Gate

            gate = Gate.__new__(Gate)
            gate.folder = Path(sys.argv[2])
            array = Executor(sys.argv[1], cluster="slurm").map_array(gate.enter, "ab", chunksize=1)
            print(array.folder, flush=True)
            array.results()
            """
        process = client(tmp_path / "client", script, tmp_path / "runs", gate.folder)
        assert process.stdout
        folder = process.stdout.readline().strip()
        gate.await_arrival("a", "b")
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=30)[1]
        gate.open()

        assert f"slurmlaunch.attach({folder!r})" in err
        assert ["a", "b"] == attach(folder).results(timeout=60)


class TestMany:
    """Many clients at once."""

    @pytest.mark.usefixtures("wrapped")
    @pytest.mark.parametrize("number", [4, pytest.param(10, marks=pytest.mark.long)])
    def test_executors(self, tmp_path: Path, number: int) -> None:
        """Two executors in each of several processes: every one gets its own values."""
        script = """
            import sys
            from concurrent.futures import ThreadPoolExecutor
            from slurmlaunch import Executor

            def one(number):
                with Executor(sys.argv[1], cluster="slurm") as executor:
                    return executor.map_array(lambda x: x + number, range(4), tasks=2).results(timeout=200)

            with ThreadPoolExecutor(2) as threads:
                print(list(threads.map(one, (int(sys.argv[2]), int(sys.argv[2]) + 1000))))
            """
        processes = [client(tmp_path / "client", script, tmp_path / "runs", 10 * i) for i in range(number)]

        for i, process in enumerate(processes):
            expected = [[n + 10 * i for n in range(4)], [n + 10 * i + 1000 for n in range(4)]]
            assert f"{expected}\n" == ended(process)

    def test_queries_are_shared(self, wrapped: Wrapped, tmp_path: Path) -> None:
        """Ten watching processes cause no more queries than one."""
        gate = Gate(tmp_path / "gate")
        script = """
            import sys, slurmlaunch

            array = slurmlaunch.attach(sys.argv[1])
            print(array.wait(timeout=float(sys.argv[2])), flush=True)
            """
        asked = []
        for count in (1, 10):
            array = Executor(tmp_path / "runs", cluster="slurm").map_array(gate.enter, [f"{count}"])
            gate.await_arrival(count)
            before = len(wrapped.calls(["squeue", "sacct"]))
            watchers = [client(tmp_path / "client", script, array.folder, 15) for _ in range(count - 1)]
            time.sleep(15)
            asked.append(len(wrapped.calls(["squeue", "sacct"])) - before)
            assert ["False\n"] * (count - 1) == [ended(each) for each in watchers]
            gate.open(count)
            array.results(timeout=60)

        # One more, since the two counts are not taken at the same moment.
        assert asked[1] <= asked[0] + 1, asked


def test_a_clock_that_jumps(
    wrapped: Wrapped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: Cluster
) -> None:
    """Setting the clock an hour back or forward stops neither results nor states."""
    real = time.time
    gate = Gate(tmp_path / "gate")
    array = Executor(tmp_path / "runs", cluster="slurm").map_array(gate.enter, "abc", tasks=3)
    gate.await_arrival("a", "b", "c")
    for item, hours in (("a", -1), ("b", 1)):
        monkeypatch.setattr(time, "time", lambda hours=hours: real() + 3600 * hours)
        index = "abc".index(item)
        cluster.run("scancel", array[index].job_id or "")
        assert isinstance(array[index].exception(timeout=60), TaskCancelled)
    gate.open("c")

    assert "c" == array[2].result(timeout=60)
