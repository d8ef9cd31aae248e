"""Files of a user's own for tests: an algorithm with an operation and options of its own, and its iterates in numpy."""

from __future__ import annotations

from pathlib import Path

from fedbilevel.problems import Quadratic
from tests.reference import Vector, clients_of

SOURCE = '''
"""Descent along blend * fy + (1 - blend) * gy in y and along fx in x: two operations in one round."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from pydantic import Field

from clients.operations.oracles import upper_gradient_x
from clients.operations.registry import operation
from server.kit import options
from server.kit.algorithm import Algorithm, State, algorithm

FACTOR = 1.0


class Options(options.Options):
    upper_step: options.UpperStep = 0.1
    blend: Annotated[float, Field(ge=0, le=1, description="share of the upper level")] = 0.5


@operation(lower=1, upper=1)
def lower_gradient(cohort, x, y, *, blend):
    """Called as one of ours."""
    return FACTOR * (blend * cohort.upper_gradient_y(x, y) + (1 - blend) * cohort.lower_gradient(x, y))


@algorithm("blended-descent", source="a test", options=Options)
def blended(o):
    """Blended descent."""

    def step(state, fed):
        d, h = fed.mean(lower_gradient, upper_gradient_x, x=state.x, y=state.y, blend=o.blend)
        return replace(state, x=state.x - o.upper_step * h, y=state.y - 0.2 * d, hypergradient=h)

    return Algorithm(State, step, lambda index: 1)
'''
"""Its name is that of the factory, `blended`, or the one that it is entered under, `blended-descent`."""


METHOD = """
import torch
from clients.methods.method import Adapted, Method, method
from server.kit.algorithm import algorithm
from server.kit.meta import MetaOptions, meta_algorithm

@method("maml")
class Constant(Method):
    def adapt(self, tasks, x, o):
        return Adapted(tasks.spread(x) + 1)
    def meta_gradient(self, tasks, x, o):
        return torch.full((len(tasks), len(x)), o["lower_step"], dtype=x.dtype), ()
    def passes(self, o):
        return 0.0, 0.0

@algorithm("constant", source="a test", options=MetaOptions, lower="local")
def constant(o):
    return meta_algorithm(Constant.name, o)
"""
"""A method of local adaptation that is called as one of ours, and its algorithm: along a constant."""
PROBLEM_TOO = """

import torch
from fedbilevel import ClientData


class Spread:
    def __init__(self):
        rows = [torch.arange(float(i + 1))[:, None] for i in range(6)]
        self.clients = ClientData(rows, rows)

    def initial(self, generator):
        return torch.ones(2), torch.ones(1)

    def lower(self, x, y, examples):
        return 0.5 * (y - x.sum() - examples).square().sum(-1)

    def upper(self, x, y, examples):
        return scaled(y - examples) + 0.1 * (x @ x)

    def evaluate(self, x, y):
        return {"gap": float(y - x.sum())}


def scaled(residual):
    return FACTOR * residual.square().sum(-1)
"""
"""A problem that may stand in the same file, and uses what that file defines."""


def own(folder: Path, name: str = "own.py", *changes: tuple[str, str]) -> Path:
    """Write the file, with some of its text replaced."""
    text = SOURCE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(text)
    return path


def iterates(
    problem: Quadratic,
    x: Vector,
    y: Vector,
    iterations: int,
    *,
    blend: float,
    alpha: float,
    factor: float = 1.0,
) -> tuple[Vector, Vector]:
    """X and y after so many iterations over all clients, from the clients' matrices."""
    clients = clients_of(problem)
    for _ in range(iterations):
        d = sum(c.p * (blend * c.fy(x, y) + (1 - blend) * c.gy(x, y)) for c in clients)
        h = sum(c.p * c.fx(x, y) for c in clients)
        x, y = x - alpha * h, y - 0.2 * factor * d
    return x, y
