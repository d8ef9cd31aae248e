"""What a run has found: its final x and y in `models/LABEL-SEED.safetensors`, with where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fedbilevel.errors import BadInput
from fedbilevel.results.files import file_name, write_whole

MODELS = "models"
"""The folder of a run directory that holds them."""
SCHEMA = "1"


@dataclass(frozen=True)
class Model:
    """Final x [dx] and y [dy] of one algorithm and seed, after so many iterations and rounds."""

    x: Tensor
    y: Tensor
    algorithm: str
    seed: int
    iteration: int
    round: int
    fingerprint: str


def write_model(folder: Path, name: str, x: Tensor, y: Tensor, told: Mapping[str, object]) -> None:
    """Write a model below a run directory, whole or not at all. Raises BadInput if it cannot be written."""
    try:
        (folder / MODELS).mkdir(exist_ok=True)
    except OSError as error:
        raise BadInput(str(folder / MODELS), error.strerror or str(error), "a folder that can be made") from error
    metadata = {"schema": SCHEMA, **{key: str(value) for key, value in told.items()}}
    tensors = {"x": x.detach().cpu().contiguous(), "y": y.detach().cpu().contiguous()}
    write_whole(folder / MODELS / f"{file_name(name)}.safetensors", save(tensors, metadata))


def has_model(folder: Path, name: str) -> bool:
    """Whether a run directory holds the model of this run."""
    return (folder / MODELS / f"{file_name(name)}.safetensors").is_file()


def read_models(folder: Path) -> list[Model]:
    """Every model of a run directory, in the order of the files' names.

    Raises BadInput, naming the file, for one that is damaged or something else.
    """
    return [_read(path) for path in sorted((folder / MODELS).glob("*.safetensors"))]


def _read(path: Path) -> Model:
    allowed = "a model of a run, which a completed run writes"
    try:
        with safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
            x, y = file.get_tensor("x"), file.get_tensor("y")
        if told["schema"] != SCHEMA:
            raise BadInput(str(path), f"schema {told['schema']}", f"a model of schema {SCHEMA}")
        seed, iteration, round = (int(told[key]) for key in ("seed", "iteration", "round"))
        return Model(x, y, told["algorithm"], seed, iteration, round, told["fingerprint"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(str(path), f"{type(error).__name__}: {error}", allowed) from error
