"""Every pair of the machine's Pythons of different minor versions, one on the client and one on the node."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import cloudpickle
import filelock
import pytest

from tests.support.clusters import KINDS
from tests.support.tasks import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSIONS = [f"3.{minor}" for minor in range(11, 15)]

CLIENT = """\
import json, sys
from pathlib import Path
from slurmlaunch import Executor

class Marks:
    "Unpickled, it adds the minor version of Python to a file, and is the function abs."
    def __init__(self, mark):
        self.mark = str(Path(mark).absolute())
    def __call__(self, number):
        pass
    def __reduce__(self):
        return eval, (f"print(__import__('sys').version_info[1], file=open({self.mark!r}, 'a')) or abs",)

futures = {}
for node, python in json.loads(sys.argv[1]).items():
    executor = Executor("runs", cluster="local", python=python)
    futures[f"{node} map"] = executor.map_array(Marks(f"{node} map"), [-1])[0]
    futures[f"{node} submit"] = executor.submit(Marks(f"{node} submit"), -1)
    executor = Executor("runs", cluster="local", python=python, ntasks=2)
    futures[f"{node} ranks"] = executor.submit(Marks(f"{node} ranks"), -1)
print(json.dumps({mark: repr(future.exception(60)) for mark, future in futures.items()}))
"""


@functools.cache
def pythons() -> dict[str, list[str]]:
    """Find a command for each version: this Python, one on PATH, or that of another Debian of the tests."""
    found: dict[str, list[str]] = {}
    for version in VERSIONS:
        on_path = shutil.which(f"python{version}") or sys.executable
        for command in ([sys.executable], [on_path], *_of_kinds(version)):
            script = "import sys; print('%d.%d' % sys.version_info[:2], sys.executable)"
            done = subprocess.run([*command, "-c", script], capture_output=True, encoding="utf-8", check=False)
            said, _, executable = done.stdout.strip().partition(" ")
            if said == version:  # a command of pyenv fails if its Python is not chosen
                found.setdefault(version, [*command[:-1], executable])
    return found


def _of_kinds(version: str) -> Iterator[list[str]]:
    """Give the commands that run a Python of another Debian with that Debian's own libraries."""
    for kind in KINDS.values():
        python = str(kind.folder / "usr" / "bin" / f"python{version}")
        libraries = ["--library-path", str(kind.folder / "usr" / "lib" / "x86_64-linux-gnu")]
        if Path(python).exists():
            yield [str(kind.folder / "lib64" / "ld-linux-x86-64.so.2"), *libraries, "--argv0", python, python]


@pytest.mark.slow
@pytest.mark.parametrize("client", VERSIONS)
def test_pairs(client: str, tmp_path: Path) -> None:
    """A node of another version names both in the error of a map, a submit and ranks, and unpickles nothing."""
    if client not in pythons():
        pytest.skip(f"there is no Python {client} here, only {', '.join(pythons())}")
    if len(pythons()) == 1:
        pytest.skip(f"there is no Python here to pair with {client}")
    packages = tmp_path / "packages"
    packages.mkdir()
    for module in (cloudpickle, filelock):  # they are pure Python
        (packages / module.__name__).symlink_to(module.__path__[0])

    done = subprocess.run(
        [*pythons()[client], "-c", CLIENT, json.dumps(pythons())],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{packages}"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )

    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout)
    assert len(errors) == 3 * len(pythons())
    for mark, error in errors.items():
        file, node = tmp_path / mark, mark.split()[0]
        unpickled_by = {f"3.{minor}" for minor in file.read_text(encoding="utf-8").split()} if file.exists() else set()
        if node == client:
            assert (error, unpickled_by) == ("None", {client})
        else:
            assert error.startswith("NodeStartError"), error
            assert f"pickled by Python {client}, and the node runs Python {node}" in error
            assert unpickled_by <= {client}  # a client reads the arguments of a submit that failed
