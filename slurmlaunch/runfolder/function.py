"""The function of a run: written once by the client, loaded by each process that runs items, and called for them.

The one place where the user's code is called, by the workers of a node and by the inline backend. It knows nothing of
slices and schedules: callers say which item to run, and record its outcome.
"""

from __future__ import annotations

import linecache
import pickle
import sys
import time
from contextlib import suppress
from functools import partial
from itertools import takewhile
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from slurmlaunch import unpickling
from slurmlaunch.errors import NodeStartError, StorageFailure, UnpicklableResult, UnsafeRunFolder
from slurmlaunch.outcome import APART, PLAIN, SERIES_PROTOCOL, Apart, Bundle, Value, failure_of
from slurmlaunch.runfolder import records
from slurmlaunch.runfolder.buffers import SharedBuffers, write_shared
from slurmlaunch.runfolder.files import read_owned, sha256_of, write_whole
from slurmlaunch.runfolder.items import ItemReader, advice_on_import
from slurmlaunch.runfolder.records import Kind, Record
from slurmlaunch.runfolder.storage import Patience, named, status_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from slurmlaunch.runfolder.files import Location
    from slurmlaunch.runfolder.layout import Manifest, RunFolder
    from slurmlaunch.runfolder.outcomes import Recorded
    from slurmlaunch.runfolder.result_pickling import Results


def write_function(path: Location, pickled: bytes | Bundle) -> str:
    """Write a pickled function, and beside it the buffers that it refers to; return the SHA-256 of its file.

    Raises:
        OSError: it could not be written.
    """
    if not isinstance(pickled, Bundle):
        data = records.encode(Kind.FUNCTION, pickled)
        write_whole(path, [data])
        return sha256_of(data)
    table = write_shared(_buffers_of(path), pickled.buffers)
    record = records.encode(Kind.FUNCTION, pickled.pickled)
    data = record + records.encode(Kind.SHARED, table, count=len(pickled.buffers))
    write_whole(path, [data])
    return sha256_of(data)


def _buffers_of(path: Location) -> Location:
    return path.beside(f"{path.name}.buffers")


def shared_bytes(pickled: bytes | Bundle) -> int:
    """Return how many bytes of buffers a pickled function refers to (`Manifest.shared`)."""
    return sum(map(len, pickled.buffers)) if isinstance(pickled, Bundle) else 0


class PickledFunction(NamedTuple):
    """The pickle of a run's function, and the large buffers that it refers to."""

    pickled: memoryview
    shared: SharedBuffers

    @property
    def needs_cloudpickle(self) -> bool:
        """True if the pickle refers to cloudpickle, as far as its beginning tells."""
        return b"cloudpickle" in bytes(self.pickled[:_BEGINNING])

    def check(self) -> Iterator[None]:
        """Verify the buffers piece by piece, once for all processes of the machine.

        Raises:
            NodeStartError: they are damaged, or cannot be read.
        """
        if self.shared.extents:
            yield from self.shared.check()

    def load(self, *, writable: bool = False) -> Callable[..., Any]:
        """Unpickle the function, after `check`; what its unpickling raises passes through.

        Args:
            writable: whether the process may write to its own copy of the function's large arrays.

        Raises:
            NodeStartError: the buffers cannot be read.
        """
        buffers = self.shared.map(writable=writable) if self.shared.extents else ()
        function: Callable[..., Any] = pickle.loads(self.pickled, buffers=buffers)
        return function


_BEGINNING = 1 << 16


def read_function(path: Location, sha256: str = "") -> PickledFunction:
    """Read a pickled function, whose file has this SHA-256 if that is known.

    Raises:
        NodeStartError: the file is damaged, another one or cannot be read, or others may have changed it.
        StorageFailure: the storage fails for too long.
    """
    try:
        data = Patience().run(partial(read_owned, path))
    except (OSError, UnsafeRunFolder) as error:
        if status_of(error) is not None:
            raise named(error) from error
        raise NodeStartError(f"the function cannot be read: {error}") from error
    if sha256 and sha256_of(data) != sha256:
        raise NodeStartError(f"the function on disk is damaged, or is not the one that was submitted: {path}")
    found = list(records.scan(memoryview(data)))
    payloads = {each.header.kind: each.payload for each in found if isinstance(each, Record)}
    if Kind.FUNCTION not in payloads or len(payloads) < len(found):
        raise NodeStartError(f"the function on disk is damaged: {path}")
    buffers = SharedBuffers(_buffers_of(path), payloads.get(Kind.SHARED, b""))
    return PickledFunction(payloads[Kind.FUNCTION], buffers)


def load_function(path: Location, sha256: str = "", *, writable: bool = False) -> Callable[..., Any]:
    """Read, check and unpickle a function, as `read_function` and `PickledFunction` do."""
    function = read_function(path, sha256)
    for _ in function.check():
        pass
    return function.load(writable=writable)


class Work:
    """The function of a run and its items, loaded in this process.

    Attributes:
        can_checkpoint: whether the function has the method ``checkpoint`` of submitit's protocol.
        call: calls the function for an item and returns its value; the function's exceptions pass through.
    """

    def __init__(
        self,
        folder: RunFolder,
        manifest: Manifest,
        checkpoints: Mapping[int, Recorded] = MappingProxyType({}),
        *,
        function: PickledFunction | None = None,
    ) -> None:
        """Load the function.

        Args:
            folder: the run folder.
            manifest: its manifest, as it applies to the round.
            checkpoints: the calls that resume items which an earlier attempt began.
            function: the function, if it has been read and checked on this machine.

        Raises:
            NodeStartError: it cannot be loaded here; the message says why.
        """
        self._checkpoints = checkpoints
        self._call: _Call | None = None
        self._apart = Apart()
        self._definitions = folder.definitions
        self._results: Results | None = None
        self._dumps: Callable[..., bytes] = pickle.dumps
        self._shares = bool(manifest.shared) and not manifest.single
        take_search_path(manifest.sys_path)
        for file, source in manifest.cells.items():  # for tracebacks; a time of None keeps an entry
            linecache.cache.setdefault(file, (len(source), None, source.splitlines(keepends=True), file))
        try:
            load = (
                function.load
                if function
                else partial(load_function, manifest.function_in(folder), manifest.function_sha256)
            )
            self._function = load(writable=manifest.single)
            repeated = manifest.repeated is not None and _came_by_value(self._function)
            self._note = _as_submitted(manifest.repeated) if repeated else None
            self._items = ItemReader(folder)
            _define_in_main(self._function)
            self.can_checkpoint = hasattr(_unwrapped(_Call(self._function, (), {})).function, "checkpoint")
            # In the common case nothing has to be remembered per item.
            self.call = self._start_or_resume if self.can_checkpoint else self._items.calling(self._function)
        except (NodeStartError, StorageFailure):
            raise
        except BaseException as error:
            raise _not_loaded(manifest, error) from error

    def close(self) -> None:
        """Close the files."""
        self._items.close()

    def run(self, item: int) -> tuple[Kind, bytes | Bundle]:
        """Run an item; return the kind of its outcome's record and the pickled outcome, as `pickled` does."""
        try:
            value = self.call(item)
        except BaseException as error:  # noqa: BLE001  (any exception of the function is an outcome)
            return _FAILURE, self.failure(error)
        return self.pickled(value)

    def failure(self, error: BaseException) -> bytes:
        """Return the pickled failure of an item whose call raised this exception."""
        failure = failure_of(error)
        if self._shares and _is_about_read_only(error):
            failure = failure.noted(_READ_ONLY)
        note = ""
        if isinstance(error, OSError) or "returncode" in vars(error):
            from slurmlaunch.runfolder.storage_notes import storage_note  # here, because a node must start fast

            note = storage_note(error)
        for each in filter(None, (note, self._note)):
            failure = failure.noted(each)
        return failure.dump()

    def pickled(self, value: object) -> tuple[Kind, bytes | Bundle]:
        """Return the kind of a value's record, and the pickle for it.

        The kind is SERIES for a plain value, BUNDLE for one with large buffers, VALUES for any other, and FAILURE if
        the value does not pickle.
        """
        if type(value) in PLAIN and not (type(value) in _TEXT and len(value) >= APART):  # type: ignore[arg-type]
            return _SERIES, pickle.dumps(value, SERIES_PROTOCOL)
        try:
            pickled = Value(value).dump_apart(self._apart, self._dumps, self._dumps_by_value)
        except UnpicklableResult as error:
            return _FAILURE, failure_of(error).dump()
        return (_VALUES if type(pickled) is bytes else _BUNDLE), pickled

    def _dumps_by_value(self, value: object, *arguments: Any, **options: Any) -> bytes:
        if self._results is None:
            from slurmlaunch.runfolder.result_pickling import Results  # here, because cloudpickle takes long to import

            self._results = Results(self._definitions, self._apart.stays)
            self._dumps = self._results.dumps
        return self._results.dumps_by_value(value, *arguments, **options)

    def _start_or_resume(self, item: int) -> Any:
        if item in self._checkpoints:
            call = _Call(*pickle.loads(*self._checkpoints[item].read().parts()))
        else:
            call = _Call(self._function, self._items[item], {})
        self._call = call
        try:
            return call.function(*call.args, **call.kwargs)
        finally:
            self._call = None

    def checkpoint(self) -> bytes | None:
        """Return the pickled call that resumes the running item; None if nothing runs, or it cannot be resumed.

        ``function.checkpoint(*args, **kwargs)`` returns the function to call with the same arguments, or, as in
        submitit, an object with ``function``, ``args`` and ``kwargs``.
        """
        if self._call is None:
            return None
        from slurmlaunch import byvalue

        call = _unwrapped(self._call)
        later = call.function.checkpoint(*call.args, **call.kwargs)
        if later is None:
            return None
        if not hasattr(later, "function"):
            later = call._replace(function=later)
        return byvalue.dumps((later.function, tuple(later.args), dict(later.kwargs)))


_SERIES, _VALUES, _BUNDLE, _FAILURE = Kind.SERIES, Kind.VALUES, Kind.BUNDLE, Kind.FAILURE
"""Looked up once: this counts at a microsecond per item."""

_READ_ONLY = (
    "large arrays that the function refers to are read-only, since all processes of the node share their memory: "
    "write to a copy, such as array.copy()"
)


def _is_about_read_only(error: BaseException) -> bool:
    """Whether NumPy, Cython or Python itself may have raised this on a write to shared memory."""
    return isinstance(error, (TypeError, ValueError)) and any(
        words in text for text in error.args if isinstance(text, str) for words in _ABOUT_READ_ONLY
    )


_ABOUT_READ_ONLY = ("read-only", "cannot set WRITEABLE flag", "cannot resize this array")
"""The last two are NumPy's, of ``setflags`` and ``resize``."""


_TEXT = frozenset({bytes, str})
"""Plain types whose values may be too long for a series, which holds less than 4 GiB each."""


def _as_submitted(created: float | None) -> str:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(created))
    return f"ran the function as it was submitted at {when}; retry(fn) runs another"


def _came_by_value(function: Callable[..., Any]) -> bool:
    """Whether the function, or its class, came in its pickle, and not from a module that was imported here."""
    function = _unwrapped(_Call(function, (), {})).function
    definition = getattr(function, "__func__", function)
    if not hasattr(definition, "__qualname__"):
        definition = type(definition)
    return definition.__module__ == unpickling.MAIN or not unpickling.is_named(definition)


def _define_in_main(function: Callable[..., Any]) -> None:
    """Define here the names of the client's script: the standard library's pools pickle its functions by name."""
    function = _unwrapped(_Call(function, (), {})).function
    main = sys.modules.get("__main__")
    for name, value in list(getattr(function, "__globals__", {}).items()):
        with suppress(Exception):  # an object may let nobody look at it, as a proxy without its object
            if value.__module__ == "__main__" and not hasattr(main, name):
                setattr(main, name, value)


class _Call(NamedTuple):
    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def _unwrapped(call: _Call) -> _Call:
    """Remove the partial into which `submit` binds its arguments."""
    function, args, kwargs = call
    while isinstance(function, partial):
        args = (*function.args, *args)
        kwargs = {**function.keywords, **kwargs}
        function = function.func
    return _Call(function, args, kwargs)


def take_search_path(entries: list[str]) -> None:
    """Search for modules where the client does: first in its own folders, then among the packages installed here."""
    here = list(sys.path)
    ahead = list(takewhile(lambda entry: entry not in here or entry == here[0], entries))
    behind = [entry for entry in entries if entry not in here and entry not in ahead]
    sys.path[:] = [*ahead, *(entry for entry in here if entry not in ahead), *behind]


def _not_loaded(manifest: Manifest, error: BaseException) -> NodeStartError:
    advice = advice_on_import(error) if isinstance(error, ImportError) else ""
    what = f"{manifest.function} cannot be loaded on the node: {type(error).__name__}: {error}"
    if isinstance(error, ImportError) and error.name:
        what += _other_version(manifest, error.name.partition(".")[0])
    return NodeStartError(what, advice=advice)


def _other_version(manifest: Manifest, module: str) -> str:
    """Return what differs from the submission in the distribution of a module, as text that follows an error."""
    from importlib import metadata  # here, because a node must start fast

    recorded = {name: each[name] for each in manifest.code.get("distributions", {}).values() for name in each}
    for name, version in recorded.items():
        if name.lower().replace("-", "_") == module.lower():
            try:
                here = metadata.version(name)
            except metadata.PackageNotFoundError:
                return f"; the client has {name} {version}, and the node has none"
            return "" if here == version else f"; the client has {name} {version}, and the node has {here}"
    return ""
