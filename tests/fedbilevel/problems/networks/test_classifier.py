"""The closed forms of the convolutional classifier against automatic differentiation and differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.functional import cross_entropy

from fedbilevel.problems.inspection import convert
from fedbilevel.problems.networks import outputs
from fedbilevel.problems.networks.classifier import Classifier
from fedbilevel.problems.networks.convolutions import Convolutions
from fedbilevel.problems.tasks.few_shot import FewShot
from tests.agreement import relative
from tests.runs import meta_gradient, tasks_of

B, N, WAYS = 3, 6, 3
NONE = torch.zeros(0)
FORMS = ("lower_gradient", "upper_gradient_y", "lower_hvp", "lower_expansion")


def drawn(
    side: int, blocks: int, channels: int = 1, shape: tuple[int, ...] | None = None
) -> tuple[Convolutions, Tensor, Tensor, dict[str, Tensor], Tensor]:
    """A network, parameters and directions [B, size], examples of B tasks, and weights that differ."""
    draw = torch.Generator().manual_seed(side + blocks)
    network = Convolutions(channels, 4, WAYS, blocks, shape=shape)
    size = (B, network.size)
    y = torch.stack([network.initial(draw) for _ in range(B)])
    y, v = y + 0.2 * torch.randn(size, generator=draw).double(), torch.randn(size, generator=draw).double()
    images = (side, side) if channels == 1 else (side, side, channels)
    inputs = torch.rand(B, N, *images, generator=draw).double()
    examples = {"input": inputs if shape is None else inputs.flatten(2), "label": torch.arange(N).expand(B, -1) % WAYS}
    return network, y, v, examples, torch.rand(B, N, generator=draw).double()


def loss(network: Convolutions, y: Tensor, examples: dict[str, Tensor], weights: Tensor) -> Tensor:
    return (cross_entropy(network(y, examples["input"]), examples["label"], reduction="none") * weights).sum()


CASES = [
    pytest.param(28, 4, 1, None, id="as Omniglot"),
    pytest.param(8, 4, 1, None, id="digits, down to one pixel"),
    pytest.param(7, 2, 1, None, id="odd sides"),
    pytest.param(6, 1, 3, None, id="one block, three channels"),
    pytest.param(9, 3, 3, (9, 9, 3), id="flat inputs"),
]


@pytest.mark.parametrize(("side", "blocks", "channels", "shape"), CASES)
def test_the_closed_forms_are_the_derivatives(
    side: int, blocks: int, channels: int, shape: tuple[int, ...] | None
) -> None:
    network, y, v, examples, weights = drawn(side, blocks, channels, shape)
    forms = Classifier(network)

    def gradient(y: Tensor, e: dict[str, Tensor], w: Tensor) -> Tensor:
        return grad(lambda y: loss(network, y, e, w))(y)

    def product(y: Tensor, v: Tensor, e: dict[str, Tensor], w: Tensor) -> Tensor:
        return grad(lambda y: torch.dot(gradient(y, e, w), v))(y)

    expected, curved = vmap(gradient)(y, examples, weights), vmap(product)(y, v, examples, weights)
    here = forms.expansion(NONE, y, examples, weights)
    for found in (here.gradient, forms.gradient(NONE, y, examples, weights)):
        assert relative(found, expected) < 1e-12
    for found in (here.product(v), here.product(v), forms.hvp(NONE, y, v, examples, weights)):
        assert relative(found, curved) < 1e-12
    h = 1e-6
    steps = [vmap(gradient)(y + sign * h * v, examples, weights) for sign in (1, -1)]
    assert relative(here.product(v), (steps[0] - steps[1]) / (2 * h)) < 1e-5


def test_at_a_common_point_under_vmap_and_some_tasks_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    network, y, v, examples, weights = drawn(7, 2)
    forms = Classifier(network)
    gradient, curved = forms.gradient(NONE, y, examples, weights), forms.hvp(NONE, y, v, examples, weights)
    for b in range(B):
        one = {key: t[b] for key, t in examples.items()}
        assert relative(forms.gradient(NONE, y[b], one, weights[b]), gradient[b]) < 1e-12
        assert relative(forms.hvp(NONE, y[b], v[b], one, weights[b]), curved[b]) < 1e-12
    points, ways = torch.stack([y, y + v]), torch.stack([v, y])
    found = vmap(lambda y: forms.gradient(NONE, y, examples, weights))(points)
    assert relative(found, torch.stack([forms.gradient(NONE, at, examples, weights) for at in points])) < 1e-12
    found = vmap(lambda y, v: forms.hvp(NONE, y, v, examples, weights))(points, ways)
    each = [forms.hvp(NONE, at, way, examples, weights) for at, way in zip(points, ways, strict=True)]
    assert relative(found, torch.stack(each)) < 1e-12
    found = vmap(lambda v: forms.hvp(NONE, y, v, examples, weights))(ways)
    assert relative(found[0], curved) < 1e-12
    monkeypatch.setattr(outputs, "TOGETHER", 2 * N)
    assert relative(forms.gradient(NONE, y, examples, weights), gradient) < 1e-12
    assert relative(forms.hvp(NONE, y, v, examples, weights), curved) < 1e-12


class Weighted(FewShot):
    """A loss of its own."""

    def lower(self, x: Tensor, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        return 2.0 * super().lower(x, y, examples)


def test_few_shot_has_them_where_they_are_its_losses() -> None:
    assert all(hasattr(FewShot("digits"), form) for form in FORMS)
    others = (FewShot("digits", network="mlp"), FewShot("digits", normalise=False), Weighted("digits"))
    assert not any(hasattr(problem, form) for problem in others for form in FORMS)


METHODS: dict[str, dict[str, Any]] = {
    "maml": {},
    "fomaml": {},
    "bome": {},
    "a-maml": {"solver": "midpoint", "unstable": "report"},
    "imaml": {"cg_steps": 2},  # more steps would amplify rounding
    "ibaml": {"cg_steps": 2, "samples": 4, "inference": "variational"},
}


@pytest.mark.parametrize(("name", "own"), METHODS.items(), ids=METHODS)
def test_methods_are_the_same_by_automatic_differentiation(name: str, own: dict[str, Any]) -> None:
    problem: Any = convert(FewShot("digits", filters=4, clients=2), torch.float64)
    batch, x = tasks_of(problem, 2)
    start = torch.cat([x, torch.full_like(x, -3.0)]) if name == "ibaml" else x
    found = [meta_gradient(name, batch, start, local_steps=3, **own)]
    for form in FORMS:
        del vars(problem)[form]
    found.append(meta_gradient(name, batch, start, local_steps=3, **own))
    assert relative(*found) < 1e-9
