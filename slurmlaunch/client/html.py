"""Pieces of the HTML that notebooks show: plain elements, which survive saving and need no widget library.

The colours suit light and dark pages. All text is escaped: a result's repr, or a path, runs no script.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

_CELL = "text-align:left;overflow-wrap:anywhere;min-width:5em"
"""A path breaks anywhere; the short words of another column do not because of it."""

GREEN, RED, BROWN, BLUE, GREY = "#2e9e5b", "#d64545", "#b07d2b", "#3b82c4", "#8a8f98"


class Part(NamedTuple):
    """A part of a strip: its share, its colour and the text under the mouse."""

    share: int
    colour: str
    title: str


def text(plain: object) -> str:
    """Return text, escaped."""
    import html  # its table of entities is large, and few programs run in a notebook

    return html.escape(str(plain))


def marked(plain: str, colour: str) -> str:
    """Return bold text behind a mark in a colour: the text has the page's own, which is easy to read."""
    return f'<b style="white-space:nowrap"><span style="color:{colour}">\N{BLACK SQUARE}</span> {text(plain)}</b>'


def row(content: str) -> str:
    """Return a row of a box; *content* is HTML."""
    return f"<div>{content}</div>"


def small(plain: str) -> str:
    """Return a row of small text."""
    return f'<div style="opacity:.75;font-size:90%;overflow-wrap:anywhere">{text(plain)}</div>'


def strip(parts: Iterable[Part], height: int) -> str:
    """Return a strip of coloured parts; *height* is in pixels."""
    cells = "".join(
        f'<span title="{text(part.title)}" style="flex:{part.share} 0 2px;background:{part.colour}"></span>'
        for part in parts
    )
    return f'<div style="display:flex;height:{height}px;margin:3px 0;border-radius:2px;overflow:hidden">{cells}</div>'


def box(rows: Iterable[str]) -> str:
    """Return a box with rows."""
    frame = "border:1px solid rgba(128,128,128,.4);border-radius:4px;padding:6px 10px"
    style = f"{frame};max-width:60em;overflow-x:auto;line-height:1.5"
    return f'<div style="{style}">{"".join(rows)}</div>'


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table; the cells of *rows* are HTML, those of *head* text."""
    titles = "".join(f'<th style="text-align:left">{text(title)}</th>' for title in head)
    lines = ("".join(f'<td style="{_CELL}">{cell}</td>' for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><tr>{titles}</tr>{body}</table>"
