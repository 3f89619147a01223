"""The order of events in tests: set not by the clock, but by files that one side makes and the other waits for.

Items that run elsewhere import this file, so it imports very little.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SEEN_LATE = "SLURMLAUNCH_TEST_SEEN_LATE"
"""The variable that says how many seconds late this machine sees what others write, where that is not at once."""

PATIENCE = 90.0
"""Seconds after which something that was bound to come is given up."""


def wait_until(happened: Callable[[], object], patience: float = PATIENCE) -> None:
    """Wait for something that another process or thread does."""
    deadline = time.monotonic() + patience
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError("the awaited condition did not come true")
        time.sleep(0.01)


def is_alive(process: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8") as stat:  # noqa: PTH123 - pathlib is much to import
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def show_to_nodes() -> None:
    """Wait until the nodes see what this test has written into files that items looked for before."""
    time.sleep(float(os.environ.get(SEEN_LATE, "0")))


class Gate:
    """A place where items wait until the test lets them through.

    Attributes:
        folder: where arrivals and openings are marked, by files.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder

    # The item's side.

    def enter(self, item: object = 0) -> str:
        """Report that an item is here, and wait until it may continue; return its name."""
        name = str(item)
        beside = self.folder / f"{name}.{os.getpid()}"
        beside.write_text(str(os.getpid()), encoding="utf-8")
        beside.replace(self.folder / f"{name}.here")
        openings = (self.folder / f"{name}.open", self.folder / "all.open")
        wait_until(lambda: any(path.exists() for path in openings))
        return name

    # The test's side.

    def open(self, *items: object) -> None:
        """Let these items through, or all."""
        for item in items or ("all",):
            (self.folder / f"{item}.open").touch()

    @property
    def arrived(self) -> set[str]:
        """The items that have arrived."""
        return {path.stem for path in self.folder.glob("*.here")}

    def await_arrival(self, *items: object) -> None:
        """Wait until these items are here."""
        wait_until(lambda: self.arrived >= set(map(str, items)))

    def process_of(self, item: object) -> int:
        """Return the process of an item that has arrived."""
        return int((self.folder / f"{item}.here").read_text(encoding="utf-8"))


class Story:
    """A file that items on many processes append lines to.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        path.touch()
        self.path = path

    def tell(self, line: object) -> None:
        """Append a line, with one call of the system."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        os.write(descriptor, f"{line}\n".encode())
        os.close(descriptor)

    @property
    def lines(self) -> list[str]:
        """The lines that have been logged so far."""
        show_to_nodes()  # what they have written is visible here then, too
        return self.path.read_text(encoding="utf-8").splitlines()
