"""Safe files: nothing is unpickled from files that others may have written, and files appear whole."""

from __future__ import annotations

import datetime as dt
import json
import os
import resource
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from slurmlaunch.cli import doctor as cli_doctor
from slurmlaunch.client.doctor.full import NotAvailable, Site
from slurmlaunch.client.watcher import current_client
from slurmlaunch.errors import RunFolderError, UnknownProtocol, UnsafeRunFolder
from slurmlaunch.runfolder.files import Location, open_owned, read_owned, write_whole
from slurmlaunch.runfolder.layout import EndMark, Manifest, RunFolder
from slurmlaunch.runfolder.runs_folder import others_may_exchange
from tests.support.files import located
from tests.support.tasks import OneRun, rows

if TYPE_CHECKING:
    from collections.abc import Iterator

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

NOBODY = 65534


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a file that is safe to read."""
    path = tmp_path / "file"
    write_whole(located(path), [b"content"])
    return path


# Reading.


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o644, 0o755])
def test_the_users_own_files_are_read(file: Path, mode: int) -> None:
    """A file that belongs to the user, and that nobody else may write to, is read."""
    file.chmod(mode)

    assert read_owned(located(file)) == b"content"


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o777])
def test_files_writable_by_others_are_refused(file: Path, mode: int) -> None:
    """A file or folder that group or others may write to is refused; the error names it and how to mend it."""
    for read, path, location in (
        (open_owned, file, located(file)),
        (Location.check, file.parent, Location(file.parent)),
    ):
        path.chmod(mode | 0o100)
        with pytest.raises(UnsafeRunFolder, match="chmod -R go-w") as refused:
            read(location)
        assert refused.value.path == str(path)
        path.chmod(0o700)


@needs_root
def test_files_of_other_users_are_refused(file: Path) -> None:
    """A file or folder of another user is refused for any mode; the error names the owner."""
    for read, path, location in (
        (open_owned, file, located(file)),
        (Location.check, file.parent, Location(file.parent)),
    ):
        os.chown(path, NOBODY, -1)
        with pytest.raises(UnsafeRunFolder, match=f"user {NOBODY}"):
            read(location)
        os.chown(path, 0, -1)


def test_symbolic_links_are_refused(file: Path) -> None:
    """A symbolic link is refused, also if its target is readable or missing."""
    for name, target in (("to file", file), ("to folder", file.parent), ("to nothing", file / "none")):
        link = file.parent / name
        link.symlink_to(target)
        for read, location in ((open_owned, located(link)), (Location.check, Location(link))):
            with pytest.raises(UnsafeRunFolder, match="symbolic link"):
                read(location)


def test_missing_files_are_not_unsafe(tmp_path: Path, file: Path) -> None:
    """A missing file raises FileNotFoundError; a missing folder, or a file in its place, is no run folder."""
    with pytest.raises(FileNotFoundError):
        open_owned(located(tmp_path / "none"))
    for path in (tmp_path / "none", file):
        with pytest.raises(RunFolderError, match="no") as refused:
            Location(path).check()
        assert not isinstance(refused.value, UnsafeRunFolder)


def test_refused_files_are_closed(file: Path) -> None:
    """A refused file is closed."""
    file.chmod(0o666)
    before = os.listdir("/proc/self/fd")  # noqa: PTH208 - a list of numbers, not of paths

    for _ in range(3):
        with pytest.raises(UnsafeRunFolder):
            open_owned(located(file))

    assert len(os.listdir("/proc/self/fd")) == len(before)  # noqa: PTH208 - as above


@pytest.mark.parametrize("name", ["manifest.json", "function", "items", "items.index", "rounds/0/plan.json"])
def test_a_node_unpickles_nothing_that_others_may_write(tmp_path: Path, name: str) -> None:
    """If others may write to any file of a run, the node runs nothing, and its error names the file."""
    witness = tmp_path / "witness"
    run = OneRun(tmp_path / "run", witness.touch, [()])
    (run.folder.path / name).chmod(0o666)

    ended = run.run()

    said = ended.err + "".join(map(str, run.errors().values()))
    assert (str(run.folder.path / name) in said, witness.exists(), ended.status in {1, 4}) == (True, False, True)


def test_a_node_refuses_a_run_folder_that_others_may_write(tmp_path: Path) -> None:
    """A run folder that others may write to is refused before anything in it is read, with status 4."""
    run = OneRun(tmp_path / "run", print, rows(["executed"]))
    run.folder.path.chmod(0o777)

    ended = run.run()

    assert (ended.status, ended.out, "may be written by others" in ended.err) == (4, "", True)
    assert list(Path(run.folder.outcomes).iterdir()) == []


# Writing.


def test_written_files_are_private(tmp_path: Path) -> None:
    """Files are made 0600, for any umask."""
    before = os.umask(0)
    try:
        write_whole(located(tmp_path / "file"), [b"a", b"b"])
    finally:
        os.umask(before)

    assert (0o600, b"ab") == ((tmp_path / "file").stat().st_mode & 0o777, read_owned(located(tmp_path / "file")))


def test_a_run_is_the_users_alone(tmp_path: Path) -> None:
    """Every file and folder of a run, those that the node made included, is the user's alone."""
    run = OneRun(tmp_path / "run", abs, rows(range(3)))
    assert run.run().status == 0

    modes = {path.stat().st_mode & 0o777 for path in run.folder.path.rglob("*")}
    assert modes == {0o700, 0o600}


def test_a_failed_write_leaves_the_old_file(file: Path) -> None:
    """If a write fails, the old file stays unchanged, and no temporary file remains."""

    def parts(error: BaseException) -> Iterator[bytes]:
        yield b"x" * 100_000
        raise error

    for error in (ValueError(), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            write_whole(located(file), parts(error))

    assert (read_owned(located(file)), list(file.parent.iterdir())) == (b"content", [file])


def test_a_full_disk_leaves_the_old_file(file: Path) -> None:
    """If the disk is full, the old file stays unchanged, and no temporary file remains."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_whole(located(file), [b"x" * 900, b"y" * 900])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert (read_owned(located(file)), list(file.parent.iterdir())) == (b"content", [file])


def test_a_link_in_its_place_is_replaced(file: Path, tmp_path: Path) -> None:
    """A written file replaces a link and does not follow it."""
    link = tmp_path / "link"
    link.symlink_to(file)

    write_whole(located(link), [b"new"])

    assert (link.is_symlink(), read_owned(located(link)), read_owned(located(file))) == (False, b"new", b"content")


# The manifest and end marks, which are read without a checksum.


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b"\xff", b'{"protocol": 1}'])
def test_a_manifest_that_cannot_be_read_is_no_run(tmp_path: Path, content: bytes) -> None:
    """Any other content of a manifest gives the error that the folder is no run folder."""
    tmp_path.chmod(0o700)
    folder = RunFolder(tmp_path)
    write_whole(folder.manifest, [content])

    with pytest.raises(RunFolderError, match=r"manifest\.json"):
        Manifest.read(folder)


def test_a_manifest_says_which_protocol_it_follows(tmp_path: Path) -> None:
    """Unknown keys are ignored; another protocol is refused, and the error names both."""
    run = OneRun(tmp_path / "run", abs, rows([-1]))
    content = json.loads(Path(run.folder.manifest).read_text())

    write_whole(run.folder.manifest, [json.dumps({**content, "later": 1}).encode()])
    assert Manifest.read(run.folder).items == 1

    write_whole(run.folder.manifest, [json.dumps({**content, "protocol": 3}).encode()])
    with pytest.raises(UnknownProtocol, match=r"protocol 3.* knows 1 and 2"):
        Manifest.read(run.folder)
    assert (run.run().status, list(Path(run.folder.outcomes).iterdir())) == (4, [])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("3.0.143", EndMark(3, 0, 143)),
        ("3.0", None),
        ("3.0.1.2", None),
        ("a.0.1", None),
        ("3..1", None),
        ("-3.0.1", None),
        ("3.0.²", None),
        (".nfs000", None),
    ],
)
def test_only_an_end_mark_is_read_as_one(name: str, expected: EndMark | None) -> None:
    """A file name is an end mark, or it is none; no name is an error."""
    assert EndMark.parse(name) == expected


def test_a_page_of_the_doctor_overwrites_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link in the working directory, where the page would go, is not followed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli_doctor, "dt", SimpleNamespace(datetime=SimpleNamespace(now=lambda: dt.date(2026, 1, 2))))
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "slurmlaunch-doctor-2026-01-02-000000.md").symlink_to("precious")
    with cli_doctor._new_page() as page:  # noqa: SLF001
        page.write("page")
    assert (tmp_path / "precious").read_text() == "mine"
    assert (tmp_path / "slurmlaunch-doctor-2026-01-02-000000-2.md").read_text() == "page"


def test_the_doctor_runs_no_script_that_others_may_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor's script is neither written nor run in a folder that another user may rename."""
    tmp_path.chmod(0o777)
    (tmp_path / "doctor").mkdir(mode=0o700)
    text = "open('ran', 'w'); print(__file__)"
    site = Site(Location(tmp_path / "doctor"), None, {}, current_client().backend("inline"))
    ran = Path(site.script("script", text, 1, {}, 0o077))
    assert not others_may_exchange(ran.parent)
    site.clear([])
    assert (ran.parent.exists(), list(site.folder.iterdir())) == (False, [])

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    site = Site(Location(tmp_path / "doctor"), None, {}, current_client().backend("inline"))
    with pytest.raises(NotAvailable, match="another user may exchange"):
        site.script("script", text, 1, {}, 0o077)
    assert list(tmp_path.rglob("*.py")) == list(site.folder.iterdir()) == []
    site.clear([])
