"""Two ordinary users of this machine, for tests of what one of them can do to the other.

They are accounts that every Debian has and nobody uses, so that no test has to make or remove any. Only root can be
both. Their programs run with the Python of the tests if they may execute it, else with the system's of that version.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import textwrap
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cloudpickle
import pytest

from tests.support import clusters
from tests.support.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

_started: list[subprocess.Popen[str]] = []
_NAMES = ("games", "news")


class User(NamedTuple):
    """One of the two.

    Attributes:
        name: the name of the account.
        home: a private folder.
        python: the Python that this user may execute.
    """

    name: str
    home: Path
    python: str

    def start(self, text: str, *arguments: object, cwd: Path, **variables: str) -> subprocess.Popen[str]:
        """Start a script of this user, as `run` does."""
        script = Path(tempfile.mkdtemp(dir=self.home)) / "script.py"
        script.write_text(textwrap.dedent(text), encoding="utf-8")
        self.owns(script.parent, script)
        return self.run(self.python, script, *arguments, cwd=cwd, **variables)

    def run(self, *command: object, cwd: Path, **variables: str) -> subprocess.Popen[str]:
        """Start a command of this user."""
        installed = Path(cloudpickle.__file__).parents[1]
        defaults = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "PYTHONPATH": f"{Path(__file__).parents[2]}:{installed}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "USER": self.name,
            "HOME": str(self.home),
            "TMPDIR": str(self.home),
            "SLURMLAUNCH_QUERY_INTERVAL": "0.5",
        }
        started = subprocess.Popen(
            [*map(str, command)],
            cwd=cwd,
            env={**defaults, **variables},
            user=self.name,
            group=pwd.getpwnam(self.name).pw_gid,
            extra_groups=[],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            umask=0o022,
        )
        _started.append(started)
        return started

    def does(self, text: str, *arguments: object, cwd: Path) -> str:
        """Run a script of this user that should succeed; return its output."""
        script = self.start(text, *arguments, cwd=cwd)
        out, err = script.communicate(timeout=PATIENCE)
        assert script.returncode == 0, err
        return out

    def owns(self, *paths: Path) -> None:
        """Give this user some files; of links the link itself."""
        account = pwd.getpwnam(self.name)
        for path in paths:
            os.lchown(path, account.pw_uid, account.pw_gid)

    def belongings(self) -> dict[str, tuple[int, bytes]]:
        """Return everything in the home folder, with modes and contents, but for scripts and shared states."""
        return {
            str(path): (path.lstat().st_mode, path.read_bytes() if path.is_file() and not path.is_symlink() else b"")
            for path in self.home.rglob("*")
            if not path.relative_to(self.home).parts[0].startswith(("tmp", "slurmlaunch-", "."))
            or path.name == ".bashrc"
        }


class Machine(NamedTuple):
    """Two users, and a folder that both may write to.

    Attributes:
        victim: the user of slurmlaunch.
        rival: another one, who may rename whatever lies in the shared folder.
        shared: a project folder, in which the victim's client is started.
    """

    victim: User
    rival: User
    shared: Path


@contextmanager
def two_users(mode: int = 0o777) -> Iterator[Machine]:
    """Make the home folders of two users and their project folder, and remove all at the end."""
    if os.geteuid() != 0:
        pytest.skip("only root can be two users")
    place = Path(tempfile.mkdtemp(prefix="slurmlaunch-users-", dir=clusters.chosen().place))
    try:
        place.chmod(0o755)
        (place / "shared").mkdir()
        (place / "shared").chmod(mode)
        victim, rival = (_user(name, place) for name in _NAMES)
        yield Machine(victim, rival, place / "shared")
    finally:
        while _started:
            with _started.pop() as left:
                left.kill()
        shutil.rmtree(place)


def _user(name: str, place: Path) -> User:
    try:
        pwd.getpwnam(name)
    except KeyError:
        pytest.skip(f"this machine has no account {name}")
    home = place / name
    home.mkdir(mode=0o700)
    user = User(name, home, "")
    user.owns(home)
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        found = user._replace(python=python)
        try:
            probe = found.run(python, "-c", "import slurmlaunch, cloudpickle", cwd=home)
        except OSError:
            continue
        probe.communicate(timeout=PATIENCE)
        if probe.returncode == 0:
            return found
    pytest.skip(f"{name} may execute no Python of this version")
