"""Unlearning: both losses against numpy, what is marked, derivatives against differences, the models it compares."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedbilevel import ClientData, derivatives, simulate
from fedbilevel.data import FederatedData, federate
from fedbilevel.problems import Unlearning
from tests.datasets import refused
from tests.differentiable import near, randn
from tests.fedbilevel.problems.bilevel.test_loss_tuning import CLASSES, FEATURES, HIDDEN, cross_entropy, data, outputs


def problem(**changed: Any) -> Unlearning:
    chosen = {} if "forget_clients" in changed else {"forget_class": 1}
    given: dict[str, Any] = {"hidden": [HIDDEN], "mu": 0.6, "epochs": 1, "dtype": torch.float64, **chosen}
    return Unlearning(data(changed.pop("weights", (0.2, 0.3, 0.5))), **{**given, **changed})


def global_loss(unlearning: Unlearning, level: derivatives.Level, x: Tensor, y: Tensor) -> float:
    held = getattr(unlearning.clients, level)
    losses = getattr(unlearning, level)(x, y, held.values)
    means = [float(losses[a:b].mean()) for a, b in zip(held.offsets[:-1], held.offsets[1:], strict=True)]
    return float(unlearning.clients.weights @ means)


def point(unlearning: Unlearning) -> tuple[Tensor, Tensor]:
    return 0.5 * randn(unlearning.network.size, seed=1), 1.5 * randn(unlearning.network.size, seed=2)


@pytest.mark.parametrize("what", [{"forget_class": 1}, {"forget_clients": [0]}, {"forget_clients": [0, 2]}])
@pytest.mark.parametrize("weights", ["uniform", [0.7, 0.2, 0.1]])
def test_both_losses_are_means_over_examples_whatever_the_weights(what: dict[str, Any], weights: Any) -> None:
    unlearning, whole = problem(weights=weights, **what), data().clients
    x, y = point(unlearning)
    found = {}
    for level in ("lower", "upper"):
        held = getattr(whole, level)
        owner = np.repeat(np.arange(3), held.sizes)
        losses = cross_entropy(outputs(y, held.values["input"]), held.values["label"])
        lost = np.isin(owner, what["forget_clients"]) if "forget_clients" in what else held.values["label"].numpy() == 1
        found[level] = losses, lost
    (training, forget), (validation, gone) = found["lower"], found["upper"]
    pull = 0.3 * float((x - y) @ (x - y))
    assert global_loss(unlearning, "lower", x, y) == pytest.approx(training[~forget].mean() + pull, rel=1e-12)
    capped = np.minimum(training[forget], math.log(3))
    assert (capped < training[forget]).any()
    assert (capped == training[forget]).any() or "forget_class" in what
    assert global_loss(unlearning, "upper", x, y) == pytest.approx(validation[~gone].mean() - capped.mean(), rel=1e-12)


@pytest.mark.parametrize("what", [{"forget_class": 2}, {"forget_clients": [1]}])
def test_a_client_s_upper_examples_are_its_own(what: dict[str, Any]) -> None:
    unlearning, whole = problem(**what), data().clients
    held = unlearning.clients.upper
    for i, (a, b) in enumerate(zip(held.offsets[:-1], held.offsets[1:], strict=True)):
        own = [getattr(whole, level).values["input"] for level in ("lower", "upper")]
        lower, upper = (
            rows[level.offsets[i] : level.offsets[i + 1]]
            for rows, level in zip(own, (whole.lower, whole.upper), strict=True)
        )
        labels = whole.lower.values["label"][whole.lower.offsets[i] : whole.lower.offsets[i + 1]]
        lost = labels == 2 if "forget_class" in what else torch.full_like(labels, i == 1, dtype=torch.bool)
        assert torch.equal(held.values["input"][a:b], torch.cat([upper, lower[lost]]))
        assert held.values["forget"][a:b].tolist() == [False] * len(upper) + [True] * int(lost.sum())


def test_a_share_of_every_client_s_training_part_is_forgotten() -> None:
    """A third of each client's lower examples, rounded; another third for another seed; all validation ones stay."""
    first, again, other = (problem(forget_class=None, forget_share=1 / 3, seed=seed) for seed in (1, 1, 2))
    lower, upper = first.clients.lower, first.clients.upper
    ends = list(zip(lower.offsets[:-1], lower.offsets[1:], strict=True))
    counts = [int(lower.values["forget"][a:b].sum()) for a, b in ends]
    assert counts == [round((b - a) / 3) for a, b in ends]
    assert torch.equal(lower.values["forget"], again.clients.lower.values["forget"])
    assert not torch.equal(lower.values["forget"], other.clients.lower.values["forget"])
    x, y = point(first)
    losses = cross_entropy(outputs(y, lower.values["input"]), lower.values["label"])
    forgotten = lower.values["forget"].numpy()
    held = data().clients.upper
    validation = cross_entropy(outputs(y, held.values["input"]), held.values["label"]).mean()
    expected = validation - np.minimum(losses[forgotten], math.log(3)).mean()
    assert global_loss(first, "upper", x, y) == pytest.approx(expected, rel=1e-12)
    assert len(upper.values["label"]) == len(held.values["label"]) + sum(counts)


def test_derivatives_agree_with_differences() -> None:
    unlearning, h = problem(), 1e-6
    x, y = point(unlearning)
    u, v = randn(len(y), seed=3), randn(len(y), seed=4)
    examples = unlearning.clients.lower.values
    w = torch.rand(len(examples["label"]), generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def gy(x: Tensor, y: Tensor) -> Tensor:
        return derivatives.gradient_y(unlearning, "lower", x, y, examples, w)

    near(derivatives.hvp(unlearning, x, y, v, examples, w), (gy(x, y + h * v) - gy(x, y - h * v)) / (2 * h), 1e-6)
    crossed = derivatives.cross_vjp(unlearning, x, y, v, examples, examples, w)
    assert float(crossed @ u) == pytest.approx(float((gy(x + h * u, y) - gy(x - h * u, y)) @ v) / (2 * h), rel=1e-6)
    upper = unlearning.clients.upper.values
    rest = torch.rand(len(upper["label"]), generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    fy = derivatives.gradient_y(unlearning, "upper", x, y, upper, rest)
    ahead, behind = (float((unlearning.upper(x, y + s * h * v, upper) * rest).sum()) for s in (1, -1))
    assert float(fy @ v) == pytest.approx((ahead - behind) / (2 * h), rel=1e-6)


def test_the_cross_product_of_rows_is_the_sum_of_those_of_each() -> None:
    unlearning = problem()
    x, y = point(unlearning)
    v, w = randn(3, len(y), seed=4), torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.2, 0.1]], dtype=torch.float64)
    summed = unlearning.cross_vjp_sum(x, y, v, {}, {}, w)
    near(summed, -0.6 * (v[0] + v[1] + 0.3 * v[2]), 1e-14)


def test_a_step_of_training_by_numpy() -> None:
    """One epoch of a linear model that fits one minibatch: y - 0.1 times the gradient of the mean loss."""
    unlearning = problem(network="linear")
    start = unlearning.network.initial(torch.Generator().manual_seed(0)).double()
    whole = data().clients.lower.values
    for rows, found in (
        (np.ones(42, bool), unlearning.initial(torch.Generator())[0]),
        (whole["label"].numpy() != 1, unlearning.retrained),
    ):
        inputs, label = whole["input"].numpy()[rows], whole["label"].numpy()[rows]
        logits = outputs(start, inputs)
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        residual = (p - np.eye(CLASSES)[label]) / len(label)
        gradient = np.concatenate([(residual.T @ inputs).ravel(), residual.sum(0)])
        near(found, start - 0.1 * torch.from_numpy(gradient), 1e-12)


def test_the_start_is_trained_alike_for_a_seed_and_random_without_epochs() -> None:
    starts = [problem(seed=seed).initial(torch.Generator().manual_seed(9))[0] for seed in (1, 1, 2)]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
    bare = problem(epochs=0, seed=1)
    x, y = bare.initial(torch.Generator())
    assert torch.equal(x, y)
    assert torch.equal(x, bare.network.initial(torch.Generator().manual_seed(1)).double())


def test_measures_are_of_x_on_each_set() -> None:
    unlearning, given = problem(), data()
    x, y = point(unlearning)
    held = given.clients.lower.values
    right = outputs(x, held["input"]).argmax(1) == held["label"].numpy()
    lost, kept = held["label"].numpy() == 1, given.y_test != 1
    logits = outputs(x, given.x_test.astype(np.float64))[kept]
    expected = {
        "test_accuracy": (logits.argmax(1) == given.y_test[kept]).mean(),
        "test_loss": cross_entropy(logits, given.y_test[kept]).mean(),
        "forget_accuracy": right[lost].mean(),
        "retain_accuracy": right[~lost].mean(),
        "retrained_distance": float((x - unlearning.retrained).norm()),
    }
    assert unlearning.evaluate(x, y) == pytest.approx(expected, rel=1e-9)


def test_single_precision_is_close_to_double() -> None:
    single, double = problem(dtype=torch.float32), problem()
    x, y = point(double)
    for level in ("lower", "upper"):
        coarse = getattr(single, level)(x.float(), y.float(), getattr(single.clients, level).values)
        assert coarse.dtype == torch.float32
        near(coarse.double(), getattr(double, level)(x, y, getattr(double.clients, level).values), 1e-5)


@pytest.mark.parametrize(
    ("changed", "key", "part"),
    [
        ({"forget_class": None}, "forget_class", "forget_clients"),
        ({"forget_class": 3}, "forget_class", "from 0 to 2"),
        ({"forget_class": 1, "forget_clients": [0]}, "forget_clients", "only one"),
        ({"forget_class": None, "forget_share": 1.0}, "forget_share", "less than everything"),
        ({"forget_class": None, "forget_share": -0.1}, "forget_share", "above 0"),
        ({"forget_class": None, "forget_share": 1e-9}, "forget_share", "nothing to forget"),
        ({"forget_class": None, "forget_share": 0.9999}, "forget_share", "less than everything"),
        ({"forget_clients": [0], "forget_share": 0.5}, "forget_share", "only one"),
        ({"forget_clients": []}, "forget_clients", "from 0 to 2"),
        ({"forget_clients": [3]}, "forget_clients", "from 0 to 2"),
        ({"forget_clients": [0, 1, 2]}, "forget_clients", "less than everything"),
        ({"mu": 0.0}, "mu", "above 0"),
        ({"epochs": -1}, "epochs", "from 0"),
    ],
)
def test_bad_parameters_are_refused_in_one_line(changed: dict[str, Any], key: str, part: str) -> None:
    refused(lambda: problem(**changed), f"problem.{key}", part)


def test_a_class_that_nobody_or_everybody_holds_is_refused() -> None:
    one = [{"input": torch.zeros(2, FEATURES), "label": torch.tensor([1, 1])}]
    given = FederatedData(ClientData(one, one), np.zeros((2, 2, 2), np.float32), np.array([0, 1]), 3, FEATURES)
    refused(lambda: Unlearning(given, forget_class=1, hidden=[2]), "problem.forget_class", "less than everything")
    refused(lambda: Unlearning(given, forget_class=2, hidden=[2]), "problem.forget_class", "some client holds")


def test_a_class_of_digits_is_forgotten_and_the_others_are_kept() -> None:
    held = federate("digits", clients=5, partition_name="iid", seed=1)
    unlearning = Unlearning(held, forget_class=3, network="linear", epochs=5, seed=1)
    options: dict[str, Any] = {"upper_step": 1.0, "lower_step": 0.2, "neumann_step": 0.2, "evaluate_every": 30}
    before, after = simulate(unlearning, "simfbo", rounds=30, **options).history
    assert float(str(before["metric_forget_accuracy"])) > 0.7
    assert float(str(after["metric_forget_accuracy"])) < 0.1
    assert float(str(after["test_accuracy"])) > float(str(before["test_accuracy"])) - 0.03
