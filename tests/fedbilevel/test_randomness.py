"""Random draws: functions of their key, and distributed as they say."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedbilevel import randomness

CLIENTS = np.arange(50)


def test_draws_are_functions_of_their_key() -> None:
    base = randomness.bits(3, CLIENTS, 7, "here", 4)
    assert np.array_equal(base, randomness.bits(3, CLIENTS, 7, "here", 4))
    assert np.array_equal(base[:, :2], randomness.bits(3, CLIENTS, 7, "here", 2))
    assert np.array_equal(base[[9, 4]], randomness.bits(3, np.array([9, 4]), 7, "here", 4))
    for other in ((4, 7, "here"), (3, 8, "here"), (3, 7, "there"), (2**62 - 1, 7, "here")):
        seed, round, purpose = other
        assert not np.any(base == randomness.bits(seed, CLIENTS, round, purpose, 4))


def test_keys_do_not_collide() -> None:
    words = [
        randomness.bits(seed, np.arange(-1, 200), round, purpose, 3)
        for seed in range(6)
        for round in range(-1, 12)
        for purpose in ("a", "b", "")
    ]
    together = np.concatenate(words).ravel()
    assert len(np.unique(together)) == len(together)


def test_uniform_numbers_are_uniform_and_independent() -> None:
    u = randomness.uniform(0, np.arange(2000), 3, "u", 10)
    assert u.min() >= 0
    assert u.max() < 1
    counts = np.histogram(u, bins=20, range=(0, 1))[0]
    assert float(np.sum((counts - 1000) ** 2 / 1000)) < 43.8  # 19 degrees of freedom, 0.1 %
    following = randomness.uniform(0, np.arange(2000), 4, "u", 10)
    neighbours = (
        (u[:-1], u[1:]),
        (u[:, :-1], u[:, 1:]),
        (u, following),
        (u, randomness.uniform(1, np.arange(2000), 3, "u", 10)),
    )
    for a, b in neighbours:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / np.sqrt(a.size)


def test_normal_numbers_are_normal() -> None:
    z = randomness.normal(1, np.arange(40_000), 0, "z")
    assert z.shape == (40_000,)
    assert np.all(np.isfinite(z))
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(np.mean(z**power) - moment) < 4 * np.sqrt(spread / 40_000)
    assert abs(np.mean(np.abs(z) < 1) - 0.682689) < 4 * np.sqrt(0.2166 / 40_000)


def test_permutations_are_valid_for_ragged_sizes_and_do_not_depend_on_the_grouping() -> None:
    sizes = np.array([1, 5, 2, 9, 9, 3])
    clients = np.array([4, 0, 7, 2, 11, 5])
    orders = randomness.permutations(2, clients, 3, "order", sizes)
    assert orders.shape == (6, 9)
    for order, size in zip(orders, sizes, strict=True):
        assert sorted(order[:size].tolist()) == list(range(size))
        assert order[size:].tolist() == list(range(size, 9))
    for chosen in ([1], [3, 0], [5, 2, 1]):
        alone = randomness.permutations(2, clients[chosen], 3, "order", sizes[chosen])
        for row, i in enumerate(chosen):
            assert np.array_equal(alone[row, : sizes[i]], orders[i, : sizes[i]])
    assert not np.array_equal(orders[3], orders[4])


def test_permutations_are_uniform() -> None:
    orders = randomness.permutations(0, np.arange(6000), 1, "order", np.full(6000, 3))
    counts = np.unique(orders @ np.array([9, 3, 1]), return_counts=True)[1]
    assert len(counts) == 6
    assert float(np.sum((counts - 1000) ** 2 / 1000)) < 20.5  # 5 degrees of freedom, 0.1 %


def test_the_servers_generator_is_keyed_as_well() -> None:
    def draw(*key: Any) -> list[int]:
        found: list[int] = randomness.generator(*key).integers(1000, size=8).tolist()
        return found

    base = draw(0, randomness.SERVER, 5, "index")
    assert base == draw(0, randomness.SERVER, 5, "index")
    for other in ((1, -1, 5, "index"), (0, 0, 5, "index"), (0, -1, 6, "index"), (0, -1, 5, "sampling")):
        assert draw(*other) != base
