"""The environment of a run: recorded when it is submitted, and used for every array of it that is submitted later.

A run is what it was at its submission: its automatic retries and its later arrays have the variables, umask and soft
limits of that moment, whichever process submits them. What belongs to the machine or the session of that process is its
own: where Slurm is, for one. So are secrets, which no file holds. `submission` uses this; what a backend does with the
environment is not known here.
"""

from __future__ import annotations

import logging
import os
import re
import resource
from dataclasses import replace
from typing import TYPE_CHECKING

from slurmlaunch.backends.outer_job import outside_jobs
from slurmlaunch.backends.soft_limits import at_most
from slurmlaunch.runfolder.environment import Environment, secret_names
from slurmlaunch.runfolder.layout import RUN_VARIABLE, STARTED_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slurmlaunch.client.options import Options
    from slurmlaunch.runfolder.layout import RunFolder

# Of Slurm's, `outside_jobs` leaves only those that say where it is and how its commands print.
_OF_THE_PLACE = re.compile(
    rf"SLURM_.*|MUNGE_.*|XDG_RUNTIME_DIR|XDG_SESSION_.*|DBUS_.*|SSH_(AUTH_SOCK|AGENT_PID|CLIENT|CONNECTION|TTY)|KRB5CCNAME|{STARTED_VARIABLE}|(\w+ENV_)?{RUN_VARIABLE}"
)

_last: Environment | None = None
"""What `record` has returned last."""

_log = logging.getLogger("slurmlaunch")


def record(options: Options, earlier: Environment | None = None) -> Environment:
    """Return the environment of this process for a run with these options.

    Args:
        options: of them ``env`` and ``env_secret`` count.
        earlier: what an earlier round of the run was submitted with: it may know secrets among ``env``, of which the
            folder has the names alone.
    """
    global _last  # noqa: PLW0603
    variables = {name: value for name, value in outside_jobs(os.environ).items() if not _OF_THE_PLACE.fullmatch(name)}
    recorded = with_secrets_of(options, Environment.of_this_process(variables), earlier)
    if recorded != _last:  # else a thousand runs would keep a thousand copies
        _last = recorded
    return _last


def with_secrets_of(options: Options, environment: Environment, earlier: Environment | None = None) -> Environment:
    """Return an environment in which the variables that these options make secret are secrets; parameters as above."""
    variables, given = environment.variables, {name: value for name, value in options.env.items() if value is not None}
    known = {name: value for name, value in environment.secrets.items() if value is not None}
    secret = secret_names({**known, **variables, **given}, {*known, *options.env_secret})
    secrets = {**environment.secrets, **{name: value for name, value in variables.items() if name in secret}}
    for name, value in options.env.items():
        if value is None:
            secrets[name] = (earlier and earlier.secrets.get(name)) or secrets.get(name)
        elif name in secret:
            secrets[name] = value
    plain = {name: value for name, value in variables.items() if name not in secrets}
    return replace(environment, variables=plain, secrets=secrets)


class Environments:
    """The environments of one run: that of its submission, and those of rounds that a person submitted."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._known: dict[int, Environment] = {}
        self._warned: set[str] = set()

    def add(self, round_: int, environment: Environment) -> None:
        """Keep the environment of a round that this process has made, with its secrets."""
        self._known[round_] = environment

    def of_round(self, number: int) -> Environment:
        """Return the environment of a round.

        Raises:
            RunFolderError, UnsafeRunFolder: it cannot be read.
        """
        if number not in self._known:
            self._known[number] = self._read(number)
        return self._known[number]

    def _read(self, number: int) -> Environment:
        try:
            return Environment.read(self._folder.environment(number))
        except FileNotFoundError:
            # A retry without its own has that of the round before. Runs of 0.1.0 have none at all.
            return self.of_round(number - 1) if number else Environment.of_this_process(outside_jobs(os.environ))

    def for_submission(self, number: int) -> Environment:
        """Return the environment with which this process submits an array of a round.

        Secrets have their values where this process knows them; soft limits are no higher than its hard limits. A
        warning names those for which that makes a difference.
        """
        recorded = self.of_round(number)
        here = {name: value for name, value in outside_jobs(os.environ).items() if _OF_THE_PLACE.fullmatch(name)}
        secrets = {name: os.environ.get(name) if value is None else value for name, value in recorded.secrets.items()}
        missing = sorted(name for name, value in secrets.items() if value is None)
        if missing:
            self._warn(
                f"{', '.join(missing)} of {self._folder.path}: the values are secret, so the run folder does not have "
                f"them, and they are not set in this process. The tasks that it starts run without."
            )
        known = {name: value for name, value in secrets.items() if value is not None}
        limits = self._within_hard_limits(recorded.limits)
        return replace(recorded, variables={**recorded.variables, **known, **here}, limits=limits)

    def _within_hard_limits(self, limits: Mapping[str, int]) -> dict[str, int]:
        possible = {}
        for name, soft in limits.items():
            if not hasattr(resource, name):  # of another Python
                continue
            hard = resource.getrlimit(getattr(resource, name))[1]
            possible[name] = at_most(soft, hard)
            if possible[name] != soft:
                wanted = "unlimited" if soft == resource.RLIM_INFINITY else soft
                self._warn(
                    f"{self._folder.path} was submitted with {name}={wanted}; this process may set no more "
                    f"than its hard limit: the tasks that it starts run with {name}={hard}"
                )
        return possible

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            _log.warning("%s", message)
