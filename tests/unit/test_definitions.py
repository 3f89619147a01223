"""What has changed in functions and classes that travel by value."""

from __future__ import annotations

import linecache
import textwrap
import types
from typing import Any

import numpy as np
import pytest

from slurmlaunch.client.comparison import changes_of

SCRIPT = """
    import dataclasses, functools
    import numpy as np

    SCALE = 2
    TABLE = np.arange(3)
    STEPS = [abs, lambda x: x]

    class Base:
        factor = 1
        def scaled(self, x):
            return x * self.factor

    class Model(Base):
        @property
        def twice(self):
            return 2

        @staticmethod
        def plus(x):
            return x + 1

    @dataclasses.dataclass
    class Point:
        x: int = 0

    def helper(x, offset=3):
        def inner(y):
            return y + offset
        return inner(x) * SCALE + TABLE[0] + STEPS[1](x)

    @functools.cache
    def cached(x):
        return x

    unused = 1

    def work(x):
        '''Return something.'''
        # A comment.
        return helper(x) + Model().plus(x) + cached(x) + Point(x).x
"""


def loaded(text: str) -> Any:
    """Return the function of a script."""
    module = types.ModuleType("__main__")
    text = textwrap.dedent(text)
    linecache.cache.pop("/somewhere/sweep.py", None)
    exec(compile(text, "/somewhere/sweep.py", "exec"), vars(module))  # noqa: S102  (the script of a user)
    return module.work


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("", "", []),
        ("# A comment.", "# A longer\n        # comment.", []),
        ("import dataclasses", "\n\n    import dataclasses", []),
        ("unused = 1", "unused = 2", []),
        ("+ cached(x)", "+ 2 * cached(x)", [("sweep.py", "lines 38-41")]),
        ("y + offset", "y - offset", [("sweep.py", "lines 27-30")]),
        ("offset=3", "offset=4", [("a default of helper", "")]),
        ("SCALE = 2", "SCALE = 2.0", [("SCALE", "")]),
        ("SCALE = 2", "SCALE = 3", [("SCALE", "")]),
        ("np.arange(3)", "np.arange(4)", [("TABLE", "")]),
        ("lambda x: x]", "lambda x: -x]", [("sweep.py", "line 7")]),
        ("factor = 1", "factor = 2", [("Base.factor", "")]),
        ("x * self.factor", "x / self.factor", [("sweep.py", "lines 11-12")]),
        ("return 2\n", "return 3\n", [("sweep.py", "lines 15-17")]),
        ("x + 1", "x + 2", [("sweep.py", "lines 19-21")]),
        ("return x\n", "return +x\n", [("sweep.py", "lines 32-34")]),
        ("x: int = 0", "x: int = 1", [("Point.x", ""), ("a default of Point.__init__", "")]),
    ],
)
def test_changes(old: str, new: str, expected: list[tuple[str, str]]) -> None:
    """Each change of what the function uses is found, with its lines of now; a move, a comment and the rest are not."""
    assert old in SCRIPT
    earlier, now = loaded(SCRIPT), loaded(SCRIPT.replace(old, new, 1))

    assert sorted(expected) == sorted(changes_of(earlier, now))


def test_of_this_process() -> None:
    """Functions that both have imported are the same; a partial is compared with its arguments."""
    from functools import partial

    assert [] == changes_of(np.sum, np.sum)
    assert [] == changes_of(partial(np.sum, axis=0), partial(np.sum, axis=0))
    assert [("an argument of the partial", "")] == changes_of(partial(np.sum, axis=0), partial(np.sum, axis=1))
    assert [("the function", "")] == changes_of(partial(np.sum, axis=0), len)
