"""A guard of the unit tests: they start no process."""

from __future__ import annotations

import os
import subprocess
from typing import Any, NoReturn

import pytest

from slurmlaunch.client import versions


@pytest.fixture(autouse=True)
def _no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that starts a process: such tests belong in another folder."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        pytest.fail("a unit test starts a process")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
    monkeypatch.setattr(os, "fork", refuse)
    monkeypatch.setattr(versions, "_ask_git", lambda _: {})  # which each submission does, also an inline one
