"""What has changed since the code of a run was recorded, in words.

`rerun` and `attach` tell the user. `code` and `versions` record it, and `runfolder.modules` compares the files.
"""

from __future__ import annotations

import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from slurmlaunch.client.versions import commits
from slurmlaunch.client.wording import time_of
from slurmlaunch.errors import RunFolderError, UnsafeRunFolder
from slurmlaunch.runfolder.layout import MODULES
from slurmlaunch.runfolder.modules import DELETED, ModulesReader, changes_between

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slurmlaunch.runfolder.layout import Manifest, RunFolder

_SHOWN = 5
_ABBREVIATED = 7


def differences(folder: RunFolder, manifest: Manifest) -> str:
    """Return what has changed since the manifest's code was recorded, or an empty text: on disk, not in memory."""
    return joined([*differences_of_code(folder, manifest), *_of_commits(manifest)])


def differences_of_code(folder: RunFolder, manifest: Manifest) -> list[str]:
    """Return what has changed of what runs: as `differences`, without commits that change no module of the run."""
    return [*_of_modules(folder, manifest), *_of_distributions(manifest)]


def joined(found: list[str]) -> str:
    """Return the first of some changes as one text, and how many more there are."""
    more = [f"{len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    return "; ".join([*found[:_SHOWN], *more])


def _of_modules(folder: RunFolder, manifest: Manifest) -> Iterator[str]:
    path, when = manifest.source(folder, MODULES), time_of(manifest.created)
    if path is None:
        return
    # A retry is not to fail because it cannot say what changed.
    with suppress(OSError, RunFolderError, UnsafeRunFolder), closing(ModulesReader(path)) as reader:
        for change in changes_between(reader):
            name = Path(change.file).name
            if change.where == DELETED:
                yield f"{name} was deleted since {when}"
            else:
                yield f"{name} changed since {when}" + (f" ({change.where})" if change.where else "")


def _of_distributions(manifest: Manifest) -> Iterator[str]:
    for folder, recorded in manifest.code.get("distributions", {}).items():
        for name, version in recorded.items():
            here = _version_of(name, folder)
            if here is None:
                yield f"{name} {version} is not installed here"
            elif here != version:
                yield f"{name} is {here}, and was {version}"


def _version_of(name: str, folder: str) -> str | None:
    """Return the version of a distribution where it was, or else where this process would import it from."""
    from importlib import metadata

    for path in ([folder], sys.path):
        for found in metadata.distributions(name=name, path=path):
            return found.version
    return None


def _of_commits(manifest: Manifest) -> Iterator[str]:
    recorded = manifest.code.get("commits", {})
    now = commits(recorded, time.time())
    for root, (commit, _) in recorded.items():
        if root in now and now[root].commit != commit:
            here, then = now[root].commit[:_ABBREVIATED], commit[:_ABBREVIATED]
            yield f"{Path(root).name} is at commit {here}, and was at {then}"
