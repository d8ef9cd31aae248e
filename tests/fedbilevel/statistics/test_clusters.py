"""The bootstrap over seeds and their tasks against the variance that it has in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from fedbilevel.statistics.clusters import Interval, clustered, resampled


def test_every_draw_is_of_whole_seeds_and_of_their_tasks() -> None:
    clusters = np.array([4, 4, 4, 1, 1, 9])
    counts = resampled(clusters, 200)
    of_seed = np.stack([counts[:, clusters == seed].sum(1) for seed in (4, 1, 9)], 1)
    chosen = of_seed / [3, 2, 1]
    assert (chosen == chosen.round()).all()
    assert (chosen.sum(1) == 3).all()
    assert (counts == resampled(clusters, 200)).all()


def test_the_spread_is_that_of_two_stages() -> None:
    draw = np.random.default_rng(3)
    S, n = 6, 50
    values = draw.normal(draw.normal(0, 0.5, (S, 1)), 2.0, (S, n))
    clusters = np.repeat(np.arange(S), n)
    means = resampled(clusters, 4000) @ values.ravel() / (S * n)
    expected = values.mean(1).var() / S + values.var(1).mean() / (S * n)
    assert means.var() == pytest.approx(
        expected, rel=0.1
    )  # four standard errors of a variance: 4 sqrt(2 / 4000) = 0.09
    found = clustered(lambda counts: {"mean": float(counts @ values.ravel() / counts.sum())}, clusters, 4000)["mean"]
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * expected**0.5, rel=0.1)


def test_where_tasks_of_a_seed_are_alike_only_seeds_count() -> None:
    clusters = np.repeat([0, 1], 30)
    found = clustered(lambda counts: {"x": float(counts @ clusters / counts.sum())}, clusters)["x"]
    assert found == Interval(0.5, 0.0, 1.0)  # both draws are of the same seed half of the time
