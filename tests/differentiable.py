"""What tests differentiate: problems with curved losses, examples of every structure, closed forms and none."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedbilevel import ClientData, derivatives
from fedbilevel.data import FederatedData, federate
from fedbilevel.problems import HyperRepresentation, Quadratic

LEVELS: tuple[derivatives.Level, derivatives.Level] = ("lower", "upper")
Structure = Literal["tensor", "tuple", "dict"]


class Curved:
    """Losses that are nonlinear in x and y together; examples are a tensor, a tuple or a dict (lower, upper alike)."""

    dim_x, dim_y = 3, 4

    def __init__(self, structure: Structure, sizes: tuple[tuple[int, int], ...] = ((2, 3), (5, 1), (4, 4))) -> None:
        draw = torch.Generator().manual_seed(1)
        self.structure = structure
        self.mix = torch.randn(4, 3, generator=draw, dtype=torch.float64)
        examples = [[self._examples(n, draw) for n in pair] for pair in sizes]
        self.clients = ClientData([pair[0] for pair in examples], [pair[1] for pair in examples], "size")

    def _examples(self, n: int, draw: torch.Generator) -> Any:
        a, b = (torch.randn(n, d, generator=draw, dtype=torch.float64) for d in (4, 1))
        joined: dict[Structure, Any] = {"tensor": torch.cat([a, b], 1), "tuple": (a, b[:, 0]), "dict": {"a": a, "b": b}}
        return joined[self.structure]

    def _read(self, examples: Any) -> tuple[Tensor, Tensor]:
        if self.structure == "tensor":
            return examples[:, :4], examples[:, 4]
        if self.structure == "tuple":
            return examples[0], examples[1]
        return examples["a"], examples["b"][:, 0]

    def initial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.zeros(3, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)

    def lower(self, x: Tensor, y: Tensor, examples: Any) -> Tensor:
        a, b = self._read(examples)
        inner = a @ y + torch.tanh(a @ (self.mix @ x))
        return torch.log(torch.cosh(inner - b)) * torch.exp(0.3 * x[0]) + 0.2 * (y @ y) + 0.1 * (y**4).sum()

    def upper(self, x: Tensor, y: Tensor, examples: Any) -> Tensor:
        a, b = self._read(examples)
        return torch.sin(a @ y) * x.sum() + 0.5 * (b - y.sum() * x[1]) ** 2 + 0.05 * (x @ x)

    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        return {}


class Prepared(Curved):
    """The same with what does not depend on y computed by `prepare`."""

    def prepare(self, x: Tensor, examples: Any) -> dict[str, Tensor]:
        a, b = self._read(examples)
        return {"a": a, "b": b, "shift": torch.tanh(a @ (self.mix @ x))}

    def lower(self, x: Tensor, y: Tensor, examples: Any) -> Tensor:
        inner = examples["a"] @ y + examples["shift"]
        smooth = torch.log(torch.cosh(inner - examples["b"])) * torch.exp(0.3 * x[0])
        return smooth + 0.2 * (y @ y) + 0.1 * (y**4).sum()

    def upper(self, x: Tensor, y: Tensor, examples: Any) -> Tensor:
        a, b = examples["a"], examples["b"]
        return torch.sin(a @ y) * x.sum() + 0.5 * (b - y.sum() * x[1]) ** 2 + 0.05 * (x @ x)


@functools.cache
def small_digits(hidden: tuple[int, ...], activation: Any) -> HyperRepresentation:
    """Three unequal clients, few features."""
    data = federate("digits", clients=40, parameters={"alpha": 0.5}, seed=5)
    some = np.argsort(data.clients.lower.sizes, kind="stable")[[0, 13, 26]]
    three = ClientData(data.clients.lower.take(some), data.clients.upper.take(some), "size")

    def fewer(examples: Any) -> Any:
        return {"input": examples["input"][:, 18:46:4].double(), "label": examples["label"]}

    for level in (three.lower, three.upper):
        object.__setattr__(level, "values", fewer(level.values))
    test = data.x_test.reshape(len(data.x_test), -1)[:, 18:46:4]
    few: FederatedData = replace(data, clients=three, x_test=test, features=test.shape[1])
    return HyperRepresentation(few, list(hidden), activation, l2=0.05, dtype=torch.float64)


class Plain:
    """A problem without its closed forms; whether it keeps `prepare` is a choice."""

    def __init__(self, problem: Any) -> None:
        self.clients, self.initial, self.evaluate = problem.clients, problem.initial, problem.evaluate
        self.lower, self.upper, self.prepare = problem.lower, problem.upper, problem.prepare


class Direct:
    """A problem as two bare losses: no closed form, nothing prepared."""

    def __init__(self, problem: HyperRepresentation) -> None:
        self.problem, self.clients = problem, problem.clients
        self.initial, self.evaluate = problem.initial, problem.evaluate

    def lower(self, x: Tensor, y: Tensor, examples: Any) -> Tensor:
        return self.problem.lower(x, y, self.problem.prepare(x, examples))

    def upper(self, x: Tensor, y: Tensor, examples: Any) -> Tensor:
        return self.problem.upper(x, y, self.problem.prepare(x, examples))


PROBLEMS: dict[str, Callable[[], Any]] = {
    "quadratic": lambda: Quadratic(clients=3, dim_x=3, dim_y=4, examples=(2, 5), seed=3),
    "tensor": lambda: Curved("tensor"),
    "tuple": lambda: Curved("tuple"),
    "dict": lambda: Curved("dict"),
    "prepared": lambda: Prepared("dict"),
    "digits": lambda: Plain(small_digits((3,), "tanh")),
    "closed": lambda: small_digits((3,), "relu"),
}


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).norm()) <= tolerance * float(expected.norm())
