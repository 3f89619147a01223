"""Writes the table in ``docs/options.md`` from the table of options: run ``python docs/options.py`` after a change."""

from __future__ import annotations

from pathlib import Path

from slurmlaunch.client.options import OURS, default_of

PAGE = Path(__file__).with_suffix(".md")
START, END = "<!-- written by docs/options.py -->\n", "<!-- end -->\n"


def table() -> str:
    """Return the options as a Markdown table."""
    rows = [
        f"| `{name}` | {option.form} | {option.help} | {default_of(name)} | {option.backends} "
        f"| {'no' if option.fixed else 'yes'} | {f'`{option.flag}`' if option.flag else ''} |\n"
        for name, option in OURS.items()
    ]
    head = "| option | value | meaning | default | backends | in `retry` | command line |\n"
    return head + "| --- | --- | --- | --- | --- | --- | --- |\n" + "".join(rows)


def page(text: str) -> str:
    """Return the page with the table as it should be."""
    before, _, rest = text.partition(START)
    return before + START + "\n" + table() + "\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
