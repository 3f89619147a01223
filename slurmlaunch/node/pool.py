"""The pool of one task: what its processes are assigned, and what became of them.

Nothing here knows of Slurm, of time limits or of clients; `supervisor` does. A
process that dies is replaced: the item that it ran is reported, and the rest of
what it was assigned goes back into stock.
"""

from __future__ import annotations

import os
import signal
from array import array
from collections import deque
from contextlib import suppress
from time import monotonic, sleep
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from slurmlaunch.node.channel import FAILED, FLOAT, INTEGER, MARKS, MAX_ITEMS, Channel, Connection
from slurmlaunch.node.system import RUSAGE_UNIT, of_files
from slurmlaunch.node.worker import ABOUT_ITSELF, APPENDED, LENGTH
from slurmlaunch.runfolder.records import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from slurmlaunch.node.events import Waiting
    from slurmlaunch.node.queue import Queue
    from slurmlaunch.runfolder.outcomes import OutcomeWriter

ASSIGNMENT_SECONDS = 0.1
"""How much work is handed over at once, by measured duration: enough to make the
hand-over vanish, and little enough to balance and to take back."""

_GROWTH = 8
"""How much longer an assignment may be than the last: the first item is handed over alone."""

PATIENCE = 0.25
"""Seconds that an item may run before those behind it are given to others."""

_CLOSING_SECONDS = 2.0
_CLOSING_TICK = 0.001


class Death(NamedTuple):
    """How a process of the pool ended, and what it was doing.

    Attributes:
        number: its place in the pool.
        item: the item that it was running, or None.
        signal: the signal that killed it, or None.
        status: its exit status, or None.
        ready: whether it had loaded the function.
        failure: why it could not load it, pickled, or None.
        ours: whether the pool itself killed it.
    """

    number: int
    item: int | None
    signal: int | None
    status: int | None
    ready: bool
    failure: bytes | None
    ours: bool


class Pool:
    """The processes of one task.

    Attributes:
        processes: those that are alive, by process id.
        recorded: how many outcomes have been recorded.
        checkpoints: how many checkpoints.
    """

    def __init__(
        self,
        waiting: Waiting,
        writer: OutcomeWriter,
        stock: Queue,
        child: Callable[[int, Connection, Channel], NoReturn],
        *,
        shares: bool = False,
    ) -> None:
        """Make an empty pool.

        Args:
            waiting: is told of every connection, with what to call when it has news.
            writer: takes the outcomes.
            stock: gives the items.
            child: runs in each new process: its number, its end of the connection
                and its channel; never returns.
            shares: whether the processes map large arrays of the function.
        """
        self.processes: dict[int, Process] = {}
        self.recorded = self.checkpoints = 0
        self._waiting = waiting
        self._writer = writer
        self._queue = stock
        self._child = child
        self._shares = shares
        self._seconds_per_item = 0.0
        self._last_size = 0
        self._appending: Process | None = None
        self._held: deque[tuple[Process, bytes]] = deque()
        self._peaks: dict[int, int] = {}
        self._shared = 0

    @property
    def peak(self) -> int:
        """The most memory that the processes held together, in bytes, as far as they have ended."""
        return sum(self._peaks.values()) + self._shared

    def fill(self, places: Collection[int]) -> None:
        """Start processes in those places that are free, while there are items that no idle process waits for."""
        taken = {process.number for process in self.processes.values()}
        idle = sum(not process.busy for process in self.processes.values())
        free = [number for number in places if number not in taken]
        for number in free[: max(0, len(self._queue) - idle)]:
            self._start(number)

    def _start(self, number: int) -> None:
        ours, theirs = Connection.pair()
        channel = Channel()
        pid = os.fork()
        if not pid:
            ours.close()
            for other in self.processes.values():
                other.connection.close()  # or the others would not see the supervisor's end
            self._child(number, theirs, channel)
        theirs.close()
        process = Process(number, pid, ours, channel)
        self.processes[pid] = process
        self._waiting.add(ours.reading, lambda: self._hear(process))

    def feed(self) -> None:
        """Assign items to every process that waits for some."""
        for process in self.processes.values():
            if process.ready and not process.busy:
                items = self._queue.take(self._size())
                if items:
                    process.assign(items)

    def _size(self) -> int:
        """Return how many items to hand over at once."""
        if not self._seconds_per_item:
            return 1
        size = int(ASSIGNMENT_SECONDS / self._seconds_per_item)
        share = -(-len(self._queue) // (2 * len(self.processes)))
        return max(1, min(size, _GROWTH * self._last_size, share, MAX_ITEMS))

    def _hear(self, process: Process) -> None:
        word = process.connection.receive(1)
        if word is not None:
            self._take(process, word)
        else:
            self._waiting.remove(process.connection.reading)  # dead, or about to be: see reap

    def _take(self, process: Process, word: bytes) -> None:
        if word in ABOUT_ITSELF:
            self._learn_of(process, word)
        elif self._appending is not None and process is not self._appending:
            # One writer at a time: until the large outcome is in the file, the others wait.
            self._held.append((process, word))
        elif word in APPENDED:
            self._adopt(process, failed=word == b"L")
            self._release()
        elif word == b"N":
            self._release()
        else:
            self.recorded += process.drain(self._writer)
            self._reply(process, word)

    def _reply(self, process: Process, word: bytes) -> None:
        if word == b"E":
            if self._shares:
                process.weigh()
            self._learn(process)
            self._queue.put_back(process.end())
        elif word in (b"F", b"W"):
            if word == b"W":
                self._appending = process
            process.answer()

    def _learn(self, process: Process) -> None:
        number = len(process.items)
        self._last_size = max(1, number)
        self._seconds_per_item = max((monotonic() - process.since) / max(1, number), 1e-7)

    def _learn_of(self, process: Process, word: bytes) -> None:
        if word == b"X":
            process.failure = self._receive_bytes(process)
        elif word == b"P":
            process.checkpoint = self._receive_bytes(process)
        else:
            process.ready = True
            process.can_checkpoint = word == b"C"

    def _receive_bytes(self, process: Process) -> bytes | None:
        header = process.connection.receive(LENGTH.size)
        return process.connection.receive(LENGTH.unpack(header)[0]) if header else None

    def _adopt(self, process: Process, *, failed: bool) -> None:
        self._writer.adopt(failed=failed)
        process.base += 1
        self.recorded += 1

    def _release(self) -> None:
        self._appending = None
        held, self._held = self._held, deque()
        for process, word in held:
            self._take(process, word)

    def look(self) -> None:
        """Record what was not announced yet, and take items back from behind slow ones."""
        if self._appending is not None:
            return
        for process in self.processes.values():
            if process.busy:
                self.recorded += process.drain(self._writer)
                self._queue.put_back(process.slow_items(PATIENCE))

    def reap(self) -> list[Death]:
        """Return the deaths since the last call; what a dead process had finished is recorded."""
        deaths = []
        # While one appends, the others' outcomes cannot be recorded: their deaths wait too.
        candidates = [self._appending.pid] if self._appending else list(self.processes)
        for pid in candidates:
            ended, status, usage = os.wait4(pid, os.WNOHANG)
            if ended:
                self._note_peak(self.processes[pid], usage.ru_maxrss * RUSAGE_UNIT)
                deaths.append(self._bury(self.processes.pop(pid), status))
        return deaths

    def _note_peak(self, process: Process, peak: int) -> None:
        own = max(0, peak - process.shared)
        self._peaks[process.number] = max(own, self._peaks.get(process.number, 0))
        self._shared = max(self._shared, process.shared)

    def weigh(self) -> None:
        """See what of the processes' memory is shared, which the system counts as that of each; now and then."""
        if self._shares:
            for process in self.processes.values():
                process.weigh()

    def _bury(self, process: Process, status: int) -> Death:
        whole = self._last_words(process)
        if self._appending is process and not whole:
            self._writer.cut()
        self._held = deque(held for held in self._held if held[0] is not process)
        self.recorded += process.drain(self._writer)
        running = process.running
        item = process.items[running] if running is not None else None
        told = process.checkpoint is not None
        if process.checkpoint is not None and item is not None:
            self._writer.checkpoint(item, process.checkpoint)
            self.checkpoints += 1
        if running is not None:
            # With a checkpoint the item itself is left to do too.
            self._queue.put_back(process.items[running if told else running + 1 :])
        else:
            self._queue.put_back(process.items[process.recorded :])
        self._hang_up(process)
        if self._appending is process:
            self._release()  # not before all of its outcomes are in the file: there is one writer at a time
        killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        code = None if killed else os.WEXITSTATUS(status)
        return Death(
            process.number, None if told else item, killed, code, process.ready, process.failure, process.killed
        )

    def _last_words(self, process: Process) -> bool:
        """Take what the process had said before it died; return whether it had appended what it was allowed to."""
        whole = False
        if process.connection.reading < 0:
            return whole
        # A child of its own may hold the other end open.
        os.set_blocking(process.connection.reading, False)
        with suppress(BlockingIOError):
            while word := process.connection.receive(1):
                if word in ABOUT_ITSELF:
                    self._learn_of(process, word)
                elif word in APPENDED:
                    self._adopt(process, failed=word == b"L")
                    whole = True
                elif word == b"W":
                    break
        return whole

    def take_back(self) -> None:
        """Take back what has been handed over and was not begun; it goes into stock as it comes in."""
        for process in self.processes.values():
            if process.busy:
                process.take_back()

    def ask_for_checkpoints(self) -> None:
        """Ask the functions that know how to be gone on with, and are running."""
        for process in self.processes.values():
            if process.busy and process.can_checkpoint:
                os.kill(process.pid, signal.SIGUSR2)

    def kill(self, items: Collection[int] | None = None) -> None:
        """Kill the processes that run one of these items, or all."""
        for process in self.processes.values():
            running = process.running
            if items is None or (running is not None and process.items[running] in items):
                process.kill()

    def close(self) -> list[Death]:
        """Let idle processes end, and wait until all have; kill who does not. Return their deaths."""
        deaths = []
        for process in self.processes.values():
            if not process.busy:  # else it was killed, and may have said that its last outcome is in the file
                self._hang_up(process)
        deadline = monotonic() + _CLOSING_SECONDS
        while self.processes:
            deaths += self.reap()
            if monotonic() > deadline:
                self.kill()
            if self.processes:
                sleep(_CLOSING_TICK)
        return deaths

    def _hang_up(self, process: Process) -> None:
        self._waiting.remove(process.connection.reading)
        process.connection.close()

    @property
    def appending(self) -> bool:
        """Whether a process is writing to the outcome file itself: nobody else may then."""
        return self._appending is not None

    @property
    def number_busy(self) -> int:
        """How many processes have items."""
        return sum(process.busy for process in self.processes.values())

    @property
    def busy(self) -> bool:
        """Whether any process has items."""
        return any(process.busy for process in self.processes.values())


class Process:
    """The supervisor's hand on one process of the pool.

    Attributes:
        number: its place in the pool.
        pid: its process id.
        connection: the connection to it.
        channel: the memory shared with it.
        items: what it has been assigned; empty while it is idle.
        base: how many of them were recorded before the channel was last reset.
        drained: how many outcomes were taken from the channel since then.
        drained_bytes: how many bytes.
        since: when it was assigned them.
        ready: whether it has loaded the function.
        failure: why it could not, pickled, or None.
        can_checkpoint: whether its function can be asked how an item is gone on with.
        checkpoint: what that said, pickled, or None.
        suspect: the position that a slow item was seen at, its followers being taken back.
        shared: the most bytes of files that it was seen to hold, as others may too.
        killed: whether it was killed from here.
    """

    def __init__(self, number: int, pid: int, connection: Connection, channel: Channel) -> None:
        self.number, self.pid, self.connection, self.channel = number, pid, connection, channel
        self.items = array("Q")
        self.base = self.drained = self.drained_bytes = 0
        self.since = 0.0
        self.seen = (-1, 0.0)
        self.suspect: int | None = None
        self.ready = self.killed = False
        self.failure: bytes | None = None
        self.can_checkpoint = False
        self.checkpoint: bytes | None = None
        self.shared = 0

    def weigh(self) -> None:
        """See how much of its memory is not its alone: its peak, as the system tells it at its end, includes that."""
        self.shared = max(self.shared, of_files(self.pid))

    @property
    def busy(self) -> bool:
        """Whether it has been assigned items."""
        return bool(self.items)

    @property
    def recorded(self) -> int:
        """How many items of its assignment have been recorded."""
        return self.base + self.drained

    @property
    def running(self) -> int | None:
        """The position of the item that it is running, as far as is known."""
        current = self.channel.current
        finished = self.base + self.channel.count
        return current if current is not None and finished <= current < len(self.items) else None

    def assign(self, items: array[int]) -> None:
        """Hand over items; it must be idle."""
        self.items = items
        self.base = self.drained = self.drained_bytes = 0
        self.since = monotonic()
        self.seen, self.suspect = (-1, self.since), None
        self.channel.assign(len(items))
        self._send(LENGTH.pack(len(items)) + items.tobytes())

    def answer(self) -> None:
        """Let it go on with an empty channel, after `drain`."""
        self.base += self.drained
        self.drained = self.drained_bytes = 0
        self.channel.reset()
        self._send(b"G")

    def _send(self, data: bytes) -> None:
        with suppress(BrokenPipeError):  # it has died; that is noticed where all deaths are
            self.connection.send(data)

    def drain(self, writer: OutcomeWriter) -> int:
        """Record the outcomes that are in the channel; return how many there were."""
        count = self.channel.count
        new = count - self.drained
        if new <= 0:
            return 0
        lengths = self.channel.lengths(self.drained, count)
        items = self.items[self.recorded : self.recorded + new]
        for start, stop in _runs(items, lengths):
            self._record(items[start], lengths[start:stop], writer)
        return new

    def _record(self, first: int, lengths: array[int], writer: OutcomeWriter) -> None:
        """Record the next outcomes, which are of one kind and of items that follow each other."""
        mark, stop = lengths[0] & MARKS, self.drained + len(lengths)
        if mark in _KINDS:
            writer.numbers(_KINDS[mark], first, self.channel.numbers(self.drained, stop))
        else:
            end = self.drained_bytes + sum(lengths) - mark
            data = self.channel.data(self.drained_bytes, end)
            if mark:
                writer.failure(first, data)
            else:
                writer.series(first, lengths, data)
            self.drained_bytes = end
        self.drained = stop

    def slow_items(self, patience: float) -> array[int]:
        """Return the items behind one that takes longer than that, and take them back.

        It takes two calls: one lowers the limit, and the next, a tick later,
        sees whether the process had gone on before it could know.
        """
        position, now = self.running, monotonic()
        none = array("Q")
        if position is None or position + 1 >= len(self.items):
            return none
        if self.suspect == position:
            rest = self.items[position + 1 :]
            self.items = self.items[: position + 1]
            return rest
        if self.seen[0] != position:
            self.seen = (position, now)
        elif now - self.seen[1] > patience:
            self.channel.limit(position + 1)
            self.suspect = position
        return none

    def take_back(self) -> None:
        """Have it end its assignment after the item that it is running."""
        position = self.running
        self.channel.limit(self.base + self.channel.count if position is None else position + 1)

    def end(self) -> array[int]:
        """Note that the assignment is done; return what of it was not run."""
        rest = self.items[self.recorded :]
        self.items = array("Q")
        return rest

    def kill(self) -> None:
        """Kill it; its death is noticed where all deaths are."""
        self.killed = True
        os.kill(self.pid, signal.SIGKILL)


_KINDS = {INTEGER: Kind.INTEGERS, FLOAT: Kind.FLOATS}


def _runs(items: array[int], lengths: array[int]) -> Iterator[tuple[int, int]]:
    """Cut outcomes into stretches of consecutive items with values of one kind; each failure stands alone."""
    total = len(items)
    alike = lengths.count(lengths[0]) == total if lengths[0] in _KINDS else max(lengths) < FLOAT
    # The ends alone do not tell: a slice that was packed by cost has its items in any order.
    if alike and items[-1] - items[0] == total - 1 and items == array("Q", range(items[0], items[0] + total)):
        yield 0, total
        return
    start = 0
    for i in range(1, total + 1):
        if i == total or items[i] != items[i - 1] + 1 or lengths[i] & FAILED or (lengths[i] ^ lengths[i - 1]) & MARKS:
            yield start, i
            start = i
