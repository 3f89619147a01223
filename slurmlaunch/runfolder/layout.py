"""The layout of a run folder: every file name in it, the manifest, and the names by which tasks end.

The one place that spells file names. Clients, nodes and backends use it. The other modules of this package know the
contents of the files, except for the manifest, which makes a folder a run.
"""

from __future__ import annotations

import json
import os
import re
import sys
import zlib
from contextlib import suppress
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from slurmlaunch.errors import NodeStartError, RunFolderError, UnknownProtocol, UnsafeRunFolder
from slurmlaunch.runfolder import forms
from slurmlaunch.runfolder.files import Location, create, read_owned, sha256_of, write_whole

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from slurmlaunch.runfolder.records import Header

STARTED_VARIABLE = "SLURMLAUNCH_STARTED"
"""The start of the task in seconds since the epoch: set-up lines count towards the time limit, too."""

RUN_VARIABLE = "SLURMLAUNCH_RUN"
"""The identity of the run (`RunFolder.identity`), by which a node recognizes its run folder. Only this user and root
can read it: it is in the environment of the job, and in no script, command line or name."""

PARENT_DEATH_VARIABLE = "SLURMLAUNCH_LIFELINE"
"""The descriptor from which a node learns that its client has died: the read end of a pipe whose write end only the
client holds, and never writes to. It reads an end of file then."""

FURTHER_ITEMS = "items."
"""The beginning of the names of files with items that a round added; the first item follows."""

MANIFEST = "manifest.json"
"""The file that makes a folder a run."""

FOLDERS = ("rounds", "outcomes", "ended", "cancelled", "logs")

FUNCTION = "function"
"""The file of the pickled function, in the run folder or in a round's."""

ENVIRONMENT = "environment"
"""The name of the file of an environment, in the run folder or in the folder of a round."""

DEFINITIONS = "definitions"
"""The folder of the definitions that results refer to."""

ITEMS_INDEX = "items.index"

MODULES = "modules"
"""The file of the user's modules, in the run folder or in a round's."""

OUTPUT = "output"
"""The folder of what items wrote to their standard streams; the first task that has something to write makes it."""

UNGUESSABLE = "secret-"
"""The beginning of the name of a file that only this user knows: see `RunFolder.secret_file`."""

PROTOCOL = 2
READABLE = (1, PROTOCOL)
"""The protocols that this release reads, and continues: run folders of 0.1.0 have the first."""


class RunFolder:
    """The files and folders in one run folder; `slurmlaunch.runfolder` says what each file holds.

    Attributes:
        path: its absolute path.
        root: the folder itself.
        salt: the salt of its records (`salt_of`); 0 until its manifest was read.
        number_of_items: how many items the run has; None until its manifest was read, and more with each round that
            adds some.
        identity: the SHA-256 of its manifest and the secret in it; empty until it was read or written.
        index_sha256: the SHA-256 of ``items.index``; empty if it is not known.
        further: the files of items that were added to the run later, by their first item, each with the SHA-256 of its
            index.
    """

    def __init__(self, path: Path, root: Location | None = None) -> None:
        self.path = path
        self.root = root = root or Location(path)
        self.salt = 0
        self.number_of_items: int | None = None
        self.identity = self.index_sha256 = ""
        self.manifest = root / MANIFEST
        self.function = root / FUNCTION
        self.items = root / "items"
        self.further: dict[int, tuple[Location, str]] = {}
        self.items_index = root / ITEMS_INDEX
        self.definitions = root / DEFINITIONS
        self.clients = root / "clients"
        self.rounds, self.outcomes, self.ended, self.cancelled, self.logs = (root / name for name in FOLDERS)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    def unread(self) -> RunFolder:
        """Return the same folder, of which nothing is known yet: by its path it may be another one by now."""
        return RunFolder(self.path, self.root)

    def check_folders(self) -> None:
        """Refuse unsafe folders now, not when something is read from them; raises as `Location.check` does."""
        for each in (self.rounds, self.outcomes, self.ended, self.cancelled, self.logs):
            each.check()

    def move(self, name: str) -> None:
        """Give the run folder another name, in one step; FileExistsError if something has it."""
        self.root.move(name)
        self.path = self.path.with_name(name)

    def round(self, number: int) -> Location:
        """Return the folder of a submission round."""
        return self.rounds / str(number)

    def environment(self, number: int) -> Location:
        """Return the file of the environment of a round; the first round's is the run's."""
        return (self.round(number) if number else self.root) / ENVIRONMENT

    def in_round(self, number: int, name: str) -> str:
        """Return the path of a round's file in the run folder, as `Manifest.files` has it."""
        return f"{self.rounds.name}/{number}/{name}"

    def claims(self, number: int) -> Location:
        """Return the folder of the claims of a dynamic round."""
        return self.round(number) / "claims"

    def surplus(self, number: int, array: int, task: int | None = None) -> Location:
        """Return the file that names an array's elements without items: the one that counts, or that of a task."""
        return self.claims(number) / (f"surplus.{array}" if task is None else f"surplus.{array}.{task}")

    def outcome_file(self, task: int, attempt: int) -> Location:
        """Return the file of records of one attempt of a task."""
        return self.outcomes / f"{task}.{attempt}"

    def output_file(self, task: int, attempt: int, rank: int | None = None) -> Location:
        """Return the file of what the items of one attempt of a task wrote; with ranks each has its own."""
        return self.root / OUTPUT / (f"{task}.{attempt}" if rank is None else f"{task}.{attempt}.{rank}")

    def rank_file(self, number: int, task: int, attempt: int, rank: int) -> Location:
        """Return the file of records of one rank in one attempt of a task of a round."""
        return self.round(number) / "ranks" / f"{task}.{attempt}.{rank}"

    def covered_by(self, header: Header) -> range:
        """Return the items of the run that a record covers: a damaged header may name any others."""
        stop = header.stop if self.number_of_items is None else min(header.stop, self.number_of_items)
        return range(header.first, stop)

    def items_of(self, item: int) -> tuple[Location, Location, str]:
        """Return the file that holds an item, its index, and the SHA-256 of the index."""
        first = max((each for each in self.further if each <= item), default=None)
        if first is None:
            return self.items, self.items_index, self.index_sha256
        file, sha256 = self.further[first]
        return file, file.beside(f"{file.name}.index"), sha256

    def grow(self, changes: Mapping[str, Any]) -> None:
        """Add the items that a round brought, according to its changes to the manifest."""
        if "items" in changes:
            self.number_of_items = max(self.number_of_items or 0, changes["items"])
        hashes = changes.get("sha256", {})
        for name, path in changes.get("files", {}).items():
            if name.startswith(FURTHER_ITEMS) and name[len(FURTHER_ITEMS) :].isdigit():
                self.further[int(name[len(FURTHER_ITEMS) :])] = self.root / path, hashes.get(name, "")

    def secret_file(self) -> str:
        """Return the name of a file by which a batch script recognizes the run folder, and make it if there is none.

        It follows from the identity, which nobody else knows, so that nobody else has a folder with a file of that
        name; nor does the identity follow from the name, which batch scripts hold.
        """
        name = f"{UNGUESSABLE}{sha256_of(self.identity.encode())}"
        with suppress(FileExistsError):
            create(self.root / name, b"")
        return name

    def announce(self, client: str) -> None:
        """Record that a client uses the run; *client* is its `ClientId` as text."""
        with suppress(FileExistsError):
            self.clients.mkdir()
        with suppress(FileExistsError):
            create(self.clients / client, b"")

    def log(self, round_: int, array: int, element: int | str, stream: str) -> Location:
        """Return the log of an element, which may be the scheduler's pattern; *stream* is ``out`` or ``err``."""
        return self.logs / f"{round_}-{array}-{element}.{stream}"


class Manifest(NamedTuple):
    """The description of a run."""

    run: str  # a random token that names the run: part of its jobs' names
    name: str  # the user's name for it, or the function's name
    function: str  # module and qualified name, for messages
    items: int  # how many there are
    backend: str
    cwd: str  # the client's working directory, in which the tasks run
    python: str  # the client's Python version, as ``3.11``
    cloudpickle: str  # the client's version
    client: str  # the machine of the client
    created: float  # seconds since the epoch
    sys_path: list[str] = []  # noqa: RUF012  (the client's module search path; it is never changed)
    single: bool = False  # `submit` made it, so that its one future is the result
    clusters: str | None = None  # the cluster of ``-M``
    seed: int = 0  # of its items' random streams (`slurmlaunch.context.Task.rng`)
    shared: int = 0  # how many bytes of buffers the function refers to
    interpreter: dict[str, Any] = {}  # noqa: RUF012  (the settings of the client's Python, see `interpreter`)
    # The arguments of the call that are bound to the function: the names of keywords, "" for others; None: not known.
    bound: list[str] | None = None
    files: Mapping[str, str] = {FUNCTION: FUNCTION}  # by name: paths in the run folder, perhaps of a round
    cells: Mapping[str, str] = {}  # the source of code that lies in no file, by the name that code has for it
    repeated: float | None = None  # the `created` of the function, if a person has it run again
    code: Mapping[str, Any] = {}  # what identifies the code besides the stored modules; for clients only
    secret: str = ""  # 128 random bits that stand in no name, script or command line
    made_in: str = ""  # the folder of runs in which it was made, without symbolic links
    sha256: Mapping[str, str] = {}  # by name, of the function, the index of the items, and the index of the modules
    protocol: int = PROTOCOL

    def write(self, folder: RunFolder) -> None:
        """Write it, which makes the folder a run."""
        data = json.dumps(self._asdict(), indent=1).encode()
        write_whole(folder.manifest, [data])
        folder.identity = self.identity(data)

    def identity(self, data: bytes) -> str:
        """Return by what a node recognizes the run, from the content of its manifest."""
        return f"{sha256_of(data)}-{self.secret}"

    @classmethod
    def read_in_task(cls, folder: RunFolder) -> Manifest:
        """Read the manifest, as `read` does, in a process of a task, which knows its run.

        Raises:
            UnsafeRunFolder: the folder is not that of the run.
        """
        manifest = cls.read(folder)
        if os.environ.get(RUN_VARIABLE, folder.identity) != folder.identity:  # a script of 0.1.0 does not set it
            msg = (
                f"{folder.path} is not the folder of the run that this task belongs to: somebody has exchanged it, "
                "or a folder above it. Nothing in it is run"
            )
            raise UnsafeRunFolder(msg, path=str(folder.path))
        return manifest

    @classmethod
    def read(cls, folder: RunFolder) -> Manifest:
        """Read the manifest of a run folder; unknown keys are ignored.

        Raises:
            RunFolderError: there is none, or it cannot be read.
            UnsafeRunFolder: another user owns the folder or the file, or may write to it.
            UnknownProtocol: a newer slurmlaunch wrote it.
        """
        manifest, data = cls._read(folder.root)
        folder.salt, folder.number_of_items = salt_of(manifest.run), manifest.items
        folder.identity, folder.index_sha256 = manifest.identity(data), manifest.sha256.get(ITEMS_INDEX, "")
        return manifest

    @classmethod
    def of(cls, root: Location) -> Manifest:
        """Read the manifest in a folder without a look at anything else, for lists of runs; raises as `read` does."""
        return cls._read(root)[0]

    @classmethod
    def _read(cls, root: Location) -> tuple[Manifest, bytes]:
        root.check()
        path = root / MANIFEST
        try:
            data = read_owned(path)
        except OSError as error:
            msg = f"{root} is no run folder: its manifest.json cannot be read ({error})"
            raise RunFolderError(msg, path=str(path)) from error
        content = forms.parse(data, forms.Keys({"protocol": forms.integer}), path)
        if (protocol := content["protocol"]) not in READABLE:
            msg = (
                f"{root} is written in protocol {protocol}, and this slurmlaunch knows "
                f"{' and '.join(map(str, READABLE))}: use the slurmlaunch that wrote it"
            )
            raise UnknownProtocol(msg, path=str(path))
        forms.check(content, _MANIFEST, path)
        return cls(**{key: value for key, value in content.items() if key in cls._fields}), data

    def changed(self, changes: Mapping[str, Any]) -> Manifest:
        """Return the manifest as it applies to a round, whose plan has these changes; unknown keys are ignored."""
        return self._replace(**{key: value for key, value in changes.items() if key in self._fields})

    def function_in(self, folder: RunFolder) -> Location:
        """Return the file of the pickled function."""
        return folder.root / self.files[FUNCTION]

    @property
    def function_sha256(self) -> str:
        """The SHA-256 of the file of the function; empty if it is not known, as in a run of 0.1.0."""
        return self.sha256.get(FUNCTION, "")

    def source(self, folder: RunFolder, name: str) -> Location | None:
        """Return the file from which tasks take something of that name besides the function; None if there is none."""
        return folder.root / self.files[name] if name in self.files else None

    def check_versions(self, cloudpickle: str) -> None:
        """Refuse to unpickle the function if another Python or another cloudpickle pickled it.

        A pickled function holds bytecode of one minor version of Python, and calls functions of cloudpickle, which
        change with its major version; *cloudpickle* is the installed one.

        Raises:
            NodeStartError: the versions do not match.
        """
        if self.python != python_version():
            raise NodeStartError(
                f"the function was pickled by Python {self.python}, and the node runs "
                f"Python {python_version()} ({sys.executable})",
                advice=f"Start Python {self.python} on the node: python=[...], modules=[...].",
            )
        if self.cloudpickle.partition(".")[0] != cloudpickle.partition(".")[0]:
            raise NodeStartError(
                f"the function was pickled by cloudpickle {self.cloudpickle}, and the node has {cloudpickle}",
                advice=f"Install cloudpickle {self.cloudpickle} for {sys.executable} on the node.",
            )


_FILE = re.compile(r"(rounds/\d+/)?[\w.]+")


def _file(value: Any) -> bool:
    """Whether it is the path of a file of the run or of a round: no other is read."""
    return forms.text(value) and _FILE.fullmatch(value) is not None and value.rpartition("/")[2] not in {".", ".."}


def _below_2_to_31(value: Any) -> bool:
    return forms.count(value) and value < 1 << 31


_REQUIRED: Mapping[str, forms.Form] = {
    **dict.fromkeys(("run", "name", "function", "backend", "cwd", "python", "cloudpickle", "client"), forms.text),
    "items": forms.count,
    "created": forms.seconds,
}
_OPTIONAL: Mapping[str, forms.Form] = {
    "sys_path": forms.listing(forms.text),
    "single": forms.flag,
    "clusters": forms.null_or(forms.text),
    "seed": forms.integer,
    "shared": forms.count,
    "interpreter": forms.Keys(
        optional={
            "options": forms.listing(forms.text),
            "warnings": forms.listing(forms.text),
            "recursion_limit": forms.null_or(_below_2_to_31),
            "int_max_str_digits": forms.null_or(_below_2_to_31),
            "log_level": forms.null_or(_below_2_to_31),
        }
    ),
    "bound": forms.null_or(forms.listing(forms.text)),
    "files": lambda value: forms.mapping(_file)(value) and FUNCTION in value,
    "cells": forms.mapping(forms.text),
    "repeated": forms.null_or(forms.seconds),
    "secret": forms.text,
    "made_in": forms.text,
    "sha256": forms.mapping(forms.text),
    "code": forms.Keys(
        optional={
            "live": forms.listing(forms.text),
            "commits": forms.mapping(forms.row(forms.text, forms.flag)),
            "distributions": forms.mapping(forms.mapping(forms.text)),
        }
    ),
}
_MANIFEST = forms.Keys(_REQUIRED, _OPTIONAL)

CHANGES = forms.Keys(optional={**_REQUIRED, **_OPTIONAL})
"""The form of the changes to the manifest that the plan of a round holds."""


def python_version() -> str:
    """Return the part of Python's version on which a pickled function depends: ``3.11``."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def salt_of(token: str) -> int:
    """Return the salt in the headers of a run's records; *token* is `Manifest.run`."""
    return zlib.crc32(token.encode())


def numbers_in(name: str) -> list[int]:
    """Return the numbers of a name that consists of numbers with dots between them; none of any other name."""
    parts = name.split(".")
    whole = all(part.isascii() and part.isdigit() and len(part) <= _DIGITS for part in parts)
    return list(map(int, parts)) if whole else []


_DIGITS = 18
"""As many as an integer of 64 bits always holds."""


class EndMark(NamedTuple):
    """The end of one start of a task, in the name of an empty file."""

    task: int
    start: int
    """0 for the task's first start, 1 after one requeue, and so on."""
    status: int
    """The exit status, 128 + n for signal n."""

    @property
    def filename(self) -> str:
        """The name of the file in the folder `RunFolder.ended`."""
        return f"{self.task}.{self.start}.{self.status}"

    @classmethod
    def parse(cls, filename: str) -> EndMark | None:
        """Read a file name; None if it is no end mark."""
        numbers = numbers_in(filename)
        return cls(*numbers) if len(numbers) == len(cls._fields) else None


class Status(IntEnum):
    """The exit status of a task, which `sacct` and mail also show."""

    VALUES = 0
    """All items have values."""
    FAILURES = 1
    """An item failed; its outcome is on disk."""
    SETUP = 3
    """The set-up lines or ``module load`` failed: Python was not started."""
    NODE = 4
    """The node itself failed; the log says why."""
    RESUBMIT = 74
    """Items are left at the time limit, and the node has no scontrol to requeue the task: the client submits them."""
    REQUEUE = 75
    """Items are left at the time limit, and the task is requeued."""
    NOT_REQUEUED = 76
    """Items are left at the time limit, and the scheduler refused to requeue the task."""
    OUT_OF_MEMORY = 77
    """The kernel killed the node because the memory limit was hit: only the end mark says so, Slurm gets 137."""
    STORAGE = 78
    """The run folder could not be written or read; the log may say why."""
    DISK_FULL = 79
    """The same, for want of space."""
    QUOTA = 80
    """The same, for want of quota."""
    READ_ONLY = 81
    """The same, because the file system was read-only."""
    INPUT_OUTPUT = 82
    """The same, because of an input/output error."""
    EXCHANGED = 83
    """The batch script did not find the run folder of the submission at its path, or could not open its logs there."""
    STOPPED = 143
    """The task was ended from outside; the scheduler knows why."""
