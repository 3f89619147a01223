"""The rounds of a run: their plans, the journals of their arrays, the clients that took them over, cancellations.

A round is the first submission of a run, or a retry. It is a folder that only one process can make, and its maker
submits it. The plan says which task has which items. The journal lists submissions: the intent before each one,
the job id after it. Clients write rounds, clients and nodes read them. `slurmlaunch.runfolder.plan` gives
a plan its meaning, `slurmlaunch.runfolder.clients` says when another client may act in the maker's place.

A cancellation is final: an item with both a cancellation and an outcome is cancelled, in every process that looks. It
applies to one round: a retry runs the item again.
"""

from __future__ import annotations

import json
import time
from array import array
from contextlib import contextmanager, suppress
from itertools import count
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from slurmlaunch.errors import RunFolderError
from slurmlaunch.runfolder import forms, records
from slurmlaunch.runfolder.changes import NewNames, latency_of
from slurmlaunch.runfolder.clients import CLIENT, ClientId
from slurmlaunch.runfolder.files import TAKEN, beside, opened, read_at, read_owned, undisturbed, write_once, write_whole
from slurmlaunch.runfolder.layout import Manifest
from slurmlaunch.runfolder.outcomes import OutcomeFile
from slurmlaunch.runfolder.plan import PLAN, RoundPlan, compact
from slurmlaunch.runfolder.records import Entry, Kind, Record, RecordWriter, read_records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from slurmlaunch.runfolder.files import Location
    from slurmlaunch.runfolder.layout import RunFolder
    from slurmlaunch.runfolder.outcomes import Recorded
    from slurmlaunch.runfolder.storage import Patience


class SchedulerEnd(NamedTuple):
    """The end of a task as the scheduler reported it, as far as it did."""

    task: int
    attempts: int
    """How many attempts of the task had begun."""
    state: str
    """Slurm's word for the end."""
    exit_code: str | None
    """Slurm's ``code:signal``."""
    node: str | None
    reason: str | None


class Journal(list[dict[str, Any]]):
    """The entries of a round's journal, in order; its properties give facts about each array, by the array's number."""

    @property
    def intents(self) -> dict[int, float]:
        """When each was about to be submitted, in seconds since the epoch."""
        return {entry["intent"]: entry["time"] for entry in self if "intent" in entry}

    @property
    def job_ids(self) -> dict[int, str]:
        """The job ids of those that were submitted, as far as it says."""
        return {entry["submitted"]: entry["job_id"] for entry in self if "submitted" in entry}

    @property
    def refusals(self) -> dict[int, str]:
        """The errors of those that were refused for good."""
        return {entry["refused"]: entry["error"] for entry in self if "refused" in entry}

    @property
    def abandoned(self) -> set[int]:
        """Those that may not have been submitted, and whose client does not try again."""
        return {entry["abandoned"] for entry in self if "abandoned" in entry}

    @property
    def not_needed(self) -> set[int]:
        """Those for which no item was left."""
        return {entry["not_needed"] for entry in self if "not_needed" in entry}

    @property
    def waits(self) -> dict[int, ClientId]:
        """Those that wait for room in the queue, and the client that will submit each."""
        return {entry["waiting"]: ClientId(*entry["client"]) for entry in self if "waiting" in entry}


class Round:
    """One round on disk; rounds are counted from 0."""

    def __init__(self, folder: RunFolder, number: int, plan: RoundPlan) -> None:
        self.number = number
        self.plan = plan
        self._path = folder.round(number)
        self._salt = folder.salt
        folder.grow(plan.manifest)

    @classmethod
    def make(
        cls,
        folder: RunFolder,
        number: int,
        plan: RoundPlan,
        *,
        checkpoints: Mapping[int, Recorded] = MappingProxyType({}),
        files: Mapping[str, Callable[[Location], str | None]] = MappingProxyType({}),
    ) -> Round:
        """Make the round; the process for which this succeeds submits it.

        Args:
            folder: the run folder.
            number: the number of the round.
            plan: its plan.
            checkpoints: the calls that resume items which tasks of earlier rounds began.
            files: the round's own files by name, and what writes each where it is told, and returns its SHA-256 if
                tasks read it.

        Raises:
            FileExistsError: another process made it.
        """
        with _made_in_one_step(folder.round(number)) as new:
            found = {name: write(new / name) for name, write in files.items()}
            if hashes := {name: sha256 for name, sha256 in found.items() if sha256}:
                hashes = {**plan.manifest.get("sha256", {}), **hashes}
                plan = plan._replace(manifest={**plan.manifest, "sha256": hashes})
            cls._write(new, plan)
            if checkpoints:
                with RecordWriter(new / "checkpoints", salt=folder.salt) as file:
                    for item, recorded in checkpoints.items():
                        file.append(Entry.of(Kind.CHECKPOINT, recorded.read().parts(), first=item, number=1))
        return cls(folder, number, plan)

    @staticmethod
    def _write(path: Location, plan: RoundPlan) -> None:
        if plan.blocks is not None:
            (path / "claims").mkdir()
        if plan.ranks is not None:
            (path / "ranks").mkdir()
        if plan.items is not None:
            data = array("Q", plan.items).tobytes()
            write_whole(path / "items", [records.encode(Kind.LIST, data, count=len(plan.items))])
        write_whole(path / "plan.json", [json.dumps(plan.to_json()).encode()])

    @classmethod
    def read(cls, folder: RunFolder, number: int) -> Round:
        """Read a round.

        Raises:
            FileNotFoundError: there is no round of that number, or its plan is not visible yet.
            RunFolderError: it is damaged.
            UnsafeRunFolder: another user owns it, or may write to it.
        """
        path = folder.round(number)
        file = path / "plan.json"
        data = read_owned(file)
        path.check()
        content = forms.parse(data, PLAN, file)
        if content.get("ranks"):
            (path / "ranks").check()
        folder.grow(content.get("manifest", {}))
        items = _read_list(path / "items", folder.number_of_items) if content.get("items", True) else None
        client = content.get("client")
        try:
            plan = RoundPlan.from_json(content, items=items, client=client and ClientId(*client))
        except ValueError as error:
            raise forms.damaged(file, str(error)) from error
        planned = min(folder.further, default=folder.number_of_items)
        if items is None and planned not in {None, plan.slices.items}:
            raise forms.damaged(file, f"it has {plan.slices.items} items, and the run {planned}")
        return cls(folder, number, plan)

    def checkpoints(self) -> dict[int, Recorded]:
        """Return the calls that resume items of the round which tasks of earlier rounds began."""
        if not self.number:
            return {}
        file = OutcomeFile(self._path / "checkpoints", self._salt)
        with suppress(FileNotFoundError):
            for _ in file.read(final=True):
                pass  # the file holds no outcomes
        return file.checkpoints

    # The journal.

    def intend(self, number: int) -> None:
        """Record that an array is about to be submitted."""
        self._note(intent=number)

    def submitted(self, number: int, job_id: str) -> None:
        """Record the job id of an array."""
        self._note(submitted=number, job_id=job_id)

    def refused(self, number: int, error: str) -> None:
        """Record that the scheduler refused an array for good."""
        self._note(refused=number, error=error)

    def abandoned(self, number: int) -> None:
        """Record that this client does not know whether an array was submitted, and does not try again."""
        self._note(abandoned=number)

    def not_needed(self, number: int) -> None:
        """Record that no item was left for an array, which is not submitted."""
        self._note(not_needed=number)

    def waiting(self, number: int, client: ClientId) -> None:
        """Record that an array waits for room in the queue, and the client that will submit it."""
        self._note(waiting=number, client=client)

    def throttled(self, throttle: int | None) -> None:
        """Record a change of the throttle."""
        self._note(throttle=throttle)

    def _note(self, **content: Any) -> None:
        with undisturbed(), RecordWriter(self._path / "journal") as writer:
            writer.note(**content, time=time.time())

    def journal(self) -> Journal:
        """Return the journal as it is now."""
        with suppress(FileNotFoundError):
            return Journal(read_notes(self._path / "journal", _entry_of(len(self.plan.arrays))))
        return Journal()

    @property
    def throttle(self) -> int | None:
        """How many of its tasks may run at once: as planned, or as changed since."""
        changes = [entry["throttle"] for entry in self.journal() if "throttle" in entry]
        return changes[-1] if changes else self.plan.throttle

    # In the place of a client that has ended.

    def may_replace(self, client: ClientId) -> bool:
        """Whether another client may act in this round in the place of *client* (`ClientId.may_be_replaced`)."""
        journal = self._path / "journal"
        return client.may_be_replaced((journal if journal.exists() else self._path).status().st_mtime)

    def take_over(self, client: ClientId) -> bool:
        """Become the client that submits the rest of the round; False if another one is and cannot be replaced.

        If several try at once, one succeeds: the first to make ``successor.K``,
        for the first K whose maker can be replaced.
        """
        others = list(self.successors())
        if not all(map(self.may_replace, others)):
            return False
        return write_once(self._path / f"successor.{len(others)}", json.dumps(client).encode())

    def successors(self) -> Iterator[ClientId]:
        """Yield the clients that took the round over, in order."""
        for number in count():
            path = self._path / f"successor.{number}"
            try:
                yield ClientId(*forms.parse(read_owned(path), CLIENT, path))
            except FileNotFoundError:
                return

    # Ends that the scheduler reported.

    def record_ends(self, writer: str, ends: Sequence[SchedulerEnd]) -> None:
        """Record ends of tasks that only the scheduler knows, in the file of one client (`clients.writer_name`)."""
        with RecordWriter(self._path / f"ends.{writer}") as file:
            file.note(ends=ends)

    def ends(self) -> Iterator[SchedulerEnd]:
        """Yield the ends that clients recorded."""
        for name in sorted(name for name in self._path.names() if name.startswith("ends.")):
            for note in read_notes(self._path / name, _ENDS):
                yield from (SchedulerEnd(*each) for each in note["ends"])


def read_notes(path: Location, form: forms.Form) -> Iterator[dict[str, Any]]:
    """Yield the content of each NOTE of a file, a torn last one left out, on the conditions of `open_owned`.

    Raises:
        RunFolderError: a note is damaged.
    """
    for found in read_records(path):
        if isinstance(found, Record) and found.header.kind == Kind.NOTE:
            yield forms.parse(found.payload, form, path, found.offset)


def _entry_of(arrays: int) -> forms.Form:
    """Return the form of an entry of the journal of a round with so many arrays."""

    def array(value: Any) -> bool:
        return forms.count(value) and value < arrays

    of_any = forms.Keys({"time": forms.seconds}, {"throttle": forms.null_or(forms.count)})
    of_array = {
        **dict.fromkeys(("intent", "abandoned", "not_needed"), forms.Keys()),
        "submitted": forms.Keys({"job_id": forms.text}),
        "refused": forms.Keys({"error": forms.text}),
        "waiting": forms.Keys({"client": CLIENT}),
    }

    def entry(value: Any) -> bool:
        return of_any(value) and all(
            array(value[key]) and form(value) for key, form in of_array.items() if key in value
        )

    return entry


_ENDS = forms.Keys(
    {"ends": forms.listing(forms.row(forms.count, forms.count, forms.text, *[forms.null_or(forms.text)] * 3))}
)


_LOOK_AGAIN = 0.2
"""Seconds until a task looks again for its round."""


def read_rounds(folder: RunFolder, start: int = 0) -> Iterator[Round]:
    """Yield the rounds of a run in order, beginning with a number."""
    for number in count(start):
        try:
            yield Round.read(folder, number)
        except FileNotFoundError:
            return


# Removal. It takes the place of the next round, so that no client adds one to a run that another client removes.


_REMOVAL = "removal"
"""The file in the place of a round that names the client which removes the run."""


def claim_removal(folder: RunFolder, number: int, client: ClientId) -> None:
    """Put the removal of a run in the place of its next round.

    Raises:
        FileExistsError: another client has made that round, or removes the run.
    """
    with _made_in_one_step(folder.round(number)) as new:
        write_whole(new / _REMOVAL, [json.dumps(client).encode()])


@contextmanager
def _made_in_one_step(place: Location) -> Iterator[Location]:
    """Yield a new folder beside its place, and rename it there at the end: a client that is killed leaves all or none.

    Raises:
        FileExistsError: another process has made the folder.
    """
    new = beside(place)
    new.mkdir()
    try:
        yield new
        new.rename(place)  # would replace an empty folder, but not one with a file
    except BaseException as error:
        new.remove()
        if isinstance(error, OSError) and error.errno in TAKEN:
            raise FileExistsError(*error.args) from error
        raise


def give_up_removal(folder: RunFolder, number: int) -> None:
    """Undo `claim_removal`, before anything is removed."""
    folder.round(number).remove()


def remover_of(folder: RunFolder) -> ClientId | None:
    """Return the client that removes a run, or began to."""
    with suppress(OSError, RunFolderError):
        for name in folder.rounds.names():
            path = folder.rounds / name / _REMOVAL
            if path.exists():
                return ClientId(*forms.parse(read_owned(path), CLIENT, path))
    return None


def check_kept(folder: RunFolder) -> None:
    """Raise a `RunFolderError` if a client removes the run."""
    if remover_of(folder) is not None:
        msg = f"{folder.path} is being removed, or was removed in part; slurmlaunch.clean() removes the rest"
        raise RunFolderError(msg, path=str(folder.path), is_removed=True)


def items_of_later_rounds(folder: RunFolder, number: int) -> set[int]:
    """Return the items that belong to later rounds: a task of this round that starts late leaves them alone."""
    return {item for later in read_rounds(folder, number + 1) for item in later.plan.items or ()}


def read_task(folder: RunFolder, task: int, patience: Patience) -> tuple[Manifest, Round]:
    """Return the manifest as it applies to a task, in a process of the task, and the round that has the task.

    Raises:
        OSError, RunFolderError: as `Manifest.read_in_task` and `round_of_task` do.
    """
    manifest = patience.run(lambda: Manifest.read_in_task(folder))
    found = patience.run(lambda: round_of_task(folder, task, lambda: latency_of(folder.path)))
    return manifest.changed(found.plan.manifest), found


def round_of_task(folder: RunFolder, task: int, within: Callable[[], float] | None = None) -> Round:
    """Return the round that has a task.

    Args:
        folder: the run folder.
        task: the index of the task.
        within: returns for how many seconds the round may exist and not be visible; asked only if it is not. A node on
            which an earlier task looked for a later round remembers that there was none.

    Raises:
        RunFolderError: there is none.
    """
    until = None
    while True:
        for candidate in read_rounds(folder):
            if task in candidate.plan.tasks:
                return candidate
        if until is None:
            until = time.monotonic() + (within() if within else 0.0)
        if time.monotonic() >= until:
            break
        time.sleep(_LOOK_AGAIN)
        folder.rounds.names()  # some file systems forget by this that a name was not there
    msg = f"no round of {folder.path} has a task {task}"
    raise RunFolderError(msg, path=str(folder.path))


def _read_list(path: Location, number: int | None) -> array[int]:
    """Return the items of a round, of a run with so many."""
    try:
        found = next(read_records(path), None)
    except FileNotFoundError as error:  # which would say that there is no round
        raise forms.damaged(path, "it is missing") from error
    items = array("Q")
    if not isinstance(found, Record) or len(found.payload) % items.itemsize:
        raise forms.damaged(path, "it is no list of items")
    items.frombytes(found.payload)
    if number is not None and max(items, default=0) >= max(1, number):
        raise forms.damaged(path, f"it has item {max(items)}, and the run {number} items")
    return compact(items)


# Cancellations: one file of records per round and client. Tasks read them too.


def write_cancellations(folder: RunFolder, number: int, client: str, ranges: Iterable[range]) -> None:
    """Record that a client cancelled the items of these ranges in one round.

    Raises:
        OSError: this could not be written.
    """
    with RecordWriter(folder.cancelled / f"{number}.{client}") as writer:
        writer.append(*(Entry.of(Kind.CANCELLED, (), first=items.start, number=len(items)) for items in ranges))
    folder.cancelled.mark_modified()  # this folder's modification time tells readers that a file in it has grown


class CancellationReader:
    """Reads the cancellations of some rounds."""

    def __init__(self, folder: RunFolder, rounds: Iterable[int]) -> None:
        self._run, self._folder = folder, folder.cancelled
        self._rounds = {str(number) for number in rounds}
        self._changes = NewNames(self._folder)
        self._positions: dict[str, int] = {}

    def new(self) -> Iterator[tuple[int, range]]:
        """Yield the round and the items of each cancellation since the last call.

        Costs one file operation while nothing changes. After an error the next call reads the rest.

        Raises:
            OSError: the folder or a file cannot be read.
            UnsafeRunFolder: a file is not safe to read.
        """
        try:
            for name, size in self._sizes().items():
                position = self._positions.get(name, 0)
                if size > position:
                    number = int(name.partition(".")[0])
                    yield from ((number, items) for items in self._read(name, position, size - position))
        except BaseException:
            self._changes.forget()
            raise

    def _sizes(self) -> dict[str, int]:
        """Return the sizes of the files of the rounds; none if nothing has changed."""
        with undisturbed():
            if not self._changes.may_have_changed():
                return {}
            with self._folder.entries() as entries:
                ours = [entry for entry in entries if entry.name.partition(".")[0] in self._rounds]
                return {entry.name: entry.stat(follow_symlinks=False).st_size for entry in ours}

    def _read(self, name: str, position: int, length: int) -> Iterator[range]:
        with opened(self._folder / name) as (descriptor, _):
            data = read_at(descriptor, length, position)
        for found in records.scan(memoryview(data), position):
            if isinstance(found, Record):
                self._positions[name] = found.offset + records.HEADER_SIZE
                yield self._run.covered_by(found.header)
