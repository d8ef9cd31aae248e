"""Checkpoints: where each run of an experiment can go on after an interruption."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from torch import Tensor

from fedbilevel.errors import BadInput
from fedbilevel.federation.ledger import Ledger
from fedbilevel.results.files import write_whole
from server.kit.algorithm import State


@dataclass(frozen=True)
class Checkpoint:
    """Where a run can go on: its state after `iteration` iterations, the time spent and the ledger's totals."""

    state: State
    iteration: int
    seconds: float
    ledger: Mapping[str, int | float]


class Checkpoints:
    """A folder with the latest checkpoint of each unfinished run: its frozen state, its time and its ledger."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _path(self, name: str) -> Path:
        plain = quote(name, safe=" ")
        if len(plain) > 150:
            plain = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
        return self.folder / f"{plain}.pt"

    def save(self, name: str, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, whole or not at all."""
        state = {each.name: getattr(checkpoint.state, each.name) for each in fields(checkpoint.state)}
        content = {
            "state": state,
            "iteration": checkpoint.iteration,
            "seconds": checkpoint.seconds,
            "ledger": dict(checkpoint.ledger),
        }
        with contextlib.suppress(FileExistsError):
            self.folder.mkdir()
        write_whole(self._path(name), lambda file: torch.save(content, file))

    def load(self, name: str, first: State) -> Checkpoint | None:
        """The checkpoint of a run whose first state is `first`, None if there is none.

        Raises BadInput for a damaged file.
        """
        path = self._path(name)
        if not path.is_file():
            return None
        try:
            return _checked(torch.load(path, weights_only=True), first)
        except Exception as error:  # of a damaged file the archive, the unpickler and the tensors raise almost anything
            said = " ".join(f"{type(error).__name__}: {error}".split())[:80]
            allowed = f"a checkpoint of this run ({said}); delete it to start this run over"
            raise BadInput("checkpoint", str(path), allowed) from error

    def remove(self) -> None:
        """Delete the checkpoints: every run is done."""
        with contextlib.suppress(OSError):  # what cannot be deleted does no harm
            for pattern in ("*.pt", ".*.part"):
                for file in self.folder.glob(pattern):
                    file.unlink()
            self.folder.rmdir()


def _checked(content: dict[str, Any], first: State) -> Checkpoint:
    """Return what a file holds. Raises ValueError, TypeError or KeyError for what is no checkpoint of this run."""
    state = replace(first, **content["state"])
    for name in ("x", "y"):
        held, expected = getattr(state, name), getattr(first, name)
        if not isinstance(held, Tensor) or held.shape != expected.shape or held.dtype != expected.dtype:
            raise ValueError(f"{name} has another shape or dtype")
    ledger = {name: type(value)(content["ledger"][name]) for name, value in Ledger().totals().items()}
    return Checkpoint(state, int(content["iteration"]), float(content["seconds"]), ledger)
