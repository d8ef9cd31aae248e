"""A node: what it keeps between requests changes no answer; its sums are exact, and a client that fails is named."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clients.node import Node, Setting
from fedbilevel import ClientData
from fedbilevel.errors import ClientFailed
from fedbilevel.federation.messages import Request
from fedbilevel.problems import Quadratic
from tests.differentiable import Prepared, small_digits
from tests.operations import OPERATIONS, ask
from tests.problem_table import DY, M, Weighted

META = torch.device("meta")


@pytest.mark.slow
@pytest.mark.parametrize("gradient_batch", [None, 3])
@pytest.mark.parametrize("closed", [False, True])
def test_answers_do_not_depend_on_what_was_asked_before(closed: bool, gradient_batch: int | None) -> None:
    """What was prepared for one x, or for some rows, or gathered for one set, is never used for another."""
    problem = small_digits((3,), "tanh") if closed else Prepared("dict")
    setting = Setting(seed=3, batch=2, gradient_batch=gradient_batch)
    node = Node(problem, setting)
    for clients in ([0, 1, 2], [1], [2], [0, 2], [0, 1]):
        requests = [ask(name, problem, 2, clients) for name in sorted(OPERATIONS)]
        moved = [replace(r, tensors={key: t + 0.1 for key, t in r.tensors.items()}) for r in requests]
        later = [replace(r, tensors=requests[0].tensors | r.tensors, round=10) for r in requests]
        fresh = {id(r): Node(problem, setting).answer(r).sums[0] for r in [*requests, *moved, *later]}
        for request in [*requests, *moved, *requests, *later]:
            for a, b in zip(node.answer(request).sums[0], fresh[id(request)], strict=True):
                assert torch.equal(a, b)


def test_a_vector_has_one_copy_on_the_device_while_it_lives() -> None:
    node = Node(Quadratic(clients=2), Setting())
    node.device = META
    x = torch.ones(3)
    there = node._here(x)
    assert there.device == META
    assert node._here(x) is there
    assert node._here(there) is there
    assert len(node._on_device) == 1
    del x
    assert len(node._on_device) == 0


class Marked:
    """g of example e is <e, y>; whoever holds a negative number fails, and so do crowds."""

    def __init__(self, rows: list[list[float]], dtype: torch.dtype = torch.float64, crowd: int = 99) -> None:
        parts = [torch.tensor([row], dtype=dtype) for row in rows]
        self.clients, self.dim, self.crowd = ClientData(parts, parts, "uniform"), len(rows[0]), crowd

    def initial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.zeros(1), torch.zeros(self.dim)

    def prepare(self, x: Tensor, examples: Tensor) -> Tensor:
        if bool((examples < 0).any()):
            raise ValueError("below zero")
        if len(examples) >= self.crowd:
            raise ValueError("too many")
        return examples

    def lower(self, x: Tensor, y: Tensor, examples: Tensor) -> Tensor:
        return examples @ y

    upper = lower

    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        return {}


def asked(problem: Marked, name: str, clients: list[int], **options: Any) -> Request:
    dtype = problem.clients.lower.values.dtype
    tensors = {"x": torch.zeros(1, dtype=dtype), "y": torch.zeros(problem.dim, dtype=dtype)}
    return Request((name,), np.array(clients), tensors, {"x": 0, "y": 1}, options, 0, 6)


def test_sums_are_in_float64_whatever_the_clients_compute_in() -> None:
    """Whole numbers below 2^24 are exact in float32; their mean over three clients is not."""
    rows = [[16777213.0, 1.0], [5.0, 2.0], [11.0, 4.0]]
    problem = Marked(rows, torch.float32)
    answer = Node(problem, Setting()).answer(asked(problem, "sgd_steps", [0, 1, 2], lower_step=1.0, local_steps=1))
    both = Node(problem, Setting()).answer(asked(problem, "sgd_steps", [0, 1, 2], lower_step=0.5, local_steps=2))
    assert answer.sums[0][0].dtype == both.sums[0][0].dtype == torch.float64
    means = [-sum(column) / 3 for column in zip(*rows, strict=True)]
    np.testing.assert_allclose(both.sums[0][0], means, rtol=1e-15)  # each client's own path
    np.testing.assert_allclose(answer.sums[0][0], means, rtol=1e-6)  # pooled: a mean in the clients' own dtype
    assert answer.weight == both.weight == pytest.approx(1.0, rel=1e-15)


def test_the_first_client_that_fails_alone_is_named() -> None:
    problem = Marked([[1.0], [-1.0], [1.0], [-2.0]])
    for clients, named in (([0, 1, 2, 3], 1), ([0, 2, 3], 3), ([3, 1], 3)):
        said = rf"^client {named}, operation lower_gradient, round 6: ValueError: below zero$"
        with pytest.raises(ClientFailed, match=said):
            Node(problem, Setting()).answer(asked(problem, "lower_gradient", clients))
    assert Node(problem, Setting()).answer(asked(problem, "lower_gradient", [0, 2])).sums[0][0].tolist() == [0.5]


def test_where_none_fails_alone_they_are_named_together() -> None:
    problem = Marked([[1.0], [2.0], [3.0]], crowd=2)
    with pytest.raises(
        ClientFailed, match=r"^2 clients together, operation lower_gradient, round 6: ValueError: too many$"
    ):
        Node(problem, Setting()).answer(asked(problem, "lower_gradient", [0, 2]))


# ---- a block of x of each client's own ----


class Sore(Weighted):
    """Where somebody is sore, the loss fails and tells the x that it was given."""

    def __init__(self, sore: int | None = None) -> None:
        super().__init__(True)
        for level in (self.clients.lower, self.clients.upper):
            level.values["sore"] = torch.from_numpy(np.repeat(np.arange(M) == sore, level.sizes))

    def prepare(self, x: Tensor, examples: dict[str, Tensor]) -> dict[str, Tensor]:
        if bool(examples["sore"].any()):
            raise ValueError(f"x is {[int(each) for each in x]}")
        return examples


def to_everybody(problem: Sore) -> Request:
    """X is 0, 1, ..., 14: who has which of it can be told."""
    tensors = {"x": torch.arange(15.0, dtype=torch.float64), "y": torch.ones(DY, dtype=torch.float64)}
    ends, cut = np.cumsum(problem.sizes), frozenset({"x"})
    return Request(("lower_gradient",), np.arange(M), tensors, {"x": 0, "y": 1}, cut=cut, ends=ends)


@pytest.mark.parametrize(("sore", "own"), [(3, [8, 9]), (4, [10, 11, 12, 13, 14])])
@pytest.mark.parametrize("first", [0, 2, 3])
def test_who_fails_is_looked_for_with_his_own_block(first: int, sore: int, own: list[int]) -> None:
    """Whoever stands before the clients of this node, and whoever of them fails: ends are counted from the first."""
    problem = Sore(sore)
    with pytest.raises(ClientFailed, match=rf"^client {sore}, .*: ValueError: x is {re.escape(str(own))}$"):
        Node(problem, Setting()).answer(to_everybody(problem).of(np.arange(first, M)))


def test_one_node_answers_for_several_runs_of_clients_each_with_its_own_part_of_x() -> None:
    """As it does for the clients of a worker that died: the gradients are those of a loop in numpy."""
    problem = Sore()
    request, node = to_everybody(problem), Node(problem, Setting())
    data, x = problem.clients, np.arange(15.0)
    for clients in ([0, 1, 2], [3, 4], [1], [0, 1, 2, 3, 4], [2, 3]):
        expected = np.zeros(DY)
        for i in clients:
            rows = slice(int(data.lower.offsets[i]), int(data.lower.offsets[i + 1]))
            a, b, own = (data.lower.values[name][rows].numpy() for name in ("a", "b", "own"))
            weight = 1 / (1 + np.exp(-x[own]))
            expected += data.weights[i] * ((weight * (a.sum(1) - b)) @ a / len(b) + problem.l2)
        (found,) = node.answer(request.of(np.array(clients))).sums[0]
        np.testing.assert_allclose(found, expected, rtol=1e-12)
