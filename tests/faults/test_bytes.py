"""Outcome files that are torn, flipped, doubled or missing, and files of other users: never a wrong value."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from slurmlaunch import Executor, NodeStartError, ResultLost, UnsafeRunFolder, attach
from slurmlaunch.runfolder.layout import RunFolder
from slurmlaunch.runfolder.rounds import Round
from tests.support.tasks import OneRun, rows

if TYPE_CHECKING:
    from slurmlaunch import FutureArray

pytestmark = pytest.mark.slow

ITEMS, TASKS = 12, 3
NEVER = 30.0
"""Seconds after which a wait is called endless."""


class Deed(NamedTuple):
    """One kind of damage to a run's outcome files.

    Attributes:
        kind: its name.
        task: the task whose file it is.
        position: the place in the file, as a share of its length.
        bit: the bit at that place, or the other task.
    """

    kind: str
    task: int
    position: float
    bit: int

    def do(self, outcomes: Path) -> None:
        """Damage the file."""
        file = outcomes / f"{self.task}.0"
        if not file.exists():
            return
        data = bytearray(file.read_bytes())
        at = min(int(self.position * len(data)), max(0, len(data) - 1))
        if self.kind == "remove":
            file.unlink()
            return
        if self.kind == "flip" and data:
            data[at] ^= 1 << self.bit
        elif self.kind == "tear":
            del data[at:]
        elif self.kind == "cut out":
            del data[at : at + 1 + self.bit]
        elif self.kind == "put in":
            data[at:at] = bytes(range(self.bit + 1))
        elif self.kind == "double":
            data += data[at:]
        elif self.kind == "second attempt":
            beside = outcomes / f"{self.task}.1"
            beside.write_bytes(data[:at])
            beside.chmod(0o600)
        file.write_bytes(data)


KINDS = ("flip", "tear", "cut out", "put in", "double", "second attempt", "remove")
deeds = st.builds(Deed, st.sampled_from(KINDS), st.integers(0, TASKS - 1), st.floats(0, 1), st.integers(0, 7))


def work(number: int) -> Any:
    """Return values of several kinds and sizes, and raise for two items."""
    if number in {3, 7}:
        raise ValueError(f"item {number}")
    if number in {1, 2, 8}:
        return number / 2 if number == 8 else number
    return (number, os.environ.get("NOTHING", "x") * 50 * number)


def shown(array: FutureArray[Any]) -> list[object]:
    """Return the items' outcomes in a form that compares."""
    found = array.results(timeout=NEVER, return_exceptions=True)
    return [repr(each) if isinstance(each, ValueError) else each for each in found]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> FutureArray[Any]:
    """Return a run that has ended."""
    from tests import faults  # its functions travel by value: no node imports pytest

    executor = Executor(tmp_path_factory.mktemp("whole"), cluster="local", by_value=[faults])
    array = executor.map_array(work, range(ITEMS), tasks=TASKS)
    array.wait()
    executor.shutdown()
    return array


@example(done=[Deed("second attempt", 0, 0.0, 0), Deed("remove", 0, 0.0, 0)])
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(done=st.lists(deeds, min_size=1, max_size=4))
def test_whatever_is_done_to_outcomes(
    whole: FutureArray[Any], monkeypatch: pytest.MonkeyPatch, done: list[Deed]
) -> None:
    """Each item has its true outcome, or is lost with its file and position; nothing waits for ever."""
    monkeypatch.setenv("SLURMLAUNCH_LATENCY", "0.05")
    expected = shown(whole)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # the client may still write there
        copy = shutil.copytree(whole.folder, Path(folder, "copy"))
        for each in done:
            each.do(copy / "outcomes")
        found = shown(attach(copy))
        touched = {each.task for each in done}

        for item, (was, is_) in enumerate(zip(expected, found, strict=True)):
            if is_ == was:
                continue
            assert item * TASKS // ITEMS in touched, (item, is_)
            if isinstance(is_, NodeStartError):
                # A Python that cannot start ends with status 1 too: without its file failures look the same.
                assert ("remove", item * TASKS // ITEMS) in {(each.kind, each.task) for each in done}
                continue
            assert isinstance(is_, ResultLost), (item, is_)
            assert is_.file is not None
            assert is_.file.startswith(str(copy / "outcomes" / f"{item * TASKS // ITEMS}."))
            assert isinstance(is_.offset, int)
            assert is_.file in str(is_)


def test_a_retry_runs_lost_items(whole: FutureArray[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry runs the lost items, and only those."""
    monkeypatch.setenv("SLURMLAUNCH_LATENCY", "0.05")
    copy = shutil.copytree(whole.folder, tmp_path / "copy")
    Deed("flip", 2, 0.9, 3).do(copy / "outcomes")
    array = attach(copy)
    lost = [i for i, each in enumerate(shown(array)) if isinstance(each, ResultLost)]
    assert lost

    again = array.retry()
    assert shown(whole) == shown(again)
    assert len(lost) + 2 == len(Round.read(RunFolder(copy), 1).plan.items or ())


# Other people.


def spoil(path: Path, how: str) -> None:
    """Make a file or folder unsafe."""
    if how == "writable":
        path.chmod(0o666 if path.is_file() else 0o777)
    elif how == "link":
        path.rename(path.with_name(f"{path.name}.real"))
        path.symlink_to(path.with_name(f"{path.name}.real"))
    elif os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:
        pytest.skip("only root can give files away")


@pytest.mark.parametrize("how", ["writable", "link", "owner"])
@pytest.mark.parametrize(
    "part", ["outcomes", "ended", "rounds", "cancelled", "manifest.json", "rounds/0", "rounds/0/plan.json"]
)
def test_attach_refuses(whole: FutureArray[Any], tmp_path: Path, part: str, how: str) -> None:
    """Nothing is unpickled from a run that others may have changed."""
    copy = shutil.copytree(whole.folder, tmp_path / "copy")
    spoil(copy / part, how)

    with pytest.raises(UnsafeRunFolder) as caught:
        attach(copy)
    assert str(copy / part) in str(caught.value)


@pytest.mark.parametrize("how", ["writable", "link", "owner"])
def test_attach_refuses_outcomes(whole: FutureArray[Any], tmp_path: Path, how: str) -> None:
    """The items of an outcome file that others may have changed fail and name it; other files are read."""
    copy = shutil.copytree(whole.folder, tmp_path / "copy")
    spoil(copy / "outcomes" / "1.0", how)

    found, expected = shown(attach(copy)), shown(whole)
    assert all(isinstance(each, ResultLost) and str(copy / "outcomes" / "1.0") in str(each) for each in found[4:8])
    assert (expected[:4], expected[8:]) == (found[:4], found[8:])


@pytest.mark.parametrize("how", ["writable", "link", "owner"])
@pytest.mark.parametrize(
    "part",
    [
        ".",
        "manifest.json",
        "function",
        "items",
        "items.index",
        "outcomes",
        "cancelled",
        "rounds/0",
        "rounds/0/plan.json",
    ],
)
def test_the_node_refuses(tmp_path: Path, part: str, how: str) -> None:
    """A node runs nothing if others may have changed a file, and its error names the file."""
    witness = tmp_path / "witness"
    run = OneRun(tmp_path / "run", witness.write_text, rows(["was here"]))
    spoil(run.folder.path / part, how)
    if how == "link" and part == ".":
        pytest.skip("a link to a run folder is the user's own way to it")

    done = run.run()

    said = done.err + "".join(map(str, run.errors().values() if done.status == 1 else ()))
    assert (str(run.folder.path / part) in said, witness.exists(), done.status in {1, 4}) == (True, False, True), said
