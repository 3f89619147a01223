"""How slurmlaunch is checked: `nox` runs lint, typing and tests: on the oldest Python, the newest and this one."""

import os
import sys
from pathlib import Path

import nox

PYPROJECT = nox.project.load_toml("pyproject.toml")
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
# This Python comes last, because its test run is the complete one and the one to end on.
PYTHONS = sorted(nox.project.python_versions(PYPROJECT), key=lambda version: version == HERE)

# What passes on the oldest and on the newest passes in between: those have sessions, too, for who asks for them.
OLDEST, *_, NEWEST = nox.project.python_versions(PYPROJECT)
CHOSEN = [version for version in PYTHONS if version in {OLDEST, NEWEST, HERE}]

nox.options.sessions = ["lint", "typing", *(f"tests-{version}" for version in CHOSEN)]
nox.options.error_on_missing_interpreters = False
nox.options.download_python = "never"


def install(session: nox.Session, *groups: str, package: bool = True) -> None:
    """Install the dependency groups, and the package as its users would."""
    project = ["."] if package else []
    session.install(*project, *nox.project.dependency_groups(PYPROJECT, *groups))


def scripts_in(folder: str) -> list[str]:
    """Return the paths of the folder's scripts."""
    return sorted(map(str, Path(folder).glob("[!_]*.py")))


@nox.session
def lint(session: nox.Session) -> None:
    """Check rules and format."""
    install(session, "lint", package=False)
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def typing(session: nox.Session) -> None:
    """Check types."""
    install(session, "test", "typing")
    session.run("mypy", *session.posargs)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run every test on the last Python, and those without Slurm that are quick on the others."""
    complete = session.python == PYTHONS[-1]
    # PyTorch and Ray are too large for who only wants to see the tests pass: without them a few are skipped.
    required = complete and os.environ.get("SLURMLAUNCH_REQUIRE_SLURM") == "1"
    install(session, "test", *(["examples"] if required else []))
    selection = [] if complete else ["-m", "not slurm and not slow", "--hypothesis-profile=quick"]
    # Several at once, also where there are few cores: most of its time a test waits.
    session.run("pytest", "--numprocesses=6", "--dist=worksteal", *selection, *session.posargs)


@nox.session
def examples(session: nox.Session) -> None:
    """Run the examples on this machine's own cores."""
    install(session, "test", "examples")
    session.env["SLURMLAUNCH_CLUSTER"] = "local"
    session.env["NUMBA_ENABLE_CUDASIM"] = "1"  # a GPU that Numba plays
    for script in session.posargs or scripts_in("examples"):
        if Path(script).name != "allocation.py":  # which is for those who are in one
            session.run("python", script)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure against peers and floors, in minutes; with `--full` after `--` in hours."""
    install(session, "bench", "peers")
    for script in scripts_in("benchmarks"):
        session.run("python", script, *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Do random faults on a throwaway Slurm for minutes, and count what is lost; seconds may be given after `--`."""
    install(session, "test")
    session.run("python", "-m", "tests.faults.soak", *session.posargs)
