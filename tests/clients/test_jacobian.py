"""Products with the Jacobian of a network's outputs: automatic and in closed form, against dense Jacobians."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacrev

from clients.jacobian import Automatic, Jacobian, jacobian
from fedbilevel.problems.networks import outputs
from fedbilevel.problems.networks.convolutions import Convolutions
from fedbilevel.problems.tasks.few_shot import FewShot
from tests.agreement import relative
from tests.runs import tasks_of

B, N, CLASSES, SIDE = 2, 4, 3, 9
NETWORK = Convolutions(1, 4, CLASSES, 3)
TURN = torch.Generator().manual_seed(8)
Y = NETWORK.initial(TURN) + 0.2 * torch.randn(NETWORK.size, generator=TURN).double()
INPUTS = torch.rand(B, N, SIDE, SIDE, generator=TURN).double()


class Images:
    """A problem that has outputs and nothing else."""

    def outputs(self, y: Tensor, examples: Any) -> Tensor:
        return NETWORK(y, examples["input"])


def automatic(rows: int) -> Jacobian:
    problem: Any = Images()
    return Automatic(problem, Y, {"input": INPUTS}, rows)


def closed(rows: int) -> Jacobian:
    return outputs.Jacobian(NETWORK, Y, INPUTS, rows)


def dense(b: int, y: Tensor = Y) -> Tensor:
    """J of one task [N CLASSES, d], the outputs image by image."""
    return torch.as_tensor(jacrev(lambda y: NETWORK(y, INPUTS[b]).flatten())(y))


def some(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


@pytest.mark.parametrize("rows", [1, 5, 100])
@pytest.mark.parametrize("make", [automatic, closed])
def test_products_are_those_with_dense_jacobians(make: Callable[[int], Jacobian], rows: int) -> None:
    J, m, d = make(rows), N * CLASSES, len(Y)
    c, v, many_c, many_v = some(B, m), some(B, d), some(B, 7, m), some(B, 7, d)
    written, pulled, pushed, curved = J.rows(), J.pull(c), J.push(v), J.curve(many_c, many_v)
    assert (written.shape, pulled.shape, pushed.shape, curved.shape) == ((B, m, d), (B, d), (B, m), (B, d))
    for b in range(B):
        expected = dense(b)
        assert relative(J.value[b], NETWORK(Y, INPUTS[b]).flatten()) < 1e-12
        assert relative(written[b], expected) < 1e-12
        assert relative(pulled[b], expected.mT @ c[b]) < 1e-12
        assert relative(pushed[b], expected @ v[b]) < 1e-12

        def bilinear(y: Tensor, b: int = b) -> Tensor:
            return (many_c[b] @ dense(b, y) * many_v[b]).sum()

        assert relative(curved[b], grad(bilinear)(Y)) < 1e-11


@pytest.mark.parametrize("together", [1, 3 * B * N, 10_000])
def test_how_much_is_computed_at_one_time_does_not_matter(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    J = closed(100)
    rows, curved = J.rows(), J.curve(some(B, 7, N * CLASSES), some(B, 7, len(Y)))
    monkeypatch.setattr(outputs, "TOGETHER", together)
    assert relative(J.rows(), rows) < 1e-12
    assert relative(J.curve(some(B, 7, N * CLASSES), some(B, 7, len(Y))), curved) < 1e-12


def test_a_problem_with_a_closed_form_is_asked_for_it() -> None:
    few = FewShot("digits", filters=4)
    tasks, y = tasks_of(few, 2)
    assert isinstance(jacobian(few, y, tasks.tasks.query, 3), outputs.Jacobian)
    other = FewShot("digits", network="mlp", hidden=[4])
    tasks, y = tasks_of(other, 2)
    assert isinstance(jacobian(other, y, tasks.tasks.query, 3), Automatic)
