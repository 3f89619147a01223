"""The harness's interface to a system."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

NODES, CPUS = 2, 8
"""The throwaway Slurm's: how many nodes it has, and how many CPUs each of them claims."""


@dataclass(frozen=True)
class Call:
    """A call for a system to run.

    Attributes:
        function: the function, called with each item.
        items: its arguments.
        tasks: the number of tasks that the items go into, if the system has tasks; all may run at once.
    """

    function: Callable[[Any], Any]
    items: Sequence[Any]
    tasks: int


@dataclass(frozen=True)
class Trial:
    """The result of one run. The run ends when this is made, so that no tidying up is timed.

    Attributes:
        outcomes: each item's value or exception; None if no items were run.
        accepted: when Slurm had accepted the job (`time.time`); None if the client cannot tell.
        measures: other measurements, by name.
        ended: when the last outcome was known (`time.monotonic`).
    """

    outcomes: Iterable[Any] | None
    accepted: float | None = None
    measures: dict[str, float] = field(default_factory=dict)
    ended: float = field(default_factory=time.monotonic)


class System(Protocol):
    """One way to run items."""

    @property
    def name(self) -> str:
        """The name in the registry and in the table."""

    @property
    def requires(self) -> tuple[str, ...]:
        """The modules that the system needs, beyond slurmlaunch's own."""

    @property
    def logs(self) -> str:
        """A pattern for its tasks' logs in the folder, which Slurm makes when it starts them; empty if not known."""

    @property
    def launcher(self) -> tuple[str, ...]:
        """The command that starts the client, such as ``salloc``; empty if there is none."""

    def run(self, call: Call, folder: Path) -> Trial:
        """Run the items; the folder is empty, and the current one."""


def missing(system: System) -> str:
    """Return the missing requirements of the system as text; empty if there are none."""
    absent = [name for name in system.requires if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


def version(system: System) -> str:
    """Return the name and, if known, the installed version of a system, as text."""
    if not system.requires:
        return ""
    module = system.requires[0]
    # Most packages have the same name as their module.
    package = importlib.metadata.packages_distributions().get(module, [module])[0]
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return module


def outcome(result: Callable[[], Any]) -> Any:
    """Return a future's result, or the exception that it raises."""
    try:
        return result()
    except Exception as error:  # noqa: BLE001  (peers have many ways to say that an item is lost)
        return error
