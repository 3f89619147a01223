"""The errors of slurmlaunch in the words of a command line: ``mem=...`` becomes ``--mem=...``.

Every message is written for Python, where it is raised; the subcommands and `main` print it by `in_flags`. It knows the
names of options, and no message.
"""

from __future__ import annotations

import re

from slurmlaunch.client.options import OURS
from slurmlaunch.client.sbatch_options import NAMES

_OF_THE_CALL = ("chunksize", "cluster", "folder", "older_than", "profile", "tasks", "timeout")


def flag_of(name: str) -> str:
    """Return the flag of an option: ``--cpus-per-task``, and ``--module`` for ``modules``."""
    own = OURS[name].flag.split() if name in OURS else []
    return own[0] if own else "--" + name.replace("_", "-")


_FLAGS = {name: flag_of(name) for name in (*NAMES, *_OF_THE_CALL, *(name for name in OURS if OURS[name].flag))}
_OPTION = re.compile(
    rf"(?<![\w./-])({'|'.join(sorted(_FLAGS, key=len, reverse=True))})="
    r"(?:\[(?P<list>[^\]]*)\]|'(?P<text>[^']*)'|(?P<word>\.\.\.|[^\s'\"\[\](),;:.]*))"
)
_PREFIX = re.compile(rf"\A({'|'.join(_FLAGS)}):(?= )")
_BARE = re.compile(rf"(?<![\w./'-])({'|'.join(name for name in _FLAGS if '_' in name)})(?![\w=(.])")
_CALLS = (
    (re.compile(r"\bslurmlaunch\.attach\('([^']*)'\)\.retry\(([^)]*)\)"), r"slurmlaunch retry \1 \2"),
    (re.compile(r"(?:with )?\.retry\(((?:\w+=|\.\.\.)[^)]*)\)"), r"with slurmlaunch retry RUN \1"),
    (re.compile(r"\bCall \.retry\(\)"), "Use slurmlaunch retry RUN"),
    (re.compile(r"(?:with )?\.retry\(\)"), "slurmlaunch retry RUN"),
    (re.compile(r"\bslurmlaunch\.runs\('([^']*)'\)"), r"slurmlaunch runs --folder \1"),
    (re.compile(r"\b(?:ex\.options|Executor)\(([^)]*)\)(?:\.map_array\(\.\.\.\))?"), r"\1"),
    (re.compile(r"\b(?:ex\.)?map_array\((?:\.\.\.|fn, items), ([^)]*)\)"), r"\1"),
    (re.compile(r"\bgive map_array "), "give "),
    (re.compile(r"\bContainer\(\.\.\., runtime=\.\.\.\)"), "--container-runtime=..."),
    (re.compile(r"\bContainer\(\.\.\., flags=\['([^']*)'\]\)"), r"--container-flag=\1"),
    (re.compile(r"\bcontainer=--container"), "--container"),
    (re.compile(r"\Acontainer: runtime="), "--container-runtime="),
    (re.compile(r"\Acontainer: binds: "), "--container-bind "),
    (re.compile(r"; give a list of them\Z"), ""),
    (re.compile(r"\bkeep_failed=False\b"), "--failed"),
    (re.compile(r", or a datetime\.timedelta"), ""),
)


def in_flags(error: object) -> str:
    """Return an error, or its text, with options as flags."""
    text = str(error)
    if getattr(error, "file", None):  # of a configuration file, in which options have their names
        return text
    for call, words in _CALLS:
        text = call.sub(words, text)
    text = _PREFIX.sub(lambda found: f"{_FLAGS[found[1]]}:", text)
    text = _OPTION.sub(_as_flag, text).replace("....", "...")
    return _BARE.sub(lambda found: _FLAGS[found[1]], text)


def _as_flag(found: re.Match[str]) -> str:
    value = next((each for each in (found["list"], found["text"], found["word"]) if each), "").strip("'\"")
    return f"{_FLAGS[found[1]]}={value}" if value else _FLAGS[found[1]]
