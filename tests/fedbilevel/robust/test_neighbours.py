# Squared distances of vectors that nearly agree, are huge or lie in clusters, and who is nearest by them.

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedbilevel.robust.columns import means
from fedbilevel.robust.neighbours import krum_order, neighbourhoods, squared_distances
from tests.fedbilevel.robust import naive

N = 20


def situation(name, d, dtype):
    rng = np.random.default_rng(d)
    rows = rng.normal(size=(N, d))
    match name:
        case "agreeing":
            rows = 1e3 + 1e-2 * rows
        case "one far":
            rows[0] = 1e6
        case "clusters":
            rows = 1e-3 * rows + np.where(np.arange(N)[:, None] % 3 == 0, 1e4, -1e4)
        case "huge":
            rows[:7] = 1e30
            rows[8] = -1e30
            rows[3:7] *= 1.0 + 1e-6 * rng.normal(size=(4, d))
        case "alike":
            rows[12:] = rows[:12].mean(0) - rows[:12].std(0)
        case "whole":
            rows = rng.integers(-1, 2, size=(N, d)) + 1000.0
            rows[15:] = rows[2]
        case "equal":
            rows[:] = rows[0]
    return rows.astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("d", [1, 40, 3001])
@pytest.mark.parametrize("name", ["plain", "agreeing", "one far", "clusters", "huge", "alike", "whole", "equal"])
def test_distances_and_neighbours_as_by_loops_over_pairs(name, d, dtype):
    rows = situation(name, d, dtype)
    exact = rows.astype(np.float64)
    found = squared_distances(torch.from_numpy(rows))
    expected = np.array([[naive.squared_distance(a, b) for b in exact] for a in exact])
    assert torch.equal(found, found.t())
    assert (np.abs(found.numpy() - expected) <= 1e-12 * expected).all()
    if name in ("equal", "whole", "plain"):  # ties, and ties that are broken by rounding in neither
        for f in (0, 3, 8):
            chosen = neighbourhoods(torch.from_numpy(rows), f)
            expected = [sorted(near) for near in naive.nearest(exact, f)]
            assert [row.nonzero()[:, 0].tolist() for row in chosen] == expected
            assert krum_order(torch.from_numpy(rows), f).tolist() == naive.krum_order(exact, f)


def test_of_equal_distances_the_lower_index_is_nearer():
    rows = torch.tensor([[0.0], [1.0], [-1.0]])
    assert neighbourhoods(rows, 1).tolist() == [[1, 1, 0], [1, 1, 0], [1, 0, 1]]


def test_mixed_by_hand():
    """With f = 1 of 0, 1, 3 and 10: thrice the mean of 0, 1 and 3, and of 10, 3 and 1."""
    rows = torch.tensor([[0.0], [1.0], [3.0], [10.0]])
    assert (means(rows, neighbourhoods(rows, 1))[:, 0] * 3).tolist() == pytest.approx([4, 4, 4, 14], rel=1e-15)


def test_infinite_distances_are_no_nan():
    rows = torch.tensor(situation("plain", 3001, "float64"))
    rows[:2] = torch.tensor([[1e200], [-1e200]])
    found = squared_distances(rows)
    assert not found.isnan().any()
    assert torch.allclose(found[2:, 2:], squared_distances(rows[2:]), rtol=1e-12)
