"""The options of algorithms: one set for all, drawn indices, and what cannot be used."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedbilevel import BadInput
from server.kit.algorithm import algorithms, draw_index
from tests.algorithm_table.row import STEPS, N
from tests.problem_table import quadratic
from tests.runs import silent, traced


def test_one_set_of_options_serves_every_algorithm() -> None:
    shared = {**STEPS, "lower_rounds": 2, "neumann_terms": 3, "penalty": 4.0, "local_steps": 2, "barrier": 0.3}
    for name, entry in algorithms("global").items():
        own = {key: value for key, value in shared.items() if key in entry.options.model_fields}
        assert own != shared
        together, alone = (traced(quadratic(), name, 2, **options) for options in (shared, own))
        assert torch.equal(together.x, alone.x)
        assert torch.equal(together.y, alone.y)


def test_drawn_indices_are_in_range_keyed_by_the_seed_and_can_be_given_back() -> None:
    for name in ("aggitd", "fednest", "lfednest"):
        options = {**STEPS, "estimator": "sample", "neumann_terms": N, "accounting": "merged"}
        first, again, other = (traced(quadratic(), name, 12, **options, seed=s) for s in (1, 1, 2))
        assert first.trace is not None
        assert again.trace is not None
        assert other.trace is not None
        drawn = [entry.index for entry in first.trace]
        assert drawn == [entry.index for entry in again.trace]
        assert drawn != [entry.index for entry in other.trace]
        assert set(drawn) <= set(range(N))
        assert len(set(drawn)) > 1
        given = traced(quadratic(), name, 12, **{**options, "indices": drawn}, seed=1)
        assert torch.equal(given.x, first.x)


def test_drawn_indices_are_uniform() -> None:
    """The draws of 400 iterations, of which a run makes the first."""
    problem = quadratic()
    fed, drawn = silent(problem), []
    for k in range(400):
        fed.begin(k)
        drawn.append(draw_index(fed, "sample", 4, None))
    result = traced(problem, "lfednest", 20, estimator="sample", neumann_terms=4, upper_step=0.0)
    assert result.trace is not None
    assert [entry.index for entry in result.trace] == drawn[:20]
    counts = np.bincount([index or 0 for index in drawn], minlength=4)
    assert len(counts) == 4
    assert np.sum((counts - 100) ** 2 / 100) < 16.3  # chi-square, 3 degrees of freedom, 0.1 %


@pytest.mark.parametrize("name", ["aggitd", "fednest", "fednest-sgd", "lfednest", "lfednest-svrg"])
@pytest.mark.parametrize(
    ("indices", "key"),
    [([0, 1], "indices"), ([0, 1, N], r"indices\[2\]"), ([0, -1, 1], "indices"), ([0, 1.5, 1], "indices")],
)
def test_indices_that_cannot_be_used(name: str, indices: list[Any], key: str) -> None:
    options = {"estimator": "sample", "indices": indices, "lower_rounds": N, "neumann_terms": N}
    with pytest.raises(BadInput, match=key):
        traced(quadratic(), name, 3, **options)


@pytest.mark.parametrize("name", ["aggitd", "fednest", "fednest-sgd", "lfednest", "lfednest-svrg"])
def test_a_sampled_estimate_needs_a_term(name: str) -> None:
    with pytest.raises(BadInput, match="neumann_terms: got 0"):
        traced(quadratic(), name, 3, estimator="sample", neumann_terms=0)


@pytest.mark.parametrize(
    ("name", "options", "key"),
    [
        ("aggitd", {"lower_rounds": 0}, "lower_rounds"),
        ("aggitd", {"local_steps": [1, 2]}, "local_steps"),
        ("aggitd", {"local_steps": 0}, "local_steps"),
        ("aggitd", {"upper_step": -0.1}, "upper_step"),
        ("aggitd", {"upper_step": float("nan")}, "upper_step"),
        ("fednest", {"upper_local_steps": [1] * 6}, "upper_local_steps"),
        ("fednest", {"estimator": "mean"}, "estimator"),
        ("fednest", {"accounting": "ours"}, "accounting"),
        ("fednest", {"local_steps": {"low": 3, "high": 2}}, "local_steps"),
        ("f2sa", {"penalty": 0.0}, "penalty"),
        ("fednest", {"upper_stpe": 0.1}, "upper_step"),
        ("fednset", {}, "fednest"),
    ],
)
def test_options_that_cannot_be_used(name: str, options: dict[str, Any], key: str) -> None:
    with pytest.raises(BadInput, match=key):
        traced(quadratic(), name, 3, **options)
