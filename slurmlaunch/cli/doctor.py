"""``slurmlaunch doctor``: the checks of `slurmlaunch.doctor`, line by line as they are made.

`main` dispatches to it. Its options are those of an executor, as for ``slurmlaunch map``.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from slurmlaunch.cli.exit_status import FAILED, NOT_STARTED, OK, VerbError
from slurmlaunch.cli.flag_errors import in_flags
from slurmlaunch.cli.printing import print_json
from slurmlaunch.cli.run_options import RunOptionParser, run_options
from slurmlaunch.client.doctor.behaviours import BEHAVIOURS
from slurmlaunch.client.doctor.report import doctor, line_of
from slurmlaunch.errors import SIGNALLED

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence
    from types import FrameType
    from typing import Any, NoReturn, TextIO

    from slurmlaunch.client.doctor.findings import Check
    from slurmlaunch.client.doctor.report import Report

_DESCRIPTION = """\
Check what runs need: the folder for run folders, Slurm, your account and
limits, and a node. It submits one small job of 5 minutes at most; --dry
submits none. The page can be pasted into a ticket.

--full also tries what the documentation promises, by about 20 more small jobs
in some minutes, and writes a page for a bug report into the working directory.
Ctrl-C, or the end of the terminal, cancels and removes them.
"""
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_FULL = "about 20 small jobs, which takes some minutes; Ctrl-C cancels and removes them"
_EXAMPLES = """\
examples:
  slurmlaunch doctor
  slurmlaunch doctor --partition small --account project_42 --folder /scratch/me
  slurmlaunch doctor --dry --json
  slurmlaunch doctor --full --partition small
  slurmlaunch doctor --only requeue --only caps

The exit status is 0 if no check found an error, 1 if one did, 2 for wrong
usage, and 3 if the job had not started after 60 s: it is cancelled then.
"""


def main(arguments: Sequence[str]) -> int:
    """Print the checks; return the exit status."""
    parser = _parser()
    given, words = parser.parse(arguments)
    if words:
        parser.error(f"{words[0]!r} is no option")
    full = given.only or given.full
    if not given.dry:
        jobs = _FULL if given.full else "a few small jobs" if full else "one small job; --dry submits none"
        print(f"slurmlaunch: this submits {jobs}", file=sys.stderr)
    try:
        with _cancelling_at_a_signal(), _new_page() if full and not given.dry else contextlib.nullcontext() as page:
            report = _check(given)
            if page is not None:
                page.write(report.page())
    except _Ended as end:
        return SIGNALLED + end.signal
    if given.json:
        print_json({**report.to_dict(), "page": page and page.name})
    else:
        print("\n".join(filter(None, (report.waiting, report.summary(), f"page: {page.name}" if page else ""))))
    if report.waiting:
        return NOT_STARTED
    return FAILED if report.errors else OK


def _check(given: argparse.Namespace) -> Report:
    return doctor(
        given.folder,
        cluster=given.cluster,
        profile=given.profile,
        dry=given.dry,
        wait=given.wait,
        full=given.only or given.full,
        imports=given.imports,
        on_check=None if given.json else _print,
        **run_options(given),
    )


@contextlib.contextmanager
def _new_page() -> Iterator[TextIO]:
    """Create the file of the page in the working directory, before anything is submitted; remove it after an error."""
    with _create_page() as page:
        try:
            yield page
        except BaseException:
            Path(page.name).unlink(missing_ok=True)
            raise


def _create_page() -> TextIO:
    """Create it under a name that is free.

    Raises:
        VerbError: the working directory takes no file.
    """
    start = Path.cwd() / f"slurmlaunch-doctor-{dt.datetime.now():%Y-%m-%d-%H%M%S}"  # noqa: DTZ005  (the user's day)
    number = 1
    while True:
        path = Path(f"{start}{f'-{number}' if number > 1 else ''}.md")
        try:
            return path.open("x", encoding="utf-8")
        except FileExistsError:  # of another doctor; nothing is overwritten, also through no link
            number += 1
        except OSError as error:
            text = f"the page cannot be written into {path.parent}: {error.strerror}. Start in another folder."
            raise VerbError(text) from error


class _Ended(KeyboardInterrupt):
    """A signal has ended the checks."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = number


@contextlib.contextmanager
def _cancelling_at_a_signal() -> Iterator[None]:
    """Have SIGTERM, and SIGHUP of a terminal that closes, do what Ctrl-C does; further signals interrupt nothing."""

    def end(number: int, _: FrameType | None) -> NoReturn:
        for each in before:
            signal.signal(each, lambda *_: None)  # SIG_IGN would hold for scancel, too
        with contextlib.suppress(OSError):  # the terminal is closed
            os.write(2, b"\n" * os.isatty(2) + b"slurmlaunch: cancelling its jobs and removing their files\n")
        raise _Ended(number)

    before: dict[int, Any] = {each: signal.getsignal(each) for each in _ENDING}
    before = {each: handler for each, handler in before.items() if handler is not signal.SIG_IGN}  # as under nohup
    for each in before:
        signal.signal(each, end)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _print(check: Check) -> None:
    print(in_flags(line_of(check)), flush=True)


def _parser() -> RunOptionParser:
    parser = RunOptionParser("doctor", "[OPTION...]", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("--dry", action="store_true", help="submit no job")
    parser.add_argument("--wait", action="store_true", help="wait for the job, however long it is pending")
    parser.add_argument("--full", action="store_true", help="try all behaviours, and write a page for a bug report")
    parser.add_argument(
        "--only", metavar="BEHAVIOUR", action="append", choices=list(BEHAVIOURS),
        help="try this behaviour, as --full does, and no other; may be repeated",
    )  # fmt: skip
    parser.add_json()
    parser.add_argument(
        "--import", dest="imports", metavar="MODULE", action="append", default=[],
        help="a module that the node must be able to import; may be repeated",
    )  # fmt: skip
    parser.add_run_options()
    return parser
