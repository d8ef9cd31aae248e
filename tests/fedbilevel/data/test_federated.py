"""A data set spread over clients: which rows each level holds, what a client weighs, and what is kept for testing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedbilevel.data import FederatedData, federate
from fedbilevel.errors import BadInput

TRAIN, TEST = 60, 20


@pytest.fixture
def _numbered(folder: Path) -> None:
    """A data set of which an example's first feature is its row, and that of a test example 1000 + its row."""
    x = np.zeros((TRAIN + TEST, 3), np.float32)
    x[:, 0] = [*range(TRAIN), *range(1000, 1000 + TEST)]
    y = (np.arange(TRAIN + TEST) * 7) % 4
    arrays = {"x_train": x[:TRAIN], "y_train": y[:TRAIN], "x_test": x[TRAIN:], "y_test": y[TRAIN:]}
    np.savez(folder / "rows.npz", owners=np.arange(TRAIN) % 6, **arrays)


def spread(**settings: Any) -> FederatedData:
    return federate("rows", **{"clients": 5, "partition_name": "size_skew", "seed": 2} | settings)


def rows_of(data: FederatedData, level: str) -> list[list[int]]:
    """The rows of the data set that each client holds; every label is that of its row."""
    held = getattr(data.clients, level)
    rows = held.values["input"][:, 0].long().numpy()
    assert held.values["label"].tolist() == [(row * 7) % 4 for row in rows]
    return [rows[a:b].tolist() for a, b in zip(held.offsets[:-1], held.offsets[1:], strict=True)]


@pytest.mark.usefixtures("_numbered")
def test_the_levels_share_no_row_and_together_hold_every_one_of_the_training_set() -> None:
    data = spread()
    lower, upper = rows_of(data, "lower"), rows_of(data, "upper")
    assert sorted(row for rows in (*lower, *upper) for row in rows) == list(range(TRAIN))
    assert len(lower) == len(upper) == 5


@pytest.mark.usefixtures("_numbered")
@pytest.mark.parametrize("validation", [0.2, 0.5, 0.75])
def test_validation_is_the_share_of_the_upper_level(validation: float) -> None:
    for low, up in zip(*(rows_of(spread(validation=validation), level) for level in ("lower", "upper")), strict=True):
        n = len(low) + len(up)
        assert abs(len(up) - min(max(validation * n, 1), n - 1)) <= 0.5


@pytest.mark.usefixtures("_numbered")
def test_the_test_set_is_what_was_held_out() -> None:
    data = spread()
    assert data.x_test[:, 0].tolist() == list(range(1000, 1000 + TEST))
    assert data.y_test.tolist() == [((TRAIN + k) * 7) % 4 for k in range(TEST)]
    assert (data.classes, data.features) == (4, 3)


@pytest.mark.usefixtures("_numbered")
def test_clients_weigh_what_was_asked_for() -> None:
    sizes = np.array([len(low) + len(up) for low, up in zip(*both(spread()), strict=True)])
    assert len(set(sizes)) > 1
    np.testing.assert_allclose(spread().clients.weights, sizes / TRAIN, rtol=1e-15)
    np.testing.assert_allclose(spread(weights="uniform").clients.weights, [0.2] * 5, rtol=1e-15)
    np.testing.assert_allclose(spread(weights=[1, 2, 3, 4, 10]).clients.weights, [0.05, 0.1, 0.15, 0.2, 0.5])
    with pytest.raises(BadInput, match=r"clients\.weights: got \[1, 2\]; .* 5 positive numbers"):
        spread(weights=[1, 2])


def both(data: FederatedData) -> tuple[list[list[int]], list[list[int]]]:
    return rows_of(data, "lower"), rows_of(data, "upper")


def unions(data: FederatedData) -> list[list[int]]:
    return [sorted([*low, *up]) for low, up in zip(*both(data), strict=True)]


@pytest.mark.usefixtures("_numbered")
def test_the_seed_draws_the_partition_and_the_levels() -> None:
    assert both(spread()) == both(spread())
    assert unions(spread()) != unions(spread(seed=3))
    # a client for every owner: whatever the seed, the same clients
    first, second = (spread(partition_name="natural", clients=6, seed=seed) for seed in (2, 3))
    assert unions(first) == unions(second) == [list(range(owner, TRAIN, 6)) for owner in range(6)]
    assert both(first)[0] != both(second)[0]


@pytest.mark.usefixtures("_numbered")
def test_a_partition_gets_its_parameters() -> None:
    shards = spread(partition_name="shards", parameters={"shards_per_client": 1})
    assert all(len({(row * 7) % 4 for row in rows}) <= 2 for rows in unions(shards))
