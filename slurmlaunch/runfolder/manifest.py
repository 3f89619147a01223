"""The manifest: what a run is, complete on disk before anything is submitted."""

from __future__ import annotations

import json
import sys
import zlib
from typing import TYPE_CHECKING, NamedTuple

from slurmlaunch.errors import NodeStartError, RunFolderError, UnknownProtocol
from slurmlaunch.runfolder.layout import FOLDERS
from slurmlaunch.runfolder.safety import check_folder, read_owned, write_whole

if TYPE_CHECKING:
    from slurmlaunch.runfolder.layout import RunFolder

PROTOCOL = 1


def python_version() -> str:
    """Return the part of Python's version that a pickled function depends on: ``3.11``."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


class Manifest(NamedTuple):
    """What a run is.

    Attributes:
        protocol: the version of the run folder's layout.
        run: a random token that names the run: part of its jobs' names.
        name: what the user calls it, or the function's name.
        function: module and qualified name of the function, for messages.
        items: how many items there are.
        single: whether `submit` made it, so that its one future is the result.
        created: when, in seconds since the epoch.
        backend: where its tasks run.
        clusters: the cluster of ``-M``, or None.
        cwd: the client's working directory, in which the tasks run.
        sys_path: the client's module search path.
        python: the client's Python version, as ``3.11``.
        cloudpickle: the client's version of cloudpickle.
        client: the machine of the client.
        seed: what the random streams of its items follow from (`slurmlaunch.context.Task.rng`).
        shared: bytes of the buffers that the function refers to, beside it on disk.
    """

    run: str
    name: str
    function: str
    items: int
    backend: str
    cwd: str
    python: str
    cloudpickle: str
    client: str
    created: float
    sys_path: list[str] = []  # noqa: RUF012  (it is never changed)
    single: bool = False
    clusters: str | None = None
    seed: int = 0
    shared: int = 0
    protocol: int = PROTOCOL

    def write(self, folder: RunFolder) -> None:
        """Write it: from then on the folder is a run."""
        write_whole(folder.manifest, [json.dumps(self._asdict(), indent=1).encode()])

    @classmethod
    def read(cls, folder: RunFolder) -> Manifest:
        """Read the manifest of a run folder, keys that are not known left out.

        Raises:
            RunFolderError: there is none, or it cannot be read.
            UnsafeRunFolder: another user owns the folder, or one in it, or may write to it.
            UnknownProtocol: a newer slurmlaunch wrote it.
        """
        check_folder(folder.path)
        path = folder.manifest
        try:
            content = json.loads(read_owned(path))
            _check_protocol(content["protocol"], folder)
            manifest = cls(**{key: value for key, value in content.items() if key in cls._fields})
            folder.salt = salt_of(manifest.run)
        except (OSError, ValueError, KeyError, TypeError) as error:
            msg = f"{folder.path} is no run folder: its manifest.json cannot be read ({error})"
            raise RunFolderError(msg, path=str(path)) from error
        for name in FOLDERS:
            check_folder(folder.path / name)
        return manifest

    def check_versions(self, cloudpickle: str) -> None:
        """Refuse to unpickle what another Python, or another cloudpickle, pickled.

        A pickled function holds bytecode, which is that of one minor version of
        Python, and calls functions of cloudpickle, which change with its major version.

        Args:
            cloudpickle: the version that is here.

        Raises:
            NodeStartError: the versions do not fit together.
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


def salt_of(token: str) -> int:
    """Return what the headers of a run's records are salted with."""
    return zlib.crc32(token.encode())


def _check_protocol(protocol: object, folder: RunFolder) -> None:
    if protocol != PROTOCOL:
        msg = (
            f"{folder.path} is written in protocol {protocol}, and this slurmlaunch knows "
            f"{PROTOCOL}: use the slurmlaunch that wrote it"
        )
        raise UnknownProtocol(msg, path=str(folder.manifest))
