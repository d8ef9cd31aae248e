"""A run directory names code: which files of a user's own a resumed run would execute, and whether they are near."""

from __future__ import annotations

from pathlib import Path

from fedbilevel.config.tables import Config
from fedbilevel.errors import BadInput


def files_of(config: Config) -> list[Path]:
    """The files that a config's problem, its network and the algorithms come from, each once."""
    return list(dict.fromkeys(Path(name.rpartition(":")[0]).resolve() for name in config.files))


def hold_trusted(config: Config, directory: Path, *, trust: bool) -> list[Path]:
    """Return the files that will be executed.

    Raises BadInput, unless they are trusted, for one outside of the run directory and of the current folder: a run
    directory may come from somebody else.
    """
    files = files_of(config)
    near = (directory.resolve(), Path.cwd().resolve())
    for file in files:
        if not trust and not any(file.is_relative_to(folder) for folder in near):
            allowed = f"a file below the run directory or the current folder, or --trust to execute it (in {directory})"
            raise BadInput("config.toml", str(file), allowed)
    return files
