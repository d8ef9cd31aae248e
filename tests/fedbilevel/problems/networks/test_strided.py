"""Convolutions of many tasks against torch's, task by task, and their transposes against automatic differentiation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import vjp, vmap
from torch.nn.functional import conv2d

from fedbilevel.problems.networks import strided
from fedbilevel.problems.networks.strided import Strided
from tests.agreement import relative


def convolved(images: Tensor, kernel: Tensor) -> Tensor:
    """Of one task, [n, side, side, c] and [9 c, filters]: [m, filters]."""
    w = kernel.unflatten(0, (3, 3, -1)).permute(3, 2, 0, 1)
    return conv2d(images.movedim(3, 1), w, stride=2, padding=1).movedim(1, 3).flatten(0, 2)


@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("side", [1, 2, 7, 8])
@pytest.mark.parametrize("way", ["products", "products, double", "torch's own"])
def test_a_convolution_and_its_transposes(way: str, side: int, tasks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strided, "LONG", 1 if way == "torch's own" else 10**9)
    draw = torch.Generator().manual_seed(side)
    half = (side + 1) // 2
    images, kernel, z = (
        torch.randn(tasks, *shape, generator=draw).double()
        for shape in ((5, side, side, 4), (36, 3), (5 * half * half, 3))
    )
    dtype, allowed = (torch.float64, 1e-12) if way.endswith("double") else (torch.float32, 2e-6)
    found = Strided(images.to(dtype))
    assert relative(found(kernel.to(dtype)), vmap(convolved)(images, kernel)) < allowed
    of_kernel, of_images = found.pull(z.to(dtype), kernel.to(dtype))
    for b in range(tasks):
        in_images, in_kernel = vjp(convolved, images[b], kernel[b])[1](z[b])
        assert relative(of_kernel[b], in_kernel) < allowed
        assert relative(of_images[b], in_images) < allowed
    images, kernel, z = images.to(dtype), kernel.to(dtype), z.to(dtype)
    many = vmap(lambda factor: Strided(factor * images)(kernel))(torch.tensor([1.0, 2.0], dtype=dtype))
    assert relative(many[1], 2 * found(kernel)) < allowed
    more = vmap(lambda factor: found.pull(factor * z, kernel))(torch.tensor([1.0, 2.0], dtype=dtype))
    assert relative(more[0][1], 2 * of_kernel) < allowed
    assert relative(more[1][1], 2 * of_images) < allowed


def test_torch_s_own_is_taken_for_many_positions_in_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(strided, "conv2d", lambda *a, **k: taken.append(len(a[0])) or conv2d(*a, **k))
    kernel = torch.ones(2, 9, 3)
    for n, dtype in ((99, torch.float32), (100, torch.float32), (100, torch.float64)):
        Strided(torch.ones(2, n, 4, 4, 1, dtype=dtype))(kernel.to(dtype))
    assert taken == ([100, 100] if torch.backends.mkldnn.is_available() else [])
