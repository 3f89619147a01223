"""The functions of the fault suite's items. Nodes import this file, so it imports very little."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.support.waiting import Gate, Story, wait_until

MEGABYTE = 1 << 20


class Deed:
    """An item that logs its start, may wait at a gate, and returns its square.

    Attributes:
        story: the file that gets a line for each start of an item.
        gate: the folder of the gate.
        waits: the items that wait.
    """

    def __init__(self, folder: Path, *waits: int) -> None:
        (folder / "gate").mkdir(exist_ok=True)
        self.story, self.gate, self.waits = Story(folder / "story"), Gate.__new__(Gate), frozenset(waits)
        self.gate.folder = folder / "gate"

    def __call__(self, number: int) -> int:
        """Run an item."""
        self.story.tell(number)
        self.act(number)
        return number * number

    def act(self, number: int) -> None:
        """Wait, if this item is a waiting one."""
        while number in self.waits:
            try:
                self.gate.enter(number)
            except TimeoutError:  # a time limit takes longer than a gate's patience
                continue
            return

    @property
    def runs(self) -> dict[int, int]:
        """The number of starts of each item."""
        lines = [int(line) for line in self.story.lines]
        return {item: lines.count(item) for item in sorted(set(lines))}

    def supervisor(self, item: int) -> int:
        """Return the supervisor of a waiting item."""
        return parent(self.gate.process_of(item))

    def forget(self, item: int) -> None:
        """Forget that an item has arrived, so that its next arrival can be waited for."""
        (self.gate.folder / f"{item}.here").unlink()


class Exits(Deed):
    """Some of its items end their process with os._exit."""

    def act(self, number: int) -> None:
        """End the process."""
        if number in self.waits:
            os._exit(3)


class Hungry(Deed):
    """Some of its items use memory until they are killed, or have 400 MB."""

    def act(self, number: int) -> None:
        """Use memory."""
        if number in self.waits:
            taken = [bytes(os.urandom(1)) * (10 * MEGABYTE) for _ in range(40)]
            del taken


class Greedy(Deed):
    """Some of its items have 300 MB for as long as nothing kills them, at most half a minute."""

    def act(self, number: int) -> None:
        """Use memory, and wait to be killed."""
        if number in self.waits and len(self.story.lines) <= len(set(self.story.lines)):
            taken = bytes(os.urandom(1)) * (300 * MEGABYTE)
            time.sleep(30)
            del taken


class Widens(Deed):
    """Returns the CPUs that its process may use, before and after it asks for all."""

    def __call__(self, number: int) -> tuple[list[int], list[int]]:  # type: ignore[override]
        """Run an item."""
        before = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, range(os.sysconf("SC_NPROCESSORS_CONF")))  # os.cpu_count() has the task's, from 3.13 on
        self.act(number)
        return before, sorted(os.sched_getaffinity(0))


class Offers(Deed):
    """Some of its items use memory so that the kernel kills their supervisor, and not them."""

    def act(self, number: int) -> None:
        """Mark the supervisor as the first process to kill, and use memory."""
        if number in self.waits:
            Path(f"/proc/{os.getppid()}/oom_score_adj").write_text("1000", encoding="utf-8")
            file = os.memfd_create("memory")  # the files in memory count for the task, not for a process
            for _ in range(400):
                os.write(file, bytes(MEGABYTE))


class Fails(Deed):
    """Some of its items fail on the first try."""

    def act(self, number: int) -> None:
        """Raise, the first time."""
        if number in self.waits and self.runs[number] == 1:
            raise ConnectionError(number)


class Counts(Deed):
    """Counts to a number, and can resume: submitit's protocol, as its users write it."""

    def __init__(self, folder: Path, start: int = 0) -> None:
        super().__init__(folder)
        self.start = self.reached = start

    def __call__(self, number: int) -> int:
        """Count on, and wait at each step until the test allows it."""
        import submitit.helpers  # noqa: F401 - not at the end, when a busy machine may need more than the time for it

        self.story.tell(f"from {self.start}")
        for step in range(self.start, number):
            self.reached = step
            (self.gate.folder / f"{step}.here").write_text(str(os.getpid()), encoding="utf-8")
            wait_until((self.gate.folder / f"{step}.open").exists)
        return number

    def checkpoint(self, number: int) -> object:
        """Return the callable and the arguments for the next attempt."""
        import submitit.helpers

        return submitit.helpers.DelayedSubmission(Counts(self.story.path.parent, self.reached), number)


def parent(process: int) -> int:
    """Return the parent of a process."""
    return int(Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])


def nap(number: int, seconds: float = 1.0) -> int:
    """Sleep, and return the number."""
    time.sleep(seconds)
    return number
