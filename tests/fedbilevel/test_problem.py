"""How examples are held."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fedbilevel import ClientData
from fedbilevel.problem import Ragged, leaves

SHORT, LONG = [2, 1, 3], [25, 19, 31]
"""Examples of three clients: few, which are gathered one by one, and many, which are cut client by client."""


def numbered(sizes: list[int]) -> Ragged:
    """Example e holds e, and its client's number beside it."""
    parts, start = [], 0
    for client, size in enumerate(sizes):
        parts.append({"e": torch.arange(start, start + size), "of": (torch.full((size, 2), client),)})
        start += size
    return Ragged.join(parts, "clients.lower")


def test_leaves_come_in_a_fixed_order() -> None:
    a, b = torch.zeros(1), torch.ones(1)
    assert [t is u for t, u in zip(leaves({"a": a, "b": (b, a)}), [a, b, a], strict=True)] == [True] * 3


@pytest.mark.parametrize("clients", [[0, 1, 2], [2, 0, 1], [1, 0], [2], [0, 2], [1, 1]], ids=str)
@pytest.mark.parametrize("sizes", [SHORT, LONG], ids=["short", "long"])
def test_clients_are_taken_in_the_order_given(sizes: list[int], clients: list[int]) -> None:
    taken = numbered(sizes).take(np.array(clients))
    starts = [0, sizes[0], sizes[0] + sizes[1]]
    assert taken.values["e"].tolist() == [starts[i] + e for i in clients for e in range(sizes[i])]
    assert taken.values["of"][0].tolist() == [[i, i] for i in clients for _ in range(sizes[i])]
    assert taken.offsets.tolist() == [0, *np.cumsum([sizes[i] for i in clients])]


def test_all_clients_in_order_are_the_same_object() -> None:
    held = numbered(SHORT)
    assert held.take(np.arange(3)) is held


def test_one_loss_has_its_examples_once_and_the_weights_given() -> None:
    parts = [torch.zeros(n, 1) for n in SHORT]
    data = ClientData.single(parts, [1.0, 2.0, 5.0])
    assert data.upper is data.lower
    assert data.weights.tolist() == [0.125, 0.25, 0.625]
    assert ClientData.single(parts).weights.tolist() == pytest.approx([2 / 6, 1 / 6, 3 / 6])
    assert ClientData.single(parts, "uniform").weights.tolist() == pytest.approx([1 / 3] * 3)
    for changed in (data.to(torch.float64), data.only(1, 3), data.pooled()):
        assert changed.upper is changed.lower


def test_weights_by_size_count_both_levels() -> None:
    lower, upper = ([torch.zeros(n, 1) for n in sizes] for sizes in ([1, 2, 4], [3, 1, 5]))
    assert ClientData(lower, upper).weights.tolist() == pytest.approx([4 / 16, 3 / 16, 9 / 16])


def test_a_change_of_two_levels_is_of_each() -> None:
    lower, upper = ([torch.full((2, 1), value)] for value in (1.0, 2.0))

    def doubled(level: Ragged) -> Ragged:
        values: Tensor = level.values
        return Ragged(2 * values, level.offsets)

    low, high = ClientData(lower, upper).each(doubled)
    assert (low.values[0].tolist(), high.values[0].tolist()) == ([2.0], [4.0])


def test_another_precision_leaves_weights_blocks_and_whole_numbers_as_they_are() -> None:
    parts = [{"a": torch.ones(2, 1), "own": torch.arange(2)}, {"a": torch.ones(1, 1), "own": torch.tensor([2])}]
    data = ClientData(parts, parts, [1.0, 3.0], blocks=[2, 1]).to(torch.float64)
    assert {name: values.dtype for name, values in data.lower.values.items()} == {
        "a": torch.float64,
        "own": torch.int64,
    }
    assert data.weights.tolist() == [0.25, 0.75]
    assert data.blocks is not None
    assert data.blocks.sizes.tolist() == [2, 1]


def test_what_every_example_is_of_and_what_it_counts() -> None:
    level = Ragged(torch.zeros(4), np.array([0, 3, 4]))
    assert level.owners.tolist() == [0, 0, 0, 1]
    assert level.shares(np.array([0.6, 0.4])).tolist() == pytest.approx([0.2, 0.2, 0.2, 0.4], rel=1e-15)
