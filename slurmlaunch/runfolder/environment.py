"""The environment in which the tasks of a run start: variables, umask and soft limits, as they were at its submission.

The client that submits a run writes them, and every client that submits an array of it later uses them in place of its
own. Tasks do not read the file: they inherit all of it from the program that starts them. Values that look secret are
never written, only the names of their variables. Which variables belong to a machine or a session rather than to a run
is not known here.
"""

from __future__ import annotations

import json
import os
import re
import resource
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from slurmlaunch.runfolder import forms
from slurmlaunch.runfolder.files import link_or_copy, read_owned, write_whole

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from slurmlaunch.runfolder.files import Location

_SECRET_WORDS = frozenset({
    "AUTH", "COOKIE", "CREDENTIAL", "DSN", "KEY", "PASS", "PASSWD", "PASSWORD", "PAT", "PWD", "SECRET", "TOKEN",
})  # fmt: skip
_SECRET_ENDINGS = ("PASSWD", "PASSWORD", "SECRET", "TOKEN")
"""The ends of words as long as these are meant: PGPASSWORD, but not MONKEY."""

_FOLDERS_OF_THE_SHELL = frozenset({"PWD", "OLDPWD"})

_LOGIN = re.compile(r"://[^\s/:@]*:(?P<password>[^\s@]+)@")

_LONG_ENOUGH = 6
"""The length from which a secret's value is looked for in other values: "1" or "true" would be found everywhere."""

_written: tuple[bytes, Location, os.stat_result] | None = None
"""The content of the last file that this process has written, its path and its status."""

_UMASK = re.compile(rb"^Umask:\s+([0-7]+)$", re.MULTILINE)


@dataclass(frozen=True)
class Environment:
    """What a process hands on to the programs that it starts."""

    variables: Mapping[str, str]  # without secrets
    secrets: Mapping[str, str | None] = field(default_factory=dict)  # None: only another process knows the value
    umask: int = 0o077
    limits: Mapping[str, int] = field(default_factory=dict)  # soft, by name, as RLIMIT_NOFILE; -1 for no limit

    @classmethod
    def of_this_process(
        cls, variables: Mapping[str, str] | None = None, secrets: Mapping[str, str | None] | None = None
    ) -> Environment:
        """Return the environment of this process, by default with all its variables."""
        return cls(dict(os.environ if variables is None else variables), secrets or {}, _umask(), _soft_limits())

    def write(self, path: Location) -> None:
        """Write it, without the values of secrets, or link the last file if that is the same."""
        global _written  # noqa: PLW0603  (a process that submits again and again writes the same each time)
        content = {
            "variables": dict(self.variables),
            "secrets": sorted(self.secrets),
            "umask": f"{self.umask:04o}",
            "limits": {name: None if soft == resource.RLIM_INFINITY else soft for name, soft in self.limits.items()},
        }
        data = json.dumps(content, indent=1).encode()
        if _written is None or _written[0] != data or not link_or_copy(*_written[1:], path):
            write_whole(path, [data])
        _written = data, path, path.status()

    @classmethod
    def read(cls, path: Location) -> Environment:
        """Read what `write` wrote.

        Raises:
            FileNotFoundError: there is none.
            RunFolderError: it is damaged.
            UnsafeRunFolder: another user owns it, or may write to it.
        """
        data = forms.parse(read_owned(path), _FORM, path)
        limits = {name: resource.RLIM_INFINITY if soft is None else soft for name, soft in data["limits"].items()}
        return cls(data["variables"], dict.fromkeys(data["secrets"]), int(data["umask"], 8), limits)


_FORM = forms.Keys(
    {
        "variables": lambda value: forms.mapping(forms.text)(value) and all(map(_is_name, value)),
        "secrets": forms.listing(lambda value: forms.text(value) and _is_name(value)),
        "umask": lambda value: forms.text(value) and re.fullmatch("[0-7]{1,4}", value) is not None,
        "limits": forms.mapping(forms.null_or(forms.count)),
    }
)


def _is_name(name: str) -> bool:
    return bool(name) and "=" not in name and "\0" not in name


def secret_names(variables: Mapping[str, str], named: Collection[str] = ()) -> set[str]:
    """Return the names of the variables whose values look secret, and those of *named*.

    They look secret by their names (``API_TOKEN``), by a login in a URL (``://user:password@``), or because they
    contain the value of another secret.
    """
    secret = {
        name for name, value in variables.items() if name in named or _is_named_secret(name) or _LOGIN.search(value)
    }
    values = [each for name in secret for each in _parts(variables[name])]
    return secret | {name for name, value in variables.items() if any(each in value for each in values)}


def _is_named_secret(name: str) -> bool:
    if name in _FOLDERS_OF_THE_SHELL:
        return False
    words = re.split(r"[\W\d_]+", name.upper())
    return any(
        word in _SECRET_WORDS or word.removesuffix("S") in _SECRET_WORDS or word.endswith(_SECRET_ENDINGS)
        for word in words
    )


def _parts(value: str) -> list[str]:
    """Return the texts that no other value may contain; none for a path, which names a secret rather than being one."""
    parts = [value, *(found["password"] for found in _LOGIN.finditer(value))]
    return [part for part in parts if len(part) >= _LONG_ENOUGH and not part.startswith(("/", "~"))]


def _umask() -> int:
    # os.umask() would change it for a moment, in all threads.
    with Path("/proc/self/status").open("rb", buffering=0) as file:
        found = _UMASK.search(file.read(1 << 16) or b"")
    return int(found[1], 8) if found else 0o077


def _soft_limits() -> dict[str, int]:
    names = (name for name in dir(resource) if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE")
    return {name: resource.getrlimit(getattr(resource, name))[0] for name in names}
