"""Loss tuning: both losses against numpy, derivatives against differences, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedbilevel import ClientData, derivatives, simulate
from fedbilevel.config.build import build
from fedbilevel.data import FederatedData, federate
from fedbilevel.problems import LossTuning
from tests.datasets import refused
from tests.differentiable import near, randn

CLASSES, FEATURES, HIDDEN = 3, 4, 5
SIZES = [8, 4, 2]


def data(weights: Any = (0.2, 0.3, 0.5)) -> FederatedData:
    """Three clients with twelve to sixteen examples of four pixels on each level, and twenty for testing."""
    draw = np.random.default_rng(3)

    def part(n: int) -> dict[str, Tensor]:
        labels = draw.permutation(np.arange(n) % CLASSES)
        return {"input": torch.from_numpy(draw.random((n, FEATURES))), "label": torch.from_numpy(labels)}

    clients = ClientData([part(n) for n in (12, 14, 16)], [part(n) for n in (13, 15, 12)], weights)
    test = draw.random((20, 2, 2), dtype=np.float32)
    return FederatedData(clients, test, np.repeat([0, 1, 2], [12, 5, 3]), CLASSES, FEATURES)


def problem(**changed: Any) -> LossTuning:
    given: dict[str, Any] = {"imbalance": 4, "largest": 8, "upper_examples": 5, "hidden": [HIDDEN], "l2": 0.1}
    return LossTuning(data(changed.pop("weights", (0.2, 0.3, 0.5))), **{**given, "dtype": torch.float64, **changed})


def outputs(y: Tensor, inputs: Any) -> np.ndarray:
    """4-5-3 with ReLU, or 4-3, written out."""
    inputs, y = np.asarray(inputs).reshape(-1, FEATURES), y.double().numpy()
    if len(y) > CLASSES * (FEATURES + 1):
        W, b, y = y[: HIDDEN * FEATURES], y[HIDDEN * FEATURES : HIDDEN * (FEATURES + 1)], y[HIDDEN * (FEATURES + 1) :]
        inputs = np.maximum(inputs @ W.reshape(HIDDEN, FEATURES).T + b, 0)
    width = inputs.shape[1]
    return np.asarray(inputs @ y[: CLASSES * width].reshape(CLASSES, width).T + y[CLASSES * width :])


def cross_entropy(logits: np.ndarray, label: Any) -> np.ndarray:
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return np.asarray(-np.log(p[np.arange(len(p)), label]))


def global_loss(tuned: LossTuning, level: derivatives.Level, x: Tensor, y: Tensor) -> float:
    """sum_i p_i mean_j, client by client."""
    held, total = getattr(tuned.clients, level), 0.0
    losses = getattr(tuned, level)(x, y, held.values)
    for i, p in enumerate(tuned.clients.weights):
        total += p * float(losses[held.offsets[i] : held.offsets[i + 1]].mean())
    return total


def point(tuned: LossTuning) -> tuple[Tensor, Tensor]:
    return 0.5 * randn(2 * CLASSES, seed=1), 0.7 * randn(tuned.network.size, seed=2)


@pytest.mark.parametrize("network", ["mlp", "linear"])
@pytest.mark.parametrize("weights", ["uniform", [0.7, 0.2, 0.1]])
def test_both_losses_are_means_over_all_examples_whatever_the_weights(network: Any, weights: Any) -> None:
    tuned = problem(weights=weights, network=network)
    x, y = point(tuned)
    lower, upper = tuned.clients.lower.values, tuned.clients.upper.values
    logits = np.exp(x[:CLASSES].numpy()) * outputs(y, lower["input"]) + x[CLASSES:].numpy()
    g = cross_entropy(logits, lower["label"]).mean() + 0.05 * float(y @ y)
    f = cross_entropy(outputs(y, upper["input"]), upper["label"]).mean()
    assert np.bincount(lower["label"]).tolist() == SIZES
    assert np.bincount(upper["label"]).tolist() == [5, 5, 5]
    assert global_loss(tuned, "lower", x, y) == pytest.approx(g, rel=1e-12)
    assert global_loss(tuned, "upper", x, y) == pytest.approx(f, rel=1e-12)


def test_the_start_is_plain_training_or_the_fixed_adjustment() -> None:
    for adjustment, prior in (("none", np.zeros(CLASSES)), ("log", np.log(np.array(SIZES) / 14))):
        tuned = problem(adjustment=adjustment)
        x, y = tuned.initial(torch.Generator().manual_seed(0))
        examples = tuned.clients.lower.values
        g = cross_entropy(outputs(y, examples["input"]) + prior, examples["label"]).mean()
        assert global_loss(tuned, "lower", x, y) == pytest.approx(g + 0.05 * float(y @ y), rel=1e-12)
        assert not x[:CLASSES].any()


def test_derivatives_agree_with_differences() -> None:
    tuned, h = problem(), 1e-6
    x, y = point(tuned)
    v, u = randn(len(y), seed=3), randn(len(x), seed=4)
    examples = tuned.clients.lower.values
    n = len(examples["label"])
    w = torch.full((n,), 1.0 / n, dtype=torch.float64)

    def gy(x: Tensor, y: Tensor) -> Tensor:
        return derivatives.gradient_y(tuned, "lower", x, y, examples, w)

    def g(x: Tensor, y: Tensor) -> float:
        return float((tuned.lower(x, y, examples) * w).sum())

    gx = derivatives.gradient_x(tuned, "lower", x, y, examples, examples, w)
    assert float(gy(x, y) @ v) == pytest.approx((g(x, y + h * v) - g(x, y - h * v)) / (2 * h), rel=1e-6)
    assert float(gx @ u) == pytest.approx((g(x + h * u, y) - g(x - h * u, y)) / (2 * h), rel=1e-6)
    near(derivatives.hvp(tuned, x, y, v, examples, w), (gy(x, y + h * v) - gy(x, y - h * v)) / (2 * h), 1e-6)
    crossed = derivatives.cross_vjp(tuned, x, y, v, examples, examples, w)
    assert float(crossed @ u) == pytest.approx(float((gy(x + h * u, y) - gy(x - h * u, y)) @ v) / (2 * h), rel=1e-6)
    upper, rest = tuned.clients.upper.values, torch.full((15,), 1.0 / 15, dtype=torch.float64)
    assert not derivatives.gradient_x(tuned, "upper", x, y, upper, upper, rest).any()


def test_measures_are_means_over_classes() -> None:
    tuned = problem()
    x, y = point(tuned)
    inputs, label = data().x_test.astype(np.float64), data().y_test
    logits = outputs(y, inputs)
    right, losses = logits.argmax(1) == label, cross_entropy(logits, label)
    found = tuned.evaluate(x, y)
    assert found["test_accuracy"] == pytest.approx(np.mean([right[label == k].mean() for k in range(3)]))
    assert found["test_loss"] == pytest.approx(np.mean([losses[label == k].mean() for k in range(3)]), rel=1e-6)
    assert found["tail_accuracy"] == pytest.approx(np.mean([right[label == k].mean() for k in (1, 2)]))
    assert found["test_accuracy"] != pytest.approx(right.mean(), abs=1e-3)


def test_single_precision_is_close_to_double() -> None:
    single, double = problem(dtype=torch.float32), problem()
    x, y = point(double)
    for level in ("lower", "upper"):
        coarse = getattr(single, level)(x.float(), y.float(), getattr(single.clients, level).values)
        assert coarse.dtype == torch.float32
        near(coarse.double(), getattr(double, level)(x, y, getattr(double.clients, level).values), 1e-5)


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("adjustment", "sqrt", "log"),
        ("l2", -1.0, "at least 0"),
        ("network", "mpl", "mlp"),
        ("hidden", [0], "at least 1"),
        ("imbalance", 1000, "class 2"),
        ("largest", 500, "class 0"),
        ("upper_examples", 99, "class 0"),
    ],
)
def test_bad_parameters_are_refused_in_one_line(key: str, value: Any, part: str) -> None:
    refused(lambda: problem(**{key: value}), f"problem.{key}", part)


def test_a_config_builds_it_for_the_seed_of_the_run() -> None:
    parameters = {"imbalance": 10.0, "largest": 50, "upper_examples": 20, "network": "linear"}
    built = [
        build("loss_tuning", parameters, data=lambda: federate("digits", clients=5, seed=1), dtype=None, seed=seed)
        for seed in (0, 1)
    ]
    held = [each.clients.lower.values["input"] for each in built]
    assert held[0].shape == held[1].shape
    assert not torch.equal(*held)


def test_upper_steps_raise_the_balanced_accuracy_on_digits() -> None:
    """A linear model on a tail of 50:1: with x frozen at 0 rare classes are hardly ever predicted."""
    tuned = LossTuning(
        federate("digits", clients=5, partition_name="iid", seed=1),
        imbalance=50,
        largest=60,
        upper_examples=40,
        network="linear",
        l2=0.01,
    )
    options: dict[str, Any] = {"rounds": 40, "evaluate_every": 40, "lower_step": 0.3, "neumann_step": 0.3}
    plain, learned = (simulate(tuned, "simfbo", upper_step=step, **options).history[-1] for step in (0.0, 0.3))
    assert float(str(learned["test_accuracy"])) > float(str(plain["test_accuracy"])) + 0.03
    assert float(str(learned["metric_tail_accuracy"])) > float(str(plain["metric_tail_accuracy"])) + 0.06
