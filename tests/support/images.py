"""A container image without a download: empty folders, a Python of its own, and this machine's libraries bound in.

The Python has only a node's requirements: this package and cloudpickle.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import cloudpickle

import slurmlaunch

NAME = "the image of slurmlaunch's tests"
_FOLDERS = ("dev", "etc", "home", "mnt", "opt", "proc", "root", "run", "sys", "tmp", "usr", "var")
_FILES = ("etc/passwd", "etc/group", "etc/hosts", "etc/resolv.conf")
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
_NEEDED = (slurmlaunch, cloudpickle)


def make_image(folder: Path, *, without: str = "", python: str = sys.executable) -> tuple[Path, list[str]]:
    """Make an image, without one of the packages if asked; return its path, and the folders to bind."""
    image = folder / "image"
    for name in _FOLDERS:
        (image / name).mkdir(parents=True)
    for name in _FILES:
        (image / name).touch()
    (image / "etc/os-release").write_text(f'PRETTY_NAME="{NAME}"\n', encoding="utf-8")
    (image / "ch").mkdir()
    (image / "ch/environment").write_text("PATH=/usr/local/bin:/usr/bin:/bin\n", encoding="utf-8")
    binds = [library for library in _LIBRARIES if _adopt(image, Path(library))]
    # Its own Python is found on the PATH, and finds this machine's standard library.
    local = image / "usr/local"
    subprocess.run([python, "-m", "venv", "--copies", "--without-pip", local], check=True)
    packages = local / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    for package in _NEEDED:
        if package.__name__ != without:
            source = Path(str(package.__file__)).parent
            shutil.copytree(source, packages / package.__name__, ignore=shutil.ignore_patterns("__pycache__"))
    if not python.startswith("/usr/bin/") and sys.base_prefix != "/usr":
        binds.append(sys.base_prefix)
    return image, binds


def _adopt(image: Path, library: Path) -> bool:
    """Add one of this machine's library folders to the image; return whether it must be bound."""
    place = image / str(library).lstrip("/")
    if library.is_symlink():
        place.symlink_to(library.readlink())
        return False
    if library.is_dir():
        place.mkdir(parents=True, exist_ok=True)
    return library.is_dir()
