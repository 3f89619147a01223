"""Damaged files of every kind, also with right checksums: each reader says so, with file and place."""

from __future__ import annotations

import pickle
import random
import resource
import shutil
import threading
from array import array
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slurmlaunch.client.attach import inspect
from slurmlaunch.errors import ResultLost, RunFolderError
from slurmlaunch.runfolder.files import write_whole
from slurmlaunch.runfolder.items import ItemReader
from slurmlaunch.runfolder.layout import Manifest, RunFolder
from slurmlaunch.runfolder.outcomes import Launch, OutcomeFile, Recorded
from slurmlaunch.runfolder.records import Damage, Entry, Kind, RecordWriter, encode, pack
from slurmlaunch.runfolder.rounds import Round
from tests.faults.readers import TARGETS, read_damaged, read_snapshot, write_sample

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = 40
"""Of each reader. `tests.faults.fuzz` has Hypothesis look for more, for as long as one likes."""


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run folder with a file of each kind, one for all tests."""
    path = tmp_path_factory.mktemp("sample") / "run"
    write_sample(path)
    return path


@pytest.fixture
def folder(sample: Path, tmp_path: Path) -> RunFolder:
    """Return a copy of the run folder, to be damaged."""
    return RunFolder(shutil.copytree(sample, tmp_path / "run"))


@pytest.fixture
def _little_memory() -> Iterator[None]:
    """Let this process have one GiB more than it has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.usefixtures("_little_memory")
@pytest.mark.parametrize("name", TARGETS)
def test_readers(sample: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Each reader reads the whole files, and of damaged ones raises only what is specified."""
    monkeypatch.setenv("SLURMLAUNCH_LATENCY", "0")
    TARGETS[name].read(RunFolder(sample))
    for seed in range(EXAMPLES):
        read_damaged(sample, TARGETS[name], random.Random(f"{name} {seed}"))


def test_snapshots() -> None:
    """A damaged snapshot of the scheduler's answers is an empty one, or is used as it is."""
    for seed in range(EXAMPLES):
        read_snapshot(random.Random(seed))


# What once was another exception, each by name.


def rewrite(folder: RunFolder, task: str, *entries: Entry) -> OutcomeFile:
    """Write an outcome file anew; return its reader."""
    path = folder.outcomes / task
    path.unlink()
    with RecordWriter(path, salt=folder.salt) as file:
        file.append(*entries)
    return OutcomeFile(path, folder.salt)


def test_a_plan_of_another_form(folder: RunFolder) -> None:
    """The error names the file, the position and the key."""
    file = Path(folder.round(0) / "plan.json")
    file.write_text(file.read_text().replace('"first_task": 0', '"first_task": "0"', 1))
    with pytest.raises(RunFolderError, match=r"plan\.json is damaged, at byte 0: first_task is not what") as raised:
        Round.read(folder, 0)
    assert (raised.value.path, raised.value.offset) == (str(file), 0)


def test_a_plan_that_contradicts_itself(folder: RunFolder) -> None:
    """A plan of other items than the run has is damaged, however many it says there are."""
    Manifest.read(folder)
    file = Path(folder.round(0) / "plan.json")
    file.write_text(file.read_text().replace('"items": 24', f'"items": {10**15}', 1))
    with pytest.raises(RunFolderError, match="it has 1000000000000000 items, and the run 24"):
        Round.read(folder, 0)


def test_deep_json_in_a_thread(folder: RunFolder) -> None:
    """JSON that is nested deeper than Python can read is damage, also in a thread."""
    Path(folder.manifest).write_bytes(b"[" * 200_000)
    found: list[BaseException] = []

    def read() -> None:
        try:
            Manifest.read(folder)
        except BaseException as error:  # noqa: BLE001  (it is compared)
            found.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert [type(each) for each in found] == [RunFolderError]


def test_a_launch_of_items_that_there_are_not(folder: RunFolder) -> None:
    """A launch of more items than the run has is damage; they are not counted up."""
    Manifest.read(folder)
    file = folder.outcomes / "9.0"
    with RecordWriter(file, salt=folder.salt) as writer:
        writer.note(launch=0, items=[[3, 1 << 40]], host="host", port=1)
    with pytest.raises(RunFolderError, match="a launch has items that the run, of 24, has not") as raised:
        Launch.read(OutcomeFile(file, folder.salt), 0, 24)
    assert raised.value.path == str(file)


def test_missing_modules(folder: RunFolder) -> None:
    """If the file of the modules is missing, the error names it."""
    (folder.root / "modules").unlink()
    with pytest.raises(RunFolderError, match="modules is damaged, at byte 0: it is missing") as raised:
        inspect(folder.path).code(0)
    assert raised.value.path == str(folder.root / "modules")


@pytest.mark.parametrize("arguments", [7, "ab", ["a"]])
def test_arguments_that_are_none(tmp_path: Path, arguments: object) -> None:
    """A pickle that is no tuple of arguments is damage, with file and position; the function is not called."""
    folder = RunFolder(tmp_path)
    payload = pack([pickle.dumps(arguments)])
    write_whole(folder.items, [encode(Kind.ITEMS, payload, count=1)])
    write_whole(folder.items_index, [bytes(16)])
    with closing(ItemReader(folder)) as items, pytest.raises(ResultLost) as raised:
        items[0]
    assert (raised.value.file, raised.value.offset) == (str(folder.items), 0)


def test_a_note_of_no_json(folder: RunFolder) -> None:
    """A damaged note costs no outcome."""
    Manifest.read(folder)
    value = Entry.of(Kind.INTEGERS, [bytes(8)], first=0, number=1)
    file = rewrite(folder, "0.0", Entry.of(Kind.NOTE, [b"{"]), value)
    damage, recorded = file.read(final=True)
    assert isinstance(damage, Damage)
    assert isinstance(recorded, Recorded)
    assert recorded.read().outcome(0).unwrap() == 0


@pytest.mark.parametrize(
    "note", [b"[1]", b'{"time": 1, "submitted": 0}', b'{"time": 1, "submitted": 9, "job_id": "1"}']
)
def test_a_note_of_another_form_in_a_journal(folder: RunFolder, note: bytes) -> None:
    """The error names the file and the position, also if the note is of an array that the round has not."""
    journal = folder.round(0) / "journal"
    size = journal.status().st_size
    with RecordWriter(journal) as writer:
        writer.append(Entry.of(Kind.NOTE, [note]))
    with pytest.raises(RunFolderError, match=f"journal is damaged, at byte {size}") as raised:
        Round.read(folder, 0).journal()
    assert raised.value.offset == size


@pytest.mark.parametrize(
    "entry",
    [
        Entry.of(Kind.INTEGERS, [bytes(12)], first=0, number=2),
        Entry.of(Kind.VALUES, [array("I", [5, 5]).tobytes(), b"123456789"], first=0, number=2),
        Entry.of(Kind.VALUES, [b"12"], first=0, number=2),
        Entry.of(Kind.FAILURE, [b"no failure"], first=0, number=1),
        Entry.of(Kind.FAILURE, [b"\x80\x04N."], first=0, number=1),
    ],
)
def test_records_of_another_form(folder: RunFolder, entry: Entry) -> None:
    """A record whose payload is not what its header says is a lost result, with file and position."""
    Manifest.read(folder)
    (found,) = rewrite(folder, "0.0", entry).read(final=True)
    if isinstance(found, Damage):
        assert (found.offset, found.header) == (0, entry.header)
        return
    with pytest.raises(ResultLost) as raised:
        found.read()
    assert (raised.value.file, raised.value.offset) == (str(folder.outcomes / "0.0"), 0)
