"""The split of each client's examples into two levels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedbilevel.data import split_levels
from tests.datasets import LABELS, parts_of, refused


@pytest.mark.parametrize("validation", [0.001, 0.2, 0.5, 0.999])
def test_split_levels(validation: float) -> None:
    indices = [*parts_of("size_skew", clients=60), np.array([5, 9])]
    lower, upper = split_levels(indices, validation=validation, seed=3)
    for mine, low, up in zip(indices, lower, upper, strict=True):
        assert sorted([*low, *up]) == mine.tolist()
        assert len(low) >= 1
        assert len(up) >= 1
        assert abs(len(up) - min(max(validation * len(mine), 1), len(mine) - 1)) <= 0.5
        assert low.dtype == up.dtype == np.int64


def test_split_levels_draws() -> None:
    """One client's draw depends on the seed and on its number, and not on the other clients."""
    indices = [np.arange(50)] * 3
    lower, upper = split_levels(indices, validation=0.4, seed=1)
    alone, _ = split_levels(indices[:1], validation=0.4, seed=1)
    other, _ = split_levels(indices, validation=0.4, seed=2)
    assert np.array_equal(lower[0], alone[0])
    assert not np.array_equal(lower[0], lower[1])
    assert not np.array_equal(lower[0], other[0])
    assert upper[0].tolist() != sorted(upper[0])


def test_both_levels_hold_the_classes_alike() -> None:
    """Even where a client's examples stand sorted by class; without a shuffle the distance would be 1."""
    parts = np.split(np.argsort(LABELS, kind="stable"), 2)
    for low, up in zip(*split_levels(parts, validation=0.5, seed=0), strict=True):
        share = [np.bincount(LABELS[part], minlength=10) / len(part) for part in (low, up)]
        assert np.abs(share[0] - share[1]).sum() / 2 < 0.1


@pytest.mark.parametrize("validation", [0, 1, 1.0, -0.1, 2, float("nan"), True, "0.5", None])
def test_split_levels_refuses_shares(validation: Any) -> None:
    refused(lambda: split_levels([np.arange(4)], validation=validation, seed=0), "data.validation", "between 0 and 1")


def test_split_levels_refuses_a_client_of_one_example() -> None:
    refused(
        lambda: split_levels([np.arange(4), np.arange(1)], validation=0.5, seed=0), "data.clients", "client 1 has 1"
    )
