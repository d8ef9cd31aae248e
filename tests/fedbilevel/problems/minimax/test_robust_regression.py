"""Robust regression: its losses and closed forms against numpy, client by client, and differences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedbilevel import BadInput, derivatives, simulate
from fedbilevel.config.build import build
from fedbilevel.problems import RobustRegression
from server.evaluation.lower_level import NoSolution
from server.evaluation.solution import Solver
from tests.agreement import relative
from tests.differentiable import randn

M, D, PENALTY = 4, 3, 3.0
KINDS = ["client", "common"]


def small(perturbation: Any = "client", **parameters: Any) -> RobustRegression:
    given: dict[str, Any] = {"penalty": PENALTY, "clients": M, "examples": 6, "features": D, "seed": 2}
    return RobustRegression(perturbation=perturbation, **given | parameters)


def point(problem: RobustRegression) -> tuple[Tensor, Tensor]:
    """A random x inside of the penalty, and a random y."""
    x = randn(D, seed=4)
    return x * (1.2 / x.norm()), randn(problem.groups * D, seed=5)


# ---- the second implementation ----


def clients(problem: RobustRegression) -> list[tuple[np.ndarray, np.ndarray]]:
    level = problem.clients.upper
    rows = [slice(a, b) for a, b in zip(level.offsets[:-1], level.offsets[1:], strict=True)]
    return [(level.values["input"][own].numpy(), level.values["target"][own].numpy()) for own in rows]


def loss(problem: RobustRegression, x: np.ndarray, y: np.ndarray) -> float:
    """sum_i p_i f_i by a loop; y [M, D], or [1, D] where it is common."""
    total, rows = 0.0, y.reshape(-1, D)
    for i, (a, b) in enumerate(clients(problem)):
        own = rows[i % len(rows)]
        f = 0.5 * ((a + own) @ x - b) ** 2 - 0.5 * problem.penalty * own @ own
        total += problem.clients.weights[i] * f.mean()
    return total


def worst(problem: RobustRegression, x: np.ndarray) -> np.ndarray:
    """y*(x) from the normal equations of each perturbation, [dy]: (penalty I - x x') y = r x."""
    means = np.array([(a @ x - b).mean() for a, b in clients(problem)])
    if problem.groups == 1:
        means = np.array([problem.clients.weights @ means])
    H = problem.penalty * np.eye(D) - np.outer(x, x)
    return np.concatenate([np.linalg.solve(H, r * x) for r in means])


def slopes(function: Any, at: Tensor, step: float = 1e-5) -> np.ndarray:
    """Central differences."""
    at_, eye = at.numpy(), np.eye(len(at))
    return np.array([(function(at_ + step * e) - function(at_ - step * e)) / (2 * step) for e in eye])


@pytest.mark.parametrize("weights", ["size", "uniform"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("table", ["synthetic", "diabetes"])
def test_losses_derivatives_and_closed_forms(table: Any, kind: str, weights: str) -> None:
    problem = small(kind, weights=weights) if table == "synthetic" else small(kind, table=table, clients=M)
    if table == "diabetes":  # as many features as in the second implementation
        problem.clients.upper.values["input"] = problem.clients.upper.values["input"][:, :D]
        problem.test["input"] = problem.test["input"][:, :D]
    x, y = point(problem)
    level = problem.clients.upper
    share = torch.from_numpy(np.repeat(problem.clients.weights / level.sizes, level.sizes))
    assert float(problem.upper(x, y, level.values) @ share) == pytest.approx(loss(problem, x.numpy(), y.numpy()), 1e-12)
    gy = derivatives.gradient_y(problem, "lower", x, y, level.values, share)  # type: ignore[arg-type]  # no lower()
    assert relative(gy, -slopes(lambda v: loss(problem, x.numpy(), v), y)) < 1e-8
    expected = worst(problem, x.numpy())
    assert relative(problem.lower_solution(x), expected) < 1e-12
    assert problem.value(x) == pytest.approx(loss(problem, x.numpy(), expected), rel=1e-12)
    gx = slopes(lambda v: loss(problem, v, worst(problem, v)), x)
    assert relative(problem.hypergradient(x), gx) < 1e-7
    for k in range(10):
        aside = expected + 3.0 ** (k % 5 - 2) * randn(len(expected), seed=k).numpy()
        assert loss(problem, x.numpy(), aside) < problem.value(x)


@pytest.mark.parametrize("kind", KINDS)
def test_the_closed_forms_are_what_newton_s_method_finds(kind: str) -> None:
    problem = small(kind)
    x, y = point(problem)
    found = Solver(Bare(problem), y).at(x, y)  # type: ignore[arg-type]  # no lower()
    assert relative(found.y, problem.lower_solution(x)) < 1e-7
    assert found.value == pytest.approx(problem.value(x), rel=1e-7)
    assert relative(found.gradient, problem.hypergradient(x)) < 1e-7


class Bare:
    """The same problem without its closed forms."""

    def __init__(self, problem: RobustRegression) -> None:
        self.clients, self.initial, self.evaluate = problem.clients, problem.initial, problem.evaluate
        self.upper = problem.upper


@pytest.mark.parametrize("kind", KINDS)
def test_measures_are_of_the_test_set_with_and_without_the_worst_perturbation(kind: str) -> None:
    problem = small(kind)
    x, y = point(problem)
    a, b = problem.test["input"].numpy(), problem.test["target"].numpy()
    assert len(b) == M  # a fifth of six, rounded down
    moved = a + np.broadcast_to(worst(problem, x.numpy()).reshape(-1, D), (M, D))
    found = problem.evaluate(x, y)
    expected = {
        "test_loss": 0.5 * ((a @ x.numpy() - b) ** 2).mean(),
        "robust_loss": 0.5 * ((moved @ x.numpy() - b) ** 2).mean(),
        "margin": PENALTY - 1.44,
        "perturbation": np.linalg.norm(y.numpy().reshape(-1, D), axis=1).max(),
    }
    assert found == pytest.approx(expected, rel=1e-12)


def test_there_is_no_worst_perturbation_beyond_the_penalty_and_the_run_goes_on() -> None:
    problem = small(penalty=1.0)
    x, y = point(problem)
    assert bool(problem.lower_solution(x).isnan().all())
    assert problem.evaluate(x, y)["robust_loss"] == math.inf
    with pytest.raises(NoSolution, match="not finite"):
        Solver(problem, y).at(x, y)  # type: ignore[arg-type]  # no lower()
    problem.initial = lambda generator: (x.clone(), y.clone())  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match="lower_solution\\(x\\) is not finite"):
        result = simulate(problem, "simfbo", iterations=1, upper_step=0.0001, lower_step=0.01)  # type: ignore[arg-type]
    assert [row["value"] for row in result.history] == [None, None]


# ---- the data ----


def test_the_common_perturbation_is_harmless_on_centred_data_and_the_clients_own_is_not() -> None:
    """Residuals of the whole table have mean zero at any x; those of clients cut by the target have not."""
    x = 0.3 * randn(10, seed=1)
    lengths = {}
    for kind in KINDS:
        problem = RobustRegression("diabetes", perturbation=kind, clients=6, heterogeneity=5.0)  # type: ignore[arg-type]
        level = problem.clients.upper
        level.values["input"] -= level.values["input"].mean(0)
        level.values["target"] -= level.values["target"].mean()
        lengths[kind] = float(problem.lower_solution(x).view(-1, 10).norm(dim=-1).max())
    assert lengths["common"] < 1e-12
    assert lengths["client"] > 0.05


def test_the_diabetes_table_is_standardised_and_none_of_it_is_lost() -> None:
    problem = RobustRegression("diabetes", clients=7, seed=3)
    level = problem.clients.upper
    for key, wide in (("input", 10), ("target", 1)):
        whole = torch.cat([level.values[key], problem.test[key]]).view(-1, wide)
        assert whole.shape[0] == 442
        assert float(whole.mean(0).abs().max()) < 1e-12
        assert float((whole.std(0, correction=0) - 1).abs().max()) < 1e-12
        assert len(whole.unique(dim=0)) > 200
    assert level.sizes.tolist() == [52] + [51] * 6  # of 64 and 63, less 12
    assert problem.test["group"].bincount().tolist() == [12] * 7


@pytest.mark.parametrize("table", ["synthetic", "diabetes"])
def test_heterogeneity_sets_clients_apart(table: Any) -> None:
    spread = []
    for heterogeneity in (0.0, 0.5, 10.0):
        problem = small(table=table, heterogeneity=heterogeneity, examples=100)
        means = [float(b.mean()) for _, b in clients(problem)]
        spread.append(np.std(means))
    assert spread == sorted(spread)
    assert spread[0] < 0.35  # the mean of 80 targets of variance of about 1 each
    assert spread[2] > 0.8


def test_clients_of_the_synthetic_table_share_a_model_only_without_heterogeneity() -> None:
    def models(heterogeneity: float) -> np.ndarray:
        parts = clients(small(heterogeneity=heterogeneity, noise=0.0))
        return np.array([np.linalg.lstsq(a, b, rcond=None)[0] for a, b in parts])

    assert np.ptp(models(0.0), axis=0).max() < 1e-12
    assert np.ptp(models(1.0), axis=0).min() > 0.1


def test_instances_are_keyed_by_the_seed() -> None:
    first, again, other = (small(seed=seed).clients.upper.values["target"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# ---- how it is built and run ----


@pytest.mark.parametrize(("table", "dtype"), [("synthetic", torch.float32), ("diabetes", torch.float64)])
def test_it_runs_in_either_precision_on_minibatches_of_a_sampled_cohort(table: str, dtype: torch.dtype) -> None:
    built: Any = build("robust_regression", {"table": table, "clients": 5}, data=dict, dtype=dtype)  # type: ignore[arg-type]  # no data
    options = {"upper_step": 0.1, "lower_step": 0.5, "lower_rounds": 2, "neumann_terms": 2}
    settings = {"iterations": 10, "clients_per_round": 3, "batch": 4, "gradient_batch": 16, "dtype": str(dtype)[6:]}
    for name in ("fednest", "simfbo"):
        result = simulate(built, name, evaluate_every=200, **settings, **options)
        assert result.x.dtype == dtype
        values = [float(str(row["value"])) for row in result.history]
        assert values[-1] < 0.9 * values[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("table", "boston"),
        ("perturbation", "both"),
        ("penalty", 0.0),
        ("penalty", float("inf")),
        ("clients", 0),
        ("clients", 222),
        ("examples", 1),
        ("features", 0),
        ("noise", -0.1),
        ("heterogeneity", float("nan")),
        ("weights", "random"),
        ("seed", -1),
    ],
)
def test_bad_parameters_are_refused(key: str, value: Any) -> None:
    parameters: dict[str, Any] = {"table": "diabetes", key: value}
    with pytest.raises(BadInput, match=rf"^(problem|clients)\.{key}: got ") as refused:
        RobustRegression(**parameters)
    assert "\n" not in str(refused.value)
