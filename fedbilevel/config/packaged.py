"""The configs that come with the project, by name."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path

from fedbilevel.packages import ROOT

CONFIGS = ROOT / "experiments" / "configs"


def packaged(name: str | Path) -> Path | None:
    """The file of a packaged config, by its name with or without `.toml`; None where a file of that path exists.

    >>> packaged("demo").name
    'demo.toml'
    """
    path = Path(name)
    if path.is_file() or len(path.parts) != 1 or path.suffix not in ("", ".toml"):
        return None
    found = CONFIGS / f"{path.stem}.toml"
    return found if found.is_file() else None


def packaged_configs() -> dict[str, str]:
    """Every packaged config with its title, by name."""
    return {file.stem: str(tomllib.loads(file.read_text())["title"]) for file in sorted(CONFIGS.glob("*.toml"))}


def or_packaged(name: str | Path) -> str:
    """What to say beside a config that is not there: the packaged ones, where a plain name was given."""
    path = Path(name)
    if len(path.parts) != 1 or path.suffix not in ("", ".toml"):
        return ""
    names = sorted(file.stem for file in CONFIGS.glob("*.toml"))
    near = difflib.get_close_matches(path.stem, names, n=1, cutoff=0.5)
    return f", or one of {', '.join(names)}" + (f" (did you mean {near[0]!r}?)" if near else "")
