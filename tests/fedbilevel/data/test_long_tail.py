"""The long tail: class counts by hand, who keeps what, and factors that make one mean over all examples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedbilevel import ClientData
from fedbilevel.data.long_tail import class_sizes, long_tailed
from fedbilevel.data.scaling import plain_mean
from fedbilevel.problem import Ragged
from tests.datasets import refused


def clients(*labels: list[int], weights: Any = "size") -> ClientData:
    """Clients with these labels on both levels; each example's input is its place among all."""
    start, parts = 0, []
    for own in labels:
        place = torch.arange(start, start + len(own), dtype=torch.float32)
        parts.append({"input": place[:, None], "label": torch.tensor(own)})
        start += len(own)
    return ClientData(parts, parts, weights)


MIXED = clients([0] * 9 + [1] * 3, [1] * 6 + [2] * 2, [2] * 4 + [0])


def test_class_sizes_by_hand() -> None:
    assert class_sizes(3, 100, 100).tolist() == [100, 10, 1]
    assert class_sizes(3, 8, 4).tolist() == [8, 4, 2]
    assert class_sizes(4, 7, 1).tolist() == [7, 7, 7, 7]
    assert class_sizes(10, 1000, 100).tolist() == [1000, 599, 359, 215, 129, 77, 46, 28, 17, 10]


def test_each_level_has_its_counts_and_clients_keep_examples_of_their_own() -> None:
    thin = long_tailed(MIXED, np.array([8, 4, 2]), 3, seed=1)
    assert torch.bincount(thin.lower.values["label"]).tolist() == [8, 4, 2]
    assert torch.bincount(thin.upper.values["label"]).tolist() == [3, 3, 3]
    assert thin.weights.tolist() == MIXED.weights.tolist()
    for level, whole in ((thin.lower, MIXED.lower), (thin.upper, MIXED.upper)):
        for i in range(3):
            rows = level.values["input"][level.offsets[i] : level.offsets[i + 1], 0].long()
            assert len(set(rows.tolist())) == len(rows) >= 1
            assert whole.offsets[i] <= int(rows.min())
            assert int(rows.max()) < whole.offsets[i + 1]
            own = level.values["label"][level.offsets[i] : level.offsets[i + 1]]
            assert torch.equal(own, whole.values["label"][rows])


def test_the_seed_draws_what_is_kept() -> None:
    kept = [long_tailed(MIXED, np.array([4, 4, 2]), 2, seed=seed).lower.values["input"].tolist() for seed in (1, 1, 2)]
    assert kept[0] == kept[1] != kept[2]


def test_a_client_that_would_keep_nothing_keeps_one_example_of_another() -> None:
    for seed in range(3):
        level = long_tailed(clients([0] * 90 + [1] * 9, [0, 1], [0, 1]), np.array([5, 3]), 3, seed=seed).lower
        assert min(level.sizes) >= 1
        assert torch.bincount(level.values["label"]).tolist() == [5, 3]


def test_what_no_draw_can_give_is_refused() -> None:
    counts = np.array([8, 4, 2])
    refused(lambda: class_sizes(10, 40, 100), "problem.imbalance", "at most 80", "class 9")
    refused(lambda: class_sizes(10, 0, 1), "problem.largest", "at least 1")
    refused(lambda: class_sizes(10, 10, 0.5), "problem.imbalance", "at least 1")
    refused(lambda: class_sizes(10, 10, float("nan")), "problem.imbalance", "at least 1")
    refused(lambda: long_tailed(MIXED, np.array([11, 4, 2]), 3, seed=0), "problem.largest", "class 0", "at most 10")
    refused(lambda: long_tailed(MIXED, counts, 7, seed=0), "problem.upper_examples", "class 2", "at most 6")
    refused(lambda: long_tailed(MIXED, counts, 0, seed=0), "problem.upper_examples", "at least 1")
    narrow = clients([0] * 5 + [1], [1], [1])
    refused(lambda: long_tailed(narrow, np.array([5, 1]), 3, seed=0), "problem.largest", "client", "[1]")


@pytest.mark.parametrize("weights", [[0.2, 0.5, 0.3], [0.9, 0.05, 0.05]])
def test_scaled_losses_have_the_plain_mean(weights: list[float]) -> None:
    level, p = Ragged(torch.zeros(9), np.array([0, 4, 6, 9])), np.array(weights)
    losses = np.random.default_rng(0).random(9)
    for marked in (np.ones(9, bool), np.array([1, 0, 0, 1, 0, 0, 1, 1, 0], bool)):
        scaled = plain_mean(level, p, torch.from_numpy(marked)).numpy() * losses
        means = [scaled[a:b].mean() for a, b in ((0, 4), (4, 6), (6, 9))]
        assert float(p @ means) == pytest.approx(losses[marked].mean(), rel=1e-14)
