"""Pickling at the client, and errors that name the part that does not pickle."""

from __future__ import annotations

import functools
import linecache
import pickle
import random
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import cloudpickle
import numpy as np
import pytest

import tests.support.deeds
from slurmlaunch.client.pickling import (
    SharedGenerator,
    pickle_arguments,
    pickle_function,
    sources_of,
    travelling,
)
from slurmlaunch.client.wording import full_name_of, name_of
from slurmlaunch.errors import NotPicklable, SlurmlaunchError

if TYPE_CHECKING:
    from collections.abc import Callable

LOCK = threading.Lock()


class Holder:
    """Has an object in its __dict__."""

    held: Any = None

    def __init__(self, held: object) -> None:
        self.held = held

    def method(self) -> object:
        """Return it."""
        return self.held


class Slotted:
    """Has an object in a slot."""

    __slots__ = ("empty", "held")

    def __init__(self, held: object) -> None:
        self.held = held


def local_function() -> Callable[[], object]:
    """Return a function that travels by value and uses a global variable, but only in a function inside it."""
    return lambda: [LOCK for _ in range(1)]


def local_class() -> type:
    """Return a class that travels by value."""

    class Local:
        lock = LOCK

    return Local


def half_defined() -> Callable[[], object]:
    """Return a function one of whose closure variables has no value."""
    lock = later = LOCK

    def function() -> object:
        return lock, later  # noqa: F821 - deleted below, on purpose

    del later
    return function


def nested(depth: int) -> object:
    """Return a lock in so many lists."""
    return [nested(depth - 1)] if depth else LOCK


def in_itself() -> list[object]:
    """Return a list that contains itself, and a lock."""
    own: list[object] = []
    own += [own, LOCK]
    return own


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda lock=LOCK: lock, "default of 'lock'"),
        (local_function(), "global variable 'LOCK'"),
        (half_defined(), "closure variable 'lock'"),
        (functools.partial(id, LOCK), "argument 0"),
        (functools.partial(dict, key=LOCK), "argument 'key'"),
        (functools.partial(local_function()), "partial's function → global variable 'LOCK'"),
        (Holder(LOCK).method, "the object of Holder.method → attribute 'held'"),
        (Holder([Slotted({"a": LOCK})]), "attribute 'held' → element 0 → attribute 'held' → key 'a'"),
        (local_class(), "class attribute 'lock'"),
        (LOCK.acquire, ""),
    ],
)
def test_path_in_a_function(function: Callable[..., Any], expected: str) -> None:
    """The path from a function to the part that does not pickle uses the user's own names."""
    with pytest.raises(NotPicklable) as caught:
        pickle_function(function)

    assert expected == caught.value.path
    assert expected in str(caught.value)
    assert name_of(function) in str(caught.value)


def test_argument_of_a_single_call() -> None:
    """What does not pickle is the call, not its function."""
    with pytest.raises(NotPicklable, match="the call of id does not pickle: argument 0 "):
        pickle_function(functools.partial(id, LOCK), single=True)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((1, LOCK), "argument 1"),
        (((1, LOCK),), "argument 0 → element 1"),
        (({LOCK.locked},), "argument 0 → element 0"),
        ((in_itself(),), "argument 0 → element 1"),
        ((Holder(Holder(LOCK)),), "argument 0 → attribute 'held' → attribute 'held'"),
        ((nested(9),), " → ".join(["argument 0", *["element 0"] * 5])),
    ],
)
def test_path_in_arguments(arguments: tuple[Any, ...], expected: str) -> None:
    """So is the way from an argument, as deep as one would care to read."""
    with pytest.raises(NotPicklable) as caught:
        pickle_arguments(arguments, 7)

    assert expected == caught.value.path


def test_error() -> None:
    """The error is also pickle's own, and gives the reason and the remedy."""
    with pytest.raises(pickle.PicklingError, match=r"^item 7 does not.* '_thread.lock' object.*__getstate__") as caught:
        pickle_arguments((LOCK,), 7)

    assert isinstance(caught.value, SlurmlaunchError)
    assert isinstance(caught.value.__cause__, TypeError)


def test_reduce_of_the_user() -> None:
    """Any exception in a user's __reduce__ means that the object does not pickle."""
    with pytest.raises(NotPicklable, match="stays here") as caught:
        pickle_arguments((1, [tests.support.deeds.Mute()]), 7)

    assert "argument 1 → element 0" == caught.value.path


class Closed:
    """Lets nobody read an attribute."""

    def __getattribute__(self, name: str) -> Any:
        """Refuse."""
        raise NotImplementedError(name)


def test_an_object_that_cannot_be_inspected() -> None:
    """An object that raises at any access to an attribute does not pickle, and is named."""
    with pytest.raises(NotPicklable, match="element 0"):
        pickle_arguments(([Closed()],), 7)
    closed = Closed()
    with pytest.raises(NotPicklable, match="closure variable 'closed'"):
        pickle_function(lambda: closed)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (len, "len"),
        (local_class, "local_class"),
        (Holder(1).method, "Holder.method"),
        (functools.partial(functools.partial(len)), "len"),
        (Slotted(1), "Slotted"),
        (Holder, "Holder"),
    ],
)
def test_name(function: Callable[..., Any], expected: str) -> None:
    """A function has the name that its author gave it, also where it is wrapped; an object has its class's."""
    assert expected == name_of(function)


def test_by_value() -> None:
    """Modules travel for as long as that is wanted; those that the user registered stay registered."""
    by_reference = pickle_function(tests.support.deeds.chain)
    with travelling(["tests.support.deeds"]):
        assert by_reference != pickle_function(tests.support.deeds.chain)
        arguments = pickle_arguments((tests.support.deeds.chain,), 7)
        assert isinstance(arguments, bytes)
        assert b"words" in arguments
    assert by_reference == pickle_function(tests.support.deeds.chain)

    cloudpickle.register_pickle_by_value(tests.support.deeds)
    try:
        with travelling(["tests.support.deeds"]):
            pass
        assert by_reference != pickle_function(tests.support.deeds.chain)
    finally:
        cloudpickle.unregister_pickle_by_value(tests.support.deeds)


def test_by_value_in_two_calls() -> None:
    """Modules are pickled by value until the last of the calls that need it has ended, in any order."""
    by_reference = pickle_function(tests.support.deeds.chain)
    with ExitStack() as later:
        with travelling(["tests.support.deeds"]):
            later.enter_context(travelling(["tests.support.deeds"]))
        assert by_reference != pickle_function(tests.support.deeds.chain)
    assert by_reference == pickle_function(tests.support.deeds.chain)


def test_no_such_module() -> None:
    """A module that does not exist cannot travel."""
    with pytest.raises(ModuleNotFoundError, match="no_such_module"), travelling(["no_such_module"]):
        pass


def pickled(row: tuple[Any, ...]) -> bytes:
    """Return the pickled arguments, which have no large buffers."""
    data = pickle_arguments(row, 7)
    assert isinstance(data, bytes)
    return data


def test_plain_arguments() -> None:
    """Numbers, text and containers arrive with their shared parts, also after another value failed to pickle."""
    shared = ["shared"]
    rows: list[tuple[Any, ...]] = [
        (1, "two", 3.0, 4j, None, True, b"5", bytearray(b"6")),
        ([shared, shared], {"key": (shared, {1, 2}, frozenset({3}))}),
        ((), [], {}),
    ]
    for row in rows:
        for other in (Holder(row), local_function, print):
            pickle_arguments((other, row), 7)
        with pytest.raises(NotPicklable):
            pickle_arguments((row, LOCK), 7)
        assert row == pickle.loads(pickled(row))
    loaded = pickle.loads(pickled(rows[1]))
    assert loaded[0][0] is loaded[0][1] is loaded[1]["key"][0]


def test_plain_arguments_from_threads() -> None:
    """Several threads may submit at once."""
    with ThreadPoolExecutor(4) as threads:
        found = threads.map(pickled, [([number] * 50, str(number)) for number in range(2000)])
        assert [([number] * 50, str(number)) for number in range(2000)] == [pickle.loads(each) for each in found]


def test_arguments_in_a_row_without_end() -> None:
    """A container that contains itself arrives; one that is nested too deep is an error with the reason."""
    endless: list[Any] = []
    endless.append(endless)
    loaded = pickle.loads(pickled((endless,)))
    assert loaded[0][0] is loaded[0]

    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(NotPicklable):
        pickle_arguments((deep,), 7)


# Random generators.


generator = random.Random(1)
dimensions = {"x": [np.random.default_rng(1)]}


class Draws:
    """A function object with a generator."""

    def __init__(self) -> None:
        self.state = np.random.RandomState(1)

    def __call__(self) -> float:
        """Draw."""
        return float(self.state.rand())


def local_draw() -> Callable[[], object]:
    """Return a function that travels by value and draws from generators of the module."""
    bits = np.random.PCG64(1)
    return lambda: (generator.random(), bits)


def local_draw_from_a_container() -> Callable[[], object]:
    """Return one that finds its generator in a container."""
    return lambda: [dimensions["x"][0].random()]


def local_method() -> Callable[[], object]:
    """Return one that has a method of a generator."""
    draw = generator.random
    return lambda: [draw()]


@pytest.mark.parametrize(
    ("function", "path"),
    [
        (local_draw(), "closure variable 'bits'"),
        (functools.partial(local_draw()), "partial's function → closure variable 'bits'"),
        (local_draw_from_a_container(), "global variable 'dimensions' → key 'x' → element 0"),
        (local_method(), "closure variable 'draw'"),
        (Draws(), "attribute 'state'"),
        (functools.partial(repr, generator), "argument 0"),
    ],
)
def test_a_shared_generator(function: Callable[..., Any], path: str) -> None:
    """A random generator that travels with a function gets a warning that names the variable and the remedy."""
    with pytest.warns(SharedGenerator, match=r"current_task\(\)\.rng\(\)") as warned:
        pickle_function(function)

    assert [path in str(each.message) for each in warned] == [True]
    assert warned[0].filename == __file__


def test_generators_that_are_not_shared(recwarn: pytest.WarningsRecorder) -> None:
    """The arguments of a single call, the arguments of items and modules get no warning."""
    pickle_function(functools.partial(repr, generator), single=True)
    pickle_arguments((generator,), 7)
    pickle_function(lambda: [random.random(), np.random.default_rng()])

    assert not recwarn.list


# Names that the node does not have.


def test_a_name_of_main(monkeypatch: pytest.MonkeyPatch) -> None:
    """An object of ``__main__`` that pickles as its name alone is refused, with the path to it."""
    module: Any = types.ModuleType("__main__")
    exec(  # noqa: S102
        "class Single:\n    def __reduce__(self):\n        return 'SINGLE'\nSINGLE = Single()\n"
        "def helper():\n    return [SINGLE]\ndef work():\n    return helper()\n",
        vars(module),
    )
    monkeypatch.setitem(sys.modules, "__main__", module)

    with pytest.raises(NotPicklable, match=r"__main__\.SINGLE") as caught:
        pickle_function(functools.partial(module.work, 3))
    assert caught.value.path == "partial's function → global variable 'helper' → global variable 'SINGLE'"

    with pytest.raises(NotPicklable, match=r"__main__\.SINGLE") as caught:
        pickle_arguments((1, {"key": module.SINGLE}), 7)
    assert caught.value.path == "argument 1 → key 'key'"


def test_sources() -> None:
    """The source of code that lies in no file is found, whatever the name of that file is."""
    linecache.cache["<cell 1>"] = (1, None, ["x = 1\n"], "<cell 1>")

    assert sources_of({"<cell 1>", "x" * 5000, __file__}) == {"<cell 1>": "x = 1\n"}


def test_full_name() -> None:
    """The name of a function with its module is that of the function within a partial."""
    assert full_name_of(functools.partial(functools.partial(local_draw), 1)) == f"{__name__}.local_draw"
