"""A user's own network: a torch.nn.Module of a file of theirs, as a function of one flat vector of parameters.

`path/to/nets.py:net` names a module, or a function or class that returns one; the latter is called with those of
`shape` (of one input) and `outputs` that it has parameters for. The module gets inputs as torch.nn expects them: images
[h, w] as [n, 1, h, w], images [h, w, channels] as [n, channels, h, w], anything else as [n, *shape].

It starts at its own parameters, drawn anew for every seed: torch's generator on the CPU is seeded for the call, and
left as it was. Of a module that is no factory's the layers draw theirs again (`reset_parameters`).
"""

from __future__ import annotations

import copy
import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedbilevel.errors import BadInput, unknown, users_code
from fedbilevel.problem import Part
from fedbilevel.problems.networks.layers import Network
from fedbilevel.problems.networks.refusals import Refuse, hold, probe, seeded
from fedbilevel.user_files import UserFile, file_at, module_of, public_callables, run


def users_network(name: str, shape: tuple[int, ...], outputs: int | None, key: str) -> UsersNetwork:
    """The network of `path/to/nets.py:net` with so many outputs, or with any as a representation (None).

    Raises BadInput, for `key`, for a file without it, and for a module that has a state (a buffer), that draws random
    numbers, whose outputs depend on the examples beside one, that torch.func cannot differentiate twice under vmap, or
    whose outputs have another shape than [n, outputs].
    """

    def refuse(allowed: str) -> BadInput:
        return BadInput(key, name, allowed)

    path, _, attribute = name.rpartition(":")
    module = module_of(name, key)
    found = getattr(module, attribute, None)
    if not callable(found):
        if known := [f"{path}:{own}" for own in _candidates(vars(module), public_callables(module))]:
            raise unknown(key, name, known)
        raise refuse("a file with a torch.nn.Module or a function that returns one, and this one defines none")
    with users_code(lambda said: refuse(f"a network that can be made, but it raised {said}")), seeded(0):
        made = _make(found, shape, outputs, refuse)
    hold(made, refuse)
    size = (1, *_torch_shape(shape))
    with users_code(lambda said: refuse(f"a network that runs on inputs of the shape {size}, but it raised {said}")):
        network = UsersNetwork(file_at(name, key), attribute, shape, outputs)
    probe(network, shape, outputs, refuse)
    return network


class UsersNetwork(Network):
    """A user's module. Its representation is what it says of an example, flattened: it has no head of ours.

    Where it travels to another process, its file's text goes along.
    """

    def __init__(self, file: UserFile, attribute: str, shape: tuple[int, ...], outputs: int | None) -> None:
        self._from = (file, attribute, shape, outputs)
        self._shape = shape
        with seeded(0):
            self._module = self._made()
            self._shapes = {key: tuple(held.shape) for key, held in self._module.named_parameters()}
            self._sizes = [math.prod(each) for each in self._shapes.values()]
            self.size = self.body = sum(self._sizes)
            one = self(torch.zeros(self.size), torch.zeros(1, math.prod(shape)))
            self.width = one.numel() if isinstance(one, Tensor) else 0  # which is refused
        self.outputs = self.width if outputs is None else outputs

    def __reduce__(self) -> tuple[type[UsersNetwork], tuple[Any, ...]]:
        return UsersNetwork, self._from

    def _made(self) -> nn.Module:
        file, attribute, shape, outputs = self._from
        found = getattr(run(file), attribute)
        return _make(found, shape, outputs, lambda allowed: BadInput("network", attribute, allowed))

    @property
    def parts_of_body(self) -> list[Part]:
        """The module's parameters, as it names them."""
        return [Part(name, shape) for name, shape in self._shapes.items()]

    def _images(self, inputs: Tensor) -> Tensor:
        """Inputs [n, ...] in the shape that torch.nn expects."""
        shaped = inputs.reshape(len(inputs), *self._shape)
        return shaped.unsqueeze(1) if len(self._shape) == 2 else shaped.movedim(-1, 1) if shaped.ndim == 4 else shaped

    def __call__(self, y: Tensor, inputs: Tensor) -> Tensor:
        """What the module with parameters y [size] says of inputs [n, ...]: [n, outputs], or of any shape [n, ...]."""
        parts = zip(self._shapes.items(), torch.split(y, self._sizes), strict=True)
        held = {key: part.view(shape) for (key, shape), part in parts}
        outputs: Tensor = functional_call(self._module, held, (self._images(inputs),))
        return outputs

    def features(self, y: Tensor, inputs: Tensor) -> Tensor:
        """The outputs flattened, [n, width]."""
        return self(y, inputs).flatten(1)

    def initial(self, generator: torch.Generator) -> Tensor:
        """The parameters of a module that is made anew, [size], float64."""
        with seeded(int(torch.randint(2**62, (1,), generator=generator))):
            made = self._made()
        return torch.cat([part.detach().double().flatten() for part in made.parameters()])


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one input as the module gets it: channels first."""
    return (1, *shape) if len(shape) == 2 else (shape[2], *shape[:2]) if len(shape) == 3 else shape


def _make(found: Any, shape: tuple[int, ...], outputs: int | None, refuse: Refuse) -> nn.Module:
    """A new module with parameters of its own. Raises whatever the user's code raises."""
    if isinstance(found, nn.Module):
        module = copy.deepcopy(found)
        for each in module.modules():
            if callable(reset := getattr(each, "reset_parameters", None)):
                reset()
            elif any(True for _ in each.parameters(recurse=False)):
                kind = type(each).__name__
                raise refuse(f"a function or class that makes the network: {kind} has no reset_parameters() to draw it")
        return module
    offered = {"shape": _torch_shape(shape), "outputs": outputs}
    takes = inspect.signature(found).parameters
    made = found(**{key: value for key, value in offered.items() if key in takes})
    if not isinstance(made, nn.Module):
        raise refuse(f"a torch.nn.Module or a function that returns one, not {type(made).__name__}")
    return made


def _candidates(held: dict[str, Any], public: dict[str, Any]) -> list[str]:
    """What a file may have meant by its network: its functions and classes, and the modules that it holds."""
    return [*public, *(name for name, value in held.items() if isinstance(value, nn.Module))]
