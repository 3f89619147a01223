"""Results of the script's own classes can be read anywhere, and are of the same class in the client that submitted."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import slurmlaunch
from slurmlaunch import Executor, unpickling
from slurmlaunch.errors import ResultLost, UnpicklableResult
from tests.support import scripts

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = """
    import collections, dataclasses, enum, functools, sys, typing
    from slurmlaunch import Executor

    class Grade(enum.Enum):
        OK = 1
        BAD = 2

    class Bits(enum.IntFlag):
        A = 1
        B = 2

    @dataclasses.dataclass(frozen=True, slots=True)
    class Slotted:
        x: int

    @dataclasses.dataclass
    class Point:
        x: int
        inner: "Point | None" = None

        def twice(self):
            return factor * self.x

    class Row(typing.NamedTuple):
        a: int

    @dataclasses.dataclass(slots=True)
    class Bare:
        x: int

    class Outer:
        class Inner:
            def __init__(self, x):
                self.x = x

            def __eq__(self, other):
                return type(other) is Outer.Inner and other.x == self.x

        @functools.lru_cache
        def cached(self, number):
            return number

    @dataclasses.dataclass(frozen=True)
    class Frozen(Exception):
        x: int

    frozen = Frozen(1)
    factor = 2

    @functools.singledispatch
    def kind(value):
        return "object"

    @kind.register
    def _(value: int):
        return "int"

    @functools.cache
    def cached(number):
        return factor * number

    Pair = collections.namedtuple("Pair", "a b")

    def work(n):
        return (
            Grade.OK, Bits.A | Bits.B, Slotted(n), [Point(n, Point(1))], {"row": Row(n)}, Outer.Inner(n),
            Pair(n, Grade), kind(n), kind("text"), cached(n), Outer().cached(n), cached, kind, work, Point, Bare(n),
            frozen, Frozen(n),
        )

    array = Executor(sys.argv[1], cluster=sys.argv[2]).map_array(work, range(3))
    for n, found in enumerate(array.results(timeout=60)):
        assert found == work(n), found
        assert list(map(type, found)) == list(map(type, work(n)))
    print(array.folder)
"""

OTHERS = """
    import enum, slurmlaunch, sys
    class Grade(enum.Enum):
        BAD = 1
        OK = 2
    class Point:
        pass
    grade, bits, slotted, [point], row, inner, pair, *names = slurmlaunch.attach(sys.argv[1]).results()[2]
    print(grade.name, bits.value, slotted, point.twice(), point.inner, row, inner.x, pair.b.BAD.name)
    assert type(point) is not Point
    print(*names[:4], names[4](4), names[5](4), names[6](2)[0] is grade, names[7] is type(point))
"""


@pytest.mark.parametrize("cluster", ["local", "inline"])
def test_read_elsewhere(tmp_path: Path, cluster: str) -> None:
    """Another process reads them, also one that has other classes of these names; the client has its own classes."""
    folder = scripts.run(tmp_path, SCRIPT, tmp_path / "runs", cluster).strip()
    (tmp_path / "other").mkdir()
    said = scripts.run(tmp_path / "other", OTHERS, folder).splitlines()

    assert said[0] == "OK 3 Slotted(x=2) 4 Point(x=1, inner=None) {'row': Row(a=2)} 2 BAD"
    assert said[1] == "int object 4 2 8 int True True"


POINTS = """
    import dataclasses, sys
    from slurmlaunch import Executor

    @dataclasses.dataclass
    class Point:
        x: int
        y: float

    def work(n):
        return Point(n, n / 2)

    array = Executor(sys.argv[1], cluster="local").map_array(work, range(2000), tasks=1)
    assert array.results(timeout=60) == [work(n) for n in range(2000)]
    print(array.folder)
"""


@pytest.fixture
def points(tmp_path: Path) -> Path:
    """Return the folder of a run with 2000 results of a script's dataclass."""
    from pathlib import Path

    return Path(scripts.run(tmp_path, POINTS, tmp_path / "runs").strip())


BYTES_BY_NAME = 90
"""The bytes of such a result that names its class."""


def test_a_class_is_written_once(points: Path) -> None:
    """A result with a class of the script takes at most a fifth more than with its name; the class is one file."""
    assert len(list((points / "definitions").iterdir())) == 1
    assert sum(file.stat().st_size for file in (points / "outcomes").iterdir()) < 2000 * 1.2 * BYTES_BY_NAME


def test_a_lost_class(points: Path) -> None:
    """Without the file of the class, the error of each result names it."""
    [file] = (points / "definitions").iterdir()
    file.unlink()

    with pytest.raises(UnpicklableResult, match="definition") as failed:
        slurmlaunch.attach(points)[7].result(timeout=60)
    assert isinstance(failed.value.__cause__, ResultLost)
    assert failed.value.__cause__.file == str(file)


RAISES = """
    import sys
    from slurmlaunch import Executor

    class Custom(Exception):
        def text(self):
            return str(self)

    def work(n):
        raise Custom("in words")

    array = Executor(sys.argv[1], cluster="local").map_array(work, range(1))
    array.wait(timeout=60)
    print(array.folder)
"""


@pytest.mark.parametrize(("text", "message"), [(SCRIPT, ""), (RAISES, "Custom.*in words")], ids=["result", "exception"])
def test_another_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    """Code of another version of Python is refused, by the names of both, and not run: it could crash the reader."""
    folder = scripts.run(tmp_path, text, tmp_path / "runs", "local").strip()
    here = unpickling.version()
    monkeypatch.setattr(unpickling, "version", lambda: "3.99")

    with pytest.raises(UnpicklableResult, match=f"(?s){message}.*Python {here}.*Python 3.99"):
        slurmlaunch.attach(folder).results(timeout=60)


def test_a_module_by_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of classes of a module that travels by value are of the client's class, and read without the module."""
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "travels.py").write_text(
        "import functools\n\nclass Point:\n    def __init__(self, x):\n        self.x = x\n\n"
        "@functools.cache\ndef make(x):\n    return Point(x)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "beside"))
    import travels  # type: ignore[import-not-found]

    array = Executor(tmp_path / "runs", cluster="local", by_value="travels", env={"PYTHONPATH": ""}).map_array(
        travels.make, range(2)
    )
    assert [(type(each), each.x) for each in array.results(timeout=60)] == [(travels.Point, 0), (travels.Point, 1)]

    monkeypatch.undo()
    read = f"import slurmlaunch; print([each.x for each in slurmlaunch.attach({str(array.folder)!r}).results()])"
    done = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, check=False, env=os.environ)
    assert (done.stdout, done.stderr) == ("[0, 1]\n", "")
