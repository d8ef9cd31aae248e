"""A node: what it keeps between requests changes no answer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from clients.node import Node, Setting
from fedbilevel.problems import Quadratic
from tests.differentiable import Prepared, small_digits
from tests.operations import OPERATIONS, ask

META = torch.device("meta")


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
