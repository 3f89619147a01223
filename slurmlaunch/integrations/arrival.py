"""Being known to joblib by name, whichever of the two is imported first.

joblib asks nobody for backends: a name is known once someone has registered it.
Where joblib is there already, `import slurmlaunch` does so. Else the package
leaves a finder, which wakes when ``joblib.parallel`` is imported: that module is
loaded as it would have been, the name is registered, and the finder is gone.
"""

from __future__ import annotations

import sys
from importlib.abc import Loader
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from slurmlaunch.integrations.joblib import SlurmlaunchBackend

JOBLIB = "joblib.parallel"
"""The module of joblib that keeps the names of backends."""


def register() -> None:
    """Make the name known to joblib, which is loaded."""
    from joblib.parallel import register_parallel_backend

    register_parallel_backend("slurmlaunch", _make_backend)


def _make_backend(**options: Any) -> SlurmlaunchBackend:
    """Make the backend, which is not imported before someone asks for it by name."""
    from slurmlaunch.integrations.joblib import SlurmlaunchBackend

    return SlurmlaunchBackend(**options)


def registering_spec(path: Sequence[str] | None, target: ModuleType | None, asking: object) -> ModuleSpec | None:
    """Return how joblib's module is loaded, with the registration after it.

    Args:
        path: as a finder is given it.
        target: as a finder is given it.
        asking: the finder that asks, which has nothing to say itself.
    """
    for finder in [each for each in sys.meta_path if each is not asking]:
        spec = finder.find_spec(JOBLIB, path, target) if hasattr(finder, "find_spec") else None
        if spec is not None:
            if spec.loader is not None:
                spec.loader = _RegisteringLoader(spec.loader, asking)
            return spec
    return None


class _RegisteringLoader(Loader):
    """Loads the module as another loader does, leaves no trace in it, and registers the name."""

    def __init__(self, loader: Loader, finder: object) -> None:
        self._loader, self._finder = loader, finder

    def __getattr__(self, name: str) -> Any:
        """Be the other loader to those who ask for its source, its path or its resources."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        register()
        # Only now: an import that failed is tried again.
        sys.meta_path[:] = [each for each in sys.meta_path if each is not self._finder]
