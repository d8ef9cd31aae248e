"""Weights & Biases: a run per algorithm and seed, online or (WANDB_MODE=offline) in files below DIR/wandb."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import wandb
from wandb.proto.wandb_internal_pb2 import Record

from experiments.live.backend import About, Backend, State, Stream
from fedbilevel.errors import BadInput

PROJECT = "WANDB_PROJECT"
MODE = "WANDB_MODE"
_BLOCK = 32768
_HEADER = 7


class WandB(Backend):
    """Metrics by column, the round as the step; WANDB_PROJECT (default: fedbilevel) and WANDB_MODE are heeded.

    Raises BadInput where rows would go to a server that nobody has logged in to.
    """

    def __init__(self) -> None:
        if os.environ.get(MODE, "online") == "online" and not wandb.api.api_key:
            raise BadInput("--wandb", "no API key", f"after `wandb login`, or with {MODE}=offline in the environment")

    def begin(self, about: About) -> Stream:
        """Begin a run, or go on with the one that has this run's id."""
        held = max((step for file in _files(about) for step in _steps(file)), default=-1)
        run = wandb.init(
            project=os.environ.get(PROJECT) or "fedbilevel",
            id=about.id,
            name=about.name,
            group=about.job.label,
            config=about.config,
            dir=str(about.directory),
            resume="allow",
            reinit="create_new",  # with --jobs several go on at a time
            settings=wandb.Settings(silent=True, console="off"),
        )
        return _History(run, max(held, run.step - 1 if run.resumed else -1))

    def close(self) -> None:
        """Wait for the process that writes and sends: it is behind, also when a run is said to be over."""
        wandb.teardown()


class _History(Stream):
    def __init__(self, run: Any, held: int) -> None:
        self._run, self.held = run, held

    def write(self, round: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=round, commit=True)

    def end(self, state: State) -> None:
        self._run.finish(exit_code=0 if state == "finished" else 1)


def _files(about: About) -> list[Path]:
    """What earlier sessions have left of a run that was offline."""
    return sorted((about.directory / "wandb").glob(f"offline-run-*/run-{about.id}.wandb"))


def _steps(file: Path) -> Iterator[int]:
    """The steps of a run's file; a row that a kill has cut off is not among them."""
    for content in _records(file.read_bytes()):
        record = Record.FromString(content)
        if record.WhichOneof("record_type") == "history":
            yield record.history.step.num


def _records(content: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format: in blocks of 32 KiB, each fragment after its checksum, length and kind.

    The kinds: 1 a whole record, 2 its beginning, 3 its middle, 4 its end.
    """
    place, parts = _HEADER, b""
    while place + _HEADER <= len(content):
        if _BLOCK - place % _BLOCK < _HEADER:  # the rest of a block that has no place for a header is padding
            place += _BLOCK - place % _BLOCK
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        fragment = content[place + _HEADER : place + _HEADER + length]
        if len(fragment) < length or kind not in (1, 2, 3, 4):
            return
        parts = fragment if kind in (1, 2) else parts + fragment
        place += _HEADER + length
        if kind in (1, 4):
            yield parts
