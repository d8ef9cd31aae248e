"""What the tests of data share: small arrays, labels, partitions of them, and the line of a refusal."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedbilevel.data import partition, split_levels
from fedbilevel.errors import BadInput

Arrays = dict[str, NDArray[Any]]
LABELS = np.random.default_rng(7).integers(0, 10, 3000)
OWNERS = np.random.default_rng(8).integers(100, 160, 3000)
"""3,000 examples: their labels, and whose they are."""
CASES: list[tuple[str, dict[str, Any]]] = [
    ("iid", {}),
    ("dirichlet", {}),
    ("dirichlet", {"alpha": 5, "min_size": 40}),
    ("pathological", {}),
    ("pathological", {"classes_per_client": 10}),
    ("shards", {}),
    ("shards", {"shards_per_client": 7}),
    ("size_skew", {}),
    ("size_skew", {"power": 3}),
    ("natural", {}),
]
"""Partitions and what they take: all of them, some twice."""


def skip_without_data(text: str) -> None:
    """Skip the test if a config or a piece of Python names a data set that is not at hand."""
    for word, file in (("mnist", "mnist.npz"), ("omniglot", "omniglot_small.npz")):
        if word in text and not (Path(os.environ.get("FEDBILEVEL_DATA", "")) / file).is_file():
            pytest.skip(f"{file} is not in $FEDBILEVEL_DATA")


def arrays(**changed: Any) -> Arrays:
    """Twelve small training examples of three classes and six for testing, with what is changed."""
    rng = np.random.default_rng(0)
    good: dict[str, Any] = {
        "x_train": rng.integers(0, 256, (12, 4, 4), dtype=np.uint8),
        "y_train": np.arange(12) % 3,
        "x_test": rng.integers(0, 256, (6, 4, 4), dtype=np.uint8),
        "y_test": np.arange(6) % 3,
    }
    return {key: value for key, value in {**good, **changed}.items() if value is not None}


def refused(call: Callable[[], object], key: str, *parts: str) -> str:
    """The one line of the BadInput that the call raises, which names the key and holds the parts."""
    with pytest.raises(BadInput) as caught:
        call()
    line = str(caught.value)
    assert caught.value.key == key
    assert "\n" not in line
    for part in parts:
        assert part in line
    return line


def parts_of(name: str, clients: int = 20, seed: int = 0, **parameters: Any) -> list[NDArray[np.int64]]:
    return partition(LABELS, name=name, clients=clients, seed=seed, owners=OWNERS, **parameters)


def fingerprint() -> str:
    """Of every case, in one number."""
    digest = hashlib.sha256()
    for name, parameters in CASES:
        lower, upper = split_levels(parts_of(name, **parameters), validation=0.25, seed=5)
        for part in [*lower, *upper]:
            digest.update(part.tobytes() + b"|")
    return digest.hexdigest()
