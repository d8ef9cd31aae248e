"""Who answers: failures, deadlines, over-selection and absences, counted and weighed by hand."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from clients.operations import local, oracles
from clients.operations.single_loop import momentum_directions
from fedbilevel import randomness
from fedbilevel.errors import BadInput, NobodyAnswered
from fedbilevel.federation.systems import Network, Systems
from tests.federations import PROBLEM, X_BYTES, Y_BYTES, M, X, Y, federation, sampling
from tests.reference import clients_of

CLIENTS = clients_of(PROBLEM)
GRADIENTS = np.array([client.gy(X.numpy(), Y.numpy()) for client in CLIENTS])
P = np.array([client.p for client in CLIENTS])
SIZES = PROBLEM.clients.lower.sizes
SLOW = {"latency_ms": 100.0, "downlink_mbps": 1e9, "uplink_mbps": 1e9, "examples_per_second": 1e9}
"""A round is two latencies and nothing else that shows."""


def ask(fed: Any) -> Any:
    return fed.mean(oracles.lower_gradient, x=X, y=Y).numpy()


def weighted(who: Any, unbiased: bool = False) -> Any:
    p = P[who]
    return (M / len(who) if unbiased else 1 / p.sum()) * p @ GRADIENTS[who]


def fails(seed: int, who: Any, round: int, chance: float) -> Any:
    return randomness.uniform(seed, np.asarray(who), round, "dropout")[:, 0] < chance


# ---- failures ----


@pytest.mark.parametrize("unbiased", [False, True])
def test_a_failed_clients_answer_is_lost_and_the_weights_are_those_of_who_answered(unbiased: bool) -> None:
    fed = federation(seed=1, systems=Systems(dropout=0.4), weighting="unbiased" if unbiased else "normalised")
    lost = 0
    for k in range(12):
        fed.begin(k)
        failed = fails(1, range(M), k, 0.4)
        np.testing.assert_allclose(ask(fed), weighted(np.flatnonzero(~failed), unbiased), rtol=1e-11, atol=1e-12)
        lost += failed.sum()
        assert np.array_equal(fed.answered, np.flatnonzero(~failed))
        assert fed.lost == lost
        assert fed.ledger.rounds == k + 1
    assert 12 < lost < 60
    ledger = fed.ledger
    assert ledger.downlink_bytes == 12 * M * (X_BYTES + Y_BYTES)
    assert ledger.uplink_bytes == (12 * M - lost) * Y_BYTES
    assert (ledger.vectors_down, ledger.vectors_up) == (24 * M, 12 * M - lost)
    assert ledger.messages == 24 * M - lost


def test_who_failed_has_not_worked() -> None:
    fed = federation(seed=1, systems=Systems(dropout=0.4))
    ask(fed)
    assert fed.ledger.gradient_evaluations == SIZES[~fails(1, range(M), 0, 0.4)].sum()


def test_what_a_failed_client_was_sent_is_not_sent_again_in_the_iteration() -> None:
    fed = federation(seed=1, systems=Systems(dropout=0.4))
    ask(fed)
    ask(fed)
    assert fed.ledger.vectors_down == 2 * M


def test_a_client_fails_for_a_round_or_for_the_rest_of_the_iteration() -> None:
    for_rounds, gone = federation(seed=2, systems=Systems(dropout=0.3)), set[int]()
    whole = federation(seed=2, systems=Systems(dropout=0.3, dropout_lasts="iteration"))
    back = False
    for round in range(4):
        ask(for_rounds)
        ask(whole)
        failed = set(np.flatnonzero(fails(2, range(M), round, 0.3)).tolist())
        assert set(for_rounds.answered.tolist()) == set(range(M)) - failed
        back |= bool(gone - failed)
        gone |= failed
        assert set(whole.answered.tolist()) == set(range(M)) - gone
        assert set(whole.sampled.tolist()) == set(range(M)) - gone
    assert back
    whole.resample()
    assert set(whole.sampled.tolist()) == set(range(M)) - gone
    whole.begin(1)
    assert len(whole.sampled) == M


def test_failures_come_by_their_chance() -> None:
    fed = sampling(2000, systems=Systems(dropout=0.25), seed=6)
    share = fails(6, range(2000), 5, 0.25).mean()
    assert abs(share - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 2000)
    assert fed.participation.expected == 1500


def test_a_round_that_nobody_answers_is_counted_and_the_iteration_begins_again() -> None:
    seed = next(seed for seed in range(20) if fails(seed, range(M), 0, 0.9).all())
    fed = federation(seed=seed, systems=Systems(dropout=0.9))
    attempts = 0
    while True:
        failed = fails(seed, range(M), attempts, 0.9)
        if not failed.all():
            break
        with pytest.raises(NobodyAnswered, match=rf"^operation lower_gradient, round {attempts}: nobody answered$"):
            ask(fed)
        attempts += 1
        fed.begin(0, attempts)
    assert attempts > 0
    np.testing.assert_allclose(ask(fed), weighted(np.flatnonzero(~failed)), rtol=1e-11, atol=1e-12)
    assert fed.repeated == attempts
    assert fed.lost == attempts * M + failed.sum()
    assert fed.ledger.rounds == attempts + 1
    assert fed.ledger.downlink_bytes == (attempts + 1) * M * (X_BYTES + Y_BYTES)
    assert fed.ledger.uplink_bytes == (~failed).sum() * Y_BYTES
    assert fed.measures() == {"metric_lost": fed.lost, "metric_repeated": attempts}


@pytest.mark.parametrize(
    "settings",
    [
        {"systems": Systems(dropout=0.3), "clients_per_round": 3},
        {"systems": Systems(sampling="poisson"), "clients_per_round": 3},
        {"systems": Systems(availability=0.5, dropout=0.3)},
        {"systems": Systems(availability=0.5, sampling="poisson"), "clients_per_round": 4},
    ],
)
def test_unbiased_weights_are_unbiased_over_ten_thousand_rounds(settings: dict[str, Any]) -> None:
    """Of who answered (m / |S|) p_i; rounds that nobody answered are drawn again."""
    unlike = np.linspace(0.5, 2.0, M)
    fed = sampling(M, **settings)
    values, p, dropout = np.arange(M) ** 2.0, unlike / unlike.sum(), settings["systems"].dropout
    found = []
    for k in range(10_000):
        for attempt in itertools.count():
            who = fed.participation.sample(k, attempt=attempt)
            if dropout:
                who = who[~fails(0, who, k + 10_000 * attempt, dropout)]
            if len(who):
                break
        found.append(M / len(who) * (p[who] * values[who]).sum())
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - p @ values) < 4.5 * error
    assert error < 0.02 * p @ values


@pytest.mark.parametrize("along", [False, True])
def test_an_unbiased_direction_is_unbiased_under_failures(along: bool) -> None:
    """The federation's own mean over a thousand rounds that somebody answers; along an aggregate a step is whole."""
    fed = federation(seed=3, systems=Systems(dropout=0.4), weighting="unbiased", clients_per_round=5)
    found, gradient = [], torch.from_numpy(P @ GRADIENTS)
    for k in range(100 if along else 1000):
        fed.begin(k)
        try:
            if along:
                y = fed.mean(local.svrg_steps, x=X, y=Y, gradient=gradient, lower_step=0.1, local_steps=1)
                np.testing.assert_allclose((Y - y).numpy() / 0.1, P @ GRADIENTS, rtol=1e-9, atol=1e-10)
            else:
                found.append(ask(fed))
        except NobodyAnswered:
            assert fails(3, fed.sampled, k, 0.4).all()
    if not along:
        error = np.std(found, axis=0) / np.sqrt(len(found))
        assert (abs(np.mean(found, axis=0) - P @ GRADIENTS) < 4.5 * error).all()


# ---- deadlines ----


def latencies(spread: float, seed: int) -> Any:
    return 0.2 * np.exp(spread * randomness.normal(seed, np.arange(M), 0, "latency"))


@pytest.mark.parametrize("place", [0, 2, 5])
def test_late_answers_are_lost_and_the_round_ends_at_the_deadline(place: int) -> None:
    takes = latencies(0.8, 4)
    deadline = float(np.sort(takes)[place : place + 2].mean())
    fed = federation(seed=4, systems=Systems(deadline_seconds=deadline, network=Network(**SLOW, spread=0.8)))
    intime = np.flatnonzero(takes < deadline)
    assert len(intime) == place + 1
    for k in range(3):
        fed.begin(k)
        np.testing.assert_allclose(ask(fed), weighted(intime), rtol=1e-11, atol=1e-12)
    assert fed.ledger.simulated_seconds == pytest.approx(3 * deadline, rel=1e-12)
    assert fed.ledger.uplink_bytes == 3 * len(intime) * Y_BYTES
    assert fed.ledger.downlink_bytes == 3 * M * (X_BYTES + Y_BYTES)
    assert fed.lost == 3 * (M - len(intime))
    assert fed.ledger.gradient_evaluations == 3 * SIZES.sum()  # who is late has worked


def test_where_all_are_in_time_the_round_ends_with_the_last_one() -> None:
    takes = latencies(0.8, 4)
    systems = Systems(deadline_seconds=float(takes.max()) + 0.5, network=Network(**SLOW, spread=0.8))
    fed = federation(seed=4, systems=systems)
    np.testing.assert_allclose(ask(fed), weighted(np.arange(M)), rtol=1e-11, atol=1e-12)
    assert fed.ledger.simulated_seconds == pytest.approx(takes.max(), rel=1e-6)
    assert fed.lost == 0


def test_with_a_deadline_the_server_waits_for_who_has_failed() -> None:
    fed = federation(seed=1, systems=Systems(dropout=0.4, deadline_seconds=3.0, network=Network(**SLOW)))
    ask(fed)
    assert fed.ledger.simulated_seconds == 3.0
    prompt = federation(seed=1, systems=Systems(dropout=0.4, network=Network(**SLOW)))
    ask(prompt)
    assert prompt.ledger.simulated_seconds == pytest.approx(0.2, rel=1e-6)


def test_a_deadline_counts_bytes_both_ways_and_work() -> None:
    """All alike: latency 2 x 30 ms, 56 bytes down at 20 kbit/s, 32 up at 5 kbit/s, the examples at 50 a second."""
    network = Network(downlink_mbps=0.02, uplink_mbps=0.005, latency_ms=30.0, examples_per_second=50.0)
    takes = 0.06 + 8 * (X_BYTES + Y_BYTES) / 20_000 + 8 * Y_BYTES / 5_000 + SIZES / 50
    deadline = float(np.unique(takes)[:2].mean())
    fed = federation(systems=Systems(deadline_seconds=deadline, network=network))
    ask(fed)
    assert np.array_equal(fed.answered, np.flatnonzero(takes < deadline))
    ask(fed)  # nothing travels down any more
    assert np.array_equal(fed.answered, np.flatnonzero(takes - 8 * (X_BYTES + Y_BYTES) / 20_000 < deadline))


def test_a_deadline_that_nobody_can_meet_is_refused() -> None:
    fed = federation(systems=Systems(deadline_seconds=0.15, network=Network(**SLOW)))
    with pytest.raises(
        BadInput, match=r"^systems.deadline_seconds: got 0.15; allowed: at least 0\.2\d*: .* lower_gradient$"
    ):
        ask(fed)
    assert fed.ledger.rounds == 0


# ---- over-selection ----


def test_more_are_asked_and_the_fastest_count() -> None:
    takes = latencies(0.8, 4)
    systems = Systems(over_selection=2, network=Network(**SLOW, spread=0.8))
    fed = federation(seed=4, systems=systems, clients_per_round=3)
    for k in range(5):
        fed.begin(k)
        assert len(fed.sampled) == 5
        first = np.sort(fed.sampled[np.argsort(takes[fed.sampled])[:3]])
        before = fed.ledger.simulated_seconds
        np.testing.assert_allclose(ask(fed), weighted(first), rtol=1e-11, atol=1e-12)
        assert fed.ledger.simulated_seconds - before == pytest.approx(takes[first].max(), rel=1e-6)
    assert fed.lost == 10
    assert fed.ledger.vectors_down == 5 * 5 * 2
    assert fed.ledger.uplink_bytes == 5 * 3 * Y_BYTES
    assert fed.participation.expected == 3


def test_of_equally_fast_clients_a_draw_decides() -> None:
    fed = federation(seed=0, systems=Systems(over_selection=4, network=Network(**SLOW)), clients_per_round=3)
    sets = []
    for k in range(300):
        fed.begin(k)
        ask(fed)
        sets.append(fed.answered)
    counts = np.bincount(np.concatenate(sets), minlength=M)
    # work differs by nanoseconds: those of fewest examples are first, and among them a draw decides
    fewest = np.flatnonzero(SIZES.min() == SIZES)
    assert all(len(each) == 3 for each in sets)
    assert counts[fewest].sum() == 300 * min(3, len(fewest))


def test_over_selection_makes_up_for_failures_and_a_deadline_is_not_waited_for() -> None:
    systems = Systems(over_selection=4, dropout=0.3, deadline_seconds=5.0, network=Network(**SLOW, spread=0.8))
    fed = federation(seed=4, systems=systems, clients_per_round=3)
    takes, waited = latencies(0.8, 4), 0
    for k in range(20):
        fed.begin(k)
        failed = fails(4, range(M), k, 0.3)
        there = np.flatnonzero(~failed & (takes < 5.0))
        first = np.sort(there[np.argsort(takes[there])[:3]])
        before = fed.ledger.simulated_seconds
        np.testing.assert_allclose(ask(fed), weighted(first), rtol=1e-11, atol=1e-12)
        waited += len(first) < 3
        seconds = takes[first].max() if len(first) == 3 else 5.0
        assert fed.ledger.simulated_seconds - before == pytest.approx(seconds, rel=1e-6)
    assert waited < 20


# ---- who is there ----


def test_a_block_of_time_has_the_same_clients_and_the_next_one_others() -> None:
    systems = Systems(availability=0.4, availability_pattern="blocks", availability_period=5)
    fed = sampling(200, systems=systems, seed=4)
    sets = [tuple(fed.participation.sample(k).tolist()) for k in range(50)]
    for k in range(50):
        assert sets[k] == sets[k - k % 5]
    assert len(set(sets)) == 10
    share = np.mean([len(each) / 200 for each in sets])
    assert abs(share - 0.4) < 5 * np.sqrt(0.4 * 0.6 / 2000)


def test_by_day_every_client_is_there_for_its_share_of_every_period_at_a_stretch() -> None:
    systems = Systems(availability=0.25, availability_pattern="day", availability_period=8)
    fed = sampling(100, systems=systems, seed=4)
    there = np.zeros((24, 100), np.bool_)
    for k in range(24):
        there[k, fed.participation.sample(k)] = True
    assert (there.sum(0) == 6).all()
    assert np.array_equal(there[:8], there[8:16])
    # it comes once a period, and goes once
    assert ((~there[:8] & np.roll(there[:8], -1, 0)).sum(0) == 1).all()
    begins = np.argmax(there[8:16] & ~there[7:15], axis=0)
    assert len(set(begins.tolist())) == 8
    drawn = randomness.uniform(4, np.arange(100), 0, "day")[:, 0]
    assert np.array_equal(begins, np.ceil(8 * drawn).astype(int) % 8)


def test_the_server_waits_for_the_morning() -> None:
    """One client, there in one hour of eight: every iteration is made in that hour."""
    systems = Systems(availability=0.125, availability_pattern="day", availability_period=8)
    assert all(sampling(1, systems=systems).participation.sample(k).tolist() == [0] for k in range(9))
    assert systems.longest_night(0, np.arange(1)) == 7


@pytest.mark.parametrize(("availability", "period", "m"), [(0.3, 10, 1), (0.11, 10, 3), (0.26, 7, 2), (0.05, 40, 4)])
def test_the_longest_night_is_the_longest_wait(availability: float, period: int, m: int) -> None:
    systems = Systems(availability=availability, availability_pattern="day", availability_period=period)
    for seed in range(20):
        hours = [systems.available(seed, np.arange(m), k, 0).any() for k in range(period)]
        nights = [len(list(run)) for there, run in itertools.groupby(2 * hours) if not there]
        expected = max(nights, default=0) if any(hours) else float("inf")
        assert systems.longest_night(seed, np.arange(m)) == expected


def test_clients_are_drawn_one_by_one() -> None:
    """Each by the chance 3/12 of its own: binomial counts, and clients that know nothing of others."""
    fed = sampling(12, systems=Systems(sampling="poisson"), clients_per_round=3, seed=5)
    there = np.zeros((4000, 12), np.bool_)
    for k in range(4000):
        there[k, fed.participation.sample(k)] = True
    assert abs(there.mean(0) - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 4000)
    counts = there.sum(1)
    assert counts.var() == pytest.approx(12 * 0.25 * 0.75, rel=0.1)
    assert (counts == 0).any()
    pairs = np.corrcoef(there.T)[np.triu_indices(12, 1)]
    assert abs(pairs).max() < 5 / np.sqrt(4000)
    assert not np.array_equal(fed.participation.sample(0), fed.participation.sample(0, "other"))


@pytest.mark.parametrize(
    ("systems", "size", "expected"),
    [
        ({}, None, 10.0),
        ({}, 4, 4.0),
        ({"availability": 0.5}, None, 5.0),
        ({"availability": 0.5}, 4, 4.0),
        ({"dropout": 0.25}, 4, 3.0),
        ({"dropout": 0.25, "over_selection": 2}, 4, 4.0),
        ({"sampling": "poisson"}, 4, 4.0),
        ({"sampling": "poisson", "availability": 0.5, "dropout": 0.5}, 4, 1.0),
    ],
)
def test_so_many_answers_are_expected(systems: dict[str, Any], size: int | None, expected: float) -> None:
    fed = sampling(10, systems=Systems(**systems), clients_per_round=size)
    assert fed.participation.expected == pytest.approx(expected)


def test_poisson_answers_are_as_many_in_the_mean_as_are_expected() -> None:
    fed = sampling(10, systems=Systems(sampling="poisson", availability=0.5), clients_per_round=4)
    counts = [len(fed.participation.sample(k)) for k in range(3000)]
    assert np.mean(counts) == pytest.approx(fed.participation.expected, rel=0.05)


# ---- what clients keep ----


def test_what_a_client_keeps_is_what_it_made_when_it_last_answered() -> None:
    """m_i = b m_i + (1 - b) d_i of who answers, d_i = (fx - J v, gy, H v - fy); whoever comes back goes on there."""
    fed = federation(seed=2, systems=Systems(dropout=0.5))
    kept: dict[int, torch.Tensor] = {}
    expected: dict[int, Any] = {}
    last: dict[int, int] = {}
    came_back = False
    for k in range(8):
        fed.begin(k)
        x, y, v = X + 0.1 * k, Y - 0.2 * k, Y + 0.3 * k
        *_, kept = fed.mean(momentum_directions, x=x, y=y, v=v, momentum=0.7, kept=kept)
        for i in np.flatnonzero(~fails(2, range(M), k, 0.5)).tolist():
            c, a, b, w = CLIENTS[i], x.numpy(), y.numpy(), v.numpy()
            d = np.concatenate([c.fx(a, b) - c.cross(w), c.gy(a, b), c.hvp(w) - c.fy(a, b)])
            came_back |= i in expected and k - last[i] > 1
            expected[i] = 0.7 * expected[i] + 0.3 * d if i in expected else d
            last[i] = k
        assert set(kept) == set(expected)
        for i, row in kept.items():
            np.testing.assert_allclose(row.numpy(), expected[i], rtol=1e-9, atol=1e-10)
    assert came_back
