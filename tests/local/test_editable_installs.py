"""Packages that ``pip install -e`` installed run as they were at the submission, whichever build tool did it."""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

SOURCES = {
    "__init__.py": "from .parts import part\n",
    "parts.py": "part = 'old part'\n",
    "data.txt": "data",
    "work.py": """
import importlib.resources, inspect, pathlib, pkgutil, time
from . import part

def work(gate, item):
    if not item:
        (pathlib.Path(gate) / "arrived").touch()
        while not (pathlib.Path(gate) / "open").exists():
            time.sleep(0.02)
    from .parts import part as late
    data = importlib.resources.files("pack").joinpath("data.txt").read_text()
    return part, late, data, pkgutil.get_data("pack", "data.txt").decode(), "the old line" in inspect.getsource(work)
""".replace("    if not item", "    # the old line\n    if not item"),
}

SCRIPT = """
import pathlib, sys, time
from pack.work import work
from slurmlaunch import Executor

gate, package, change = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
with Executor(gate / "runs", cluster="local") as executor:
    array = executor.map_array(work, [str(gate)] * 2, [0, 1], tasks=2, throttle=1)
    while not (gate / "arrived").exists():
        time.sleep(0.02)
    for path in package.glob("*.py"):
        path.unlink() if change == "delete" else path.write_text(path.read_text().replace("old", "new"))
    (gate / "open").touch()
    print(array.results(60), sorted(array.code.modules), array.code.live)
"""

PROJECT = '[project]\nname = "pack"\nversion = "1"\n[build-system]\n'
FILES = "['__init__.py', 'parts.py', 'work.py', 'data.txt']"

TOOLS: dict[str, tuple[list[str], str, dict[str, str]]] = {
    "setuptools": (
        ["setuptools", "wheel"],
        "src/pack",
        {"pyproject.toml": PROJECT + 'requires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'},
    ),
    "setuptools-mapping": (  # its finder maps the package's name to a folder of another name
        ["setuptools", "wheel"],
        "code",
        {
            "pyproject.toml": PROJECT
            + 'requires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
            + '[tool.setuptools]\npackages = ["pack"]\npackage-dir = { pack = "code" }\n'
        },
    ),
    "meson-python": (
        ["meson-python", "meson", "ninja"],
        "pack",
        {
            "pyproject.toml": PROJECT + 'requires = ["meson-python"]\nbuild-backend = "mesonpy"\n',
            "meson.build": "project('pack')\npy = import('python').find_installation()\n"
            "subdir('pack')\n",
            "pack/meson.build": f"py.install_sources({FILES}, subdir: 'pack')\n",
        },
    ),
    "scikit-build-core": (
        ["scikit-build-core", "cmake", "ninja"],
        "src/pack",
        {
            "pyproject.toml": PROJECT + 'requires = ["scikit-build-core"]\nbuild-backend = "scikit_build_core.build"\n',
            "CMakeLists.txt": "cmake_minimum_required(VERSION 3.15)\nproject(pack LANGUAGES NONE)\n",
        },
    ),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("tool", TOOLS)
def test_editable_install(tool: str, tmp_path: Path) -> None:
    """Late imports, source and data files are as they were in a task that waits while the files are changed."""
    requirements, place, files = TOOLS[tool]
    package = tmp_path / "project" / place
    for path, text in {**files, **{f"{place}/{name}": text for name, text in SOURCES.items()}}.items():
        (tmp_path / "project" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "project" / path).write_text(text, encoding="utf-8")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    (site / "repository.pth").write_text(f"{REPOSITORY}\n", encoding="utf-8")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "cloudpickle", "filelock", *requirements], check=True)
    subprocess.run(
        [*pip, "--no-build-isolation", "-e", str(tmp_path / "project")],
        check=True,
        env={"PATH": f"{python.parent}:/usr/bin:/bin", "HOME": str(tmp_path)},
    )
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")

    for change in ("edit", "delete"):
        for name, text in SOURCES.items():
            (package / name).write_text(text, encoding="utf-8")
        (tmp_path / change).mkdir()
        done = subprocess.run(
            [python, tmp_path / "script.py", tmp_path / change, package, change],
            env={"PATH": f"{python.parent}:/usr/bin:/bin", "HOME": str(tmp_path)},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

        found = [("old part", "old part", "data", "data", True)] * 2
        assert done.stdout == f"{found} ['pack', 'pack.parts', 'pack.work'] []\n", (change, done.stderr)
