"""The peak memory of a computation: what it counts."""

from __future__ import annotations

import pytest
import torch

from fedbilevel.machine.peak import peak_memory


def test_it_is_the_most_that_is_alive_at_one_time():
    size = 1 << 16

    def work():
        a = torch.zeros(size)  # 1
        b = a + 1  # 2
        del a
        c = b * b  # 2
        del b
        return torch.cat([c, c, c])  # 4

    assert peak_memory(work) == 4 * size * 4


def test_what_was_there_before_does_not_count_and_the_second_time_is_as_the_first():
    kept = torch.ones(1000, dtype=torch.float64)
    found = [peak_memory(lambda: (kept * 2) + 3) for _ in range(3)]
    assert found[0] == found[1] == found[2]
    assert 16000 <= found[0] <= 16000 + 64  # the two scalars


def test_graphs_and_temporaries_under_torch_func_are_seen():
    x = torch.ones(10_000, dtype=torch.float64)

    def loss(x):
        for _ in range(20):
            x = torch.sin(x)  # each keeps its input
        return x.sum()

    assert peak_memory(lambda: loss(x)) <= 3 * 80_000
    assert peak_memory(lambda: torch.func.grad(loss)(x)) >= 20 * 80_000


def test_temporaries_inside_of_one_operation_are_seen():
    """The median sorts or selects in a copy, which nobody outside of it ever holds."""
    x = torch.arange(10_000, dtype=torch.float64)
    assert peak_memory(lambda: x.median().item()) >= 80_000


def test_operations_are_noted_again_afterwards_also_after_a_failure():
    def fails():
        raise ValueError("here")

    with pytest.raises(ValueError, match="here"):
        peak_memory(fails)
    with torch.autograd.profiler.profile(use_kineto=True) as found:
        torch.ones(3).add(1.0)
    assert any(event.name() == "aten::add" for event in found.kineto_results.events())
