"""The networks against torch.nn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.functional import cross_entropy

from fedbilevel.problems.networks import convolutions
from fedbilevel.problems.networks.convolutions import Convolutions
from fedbilevel.problems.networks.layers import Network, Perceptron


class Reference(nn.Module):
    """The convolutional network by torch.nn."""

    def __init__(self, network: Convolutions, y: Tensor, side: int) -> None:
        super().__init__()
        parts, blocks, channels = network.parts(y.detach()), [], 1
        step = 3 if network.normalise else 2
        for weight, *rest in zip(*(parts[k:-2:step] for k in range(step)), strict=True):
            conv = nn.Conv2d(channels, weight.shape[1], 3, stride=2, padding=1, bias=not network.normalise)
            conv.weight.data = weight.view(3, 3, channels, -1).permute(3, 2, 0, 1).contiguous()
            blocks.append(conv)
            if network.normalise:
                norm = nn.BatchNorm2d(weight.shape[1], track_running_stats=False)
                norm.weight.data, norm.bias.data = rest
                blocks.append(norm)
            else:
                assert conv.bias is not None
                conv.bias.data = rest[0]
            blocks.append(nn.ReLU())
            channels = weight.shape[1]
        self.body = nn.Sequential(*blocks).to(y.dtype)
        self.head = nn.Linear(channels, network.outputs, dtype=y.dtype)
        self.head.weight.data, self.head.bias.data = parts[-2:]

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images.unsqueeze(1)).mean((2, 3)))  # type: ignore[no-any-return]

    def gradient(self, images: Tensor, label: Tensor) -> Tensor:
        """In the order of the flat vector."""
        self.zero_grad()
        cross_entropy(self(images), label).backward()
        found = []
        for name, p in self.named_parameters():
            assert p.grad is not None
            found.append((p.grad.permute(2, 3, 1, 0) if p.grad.ndim == 4 else p.grad).flatten())
            assert "num_batches" not in name
        return torch.cat(found)


def draw(network: Network, tasks: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    y = torch.stack([network.initial(generator) for _ in range(tasks)])
    return (y + 0.1 * torch.randn(y.shape, generator=generator, dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("side", [8, 14, 7])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_convolutions_are_torch_s(normalise: bool, side: int, dtype: torch.dtype) -> None:
    network = Convolutions(1, 5, 3, normalise=normalise)
    y = draw(network, 4, dtype)
    images = torch.rand(4, 6, side, side, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)
    label = torch.tensor([0, 1, 2, 2, 1, 0])

    def loss(y: Tensor, images: Tensor) -> Tensor:
        return cross_entropy(network(y, images), label)

    outputs, gradients = vmap(network)(y, images), vmap(grad(loss))(y, images)
    for k in range(4):
        reference = Reference(network, y[k], side)
        torch.testing.assert_close(outputs[k], reference(images[k]))
        tolerance = {"rtol": 1e-3, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-8, "atol": 1e-10}
        torch.testing.assert_close(gradients[k], reference.gradient(images[k], label), **tolerance)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_perceptron_is_torch_s(activation: Any) -> None:
    network = Perceptron([4, 5, 3], 2, activation)
    (y,) = draw(network, 1)
    inputs = torch.rand(6, 2, 2, dtype=torch.float64)
    layers = [nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(3, 2)]
    nonlinear = {"relu": nn.ReLU, "tanh": nn.Tanh}[activation]
    reference = nn.Sequential(nn.Flatten(), layers[0], nonlinear(), layers[1], nonlinear(), layers[2]).double()
    nn.utils.vector_to_parameters(y, reference.parameters())
    torch.testing.assert_close(network(y, inputs), reference(inputs))


NETWORKS: dict[str, Callable[[], Network]] = {
    "conv": lambda: Convolutions(1, 4, 3),
    "plain conv": lambda: Convolutions(1, 4, 3, normalise=False),
    "mlp": lambda: Perceptron([64, 6], 3, "tanh"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_head_is_last_and_linear_on_the_features(name: str) -> None:
    network = NETWORKS[name]()
    (y,) = draw(network, 1)
    images = torch.rand(5, 8, 8, dtype=torch.float64)
    body = y.numel() - 3 * (network.width + 1)
    weight, bias = y[body:-3].view(3, network.width), y[-3:]
    features = network.features(y, images)
    assert features.shape == (5, network.width)
    torch.testing.assert_close(network(y, images), features @ weight.T + bias)
    other = torch.cat([y[:body], torch.zeros_like(y[body:])])
    assert torch.equal(network.features(other, images), features)


@pytest.mark.parametrize("name", NETWORKS)
def test_second_derivatives_under_vmap_are_differences_of_gradients(name: str) -> None:
    network = NETWORKS[name]()
    y = draw(network, 3)
    generator = torch.Generator().manual_seed(4)
    v = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    images = torch.rand(3, 6, 8, 8, generator=generator, dtype=torch.float64)
    label = torch.tensor([0, 1, 2, 2, 1, 0])

    def gradient(y: Tensor, images: Tensor) -> Tensor:
        return grad(lambda y: cross_entropy(network(y, images), label))(y)

    def product(y: Tensor, v: Tensor, images: Tensor) -> Tensor:
        return grad(lambda y: torch.dot(gradient(y, images), v))(y)

    found = vmap(product)(y, v, images)
    h = 1e-6
    expected = (vmap(gradient)(y + h * v, images) - vmap(gradient)(y - h * v, images)) / (2 * h)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


def test_a_start_is_scaled_to_the_fan_in() -> None:
    network = Convolutions(1, 64, 5)
    parts = network.parts(network.initial(torch.Generator().manual_seed(0)))
    assert float(parts[3].std()) == pytest.approx((2 / 576) ** 0.5, rel=0.02)
    assert all(bool((parts[k] == 1).all()) and not parts[k + 1].any() for k in (1, 4, 7, 10))
    assert not parts[-1].any()
    plain = Convolutions(1, 8, 5, normalise=False)
    assert not any(part.any() for part in plain.parts(plain.initial(torch.Generator()))[1::2])


def test_the_first_use_of_a_network_may_be_inside_a_transform() -> None:
    convolutions._index.cache_clear()
    network = Convolutions(1, 2, 3, 1)
    y = network.initial(torch.Generator().manual_seed(0))
    inputs = torch.zeros(2, 6, 6, dtype=torch.float64)
    torch.func.grad(lambda y: network(y, inputs).sum())(y)
    assert network(y, inputs).shape == (2, 3)
    assert torch.func.grad(lambda y: network(y, inputs).sum())(y).shape == y.shape
