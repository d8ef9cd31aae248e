"""Agnostic classification: its losses and closed forms against numpy, client by client, and differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedbilevel import BadInput, ClientData, derivatives, simulate
from fedbilevel.config.build import build
from fedbilevel.data import FederatedData, federate
from fedbilevel.problems import FairClassification
from server.evaluation.solution import Solver
from tests.agreement import relative
from tests.differentiable import randn

MU, WEIGHTS = 0.3, [0.5, 0.1, 0.4]
M, FEATURES, CLASSES, HIDDEN = 3, 4, 3, 5
Arrays = tuple[np.ndarray, np.ndarray]


def labelled(n: int, seed: int) -> Arrays:
    """N examples of 2 x 2 pixels, and labels below 3."""
    draw = np.random.default_rng(seed)
    return draw.standard_normal((n, 2, 2)).astype(np.float32), draw.integers(0, CLASSES, n)


LOWER, UPPER, TEST = [labelled(n, n) for n in (2, 4, 3)], [labelled(n, 10 + n) for n in (1, 5, 2)], labelled(9, 20)
PARTS: list[Arrays] = [
    (np.concatenate([a[0], b[0]]), np.concatenate([a[1], b[1]])) for a, b in zip(LOWER, UPPER, strict=True)
]
"""Both parts of each client, one after the other."""


def federated() -> FederatedData:
    held = [
        [{"input": torch.from_numpy(a).flatten(1), "label": torch.from_numpy(b)} for a, b in level]
        for level in (LOWER, UPPER)
    ]
    return FederatedData(ClientData(held[0], held[1], WEIGHTS), *TEST, classes=CLASSES, features=FEATURES)


def small(network: str = "mlp", dtype: torch.dtype = torch.float64, mu: float = MU) -> FairClassification:
    return FairClassification(federated(), mu, network, [HIDDEN], "tanh", dtype=dtype)


def point(problem: FairClassification) -> tuple[Tensor, Tensor]:
    """A random x and y, y without mean zero."""
    x, _ = problem.initial(torch.Generator().manual_seed(1))
    return x.double() + 0.5 * randn(len(x), seed=2), randn(M, seed=3) + 0.2


# ---- the second implementation ----


def losses(x: np.ndarray, network: str, part: Arrays) -> Arrays:
    """Cross-entropy of every example, and whether its class is the most likely one."""
    h, label = part[0].reshape(len(part[0]), FEATURES).astype(np.float64), part[1]
    if network == "mlp":
        W, b, x = x[: HIDDEN * FEATURES], x[HIDDEN * FEATURES : HIDDEN * (FEATURES + 1)], x[HIDDEN * (FEATURES + 1) :]
        h = np.tanh(h @ W.reshape(HIDDEN, FEATURES).T + b)
    logits = h @ x[:-CLASSES].reshape(CLASSES, -1).T + x[-CLASSES:]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return -np.log(p[np.arange(len(label)), label]), logits.argmax(1) == label


def client_losses(x: np.ndarray, network: str) -> np.ndarray:
    return np.array([losses(x, network, part)[0].mean() for part in PARTS])


def agnostic(x: np.ndarray, y: np.ndarray, network: str, mu: float = MU) -> float:
    """sum_i s_i L_i, less the regulariser: no p_i in it."""
    s = np.exp(y) / np.exp(y).sum()
    divergence = sum(float(s[i] * (np.log(s[i]) - np.log(1 / M))) for i in range(M))
    return float(s @ client_losses(x, network)) - mu * divergence - mu / 2 * float(y.mean()) ** 2


def slopes(function: Any, at: Tensor, step: float = 1e-5) -> np.ndarray:
    """Central differences."""
    at_, eye = at.numpy(), np.eye(len(at))
    return np.array([(function(at_ + step * e) - function(at_ - step * e)) / (2 * step) for e in eye])


# ---- losses and derivatives ----


@pytest.mark.parametrize("network", ["linear", "mlp"])
def test_the_clients_losses_make_the_agnostic_loss_and_its_derivatives(network: str) -> None:
    problem = small(network)
    x, y = point(problem)
    values, data = problem.clients.upper.values, problem.clients
    prepared = problem.prepare(x, values)
    found = problem.upper(x, y, prepared)
    s = np.exp(y.numpy()) / np.exp(y.numpy()).sum()
    concave = agnostic(x.numpy(), y.numpy(), network) - float(s @ client_losses(x.numpy(), network))
    assert data.upper.sizes.tolist() == [3, 9, 5]
    for i, part in enumerate(PARTS):
        expected = s[i] / WEIGHTS[i] * losses(x.numpy(), network, part)[0] + concave
        assert relative(found[data.upper.offsets[i] : data.upper.offsets[i + 1]], expected) < 1e-13
    weights = torch.from_numpy(np.repeat(np.array(WEIGHTS) / data.upper.sizes, data.upper.sizes))
    assert float(found @ weights) == pytest.approx(agnostic(x.numpy(), y.numpy(), network), rel=1e-13)
    for level, sign in (("upper", 1.0), ("lower", -1.0)):
        gy = derivatives.gradient_y(problem, level, x, y, prepared, weights)  # type: ignore[arg-type]  # no lower()
        gx = derivatives.gradient_x(problem, level, x, y, values, prepared, weights)  # type: ignore[arg-type]
        assert relative(gy, sign * slopes(lambda v: agnostic(x.numpy(), v, network), y)) < 1e-8
        assert relative(gx, sign * slopes(lambda v: agnostic(v, y.numpy(), network), x)) < 1e-8


def test_the_weights_p_drop_out_of_the_global_loss() -> None:
    x, y = point(small())
    for weights in ("size", "uniform"):
        data = federated()
        held = ClientData(data.clients.lower, data.clients.upper, weights)
        problem = FairClassification(
            FederatedData(held, *TEST, CLASSES, FEATURES), MU, "mlp", [HIDDEN], "tanh", dtype=torch.float64
        )
        sizes = problem.clients.upper.sizes
        share = torch.from_numpy(np.repeat(held.weights / sizes, sizes))
        found = problem.upper(x, y, problem.prepare(x, problem.clients.upper.values)) @ share
        assert float(found) == pytest.approx(agnostic(x.numpy(), y.numpy(), "mlp"), rel=1e-13)


# ---- the solution in y ----


def test_closed_forms_are_the_maximum_and_its_derivative() -> None:
    problem = small()
    x, _ = point(problem)
    y = problem.lower_solution(x)
    at = agnostic(x.numpy(), y.numpy(), "mlp")
    assert problem.value(x) == pytest.approx(at, rel=1e-13)
    assert float(np.abs(slopes(lambda v: agnostic(x.numpy(), v, "mlp"), y)).max()) < 1e-9
    for k in range(20):
        assert agnostic(x.numpy(), y.numpy() + 3.0 ** (k % 5 - 3) * randn(M, seed=k).numpy(), "mlp") < at

    def value(v: np.ndarray) -> float:
        return MU * float(np.log(np.mean(np.exp(client_losses(v, "mlp") / MU))))

    assert relative(problem.hypergradient(x), slopes(value, x)) < 1e-8
    found = Solver(Bare(problem), torch.zeros(M)).at(x, y + 0.1 * randn(M, seed=5))  # type: ignore[arg-type]
    assert relative(found.y, y) < 1e-7
    assert relative(found.gradient, problem.hypergradient(x)) < 1e-7


class Bare:
    """The same problem without its closed forms."""

    def __init__(self, problem: FairClassification) -> None:
        self.clients, self.initial, self.evaluate = problem.clients, problem.initial, problem.evaluate
        self.upper, self.prepare = problem.upper, problem.prepare


def test_weight_goes_to_the_client_that_fares_worst_and_the_more_the_smaller_mu_is() -> None:
    x, _ = point(small())
    losses = client_losses(x.numpy(), "mlp")
    worst, shares, values = int(losses.argmax()), [], []
    for mu in (10.0, 1.0, 0.1, 0.01):
        problem = small(mu=mu)
        s = torch.softmax(problem.lower_solution(x), -1)
        assert s.argsort().tolist() == losses.argsort().tolist()
        shares.append(float(s[worst]))
        values.append(problem.value(x))
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(1 / M, abs=0.05)
    assert shares[-1] > 0.999
    assert [losses.mean(), *values, losses.max()] == sorted([losses.mean(), *values, losses.max()])
    assert values[-1] == pytest.approx(losses.max(), abs=0.011 * np.log(M))


# ---- evaluation ----


def test_measures_are_of_the_test_set_and_of_the_clients() -> None:
    problem = small()
    x, y = point(problem)
    found = problem.evaluate(x, y)
    test, right = losses(x.numpy(), "mlp", TEST)
    accuracies = np.array([losses(x.numpy(), "mlp", part)[1].mean() for part in PARTS])
    assert accuracies.min() < accuracies.max()
    assert found == pytest.approx(
        {
            "test_loss": test.mean(),
            "test_accuracy": right.mean(),
            "worst_loss": client_losses(x.numpy(), "mlp").max(),
            "worst_accuracy": accuracies.min(),
            "accuracy_spread": np.sqrt(((accuracies - accuracies.mean()) ** 2).mean()),
            "max_weight": np.exp(y.numpy()).max() / np.exp(y.numpy()).sum(),
        },
        rel=1e-12,
    )


# ---- how it is built and run ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_built_from_a_config_in_either_precision(dtype: torch.dtype) -> None:
    parameters = {"mu": 0.2, "network": "mlp", "hidden": [3]}
    built: Any = build("fair_classification", parameters, data=federated, dtype=dtype)
    x, y = built.initial(torch.Generator().manual_seed(0))
    assert x.dtype == y.dtype == dtype
    assert (len(x), y.tolist()) == (3 * (FEATURES + 1) + CLASSES * 4, [0.0] * M)
    gy = derivatives.gradient_y(
        built, "lower", x, y, built.prepare(x, built.clients.lower.values), torch.ones(17, dtype=dtype)
    )
    assert gy.dtype == dtype


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mu", 0.0),
        ("mu", float("inf")),
        ("mu", float("nan")),
        ("mu", "small"),
        ("network", "cnn"),
        ("hidden", []),
        ("activation", "gelu"),
    ],
)
def test_bad_parameters_are_refused(key: str, value: object) -> None:
    parameters = {"network": "mlp", key: value}
    with pytest.raises(BadInput, match=rf"^problem\.{key}: got ") as refused:
        build("fair_classification", parameters, data=federated, dtype=None)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("name", "iterations"), [("fednest", 6), ("simfbo", 25)])
def test_minibatches_of_a_sampled_cohort_find_a_fairer_classifier(name: str, iterations: int) -> None:
    data = federate("digits", clients=6, parameters={"alpha": 0.3}, seed=1)
    options = {"upper_step": 0.3, "lower_step": 0.3, "lower_rounds": 1, "neumann_terms": 1}
    result = simulate(
        FairClassification(data, mu=0.2),  # type: ignore[arg-type]  # no lower()
        name,
        iterations=iterations,
        evaluate_every=200,
        clients_per_round=4,
        batch=8,
        gradient_batch=32,
        solution_every=1,
        **options,
    )
    first, last = result.history[0], result.history[-1]
    assert last["value"] < 0.9 * first["value"]  # type: ignore[operator]
    assert last["metric_worst_accuracy"] > first["metric_worst_accuracy"]  # type: ignore[operator]
    assert last["metric_max_weight"] > 1 / 6  # type: ignore[operator]
