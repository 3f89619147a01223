"""The work of a run: its function, and how one item of it is run.

The one place where the user's code is called: by the pool processes of a node,
and by the inline backend.
"""

from __future__ import annotations

import os
import pickle
import sys
from contextlib import suppress
from functools import partial
from itertools import takewhile
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from slurmlaunch.errors import NodeStartError, UnpicklableResult, UnsafeRunFolder
from slurmlaunch.outcome import APART, PLAIN, SERIES_PROTOCOL, Apart, Bundle, Value, failure_of
from slurmlaunch.runfolder import records
from slurmlaunch.runfolder.buffers import SharedBuffers, write_shared
from slurmlaunch.runfolder.items import ItemReader
from slurmlaunch.runfolder.records import Kind, Record, open_owned, read_owned, write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from slurmlaunch.runfolder.layout import Manifest, RunFolder
    from slurmlaunch.runfolder.outcomes import Recorded


def write_function(folder: RunFolder, pickled: bytes | Bundle) -> int:
    """Write the pickled function of a run; return how many bytes of buffers lie beside it.

    Raises:
        OSError: it could not be written.
    """
    if not isinstance(pickled, Bundle):
        write_whole(folder.function, [records.encode(Kind.FUNCTION, pickled)])
        return 0
    table = write_shared(folder.function_buffers, pickled.buffers)
    record = records.encode(Kind.FUNCTION, pickled.pickled)
    write_whole(folder.function, [record, records.encode(Kind.SHARED, table, count=len(pickled.buffers))])
    return sum(map(len, pickled.buffers))


def read_function(folder: RunFolder) -> tuple[memoryview, SharedBuffers]:
    """Return the pickled function of a run, and the buffers that it refers to.

    Raises:
        NodeStartError: the file is damaged.
        OSError, UnsafeRunFolder: it cannot be read, or others may have changed it.
    """
    found = list(records.scan(memoryview(read_owned(folder.function))))
    payloads = {each.header.kind: each.payload for each in found if isinstance(each, Record)}
    if Kind.FUNCTION not in payloads or len(payloads) < len(found):
        msg = f"the function on disk is damaged: {folder.function}"
        raise NodeStartError(msg)
    return payloads[Kind.FUNCTION], SharedBuffers(folder.function_buffers, payloads.get(Kind.SHARED, b""))


def needs_cloudpickle(folder: RunFolder) -> bool:
    """Return True if the function's pickle refers to cloudpickle, as far as its beginning tells."""
    with suppress(OSError, UnsafeRunFolder):  # reported when the function is read
        descriptor = open_owned(folder.function)
        try:
            return b"cloudpickle" in os.pread(descriptor, _BEGINNING, 0)
        finally:
            os.close(descriptor)
    return False


_BEGINNING = 1 << 16


def check_shared(folder: RunFolder) -> Iterator[None]:
    """Read all that the function refers to, in pieces, so that no process has to check it for itself.

    Raises:
        NodeStartError: it is damaged, or cannot be read.
    """
    try:
        _, shared = read_function(folder)
    except (OSError, UnsafeRunFolder) as error:
        msg = f"the function cannot be read: {error}"
        raise NodeStartError(msg) from error
    yield from shared.check()


def load_function(folder: RunFolder, *, writable: bool = False, checked: bool = False) -> Callable[..., Any]:
    """Unpickle the function of a run.

    Args:
        folder: the run folder.
        writable: large arrays that it refers to may be written to, by this process for itself.
        checked: they were checked, on this machine, by `check_shared`.

    Raises:
        NodeStartError: the function or an array is damaged.
        OSError, UnsafeRunFolder: it cannot be read, or others may have changed it.
        Exception: whatever its unpickling raises.
    """
    pickled, shared = read_function(folder)
    if shared.places and not checked:
        for _ in shared.check():
            pass
    buffers = shared.map(writable=writable) if shared.places else ()
    function: Callable[..., Any] = pickle.loads(pickled, buffers=buffers)
    return function


class Work:
    """The function of a run and its items, ready to be run one by one.

    Attributes:
        can_checkpoint: whether the function has the method ``checkpoint`` of submitit's protocol.
        call: calls the function for an item; what it raises passes through.
    """

    def __init__(
        self,
        folder: RunFolder,
        manifest: Manifest,
        checkpoints: Mapping[int, Recorded] = MappingProxyType({}),
        *,
        checked: bool = False,
    ) -> None:
        """Load the function, as a process that is to run items does once.

        Args:
            folder: the run folder.
            manifest: its manifest.
            checkpoints: how items are gone on with that an earlier attempt began.
            checked: what the function refers to was checked, on this machine, by `check_shared`.

        Raises:
            NodeStartError: it cannot be loaded here; the message says why.
        """
        self._checkpoints = checkpoints
        self._call: _Call | None = None
        self._apart = Apart()
        self._shares = bool(manifest.shared) and not manifest.single
        take_search_path(manifest.sys_path)
        try:
            self._function = load_function(folder, writable=manifest.single, checked=checked)
            self._items = ItemReader(folder)
            _show_in_main(self._function)
            self.can_checkpoint = hasattr(_unwrapped(_Call(self._function, (), {})).function, "checkpoint")
            # In the common case there is nothing to remember for each item.
            self.call = self._run_or_go_on if self.can_checkpoint else self._items.calling(self._function)
        except NodeStartError:
            raise
        except BaseException as error:
            raise _not_loaded(manifest, error) from error

    def close(self) -> None:
        """Close the files."""
        self._items.close()

    def run(self, item: int) -> tuple[Kind, bytes | Bundle]:
        """Run an item; return the kind of record that its outcome makes, and its bytes, a whole pickle of their own.

        The kinds are those of `pickled`, and FAILURE.
        """
        try:
            value = self.call(item)
        except BaseException as error:  # noqa: BLE001  (whatever it is belongs to the caller)
            return _FAILURE, self.failure(error)
        return self.pickled(value)

    def failure(self, error: BaseException) -> bytes:
        """Return what an item comes to whose call raised that, pickled."""
        failure = failure_of(error)
        if self._shares and _is_about_read_only(error):
            failure = failure.noted(_READ_ONLY)
        return failure.dump()

    def pickled(self, value: object) -> tuple[Kind, bytes | Bundle]:
        """Return the kind of record that a value makes, and its bytes.

        The kind is SERIES where the value is so plain that it need not be wrapped for one, BUNDLE where large buffers
        of it stand apart, VALUES for any other, and FAILURE where it does not pickle.
        """
        if type(value) in PLAIN and not (type(value) in _TEXT and len(value) >= APART):  # type: ignore[arg-type]
            return _SERIES, pickle.dumps(value, SERIES_PROTOCOL)
        try:
            pickled = Value(value).dump_apart(self._apart)
        except UnpicklableResult as error:
            return _FAILURE, failure_of(error).dump()
        return (_VALUES if type(pickled) is bytes else _BUNDLE), pickled

    def _run_or_go_on(self, item: int) -> Any:
        if item in self._checkpoints:
            call = _Call(*pickle.loads(self._checkpoints[item].payload()))
        else:
            call = _Call(self._function, self._items[item], {})
        self._call = call
        try:
            return call.function(*call.args, **call.kwargs)
        finally:
            self._call = None

    def checkpoint(self) -> bytes | None:
        """Ask the function that is running how it is gone on with; return that, pickled.

        It is asked as submitit asks it: ``function.checkpoint(*args, **kwargs)``
        returns an object with ``function``, ``args`` and ``kwargs``.
        """
        if self._call is None:
            return None
        from slurmlaunch import byvalue

        call = _unwrapped(self._call)
        later = call.function.checkpoint(*call.args, **call.kwargs)
        if later is None:
            return None
        return byvalue.dumps((later.function, tuple(later.args), dict(later.kwargs)))


_SERIES, _VALUES, _BUNDLE, _FAILURE = Kind.SERIES, Kind.VALUES, Kind.BUNDLE, Kind.FAILURE
"""Looked up once: at a microsecond an item it is felt."""

_READ_ONLY = (
    "large arrays that the function refers to are read-only, since all processes of the node share their memory: "
    "write to a copy, such as array.copy()"
)


def _is_about_read_only(error: BaseException) -> bool:
    """Whether NumPy, Cython or Python itself may have refused to write to shared memory."""
    return isinstance(error, (TypeError, ValueError)) and any(
        isinstance(word, str) and "read-only" in word for word in error.args
    )


_TEXT = frozenset({bytes, str})
"""What may be long, 4 GiB even, which a series cannot hold: then it takes the way of what is large."""


def _show_in_main(function: Callable[..., Any]) -> None:
    """Let pickle find by its name what the client's script defined: pools of the standard library hand over names."""
    function = _unwrapped(_Call(function, (), {})).function
    main = sys.modules.get("__main__")
    for name, value in list(getattr(function, "__globals__", {}).items()):
        if getattr(value, "__module__", None) == "__main__" and not hasattr(main, name):
            setattr(main, name, value)


class _Call(NamedTuple):
    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def _unwrapped(call: _Call) -> _Call:
    """Take off the partial into which `submit` binds its arguments."""
    function, args, kwargs = call
    while isinstance(function, partial):
        args = (*function.args, *args)
        kwargs = {**function.keywords, **kwargs}
        function = function.func
    return _Call(function, args, kwargs)


def take_search_path(entries: list[str]) -> None:
    """Let imports find what the client's find: its own folders first, and then what is installed here.

    ``python -m`` puts the working directory first, where the client may not have it at all.
    """
    if sys.path and sys.path[0] not in entries and sys.path[0] in ("", os.getcwd()):  # noqa: PTH109
        del sys.path[0]
    here = list(sys.path)
    ahead = list(takewhile(lambda entry: entry not in here or entry == here[0], entries))
    behind = [entry for entry in entries if entry not in here and entry not in ahead]
    sys.path[:] = [*ahead, *(entry for entry in here if entry not in ahead), *behind]


def _not_loaded(manifest: Manifest, error: BaseException) -> NodeStartError:
    kind = type(error).__name__
    advice = ""
    if isinstance(error, ImportError) and error.name:
        package = error.name.partition(".")[0]
        advice = (
            f"Install {package} for {sys.executable} on the node, or, where it is a module of "
            f"your own, let its code travel with the function: by_value=[{package}]."
        )
    msg = f"{manifest.function} cannot be loaded on the node: {kind}: {error}"
    return NodeStartError(msg, advice=advice)
