"""The hyper-representation: its closed forms against automatic differentiation, its evaluation against numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import vmap

from fedbilevel import ClientData, derivatives, simulate
from fedbilevel.data import FederatedData
from fedbilevel.problem import map_examples
from fedbilevel.problems import HyperRepresentation
from server.kit.algorithm import algorithms
from tests.differentiable import LEVELS, Direct, Plain, near, randn, small_digits

NETWORKS = [((3,), "tanh"), ((3,), "relu"), ((4, 3), "tanh"), ((4, 3), "relu"), ((4, 5, 2), "tanh")]


@pytest.mark.parametrize(("hidden", "activation"), NETWORKS)
def test_closed_forms_equal_autodiff_at_one_point(hidden: tuple[int, ...], activation: str) -> None:
    problem = small_digits(hidden, activation)
    plain = Plain(problem)
    x, y = problem.initial(torch.Generator().manual_seed(2))
    x, y, v = x + 0.1 * randn(*x.shape, seed=6), randn(*y.shape, seed=3), randn(*y.shape, seed=4)
    for level in LEVELS:
        examples = getattr(problem.clients, level).values
        n = len(examples["label"])
        weights = torch.rand(n, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        prepared = problem.prepare(x, examples)
        dy, dx = (
            [f(p, level, x, y, *given, weights) for p in (problem, plain)]
            for f, given in ((derivatives.gradient_y, (prepared,)), (derivatives.gradient_x, (examples, prepared)))
        )
        near(dy[0], dy[1], 1e-12)
        near(dx[0], dx[1], 1e-12)
        if level == "lower":
            curved = [derivatives.hvp(p, x, y, v, prepared, weights) for p in (problem, plain)]
            near(curved[0], curved[1], 1e-12)
            crossed = [derivatives.cross_vjp(p, x, y, v, examples, prepared, weights) for p in (problem, plain)]
            near(crossed[0], crossed[1], 1e-12)


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
@pytest.mark.parametrize(("hidden", "activation"), NETWORKS[1:3])
def test_closed_forms_in_y_take_leading_dimensions(
    hidden: tuple[int, ...], activation: str, leading: tuple[int, ...]
) -> None:
    problem, n = small_digits(hidden, activation), 7
    x, y = problem.initial(torch.Generator().manual_seed(2))
    y, v = randn(*leading, len(y), seed=3), randn(*leading, len(y), seed=4)
    weights = torch.rand(*leading, n, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    rows = torch.randint(len(problem.clients.lower.values["label"]), (*leading, n), generator=torch.Generator())
    prepared = map_examples(lambda tensor: tensor[rows], problem.prepare(x, problem.clients.lower.values))

    def loss(y: Tensor, feature: Tensor, label: Tensor, w: Tensor, level: str) -> Tensor:
        total: Tensor = (getattr(problem, level)(x, y, {"feature": feature, "label": label}) * w).sum()
        return total

    def batched(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        for _ in leading:
            function = vmap(function)
        return function

    arguments = (prepared["feature"], prepared["label"], weights)
    lower = torch.func.grad(lambda y, f, l, w: loss(y, f, l, w, "lower"))
    upper = torch.func.grad(lambda y, f, l, w: loss(y, f, l, w, "upper"))
    second = torch.func.grad(lambda y, v, f, l, w: lower(y, f, l, w) @ v)
    near(problem.lower_gradient(x, y, prepared, weights), batched(lower)(y, *arguments), 1e-12)
    near(problem.upper_gradient_y(x, y, prepared, weights), batched(upper)(y, *arguments), 1e-12)
    near(problem.lower_hvp(x, y, v, prepared, weights), batched(second)(y, v, *arguments), 1e-12)
    for anchor in (v, v.flatten()[: v.shape[-1]]):
        difference = batched(lower)(y, *arguments) - batched(lower)(anchor.expand_as(y), *arguments)
        near(problem.lower_gradient_difference(x, y, anchor, prepared, weights), difference, 1e-12)


@pytest.mark.filterwarnings("ignore:aggitd-aq. mixing takes the noise")
@pytest.mark.parametrize("batch", ["full", 5])
@pytest.mark.parametrize("name", sorted(algorithms("global")))
def test_closed_forms_and_prepared_features_change_no_run(name: str, batch: Any) -> None:
    problem = small_digits((3,), "tanh")
    options = {"lower_rounds": 2, "neumann_terms": 2, "local_steps": 2, "upper_local_steps": 2, "upper_step": 0.5}
    settings = {"iterations": 3, "seed": 1, "batch": batch, "gradient_batch": 7, "clients_per_round": 2}
    closed, bare = (simulate(each, name, **settings, **options) for each in (problem, Direct(problem)))
    near(closed.x, bare.x, 1e-11)
    near(closed.y, bare.y, 1e-11)
    for a, b in zip(closed.history, bare.history, strict=True):
        for loss in ("lower_loss", "upper_loss"):
            assert a[loss] == pytest.approx(b[loss], rel=1e-11)


# ---- evaluation ----

Labelled = tuple[np.ndarray, np.ndarray]


def labelled(n: int, seed: int) -> Labelled:
    """N images of 2 x 3 pixels, and labels below 3."""
    draw = np.random.default_rng(seed)
    return draw.random((n, 2, 3), dtype=np.float32), draw.integers(0, 3, n)


def by_numpy(x: Tensor, y: Tensor, examples: Labelled) -> tuple[np.ndarray, np.ndarray]:
    """Cross-entropy of every example, and whether its class is the most likely one: 6-4-3 with tanh, written out."""
    inputs, label = examples[0].reshape(-1, 6).astype(np.float64), examples[1]
    hidden = np.tanh(inputs @ x[:24].numpy().reshape(4, 6).T + x[24:].numpy())
    logits = hidden @ y[:12].numpy().reshape(3, 4).T + y[12:].numpy()
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return -np.log(p[np.arange(len(label)), label]), logits.argmax(1) == label


def test_an_evaluation_is_of_the_whole_test_set_and_a_loss_of_its_own_level() -> None:
    test = labelled(11, seed=1)
    lower, upper = ([labelled(n, seed=n) for n in sizes] for sizes in ((4, 5), (6, 3)))

    def held(parts: list[Labelled]) -> list[dict[str, Tensor]]:
        return [{"input": torch.from_numpy(a).flatten(1), "label": torch.from_numpy(b)} for a, b in parts]

    data = FederatedData(ClientData(held(lower), held(upper), [0.25, 0.75]), *test, classes=3, features=6)
    problem = HyperRepresentation(data, hidden=[4], activation="tanh", l2=0.3, dtype=torch.float64)
    result = simulate(problem, "joint", iterations=6, upper_step=2.0, lower_step=2.0, trace=True)
    accuracies = set()
    for row, entry in zip(result.history[1:], result.trace or (), strict=True):
        x, y = entry.x, entry.y
        losses, right = by_numpy(x, y, test)
        f, g = (
            0.25 * by_numpy(x, y, parts[0])[0].mean() + 0.75 * by_numpy(x, y, parts[1])[0].mean()
            for parts in (upper, lower)
        )
        expected = {"test_loss": losses.mean(), "upper_loss": f, "lower_loss": g + 0.5 * 0.3 * float(y @ y)}
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-12)
        assert row["test_accuracy"] == pytest.approx(right.sum() / 11, rel=1e-12)
        accuracies.add(int(right.sum()))
    assert len(accuracies) > 1
