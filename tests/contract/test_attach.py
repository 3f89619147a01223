"""Attaching to a run, on every backend, from any process and at any time, and retrying its missing items."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch import (
    NodeFailure,
    RunFolderError,
    SubmissionError,
    TaskState,
    UnknownOption,
    UnknownProtocol,
    UnsafeRunFolder,
    WorkerDied,
    attach,
)
from slurmlaunch.caps import usable_cpus
from slurmlaunch.client.watcher import current_client
from tests.conftest import SLURM, elsewhere, several_cpus
from tests.support import scripts
from tests.support.waiting import Gate, is_alive, show_to_nodes, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from slurmlaunch import Executor, FutureArray
    from tests.support.waiting import Story


def shown(results: list[Any]) -> list[Any]:
    """Return results with exceptions as text, which can be compared."""
    return [repr(each) if isinstance(each, BaseException) else each for each in results]


class TestAttach:
    """From a folder to futures."""

    def test_finished(self, finished: FutureArray[int]) -> None:
        """Attaching to a finished run gives all of its outcomes."""
        again = attach(str(finished.folder))

        assert [0, 1, "ValueError(2)", 9, "ValueError(4)", 25] == shown(again.results(return_exceptions=True))
        assert (finished.counts(), finished.job_ids, finished.folder) == (again.counts(), again.job_ids, again.folder)
        for word in ("index", "job_id", "state"):
            assert [getattr(future, word) for future in finished] == [getattr(future, word) for future in again]
        assert again[0] is not finished[0]

    def test_relative_path(self, finished: FutureArray[int], monkeypatch: pytest.MonkeyPatch) -> None:
        """The folder may be relative to the working directory."""
        monkeypatch.chdir(finished.folder.parent)

        assert finished.folder == attach(finished.folder.name).folder

    def test_copy(self, finished: FutureArray[int], tmp_path: Path) -> None:
        """A run folder is complete: a copy elsewhere works as well."""
        again = attach(shutil.copytree(finished.folder, tmp_path / "a copy"))

        assert tmp_path / "a copy" == again.folder
        assert shown(finished.results(return_exceptions=True)) == shown(again.results(return_exceptions=True))

    @elsewhere
    def test_running(self, executor: Executor, gate: Gate, tmp_path: Path) -> None:
        """Any number of clients, in this process and others, can attach to a running run; all see the same."""
        array = executor.map_array(gate.enter, "ab", tasks=1)
        gate.open("a")
        array[0].result()
        here = attach(array.folder)
        there = scripts.start(
            tmp_path,
            """
            import sys, slurmlaunch

            array = slurmlaunch.attach(sys.argv[1])
            print(array[0].result(timeout=90), array.done(), flush=True)
            print(array.results(timeout=90))
            """,
            array.folder,
        )
        assert there.stdout
        assert "a False\n" == there.stdout.readline()
        assert (1, False) == (here.counts()["done"], here.done())

        gate.open()

        assert ["a", "b"] == array.results() == here.results()
        assert "['a', 'b']\n" == scripts.finish(there)[1]

    @elsewhere
    def test_again_and_again(self, executor: Executor, backend: str, gate: Gate) -> None:
        """A view that was attached and dropped is no longer watched; views with a live reference are still notified."""
        array = executor.map_array(gate.enter, "ab", tasks=1)
        told: list[Any] = []
        future, part = attach(array.folder)[1], attach(array.folder)[:1]
        attach(array.folder)[0].add_done_callback(told.append)
        for _ in range(20):
            assert attach(array.folder).counts()["done"] == 0

        def watched() -> int:
            client = current_client()
            watches = client.watcher.watches_on(client.backend(backend))
            return sum(watch.run.folder.path == array.folder for watch in watches)

        wait_until(lambda: watched() == 4)
        gate.open("a")
        assert ["a"] == part.results(timeout=90)
        wait_until(lambda: told)
        known = part[0]
        del part
        told.clear()
        wait_until(lambda: watched() == 3)
        gate.open()
        assert "b" == future.result(timeout=90)
        assert ["a", "b"] == known.run.results(timeout=90)

    @elsewhere
    def test_cancelled_there(self, executor: Executor, gate: Gate, tmp_path: Path) -> None:
        """A cancellation by one client cancels the items for all clients, and ends their process."""
        array = executor.map_array(gate.enter, "ab", tasks=1)
        gate.await_arrival("a")
        script = """
            import sys, slurmlaunch

            array = slurmlaunch.attach(sys.argv[1])
            print(array[0].cancel(), array[0].cancelled())
            """
        assert "True True\n" == scripts.run(tmp_path, script, array.folder)

        gate.open("b")
        array.wait()
        assert (True, "b") == (array[0].cancelled(), array[1].result())
        wait_until(lambda: not is_alive(gate.process_of("a")))

    @staticmethod
    def killed_client(backend: str, tmp_path: Path, gate: Gate) -> str:
        """Return the run of a killed client, whose first item waits at the gate."""
        client = scripts.start(
            tmp_path,
            """
            import sys, time
            from slurmlaunch import Executor
            from tests.support.waiting import Gate

            gate = Gate.__new__(Gate)
            gate.folder = __import__("pathlib").Path(sys.argv[2])
            array = Executor("runs", cluster=sys.argv[1]).map_array(gate.enter, "ab", tasks=1)
            print(array.folder, flush=True)
            time.sleep(90)
            """,
            backend,
            gate.folder,
        )
        assert client.stdout
        folder = client.stdout.readline().strip()
        gate.await_arrival("a")
        client.kill()
        scripts.finish(client)
        return folder

    @elsewhere
    def test_client_killed(self, backend: str, tmp_path: Path) -> None:
        """A local run ends and reports it when its client is killed; a Slurm run continues. Both can be resumed."""
        gate = Gate(tmp_path / "gate")
        folder = self.killed_client(backend, tmp_path, gate)
        array: FutureArray[str] = attach(folder)
        if backend == "local":
            wait_until(lambda: not is_alive(gate.process_of("a")))
            again = attach(folder).retry()  # at once: items without any report are missing, too
            errors = array.results(timeout=90, return_exceptions=True)
            assert [NodeFailure, NodeFailure] == [type(error) for error in errors]
            array = again
        gate.open()
        assert ["a", "b"] == array.results(timeout=90)

    @pytest.mark.parametrize("backend", ["local"], indirect=True)
    def test_retried_as_soon_as_its_end_is_known(self, backend: str, tmp_path: Path) -> None:
        """A retry of ended tasks waits for outcomes that may not be visible yet, then runs the missing items."""
        gate = Gate(tmp_path / "gate")
        array: FutureArray[str] = attach(self.killed_client(backend, tmp_path, gate))
        wait_until(lambda: array[0].state == TaskState.NODE_FAIL)
        gate.open()
        assert ["a", "b"] == array.retry().results(timeout=90)


class TestRefused:
    """Folders that are no run folder, or that others may write to, are refused; nothing runs."""

    @pytest.fixture
    def folder(self, finished: FutureArray[int], tmp_path: Path) -> Path:
        """Return a run folder to spoil."""
        return shutil.copytree(finished.folder, tmp_path / "run")

    @pytest.fixture(params=["inline"])
    def backend(self, request: pytest.FixtureRequest) -> str:
        """Run on one backend only: reading a folder is the same on all."""
        name: str = request.param
        return name

    @pytest.mark.parametrize("name", ["nothing", "empty", "file"])
    def test_no_run_folder(self, tmp_path: Path, name: str) -> None:
        """A folder that is no run folder is refused, and the error names it."""
        (tmp_path / "empty").mkdir(0o700)
        (tmp_path / "file").touch()

        with pytest.raises(RunFolderError, match=name) as caught:
            attach(tmp_path / name)

        assert str(tmp_path / name) in caught.value.path

    @pytest.mark.parametrize("part", [".", "outcomes", "rounds", "manifest.json", "rounds/0/plan.json"])
    def test_writable_by_others(self, folder: Path, part: str) -> None:
        """A folder that others may write to is refused before anything is unpickled."""
        (folder / part).chmod(0o777)

        with pytest.raises(UnsafeRunFolder, match="may be written by others"):
            attach(folder)

    def test_outcomes_writable_by_others(self, folder: Path) -> None:
        """An outcome that others may write to is not read: its items fail with the reason."""
        (folder / "outcomes" / "0.0").chmod(0o666)

        with pytest.raises(Exception, match="may be written by others"):
            attach(folder).results(timeout=90)

    def test_outcomes_changed_later(self, folder: Path) -> None:
        """The same holds if the damage comes after the outcomes were read: no future waits for ever."""
        array = attach(folder)
        assert array.done()
        (folder / "outcomes" / "0.0").chmod(0o666)
        (folder / "outcomes" / "1.0").unlink()

        assert isinstance(array[0].exception(timeout=90), UnsafeRunFolder)
        assert "cannot be read" in str(array[2].exception(timeout=90))

    def test_newer_protocol(self, folder: Path) -> None:
        """A folder of a newer protocol is refused; unknown keys are ignored."""
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, "flavour": "vanilla"}))
        assert attach(folder).done()

        (folder / "manifest.json").write_text(json.dumps({**manifest, "protocol": 99}))
        with pytest.raises(UnknownProtocol, match="99"):
            attach(folder)


class TestRetry:
    """Manual retries of failed items."""

    def test_failures(self, executor: Executor, story: Story, tmp_path: Path) -> None:
        """Only failed items run again, in the same order, and the original array does not change."""

        def work(number: int) -> int:
            story.tell(number)
            if number % 2 and not (tmp_path / "repaired").exists():
                raise ValueError(number)
            return -number

        array = executor.map_array(work, range(5), chunksize=2)
        before = shown(array.results(return_exceptions=True))
        (tmp_path / "repaired").touch()
        show_to_nodes()
        again = array.retry()

        assert [0, -1, -2, -3, -4] == again.results()
        assert ["0", "1", "1", "2", "3", "3", "4"] == sorted(story.lines)
        assert [0, "ValueError(1)", -2, "ValueError(3)", -4] == before
        assert before == shown(array.results(return_exceptions=True))
        assert (3, 5) == (array.counts()["done"], again.counts()["done"])
        assert [0, 1, 2, 3, 4] == [future.index for future in again]
        assert (array.folder, 2) == (again.folder, len(again.job_ids))
        assert [0, -1, -2, -3, -4] == attach(array.folder).results()

    def test_states_and_places(self, executor: Executor) -> None:
        """A retried item has the job and the state of its last task."""
        array = executor.map_array(lambda x: 1 // x, [1, 0], tasks=2)
        array.wait()
        again = array.retry()
        again.wait()

        assert [array[0].job_id, f"{again.job_ids[1]}_0"] == [future.job_id for future in again]
        assert ["COMPLETED", "FAILED"] == [future.state for future in again]

    def test_again_and_again(self, executor: Executor, story: Story) -> None:
        """A retry can be repeated, from the last array or the first: each time it runs the items that failed so far."""

        def work(number: int) -> int:
            story.tell(number)
            if len(story.lines) < number:
                raise ValueError(number)
            return number

        array = executor.map_array(work, [0, 6, 5], tasks=1)
        array.wait()
        second = array.retry()
        second.wait()
        third = array.retry()

        assert [0, 6, 5] == third.results()
        assert ["0", "6", "5", "6", "5", "6"] == story.lines
        assert [1, 2, 3] == [each.counts()["done"] for each in (array, second, third)]

    def test_asked_for_later(self, executor: Executor, story: Story) -> None:
        """A manual retry may set the number of automatic retries."""

        def work(number: int) -> int:
            story.tell(number)
            if len(story.lines) < number:
                raise ValueError(number)
            return number

        array = executor.map_array(work, [4], tasks=1)
        array.wait()

        assert [4] == array.retry(retries=2, retry_exceptions=[ValueError]).results(timeout=90)
        assert ["4"] * 4 == story.lines

    def test_nothing_failed(self, executor: Executor) -> None:
        """If no item failed, a retry submits nothing, and returns all results."""
        array = executor.map_array(int, "12")
        array.wait()

        again = array.retry()

        assert ([1, 2], True, array.job_ids) == (again.results(), again.done(), again.job_ids)

    def test_submit(self, executor: Executor, tmp_path: Path) -> None:
        """A single call is retried through its run."""
        future = executor.submit((tmp_path / "there").read_text)
        assert isinstance(future.exception(), FileNotFoundError)
        (tmp_path / "there").write_text("now")
        show_to_nodes()

        assert "now" == future.run.retry()[0].result()
        assert isinstance(future.exception(), FileNotFoundError)

    def test_slice(self, executor: Executor, story: Story) -> None:
        """Retrying a slice runs its own failures again, and no others."""

        def work(number: int) -> None:
            story.tell(number)
            raise ValueError(number)

        array = executor.map_array(work, range(4), tasks=1)
        array.wait()
        again = array[3:0:-2].retry()
        again.wait()

        assert ["0", "1", "1", "2", "3", "3"] == sorted(story.lines)
        assert [3, 1] == [future.index for future in again]

    def test_unknown_option(self, executor: Executor) -> None:
        """A retry with an unknown option is refused, and changes nothing."""
        array = executor.map_array(lambda x: 1 // x, [0])
        array.wait()

        with pytest.raises(UnknownOption, match="partition"):
            array.retry(partitoin="large")

        assert array.job_ids == attach(array.folder).job_ids
        assert attach(array.folder).done()

    def test_unknown_option_without_anything_to_retry(self, executor: Executor) -> None:
        """A misspelt option is refused although no item failed."""
        array = executor.map_array(abs, [1])
        array.wait()

        with pytest.raises(UnknownOption, match="time"):
            array.retry(tiem="1:00:00")

    @elsewhere
    def test_changes(self, executor: Executor) -> None:
        """A retry may change options; the others keep their values."""
        executor = executor.options(env={"A": "1", "B": "1"}, threads=1)
        array = executor.map_array(lambda _: os.environ["C"] + os.environ["B"], [0])
        assert isinstance(array[0].exception(), KeyError)

        again = array.retry(env={"B": "2", "C": "3"}, name="other")

        assert ["32"] == again.results()

    @elsewhere
    def test_ended_from_outside(self, executor: Executor, gate: Gate, tmp_path: Path) -> None:
        """Cancelled items, and items whose process died, run again."""

        def work(name: str) -> str:
            if name == "c" and not (tmp_path / "repaired").exists():
                os.kill(os.getpid(), signal.SIGKILL)
            return gate.enter(name)

        array = executor.map_array(work, "abc", tasks=1)
        gate.open("b")
        array[0].cancel()
        assert isinstance(array[2].exception(), WorkerDied)
        (tmp_path / "repaired").touch()
        show_to_nodes()
        gate.open()

        again = array.retry()

        assert ["a", "b", "c"] == again.results()
        assert [True, "b"] == [array[0].cancelled(), array[1].result()]

    @elsewhere
    def test_while_others_run(self, executor: Executor, gate: Gate, tmp_path: Path) -> None:
        """Items that are still running continue, and are part of the retried array."""

        def work(name: str) -> str:
            if name == "a" and not (tmp_path / "repaired").exists():
                raise ValueError(name)
            return gate.enter(name)

        array = executor.map_array(work, "ab", tasks=1)
        array[0].exception()
        gate.await_arrival("b")
        process = gate.process_of("b")
        (tmp_path / "repaired").touch()
        show_to_nodes()
        gate.open("a")

        again = array.retry()

        if usable_cpus() > 1 or executor.cluster == "slurm":
            assert "a" == again[0].result()
        assert not again[1].done()
        gate.open()
        assert ["a", "b"] == again.results()
        assert process == gate.process_of("b")
        assert "b" == array[1].result()

    @elsewhere
    def test_refused(self, executor: Executor) -> None:
        """A retry that the scheduler refuses does not change the array, and can be repeated."""
        array = executor.map_array(lambda x: 1 // x, [0, 1], tasks=1)
        array.wait()
        bad: dict[str, Any] = {"python": ["no-such-python"]} if executor.cluster == "local" else {"partition": "none"}

        with pytest.raises(SubmissionError):
            array.retry(**bad)

        assert isinstance(array[0].exception(), ZeroDivisionError)
        assert isinstance(attach(array.folder)[0].exception(timeout=90), SubmissionError)
        again = array.retry(partition=None, python=None)
        assert (ZeroDivisionError, 1) == (type(again[0].exception(timeout=90)), again[1].result())


class TestThrottle:
    """How many tasks run at once."""

    @pytest.mark.parametrize("backend", ["local"], indirect=True)
    @pytest.mark.parametrize("throttle", [1, None])
    def test_on_this_machine(self, executor: Executor, story: Story, throttle: int | None) -> None:
        """The number of running tasks never exceeds the throttle or the machine's CPUs."""

        def work(_: int) -> None:
            story.tell("+")
            story.tell("-")

        executor.map_array(work, range(6), throttle=throttle).wait()

        running, most = 0, 0
        for line in story.lines:
            running += 1 if line == "+" else -1
            most = max(most, running)
        assert (12, 0) == (len(story.lines), running)
        assert most <= (throttle or usable_cpus())

    @several_cpus
    @elsewhere
    def test_raised(self, executor: Executor, gate: Gate) -> None:
        """Raising a throttle while tasks run lets more of them run, and every client sees it."""
        array = executor.map_array(gate.enter, range(2), throttle=1)
        gate.await_arrival(0)
        if executor.cluster == "slurm":
            assert "ArrayTaskThrottle=1 " in job_of(array)

        array.throttle = 2

        gate.await_arrival(1)
        assert (2, 2) == (array.throttle, attach(array.folder).throttle)
        if executor.cluster == "slurm":
            assert "ArrayTaskThrottle=2 " in job_of(array)

    @pytest.mark.parametrize("backend", [SLURM], indirect=True)
    def test_lifted(self, executor: Executor, gate: Gate) -> None:
        """None removes the throttle; a lowered one reaches Slurm too."""
        array = executor.map_array(gate.enter, range(4), throttle=2)
        gate.await_arrival(0)

        array.throttle = 1
        assert "ArrayTaskThrottle=1 " in job_of(array)
        array.throttle = None
        assert "ArrayTaskThrottle=" not in re.sub("ArrayTaskThrottle=0 ", "", job_of(array))
        gate.await_arrival(0, 1, 2, 3)

    def test_done(self, finished: FutureArray[int]) -> None:
        """Setting the throttle of a finished run has no effect, and is no error."""
        finished.throttle = 5

        assert 5 == finished.throttle
        finished.throttle = None
        assert finished.throttle is None


def job_of(array: FutureArray[Any]) -> str:
    """Return the output of scontrol for the job of an array."""
    command = ["scontrol", "--oneliner", "show", "job", array.job_ids[0]]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("backend", ["local"], indirect=True)
def test_throttle_from_elsewhere(executor: Executor, gate: Gate, tmp_path: Path) -> None:
    """Only the client that runs a local run can change its throttle; another client gets an error."""
    array = executor.map_array(gate.enter, range(2), throttle=1)
    gate.await_arrival(0)
    script = """
        import sys, slurmlaunch

        try:
            slurmlaunch.attach(sys.argv[1]).throttle = 2
        except slurmlaunch.SchedulerError as error:
            print(error)
        """

    assert f"by the client that runs it, process {os.getpid()}" in scripts.run(tmp_path, script, array.folder)
