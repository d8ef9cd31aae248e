"""The file that holds the trials of a tuning, as Optuna writes it, for one process at a time."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from fedbilevel.errors import BadInput

if TYPE_CHECKING:
    from optuna.storages import JournalStorage

if sys.platform != "win32":  # where nothing keeps two processes apart
    import fcntl

JOURNAL = "study.journal"


@contextlib.contextmanager
def journal(folder: Path) -> Iterator[JournalStorage]:
    """Have a folder's journal to oneself while this lasts; it is made where there is none.

    Raises BadInput for one that another process has, and for one that cannot be written to.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

    class Held(JournalFileSymlinkLock):
        """Optuna's own lock outlives a process that is killed; that of the system, which is held here, does not."""

        def acquire(self) -> bool:
            return True

        def release(self) -> None:
            pass

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = folder / JOURNAL
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "ab+"))
        except OSError as error:
            raise BadInput("out", str(path), f"a file that can be written to ({error.strerror or error})") from error
        _hold(file.fileno(), folder)
        _cut(file)
        yield JournalStorage(JournalFileBackend(str(path), lock_obj=Held(str(path))))


def _hold(descriptor: int, folder: Path) -> None:
    if sys.platform != "win32":
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput("out", str(folder), "the folder of a tuning that no other process goes on with") from None


def _cut(file: BinaryIO) -> None:
    """Take off what a process that was killed has left of a line."""
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)
