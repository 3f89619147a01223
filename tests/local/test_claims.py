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

from slurmlaunch.errors import NodeStartError, RunFolderError
from slurmlaunch.runfolder.claims import Claim, Claimer, ClaimReader
from slurmlaunch.runfolder.files import Location
from slurmlaunch.runfolder.plan import Blocks

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
    while (claimed := claimer.claim(lambda front: 1 + front.block % 3)) is not None:
        print(claimed.start, claimed.stop)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a round's claims."""
    path = tmp_path / "claims"
    path.mkdir(mode=0o700)
    return path


def owners(folder: Path) -> dict[int, tuple[int, int]]:
    """Return the task and the attempt that have each block, as a new reader sees it."""
    return {claim.block: (claim.task, claim.attempt) for claim in ClaimReader(Location(folder)).new()}


def claim(claimer: Claimer, number: int = 1) -> list[int | None]:
    """Claim single positions; return each, or None where none was left."""
    found = [claimer.claim() for _ in range(number)]
    return [None if each is None else each.start for each in found]


def test_a_race(folder: Path) -> None:
    """When many processes claim blocks at once, each position has one owner, and none is left."""
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
    lines = {task: process.communicate()[0].splitlines() for task, process in enumerate(processes)}
    taken = {task: [range(*map(int, line.split())) for line in found] for task, found in lines.items()}

    assert sorted(position for each in taken.values() for part in each for position in part) == list(range(number))
    read = list(ClaimReader(Location(folder)).new())
    assert {claim.positions: claim.task for claim in read} == {
        part: task for task, parts in taken.items() for part in parts
    }
    in_order = sorted(read, key=lambda claim: claim.block)
    assert [claim.tasks for claim in in_order] == [
        len({each.task for each in in_order[: i + 1]}) for i in range(len(in_order))
    ]
    assert len(list(folder.iterdir())) == 2 * len(read), "a task that was slower leaves no file"


def test_a_late_claim(folder: Path) -> None:
    """A claim after the last block finds nothing, and leaves nothing behind."""
    first = Claimer(Location(folder), 0, 0, 5)
    assert claim(first, 6) == [0, 1, 2, 3, 4, None]
    before = set(folder.iterdir())
    late = Claimer(Location(folder), 1, 0, 5)

    assert (late.unclaimed, late.claim()) == (0, None)
    assert set(folder.iterdir()) == before


def test_in_turns(folder: Path) -> None:
    """The first free block is found however far the others have come."""
    first, second = Claimer(Location(folder), 0, 0, 100), Claimer(Location(folder), 1, 0, 100)
    assert claim(first, 37) == list(range(37))
    assert second.unclaimed == 63
    assert claim(second) == [37]
    assert first.unclaimed == 62
    assert claim(first, 3) == [38, 39, 40]
    assert claim(second, 2) == [41, 42]


def test_the_next_attempt(folder: Path) -> None:
    """It learns of the blocks of those before it, of no others, and of each once."""
    first, other = Claimer(Location(folder), 3, 0, 9), Claimer(Location(folder), 4, 0, 9)
    taken = [*claim(first), *claim(other), *claim(first)]
    second = Claimer(Location(folder), 3, 1, 9)
    assert taken == [0, 1, 2]
    assert second.own() == [Claim(3, 0, 0, 0, 1, 1), Claim(3, 0, 2, 2, 1, 2)]
    assert claim(second) == [3]
    assert claim(first) == [4]  # it was not as dead as was thought
    assert [each.block for each in second.own()] == [3, 4]
    assert owners(folder)[3] == (3, 1)


def test_an_answer_that_was_lost(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that was made, and is reported to exist since the request was sent twice, is a claim all the same."""
    claimer = Claimer(Location(folder), 0, 0, 3)
    link = os.link

    def twice(source: str, target: str, **folders: Any) -> None:
        link(source, target, **folders)
        link(source, target, **folders)

    monkeypatch.setattr(os, "link", twice)
    assert claim(claimer, 4) == [0, 1, 2, None]


def test_a_cache_that_hides_claims(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a network file system's cache hides the claims of others, no block is claimed twice, and none is skipped."""
    monkeypatch.setattr(Location, "exists", lambda _: False)
    claimers = [Claimer(Location(folder), task, 0, 40) for task in range(3)]
    taken = [claim(claimers[i % 3])[0] for i in range(42)]

    assert taken == [*range(40), None, None]


def test_a_file_system_without_hard_links(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system without hard links, the error says so and names the remedy."""

    def refuse(_source: str, _target: str, **_: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(NodeStartError, match="makes no hard links") as caught:
        Claimer(Location(folder), 0, 0, 3).claim()
    assert 'schedule="static"' in caught.value.advice


@pytest.mark.parametrize("number", [errno.EMLINK, errno.ENOSPC])
def test_a_limit_on_links_to_one_file(folder: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Where a file gets no more than a few links, as GlusterFS says with ENOSPC, claims do not notice."""
    link, made = os.link, Counter[str]()

    def refuse_the_third(source: str, target: str, **folders: Any) -> None:
        made[source] += 1
        if made[source] > 2:
            raise OSError(number, os.strerror(number))
        link(source, target, **folders)

    monkeypatch.setattr(os, "link", refuse_the_third)
    claimer = Claimer(Location(folder), 0, 0, 5)
    assert claim(claimer, 6) == [0, 1, 2, 3, 4, None]
    assert owners(folder) == dict.fromkeys(range(5), (0, 0))


def test_a_folder_that_cannot_be_written(folder: Path) -> None:
    """An error other than "file exists" is reported, and does not count as a lost race."""
    claimer = Claimer(Location(folder), 0, 0, 3)
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError):
        claimer.claim()


def test_names_that_are_no_claims(folder: Path) -> None:
    """Other files and odd numbers have no owner; behind a torn claim nothing can be claimed, and the error says so."""
    for name in ("x", "1.2", "1.2.3", "007", "²", "5.new", ".nfs0001"):
        (folder / name).touch()
    claimer = Claimer(Location(folder), 0, 0, 9)
    assert claim(claimer, 3) == [0, 1, 2]
    (folder / "3").write_text("0.0.3.3.1", encoding="ascii")

    assert owners(folder) == dict.fromkeys(range(3), (0, 0))
    with pytest.raises(RunFolderError, match="is damaged"):
        claim(claimer)


def test_claims_of_the_first_release(folder: Path) -> None:
    """Claims of 0.1.0 do not state their positions: these follow from the block's number."""
    blocks = Blocks(9, 2, "dynamic", 2)
    (folder / "4.0.0").write_text("4.0.0\n", encoding="ascii")
    (folder / "4.0.0").chmod(0o600)
    os.link(folder / "4.0.0", folder / "0")
    os.link(folder / "4.0.0", folder / "1")
    claimer = Claimer(Location(folder), 5, 0, 9, blocks=blocks)

    assert claimer.claim(lambda front: len(blocks.positions_of(front.block))) == range(4, 6)
    assert {claim.positions: claim.task for claim in ClaimReader(Location(folder), blocks).new()} == {
        range(2): 4,
        range(2, 4): 4,
        range(4, 6): 5,
    }
    assert [claim.block for claim in ClaimReader(Location(folder)).new()] == [2]


def test_a_copy(folder: Path, tmp_path: Path) -> None:
    """A copied run folder has the same claims, though its links are separate files."""
    claimers = [Claimer(Location(folder), task, 0, 6) for task in range(2)]
    for _ in range(3):
        for claimer in claimers:
            claim(claimer)
    shutil.copytree(folder, tmp_path / "copy")

    assert owners(tmp_path / "copy") == owners(folder)
    assert owners(folder) == {block: (block % 2, 0) for block in range(6)}


def test_news(folder: Path) -> None:
    """A reader reports each claim once, whenever it becomes visible."""
    claimer, listing = Claimer(Location(folder), 7, 2, 9), ClaimReader(Location(folder))
    seen = [list(listing.new())]
    for _ in range(2):
        claim(claimer)
        seen += [list(listing.new()), list(listing.new())]

    assert seen == [[], [Claim(7, 2, 0, 0, 1, 1)], [], [Claim(7, 2, 1, 1, 1, 1)], []]


def test_a_folder_at_rest_is_not_listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that has not changed for long is not listed; one that has is."""
    now = 0.0
    claimer, reader = Claimer(Location(folder), 0, 0, 9), ClaimReader(Location(folder), clock=lambda: now)
    claim(claimer)
    assert len(list(reader.new())) == 1
    now = 3.0  # the coarsest step of a file system's time is over: listed once more, for files of that time
    assert list(reader.new()) == []
    scandir = os.scandir
    listed: list[Path] = []
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))  # type: ignore[func-returns-value]

    assert (list(reader.new()), listed) == ([], [])
    claim(claimer)
    assert ([each.block for each in reader.new()], len(listed)) == ([1], 1)
