"""Files of the user's own: Python code that a config or a call names as `path/to/file.py:name`.

A file runs once in a process for every content that it has, as a module whose name is a digest of path and content, so
that two files never meet. Where another process needs the code, its text travels (`UserFile`), not its path.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import threading
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from fedbilevel.errors import BadInput, RunFailed, said, users_code
from fedbilevel.strict import Strict

_PREFIX = "fedbilevel_file_"
PATIENCE_SECONDS = 60.0
"""A file that takes longer to import counts as one that hangs; the environment can set more."""


class UserFile(Strict):
    """A file as it can travel: where it lay (resolved), and its text."""

    path: str
    source: str

    @property
    def module_name(self) -> str:
        """The name of the module that it becomes, the same in every process."""
        text = f"{self.path}\0{self.source}".encode(errors="surrogatepass")
        return _PREFIX + hashlib.blake2b(text, digest_size=8).hexdigest()


_PROVIDED: dict[str, UserFile] = {}
_RUN: dict[str, UserFile] = {}


def names_file(name: str) -> bool:
    """Whether this is `path/to/file.py:name`.

    >>> names_file("ridge.py:ridge"), names_file("aggitd")
    (True, False)
    """
    return name.rpartition(":")[0].endswith(".py")


def is_users(module_name: str) -> bool:
    """Whether a module of this name came from a user's file."""
    return module_name.startswith(_PREFIX)


def located(name: str, folder: Path) -> str:
    """`path:name` with the path that is meant, resolved: from the current folder, or else from `folder`."""
    path, _, attribute = name.rpartition(":")
    for place in (Path(path).expanduser(), (folder / path).expanduser()):
        if place.is_file():
            return f"{place.resolve()}:{attribute}"
    return name


def provide(files: Iterable[UserFile]) -> None:
    """Use these in the place of what this machine may hold under their paths."""
    _PROVIDED.update({file.path: file for file in files})


def file_of(module_name: str) -> UserFile | None:
    """Return the file that became this module; None for any other module."""
    return _RUN.get(module_name)


def run(file: UserFile) -> ModuleType:
    """Run a file, unless it has run in this process; returns its module. Raises whatever the code raises."""
    name = file.module_name
    if name in sys.modules:
        return sys.modules[name]
    module = importlib.util.module_from_spec(ModuleSpec(name, None, origin=file.path))
    module.__file__ = file.path
    sys.modules[name], _RUN[name] = module, file
    try:
        exec(compile(file.source, file.path, "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name], _RUN[name]
        raise
    return module


def file_at(name: str, key: str) -> UserFile:
    """Return the file of `path/to/file.py:name`. Raises BadInput, for `key`, if it cannot be read."""
    path = Path(name.rpartition(":")[0]).expanduser()
    resolved = str(path.resolve())
    if resolved in _PROVIDED:
        return _PROVIDED[resolved]
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(key, name, f"a file that can be read, and {path}: {error.strerror}") from None
    try:
        return UserFile(path=resolved, source=importlib.util.decode_source(content))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise BadInput(key, name, f"a file of Python, but it raised {said(error)}") from None


def source_of(name: str) -> str:
    """Return the text of the file of `path/to/file.py:name`. Raises BadInput if it cannot be read."""
    return file_at(name, "config").source


def module_of(name: str, key: str) -> ModuleType:
    """Return the module of `path/to/file.py:name`. Raises BadInput, for `key`, if it cannot be read or does not run."""
    file = file_at(name, key)
    with users_code(lambda said: BadInput(key, name, f"a file that imports, but it raised {said}")):
        return _within_patience(file)


def _within_patience(file: UserFile) -> ModuleType:
    """Run a file in a thread of its own, so that one that hangs ends this run and not the patience of its user.

    Raises RunFailed after PATIENCE_SECONDS, else whatever the code raises.
    """
    outcome: list[ModuleType | BaseException] = []

    def work() -> None:
        try:
            outcome.append(run(file))
        except BaseException as error:
            outcome.append(error)

    if file.module_name in sys.modules:
        return run(file)
    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    patience = float(os.environ.get("FEDBILEVEL_IMPORT_SECONDS", PATIENCE_SECONDS))
    worker.join(patience)
    if not outcome:
        sys.modules.pop(file.module_name, None)
        raise RunFailed(
            f"{file.path} has not been imported within {patience:g} s (FEDBILEVEL_IMPORT_SECONDS sets more)"
        )
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def public_callables(module: ModuleType) -> dict[str, Any]:
    """The functions and classes that a module defines itself, by name."""
    own = {name: value for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
    return {name: value for name, value in own.items() if callable(value) and not name.startswith("_")}
