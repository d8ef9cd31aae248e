"""Checkpoints: where each run of an experiment can go on after an interruption."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from fedbilevel.errors import BadInput, said
from fedbilevel.federation.ledger import Ledger
from fedbilevel.results.files import file_name, write_whole
from server.kit.algorithm import State

SCHEMA = 3
_MAGIC = f"fedbilevel checkpoint {SCHEMA}\n".encode()
_DIGEST = hashlib.blake2b().digest_size
_ANY_CLASS = ConfigDict(arbitrary_types_allowed=True)


@dataclass(frozen=True)
class _Federation:
    """What `Federation.remembered` gives."""

    __pydantic_config__ = ConfigDict(arbitrary_types_allowed=True, revalidate_instances="always")

    lost: int = 0
    repeated: int = 0
    dropped: int = 0
    last: dict[str, Tensor] = field(default_factory=dict)
    downlink: dict[str, tuple[Tensor, list[int]]] = field(default_factory=dict)
    clips: dict[str, float] = field(default_factory=dict)
    groups: dict[int, int] = field(default_factory=dict)


_REMEMBERED = TypeAdapter(_Federation)


@dataclass(frozen=True)
class Checkpoint:
    """Where a run can go on: its state after `iteration` iterations, the time spent and the ledger's totals.

    evaluations: the rows made so far; federation: what it carries on beside the ledger.
    """

    state: State
    iteration: int
    seconds: float
    ledger: Mapping[str, int | float]
    evaluations: int = 0
    federation: Mapping[str, Any] = field(default_factory=lambda: vars(_Federation()))


class Checkpoints:
    """A folder with the latest checkpoint of each unfinished run: its frozen state, its time and its ledger.

    A file holds the schema's number, a digest of its content, and the content, in which name and `fingerprint` of the
    run stand: a flipped bit, the file of another run or of another config is refused, never half used.
    """

    def __init__(self, folder: Path, fingerprint: str = "") -> None:
        self.folder, self.fingerprint = folder, fingerprint

    def _path(self, name: str) -> Path:
        return self.folder / f"{file_name(name)}.pt"

    def save(self, name: str, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, whole or not at all."""
        content = {
            "run": name,
            "fingerprint": self.fingerprint,
            "state": {each.name: getattr(checkpoint.state, each.name) for each in fields(checkpoint.state)},
            "iteration": checkpoint.iteration,
            "evaluations": checkpoint.evaluations,
            "seconds": checkpoint.seconds,
            "ledger": dict(checkpoint.ledger),
            "federation": dict(checkpoint.federation),
        }
        packed = io.BytesIO()
        torch.save(content, packed)
        with contextlib.suppress(FileExistsError):
            self.folder.mkdir()
        body = packed.getvalue()
        write_whole(self._path(name), _MAGIC + hashlib.blake2b(body).digest() + body)

    def load(self, name: str, first: State) -> Checkpoint | None:
        """The checkpoint of a run whose first state is `first`, None if there is none.

        Raises BadInput for a damaged file, and for one of another run, another config or another version.
        """
        path = self._path(name)
        if not path.is_file():
            return None
        try:
            return self._checked(path.read_bytes(), name, first)
        except Exception as error:  # of a strange file the unpickler and the tensors raise almost anything
            said = " ".join(
                (str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}").split()
            )
            allowed = f"a checkpoint of this run ({said[:100]}); delete it to start this run over"
            raise BadInput("checkpoint", str(path), allowed) from error

    def remove(self) -> None:
        """Delete the checkpoints: every run is done."""
        with contextlib.suppress(OSError):  # what cannot be deleted does no harm
            for file in self.folder.glob("*.pt"):
                file.unlink()
            self.remove_parts()
            self.folder.rmdir()

    def remove_parts(self) -> None:
        """Delete what a killed writer may have left."""
        for file in self.folder.glob(".*.part"):
            with contextlib.suppress(OSError):
                file.unlink()

    def _checked(self, held: bytes, name: str, first: State) -> Checkpoint:
        """Return what a file holds. Raises ValueError, TypeError or KeyError for what is no checkpoint of this run."""
        body = held[len(_MAGIC) + _DIGEST :]
        if not held.startswith(_MAGIC):
            raise ValueError("another kind of file, or of another version")
        if hashlib.blake2b(body).digest() != held[len(_MAGIC) : len(_MAGIC) + _DIGEST]:
            raise ValueError("its bytes have changed")
        content: dict[str, Any] = torch.load(io.BytesIO(body), weights_only=True)
        if content["run"] != name:
            raise ValueError(f"it is of the run {content['run']}")
        if content["fingerprint"] != self.fingerprint:
            raise ValueError("it is of another config: config.toml or a file that it names has changed")
        state = replace(first, **content["state"])
        _hold(state, first)
        totals = {total: _number(content["ledger"][total], type(value)) for total, value in Ledger().totals().items()}
        iteration, evaluations = (_number(content[each], int) for each in ("iteration", "evaluations"))
        seconds, federation = float(_number(content["seconds"], float)), _remembered(content["federation"])
        return Checkpoint(state, int(iteration), seconds, totals, int(evaluations), federation)


def _remembered(held: Any) -> Mapping[str, Any]:
    """Raises ValueError for what a federation has not remembered."""
    try:
        return vars(_REMEMBERED.validate_python(_Federation(**held), strict=True))
    except (ValidationError, TypeError) as error:
        raise ValueError(f"what the federation remembers: {said(error)}") from None


def _number(value: object, kind: type[int] | type[float]) -> int | float:
    """Raises ValueError for a count or a time that is none."""
    if type(value) is not kind or not math.isfinite(value) or value < 0:
        raise ValueError(f"{value!r} where {'a count' if kind is int else 'a time'} should be")
    return value


def _hold(state: State, first: State) -> None:
    """Hold every field of a state against its declared type, and its tensors against x, y and the first state's."""
    try:
        hints = typing.get_type_hints(type(state))
    except NameError:  # of a user's own state, annotated with what only a type checker sees
        hints = {}
    shapes = {first.x.shape, first.y.shape}
    for each in fields(state):
        value, at_first = getattr(state, each.name), getattr(first, each.name)
        try:
            adapter: TypeAdapter[Any] = TypeAdapter(hints.get(each.name, Any), config=_ANY_CLASS)
            adapter.validate_python(value, strict=True)
        except ValidationError:
            raise ValueError(f"{each.name} is of the type {type(value).__name__}") from None
        within = value.values() if isinstance(value, Mapping) else ()
        if any(isinstance(held, Tensor) and held.dtype != first.x.dtype for held in within):
            raise ValueError(f"{each.name} has another dtype")
        if isinstance(value, Tensor):
            fits = value.shape == at_first.shape if isinstance(at_first, Tensor) else value.shape in shapes
            if not fits or value.dtype != first.x.dtype:
                raise ValueError(f"{each.name} has another shape or dtype")
