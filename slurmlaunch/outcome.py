"""The outcome of an item, a `Value` or a `Failure`, and its pickled form.

The process that runs an item makes and pickles its outcome, the client unpickles it, and nothing in between does.

A value is pickled by the standard library, which is fast, and by cloudpickle if that fails (a class of ``__main__``,
a lambda). The pickle of an exception is tested first. An exception that does not survive it (its ``__init__`` takes
other arguments than it passes on, or an attribute is a lock) is rebuilt without a call of ``__init__``, and its parts
that do not pickle become their repr. Failures on disk refer to `_Parts` by name, which is part of the format.

Large arrays stay out of the pickle: `Apart` makes a `Bundle` of a pickle and the memory that it refers to, without
copying it. This module knows no file and no task.
"""

from __future__ import annotations

import io
import pickle
import struct
import traceback
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, NoReturn, TypeVar

from slurmlaunch.errors import FunctionExited, ItemError, SlurmlaunchError, UnpicklableResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType

T = TypeVar("T")
D = TypeVar("D")

PICKLE_PROTOCOL = 5

SERIES_PROTOCOL = 3
"""The newest protocol whose pickles can be concatenated into the pickle of a list: later ones number their objects
throughout a pickle."""

PLAIN = frozenset({int, float, complex, bool, str, bytes, type(None)})
"""Types with immutable values that pickle alike in every protocol."""

APART = 1 << 18
"""Bytes from which on a buffer stays out of the pickle. Copying a smaller one costs as little as a record of its own;
two copies of a larger one cost ten times as much as reading it into place."""


class Bundle:
    """A pickle and the large buffers that it refers to (pickle protocol 5, PEP 574).

    Attributes:
        pickled: the pickle.
        buffers: the bytes of each buffer, in the order in which the pickle refers to them.
    """

    __slots__ = ("buffers", "pickled")

    def __init__(self, pickled: bytes, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        self.pickled, self.buffers = pickled, buffers

    def __len__(self) -> int:
        return len(self.pickled) + sum(map(len, self.buffers))


class Apart:
    """Pickles values, their large buffers apart: those of NumPy, PyArrow, pandas and `pickle.PickleBuffer`.

    Arrays that are not contiguous or have a class of their own go into the pickle. Many small values cost next to
    nothing more than their pickles.

    Attributes:
        stays: the callback for buffers that *dumps* is called with, always the same.
    """

    __slots__ = ("_at_least", "_found", "stays")

    def __init__(self, at_least: int = APART) -> None:
        """Begin; *at_least* is the size of the smallest large buffer, in bytes."""
        self._at_least = at_least
        self._found: list[memoryview] = []
        self.stays = self._stays_in  # bound once

    def dumps(self, value: object, dumps: Callable[..., bytes] = pickle.dumps) -> bytes | Bundle:
        """Pickle a value with `pickle.dumps` or cloudpickle's; return the pickle alone if no buffer is large."""
        try:
            pickled = dumps(value, PICKLE_PROTOCOL, buffer_callback=self.stays)
        except BaseException:
            self._found = []
            raise
        if not self._found:
            return pickled
        found, self._found = self._found, []
        return Bundle(pickled, found)

    def _stays_in(self, buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:  # not contiguous: left to pickle
            return True
        if raw.nbytes < self._at_least:
            return True
        self._found.append(raw)
        return False


class RemoteTraceback(Exception):
    """The remote traceback as text: the ``__cause__`` of the exception that is raised here."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        """Return the text, set off from the local traceback that follows it."""
        return f'\n"""\n{self.text}"""'


class Value(Generic[T]):
    """The function returned.

    Attributes:
        value: its return value.
    """

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"Value({self.value!r})"

    def unwrap(self) -> T:
        """Return the value."""
        return self.value

    def dump(self) -> bytes:
        """Return the pickled value.

        Raises:
            UnpicklableResult: neither pickle nor cloudpickle can pickle it.
        """
        try:
            return pickle.dumps(self.value, PICKLE_PROTOCOL)
        # A __reduce__ may raise anything, and cloudpickle pickles more; suppress() would cost as much as the pickle.
        except BaseException:  # noqa: BLE001, S110
            pass
        return _described(self.value, _cloudpickle)

    def dump_apart(
        self,
        apart: Apart | None = None,
        dumps: Callable[..., bytes] = pickle.dumps,
        by_value: Callable[..., bytes] | None = None,
    ) -> bytes | Bundle:
        """Return the pickled value, its large buffers apart.

        Args:
            apart: saves making an `Apart` for each value.
            dumps: a fast function to pickle with.
            by_value: the function for values at which that fails, or whose pickle may name something of ``__main__``;
                by default cloudpickle's.

        Raises:
            UnpicklableResult: as for `dump`.
        """
        apart = apart or Apart()
        value: object = self.value
        if type(value) in _BYTES and len(value) >= APART:  # type: ignore[arg-type]
            value = pickle.PickleBuffer(value)  # type: ignore[arg-type]  # unpickles as the same type
        try:
            pickled = apart.dumps(value, dumps)
            if _MAIN not in (pickled if type(pickled) is bytes else pickled.pickled):  # type: ignore[union-attr]
                return pickled
        except BaseException:  # noqa: BLE001, S110  (as above)
            pass
        return _described(value, partial(apart.dumps, dumps=by_value or _cloudpickle))

    @classmethod
    def load(cls, data: bytes | memoryview, buffers: Iterable[bytes | bytearray | memoryview] = ()) -> Outcome[Any]:
        """Read the result of `dump` or `dump_apart`; a value that does not unpickle here is a `Failure`."""
        try:
            return cls(pickle.loads(data, buffers=buffers))
        except BaseException as error:
            if is_interrupt(error):
                raise
            reason = f"{type(error).__name__}: {error}"
            advice = "Make the modules of the result importable here, or return plain data."
            if isinstance(error, ItemError):  # which `unpickling` and its definitions raise
                reason, advice = error.what, error.advice
            lost = UnpicklableResult(f"the result does not unpickle here: {reason}", advice=advice)
            lost.__cause__ = error
            return Failure(lost)


def in_series(pickled: bytes) -> bytes:
    """Return a pickle of protocol 3 for the same value as a pickle of any protocol."""
    size = len(pickled)
    if size < _SHORT:
        # Its frame is of no use then, since there is no file to be read ahead: nine bytes that each result would pay.
        if pickled[2] == _FRAME:
            return b"".join((_LOADS_SHORT, _SIZES[size - 9], pickled[:2], pickled[11:], _CALLED))
        return b"".join((_LOADS_SHORT, _SIZES[size], pickled, _CALLED))
    return b"".join((_LOADS, struct.pack("<I", size), pickled, _CALLED))


# The pickle of an object whose __reduce__ returns pickle.loads(bytes): see Lib/pickletools.py.
_LOADS_ANY = pickle.PROTO + bytes([SERIES_PROTOCOL]) + pickle.GLOBAL + b"pickle\nloads\n"
_LOADS, _LOADS_SHORT = _LOADS_ANY + pickle.BINBYTES, _LOADS_ANY + pickle.SHORT_BINBYTES
_SHORT, _FRAME = 1 << 8, pickle.FRAME[0]
_SIZES = [bytes([size]) for size in range(_SHORT)]
_CALLED = pickle.TUPLE1 + pickle.REDUCE + pickle.STOP


class Failure:
    """The function raised, or something ended it.

    Attributes:
        error: the exception.
        traceback: its traceback as text; empty if the user's code did not raise it.
    """

    __slots__ = ("error", "traceback")

    def __init__(self, error: BaseException, traceback: str = "") -> None:
        self.error = error
        self.traceback = traceback

    def __repr__(self) -> str:
        return f"Failure({self.error!r})"

    def noted(self, note: str) -> Failure:
        """Return the failure with a note added to the exception."""
        add_note(self.error, note)
        return Failure(self.error, f"{self.traceback}{note}\n")

    def unwrap(self) -> NoReturn:
        """Raise the exception, with the remote traceback as its cause."""
        raise self.error

    def dump(self) -> bytes:
        """Return the pickled exception; never raises."""
        error = self.error
        described = f"{type(error).__module__}.{type(error).__qualname__}", _text_of(error)
        return pickle.dumps((_dump_exception(error), self.traceback, *described), PICKLE_PROTOCOL)

    @staticmethod
    def parts(data: bytes | memoryview) -> FailureParts:
        """Return the parts of the result of `dump`; runs no code of the user's.

        Raises:
            ValueError: it is no such result.
        """
        try:
            found = _Plain(io.BytesIO(data)).load()
        except Exception as error:  # what a damaged pickle raises is not specified
            raise ValueError(f"no failure: {error}") from error
        if type(found) is not tuple or tuple(map(type, found)) != _PARTS:
            raise ValueError("no failure")
        return FailureParts(*found)

    @classmethod
    def load(cls, data: bytes | memoryview | FailureParts) -> Failure:
        """Read the result of `dump`; an exception that does not unpickle here is described.

        Raises:
            ValueError: *data* is no such result.
        """
        pickled, text, type_name, message = data if isinstance(data, FailureParts) else cls.parts(data)
        try:
            error = _load_exception(pickled)
        except BaseException as raised:
            if is_interrupt(raised):
                raise
            error = _not_unpickled(type_name, message, raised)
        if isinstance(error, SystemExit):
            error = _function_exited(error)
        if text:
            _set(error, "__cause__", RemoteTraceback(text))
        return cls(error, text)


class FailureParts(NamedTuple):
    """A pickled failure, taken apart."""

    error: bytes  # the pickled exception
    traceback: str
    type_name: str  # module and qualified name of the exception's class
    message: str


_PARTS = (bytes, str, str, str)


class _Plain(pickle.Unpickler):
    """Unpickles tuples, texts and bytes alone."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"{module}.{name} is not expected")


Outcome = Value[T] | Failure


def failure_of(error: BaseException) -> Failure:
    """Return the failure for an exception that was just caught, without slurmlaunch's own frames."""
    return Failure(error, _format(error, users_frames(error)))


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an exception, also to one that lets nobody set its attributes, as a frozen dataclass."""
    _set(error, "__notes__", [*getattr(error, "__notes__", ()), note])


class _Bare:
    """A context from which some exceptions are raised without a frame of slurmlaunch's in their traceback.

    Python adds a frame to a traceback where an exception leaves it, but not where ``with`` raises it again.
    """

    def __init__(self, *kinds: type[BaseException]) -> None:
        self._kinds = kinds

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, self._kinds):
            BaseException.with_traceback(error, None)  # a class of the user's may have a method of that name


BARE = _Bare(BaseException)
"""For outcomes of items."""

BARE_IF_OURS = _Bare(SlurmlaunchError, TimeoutError)
"""For calls in which code of the user's may raise, too."""


def _set(error: BaseException, name: str, value: object) -> None:
    object.__setattr__(error, name, value)


def users_frames(error: BaseException) -> TracebackType | None:
    """Return the traceback of an error from the first frame on that is not slurmlaunch's; None if there is none."""
    frames: TracebackType | None = _TRACEBACK(error)  # an exception may not let anybody read its attributes
    while frames and frames.tb_frame.f_globals.get("__name__", "").startswith(_OUR_MODULES):
        frames = frames.tb_next
    return frames


_OUR_MODULES = __name__.partition(".")[0] + "."


_TRACEBACK = BaseException.__dict__["__traceback__"].__get__


def is_interrupt(error: BaseException) -> bool:
    """Whether this may be Ctrl-C, which Python raises in the main thread only."""
    import threading

    return isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()


def _format(error: BaseException, frames: TracebackType | None) -> str:
    try:
        return "".join(traceback.format_exception(type(error), error, frames))
    except BaseException:  # noqa: BLE001  (a __str__ of the user's may raise, or recurse)
        return "".join(traceback.format_tb(frames)) + type(error).__qualname__ + "\n"


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:  # noqa: BLE001  (as above)
        return type(error).__qualname__


_ADVICE = {
    "builtins.coroutine": "Run it in the function: return asyncio.run(...). Return plain data.",
    "builtins.async_generator": "Go through it in the function, in an async function that asyncio.run(...) runs. "
    "Return plain data, such as a list of what it yields.",
    "builtins.generator": "Return plain data: list(...) of it, or write to a file and return its path.",
}
"""By the type of a result that never pickles."""

_BYTES = frozenset({bytes, bytearray})
_MAIN = b"__main__"


def _cloudpickle(value: object, protocol: int = PICKLE_PROTOCOL, **options: Any) -> bytes:
    from slurmlaunch import byvalue  # here, because cloudpickle takes long to import

    return byvalue.dumps(value, protocol, **options)


def _described(value: object, dumps: Callable[[object], D]) -> D:
    """Pickle a value, or raise `UnpicklableResult`, which names its type."""
    try:
        return dumps(value)
    except BaseException as error:  # noqa: BLE001  (as above)
        type_name = f"{type(value).__module__}.{type(value).__qualname__}"
        message = f"the function returned a {type_name}, which does not pickle: {_text_of(error)}"
        advice = _ADVICE.get(type_name, "Return plain data, or write to a file and return its path.")
        raise UnpicklableResult(message, type_name=type_name, advice=advice) from (
            error.with_traceback(users_frames(error))
        )


def _dump_exception(error: BaseException) -> bytes:
    """Return a pickle that was tested: of the exception itself, else of its parts, else of its nearest base."""
    for form in chain([error], _rebuildable(error)):
        try:
            data = _cloudpickle(form)
            loaded = _load_exception(data)
            _check_usable(loaded)
        except BaseException:  # noqa: BLE001, S112  (then the next form is tried)
            continue
        if isinstance(form, _Parts) or _same(loaded, error):
            return data
    return pickle.dumps(RuntimeError(_text_of(error)), PICKLE_PROTOCOL)


def _same(loaded: BaseException, error: BaseException) -> bool:
    """Whether an exception is unchanged: an ``__init__`` that composes the text would have composed it twice."""
    return type(loaded).__qualname__ == type(error).__qualname__ and _text_of(loaded) == _text_of(error)


def _check_usable(error: BaseException) -> None:
    """Fail if a client could not inspect the exception: its class may raise at any access to an attribute."""
    isinstance(error, SystemExit)
    getattr(error, "__notes__", None)
    getattr(error, "__cause__", None)


def _load_exception(data: bytes) -> BaseException:
    loaded = pickle.loads(data)
    error = loaded.build() if isinstance(loaded, _Parts) else loaded
    if not isinstance(error, BaseException):
        msg = f"a {type(error).__qualname__} is no exception"
        raise TypeError(msg)
    return error


def _not_unpickled(type_name: str, message: str, reason: BaseException) -> UnpicklableResult:
    what = f"the function raised {type_name}, which does not unpickle here: {message}"
    if isinstance(reason, UnpicklableResult):
        return UnpicklableResult(f"{what} ({reason.what})", type_name=type_name, advice=reason.advice)
    return UnpicklableResult(what, type_name=type_name)


def _function_exited(raised: SystemExit) -> FunctionExited:
    error = FunctionExited(f"the function called sys.exit({_repr_of(raised.code)})", code=raised.code)
    for note in getattr(raised, "__notes__", ()):
        error.add_note(note)
    return error


def _rebuildable(error: BaseException) -> Iterator[_Parts]:
    """Yield the exception in parts, for its own class first, then for its bases."""
    parts = _parts_of(error, _DEPTH)
    yield from (parts._replace(cls=cls) for cls in type(error).__mro__ if issubclass(cls, BaseException))


_DEPTH = 4
"""How deep exceptions within exceptions are taken apart, as in exception groups."""


def _parts_of(error: BaseException, depth: int) -> _Parts:
    # The builtin base knows all: an OSError has its file name beside the arguments, an ImportError its module.
    _, args, *states = _builtin_base(type(error)).__reduce__(error)
    state = {key: value for each in states if each for key, value in each.items()}
    survivors = {key: _surviving(value, depth) for key, value in state.items()}
    return _Parts(type(error), tuple(_surviving(arg, depth) for arg in args), survivors)


def _builtin_base(cls: type[BaseException]) -> Any:
    return next(base for base in cls.__mro__ if base.__module__ == "builtins")


def _surviving(value: object, depth: int) -> object:
    """Return the value if it survives a pickle, else an exception in parts, or the repr of anything else."""
    with suppress(BaseException):  # anything may be raised by a __reduce__
        loaded = pickle.loads(_cloudpickle(value))
        if not isinstance(value, BaseException) or _same(loaded, value):
            return value
    if isinstance(value, BaseException) and depth:
        return _parts_of(value, depth - 1)
    if type(value) is list and depth:
        return [_surviving(each, depth - 1) for each in value]
    return _repr_of(value)


def _repr_of(value: object) -> str:
    try:
        return repr(value)
    except BaseException:  # noqa: BLE001  (a __repr__ of the user's)
        return object.__repr__(value)


class _Parts(NamedTuple):
    """An exception in parts, which `build` joins without a call of its ``__init__``."""

    cls: type[BaseException]
    args: tuple[object, ...]
    state: dict[str, object]

    def build(self) -> BaseException:
        args = tuple(map(_built, self.args))
        base = _builtin_base(self.cls)
        try:
            error: BaseException = self.cls.__new__(self.cls, *args)
        except BaseException:  # noqa: BLE001  (a __new__ of the user's, with other arguments)
            error = base.__new__(self.cls, *args)
        _set(error, "args", args)
        with suppress(TypeError):  # an argument may be no more than its repr
            base.__init__(error, *args)
        for name, value in self.state.items():
            try:
                _set(error, name, _built(value))
            except (AttributeError, TypeError):  # a property of the user's
                error.__dict__[name] = _built(value)
        return error


def _built(value: object) -> object:
    if isinstance(value, _Parts):
        return value.build()
    return list(map(_built, value)) if type(value) is list else value
