"""What of a user's network is refused: what the library could not differentiate, average over clients, or repeat."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from fedbilevel.errors import BadInput, users_code
from fedbilevel.problems.networks.layers import Network

Refuse = Callable[[str], BadInput]
"""Makes the error of a network from what is allowed in its place."""
_NEAR = 1e-3
"""How far outputs in single precision may be apart, relative to the largest, and still be the same."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let torch's global generator on the CPU draw from a seed, and leave it as it was."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def hold(module: nn.Module, refuse: Refuse) -> None:
    """Refuse what can be seen without running the module."""
    parameters = list(module.parameters())
    if any(isinstance(each, UninitializedParameter | UninitializedBuffer) for each in (*parameters, *module.buffers())):
        raise refuse("a network whose layers know their sizes, none of them lazy")
    if not parameters or not all(each.requires_grad and each.is_floating_point() for each in parameters):
        raise refuse("a network with parameters, each of which is trained: the flat vector is all of them")
    for name, _ in module.named_buffers():
        raise refuse(
            f"a network without state, and {name} is a buffer: clients send vectors of parameters alone (GroupNorm "
            "keeps no running statistics, BatchNorm does)"
        )
    for name, each in module.named_modules():
        if isinstance(each, _DropoutNd) and each.training and each.p > 0:
            raise refuse(f"a network without randomness, and {name or type(each).__name__} drops out in training")


def probe(network: Network, shape: tuple[int, ...], outputs: int | None, refuse: Refuse) -> None:
    """Run the network on two examples in single precision, as the library would. Raises BadInput."""
    generator = torch.Generator().manual_seed(0)
    y = network.initial(generator).float()
    inputs = torch.rand(2, math.prod(shape), generator=generator)
    held = inputs.clone()

    def say(seed: int, some: Tensor = inputs) -> Tensor:
        with torch.no_grad(), seeded(seed):
            return network(y, some)

    with users_code(lambda said: refuse(f"a network that runs on two examples, but it raised {said}")):
        first = say(1)
    wanted = "[n, ...]" if outputs is None else f"[n, {outputs}]"
    found = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
    good = isinstance(first, Tensor) and first.ndim >= 2 and len(first) == 2 and first.is_floating_point()
    if not good or (outputs is not None and found != (2, outputs)):
        raise refuse(
            f"a network whose outputs for n examples are floats of the shape {wanted}, and not {found} for two"
        )
    if not bool(first.isfinite().all()):
        raise refuse("a network whose outputs are finite at its start")
    if not torch.equal(inputs, held):
        raise refuse("a network that leaves its inputs as they are, and this one writes to them")

    def same(other: Tensor) -> bool:
        return bool((other - first).abs().max() <= _NEAR * first.abs().max())

    if not same(say(2)):
        raise refuse("a network without randomness, and this one says another thing of the same inputs each time")
    with users_code(lambda said: refuse(f"a network that runs on one example alone, but it raised {said}")):
        alone = torch.cat([say(1, row) for row in inputs.split(1)])
    if not same(alone):
        raise refuse("a network that says of an example what it says of it alone (no statistics of a batch)")

    def gradient(y: Tensor, inputs: Tensor) -> Tensor:
        return torch.as_tensor(grad(lambda y: network(y, inputs).square().sum())(y))

    def curved(y: Tensor, v: Tensor, inputs: Tensor) -> Tensor:
        return torch.as_tensor(grad(lambda y: torch.dot(gradient(y, inputs), v))(y))

    allowed = "a network that torch.func can differentiate twice under vmap"
    with users_code(lambda said: refuse(f"{allowed}, but it raised {said}")):
        vmap(curved)(torch.stack([y, 2 * y]), torch.stack([y, y]), torch.stack([inputs, inputs]))
