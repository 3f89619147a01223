"""What is said of code that has changed: packages and commits. That modules are is tested with retries."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING, Any

from slurmlaunch.client.code import differences
from slurmlaunch.client.wording import time_of
from slurmlaunch.runfolder.layout import Manifest, RunFolder

if TYPE_CHECKING:
    from pathlib import Path


def said(folder: Path, **code: Any) -> str:
    """Return what is said if this was recorded."""
    manifest = Manifest("0", "test", "test", 1, "local", "/", "3.11", "3.0", "here", 0.0, code=code)
    return differences(RunFolder(folder), manifest)


def install(site: Path, name: str, version: str) -> None:
    """Make a distribution without files."""
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")


def test_packages(tmp_path: Path) -> None:
    """Each installed package of another version, or that is gone, is named; of many the first."""
    site = tmp_path / "site-packages"
    install(site, "lies_a", "1.0")
    install(site, "lies_b", "2.0")

    assert said(tmp_path, distributions={str(site): {"lies_a": "1.0"}}) == ""
    recorded = {"lies_a": "1.0", "Lies-B": "1.5", "lies_c": "3"}
    shown = "Lies-B is 2.0, and was 1.5; lies_c 3 is not installed here"
    assert shown == said(tmp_path, distributions={str(site): recorded})
    many = said(tmp_path, distributions={str(site): {f"lies_{number}": "1" for number in range(9)}})
    assert many.endswith("; lies_4 1 is not installed here; 4 more")


def test_commits(tmp_path: Path) -> None:
    """A repository at another commit is named."""
    project = tmp_path / "project"
    project.mkdir()
    git = ("git", "-C", str(project), "-c", "user.name=a", "-c", "user.email=b")
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()

    assert said(tmp_path, commits={str(project): [head, False]}) == ""
    assert f"project is at commit {head[:7]}, and was at 0123456" == said(
        tmp_path, commits={str(project): ["0123456789", False]}
    )


def test_times() -> None:
    """The time of another day has its date."""
    now = time.time()

    assert time_of(now) == time.strftime("%H:%M", time.localtime(now))
    assert time_of(now - 86400 * 3) == time.strftime("%Y-%m-%d %H:%M", time.localtime(now - 86400 * 3))
