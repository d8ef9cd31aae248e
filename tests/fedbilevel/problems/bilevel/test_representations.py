"""Other representations than a perceptron: derivatives, hypergradients and evaluation, of convolutions and a user's."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedbilevel import ClientData, derivatives
from fedbilevel.data import FederatedData
from fedbilevel.errors import BadInput
from fedbilevel.problems import HyperRepresentation
from tests.agreement import relative
from tests.dense_global import dense_hypergradient, newton
from tests.differentiable import LEVELS, Plain, near, randn
from tests.runs import directions, traced

BODY = """
from torch import nn

def body():
    return nn.Sequential(nn.Conv2d(2, 2, 3, stride=2), nn.Tanh())
"""
SIDE, CHANNELS, CLASSES = 5, 2, 3


def held(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw.random((n, SIDE, SIDE, CHANNELS), dtype=np.float32), draw.integers(0, CLASSES, n)


@functools.cache
def problem(network: str, folder: Path) -> HyperRepresentation:
    """Three unequal clients with a few colour images each."""
    if network != "conv":
        (folder / "nets.py").write_text(BODY)
        network = f"{folder / 'nets.py'}:{network}"
    parts = [held(n, seed=n) for n in (4, 6, 9, 3, 5, 7)]
    levels = [{"input": torch.from_numpy(a).flatten(1), "label": torch.from_numpy(b)} for a, b in parts]
    features = SIDE * SIDE * CHANNELS
    clients = ClientData(levels[:3], levels[3:])
    data = FederatedData(clients, *held(8, seed=1), classes=CLASSES, features=features)
    return HyperRepresentation(data, network=network, filters=3, blocks=2, l2=0.3, dtype=torch.float64)


@pytest.fixture(params=["conv", "body"])
def ours(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HyperRepresentation:
    found = problem(request.param, tmp_path_factory.getbasetemp())
    found.network.together = 4  # so that examples are taken in parts
    return found


def point(ours: HyperRepresentation) -> tuple[Tensor, Tensor]:
    x, y = ours.initial(torch.Generator().manual_seed(2))
    return x + 0.1 * randn(*x.shape, seed=6), randn(*y.shape, seed=3)


def test_closed_forms_equal_autodiff_at_one_point(ours: HyperRepresentation) -> None:
    plain, (x, y) = Plain(ours), point(ours)
    v = randn(*y.shape, seed=4)
    for level in LEVELS:
        examples = getattr(ours.clients, level).values
        weights = torch.rand(len(examples["label"]), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        with torch.no_grad():
            prepared = ours.prepare(x, examples)
            for function, given in (
                (derivatives.gradient_y, (prepared,)),
                (derivatives.gradient_x, (examples, prepared)),
            ):
                near(*(function(each, level, x, y, *given, weights) for each in (ours, plain)), 1e-12)  # type: ignore[operator]  # both take these
            if level == "lower":
                near(*(derivatives.hvp(each, x, y, v, prepared, weights) for each in (ours, plain)), 1e-12)
                near(
                    *(derivatives.cross_vjp(each, x, y, v, examples, prepared, weights) for each in (ours, plain)),
                    1e-12,
                )


def test_the_slope_in_x_is_a_difference_of_losses(ours: HyperRepresentation) -> None:
    x, y = point(ours)
    examples = ours.clients.upper.values
    weights = torch.full((len(examples["label"]),), 0.1, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return (ours.upper(x, y, ours.prepare(x, examples)) * weights).sum()

    slope = derivatives.gradient_x(ours, "upper", x, y, examples, ours.prepare(x, examples), weights)
    h, eye = 1e-6, torch.eye(len(x), dtype=torch.float64)
    differences = torch.stack([(loss(x + h * e) - loss(x - h * e)) / (2 * h) for e in eye])
    near(slope, differences, 1e-6)


@pytest.mark.parametrize("name", ["aggitd", "fednest"])
def test_hypergradients_equal_the_dense_solve(ours: HyperRepresentation, name: str) -> None:
    x, y = point(ours)
    y = newton(ours, x, y)
    expected, H = dense_hypergradient(ours, x, y)
    eigenvalues = torch.linalg.eigvalsh(H)
    step = float(1.9 / (eigenvalues[0] + eigenvalues[-1]))
    terms = int(np.ceil(np.log(1e-10) / np.log(float((1 - step * eigenvalues).abs().max()))))
    options = {"lower_rounds": terms if name == "aggitd" else 1, "neumann_terms": terms, "neumann_step": step}
    result = traced(ours, name, 1, x0=x, y0=y, upper_step=0.0, lower_step=0.1, accounting="merged", **options)
    assert relative(directions(result)[0], expected) < 1e-8


@torch.no_grad()
def test_an_evaluation_is_torch_s(tmp_path: Path) -> None:
    """A convolution on channels first, its outputs flattened, and a head whose weight comes before its bias."""
    ours = problem("body", tmp_path)
    x, y = point(ours)
    images, label = (torch.from_numpy(each) for each in held(8, seed=1))
    body, head = nn.Conv2d(CHANNELS, 2, 3, stride=2).double(), nn.Linear(8, CLASSES).double()
    assert len(x) == 2 * CHANNELS * 9 + 2
    nn.utils.vector_to_parameters(x, body.parameters())
    nn.utils.vector_to_parameters(y, head.parameters())
    logits = head(torch.tanh(body(images.double().permute(0, 3, 1, 2))).flatten(1))
    measured = ours.evaluate(x, y)
    assert measured["test_loss"] == pytest.approx(float(cross_entropy(logits, label)), rel=1e-12)
    assert measured["test_accuracy"] == pytest.approx(float((logits.argmax(1) == label).double().mean()))


def test_a_start_is_the_network_s_and_a_zero_head(ours: HyperRepresentation) -> None:
    x, y = ours.initial(torch.Generator().manual_seed(2))
    start = ours.network.initial(torch.Generator().manual_seed(2))
    assert torch.equal(x, start[: len(x)])
    assert len(y) == CLASSES * (ours.width + 1)
    assert not y.any()


def test_flat_data_have_no_convolutions() -> None:
    examples = [{"input": torch.rand(3, 4), "label": torch.tensor([0, 1, 1])}]
    data = FederatedData(ClientData(examples, examples), np.zeros((2, 4), np.float32), np.zeros(2, np.int64), 2, 4)
    with pytest.raises(BadInput, match=r"^problem\.network: got 'conv'; allowed: .*square images.*\(4,\)$"):
        HyperRepresentation(data, network="conv")
    with pytest.raises(BadInput, match="did you mean 'conv'"):
        HyperRepresentation(data, network="convs")
