"""Files of a run folder, named by their paths."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slurmlaunch.runfolder.files import Location

if TYPE_CHECKING:
    from pathlib import Path


def located(path: Path) -> Location:
    """Return a file or folder as `slurmlaunch.runfolder` takes it, with the folder above it for the run folder."""
    return Location(path.parent) / path.name
