"""Networks by name: what each one is, what it takes, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.func import grad
from torch.nn.functional import cross_entropy

from fedbilevel.errors import BadInput
from fedbilevel.problems.networks import find
from fedbilevel.problems.networks.convolutions import Convolutions
from fedbilevel.problems.networks.layers import Perceptron


def start(network: Any) -> torch.Tensor:
    y: torch.Tensor = network.initial(torch.Generator().manual_seed(3))
    return y + 0.1 * torch.randn(y.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def test_linear_is_one_matrix_and_a_bias() -> None:
    network = find("linear", (2, 3), 4)
    y, inputs = start(network), torch.rand(5, 6, dtype=torch.float64)
    assert (network.size, network.body, network.width) == (4 * 7, 0, 6)
    torch.testing.assert_close(network(y, inputs), inputs @ y[:24].view(4, 6).T + y[24:])
    assert torch.equal(network.features(y, inputs), inputs)


def test_mlp_is_the_perceptron_of_its_widths() -> None:
    network, other = find("mlp", (2, 3), 4, hidden=(5, 7), activation="tanh"), Perceptron([6, 5, 7], 4, "tanh")
    y, inputs = start(other), torch.rand(5, 6, dtype=torch.float64)
    assert network.size == other.size == 6 * 5 + 5 + 5 * 7 + 7 + 7 * 4 + 4
    assert torch.equal(network(y, inputs), other(y, inputs))
    assert torch.equal(*(each.initial(torch.Generator().manual_seed(1)) for each in (network, other)))


@pytest.mark.parametrize("shape", [(8, 8), (7, 7, 3)])
def test_conv_takes_flat_images_of_its_shape(shape: tuple[int, ...]) -> None:
    network = find("conv", shape, 4, filters=5, blocks=3)
    other = Convolutions(shape[2] if len(shape) == 3 else 1, 5, 4, 3, normalise=False)
    y, images = start(other), torch.rand(6, *shape, dtype=torch.float64)
    assert network.size == other.size
    flat = images.flatten(1)
    torch.testing.assert_close(network(y, flat), other(y, images), rtol=1e-12, atol=1e-12)
    features = network.features(y[: network.body], flat)
    torch.testing.assert_close(features, other.features(y, images), rtol=1e-12, atol=1e-12)


def test_the_gradient_of_conv_is_its_differences() -> None:
    """The seam between flat inputs and images, with channels; each partial derivative by itself."""
    network = find("conv", (5, 5, 2), 3, filters=3)
    y, inputs, label = start(network), torch.rand(4, 50, dtype=torch.float64), torch.tensor([0, 2, 1, 1])

    def loss(y: torch.Tensor) -> torch.Tensor:
        return cross_entropy(network(y, inputs), label)

    h, eye = 1e-6, torch.eye(network.size, dtype=torch.float64)
    differences = torch.stack([(loss(y + h * e) - loss(y - h * e)) / (2 * h) for e in eye])
    torch.testing.assert_close(grad(loss)(y), differences, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "shape", "given", "key", "said"),
    [
        ("convs", (8, 8), {}, "problem.network", "did you mean 'conv'?"),
        ("conv", (64,), {}, "problem.network", "(64,)"),
        ("conv", (8, 7), {}, "problem.network", "square"),
        ("conv", (8, 8), {"filters": 0}, "problem.filters", "at least 1"),
        ("conv", (8, 8), {"blocks": 0}, "problem.blocks", "at least 1"),
        ("mlp", (8, 8), {"hidden": []}, "problem.hidden", "at least one width"),
        ("mlp", (8, 8), {"hidden": [4, 0]}, "problem.hidden", "at least one width"),
        ("mlp", (8, 8), {"activation": "sine"}, "problem.activation", "tanh"),
        ("mlp", (8, 8), {"hidden": [10**12]}, "problem.hidden", "narrower layers"),
        ("conv", (8, 8), {"filters": 10**8}, "problem.network", "fewer filters"),
    ],
)
def test_what_is_refused(name: str, shape: tuple[int, ...], given: dict[str, Any], key: str, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        find(name, shape, 10, **given)
    assert caught.value.key == key
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_linear_model_is_no_representation() -> None:
    with pytest.raises(BadInput, match="allowed: conv, mlp"):
        find("linear", (8, 8), None)


def test_errors_name_the_key_that_was_given() -> None:
    with pytest.raises(BadInput, match=r"^task\.hidden: "):
        find("mlp", (8, 8), 10, hidden=(), key="task.network")
