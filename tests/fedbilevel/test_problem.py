"""How examples are held."""

from __future__ import annotations

import torch

from fedbilevel.problem import leaves


def test_leaves_come_in_a_fixed_order() -> None:
    a, b = torch.zeros(1), torch.ones(1)
    assert [t is u for t, u in zip(leaves({"a": a, "b": (b, a)}), [a, b, a], strict=True)] == [True] * 3
