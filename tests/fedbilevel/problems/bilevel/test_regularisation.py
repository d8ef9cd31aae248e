"""Regularisation: the closed forms of ridge against numpy and scipy, losses written out, and methods at the optimum."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn import datasets
from sklearn.linear_model import Ridge

from fedbilevel import BadInput, derivatives, simulate
from fedbilevel.problem import map_examples
from fedbilevel.problems import regularisation
from tests.agreement import relative
from tests.differentiable import LEVELS, randn


def stacked(problem: Any, level: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Inputs, targets and the weight of every example of a level."""
    ragged = getattr(problem.clients, level)
    share = np.concatenate(
        [np.full(n, p / n) for p, n in zip(problem.clients.weights, np.diff(ragged.offsets), strict=True)]
    )
    return ragged.values["a"].numpy(), ragged.values["b"].numpy(), share


def upper_at(problem: Any, x: NDArray[Any]) -> float:
    """F(x): ridge by least squares over rows of data and of penalties, another way than the normal equations."""
    (a, b, share), (above, beside, weight) = (stacked(problem, level) for level in ("lower", "upper"))
    root = np.sqrt(share)[:, None]
    rows = np.concatenate([a * root, np.diag(np.exp(np.broadcast_to(x, a.shape[1]) / 2))])
    right = np.concatenate([b * root[:, 0], np.zeros(a.shape[1])])
    y = np.linalg.lstsq(rows, right, rcond=None)[0]
    return float(weight @ (above @ y - beside) ** 2 / 2 + problem.rho / 2 * (x @ x))


RIDGES: list[dict[str, Any]] = [
    {},
    {"penalties": "one", "weights": [5.0, 1.0, 0.2], "clients": 3, "seed": 2},
    {"spread": "iid", "rho": 0.1, "validation": 0.2, "weights": "uniform"},
]


@pytest.mark.parametrize("parameters", RIDGES, ids=range(3))
def test_closed_forms_of_ridge(parameters: dict[str, Any]) -> None:
    problem: Any = regularisation(**parameters)
    x = randn(problem.dim_x, seed=1)
    assert problem.value(x) == pytest.approx(upper_at(problem, x.numpy()), rel=1e-10)
    steps = 1e-4 * np.eye(problem.dim_x)
    slopes = [(upper_at(problem, x.numpy() + e) - upper_at(problem, x.numpy() - e)) / 2e-4 for e in steps]
    assert relative(problem.hypergradient(x), slopes) < 1e-6
    assert float((problem.hypergradient(x, problem.lower_solution(x)) - problem.hypergradient(x)).abs().max()) < 1e-14
    elsewhere = problem.hypergradient(x, problem.lower_solution(x) + 1.0)
    assert relative(elsewhere, slopes) > 0.1


@pytest.mark.parametrize("penalties", ["feature", "one"])
def test_closed_derivatives_of_ridge_are_those_of_autodiff(penalties: Any) -> None:
    problem: Any = regularisation(penalties=penalties, rho=0.2)
    plain: Any = SimpleNamespace(lower=problem.lower, upper=problem.upper)
    x, y, v = randn(problem.dim_x, seed=1), randn(10, seed=2), randn(10, seed=3)
    for level in LEVELS:
        held = getattr(problem.clients, level).values
        weights = randn(len(held["b"]), seed=4)
        rows = map_examples(lambda tensor: torch.stack([tensor[:6], tensor[3:9]]), held)
        ys, vs, ws = randn(2, 10, seed=5), randn(2, 10, seed=6), randn(2, 6, seed=7)
        pairs = [
            [derivatives.gradient_y(each, level, x, y, held, weights) for each in (problem, plain)],
            [derivatives.gradient_y(each, level, x, ys, rows, ws) for each in (problem, plain)],
            [derivatives.gradient_x(each, level, x, y, held, held, weights) for each in (problem, plain)],
        ]
        if level == "lower":
            pairs += [
                [derivatives.hvp(each, x, y, v, held, weights) for each in (problem, plain)],
                [derivatives.hvp(each, x, ys, vs, rows, ws) for each in (problem, plain)],
                [derivatives.cross_vjp(each, x, y, v, held, held, weights) for each in (problem, plain)],
            ]
        for closed, bare in pairs:
            assert relative(closed, bare) < 1e-12


def test_one_penalty_is_scikit_learn_s() -> None:
    problem: Any = regularisation(penalties="one", clients=1)
    a, b, _ = stacked(problem, "lower")
    theirs = Ridge(alpha=len(b) * np.exp(0.7), fit_intercept=False).fit(a, b).coef_
    assert relative(problem.lower_solution(torch.tensor([0.7])), theirs) < 1e-6


def test_a_method_reaches_the_best_penalties() -> None:
    """The value that scipy finds without the library's gradients, to 1e-6."""
    problem: Any = regularisation()
    best = minimize(lambda x: upper_at(problem, x), np.zeros(10), method="BFGS", options={"gtol": 1e-7})
    steps = {"upper_step": 40.0, "lower_step": 0.25, "neumann_step": 0.25}
    run: dict[str, Any] = {"iterations": 240, "dtype": "float64", "evaluate_every": 1000, "solution_every": 0}
    result = simulate(problem, "simfbo", **run, **steps)
    gap = upper_at(problem, result.x.numpy()) - best.fun
    assert -1e-9 < gap < 1e-6
    assert result.history[-1]["metric_gap"] == pytest.approx(gap, abs=1e-9)
    assert upper_at(problem, np.zeros(10)) - best.fun > 1e-2


@pytest.mark.parametrize("table", ["breast_cancer", "wine"])
def test_logistic_losses_by_numpy(table: str) -> None:
    problem: Any = regularisation(model="logistic", table=table, clients=4)
    start = problem.initial(torch.Generator())
    x, y = start[0] + randn(*start[0].shape, seed=1), randn(*start[1].shape, seed=2)
    classes = len(np.unique(getattr(datasets, f"load_{table}")(return_X_y=True)[1]))
    features = len(x)
    W = y.numpy().reshape(classes, features)
    penalty = sum(np.exp(x[j].item()) * (W[:, j] @ W[:, j]) / 2 for j in range(features))
    for level, extra in (("lower", penalty), ("upper", 1e-3 / 2 * float(x @ x))):
        a, b, _ = stacked(problem, level)
        assert (a[:, -1] == 1).all()
        logits = a @ W.T
        losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(b)), b]
        assert relative(getattr(problem, level)(x, y, getattr(problem.clients, level).values), losses + extra) < 1e-12
    a, b = problem.test["a"].numpy(), problem.test["b"].numpy()
    assert problem.evaluate(x, y)["test_accuracy"] == pytest.approx(((a @ W.T).argmax(1) == b).mean())


def test_logistic_learns_and_its_solution_is_found() -> None:
    problem = regularisation(model="logistic", table="wine", clients=3)
    result = simulate(
        problem, "simfbo", iterations=60, upper_step=5.0, lower_step=0.2, neumann_step=0.2, evaluate_every=60,
        solution_every=1, dtype="float64",
    )  # fmt: skip
    first, last = result.history[0], result.history[-1]
    assert last["value"] < first["value"] - 0.05
    assert last["test_accuracy"] > 0.9


def test_the_table_is_spread_whole_and_standardised() -> None:
    _, target = datasets.load_diabetes(return_X_y=True)
    problem: Any = regularisation(clients=4, validation=0.25)
    levels = [stacked(problem, level) for level in ("lower", "upper")]
    assert abs(levels[0][0].mean(0)).max() < 1e-12
    assert abs(levels[0][0].std(0) - 1).max() < 1e-12
    assert abs(levels[0][1].std() - 1) < 1e-12
    counts = np.diff(problem.clients.lower.offsets) + np.diff(problem.clients.upper.offsets)
    assert counts.tolist() == [89, 89, 88, 88]
    assert len(problem.test["b"]) == 88 == round(0.2 * 442)
    # back to the table's numbers: a monotone map of the targets, so that ranks are those of the rows that were drawn
    everyone = np.concatenate([*(b for _, b, _ in levels), problem.test["b"].numpy()])
    scale = (target.max() - target.min()) / (everyone.max() - everyone.min())
    assert relative(np.sort((everyone - everyone.min()) * scale + target.min()), np.sort(target)) < 1e-12


def test_sorted_clients_differ_and_drawn_ones_do_not() -> None:
    means = {}
    for spread in ("sorted", "iid"):
        problem: Any = regularisation(clients=4, spread=spread)
        _, b, _ = stacked(problem, "lower")
        means[spread] = [part.mean() for part in np.split(b, problem.clients.lower.offsets[1:-1])]
    assert means["sorted"] == sorted(means["sorted"])
    assert np.ptp(means["sorted"]) > 2
    assert np.ptp(means["iid"]) < 1
    problem = regularisation(model="logistic", clients=3)
    assert len(problem.clients) == 3


@pytest.mark.parametrize(
    ("parameters", "line"),
    [
        ({"model": "lasso"}, "problem.model: got 'lasso'"),
        ({"table": "wine"}, "problem.table: got 'wine'; allowed: diabetes"),
        ({"penalties": "none"}, "problem.penalties: got 'none'"),
        ({"spread": "odd"}, "problem.spread: got 'odd'"),
        ({"clients": 0}, "problem.clients: got 0"),
        ({"clients": 178}, "problem.clients: got 178; allowed: an integer from 1 to 177"),
        ({"validation": 1.0}, "problem.validation: got 1.0"),
        ({"rho": -1.0}, "problem.rho: got -1.0"),
        ({"seed": -1}, "problem.seed: got -1"),
    ],
)
def test_what_is_refused(parameters: dict[str, Any], line: str) -> None:
    with pytest.raises(BadInput) as caught:
        regularisation(**parameters)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)
