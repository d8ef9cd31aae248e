"""Data cleaning: wrong labels counted, losses and derivatives by numpy and differences, and what cleaning means."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from fedbilevel import BadInput, ClientData, derivatives, simulate
from fedbilevel.data import FederatedData, federate
from fedbilevel.data.datasets import local_files
from fedbilevel.problem import map_examples
from fedbilevel.problems import HyperCleaning, hyper_cleaning
from tests.agreement import relative
from tests.differentiable import Plain, randn

SIZES, CLASSES, WIDTH = (7, 4, 9), 3, 5
PLACES = {"example": np.arange(20), "client": np.repeat(np.arange(3), SIZES)}
"""Where in x the weight of each lower example stands."""


def labelled(n: int, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    draw = np.random.default_rng(seed)
    return draw.random((n, WIDTH), dtype=np.float32), draw.integers(0, CLASSES, n)


def federated(sizes: tuple[int, ...] = SIZES, seed: int = 0) -> FederatedData:
    """Clients of few examples, whose own data do not depend on the other clients'."""

    def level(of: int) -> list[dict[str, Tensor]]:
        parts = [labelled(n + of, seed=100 * seed + 10 * client + of) for client, n in enumerate(sizes)]
        return [{"input": torch.from_numpy(a), "label": torch.from_numpy(b)} for a, b in parts]

    shares = [0.5, 0.2, 0.3] if len(sizes) == 3 else "size"
    return FederatedData(ClientData(level(0), level(1), shares), *labelled(11, seed=99), CLASSES, WIDTH)


def cleaning(**parameters: Any) -> HyperCleaning:
    return hyper_cleaning(federated(), **{"noise": 0.4, "l2": 0.3, "dtype": torch.float64, "seed": 5, **parameters})


def wrong_of(problem: HyperCleaning, data: FederatedData) -> NDArray[np.bool_]:
    return np.asarray((problem.clients.lower.values["label"] != data.clients.lower.values["label"]).numpy())


# ---- the labels ----


@pytest.mark.parametrize("noise", [0.0, 0.4, [0.0, 0.9, 0.25]])
def test_each_client_s_share_of_labels_is_wrong(noise: float | list[float]) -> None:
    data, problem = federated(), cleaning(noise=noise)
    wrong = wrong_of(problem, data)
    shares = noise if isinstance(noise, list) else [noise] * 3
    expected = [round(share * n) for share, n in zip(shares, SIZES, strict=True)]
    assert [int(part.sum()) for part in np.split(wrong, [7, 11])] == expected
    assert np.array_equal(problem.wrong.numpy(), wrong)
    label = problem.clients.lower.values["label"]
    assert 0 <= int(label.min()) <= int(label.max()) < CLASSES
    assert torch.equal(problem.clients.upper.values["label"], data.clients.upper.values["label"])


def test_wrong_labels_are_uniform_over_the_other_classes() -> None:
    data = federated((6000, 3000))
    problem = hyper_cleaning(data, noise=[0.9, 0.5])
    wrong = wrong_of(problem, data)
    label, truth = problem.clients.lower.values["label"].numpy(), data.clients.lower.values["label"].numpy()
    away = np.bincount(((label - truth) % CLASSES)[wrong], minlength=CLASSES)
    assert away[0] == 0
    assert abs(away[1] - away[2]) < 5 * np.sqrt(wrong.sum())
    halves = [int(wrong[:6000][half].sum()) for half in (slice(3000), slice(3000, 6000))]
    assert abs(halves[0] - halves[1]) < 5 * np.sqrt(6000 * 0.09)


def test_one_client_s_labels_do_not_depend_on_the_others() -> None:
    few = hyper_cleaning(federated((7, 4)), noise=0.4)
    more = hyper_cleaning(federated((7, 4, 30)), noise=[0.4, 0.4, 0.9])
    assert torch.equal(more.clients.lower.values["label"][:11], few.clients.lower.values["label"])
    other = cleaning(seed=6).clients.lower.values["label"]
    assert not torch.equal(other, cleaning().clients.lower.values["label"])


@pytest.mark.parametrize(("examples", "sizes"), [(5, ((5, 4, 5), (8, 5, 10))), ([6, 3], ((6, 4, 6), (3, 3, 3)))])
def test_at_most_so_many_examples(examples: Any, sizes: tuple[tuple[int, ...], ...]) -> None:
    data, problem = federated(), cleaning(examples=examples, noise=0.0)
    for level, expected in zip(("lower", "upper"), sizes, strict=True):
        kept, whole = getattr(problem.clients, level), getattr(data.clients, level)
        assert tuple(kept.sizes) == expected
        for client in range(3):
            mine, theirs = (
                {(*a.tolist(), int(b)) for a, b in zip(inputs.float(), labels, strict=True)}
                for inputs, labels in (
                    [part.values[key][part.offsets[client] : part.offsets[client + 1]] for key in ("input", "label")]
                    for part in (kept, whole)
                )
            )
            assert mine <= theirs
            assert len(mine) == expected[client]
    assert list(problem.clients.weights) == [0.5, 0.2, 0.3]


# ---- losses and derivatives ----


def by_numpy(y: NDArray[Any], inputs: NDArray[Any], label: NDArray[Any]) -> NDArray[Any]:
    """Cross-entropy of every example, a linear model written out."""
    logits = inputs @ y[: CLASSES * WIDTH].reshape(CLASSES, WIDTH).T + y[CLASSES * WIDTH :]
    return np.asarray(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(label)), label])


@pytest.mark.parametrize("kind", ["example", "client"])
def test_losses_and_measures_by_numpy(kind: Any) -> None:
    problem = cleaning(cleaning=kind)
    x, y = randn(len(set(PLACES[kind])), seed=1), randn(CLASSES * (WIDTH + 1), seed=2)
    lower, upper = (
        [problem.clients.__dict__[level].values[key].numpy() for key in ("input", "label")]
        for level in ("lower", "upper")
    )
    weight = 1 / (1 + np.exp(-x.numpy()[PLACES[kind]]))
    g = weight * by_numpy(y.numpy(), *lower) + 0.15 * float(y @ y)
    prepared = problem.prepare(x, problem.clients.lower.values)
    assert relative(problem.lower(x, y, prepared), g) < 1e-12
    above = problem.prepare(x, problem.clients.upper.values)
    assert relative(problem.upper(x, y, above), by_numpy(y.numpy(), *upper)) < 1e-12
    inputs, label = labelled(11, seed=99)
    measures = problem.evaluate(x, y)
    assert measures["test_loss"] == pytest.approx(by_numpy(y.numpy(), inputs.astype(float), label).mean())
    wrong, found = problem.wrong.numpy(), weight < 0.5
    pairs = [(b > a) + (b == a) / 2 for a in weight[wrong] for b in weight[~wrong]]
    assert measures["auroc"] == pytest.approx(np.mean(pairs))
    assert measures["f1"] == pytest.approx(2 * (wrong & found).sum() / (wrong.sum() + found.sum()))
    assert not {"auroc", "f1"} & cleaning(noise=0.0, cleaning=kind).evaluate(x, y).keys()


@pytest.mark.parametrize("network", ["linear", "mlp"])
@pytest.mark.parametrize("kind", ["example", "client"])
def test_derivatives_are_those_of_differences(kind: Any, network: str) -> None:
    problem = cleaning(cleaning=kind, network=network, hidden=[2])
    start = problem.initial(torch.Generator().manual_seed(2))
    x, y, v = start[0] + randn(*start[0].shape, seed=1), start[1], randn(*start[1].shape, seed=4)
    held = {level: getattr(problem.clients, level).values for level in ("lower", "upper")}
    draw = torch.Generator().manual_seed(5)
    weights = {level: torch.rand(len(each["label"]), generator=draw, dtype=x.dtype) for level, each in held.items()}

    def loss(level: Any, x: Tensor, y: Tensor) -> Tensor:
        losses: Tensor = getattr(problem, level)(x, y, problem.prepare(x, held[level]))
        return losses @ weights[level]

    def prepared(level: str) -> Any:
        return derivatives.linearise(problem, x, y, problem.prepare(x, held[level]))

    def slopes(function: Any, at: Tensor) -> Tensor:
        eye = 1e-4 * torch.eye(len(at), dtype=torch.float64)
        return torch.stack([(function(at + e) - function(at - e)) / 2e-4 for e in eye], -1)

    def gy(x: Tensor, y: Tensor) -> Tensor:
        values = problem.prepare(x, held["lower"])
        return derivatives.gradient_y(problem, "lower", x, y, values, weights["lower"])

    for level in ("lower", "upper"):
        given = (prepared(level), weights[level])
        in_y = slopes(lambda y, level=level: loss(level, x, y), y)
        assert relative(derivatives.gradient_y(problem, level, x, y, *given), in_y) < 1e-6
        found = derivatives.gradient_x(problem, level, x, y, held[level], *given)
        assert float((found - slopes(lambda x, level=level: loss(level, x, y), x)).abs().max()) < 1e-7
    given = (prepared("lower"), weights["lower"])
    assert relative(derivatives.hvp(problem, x, y, v, *given), slopes(lambda y: gy(x, y), y) @ v) < 1e-6
    crossed = derivatives.cross_vjp(problem, x, y, v, held["lower"], *given)
    assert relative(crossed, slopes(lambda x: gy(x, y) @ v, x)) < 1e-6


def test_closed_forms_take_a_row_for_each_client() -> None:
    """Three rows of examples that overlap, a y and a v for each."""
    problem = cleaning()
    plain: Any = Plain(problem)
    rows = torch.tensor([[0, 3, 19, 4], [3, 3, 7, 8], [1, 2, 0, 19]])
    x, ys, vs = randn(20, seed=1), randn(3, 18, seed=2), randn(3, 18, seed=3)
    weights = torch.rand(3, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    examples = map_examples(lambda tensor: tensor[rows], problem.clients.lower.values)
    prepared = map_examples(lambda tensor: tensor[rows], problem.prepare(x, problem.clients.lower.values))
    for closed, bare in (
        [derivatives.gradient_y(each, "lower", x, ys, prepared, weights) for each in (problem, plain)],
        [derivatives.hvp(each, x, ys, vs, prepared, weights) for each in (problem, plain)],
        [derivatives.cross_vjp_sum(each, x, ys[0], vs, examples, prepared, weights) for each in (problem, plain)],
    ):
        assert relative(closed, bare) < 1e-12


# ---- what cleaning means ----


def test_exact_weights_leave_the_solution_of_the_clean_subset() -> None:
    data = federated((40, 30, 50))
    problem = hyper_cleaning(data, noise=0.4, l2=0.3, dtype=torch.float64, seed=5)
    truth = wrong_of(problem, data)
    x = torch.from_numpy(np.where(truth, -800.0, 800.0))
    values = problem.clients.lower.values
    inputs, label, sizes = values["input"].numpy(), values["label"].numpy(), np.array([40, 30, 50])
    share = np.repeat(problem.clients.weights / sizes, sizes)[~truth]

    def clean(y: NDArray[Any]) -> float:
        return float(share @ by_numpy(y, inputs[~truth], label[~truth]) + 0.15 * y @ y)

    best = minimize(clean, np.zeros(18), method="BFGS", options={"gtol": 1e-7}).x
    result = simulate(problem, "fednest", iterations=1, lower_rounds=60, lower_step=1.0, upper_step=0.0, x0=x)
    assert relative(result.y, best) < 1e-5


@pytest.mark.parametrize(("kind", "sizes"), [("example", SIZES), ("client", (1, 1, 1))])
def test_a_client_is_sent_its_own_block_alone(kind: Any, sizes: tuple[int, ...]) -> None:
    """simfbo: down x, y, v and up a direction of each, in float32, for two sampled clients a round."""
    problem = hyper_cleaning(federated(), noise=0.4, cleaning=kind)
    result = simulate(problem, "simfbo", iterations=3, clients_per_round=2, trace=True, seed=1)
    assert result.trace is not None
    expected = sum(4 * (sizes[client] + 2 * 18) for entry in result.trace for client in entry.clients[0])
    assert result.communication["downlink_bytes"] == result.communication["uplink_bytes"] == expected


@pytest.mark.parametrize(
    ("parameters", "line"),
    [
        ({"noise": 1.0}, "problem.noise: got 1.0; allowed: a number of at least 0 and below 1, or a list of 3 of them"),
        ({"noise": -0.1}, "problem.noise: got -0.1; allowed: a number"),
        ({"noise": [0.1, 0.2]}, "problem.noise: got [0.1, 0.2]; allowed: a number"),
        ({"noise": [0.1, 0.2, float("nan")]}, "problem.noise"),
        ({"cleaning": "all"}, "problem.cleaning: got 'all'"),
        ({"examples": 0}, "problem.examples: got 0"),
        ({"examples": [5]}, "problem.examples: got [5]"),
        ({"l2": -1.0}, "problem.l2: got -1.0"),
        ({"network": "liner"}, "problem.network: got 'liner'"),
        ({"network": "mlp", "hidden": []}, "problem.hidden: got []"),
        ({"network": "conv"}, "problem.network: got 'conv'"),
    ],
)
def test_what_is_refused(parameters: dict[str, Any], line: str) -> None:
    with pytest.raises(BadInput) as caught:
        cleaning(**parameters)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


# ---- on MNIST ----


def central(inputs: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    """The classes that a linear softmax classifier trained on all of these examples at once predicts, l2 = 1e-3."""

    def loss(flat: NDArray[Any]) -> tuple[float, NDArray[Any]]:
        W, b = torch.from_numpy(flat[:7840]).view(10, 784).to(inputs), torch.from_numpy(flat[7840:]).to(inputs)
        log_p = torch.log_softmax(inputs @ W.T + b, -1)
        residual = (log_p.exp() - torch.nn.functional.one_hot(labels, 10)) / len(labels)
        slope = torch.cat([(residual.T @ inputs).flatten(), residual.sum(0)]).double().numpy() + 1e-3 * flat
        return -float(log_p[torch.arange(len(labels)), labels].mean()) + 5e-4 * float(flat @ flat), slope

    best = torch.from_numpy(minimize(loss, np.zeros(7850), jac=True, method="L-BFGS-B", options={"maxiter": 200}).x)
    classes: Tensor = (test.double() @ best[:7840].view(10, 784).T + best[7840:]).argmax(1)
    return classes


@pytest.mark.slow
@pytest.mark.beside
@pytest.mark.skipif("mnist" not in local_files(), reason="mnist.npz is not in $FEDBILEVEL_DATA")
def test_cleaning_recovers_most_of_what_wrong_labels_cost() -> None:
    """100 clients, 50 examples each, 60 % wrong: 3/4 of the way from training on all labels to the clean ones alone."""
    data = federate("mnist", clients=100, partition_name="shards", parameters={"shards_per_client": 2}, seed=0)
    problem = hyper_cleaning(data, noise=0.6, examples=[50, 10], seed=0)
    assert int(problem.wrong.sum()) == 3000
    lower, clean, truth = problem.clients.lower.values, ~problem.wrong, problem.test_label
    noisy, best = (
        float((central(*(lower[k][rows] for k in ("input", "label")), problem.test_input) == truth).double().mean())
        for rows in (clean | problem.wrong, clean)
    )
    assert noisy < 0.7 < 0.88 < best
    steps = {"upper_step": 0.2, "lower_step": 0.5, "neumann_step": 0.5, "upper_optimiser": "adam"}
    result = simulate(problem, "simfbo", rounds=100, evaluate_every=100, solution_every=0, **steps)
    row = result.history[-1]
    assert row["test_accuracy"] > noisy + 0.75 * (best - noisy)
    assert row["metric_auroc"] > 0.9
