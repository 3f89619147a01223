"""Claims: each block has one owner, however many processes claim it, and all readers agree on the owner."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import textwrap
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch.errors import NodeStartError
from slurmlaunch.runfolder.claims import Claimant, Claimer, ClaimReader
from slurmlaunch.runfolder.files import Location

if TYPE_CHECKING:
    from pathlib import Path

RACES = """
    import sys
    from slurmlaunch.runfolder.claims import Claimer
    from slurmlaunch.runfolder.files import Location

    folder, task, number = Location(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    claimer = Claimer(folder, task, 0, number)
    print("ready", flush=True)
    sys.stdin.readline()
    while (block := claimer.claim()) is not None:
        print(block)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a round's claims."""
    path = tmp_path / "claims"
    path.mkdir(mode=0o700)
    return path


def owners(folder: Path) -> dict[int, Claimant]:
    """Return the owner of each block, as a new reader sees it."""
    return dict(ClaimReader(Location(folder)).new())


def test_a_race(folder: Path) -> None:
    """When many processes claim blocks at once, each block has one owner, and none is left."""
    number, racers = 300, 12
    command = [sys.executable, "-c", textwrap.dedent(RACES), str(folder)]
    processes = [
        subprocess.Popen([*command, str(task), str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for task in range(racers)
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    taken = {task: [int(line) for line in process.communicate()[0].split()] for task, process in enumerate(processes)}

    assert sorted(block for blocks in taken.values() for block in blocks) == list(range(number))
    assert all(blocks == sorted(blocks) for blocks in taken.values())
    found = owners(folder)
    assert {block: owner.task for block, owner in found.items()} == {
        block: task for task, blocks in taken.items() for block in blocks
    }
    assert len({path.stat().st_ino for path in folder.iterdir()}) <= racers


def test_a_late_claim(folder: Path) -> None:
    """A claim after the last block finds nothing, and leaves nothing behind."""
    first = Claimer(Location(folder), 0, 0, 5)
    assert [first.claim() for _ in range(6)] == [0, 1, 2, 3, 4, None]
    before = set(folder.iterdir())
    late = Claimer(Location(folder), 1, 0, 5)

    assert (late.first_unclaimed(), late.claim()) == (None, None)
    assert set(folder.iterdir()) == before


def test_in_turns(folder: Path) -> None:
    """The first free block is found however far the others have come."""
    first, second = Claimer(Location(folder), 0, 0, 100), Claimer(Location(folder), 1, 0, 100)
    assert [first.claim() for _ in range(37)] == list(range(37))
    assert second.first_unclaimed() == 37
    assert second.claim() == 37
    assert first.first_unclaimed() == 38
    assert [first.claim() for _ in range(3)] == [38, 39, 40]
    assert [second.claim() for _ in range(2)] == [41, 42]


def test_the_next_attempt(folder: Path) -> None:
    """It learns of the blocks of those before it, of no others, and of each once."""
    first, other = Claimer(Location(folder), 3, 0, 9), Claimer(Location(folder), 4, 0, 9)
    taken = [first.claim(), other.claim(), first.claim()]
    second = Claimer(Location(folder), 3, 1, 9)
    assert taken == [0, 1, 2]
    assert second.own() == [0, 2]
    assert second.claim() == 3
    late = first.claim()  # it was not as dead as was thought
    assert late == 4
    assert second.own() == [3, 4]
    assert owners(folder)[3] == Claimant(3, 1)


def test_an_answer_that_was_lost(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that was made, and is reported to exist since the request was sent twice, is a claim all the same."""
    claimer = Claimer(Location(folder), 0, 0, 3)
    link = os.link

    def twice(source: str, target: str, **folders: Any) -> None:
        link(source, target, **folders)
        link(source, target, **folders)

    monkeypatch.setattr(os, "link", twice)
    assert [claimer.claim() for _ in range(4)] == [0, 1, 2, None]


def test_a_cache_that_hides_claims(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a network file system's cache hides the claims of others, no block is claimed twice, and none is skipped."""
    monkeypatch.setattr(Location, "exists", lambda _: False)
    claimers = [Claimer(Location(folder), task, 0, 40) for task in range(3)]
    taken = [claimers[i % 3].claim() for i in range(42)]

    assert taken == [*range(40), None, None]


def test_a_file_system_without_hard_links(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system without hard links, the error says so and names the remedy."""

    def refuse(_source: str, _target: str, **_: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(NodeStartError, match="makes no hard links") as caught:
        Claimer(Location(folder), 0, 0, 3).claim()
    assert "leave schedule= out" in caught.value.advice


@pytest.mark.parametrize("number", [errno.EMLINK, errno.ENOSPC])
def test_a_limit_on_links_to_one_file(folder: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Where no more links to one file are made, as GlusterFS says with ENOSPC, claims go on with another file."""
    link, made = os.link, Counter[str]()

    def refuse_the_third(source: str, target: str, **folders: Any) -> None:
        made[source] += 1
        if made[source] > 2:
            raise OSError(number, os.strerror(number))
        link(source, target, **folders)

    monkeypatch.setattr(os, "link", refuse_the_third)
    claimer = Claimer(Location(folder), 0, 0, 5)
    assert [claimer.claim() for _ in range(6)] == [0, 1, 2, 3, 4, None]
    assert owners(folder) == dict.fromkeys(range(5), Claimant(0, 0))


def test_a_folder_that_cannot_be_written(folder: Path) -> None:
    """An error other than "file exists" is reported, and does not count as a lost race."""
    claimer = Claimer(Location(folder), 0, 0, 3)
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError):
        claimer.claim()


def test_names_that_are_no_claims(folder: Path) -> None:
    """Other files and folders, odd numbers and torn claims have no owner, and nobody takes over a torn one."""
    for name in ("x", "1.2", "007", "²", "5.new", ".nfs0001"):
        (folder / name).touch()
    (folder / "0").write_text("torn", encoding="ascii")
    (folder / "1").mkdir()
    claimer = Claimer(Location(folder), 0, 0, 4)

    assert [claimer.claim() for _ in range(3)] == [2, 3, None]
    assert owners(folder) == {2: Claimant(0, 0), 3: Claimant(0, 0)}


def test_a_copy(folder: Path, tmp_path: Path) -> None:
    """A copied run folder has the same claims, though its links are separate files."""
    claimers = [Claimer(Location(folder), task, 0, 6) for task in range(2)]
    for _ in range(3):
        for claimer in claimers:
            claimer.claim()
    shutil.copytree(folder, tmp_path / "copy")

    assert owners(tmp_path / "copy") == owners(folder)
    assert {block: block % 2 for block in range(6)} == {block: owner.task for block, owner in owners(folder).items()}


def test_news(folder: Path) -> None:
    """A reader reports each claim once, whenever it becomes visible."""
    claimer, listing = Claimer(Location(folder), 7, 2, 9), ClaimReader(Location(folder))
    seen = [list(listing.new())]
    for _ in range(2):
        claimer.claim()
        seen += [list(listing.new()), list(listing.new())]

    assert seen == [[], [(0, Claimant(7, 2))], [], [(1, Claimant(7, 2))], []]


def test_a_folder_at_rest_is_not_listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that has not changed for long is not listed; one that has is."""
    now = 0.0
    claimer, reader = Claimer(Location(folder), 0, 0, 9), ClaimReader(Location(folder), lambda: now)
    claimer.claim()
    assert len(list(reader.new())) == 1
    now = 3.0  # the coarsest step of a file system's time is over: listed once more, for files of that time
    assert list(reader.new()) == []
    scandir = os.scandir
    listed: list[Path] = []
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))  # type: ignore[func-returns-value]

    assert (list(reader.new()), listed) == ([], [])
    claimer.claim()
    assert ([block for block, _ in reader.new()], len(listed)) == ([1], 1)


@pytest.mark.slow
def test_more_than_a_file_may_have_links(folder: Path) -> None:
    """The limit of the file system on the links of one file (ext4: 65000) is none on claims."""
    number = 66_000
    claimer = Claimer(Location(folder), 0, 0, number)
    count = sum(1 for _ in iter(claimer.claim, None))

    assert count == number
    assert set(owners(folder).values()) == {Claimant(0, 0)}
