"""Objects pickled by value still name their module."""

from __future__ import annotations

import dataclasses
import functools
import pickle
import sys
import traceback
import types
import weakref
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest

from slurmlaunch import byvalue, unpickling
from slurmlaunch.errors import UnpicklableResult

if TYPE_CHECKING:
    from collections.abc import Callable


def travelled(function: Callable[..., Any]) -> Any:
    """Pickle a function by value and return its copy."""
    return pickle.loads(byvalue.dumps(function))


def test_code_keeps_its_file() -> None:
    """A function pickled by value, and the one inside it, keep the name of their source file."""

    def outer() -> Callable[[], None]:
        def inner() -> None:
            raise KeyError

        return inner

    assert [__file__] * 2 == [function.__code__.co_filename for function in (travelled(outer), travelled(outer)())]


def test_a_traceback_shows_the_line() -> None:
    """The traceback of an unpickled function shows the source line that raised."""

    def fails() -> None:
        raise KeyError("here")

    with pytest.raises(KeyError) as caught:
        travelled(fails)()
    assert 'raise KeyError("here")' in "".join(traceback.format_exception(caught.value))


def test_other_things_travel_as_ever() -> None:
    """Objects that are not code are pickled as by cloudpickle, and large buffers go to the given callback."""
    buffer = pickle.PickleBuffer(b"large")
    value = {"numbers": [1, 2.0], "class": KeyError}
    seen: list[pickle.PickleBuffer] = []

    assert cloudpickle.dumps(value, 5) == byvalue.dumps(value, 5)
    byvalue.dumps(buffer, 5, buffer_callback=seen.append)
    assert [buffer] == seen


# Objects of a script that pickle as their name alone.

SCRIPT = """
import dataclasses, enum, functools, json, typing
from dataclasses import MISSING

@functools.lru_cache(maxsize=3, typed=True)
def cached(number):
    return 2 * number

@functools.cache
def fibonacci(number):
    return number if number < 2 else fibonacci(number - 1) + fibonacci(number - 2)

@functools.singledispatch
def kind(value):
    return "object"

@kind.register
def _(value: int):
    return "int"

@kind.register(list)
def _(value):
    return [kind(each) for each in value]

class Methods:
    @functools.lru_cache
    def cached(self, number):
        return 3 * number

    @functools.cached_property
    def once(self):
        return 4

    @functools.singledispatchmethod
    def kind(self, value):
        return "object"

    @kind.register
    def _(self, value: int):
        return "int"

@enum.global_enum
class Bits(enum.IntFlag):
    A = 1
    B = 2

@dataclasses.dataclass
class Base:
    number: int

UserId = typing.NewType("UserId", int)
P = typing.ParamSpec("P")

def annotated(user: UserId) -> typing.Callable[P, None]:
    return user

wrapped = functools.lru_cache(len), functools.cache(dict), functools.singledispatch(json.dumps)

class Single:
    def __reduce__(self):
        return "SINGLE"

SINGLE = Single()

def refers():
    return [SINGLE]
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the definitions of a script that is ``__main__``."""
    module = types.ModuleType("__main__")
    exec(compile(SCRIPT, "script.py", "exec", dont_inherit=True), vars(module))  # noqa: S102
    monkeypatch.setitem(sys.modules, "__main__", module)
    return module


@pytest.fixture
def elsewhere(script: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[object], Any]:
    """Return a function that pickles a value and unpickles it as a process does that has nothing of the script."""

    def travelled_far(value: object) -> Any:
        pickled = byvalue.dumps(value)
        with monkeypatch.context() as there:
            there.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
            there.setattr(unpickling, "_KNOWN", weakref.WeakValueDictionary())
            there.setattr(cloudpickle.cloudpickle, "_DYNAMIC_CLASS_TRACKER_BY_ID", weakref.WeakValueDictionary())
            return pickle.loads(pickled)

    return travelled_far


@pytest.mark.parametrize(
    ("name", "use", "expected"),
    [
        (
            "cached",
            lambda it: (it(2), it(2), it.cache_info()[:3], it.cache_parameters()["typed"]),
            (4, 4, (1, 1, 3), True),
        ),
        ("fibonacci", lambda it: it(30), 832040),
        ("kind", lambda it: (it("a"), it([1, "a"]), len(it.registry)), ("object", ["int", "object"], 3)),
        ("Methods", lambda it: (it().cached(2), it().once, it().kind(1), it().kind("")), (6, 4, "int", "object")),
        ("wrapped", lambda it: (it[0]("ab"), it[1](a=1), it[2]({})), (2, {"a": 1}, "{}")),
        ("Bits", lambda it: ((it.A | it.B).value, len(it)), (3, 2)),
        ("annotated", lambda it: it.__annotations__["user"].__supertype__, int),
        ("Base", lambda it: dataclasses.fields(it)[0].default is dataclasses.MISSING, True),
    ],
)
def test_what_pickles_as_its_name(
    script: Any, elsewhere: Callable[[object], Any], name: str, use: Callable[[Any], object], expected: object
) -> None:
    """Cached and dispatching functions and methods, flags, type variables and sentinels of a script arrive by value."""
    arrived = elsewhere(vars(script)[name])

    assert arrived is not vars(script)[name]
    assert use(arrived) == expected


def test_partials_and_members(script: Any, elsewhere: Callable[[object], Any]) -> None:
    """So they do within other objects."""
    assert elsewhere(functools.partial(script.cached, 5))() == 10
    assert elsewhere(script.Methods().cached)(5) == 15
    assert elsewhere([script.Bits.A | script.Bits.B])[0].value == 3


def test_another_name_is_refused(script: Any) -> None:
    """An object that insists on its name is refused where it is pickled."""
    with pytest.raises(pickle.PicklingError, match=r"__main__\.SINGLE"):
        byvalue.dumps(script.refers)


# Identity.


def test_this_processs_own_definitions(script: Any) -> None:
    """What was pickled here is unpickled as itself, and its methods stay as they are."""
    method = script.Methods.__dict__["cached"]

    for each in (script.Methods, script.annotated, script.cached, script.kind):
        assert travelled(each) is each
    assert script.Methods.__dict__["cached"] is method


def test_a_function_that_was_replaced(script: Any) -> None:
    """A function that has been defined anew since, as in a notebook, is unpickled as it was."""
    pickled, before = byvalue.dumps(script.annotated), script.annotated
    script.annotated = lambda user: -user

    after = pickle.loads(pickled)
    assert (after is before, after(3)) == (False, 3)


def test_code_of_another_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code of another version of Python is refused by the names of both."""
    pickled, here = byvalue.dumps(lambda: None), unpickling.version()
    monkeypatch.setattr(unpickling, "version", lambda: "3.99")

    with pytest.raises(UnpicklableResult, match=f"Python {here}.*Python 3.99"):
        pickle.loads(pickled)
