"""The one way a result reaches the disk: whole, or not at all."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from fedbilevel.errors import BadInput

PathLike = str | os.PathLike[str]


def write_whole(path: PathLike, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Put `content` at `path` in one step.

    The bytes (or what `content` writes to the file that it is given) go to a temporary file in the same folder, are
    flushed to the disk, and only then take the place of `path`. Whoever reads `path` sees the old file or the new one,
    also after a crash. A write that fails removes its temporary file and leaves the old file as it was; a process that
    is killed may leave a hidden `.NAME.*.part` behind, which nothing reads.

    Raises `BadInput`, naming the path and the system's reason, if the file cannot be written.
    """
    target = Path(os.path.realpath(path))  # a link keeps pointing where it points; the file behind it is replaced
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        try:
            with open(temporary, "xb") as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        allowed = "a file in a folder that can be written to, with space left"
        raise BadInput(os.fspath(path), error.strerror or str(error), allowed) from error
    _flush_folder(target.parent)


def csv_text(rows: Iterable[Mapping[str, object]], columns: Iterable[str]) -> str:
    r"""Rows as csv with a header; None and what a row lacks are empty fields, a truth is true or false.

    >>> csv_text([{"a": None, "b": True}, {"b": 0.5}], ["a", "b"])
    'a,b\n,true\n,0.5\n'
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: str(value).lower() if isinstance(value, bool) else value for key, value in row.items()})
    return text.getvalue()


def write_csv(path: PathLike, rows: Iterable[Mapping[str, object]], columns: Iterable[str]) -> None:
    """Write `csv_text` whole or not at all. Raises BadInput as `write_whole` does."""
    write_whole(path, csv_text(rows, columns).encode())


def file_name(run: str) -> str:
    """A run's name as a file's: readable, or a digest where it is too long."""
    plain = quote(run, safe=" ")
    return plain if len(plain) <= 150 else hashlib.blake2b(run.encode(), digest_size=16).hexdigest()


def _flush_folder(folder: Path) -> None:
    """Make the new name itself survive a power cut, where the file system can do so."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
