"""New names in a folder: none is missed, and an unchanged folder costs little."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from slurmlaunch.runfolder.changes import NewNames, is_on_network
from slurmlaunch.runfolder.files import Location


class Watched:
    """A folder, and a clock that the test moves."""

    def __init__(self, path: Path, *, network: bool) -> None:
        self.path, self.now = path, 100.0
        self.names = NewNames(Location(path), lambda: self.now, network=network, first_gap=0.02)

    def after(self, seconds: float) -> set[str]:
        """Return the new files after so many seconds."""
        self.now += seconds
        return self.names.new()

    def add(self, name: str, *, modified: int | None = None) -> None:
        """Add a file; *modified* is the folder's time as a coarse clock shows it afterwards."""
        (self.path / name).touch()
        if modified is not None:
            os.utime(self.path, ns=(modified, modified))


@pytest.fixture(params=[False, True], ids=["disk", "network"])
def watched(request: pytest.FixtureRequest, tmp_path: Path) -> Watched:
    """Return an empty folder and its reader of new names."""
    return Watched(tmp_path, network=request.param)


def test_new_names(watched: Watched) -> None:
    """Each name is reported as new once."""
    assert set() == watched.after(0)
    watched.add("a")
    watched.add("b")
    assert {"a", "b"} == watched.after(1)
    watched.add("c")
    assert {"c"} == watched.after(1)
    assert set() == watched.after(1)


def test_coarse_time_of_modification(watched: Watched) -> None:
    """A file that appears just after a listing, within one tick of the folder's time, is found all the same."""
    watched.add("a", modified=10**18)
    assert {"a"} == watched.after(0)
    watched.add("b", modified=10**18)
    found = [watched.after(0.01) for _ in range(3)]
    assert [set(), set(), {"b"}] == [found[0], found[1] - {"b"}, found[1] | found[2]]

    watched.add("c", modified=10**18)
    assert {"c"} == set().union(*(watched.after(0.1) for _ in range(30)))


def test_quiet(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unchanged folder is listed once a minute; in between only its time of modification is read."""
    listdir, listings = os.listdir, 0

    def counted(path: Path) -> list[str]:
        nonlocal listings
        listings += 1
        return listdir(path)

    monkeypatch.setattr(os, "listdir", counted)
    watched.add("a")
    watched.after(0)
    for _ in range(10):
        watched.after(1)
    listings = 0
    for _ in range(600):
        watched.after(0.1)

    assert 1 == listings


def test_forgotten(watched: Watched) -> None:
    """A forgotten name is reported as new again by the next poll."""
    watched.add("a")
    watched.add("b")
    watched.after(0)
    watched.after(20)
    watched.names.forget({"a"})

    assert [{"a"}, set()] == [watched.after(0.001), watched.after(0.001)]


def test_a_file_system_that_is_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a chroot or a container no mount may hold the folder: then it is this machine's."""
    mounts = "server:/x /data nfs rw 0 0\nserver:/y /my\\040data nfs rw 0 0\n"
    monkeypatch.setattr(Path, "open", lambda *_, **__: io.StringIO(mounts))
    assert [is_on_network(Path(each)) for each in ("/runs", "/data/runs", "/my data/runs")] == [False, True, True]
