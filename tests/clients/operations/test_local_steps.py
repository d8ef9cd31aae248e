"""Every local step against its recurrence, and which minibatch its derivatives see."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clients.cohort import Cohort
from clients.held import Draw, Held
from clients.node import Node, Setting
from fedbilevel import derivatives
from fedbilevel.problem import map_examples
from tests.differentiable import Curved, near
from tests.operations import OPERATIONS, ask


class OneClient:
    """Derivatives of one client's losses over some of its examples, by plain automatic differentiation."""

    def __init__(self, problem: Curved, step: dict[str, list[int]]) -> None:
        self.problem = problem
        self.examples = {}
        for level, rows in step.items():
            values = getattr(problem.clients, level).values
            self.examples[level] = map_examples(lambda tensor, rows=rows: tensor[rows], values)

    def _grad(self, level: str, x: Tensor, y: Tensor, by: str) -> Tensor:
        points = {"x": x.clone().requires_grad_(), "y": y.clone().requires_grad_()}
        loss = getattr(self.problem, level)(points["x"], points["y"], self.examples[level]).mean()
        (gradient,) = torch.autograd.grad(loss, points[by])
        return gradient

    def fx(self, x: Tensor, y: Tensor) -> Tensor:
        return self._grad("upper", x, y, "x")

    def fy(self, x: Tensor, y: Tensor) -> Tensor:
        return self._grad("upper", x, y, "y")

    def gx(self, x: Tensor, y: Tensor) -> Tensor:
        return self._grad("lower", x, y, "x")

    def gy(self, x: Tensor, y: Tensor) -> Tensor:
        return self._grad("lower", x, y, "y")

    def products(self, x: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """`J v` and `H v`."""
        x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
        loss = self.problem.lower(x, y, self.examples["lower"]).mean()
        (slope,) = torch.autograd.grad(loss, y, create_graph=True)
        return torch.autograd.grad(slope @ v, (x, y))


def walked(name: str, steps: list[OneClient], v: Any, o: Any) -> list[Tensor]:
    """What one client sends up, from the recurrences: one minibatch per step, v the vectors received."""
    x, y = v["x"], v["y"]
    beta, alpha = o.get("lower_step", 0.0), o.get("upper_step", 0.0)
    sums = [torch.zeros_like(x), torch.zeros_like(y), torch.zeros_like(y)]
    z = v.get("z", y)
    u = v.get("v", y)
    m = (v["mx"], v["my"], v["mv"]) if "mx" in v else None
    eta = (alpha, beta, o.get("neumann_step", 0.0))
    for at in steps:
        if name in SINGLE_LOOP:
            d = three(at, x, y, u)
            if "variance" in name:
                m = d if m is None else m
                old, (x, y, u) = d, (p - e * each for p, e, each in zip((x, y, u), eta, m, strict=True))
                new, c = three(at, x, y, u), o["momentum_decay"]
                m = tuple(a + (1 - c) * (each - b) for a, each, b in zip(new, m, old, strict=True))
            else:
                sums = [total + each for total, each in zip(sums, d, strict=True)]
                x, y, u = (p - e * each for p, e, each in zip((x, y, u), eta, d, strict=True))
        elif name == "lower_level_steps":
            _, dy, dv = three(at, x, y, u)
            sums = [sums[0], sums[1] + dy, sums[2] + dv]
            y, u = y - beta * dy, u - beta * dv
        elif name == "svrg_steps":
            y = y - beta * (at.gy(x, y) - at.gy(x, v["y"]) + v["gradient"])
        elif name == "sgd_steps":
            y = y - beta * at.gy(x, y)
        elif name == "outer_steps":
            x = x - alpha * (at.fx(x, y) - at.fx(v["x"], y) + v["hypergradient"])
        elif name == "direct_steps":
            x = x - alpha * at.fx(x, y)
        elif name == "local_hypergradient_steps":
            lam, N, index = o["neumann_step"], o["neumann_terms"], o["index"]
            p = at.fy(x, y)
            terms = [p]
            for _ in range(N):
                p = p - lam * at.products(x, y, p)[1]
                terms.append(p)
            p = lam * torch.stack(terms).sum(0) if index is None else lam * N * terms[index]
            x = x - alpha * (at.fx(x, y) - at.products(x, y, p)[0])
        elif name in MINIMAX:
            dx, dy = at.fx(x, y), -at.fy(x, y)
            if name == "tracked_steps":
                dx = dx - at.fx(v["x"], v["y"]) + v["dx"]
                dy = dy + at.fy(v["x"], v["y"]) + v["dy"]
            x, y = x - alpha * dx, y - beta * dy
        elif name == "joint_steps":
            weight = o["lower_weight"]
            dx, dy = at.fx(x, y) + weight * at.gx(x, y), at.fy(x, y) + weight * at.gy(x, y)
            x, y = x - alpha * dx, y - beta * dy
        else:
            lam = o["penalty"]
            dx = at.fx(x, y) + lam * (at.gx(x, y) - at.gx(x, z))
            dy, dz = at.fy(x, y) + lam * at.gy(x, y), at.gy(x, z)
            sums = [total + each for total, each in zip(sums, (dx, dy, dz), strict=True)]
            x, y, z = x - alpha * dx, y - beta * dy, z - o["auxiliary_step"] * dz
    up = {"svrg_steps": [y], "sgd_steps": [y], "joint_steps": [x, y], "penalty_steps": [t / len(steps) for t in sums]}
    up |= {key: [x, y] for key in MINIMAX}
    up |= {"lower_level_steps": sums[1:], "single_loop_steps": sums, "simultaneous_steps": [x, y, u]}
    if m is not None:
        return [x, y, u, *m]
    return up.get(name, [x])


SINGLE_LOOP = (
    "single_loop_steps",
    "simultaneous_steps",
    "variance_reduced_steps",
    "first_variance_reduced_steps",
)


MINIMAX = ("descent_ascent_steps", "tracked_steps")


def three(at: OneClient, x: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """`fx - J v, gy, H v - fy`."""
    Jv, Hv = at.products(x, y, v)
    return at.fx(x, y) - Jv, at.gy(x, y), Hv - at.fy(x, y)


WALKS: dict[str, tuple[derivatives.Level, ...]] = {
    "svrg_steps": ("lower",),
    "sgd_steps": ("lower",),
    "outer_steps": ("upper",),
    "direct_steps": ("upper",),
    "local_hypergradient_steps": ("upper", "lower"),
    "joint_steps": ("lower", "upper"),
    "penalty_steps": ("lower", "upper"),
    **dict.fromkeys(SINGLE_LOOP, ("lower", "upper")),
    "lower_level_steps": ("lower", "upper"),
    **dict.fromkeys(MINIMAX, ("upper",)),
}


@pytest.mark.parametrize("spec", [1, 3, {"epochs": 2}], ids=str)
@pytest.mark.parametrize("name", sorted(WALKS))
def test_every_derivative_of_a_local_step_sees_its_minibatch(name: str, spec: Any) -> None:
    problem, setting = Curved("tuple"), Setting(seed=2, batch=2, gradient_batch=1)
    for values in ({}, {"index": 2}) if name == "local_hypergradient_steps" else ({},):
        request = ask(name, problem, spec, [0, 1, 2], **values)
        totals: list[Tensor] = []
        for i in range(3):
            alone = Cohort(Held.of(problem, np.array([i])), Draw(2, request.round, name, 2, 1), pooled=False)
            steps = []
            for batch in alone.batches(spec, torch.float64, *WALKS[name]):
                step = {}
                for level, rows in batch.rows.items():
                    assert rows.index is not None
                    start = int(getattr(problem.clients, level).offsets[i])
                    step[level] = (rows.index[0][rows.weights[0] > 0] + start).tolist()
                steps.append(step)
            up = walked(name, [OneClient(problem, step) for step in steps], request.tensors, request.options)
            parts = [float(problem.clients.weights[i]) * each for each in up]
            totals = [a + b for a, b in zip(totals, parts, strict=True)] if totals else parts
        for found, wanted in zip(Node(problem, setting).answer(request).sums[0], totals, strict=True):
            near(found, wanted, 1e-12)


def test_every_operation_with_local_steps_is_walked_here() -> None:
    assert set(WALKS) == {name for name, operation in OPERATIONS.items() if operation.steps}


@pytest.mark.parametrize("name", ["penalty_hypergradient", "bome_directions", "penalty_steps"])
def test_both_gradients_of_a_penalty_difference_see_the_same_minibatch(name: str) -> None:
    """At z = y the difference is zero whatever the penalty; on two minibatches it would not be."""
    problem = Curved("dict")
    setting = Setting(seed=1, batch=2, gradient_batch=2)
    request = ask(name, problem, 1, [0, 1, 2])
    other = "yh" if name == "bome_directions" else "z"
    tensors = {**request.tensors, other: request.tensors["y"].clone()}
    sums = []
    for penalty in (1.0, 1e9):
        options = {**request.options, "penalty": penalty} if name != "bome_directions" else request.options
        sums.append(Node(problem, setting).answer(replace(request, tensors=tensors, options=options)).sums[0])
    if name == "bome_directions":
        assert float(sums[0][2].norm()) == 0
    else:
        assert torch.equal(sums[0][0], sums[1][0])
