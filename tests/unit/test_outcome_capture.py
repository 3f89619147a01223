"""The outcome of a call: it is caught whole, travels as bytes, and is restored at the other end."""

from __future__ import annotations

import builtins
import copyreg
import dataclasses
import datetime as dt
import errno
import functools
import io
import sys
import threading
import traceback
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from tblib import pickling_support

from slurmlaunch.errors import FunctionExited, UnpicklableResult, WorkerDied
from slurmlaunch.outcome import Failure, RemoteTraceback, Value, add_note, failure_of
from tests.support.awkward import Mute, Trap, Unspeakable, spring

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self


Group: Any = getattr(builtins, "ExceptionGroup", None)


def capture(function: Callable[..., Any], *args: Any) -> Value[Any] | Failure:
    """Call a function; return its outcome."""
    try:
        return Value(function(*args))
    except BaseException as error:  # noqa: BLE001  (any exception of the function is an outcome)
        return failure_of(error)


def travel(function: Callable[..., Any], *args: Any) -> Value[Any] | Failure:
    """Call a function and return its outcome as it is at the other end."""
    outcome = capture(function, *args)
    return type(outcome).load(outcome.dump())


def raised(error: BaseException) -> BaseException:
    """Raise an error; return it as it is at the other end."""

    def function() -> None:
        raise error

    outcome = travel(function)
    assert isinstance(outcome, Failure)
    return outcome.error


def remote_traceback(function: Callable[..., Any], *args: Any) -> str:
    """Call a function that raises; return the traceback that the other end shows."""
    outcome = travel(function, *args)
    assert isinstance(outcome, Failure)
    return outcome.traceback


# Values.


class Point:
    """A class whose instances the standard library pickles."""

    def __init__(self, x: int) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and self.x == other.x

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("value", [None, 0, "text", b"\x93SLR", [1, [2]], {"a": Point(3)}, NotImplemented, ValueError])
def test_values_arrive(value: object) -> None:
    """A function's value arrives unchanged, whatever its type."""
    outcome = travel(lambda: value)

    assert isinstance(outcome, Value)
    assert (outcome.value, outcome.unwrap()) == (value, value)


def test_a_returned_exception_is_a_value() -> None:
    """An exception that is returned, not raised, is a value like any other."""
    outcome = travel(lambda: KeyError("k"))

    assert isinstance(outcome, Value)
    assert repr(outcome.value) == "KeyError('k')"


def test_values_for_cloudpickle_alone_arrive() -> None:
    """Lambdas, closures and classes that were defined where the function ran arrive."""

    class Local:
        number = 5

    outcomes = [travel(lambda: lambda x: x + 1), travel(Local)]

    assert [outcomes[0].unwrap()(1), outcomes[1].unwrap().number] == [2, 5]


class Reluctant:
    """Raises where it is pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        raise NotImplementedError("not me")


def deep(levels: int) -> list[Any]:
    """Return lists in lists, too deep for a pickle."""
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (threading.Lock, "_thread.lock"),
        (lambda: (each for each in [1]), "builtins.generator"),
        (Reluctant, "Reluctant"),
        (lambda: {"a": [threading.Lock()]}, "builtins.dict"),
        (functools.partial(io.TextIOWrapper, io.BytesIO()), "_io.TextIOWrapper"),
        (functools.partial(deep, 10**5), "builtins.list"),
    ],
)
def test_a_value_that_does_not_pickle_is_named(function: Callable[[], Any], name: str) -> None:
    """A value that does not pickle is an error that names its type and the remedy."""
    value = capture(function)
    assert isinstance(value, Value)

    with pytest.raises(UnpicklableResult, match="Return plain data") as failed:
        value.dump()

    assert failed.value.type_name.endswith(name)


def test_a_coroutine_is_to_be_run() -> None:
    """A lambda that calls an ``async def`` cannot be refused at the call; its result says how to run it."""

    async def late() -> int:
        return 1

    coroutine = late()
    value = capture(lambda: coroutine)
    assert isinstance(value, Value)

    with pytest.raises(UnpicklableResult, match=r"return asyncio\.run\(\.\.\.\)"):
        value.dump()
    coroutine.close()


def test_a_value_that_does_not_unpickle_is_a_failure() -> None:
    """A value that this side cannot unpickle is a failure with the reason as its cause."""
    outcome = travel(Trap)

    assert isinstance(outcome, Failure)
    assert isinstance(outcome.error, UnpicklableResult)
    assert isinstance(outcome.error.__cause__, LookupError)
    assert "sprung" in str(outcome.error)


# Exceptions.


class TwoArguments(Exception):
    """Takes two arguments and passes on one, as many exceptions do; the standard library's pickle fails on it."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


class KeywordOnly(Exception):
    """Takes keyword arguments only."""

    def __init__(self, *, code: int) -> None:
        super().__init__()
        self.code = code


class NewArguments(Exception):
    """Takes two arguments in ``__new__``."""

    def __new__(cls, code: int, _text: str) -> Self:
        """Accept both arguments."""
        error = super().__new__(cls)
        error.code = code
        return error

    def __init__(self, _code: int, text: str) -> None:
        super().__init__(text)

    code: int


class Holds(Exception):
    """Holds a lock and a number."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.lock = threading.Lock()
        self.code = code


class ReduceRaises(Exception):
    """Raises where it is pickled."""

    code = 7

    def __reduce__(self) -> tuple[Any, ...]:
        raise RuntimeError("not me")


class LoadRaises(Exception):
    """Raises where it is unpickled."""

    code = 7

    def __reduce__(self) -> tuple[Any, ...]:
        return spring, (LookupError,)


class Slotted(Exception):
    """Keeps its number in a slot."""

    __slots__ = ("code",)

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self.code)


@pytest.mark.parametrize(
    ("error", "args"),
    [
        (TwoArguments(7, "text"), ("7: text",)),
        (KeywordOnly(code=7), ()),
        (NewArguments(7, "text"), ("text",)),
        (Holds("text", 7), ("text",)),
        (ReduceRaises("text", 1), ("text", 1)),
        (LoadRaises("text"), ("text",)),
        (Slotted("text", 7), ("text",)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_awkward_exceptions_arrive_as_themselves(error: BaseException, args: tuple[Any, ...]) -> None:
    """However an exception's class is made, it arrives with its class, its arguments and its fields."""
    arrived = raised(error)

    assert (type(arrived), arrived.args, getattr(arrived, "code", None)) == (type(error), args, 7)


def test_unpicklable_parts_of_an_exception_become_their_repr() -> None:
    """An argument or a field that does not pickle becomes its repr, and all others stay."""
    lock = threading.Lock()
    error = Holds("text", 7)

    arrived = raised(error)
    with_lock = raised(ValueError("text", lock, 3))

    assert vars(arrived) == {"lock": repr(error.lock), "code": 7}
    assert with_lock.args == ("text", repr(lock), 3)


@pytest.mark.parametrize("error", [Mute("argument"), Mute(Unspeakable()), ValueError(Unspeakable())])
def test_an_exception_that_cannot_be_shown_arrives(error: BaseException) -> None:
    """Where neither the exception nor its argument can be shown, its class still arrives, and where it was raised."""
    arrived = raised(error)

    assert type(arrived) is type(error)
    assert "in function" in str(arrived.__cause__)


def test_fields_that_were_added_arrive() -> None:
    """Attributes that the function adds to an exception arrive with it."""
    error = KeyError("k")
    error.sample = [1, 2]  # type: ignore[attr-defined]

    assert vars(raised(error)) == {"sample": [1, 2]}


@pytest.mark.parametrize("holds_lock", [False, True])
def test_os_errors_keep_their_fields(*, holds_lock: bool) -> None:
    """An OSError keeps number, text and file names; the class still follows from the number."""
    error = FileNotFoundError(errno.ENOENT, "No such file", "/a", None, "/b")
    if holds_lock:
        error.lock = threading.Lock()  # type: ignore[attr-defined]

    arrived = raised(error)

    assert isinstance(arrived, FileNotFoundError)
    assert (arrived.errno, arrived.strerror, arrived.filename, arrived.filename2) == (2, "No such file", "/a", "/b")
    assert str(arrived) == str(error)


class FetchError(OSError):
    """An OSError with arguments of its own."""

    def __init__(self, path: str) -> None:
        super().__init__(errno.EIO, "Input/output error", path)
        self.path = path


def test_subclasses_of_os_error_keep_their_fields() -> None:
    """An OSError whose class takes other arguments keeps number, text, file name and attributes."""
    arrived = raised(FetchError("/data"))

    assert isinstance(arrived, FetchError)
    assert (arrived.errno, arrived.strerror, arrived.filename, arrived.path) == (
        5,
        "Input/output error",
        "/data",
        "/data",
    )
    assert str(arrived) == "[Errno 5] Input/output error: '/data'"


class Missing(ImportError):
    """A FileNotFoundError with arguments of its own."""

    def __init__(self, what: str) -> None:
        super().__init__(f"no {what}", name=what, path="/there")


class Ending(SystemExit):
    """Another one."""

    def __init__(self, *, code: int) -> None:
        super().__init__(code)


@pytest.mark.parametrize(
    ("error", "names"),
    [
        (Missing("module"), ["name", "path", "msg"]),
        (ImportError("no module", name="module", path="/there"), ["name", "path", "msg"]),
        (StopIteration(4), ["value"]),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), ["encoding", "object", "start", "reason"]),
        (SyntaxError("bad", ("file", 3, 4, "line")), ["filename", "lineno", "text"]),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.usefixtures("_registered")
def test_builtin_exceptions_keep_their_fields(error: BaseException, names: list[str]) -> None:
    """The fields of builtin exceptions arrive, also in classes that take other arguments."""
    arrived = raised(error)

    assert type(arrived) is type(error)
    assert [getattr(arrived, name) for name in names] == [getattr(error, name) for name in names]


def test_a_class_that_is_not_here_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception of a class that this side cannot import arrives with the class's name and the message."""
    pickled = Failure(TwoArguments(7, "text"), "where").dump()
    monkeypatch.delattr(sys.modules[__name__], "TwoArguments")

    failure = Failure.load(pickled)

    assert isinstance(failure.error, UnpicklableResult)
    assert failure.error.type_name == f"{__name__}.TwoArguments"
    assert "7: text" in str(failure.error)
    assert str(failure.error.__cause__) == '\n"""\nwhere"""'


@pytest.mark.parametrize(
    "make",
    [
        SystemExit,
        functools.partial(SystemExit, 3),
        functools.partial(SystemExit, "words"),
        functools.partial(Ending, code=3),
    ],
)
@pytest.mark.usefixtures("_registered")
def test_a_function_that_exits(make: Callable[[], SystemExit]) -> None:
    """A SystemExit arrives as an error that keeps its code and its notes, and ends no program that raises it."""
    error = make()
    error.add_note("a note")
    arrived = raised(error)

    assert isinstance(arrived, FunctionExited)
    assert (arrived.code, arrived.__notes__) == (error.code, ["a note"])
    assert f"sys.exit({error.code!r})" in str(arrived)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), GeneratorExit(), BaseException("base")])
def test_base_exceptions_are_caught_too(error: BaseException) -> None:
    """Exceptions that a bare ``except Exception`` lets through are outcomes like any other."""
    arrived = raised(error)

    assert (type(arrived), arrived.args) == (type(error), error.args)


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    """A frozen dataclass: nobody may set an attribute."""

    number: int
    text: str = "text"


@pytest.mark.parametrize("error", [Frozen(3), Frozen(number=3, text="other")])
def test_a_frozen_exception_arrives(error: Frozen) -> None:
    """An exception that is a frozen dataclass arrives as itself, with its traceback, and can be given notes."""
    arrived = raised(error)
    add_note(arrived, "first")
    add_note(arrived, "second")

    assert (type(arrived), arrived) == (Frozen, error)
    assert isinstance(arrived.__cause__, RemoteTraceback)
    assert arrived.__notes__ == ["first", "second"]


class Closed(Exception):
    """Lets nobody read an attribute."""

    def __getattribute__(self, name: str) -> Any:
        """Refuse."""
        raise NotImplementedError(name)


def test_an_exception_that_cannot_be_inspected_is_described() -> None:
    """An exception that raises at any access to an attribute arrives as its nearest base; the traceback names it."""
    outcome = travel(raises, Closed("closed"))

    assert isinstance(outcome, Failure)
    assert (type(outcome.error), str(outcome.error)) == (Exception, "closed")
    assert "Closed" in outcome.traceback


def raises(error: BaseException) -> None:
    """Raise an error."""
    raise error


def test_our_own_errors_arrive() -> None:
    """An error of slurmlaunch's arrives with its fields."""
    arrived = raised(WorkerDied.of(9, None).located(item=3))

    assert isinstance(arrived, WorkerDied)
    assert (arrived.signal, arrived.item, "SIGKILL (9)" in str(arrived)) == (9, 3, True)


def test_groups_and_notes_arrive() -> None:
    """An exception group arrives with its members, awkward ones included, and notes stay where they were added."""
    group = Group("group", [ValueError(1), Group("inner", [OSError(2, "text", "/a")])])
    group.add_note("while testing")

    arrived: Any = raised(group)

    assert (arrived.message, arrived.__notes__) == ("group", ["while testing"])
    assert [repr(each) for each in arrived.exceptions] == [repr(each) for each in group.exceptions]
    assert arrived.exceptions[1].exceptions[0].filename == "/a"
    assert "while testing" in str(arrived.__cause__)


def test_a_group_of_awkward_exceptions_arrives() -> None:
    """An exception group whose members do not pickle arrives as a group, and its text describes them."""
    group = Group("group", [TwoArguments(7, "text"), Holds("held", 7), ValueError(1)])

    arrived: Any = raised(group)

    assert type(arrived) is type(group)
    assert [str(each) for each in arrived.exceptions] == ["7: text", "held", "1"]


# The remote traceback.


def test_the_remote_traceback_is_the_cause() -> None:
    """The remote traceback is the cause of the raised exception, and is shown with it."""
    outcome = travel(lambda: 1 // 0)

    with pytest.raises(ZeroDivisionError) as caught:
        outcome.unwrap()

    shown = "".join(traceback.format_exception(caught.type, caught.value, caught.tb))
    assert "outcome = travel(lambda: 1 // 0)" in str(caught.value.__cause__)
    assert shown.index("travel(lambda") < shown.index("direct cause") < shown.index("outcome.unwrap()")


def fails_inside() -> None:
    """Raise from a frame below."""
    dt.date.fromisoformat("no date")


def fails_twice() -> None:
    """Raise one error from another."""
    try:
        fails_inside()
    except ValueError as error:
        raise LookupError("second") from error


def test_the_traceback_shows_causes() -> None:
    """The remote traceback shows the exception's cause or context."""
    text = remote_traceback(fails_twice)

    assert text.index("Invalid isoformat string") < text.index("direct cause") < text.index("LookupError: second")


def test_circular_causes_end() -> None:
    """Exceptions that are each other's cause arrive, and are shown once each."""

    def function() -> None:
        first, second = ValueError("first"), ValueError("second")
        first.__cause__, second.__context__ = second, first
        raise first

    outcome = travel(function)

    assert isinstance(outcome, Failure)
    assert str(outcome.error) == "first"
    assert outcome.traceback.count("ValueError: first") == 1


class Recursive(Exception):
    """Its text recurses without end."""

    def __str__(self) -> str:
        return str(self)


def test_endless_recursion_arrives() -> None:
    """Endless recursion is a RecursionError with a short traceback; so is an exception whose text recurses."""

    def function() -> None:
        function()

    outcome = travel(function)

    assert isinstance(outcome, Failure)
    assert isinstance(outcome.error, RecursionError)
    assert len(outcome.traceback) < 10_000
    assert type(raised(Recursive())) is Recursive


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_reading_an_outcome_ends_no_thread(error: type[BaseException]) -> None:
    """If unpickling a value or exception tries to end the thread, such as a watcher, the outcome is a failure."""
    value, failure = Value(Trap(error)).dump(), Failure(ValueError(Trap(error))).dump()
    with ThreadPoolExecutor(1) as thread:
        loaded = [thread.submit(Value.load, value).result(), thread.submit(Failure.load, failure).result()]

    assert [type(getattr(outcome, "error", None)) for outcome in loaded] == [UnpicklableResult, ValueError]


@pytest.fixture(params=[False, True], ids=["", "tblib"])
def _registered(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let tblib register a way to pickle all exceptions, as it does where ``distributed`` is imported."""
    before = dict(copyreg.dispatch_table)
    if request.param:
        pickling_support.install()
    yield
    copyreg.dispatch_table.clear()
    copyreg.dispatch_table.update(before)


@pytest.mark.usefixtures("_registered")
def test_an_exception_does_not_keep_its_frames() -> None:
    """Once its outcome is bytes, no object of a failed call is alive."""
    references = []

    def function() -> None:
        held = Point(1)
        references.append(weakref.ref(held))
        raise ValueError

    capture(function).dump()

    assert references[0]() is None


def test_a_class_that_does_not_pickle_leaves_its_base() -> None:
    """If an exception's class does not pickle either, the nearest base that does replaces it."""

    class Strange(LookupError):
        lock = threading.Lock()

    arrived = raised(Strange("text"))

    assert (type(arrived), arrived.args) == (LookupError, ("text",))
    assert "Strange: text" in str(arrived.__cause__)
