"""How answers become one: means over a sampled set, their weights, and measures."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from clients.operations import local, oracles
from tests.federations import DY, PROBLEM, M, X, Y, federation
from tests.reference import Client, clients_of


def test_several_operations_share_a_round() -> None:
    fed = federation()
    gradient, fy = fed.mean(oracles.lower_gradient, oracles.upper_gradient_y, x=X, y=Y)
    x, y = fed.mean(local.joint_steps, x=X, y=Y, upper_step=0.1, lower_step=0.1, lower_weight=1.0, local_steps=2)
    assert fed.ledger.rounds == 2
    assert fed.ledger.vectors_up == 4 * M
    assert fed.ledger.vectors_down == 2 * M
    clients = clients_of(PROBLEM)
    for found, one in ((gradient, Client.gy), (fy, Client.fy)):
        expected = sum(c.p * one(c, X.numpy(), Y.numpy()) for c in clients)
        assert np.allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12)
    assert (x.shape, y.shape) == (X.shape, Y.shape)


def test_measures_are_not_counted_and_see_every_client() -> None:
    fed = federation(clients_per_round=2)
    upper, lower = fed.measure(oracles.losses, x=X, y=Y).tolist()
    assert fed.ledger.totals() == dict.fromkeys(fed.ledger.totals(), 0)
    f = g = 0.0
    data = PROBLEM.clients
    for i, p in enumerate(data.weights):
        for level in ("lower", "upper"):
            ragged = getattr(data, level)
            rows = slice(int(ragged.offsets[i]), int(ragged.offsets[i + 1]))
            loss = getattr(PROBLEM, level)(X, Y, {key: value[rows] for key, value in ragged.values.items()})
            f, g = (f, g + p * float(loss.mean())) if level == "lower" else (f + p * float(loss.mean()), g)
    assert (upper, lower) == pytest.approx((f, g), rel=1e-12)


def test_a_mean_needs_what_its_operations_read_and_takes_nothing_else() -> None:
    fed = federation()
    with pytest.raises(TypeError, match=r"read \['y'\]"):
        fed.mean(oracles.lower_gradient, x=X)
    with pytest.raises(TypeError, match=r"do not take \['v'\]"):
        fed.mean(oracles.lower_gradient, x=X, y=Y, v=Y)


def test_unbiased_means_average_to_the_full_mean_over_all_sets() -> None:
    """Of a gradient, and of an iterate, which moves by the weighted displacements; normalised weights do not."""
    full = federation()
    steps = {"lower_step": 0.3, "local_steps": 3}
    expected = full.mean(oracles.lower_gradient, x=X, y=Y), full.mean(local.sgd_steps, x=X, y=Y, **steps)
    for weighting in ("unbiased", "normalised"):
        fed = federation(weighting=weighting)
        totals = [torch.zeros(DY, dtype=torch.float64) for _ in range(2)]
        sets = list(itertools.combinations(range(M), 3))
        for chosen in sets:
            fed.sampled = np.array(chosen)
            totals[0] += fed.mean(oracles.lower_gradient, x=X, y=Y) / len(sets)
            totals[1] += fed.mean(local.sgd_steps, x=X, y=Y, **steps) / len(sets)
        for total, wanted in zip(totals, expected, strict=True):
            error = float((total - wanted).norm() / wanted.norm())
            assert (error < 1e-12) == (weighting == "unbiased")


def test_an_iterate_at_rest_stays_with_unbiased_weights() -> None:
    fed = federation(weighting="unbiased", clients_per_round=2)
    for k in range(5):
        fed.begin(k)
        y = fed.mean(local.sgd_steps, x=X, y=Y, lower_step=0.0, local_steps=2)
        assert torch.allclose(y, Y, rtol=1e-14, atol=0)


def test_mean_local_steps_is_weighted_over_the_sampled_set() -> None:
    fed = federation(clients_per_round=3)
    taus = [1, 2, 3, 4, 5, 6, 7]
    p = PROBLEM.clients.weights
    expected = sum(p[i] * taus[i] for i in fed.sampled) / sum(p[i] for i in fed.sampled)
    assert fed.mean_local_steps(taus) == pytest.approx(expected, rel=1e-14)
    assert fed.mean_local_steps(4) == pytest.approx(4, rel=1e-14)
