"""Lines and warnings for the user."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from slurmlaunch.messages import say, warn


def test_warning_names_the_line_of_the_user() -> None:
    """A warning names the line outside slurmlaunch that made the call, however many of its frames lie between."""
    ours: dict[str, Any] = {"__name__": "slurmlaunch.client.example", "warn": warn}
    exec("def inner(): warn('careful')\ndef outer(): inner()", ours)  # noqa: S102
    with pytest.warns(UserWarning, match="careful") as caught:
        ours["outer"]()
    assert [each.filename for each in caught] == [__file__]


def test_closed_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line is dropped where standard error is closed."""
    with open("/dev/null", "w", encoding="utf-8") as closed:  # noqa: PTH123
        pass
    monkeypatch.setattr(sys, "stderr", closed)
    say("nobody reads this")
