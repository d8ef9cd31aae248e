"""Measures of predictive distributions against closed forms, hand counts and brute force."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.stats import norm

from server.kit.predictive import Classes, Curves
from server.uncertainty.scores import LEVELS, Scores, area


def ones(scores: Scores) -> dict[str, float]:
    return scores.measures(np.ones(len(scores.seed), np.int64))


def curves(factor: float, tasks: int = 4000) -> Scores:
    """Labels from N(m, v), of which the predictive distribution says N(m, v / factor^2)."""
    draw = np.random.default_rng(0)
    mean, deviation = draw.normal(size=(tasks, 5)), draw.uniform(0.5, 2.0, (tasks, 5))
    label = mean + deviation * draw.standard_normal((tasks, 5))
    parts = (mean, (deviation / factor) ** 2, label)
    return Scores.of(Curves(*(torch.from_numpy(each) for each in parts)), 0)


@pytest.mark.parametrize("factor", [1.0, 2.0, 0.5])
def test_the_coverage_of_a_deviation_that_is_off_by_a_factor(factor: float) -> None:
    found = ones(curves(factor))
    n = 20_000

    def covered(level: float) -> float:
        return float(2 * norm.cdf(norm.ppf((1 + level) / 2) / factor) - 1)

    for level in (0.5, 0.8, 0.95):
        p = covered(level)
        assert found[f"coverage_{round(100 * level)}"] == pytest.approx(p, abs=4 * (p * (1 - p) / n) ** 0.5)
    gap = np.mean([abs(covered(level) - level) for level in LEVELS])
    assert found["calibration_error"] == pytest.approx(gap, abs=0.01)


def test_the_likelihood_of_the_truth_is_its_entropy() -> None:
    scores = curves(1.0)
    variance = scores.doubt
    entropy = 0.5 * (np.log(2 * np.pi * variance) + 1)
    assert ones(scores)["nll"] == pytest.approx(entropy.mean(), abs=4 * (0.5 / 20_000) ** 0.5)
    assert ones(scores)["squared_error"] == pytest.approx(variance.mean(), rel=0.05)


P = [[[0.8, 0.2], [0.3, 0.7]], [[0.6, 0.4], [0.9, 0.1]]]  # two tasks, two queries, two classes
LABEL = [[0, 0], [0, 1]]


def test_classes_by_hand() -> None:
    scores = Scores.of(Classes(torch.tensor(P, dtype=torch.float64).log(), torch.tensor(LABEL)), 3)
    found = ones(scores)
    assert found["nll"] == pytest.approx(-np.log([0.8, 0.3, 0.6, 0.1]).mean())
    assert found["accuracy"] == 0.5
    assert found["calibration_error"] == pytest.approx((0.2 + 0.7 + 0.4 + 0.9) / 4)
    # 0.9 wrong, 0.8 right, 0.7 wrong, 0.6 right: risks 1, 1/2, 2/3, 1/2
    assert found["risk_coverage_area"] == pytest.approx((1 + 1 / 2 + 2 / 3 + 1 / 2) / 4)
    np.testing.assert_allclose(scores.risk_coverage(np.array([0.25, 0.5, 0.75, 1.0])), [1, 1 / 2, 2 / 3, 1 / 2])
    confidence, accuracy, share = scores.bins()
    np.testing.assert_allclose(confidence, [0.6, 0.7, 0.8, 0.9])
    assert (accuracy.tolist(), share.tolist()) == ([1, 0, 1, 0], [0.25] * 4)
    assert set(scores.seed) == {3}


def test_a_task_that_counts_twice_is_there_twice() -> None:
    draw = torch.Generator().manual_seed(0)
    logits, label = torch.randn(6, 4, 3, generator=draw), torch.randint(3, (6, 4), generator=draw)
    mean, variance, of = (torch.rand(6, 4, generator=draw) + 0.1 for _ in range(3))
    counts = np.array([2, 0, 1, 3, 1, 0])
    rows = torch.from_numpy(np.repeat(np.arange(6), counts))
    for whole, some in (
        (Classes(logits.log_softmax(-1), label), Classes(logits.log_softmax(-1)[rows], label[rows])),
        (Curves(mean, variance, of), Curves(mean[rows], variance[rows], of[rows])),
    ):
        expected = ones(Scores.of(some, 0))
        assert Scores.of(whole, 0).measures(counts) == pytest.approx(expected, rel=1e-9)


def brute(queries: list[int], losses: list[list[float]]) -> float:
    """The mean over all orders within groups of the mean of the means of the first n losses."""
    orders = [list(permutations(group)) for group in losses]
    found = []
    for first in orders[0]:
        for second in orders[1]:
            for third in orders[2]:
                run = np.cumsum([*first, *second, *third]) / np.arange(1, sum(queries) + 1)
                found.append(run.mean())
    return float(np.mean(found))


def test_equal_doubts_are_in_random_order() -> None:
    losses = [[1.0, 0.0, 0.5], [2.0], [0.0, 3.0, 0.25]]
    queries = [len(group) for group in losses]
    found = area(np.array(queries, float), np.array([sum(group) for group in losses]))
    assert found == pytest.approx(brute(queries, losses))


def test_doubt_is_compared_within_a_seed() -> None:
    label = torch.zeros(1, 2)
    one = Curves(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.1, 0.2]]), label)
    other = Curves(torch.tensor([[0.0, 2.0]]), torch.tensor([[20.0, 10.0]]), label)
    both = Scores.joined([Scores.of(one, 0), Scores.of(other, 1)])
    # seed 0: risks 1, (1 + 9) / 2; seed 1, the other way round: 4, (4 + 0) / 2
    assert ones(both)["risk_coverage_area"] == pytest.approx(((1 + 5) / 2 + (4 + 2) / 2) / 2)
    np.testing.assert_allclose(both.risk_coverage(np.array([0.5, 1.0])), [(1 + 4) / 2, (5 + 2) / 2])
    assert both.measures(np.array([2, 0]))["risk_coverage_area"] == pytest.approx((1 + 1 + 11 / 3 + 5) / 4)


def test_certainty_is_no_trouble() -> None:
    log_p = torch.tensor([[[0.0, -math.inf]]])
    found = ones(Scores.of(Classes(log_p, torch.tensor([[0]])), 0))
    assert (found["nll"], found["calibration_error"], found["accuracy"]) == (0.0, 0.0, 1.0)
