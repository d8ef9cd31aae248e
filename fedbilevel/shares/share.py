"""A share as a file: what one party of a deployment holds of a problem, and of which problem it is.

A file is an npz archive without pickles: arrays, and beside them JSON that says how they belong together.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile

import numpy as np

from fedbilevel.config.setup import Setup
from fedbilevel.errors import NOTHING, BadInput
from fedbilevel.problem import Problem
from fedbilevel.results.files import PathLike, write_whole
from fedbilevel.shares.codec import Arrays, decode, encode
from fedbilevel.shares.cut import measuring

SCHEMA = 1
_HEADER = "share"


@dataclass(frozen=True)
class Share:
    """A part of a problem: that of one node, which holds the clients first..end-1, or the server's (partition None).

    recipe: what the problem was made of (`Setup.recipe`); partitions: how many nodes there are; measures: what the
    server can evaluate, and `lost` what it cannot, since it would take the clients' examples.
    """

    path: str
    recipe: dict[str, Any]
    partition: int | None
    partitions: int
    first: int
    end: int
    measures: list[str]
    lost: list[str]
    told: Any
    arrays: Arrays

    @classmethod
    def of(
        cls,
        problem: Problem,
        setup: Setup,
        partition: int | None,
        partitions: int,
        span: tuple[int, int] = (0, 0),
        measures: tuple[list[str], list[str]] = ([], []),
    ) -> Share:
        """The share that holds this part of a problem. Raises BadInput for what cannot be written."""
        arrays: Arrays = {}
        try:
            told = encode(problem, arrays, "problem")
        except TypeError as error:
            name = setup.problem_table.name
            raise BadInput("problem.name", name, f"a problem of plain values and tensors, and {error}") from None
        return cls("", setup.recipe(), partition, partitions, *span, *measures, told, arrays)

    def write(self, path: PathLike) -> None:
        """Write the file, whole or not at all. Raises BadInput."""
        header = {name: getattr(self, name) for name in _FIELDS} | {"schema": SCHEMA}
        text = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)

        def content(file: BinaryIO) -> None:
            np.savez(file, **{_HEADER: text}, **self.arrays)  # type: ignore[arg-type]  # names are not `allow_pickle`

        write_whole(path, content)

    @classmethod
    def read(cls, path: PathLike) -> Share:
        """Read a file. Raises BadInput for one that is no share."""
        allowed = "a file that `fedbilevel deal` has written"
        try:
            with np.load(Path(path).expanduser(), allow_pickle=False) as file:
                arrays = dict(file)
            header = json.loads(arrays.pop(_HEADER).tobytes())
            if header.pop("schema") != SCHEMA:
                raise BadInput("data", str(path), f"{allowed}, with the schema {SCHEMA}")
            return cls(str(path), **header, arrays=arrays)
        except OSError as error:
            raise BadInput("data", str(path), f"{allowed} ({error.strerror or error})") from None
        except (ValueError, KeyError, TypeError, AttributeError, EOFError, BadZipFile) as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput("data", str(path), allowed) from None

    def problem(self, setup: Setup) -> Problem:
        """The problem of a run. Raises BadInput, naming the key, where the run is not of what this was dealt from."""
        self._hold(setup)
        try:
            problem: Problem = decode(self.told, self.arrays)
        except (KeyError, TypeError) as error:
            raise BadInput("data", self.path, f"a share of this version's: {error}") from None
        return measuring(problem, self.measures) if self.lost else problem

    def _hold(self, setup: Setup) -> None:
        wanted, found = _flat(setup.recipe()), _flat(self.recipe)
        for key in sorted(wanted.keys() | found.keys()):
            asked, dealt = wanted.get(key, NOTHING), found.get(key, NOTHING)
            if asked != dealt:
                raise BadInput(key, asked, f"{dealt!r}, of which {Path(self.path).name} was dealt")


_FIELDS = ("recipe", "partition", "partitions", "first", "end", "measures", "lost", "told")


def _flat(recipe: dict[str, Any]) -> dict[str, Any]:
    """The entries of a recipe by the keys that a config has for them."""
    flat: dict[str, Any] = {}
    for table, inner in recipe.items():
        flat |= {f"{table}.{key}": value for key, value in inner.items()} if isinstance(inner, dict) else {table: inner}
    return flat
