"""clusterfutures: a job per item."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from systems.base import Trial, outcome

if TYPE_CHECKING:
    from pathlib import Path

    from systems.base import Call


@dataclass(frozen=True)
class Clusterfutures:
    """`SlurmExecutor.submit`, for each item."""

    name: str = "clusterfutures"
    requires: tuple[str, ...] = ("cfut",)
    logs: str = ""
    launcher: tuple[str, ...] = ()

    def run(self, call: Call, folder: Path) -> Trial:  # noqa: ARG002  (it writes to the current one)
        """Submit a job for each item, and wait for them one after the other."""
        import cfut

        with cfut.SlurmExecutor() as executor:
            futures = [executor.submit(call.function, item) for item in call.items]
            return Trial([outcome(future.result) for future in futures])
