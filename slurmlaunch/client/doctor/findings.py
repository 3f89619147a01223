"""`Check`: what one check of the doctor found, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Check"]

OK, WARNING, ERROR, SKIPPED = "ok", "warning", "error", "skipped"


@dataclass(frozen=True)
class Check:
    """What one check found.

    Attributes:
        name: the name of the check; it stays the same in later versions.
        level: ``"ok"``, ``"warning"`` (it works, but not well), ``"error"`` (runs fail) or ``"skipped"``.
        found: what was found, in words.
        advice: what to do; empty if nothing.
        data: what was found, for programs: numbers, strings, lists and dicts.
    """

    name: str
    level: str
    found: str
    advice: str = ""
    data: dict[str, Any] = field(default_factory=dict)


def ok(name: str, found: str, **data: Any) -> Check:
    """Return a check that found nothing wrong."""
    return Check(name, OK, found, data=data)


def warning(name: str, found: str, advice: str, **data: Any) -> Check:
    """Return a check that found something that does not stop runs."""
    return Check(name, WARNING, found, advice, data)


def error(name: str, found: str, advice: str = "", **data: Any) -> Check:
    """Return a check that found something that lets runs fail."""
    return Check(name, ERROR, found, advice, data)


def skipped(name: str, why: str) -> Check:
    """Return a check that was not made."""
    return Check(name, SKIPPED, why)
