"""``slurmlaunch config``: each value that an executor would use, and its source.

`main` dispatches to it; `slurmlaunch.client.configuration` knows the files and their precedence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from slurmlaunch.backends.container import Container
from slurmlaunch.cli.exit_status import OK
from slurmlaunch.cli.parsers import VerbParser
from slurmlaunch.cli.printing import print_json
from slurmlaunch.client.configuration import File, options_of, places, read_files, settings_for
from slurmlaunch.runfolder.environment import secret_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slurmlaunch.client.configuration import Setting

_DESCRIPTION = """\
Show the values that the configuration files give an executor, and where each
comes from. The files, the last of which counts most:

  /etc/slurmlaunch/config.toml              the site's
  $XDG_CONFIG_HOME/slurmlaunch/config.toml  yours; by default below ~/.config
  $SLURMLAUNCH_CONFIG                       a project's, if you set the variable
"""
_EXAMPLES = """\
examples:
  slurmlaunch config
  slurmlaunch config --profile gpu --json

The exit status is 0, or 2 if a file is wrong or has no such profile.
"""
_HIDDEN = "(secret)"


def main(arguments: Sequence[str]) -> int:
    """Print the settings; return 0."""
    parser = VerbParser("config", "[--profile NAME] [--json]", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("--profile", metavar="NAME", help="with the values of this profile")
    parser.add_json()
    given = parser.read(arguments)
    files = read_files()
    settings = settings_for(given.profile).used
    options_of(settings)  # refuses values that do not fit together
    if given.json:
        print_json(_as_json(files, settings))
    else:
        print("\n".join(_as_text(files, settings)))
    return OK


def _as_json(files: Sequence[File], settings: Mapping[str, Setting]) -> dict[str, Any]:
    read = {file.path for file in files}
    return {
        "files": [{"path": str(path), "read": path in read} for path, _ in places()],
        "profiles": _names(files, "profiles"),
        "clusters": _names(files, "clusters"),
        "settings": {
            name: {
                "value": _shown(each),
                "source": str(each.source.path) if isinstance(each.source, File) else each.source,
                "line": each.line,
                "table": ".".join(each.table) or None,
            }
            for name, each in settings.items()
        },
    }


def _as_text(files: Sequence[File], settings: Mapping[str, Setting]) -> list[str]:
    values = {
        name: json.dumps(value) if not isinstance(value := _shown(each), str) else value
        for name, each in settings.items()
    }
    names, widest = max(map(len, settings)), min(40, max(map(len, values.values())))
    lines = [f"{name:<{names}}  {values[name]:<{widest}}  {each.place}" for name, each in settings.items()]
    read = {file.path for file in files}
    lines += ["", *(f"{'read' if path in read else 'none':<{names}}  {path}" for path, _ in places())]
    for kind in ("profiles", "clusters"):
        lines += [f"{kind:<{names}}  {', '.join(found)}"] if (found := _names(files, kind)) else []
    return lines


def _names(files: Sequence[File], kind: str) -> list[str]:
    return sorted({name for file in files for name in file.names(kind)})


def _shown(setting: Setting) -> Any:
    value = setting.value
    if isinstance(value, Container):
        return {name: each for name, each in value.to_json().items() if each}
    if setting.option == "env" and isinstance(value, Mapping):
        secret = secret_names({name: str(each) for name, each in value.items()})
        return {name: _HIDDEN if name in secret else each for name, each in value.items()}
    return value
