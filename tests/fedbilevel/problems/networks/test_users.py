"""A user's torch.nn.Module as a network: against the built-in ones and torch, its start, and what is refused."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from fedbilevel.errors import BadInput
from fedbilevel.problems.networks import find
from fedbilevel.problems.networks.layers import Network, Perceptron

NETS = """
import torch
from torch import nn

class Conv(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.conv = nn.Conv2d({channels}, 4, 3, padding=1)
        self.head = nn.Linear(4, outputs)
    def forward(self, images):
        assert images.ndim == 4 and images.shape[1:] == ({channels}, 6, 6)
        return self.head(torch.tanh(self.conv(images)).mean((2, 3)))

def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))

def sized(shape, outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], outputs))

ready = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS.format(channels=1))
    Path("colours.py").write_text(NETS.format(channels=2))


def start(network: Network, seed: int = 0) -> Tensor:
    return network.initial(torch.Generator().manual_seed(seed))


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_sequential_is_the_perceptron_with_the_same_parameters() -> None:
    own, ours = find("nets.py:mlp", (6, 6), 3), Perceptron([36, 5, 4], 3, "tanh")
    y, inputs, v = start(ours), draw(7, 36), draw(ours.size, seed=2)
    assert own.size == ours.size
    torch.testing.assert_close(own(y, inputs), ours(y, inputs), rtol=1e-12, atol=1e-12)

    def product(network: Network, y: Tensor) -> Tensor:
        slope = grad(lambda y: network(y, inputs).square().sum())
        return torch.as_tensor(grad(lambda y: torch.dot(slope(y), v))(y))

    rows = torch.stack([y, y + 0.1])
    found, expected = (vmap(lambda y, n=n: product(n, y))(rows) for n in (own, ours))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("file", "shape"), [("nets.py", (6, 6)), ("colours.py", (6, 6, 2))])
def test_a_module_gets_images_with_channels_first(file: str, shape: tuple[int, ...]) -> None:
    network = find(f"{file}:Conv", shape, 3)
    y, images = start(network), draw(5, *shape)
    channels = shape[2] if len(shape) == 3 else 1
    conv, head = nn.Conv2d(channels, 4, 3, padding=1).double(), nn.Linear(4, 3).double()
    nn.utils.vector_to_parameters(y, [*conv.parameters(), *head.parameters()])
    planes = [images[..., k] for k in range(channels)] if len(shape) == 3 else [images]
    expected = head(torch.tanh(conv(torch.stack(planes, 1))).mean((2, 3)))
    torch.testing.assert_close(network(y, images.flatten(1)), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(network.features(y, images.flatten(1)), network(y, images.flatten(1)))


@pytest.mark.parametrize("name", ["mlp", "Conv", "sized", "ready"])
def test_a_start_is_of_the_run_s_generator_and_scaled_as_torch_does(name: str) -> None:
    network = find(f"nets.py:{name}", (6, 6), 3)
    before = torch.get_rng_state()
    first, again, other = start(network), start(network), start(network, 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.isclose(first, other).any()
    assert first.dtype == torch.float64
    bound = {"mlp": 5, "Conv": 10, "sized": 36, "ready": 36}[name]  # by the fan in
    assert float(first.abs().max()) <= 0.5 if name in ("mlp", "Conv") else bound**-0.5
    assert float(first.abs().max()) >= 0.8 * 36**-0.5


def test_without_a_number_of_outputs_a_module_is_a_representation() -> None:
    Path("body.py").write_text("from torch import nn\ndef body():\n    return nn.Conv2d(1, 2, 3)\n")
    network = find("body.py:body", (6, 6), None)
    assert (network.size, network.body, network.width) == (20, 20, 2 * 4 * 4)
    assert network.features(start(network), draw(5, 36)).shape == (5, 32)


def test_a_copy_and_a_pickle_need_no_file() -> None:
    network = find("nets.py:Conv", (6, 6), 3)
    y, inputs = start(network), draw(5, 36)
    Path("nets.py").unlink()
    for other in (pickle.loads(pickle.dumps(network)), copy.deepcopy(network)):
        assert torch.equal(other(y, inputs), network(y, inputs))
        assert torch.equal(start(other, 4), start(network, 4))


FLAT = "nn.Sequential(nn.Flatten(), nn.Linear(36, 4), {}, nn.Linear(4, 3))"


def forward(body: str) -> str:
    """The text of a module with a linear layer and a forward of its own."""
    lines = (
        "class net(nn.Module):",
        "    def __init__(self):",
        "        super().__init__()",
        "        self.layer = nn.Linear(36, 3)",
        "    def forward(self, x):",
        f"        {body}",
    )
    return "\n".join(lines)


REFUSED = {
    "running statistics": (f"def net(): return {FLAT.format('nn.BatchNorm1d(4)')}", "2.running_mean is a buffer"),
    "statistics of a batch": (
        f"def net(): return {FLAT.format('nn.BatchNorm1d(4, track_running_stats=False)')}",
        "Expected more than 1 value per channel",
    ),
    "batch statistics by hand": (forward("y = self.layer(x.flatten(1)); return y - y.mean(0)"), "of it alone"),
    "dropout": (f"def net(): return {FLAT.format('nn.Dropout(0.5)')}", "2 drops out in training"),
    "random": (forward("return self.layer(x.flatten(1)) + torch.rand(3)"), "without randomness"),
    "numpy's random": (
        forward("import numpy; return self.layer(x.flatten(1)) * numpy.random.rand()"),
        "without randomness",
    ),
    "writes": (forward("return self.layer(x.mul_(2).flatten(1))"), "leaves its inputs"),
    "control flow": (
        forward("y = self.layer(x.flatten(1)); return y if self.layer.weight.sum() > 0 else 2 * y"),
        "differentiate twice under vmap, but it raised RuntimeError",
    ),
    "item": (forward("return self.layer(x.flatten(1)) * self.layer.bias[0].item()"), "twice under vmap, but it raised"),
    "shape": ("def net(): return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))", "[n, 10], and not (2, 3) for two"),
    "tuple": (forward("return self.layer(x.flatten(1)), 0"), "and not tuple for two"),
    "integers": (forward("return self.layer(x.flatten(1)).long()"), "floats"),
    "infinite": (forward("return self.layer(x.flatten(1)) / 0"), "finite"),
    "sizes": ("def net(): return nn.Linear(35, 3)", "inputs of the shape (1, 1, 6, 6), but it raised RuntimeError"),
    "lazy": ("def net(): return nn.LazyLinear(3)", "none of them lazy"),
    "none": ("def net(): return nn.Flatten()", "with parameters"),
    "frozen": ("def net():\n    m = nn.Linear(36, 3); m.bias.requires_grad_(False); return m", "trained"),
    "no module": ("def net(): return 3", "not int"),
    "raises": ("def net(): raise KeyError('x')", "it raised KeyError"),
    "asks for more": ("def net(width): return nn.Linear(width, 3)", "missing 1 required positional argument"),
    "own parameters": (
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.w = nn.Parameter(torch.randn(3))\nnet = Net()",
        "no reset_parameters()",
    ),
    "another name": ("def nets(): return 3", "did you mean"),
    "empty": ("", "this one defines none"),
    "syntax": ("def", "it raised SyntaxError"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    text, said = REFUSED[case]
    Path("own.py").write_text(f"import torch\nfrom torch import nn\n{text}\n" if text else "")
    with pytest.raises(BadInput) as caught:
        find("own.py:net", (6, 6), 10 if case == "shape" else 3)
    line = str(caught.value)
    assert line.startswith("problem.network: got 'own.py:net'; allowed: ")
    assert said in line
    assert "\n" not in line


@pytest.mark.parametrize("layer", ["nn.GroupNorm(2, 4)", "nn.LayerNorm(4)", "nn.ReLU(inplace=True)", "nn.Dropout(0.0)"])
def test_what_keeps_no_state_is_taken(layer: str) -> None:
    Path("own.py").write_text(f"from torch import nn\ndef net(): return {FLAT.format(layer)}\n")
    network = find("own.py:net", (6, 6), 3)
    assert network(start(network), draw(2, 36)).shape == (2, 3)


def test_a_missing_file_is_one_line() -> None:
    with pytest.raises(BadInput, match="a file that can be read"):
        find("absent.py:net", (6, 6), 3)
