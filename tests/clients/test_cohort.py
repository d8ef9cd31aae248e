"""Which examples a derivative sees: whole clients, and minibatches that are keyed and walked through."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clients.cohort import Cohort
from clients.held import Draw, Held
from clients.node import Node, Setting
from fedbilevel import ClientData, derivatives
from tests.differentiable import LEVELS, Prepared, near, randn
from tests.operations import ask


class Counting:
    """g and f of example e are <e, y> and <e, x>, with e a row of the identity: gradients show the weights."""

    def __init__(self, lower: tuple[int, ...], upper: tuple[int, ...]) -> None:
        def rows(sizes: tuple[int, ...]) -> list[Tensor]:
            return list(torch.eye(sum(sizes), dtype=torch.float64).split(list(sizes)))

        self.sizes, self.dims = {"lower": lower, "upper": upper}, (sum(upper), sum(lower))
        self.clients = ClientData(rows(lower), rows(upper), "uniform")

    def initial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.zeros(self.dims[0], dtype=torch.float64), torch.zeros(self.dims[1], dtype=torch.float64)

    def lower(self, x: Tensor, y: Tensor, examples: Tensor) -> Tensor:
        return examples @ y

    def upper(self, x: Tensor, y: Tensor, examples: Tensor) -> Tensor:
        return examples @ x

    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        return {}


COUNTING = Counting((1, 4, 7, 5), (3, 2, 6, 1))


def cohort(clients: list[int], **draw: Any) -> Cohort:
    settings = {"seed": 4, "round": 6, "purpose": "walk", **draw}
    return Cohort(Held.of(COUNTING, np.array(clients)), Draw(**settings), pooled=False)


# A weight is the sum of one number and of zeros, so that it is exact in whatever order they are added.


def walk(clients: list[int], spec: Any, levels: tuple[derivatives.Level, ...], **draw: Any) -> list[list[Tensor]]:
    """Per step and level the gradient of <e, y> or <e, x>: the weight of every example, [clients, examples]."""
    made = cohort(clients, **draw)
    x, y = COUNTING.initial(torch.Generator())
    steps = []
    for batch in made.batches(spec, torch.float64, *levels):
        of = {"lower": made.lower_gradient, "upper": made.upper_gradient_x}
        steps.append([batch.keep(of[level](x, y, batch)) for level in levels])
    return steps


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("level", LEVELS)
def test_every_epoch_visits_every_example_once(batch: int, level: derivatives.Level) -> None:
    """Minibatches of the batch size, the last of an epoch short; equal weights within one."""
    clients, epochs = [0, 1, 2, 3], 3
    steps = walk(clients, {"epochs": epochs}, (level,), batch=batch)
    sizes = COUNTING.sizes[level]
    offsets = np.cumsum([0, *sizes])
    for i in clients:
        own = slice(int(offsets[i]), int(offsets[i + 1]))
        per_epoch = -(-sizes[i] // batch)
        rows = torch.stack([step[0][i] for step in steps])
        assert float(rows[:, : own.start].abs().sum() + rows[:, own.stop :].abs().sum()) == 0
        assert float(rows[epochs * per_epoch :].abs().sum()) == 0
        orders = []
        for epoch in range(epochs):
            visited = rows[epoch * per_epoch : (epoch + 1) * per_epoch, own]
            seen = (visited > 0).sum(1)
            assert seen.tolist() == [batch] * (per_epoch - 1) + [sizes[i] - batch * (per_epoch - 1)]
            assert (visited > 0).sum(0).tolist() == [1] * sizes[i]
            assert torch.allclose(visited, (visited > 0).double() / seen[:, None])
            orders.append(visited.argmax(0).tolist())
        if batch == 2 and sizes[i] > 4:
            assert len({tuple(order) for order in orders}) > 1


def test_a_full_batch_weighs_every_example_of_the_client_equally() -> None:
    ((rows,),) = walk([1, 3], 1, ("lower",))
    expected = torch.zeros(2, 17, dtype=torch.float64)
    expected[0, 1:5], expected[1, 12:] = 1 / 4, 1 / 5
    assert torch.allclose(rows, expected)


def test_both_levels_are_walked_through_at_once() -> None:
    """Local steps count epochs of the level named first; the other starts anew when it is through."""
    steps = walk([1, 2], {"epochs": 1}, ("upper", "lower"), batch=2)
    assert len(steps) == 3
    client = [[(rows[1] > 0).nonzero().flatten().tolist() for rows in step] for step in steps]
    assert sorted(row for upper, _ in client for row in upper) == list(range(5, 11))
    lower = [row for _, rows in client for row in rows]
    assert len(lower) == len(set(lower)) == 6
    assert set(lower) < set(range(5, 12))
    first = [[(rows[0] > 0).nonzero().flatten().tolist() for rows in step] for step in steps]
    assert [bool(upper) for upper, _ in first] == [True, False, False]


@pytest.mark.parametrize("spec", [5, {"epochs": 2}, {"low": 1, "high": 6}], ids=str)
def test_minibatches_do_not_depend_on_the_grouping_of_clients(spec: Any) -> None:
    whole = walk([0, 1, 2, 3], spec, ("lower", "upper"), batch=2)
    for clients in ([0], [1], [2], [3], [1, 3], [0, 1, 2]):
        part = walk(clients, spec, ("lower", "upper"), batch=2)
        assert len(part) <= len(whole)
        for k, step in enumerate(whole):
            for level in (0, 1):
                expected = step[level][clients]
                found = part[k][level] if k < len(part) else torch.zeros_like(expected)
                assert torch.equal(found, expected)


def test_minibatches_differ_by_seed_round_and_operation_only() -> None:
    def rows(**draw: Any) -> Tensor:
        return torch.stack([step[0] for step in walk([0, 1, 2, 3], 4, ("lower",), batch=2, **draw)])

    assert torch.equal(rows(), rows())
    for other in ({"seed": 5}, {"round": 7}, {"purpose": "other"}):
        assert not torch.equal(rows(), rows(**other))


def test_gradient_batches_are_drawn_without_replacement_and_once_per_operation() -> None:
    made = cohort([0, 1, 2, 3], gradient_batch=3)
    x, y = COUNTING.initial(torch.Generator())
    rows = made.lower_gradient(x, y)
    assert torch.equal(rows, made.lower_gradient(x, y + 1))
    for i, size in enumerate(COUNTING.sizes["lower"]):
        taken = rows[i][rows[i] > 0]
        assert torch.allclose(taken, torch.full((min(size, 3),), 1 / min(size, 3)).double())
    pooled = Cohort(made.held, made.draw, pooled=True).lower_gradient(x, y)
    near(pooled, rows.mean(0), 1e-14)
    visits = torch.zeros(17)
    for k in range(600):
        visits += cohort([2], gradient_batch=3, round=k).lower_gradient(x, y)[0] > 0
    assert float(visits[5:12].sum()) == 1800
    assert float(((visits[5:12] - 1800 / 7) ** 2 / (1800 / 7)).sum()) < 22.5


@pytest.mark.parametrize("name", ["svrg_steps", "outer_steps"])
def test_both_gradients_of_a_corrected_step_see_the_same_minibatch(name: str) -> None:
    """Linear losses: the difference of two gradients on one minibatch is zero, so that tau steps follow the mean."""
    request = ask(name, COUNTING, 5, [0, 1, 2, 3])
    reply = Node(COUNTING, Setting(seed=1, batch=2)).answer(request)
    start, direction, step = ("y", "gradient", 0.2) if name == "svrg_steps" else ("x", "hypergradient", 0.1)
    near(reply.sums[0][0], request.tensors[start] - 5 * step * request.tensors[direction], 1e-14)


def test_rows_prepared_for_one_minibatch_are_not_used_for_another() -> None:
    problem = Prepared("dict")
    made = Cohort(Held.of(problem, np.arange(3)), Draw(3, 0, "walk", 2), pooled=False)
    xs, ys = 0.3 * randn(3, 3, seed=1), 0.3 * randn(3, 4, seed=2)
    found = [made.lower_gradient(xs, ys, batch) for batch in made.batches(3, torch.float64, "lower")]
    again = [made.lower_gradient(xs.clone(), ys, batch) for batch in made.batches(3, torch.float64, "lower")]
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert not torch.equal(found[0], found[1])
