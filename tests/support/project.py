"""A folder with modules of a user's, which the test imports, submits, and then edits or deletes."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


class Project:
    """Modules in a folder of the search path.

    Attributes:
        folder: the folder.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self._before = set(sys.modules)

    def write(self, files: dict[str, str]) -> None:
        """Write files by their paths in the folder."""
        for path, text in files.items():
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path).write_text(text, encoding="utf-8")

    def load(self, *names: str) -> Any:
        """Import modules; return the last."""
        importlib.invalidate_caches()
        return [importlib.import_module(name) for name in names][-1]

    def edit(self) -> None:
        """Replace the word "old" in all modules."""
        for path in self.folder.rglob("*.py"):
            before = path.stat().st_mtime
            path.write_text(path.read_text(encoding="utf-8").replace("old", "new"), encoding="utf-8")
            # Python takes an edit of the same length within the same second for none.
            os.utime(path, (before + 2, before + 2))

    def delete(self) -> None:
        """Delete all modules, compiled ones too."""
        for path in [*self.folder.rglob("*.py"), *self.folder.rglob("*.pyc")]:
            path.unlink()

    def forget(self) -> None:
        """Let this process forget all modules of the folder."""
        for name in [name for name in set(sys.modules) - self._before if self._has(sys.modules[name])]:
            del sys.modules[name]

    def _has(self, module: object) -> bool:
        places = [*getattr(module, "__path__", ()), getattr(module, "__file__", None)]
        return any(str(each).startswith(str(self.folder)) for each in places)
