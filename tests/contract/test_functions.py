"""Functions and arguments reach a task on every backend, wherever the function was defined."""

from __future__ import annotations

import collections
import enum
import functools
import operator
import textwrap
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from slurmlaunch import Executor, NotPicklable
from tests.support import scripts

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import ExecutorFactory

FACTOR = 3


def times_factor(number: int) -> int:
    """Multiply by a variable of this module."""
    return number * FACTOR


class Multiplier:
    """Multiplies in many ways."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def method(self, number: int) -> int:
        """Multiply."""
        return number * self.factor

    @classmethod
    def of_class(cls, number: int) -> int:
        """Multiply by an attribute of this class."""
        return cls(FACTOR).method(number)

    @staticmethod
    def static(number: int) -> int:
        """Multiply."""
        return number * FACTOR

    __call__ = method


def local_functions() -> dict[str, Callable[[int], int]]:
    """Return functions that only this process could import."""
    factor = FACTOR

    def closure(number: int) -> int:
        return number * factor

    def recursive(number: int) -> int:
        return factor + recursive(number - 1) if number else 0

    def with_defaults(number: int, *, by: int = FACTOR) -> int:
        return number * by

    @functools.wraps(closure)
    def wrapped(*args: Any) -> int:
        return closure(*args)

    class Local(Multiplier):
        def method(self, number: int) -> int:
            return super().method(number)

    return {
        "closure": closure,
        "recursive": recursive,
        "defaults": with_defaults,
        "wrapped": wrapped,
        "lambda": lambda number: number * FACTOR,
        "bound method of a local class": Local(FACTOR).method,
        "class method of a local class": Local.of_class,
        "callable object of a local class": Local(FACTOR),
    }


FUNCTIONS: dict[str, Callable[[int], int]] = {
    "function of a module": times_factor,
    "bound method": Multiplier(FACTOR).method,
    "class method": Multiplier.of_class,
    "static method": Multiplier.static,
    "callable object": Multiplier(FACTOR),
    "partial": functools.partial(operator.mul, FACTOR),
    "method of a built-in": (FACTOR).__mul__,
    **local_functions(),
}


class TestFunctions:
    """Functions of all kinds."""

    def test_as_argument(self, executor: Executor) -> None:
        """Functions passed as arguments return the same in the task as at the client."""
        array = executor.map_array(lambda function: function(4), FUNCTIONS.values(), tasks=1)

        assert dict.fromkeys(FUNCTIONS, 12) == dict(zip(FUNCTIONS, array.results(), strict=True))

    def test_as_function(self, executor: Executor) -> None:
        """The same functions arrive as the function of the call."""
        names = ["function of a module", "bound method", "closure", "recursive", "lambda"]
        futures = [executor.submit(FUNCTIONS[name], 4) for name in names]

        assert [12] * 5 == [future.result() for future in futures]

    def test_classes(self, executor: Executor) -> None:
        """A class can be the function, a user's as well as a builtin one."""
        multiplier, counter = executor.submit(Multiplier, 4), executor.submit(collections.Counter, "aab")

        assert 4 == multiplier.result().factor
        assert collections.Counter(a=2, b=1) == counter.result()


class TestClasses:
    """Classes that only this process could import."""

    def test_local_class(self, executor: Executor) -> None:
        """Objects of a local class come back as objects of the same class."""

        @dataclass(frozen=True)
        class Point:
            x: int

            def moved(self) -> Point:
                return Point(self.x + 1)

        class Colour(enum.Enum):
            RED = 1

        Pair = collections.namedtuple("Pair", "a b")  # noqa: PYI024 - of the old kind, on purpose

        array = executor.map_array(
            lambda x: x.moved() if isinstance(x, Point) else x, [Point(1), Colour.RED, Pair(1, 2)]
        )
        point, colour, pair = array.results()

        assert Point(2) == point
        assert Colour.RED is colour
        assert (Pair, (1, 2)) == (type(pair), pair)

    def test_changed_variables(self, executor: Executor) -> None:
        """A function pickled by value carries the current values of its variables."""
        seen: list[int] = [FACTOR]

        def remember(number: int) -> list[int]:
            seen.append(number)
            return seen[:1]

        array = executor.map_array(remember, [1, 2], tasks=1)
        seen[0] = 0

        assert [[FACTOR], [FACTOR]] == array.results()


class TestByValue:
    """Modules that are pickled by value."""

    def test_functions_arguments_and_results(
        self, make_executor: ExecutorFactory, beside: Callable[[str], Any]
    ) -> None:
        """Functions, arguments and results need no module on the node, and results have the client's class."""
        travels = beside(
            textwrap.dedent(
                """
                class Box:
                    def __init__(self, content):
                        self.content = content

                def more(box):
                    return Box(box.content + 1)
                """
            )
        )
        Path(travels.__file__).unlink()
        executor = make_executor(by_value=["lies_beside"])
        arrays = [
            executor.map_array(travels.more, [travels.Box(1)]),
            executor.map_array(lambda box: box, [travels.Box(2)]),
            executor.submit(travels.more, travels.Box(2)).run,
        ]
        boxes = [array[0].result() for array in arrays]

        assert [2, 2, 3] == [box.content for box in boxes]
        assert {travels.Box} == {type(box) for box in boxes}


def test_a_module_that_the_arguments_need(tmp_path: Path, beside: Callable[[str], Any]) -> None:
    """If an argument's module is missing on the node, the error of the item names it and the remedy."""
    module = beside("class Box:\n    pass\n")
    Path(module.__file__).unlink()
    executor = Executor(tmp_path / "runs", cluster="local")
    errors = executor.map_array(repr, [module.Box(), 3]).results(return_exceptions=True)

    assert isinstance(errors[0], ModuleNotFoundError)
    assert 'by_value=["lies_beside"]' in str(errors[0])
    assert errors[1] == "3"


class TestScripts:
    """Functions of scripts, which cannot be imported."""

    def test_main(self, backend: str, tmp_path: Path) -> None:
        """Functions and classes of __main__ arrive, also recursive ones, and results have the client's class."""
        printed = scripts.run(
            tmp_path,
            """
            import sys
            from slurmlaunch import Executor

            OFFSET = 1

            class Supervisor:  # a name that the node's own __main__ has
                def __init__(self, content):
                    self.content = content

            class Wrong(Exception):
                pass

            def factorial(n):
                return n * factorial(n - 1) if n else OFFSET

            def work(box):
                if not box.content:
                    raise Wrong("empty")
                return Supervisor(factorial(box.content))

            if __name__ == "__main__":
                with Executor("runs", cluster=sys.argv[1]) as executor:
                    array = executor.map_array(work, map(Supervisor, range(4)), tasks=1)
                    print([isinstance(box, Supervisor) and box.content for box in array[1:].results()])
                    try:
                        array.results()
                    except Wrong as error:
                        print(error, type(error.__cause__).__name__)
            """,
            backend,
        )

        assert "[1, 2, 6]\nempty RemoteTraceback\n" == printed

    def test_module_beside(self, backend: str, tmp_path: Path) -> None:
        """A module in the script's folder is found without installation, wherever the script is started."""
        (tmp_path / "scripts").mkdir()
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "scripts" / "beside.py").write_text("def work(x):\n    import os\n    return x + 1, os.getcwd()\n")
        printed = scripts.run(
            tmp_path / "scripts",
            """
            import sys
            import beside
            from slurmlaunch import Executor

            with Executor("runs", cluster=sys.argv[1]) as executor:
                print(executor.submit(beside.work, 1).result())
            """,
            backend,
            cwd=tmp_path / "elsewhere",
        )

        assert f"{(2, str(tmp_path / 'elsewhere'))}\n" == printed


class TestRefused:
    """Functions and arguments that do not pickle."""

    def test_names_the_culprit(self, executor: Executor) -> None:
        """It is refused at submission, the error names the culprit, and no folder is left."""
        lock = threading.Lock()
        holder = Multiplier(1)
        holder.lock = lock  # type: ignore[attr-defined]
        calls: dict[str, Callable[[], object]] = {
            "closure variable 'lock'": lambda: executor.submit(lambda: lock),
            "argument 1": lambda: executor.submit(print, 1, lock),
            "argument 'key'": lambda: executor.submit(lambda **_: 1, key=lock),
            "attribute 'lock'": lambda: executor.submit(holder, 1),
            "argument 0 → attribute 'lock'": lambda: executor.map_array(id, [1, holder]),
            "argument 1 → key 'a' → element 2": lambda: executor.map(divmod, [1], [{"a": (1, 2, lock)}]),
            "argument 0 → element 0": lambda: executor.starmap_array(divmod, [([lock], 2)]),
        }

        for path, call in calls.items():
            with pytest.raises(NotPicklable) as caught:
                call()
            assert caught.value.path.endswith(path)
            assert path in str(caught.value)
        assert [] == list(executor.folder.iterdir())

    def test_then_go_on(self, executor: Executor) -> None:
        """After a refused call the executor accepts others."""
        with pytest.raises(NotPicklable):
            executor.submit(threading.Lock().acquire)

        assert 0 == executor.submit(int).result()
