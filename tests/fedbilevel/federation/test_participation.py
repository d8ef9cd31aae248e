"""Who takes part in an iteration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fedbilevel import BadInput, simulate
from fedbilevel.federation.rounds import Federation
from fedbilevel.federation.systems import Systems
from tests.federations import PROBLEM, M, sampling


def sets_of(fed: Federation, iterations: int) -> list[tuple[int, ...]]:
    sets = []
    for k in range(iterations):
        fed.begin(k)
        sets.append(tuple(fed.sampled.tolist()))
    return sets


def test_sampled_sets_are_keyed_by_seed_and_iteration() -> None:
    first = sets_of(sampling(20, clients_per_round=6, seed=1), 30)
    assert first == sets_of(sampling(20, clients_per_round=6, seed=1), 30)
    assert len(set(first)) == 30
    assert not set(first) & set(sets_of(sampling(20, clients_per_round=6, seed=2), 30))
    for chosen in first:
        assert len(set(chosen)) == 6
        assert list(chosen) == sorted(chosen)
        assert 0 <= chosen[0] <= chosen[-1] < 20


def test_sampled_sets_are_uniform_over_clients_and_over_pairs() -> None:
    rounds, m, size = 3000, 6, 2
    sets = sets_of(sampling(m, clients_per_round=size, seed=5), rounds)
    clients = np.bincount(np.array(sets).ravel(), minlength=m)
    expected = rounds * size / m
    spread = expected * (1 - size / m) * m / (m - 1)
    assert float(np.sum((clients - expected) ** 2 / spread)) < 20.5  # chi-square, 5 degrees of freedom, 0.1 %
    pairs = np.array([sets.count(pair) for pair in itertools.combinations(range(m), 2)])
    assert float(np.sum((pairs - rounds / 15) ** 2 / (rounds / 15))) < 36.1  # 14 degrees of freedom


def test_resampling_for_a_purpose_is_independent() -> None:
    fed = sampling(20, clients_per_round=5, seed=1)
    overlaps = []
    for k in range(400):
        fed.begin(k)
        first = fed.sampled
        fed.resample("other")
        assert fed.sampled is not first
        overlaps.append(len(np.intersect1d(first, fed.sampled)))
        fed.resample()
        assert np.array_equal(fed.sampled, first)
    assert abs(np.mean(overlaps) - 5 * 5 / 20) < 0.2


def test_the_servers_own_draws_are_keyed_by_seed_iteration_and_purpose() -> None:
    def draw(seed: int, iteration: int, purpose: str) -> float:
        fed = sampling(3, seed=seed)
        fed.begin(iteration)
        return float(fed.random(purpose).random())

    keys = [(0, 5, "index"), (1, 5, "index"), (0, 6, "index"), (0, 5, "other")]
    assert len({draw(*key) for key in keys}) == 4
    assert draw(*keys[0]) == draw(*keys[0])


@pytest.mark.parametrize("size", [None, 20, 25])
def test_everybody_takes_part_unless_fewer_are_asked_for(size: int | None) -> None:
    assert set(sets_of(sampling(20, clients_per_round=size), 5)) == {tuple(range(20))}


def test_only_available_clients_are_asked() -> None:
    systems = Systems(availability=0.3)
    everyone = sampling(200, systems=systems, seed=4)
    few = sampling(200, systems=systems, seed=4, clients_per_round=10)
    share, sets = [], set()
    for k in range(50):
        everyone.begin(k)
        few.begin(k)
        present = everyone.sampled
        share.append(len(present) / 200)
        sets.add(tuple(present.tolist()))
        assert len(few.sampled) == min(10, len(present))
        assert set(few.sampled.tolist()) <= set(present.tolist())
        everyone.resample("again")
        assert np.array_equal(everyone.sampled, present)
    assert len(sets) == 50
    assert not sets & set(sets_of(sampling(200, systems=systems, seed=5), 50))
    assert abs(np.mean(share) - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 10_000)


def test_the_server_waits_until_somebody_is_available() -> None:
    sizes = [len(chosen) for chosen in sets_of(sampling(3, systems=Systems(availability=0.05)), 200)]
    assert min(sizes) == 1
    assert np.mean(sizes) < 1.2


def test_a_sample_of_more_clients_than_there_are_is_refused() -> None:
    with pytest.raises(BadInput, match=r"clients_per_round: got 8; allowed: at most the number of clients, 7"):
        simulate(PROBLEM, "fednest", iterations=1, clients_per_round=M + 1)
