"""How slurmlaunch is checked: `nox` runs lint, typing and the tests on this Python and on the newest installed one."""

import functools
import shutil
import sys
from pathlib import Path

import nox

PYPROJECT = nox.project.load_toml("pyproject.toml")
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
# This Python comes last, because its test run is the complete one and the one to end on.
PYTHONS = sorted(nox.project.python_versions(PYPROJECT), key=lambda version: version == HERE)

# Several tests at once, also on few cores: most of its time a test waits.
PYTEST = ("pytest", "--numprocesses=6", "--dist=worksteal")

# What fails on a Python between two on which it passes is rare enough to be left to `everything`.
INSTALLED = [version for version in nox.project.python_versions(PYPROJECT) if shutil.which(f"python{version}")]
USUAL = [version for version in PYTHONS if version in {*INSTALLED[-1:], HERE}]

# The kinds of `tests/support/clusters`.
CLUSTERS = ("default", "modern", "newest", "strict", "two", "cached", "crowd")

nox.options.sessions = ["lint", "typing", *(f"tests-{version}" for version in USUAL)]
nox.options.error_on_missing_interpreters = False
nox.options.download_python = "never"


def install(session: nox.Session, *groups: str, package: bool = True, compiled: bool = True) -> None:
    """Install the dependency groups, and the package as its users would; *compiled* if they are to be imported."""
    project = ["."] if package else []
    # pip itself would compile on one CPU only.
    session.install("--no-compile", *project, *nox.project.dependency_groups(PYPROJECT, *groups))
    if compiled:
        folder = str(Path(session.virtualenv.location) / "lib")
        session.run("python", "-m", "compileall", "-qq", "-j", "0", folder, success_codes=[0, 1], silent=True)
    # Tests start thousands of Pythons, each of which would compile slurmlaunch.
    session.env["PYTHONDONTWRITEBYTECODE"] = ""


def scripts_in(folder: str) -> list[str]:
    """Return the paths of the folder's scripts."""
    return sorted(map(str, Path(folder).glob("[!_]*.py")))


@nox.session
def lint(session: nox.Session) -> None:
    """Check rules and format."""
    install(session, "lint", package=False, compiled=False)
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def typing(session: nox.Session) -> None:
    """Check types."""
    install(session, "test", "typing", compiled=False)
    session.run("mypy", *session.posargs)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests on the last Python, and on the others the quick ones of `unit` and of the local contract."""
    install(session, "test")
    if session.python == PYTHONS[-1]:
        session.run(*PYTEST, "-m", "not long", *session.posargs)
    else:
        quick = ("-m", "not slurm and not slow and not long", "--hypothesis-profile=quick")
        session.run(*PYTEST, *quick, *(session.posargs or ("tests/unit", "tests/contract")))


@nox.session
def everything(session: nox.Session) -> None:
    """Run every test, with PyTorch and Ray and those of minutes; then the other sessions of tests."""
    install(session, "test", "examples")
    session.env["SLURMLAUNCH_REQUIRE_SLURM"] = "1"
    session.run(*PYTEST, *session.posargs)
    for version in INSTALLED:
        if version not in USUAL:
            session.notify(f"tests-{version}")
    session.notify("examples")
    session.notify("soak")
    session.notify("fuzz")


@nox.session
def clusters(session: nox.Session, names: tuple[str, ...] = CLUSTERS) -> None:
    """Run the suites that depend on the cluster on every kind of cluster, and print a table."""
    install(session, "test")
    session.run("python", "-m", "tests.support.clusters", *names, *PYTEST[1:], *session.posargs)


for kind in CLUSTERS:
    of_one_kind = functools.partial(clusters, names=(kind,))
    of_one_kind.__doc__ = (
        f"Do so on the kind {kind}; without `--install` after `--` nothing that it lacks is installed."
    )
    nox.session(of_one_kind, name=f"cluster-{kind}")


@nox.session
def examples(session: nox.Session) -> None:
    """Run the examples on this machine's own cores."""
    install(session, "test", "examples")
    session.env["SLURMLAUNCH_CLUSTER"] = "local"
    session.env["NUMBA_ENABLE_CUDASIM"] = "1"  # a GPU that Numba simulates
    for script in session.posargs or scripts_in("examples"):
        if Path(script).name != "allocation.py":  # it runs inside an allocation only
            session.run("python", script)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure against peers and floors, in minutes; with `--full` after `--` in hours."""
    install(session, "bench", "peers")
    for script in scripts_in("benchmarks"):
        session.run("python", script, *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Cause random faults on a throwaway Slurm for minutes, and count lost items; seconds may be given after `--`."""
    install(session, "test")
    session.run("python", "-m", "tests.faults.soak", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Damage files of run folders, and have every reader read them; seconds may be given after `--`."""
    install(session, "test")
    session.run("python", "-m", "tests.faults.fuzz", *session.posargs)


@nox.session
def audit(session: nox.Session) -> None:
    """Look up known vulnerabilities of what slurmlaunch and its extras install."""
    project = PYPROJECT["project"]
    extras = [each for extra in project["optional-dependencies"].values() for each in extra]
    session.install(*project["dependencies"], *extras, "pip-audit>=2.7")  # not slurmlaunch, of which nothing is known
    session.run("pip-audit", "--strict", *session.posargs)  # what could not be looked up counts as a failure
