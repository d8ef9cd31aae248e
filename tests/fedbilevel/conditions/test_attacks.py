"""Byzantine clients: who they are, and what they send, against numpy."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fedbilevel.conditions.attacks import Byzantine, alie_z, attacked

N, D = 9, 5
ROWS = np.random.default_rng(1).normal(1.0, 2.0, (N, D))
BAD = np.isin(np.arange(N), [0, 3, 8])
CLIENTS = np.arange(10, 10 + N)
HONEST = ROWS[~BAD]


def lies(attack: Any, strength: float = 1.0, bad: Any = BAD, round: int = 4, purpose: str = "h.0", **more: Any) -> Any:
    table = Byzantine(share=0.3, attack=attack, strength=strength)
    rows, clients = more.pop("rows", ROWS), more.pop("clients", CLIENTS)
    result = attacked(torch.from_numpy(rows.copy()), bad, table, more.pop("seed", 7), clients, round, purpose)
    assert result.dtype == torch.float64
    return result.numpy()


@pytest.mark.parametrize("strength", [1.0, 2.5])
def test_what_attackers_send(strength: float) -> None:
    """Nine answer, three of them attackers: q = floor(9/2 + 1) - 3 = 2 of six honest ones, z = Phi^-1(4/6)."""
    mean = HONEST.sum(0) / 6
    deviation = np.sqrt(((HONEST - mean) ** 2).sum(0) / 6)
    expected = {
        "sign_flip": -strength * ROWS[BAD],
        "ipm": -strength * np.tile(mean, (3, 1)),
        "alie": np.tile(mean - strength * NormalDist().inv_cdf(4 / 6) * deviation, (3, 1)),
        "mimic": np.tile(ROWS[1], (3, 1)),
        "nan": np.full((3, D), math.nan),
    }
    for attack, sent in expected.items():
        got = lies(attack, strength)
        np.testing.assert_allclose(got[BAD], sent, rtol=1e-12, err_msg=attack)
        assert np.array_equal(got[~BAD], HONEST), attack


@pytest.mark.parametrize(("n", "f", "z"), [(20, 4, 9 / 16), (50, 12, 24 / 38), (5, 1, 2 / 4), (7, 3, 3 / 4)])
def test_how_far_a_lie_lies_from_the_mean(n: int, f: int, z: float) -> None:
    """Z = Phi^-1((n - f - q) / (n - f)) with q = floor(n/2 + 1) - f, by hand."""
    assert alie_z(n, f) == pytest.approx(NormalDist().inv_cdf(z), abs=1e-12)


def test_many_attackers_need_one_supporter_and_only_one_honest_client_gives_no_room() -> None:
    assert alie_z(9, 5) == pytest.approx(NormalDist().inv_cdf(3 / 4), abs=1e-12)
    assert alie_z(9, 8) == 0.0


@pytest.mark.parametrize("attack", ["none", "label_flip"])
def test_who_does_not_falsify_answers_sends_the_truth(attack: Any) -> None:
    assert np.array_equal(lies(attack), ROWS)


@pytest.mark.parametrize("attack", ["sign_flip", "ipm", "alie", "gaussian", "mimic", "nan"])
def test_where_no_attacker_answers_nothing_is_falsified(attack: Any) -> None:
    assert np.array_equal(lies(attack, bad=np.zeros(N, np.bool_)), ROWS)


def test_where_no_honest_client_answers_the_attackers_own_answers_stand_for_theirs() -> None:
    got = lies("ipm", bad=np.ones(N, np.bool_))
    np.testing.assert_allclose(got, -np.tile(ROWS.mean(0), (N, 1)), rtol=1e-12)


def test_gaussian_noise_has_the_strength_for_deviation_and_is_drawn_for_client_round_and_output() -> None:
    rows = np.full((N, 20_000), 5.0)
    noise = lies("gaussian", 3.0, rows=rows)[BAD]
    assert abs(noise.mean()) < 4 * 3.0 / math.sqrt(noise.size)
    assert noise.std() == pytest.approx(3.0, rel=4 / math.sqrt(2 * noise.size))
    assert abs(np.corrcoef(noise)[np.triu_indices(3, 1)]).max() < 5 / math.sqrt(20_000)
    again = lies("gaussian", 3.0, rows=rows)[BAD]
    assert np.array_equal(noise, again)
    others: list[dict[str, Any]] = [{"seed": 8}, {"round": 5}, {"purpose": "h.1"}, {"clients": CLIENTS + 100}]
    for changed in others:
        assert not np.isclose(lies("gaussian", 3.0, rows=rows, **changed)[BAD], noise).any(1).all(), changed


def test_what_a_client_draws_does_not_depend_on_who_else_answers() -> None:
    alone = lies("gaussian", rows=ROWS[3:4], bad=BAD[3:4], clients=CLIENTS[3:4])
    assert np.array_equal(alone[0], lies("gaussian")[3])


# ---- who they are ----


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.04, 0), (0.06, 1), (0.3, 3), (0.94, 9)])
def test_so_many_attack(share: float, count: int) -> None:
    who = Byzantine(share=share, attack="nan").attackers(3, 10)
    assert len(who) == len(set(who.tolist())) == count
    assert who.tolist() == sorted(who.tolist())


def test_attackers_are_drawn_once_for_a_seed_and_evenly_over_seeds() -> None:
    table = Byzantine(share=0.3, attack="nan")
    sets = [tuple(table.attackers(seed, 10).tolist()) for seed in range(1000)]
    assert sets == [tuple(table.attackers(seed, 10, iteration=5).tolist()) for seed in range(1000)]
    counts = np.bincount(np.array(sets).ravel(), minlength=10)
    assert abs(counts - 300).max() < 5 * math.sqrt(1000 * 0.3 * 0.7)
    assert len(set(sets)) > 100


def test_a_share_that_changes_comes_in_bursts_of_nested_sets() -> None:
    table = Byzantine(share=[0.0, 0.5, 0.2], attack="nan", share_lasts=2)
    sets = [set(table.attackers(1, 10, k).tolist()) for k in range(12)]
    assert [len(each) for each in sets] == 2 * [0, 0, 5, 5, 2, 2]
    assert sets[5] < sets[3]
    assert sets[:6] == sets[6:]
    assert table.largest_share == 0.5


@pytest.mark.parametrize(
    "told",
    [
        {"share": 1.0},
        {"share": -0.1},
        {"share": []},
        {"share": [0.5, 1.0]},
        {"share": 0.1, "strength": 0.0},
        {"share": 0.1, "attack": "flip"},
        {"share": [0.1, 0.2], "attack": "label_flip"},
        {"share": 0.1, "share_lasts": 0},
    ],
)
def test_what_is_no_attack_is_refused(told: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Byzantine(**{"attack": "nan", **told})
