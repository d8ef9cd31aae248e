"""The project's packages, four names at the top level, and what stands in their way."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

PACKAGES = ("fedbilevel", "clients", "server", "experiments")
ROOT = Path(__file__).resolve().parents[1]
"""The folder in which they lie side by side, in a checkout as in an installation."""


def see_that_they_are_ours() -> None:
    """Raises ImportError, naming the file, if a package of ours is shadowed: a `server.py` beside a script comes first.

    >>> see_that_they_are_ours()
    """
    for name in PACKAGES[1:]:
        found = _file_of(name)
        if found is None:
            raise ImportError(f"the package {name} of fedbilevel is not installed beside {ROOT / 'fedbilevel'}")
        if found.resolve() != ROOT / name / "__init__.py":
            raise ImportError(f"{found} stands in the place of fedbilevel's package {name}: rename it, or move it away")


def _file_of(name: str) -> Path | None:
    """The file that `import name` has run, or would run."""
    module = sys.modules.get(name)
    spec = module.__spec__ if module is not None else importlib.util.find_spec(name)
    if spec is None:
        origin = getattr(module, "__file__", None)
        return Path(origin) if origin else None
    if spec.origin is not None:
        return Path(spec.origin)
    return next((Path(place) for place in spec.submodule_search_locations or ()), None)
