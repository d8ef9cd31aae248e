"""Every operation on a batch of clients against a plain loop over clients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clients.cohort import Cohort
from clients.held import Draw, Held
from clients.node import Node, Setting
from fedbilevel.federation.messages import Request
from tests.differentiable import PROBLEMS
from tests.operations import OPERATIONS, VALUES, ask

SPECS: list[Any] = [1, 3, {"epochs": 2}, {"low": 1, "high": 4}]
SETTINGS = {
    "full": Setting(seed=3),
    "batch 2": Setting(seed=3, batch=2),
    "batch 2, gradient batch 3": Setting(seed=3, batch=2, gradient_batch=3),
    "batch 100": Setting(seed=3, batch=100, gradient_batch=100),
}


def alone(problem: Any, request: Request, setting: Setting) -> list[list[Tensor]]:
    """p_i u_i of every client of a request, each in a cohort of its own."""
    (name,) = request.operations
    found = []
    draw = Draw(setting.seed, request.round, name, setting.batch, setting.gradient_batch)
    for i in request.clients:
        cohort = Cohort(Held.of(problem, np.array([i])), draw, pooled=False)
        outputs = OPERATIONS[name](cohort, request.tensors, request.options, request.of(np.array([i])).own)
        found.append([float(problem.clients.weights[i]) * (u[0] if u.ndim == 2 else u).double() for u in outputs])
    return found


def variants(name: str) -> list[dict[str, Any]]:
    """Options under which an operation goes other ways."""
    takes = OPERATIONS[name].options
    found: list[dict[str, Any]] = [{}]
    found += [{"index": 2}] * ("index" in takes) + [{"normalised": True}] * ("normalised" in takes)
    return found + [{"full": True}] * ("full" in takes)


def held(name: str, problem: Any, request: Request, setting: Setting, rows: Any) -> None:
    """The rows to keep are those of every client alone."""
    draw = Draw(setting.seed, request.round, name, setting.batch, setting.gradient_batch)
    for row, i in zip(rows, request.clients, strict=True):
        one = np.array([i])
        cohort = Cohort(Held.of(problem, one), draw, pooled=False)
        wanted = OPERATIONS[name](cohort, request.tensors, request.options, request.of(one).own)[-1][0]
        assert float((row - wanted).norm()) <= 1e-12 * (1 + float(wanted.norm()))


@pytest.mark.parametrize("setting", sorted(SETTINGS))
@pytest.mark.parametrize("problem_name", ["quadratic", "tuple", "prepared", "closed"])
@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_operations_equal_a_loop_over_clients(name: str, problem_name: str, setting: str) -> None:
    """Pooled or in rows, ragged sizes, minibatches that do not divide them, unequal local steps."""
    problem = PROBLEMS[problem_name]()
    specs = SPECS if OPERATIONS[name].steps else [1]
    for spec in specs:
        for values in variants(name):
            each = alone(problem, ask(name, problem, spec, [0, 1, 2], **values), SETTINGS[setting])
            for clients in ([0, 1, 2], [0, 2]):
                reply = Node(problem, SETTINGS[setting]).answer(ask(name, problem, spec, clients, **values))
                assert reply.weight == pytest.approx(float(problem.clients.weights[clients].sum()))
                expected = [sum(parts) for parts in zip(*(each[i] for i in clients), strict=True)]
                assert len(reply.sums) == 1
                if OPERATIONS[name].keeps is not None:
                    *expected, _ = expected
                    held(name, problem, ask(name, problem, spec, clients, **values), SETTINGS[setting], reply.own[0])
                for found, wanted in zip(reply.sums[0], expected, strict=True):
                    assert found.dtype == torch.float64
                    assert found.shape == wanted.shape
                    assert float((found - wanted).norm()) <= 1e-12 * (1 + float(wanted.norm()))


def test_an_operation_that_says_it_is_linear_is() -> None:
    """The pooled row is used where it may be: one local step, or none; never where a client's own path matters."""
    for operation in OPERATIONS.values():
        options = {**VALUES, "local_steps": 1, "upper_local_steps": 1}
        paths = {"local_hypergradient_steps", "first_variance_reduced_steps", "momentum_directions", "page_directions"}
        assert operation.linear(options) == (operation.name not in paths)
        if operation.steps:
            assert not operation.linear({**options, operation.steps: 2})
            assert not operation.linear({**options, operation.steps: [1, 1, 2]})
