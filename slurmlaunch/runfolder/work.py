"""The work of a run: its function, and how one item of it is run.

The one place where the user's code is called: by the pool processes of a node,
and by the inline backend.
"""

from __future__ import annotations

import pickle
import sys
from typing import TYPE_CHECKING, Any

from slurmlaunch.errors import NodeStartError, UnpicklableResult
from slurmlaunch.outcome import Value, capture, failure_of
from slurmlaunch.runfolder import records
from slurmlaunch.runfolder.items import ItemReader
from slurmlaunch.runfolder.records import Kind, Record
from slurmlaunch.runfolder.safety import read_owned, write_whole

if TYPE_CHECKING:
    from collections.abc import Callable

    from slurmlaunch.runfolder.layout import RunFolder
    from slurmlaunch.runfolder.manifest import Manifest


def write_function(folder: RunFolder, pickled: bytes) -> None:
    """Write the pickled function of a run."""
    write_whole(folder.function, [records.encode(Kind.FUNCTION, pickled)])


def load_function(folder: RunFolder) -> Callable[..., Any]:
    """Unpickle the function of a run.

    Raises:
        NodeStartError: the file is damaged.
        Exception: whatever its unpickling raises.
    """
    for found in records.scan(memoryview(read_owned(folder.function))):
        if isinstance(found, Record):
            function: Callable[..., Any] = pickle.loads(found.payload)
            return function
    msg = f"the function on disk is damaged: {folder.function}"
    raise NodeStartError(msg)


class Work:
    """The function of a run and its items, ready to be run one by one."""

    def __init__(self, folder: RunFolder, manifest: Manifest) -> None:
        """Load the function, as a process that is to run items does once.

        Raises:
            NodeStartError: it cannot be loaded here; the message says why.
        """
        extend_search_path(manifest.sys_path)
        try:
            self._function = load_function(folder)
            self._items = ItemReader(folder)
        except NodeStartError:
            raise
        except BaseException as error:
            raise _not_loaded(manifest, error) from error

    def run(self, item: int) -> tuple[bool, bytes]:
        """Run an item; return whether it has a value, and the bytes of its outcome."""
        outcome = capture(self._call, item)
        if isinstance(outcome, Value):
            try:
                return True, outcome.dump()
            except UnpicklableResult as error:
                outcome = failure_of(error)
        return False, outcome.dump()

    def _call(self, item: int) -> Any:
        return self._function(*self._items[item])


def extend_search_path(entries: list[str]) -> None:
    """Let imports find what the client's would find, after what this process finds itself."""
    sys.path.extend(entry for entry in entries if entry not in sys.path)


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
