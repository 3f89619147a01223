"""The file of the user's modules: what is read of it, what damage does, and what has changed since."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from slurmlaunch.errors import RunFolderError
from slurmlaunch.runfolder.modules import Change, Module, ModulesReader, Source, changes_between, write_modules
from tests.support.files import located

if TYPE_CHECKING:
    from pathlib import Path


def write(path: Path, sources: dict[str, bytes]) -> Path:
    """Write modules that lie beside the file; return its path."""
    modules: list[tuple[Module, Source | None]] = []
    for name, text in sources.items():
        file = path.parent / f"{name}.py"
        mtime = file.stat().st_mtime_ns if file.exists() else 0
        modules.append(
            (Module(name, str(file), None, mtime, 0), Source(text, b"pyc" if text else b"", text[:9].decode()))
        )
    write_modules(located(path), [*modules, (Module("space", None, ["/a", "/b"]), None)], optimize=1)
    return path


def test_content(tmp_path: Path) -> None:
    """All that was written is read, also of an empty module without compiled code."""
    with closing(
        ModulesReader(located(write(tmp_path / "modules", {"a": b"a = 1", "empty": b"", "b": b"b = 22"})))
    ) as reader:
        found = {module.name: (reader.source(module), reader.code(module)) for module in reader if module.is_stored}

        assert {"a": (b"a = 1", b"pyc"), "empty": (b"", b""), "b": (b"b = 22", b"pyc")} == found
        assert {"a": "a = 1", "empty": "", "b": "b = 22"} == reader.hashes()
        assert reader.find("space") == Module("space", None, ["/a", "/b"])
        assert reader.find("none") is None
        assert reader.optimize == 1


def test_only_what_is_needed_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index is read at first, and then the code of the modules that are imported."""
    path = write(tmp_path / "modules", {"a": b"a" * 100_000, "b": b"b" * 100_000})
    read = os.pread
    total = []

    def count(descriptor: int, length: int, offset: int) -> bytes:
        data = read(descriptor, length, offset)
        total.append(len(data))
        return data

    monkeypatch.setattr(os, "pread", count)
    with closing(ModulesReader(located(path))) as reader:
        module = reader.find("b")
        assert module is not None
        assert reader.code(module) == b"pyc"

    assert sum(total) < 1000


@pytest.mark.parametrize("reused", [False, True])
def test_closed_descriptors(tmp_path: Path, reused: bool) -> None:  # noqa: FBT001
    """A function that closes all descriptors, and may open others with their numbers, stops no import."""
    path = write(tmp_path / "modules", {"a": b"a = 1"})
    (tmp_path / "other").write_bytes(b"x" * 1000)
    other = os.open(tmp_path / "other", os.O_RDONLY)
    lowest = os.dup(other)
    os.close(lowest)
    with closing(ModulesReader(located(path))) as reader:
        module = reader.find("a")
        assert module is not None
        if reused:
            os.dup2(other, lowest)
        else:
            os.close(lowest)
        assert reader.source(module) == b"a = 1"
    os.close(other)


def read_all(path: Path) -> list[bytes]:
    """Read all modules."""
    with closing(ModulesReader(located(path))) as reader:
        return [reader.source(module) for module in reader]


@pytest.mark.parametrize("part", [b"a = 1", b"modules"])
def test_damage(tmp_path: Path, part: bytes) -> None:
    """Damage is an error that names the file."""
    path = write(tmp_path / "modules", {"a": b"a = 1"})
    data = bytearray(path.read_bytes())
    data[data.index(part)] ^= 1
    path.write_bytes(data)

    before = os.listdir("/proc/self/fd")  # noqa: PTH208 - a list of numbers, not of paths
    with pytest.raises(RunFolderError, match=f"{path} is damaged, at byte"):
        read_all(path)
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208 - as above


OLD = b"one\ntwo\nthree\nfour\n"


@pytest.mark.parametrize(
    ("new", "where"),
    [
        (OLD, None),
        (b"one\n2\nthree\nfour\n", "line 2"),
        (b"one\ntwo\n3\n4\n", "lines 3-4"),
        (b"1\ntwo\n3\n4\n", "lines 1, 3-4"),
        (b"one\nfour\n", "line 2"),
        (None, "deleted"),
    ],
)
def test_changes(tmp_path: Path, new: bytes | None, where: str | None) -> None:
    """A change says which lines are new, on disk or in another run."""
    file = tmp_path / "a.py"
    file.write_bytes(OLD)
    expected = [] if where is None else [Change(str(file), where)]
    with closing(ModulesReader(located(write(tmp_path / "modules", {"a": OLD})))) as old:
        if new is None:
            file.unlink()
        else:
            file.write_bytes(new)
            os.utime(file, ns=(1, 1))
            with closing(ModulesReader(located(write(tmp_path / "others", {"a": new})))) as other:
                assert changes_between(old, other) == expected
        assert changes_between(old) == expected
