"""What the federation counts, whom it samples, how long it takes, how runs fail, and the draws behind it all."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clients.node import Setting
from clients.operations import local, oracles
from fedbilevel import BadInput, ClientData, RunFailed, randomness, simulate
from fedbilevel.errors import ClientFailed, NonFinite
from fedbilevel.federation.messages import Reply, Request
from fedbilevel.federation.participation import Population
from fedbilevel.federation.rounds import Federation
from fedbilevel.federation.systems import Network, Systems
from fedbilevel.problems import Quadratic
from server.grids.engines import in_process
from server.kit.algorithm import algorithms
from server.running.run import Result
from tests.reference import Client, clients_of

M, DX, DY = 7, 3, 4
X_BYTES, Y_BYTES = 8 * DX, 8 * DY
PROBLEM = Quadratic(clients=M, dim_x=DX, dim_y=DY, examples=(2, 6), seed=3)
X, Y = PROBLEM.initial(torch.Generator().manual_seed(0))


class Recorder:
    """An exchange that keeps the requests it carries."""

    def __init__(self) -> None:
        self.inner, self.requests = in_process(PROBLEM, Setting()), list[Request]()

    def __call__(self, request: Request) -> list[Reply]:
        self.requests.append(request)
        return self.inner(request)


def federation(exchange: Any = None, **settings: Any) -> Federation:
    fed = Federation(exchange or in_process(PROBLEM, Setting()), Population.of(PROBLEM.clients), **settings)
    fed.begin(0)
    return fed


def sampling(m: int, **settings: Any) -> Federation:
    """A federation that is only asked whom it samples."""
    ones = np.ones(m, dtype=np.int64)

    def nobody(request: Request) -> list[Reply]:
        raise AssertionError(request)

    return Federation(nobody, Population(np.full(m, 1 / m), ones, ones), **settings)


# ---- what is sent ----


def test_a_vector_is_sent_once_in_an_iteration_and_again_in_the_next() -> None:
    fed = federation()
    for iteration in range(3):
        fed.begin(iteration)
        fed.mean(oracles.lower_gradient, x=X, y=Y)
        fed.mean(oracles.upper_gradient_y, x=X, y=Y)
        fed.mean(oracles.hypergradient, x=X, y=Y, v=Y)
        ledger = fed.ledger
        assert ledger.vectors_down == 2 * M * (iteration + 1)
        assert ledger.downlink_bytes == M * (X_BYTES + Y_BYTES) * (iteration + 1)
        assert ledger.vectors_up == 3 * M * (iteration + 1)
        assert ledger.uplink_bytes == M * (2 * Y_BYTES + X_BYTES) * (iteration + 1)
        assert ledger.rounds == 3 * (iteration + 1)
        assert ledger.messages == 6 * M * (iteration + 1)


def test_a_new_vector_is_sent_whatever_its_value_or_its_place_in_memory() -> None:
    fed = federation()
    fed.mean(oracles.lower_gradient, x=X, y=Y)
    for k in range(20):
        fed.mean(oracles.lower_gradient, x=X, y=Y.clone())
        assert fed.ledger.vectors_down == M * (3 + k)


def test_tokens_tell_vectors_apart_and_what_was_dropped_is_not_alive() -> None:
    recorder = Recorder()
    fed = federation(recorder)
    z = Y + 1.0
    fed.mean(oracles.lower_gradient, x=X, y=Y)
    fed.mean(oracles.lower_gradient, x=X, y=z)
    fed.mean(oracles.neumann_factor, x=X, y=Y, r=z, neumann_step=0.1)
    first, second, third = recorder.requests
    assert len(set(first.tokens.values())) == 2
    assert first.tokens["x"] == second.tokens["x"] == third.tokens["x"]
    assert third.tokens["r"] == second.tokens["y"] != first.tokens["y"]
    gone = second.tokens["y"]
    recorder.requests.clear()
    del first, second, third, z
    fed.mean(oracles.lower_gradient, x=X, y=Y)
    (last,) = recorder.requests
    assert gone not in last.alive
    assert set(last.tokens.values()) <= last.alive
    fed.begin(1)
    fed.mean(oracles.lower_gradient, x=X, y=Y)
    assert not set(recorder.requests[-1].tokens.values()) & set(last.tokens.values())
    assert [(r.iteration, r.round) for r in recorder.requests] == [(0, 3), (1, 4)]


def test_overlapping_sets_count_only_the_new_holders() -> None:
    fed = federation(clients_per_round=4)
    holders: set[int] = set()
    sent = 0
    for purpose in ("a", "b", "c", "d"):
        fed.resample(purpose)
        chosen = set(fed.sampled.tolist())
        sent += len(chosen - holders)
        holders |= chosen
        fed.mean(oracles.lower_gradient, x=X, y=Y)
        assert fed.ledger.vectors_down == 2 * sent
        assert fed.ledger.downlink_bytes == sent * (X_BYTES + Y_BYTES)
    assert 4 < sent <= M
    before = fed.ledger.vectors_down
    fed.begin(1)
    fed.mean(oracles.lower_gradient, x=X, y=Y)
    assert fed.ledger.vectors_down == before + 8


def test_several_operations_share_a_round() -> None:
    fed = federation()
    gradient, fy = fed.mean(oracles.lower_gradient, oracles.upper_gradient_y, x=X, y=Y)
    x, y = fed.mean(local.joint_steps, x=X, y=Y, upper_step=0.1, lower_step=0.1, lower_weight=1.0, local_steps=2)
    assert fed.ledger.rounds == 2
    assert fed.ledger.vectors_up == 4 * M
    assert fed.ledger.vectors_down == 2 * M
    clients = clients_of(PROBLEM)
    for found, one in ((gradient, Client.gy), (fy, Client.fy)):
        expected = sum(c.p * one(c, X.numpy(), Y.numpy()) for c in clients)
        assert np.allclose(found.numpy(), expected, rtol=1e-12)
    assert (x.shape, y.shape) == (X.shape, Y.shape)


def test_measures_are_not_counted_and_see_every_client() -> None:
    fed = federation(clients_per_round=2)
    upper, lower = fed.measure(oracles.losses, x=X, y=Y).tolist()
    assert fed.ledger.totals() == dict.fromkeys(fed.ledger.totals(), 0)
    f = g = 0.0
    data = PROBLEM.clients
    for i, p in enumerate(data.weights):
        for level in ("lower", "upper"):
            ragged = getattr(data, level)
            rows = slice(int(ragged.offsets[i]), int(ragged.offsets[i + 1]))
            loss = getattr(PROBLEM, level)(X, Y, {key: value[rows] for key, value in ragged.values.items()})
            f, g = (f, g + p * float(loss.mean())) if level == "lower" else (f + p * float(loss.mean()), g)
    assert (upper, lower) == pytest.approx((f, g), rel=1e-12)


def test_a_mean_needs_what_its_operations_read_and_takes_nothing_else() -> None:
    fed = federation()
    with pytest.raises(TypeError, match=r"read \['y'\]"):
        fed.mean(oracles.lower_gradient, x=X)
    with pytest.raises(TypeError, match=r"do not take \['v'\]"):
        fed.mean(oracles.lower_gradient, x=X, y=Y, v=Y)


# ---- weights ----


def test_unbiased_means_average_to_the_full_mean_over_all_sets() -> None:
    """Of a gradient, and of an iterate, which moves by the weighted displacements; normalised weights do not."""
    full = federation()
    steps = {"lower_step": 0.3, "local_steps": 3}
    expected = full.mean(oracles.lower_gradient, x=X, y=Y), full.mean(local.sgd_steps, x=X, y=Y, **steps)
    for weighting in ("unbiased", "normalised"):
        fed = federation(weighting=weighting)
        totals = [torch.zeros(DY, dtype=torch.float64) for _ in range(2)]
        sets = list(itertools.combinations(range(M), 3))
        for chosen in sets:
            fed.sampled = np.array(chosen)
            totals[0] += fed.mean(oracles.lower_gradient, x=X, y=Y) / len(sets)
            totals[1] += fed.mean(local.sgd_steps, x=X, y=Y, **steps) / len(sets)
        for total, wanted in zip(totals, expected, strict=True):
            error = float((total - wanted).norm() / wanted.norm())
            assert (error < 1e-12) == (weighting == "unbiased")


def test_an_iterate_at_rest_stays_with_unbiased_weights() -> None:
    fed = federation(weighting="unbiased", clients_per_round=2)
    for k in range(5):
        fed.begin(k)
        y = fed.mean(local.sgd_steps, x=X, y=Y, lower_step=0.0, local_steps=2)
        assert torch.allclose(y, Y, rtol=1e-14, atol=0)


def test_mean_local_steps_is_weighted_over_the_sampled_set() -> None:
    fed = federation(clients_per_round=3)
    taus = [1, 2, 3, 4, 5, 6, 7]
    p = PROBLEM.clients.weights
    expected = sum(p[i] * taus[i] for i in fed.sampled) / sum(p[i] for i in fed.sampled)
    assert fed.mean_local_steps(taus) == pytest.approx(expected, rel=1e-14)
    assert fed.mean_local_steps(4) == 4


# ---- who takes part ----


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
    assert abs(np.mean(share) - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 10_000)


def test_the_server_waits_until_somebody_is_available() -> None:
    sizes = [len(chosen) for chosen in sets_of(sampling(3, systems=Systems(availability=0.05)), 200)]
    assert min(sizes) == 1
    assert np.mean(sizes) < 1.2


def test_a_sample_of_more_clients_than_there_are_is_refused() -> None:
    with pytest.raises(BadInput, match=r"clients_per_round: got 8; allowed: at most the number of clients, 7"):
        simulate(PROBLEM, "fednest", iterations=1, clients_per_round=M + 1)


# ---- simulated time ----

NETWORK = {"downlink_mbps": 0.02, "uplink_mbps": 0.005, "latency_ms": 30.0, "examples_per_second": 50.0}


def by_hand(seed: int, chosen: np.ndarray, spread: float, down: np.ndarray, up: int, examples: np.ndarray) -> float:
    """Seconds of one round: its slowest client's."""
    seconds = []
    for place, i in enumerate(chosen):
        latency, downlink, uplink, speed = (
            np.exp(spread * randomness.normal(seed, np.array([i]), 0, what)[0])
            for what in ("latency", "downlink", "uplink", "speed")
        )
        took = 2 * 0.030 * latency
        took += 8 * down[place] / (20_000 * downlink) + 8 * up / (5_000 * uplink)
        seconds.append(took + examples[place] / (50 * speed))
    return float(max(seconds))


@pytest.mark.parametrize("spread", [0.0, 0.8])
@pytest.mark.parametrize("size", [None, 4])
def test_simulated_seconds(spread: float, size: int | None) -> None:
    systems = Systems(network=Network(**NETWORK, spread=spread))
    fed = federation(seed=9, systems=systems, clients_per_round=size)
    chosen = fed.sampled
    lower, upper = (level.sizes[chosen] for level in (PROBLEM.clients.lower, PROBLEM.clients.upper))
    both, none = np.full(len(chosen), X_BYTES + Y_BYTES), np.zeros(len(chosen))
    taus = np.array([1, 2, 3, 4, 5, 6, 7])

    gradient = fed.mean(oracles.lower_gradient, x=X, y=Y)
    total = by_hand(9, chosen, spread, both, Y_BYTES, lower)
    assert fed.ledger.simulated_seconds == pytest.approx(total, rel=1e-12)

    fed.mean(oracles.neumann_factor, oracles.upper_gradient_y, x=X, y=Y, r=Y, neumann_step=0.1)
    total += by_hand(9, chosen, spread, none, 2 * Y_BYTES, 2 * lower + upper)
    assert fed.ledger.simulated_seconds == pytest.approx(total, rel=1e-12)

    fed.mean(local.svrg_steps, x=X, y=Y, gradient=gradient, lower_step=0.1, local_steps=taus.tolist())
    total += by_hand(9, chosen, spread, none + Y_BYTES, Y_BYTES, 2 * lower * taus[chosen])
    assert fed.ledger.simulated_seconds == pytest.approx(total, rel=1e-12)

    fed.resample("others")
    new = np.array([i not in chosen for i in fed.sampled])
    fed.mean(oracles.upper_gradient_x, x=X, y=Y)
    examples = PROBLEM.clients.upper.sizes[fed.sampled]
    total += by_hand(9, fed.sampled, spread, new * (X_BYTES + Y_BYTES), X_BYTES, examples)
    assert fed.ledger.simulated_seconds == pytest.approx(total, rel=1e-12)


def test_simulated_seconds_of_minibatches_and_of_local_hypergradients() -> None:
    fed = federation(systems=Systems(network=Network(**NETWORK)), batch=2, gradient_batch=3)
    lower, upper = PROBLEM.clients.lower.sizes, PROBLEM.clients.upper.sizes
    chosen, both, none = np.arange(M), np.full(M, X_BYTES + Y_BYTES), np.zeros(M)
    fed.mean(oracles.hypergradient, x=X, y=Y, v=Y)
    total = by_hand(0, chosen, 0.0, both, X_BYTES, 2 * np.minimum(lower, 3) + np.minimum(upper, 3))
    assert fed.ledger.simulated_seconds == pytest.approx(total, rel=1e-12)
    options = {"upper_step": 0.1, "neumann_step": 0.1, "neumann_terms": 4, "upper_local_steps": 3}
    for index, products in ((None, 5), (2, 3)):
        fed.mean(local.local_hypergradient_steps, x=X, y=Y, index=index, **options)
        work = 3 * (2 * products * np.minimum(lower, 2) + 2 * np.minimum(upper, 2))
        total += by_hand(0, chosen, 0.0, none, X_BYTES, work)
        assert fed.ledger.simulated_seconds == pytest.approx(total, rel=1e-12)


# ---- workers ----


def everything(name: str, problem: Any, workers: int, **settings: Any) -> Result:
    options = {"lower_step": 0.2, "lower_rounds": 2, "neumann_terms": 3, "upper_step": 0.1}
    steps = {"local_steps": {"low": 1, "high": 4}, "upper_local_steps": {"epochs": 1}}
    settings = {"batch": 2, "gradient_batch": 3, "clients_per_round": 5, "seed": 2, **settings}
    return simulate(problem, name, iterations=3, workers=workers, dtype="float64", **settings, **options, **steps)


@pytest.mark.parametrize("weighting", ["normalised", "unbiased"])
@pytest.mark.parametrize("name", sorted(algorithms("global")))
def test_results_do_not_depend_on_the_number_of_workers(name: str, weighting: str) -> None:
    """With minibatches, unequal local steps, and sampled clients of whom not all are there."""
    network = {"spread": 0.5}
    settings = {"weighting": weighting, "systems": {"availability": 0.8, "network": network}}
    one = everything(name, PROBLEM, 1, **settings)
    for workers in (2, 3, 7):
        other = everything(name, PROBLEM, workers, **settings)
        for a, b in ((one.x, other.x), (one.y, other.y)):
            assert float((a - b).norm()) <= 1e-12 * float(a.norm())
        assert other.communication == one.communication
    full_batch = everything(name, PROBLEM, 1, batch="full", gradient_batch="full", **settings)
    assert not torch.allclose(full_batch.y, one.y)


def test_no_workers_are_refused() -> None:
    with pytest.raises(BadInput, match="workers: got 0"):
        everything("fednest", PROBLEM, 0)


def test_there_may_be_more_workers_than_clients() -> None:
    assert torch.allclose(everything("fednest", PROBLEM, 9).x, everything("fednest", PROBLEM, 1).x, rtol=1e-12)


# ---- failures ----


class Fragile:
    """Client 2, who alone has five examples, fails once the problem is armed."""

    def __init__(self, how: str) -> None:
        draw = torch.Generator().manual_seed(0)
        parts = [torch.randn(n, 2, generator=draw, dtype=torch.float64) for n in (2, 3, 5, 4)]
        for part in parts:
            part[:, 0] = 0.0
        parts[2][:, 0] = 1.0
        self.how, self.armed, self.clients = how, False, ClientData(parts, parts)

    def initial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)

    def lower(self, x: Tensor, y: Tensor, examples: Tensor) -> Tensor:
        if self.armed and self.how == "size" and len(examples) == 5:
            raise ValueError("a bad\nexample")
        if self.armed and self.how == "value" and bool((examples[:, 0] > 0).any()):
            raise ValueError("a bad\nexample")
        return 0.5 * ((y - x - examples) ** 2).sum(-1)

    def upper(self, x: Tensor, y: Tensor, examples: Tensor) -> Tensor:
        return 0.5 * ((y + examples) ** 2).sum(-1)

    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        if self.armed and self.how == "evaluation":
            raise ValueError("a bad\nmeasure")
        return {"test_loss": float(y @ y)}


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(
    ("name", "how", "said"),
    [
        ("fednest", "value", "fednest, seed 4, iteration 2: client 2, operation lower_gradient, round 18"),
        ("fednest-sgd", "size", "fednest-sgd, seed 4, iteration 2: client 2, operation sgd_steps, round 16"),
        ("lfednest", "size", "lfednest, seed 4, iteration 2: client 2, operation sgd_steps, round 4"),
    ],
)
def test_a_client_that_raises_is_named(name: str, how: str, said: str, workers: int) -> None:
    problem = Fragile(how)

    def observe(row: dict[str, object]) -> None:
        problem.armed = row["iteration"] == 2

    options = {"lower_rounds": 1, "neumann_terms": 4, "local_steps": 2, "lower_step": 0.1, "seed": 4}
    with pytest.raises(ClientFailed) as caught:
        simulate(problem, name, iterations=5, workers=workers, observe=observe, **options)
    assert str(caught.value) == f"{said}: ValueError: a bad example"
    assert isinstance(caught.value, RunFailed)
    assert [row["iteration"] for row in caught.value.history] == [0, 1, 2]


def test_a_mean_that_is_not_finite_is_named() -> None:
    options = {"lower_rounds": 1, "lower_step": 1e120, "evaluate_every": 10**9}
    with pytest.raises(NonFinite) as caught:
        simulate(PROBLEM, "aggitd", iterations=9, seed=6, upper_local_steps=0, **options)
    assert str(caught.value).startswith("aggitd, seed 6, iteration ")
    assert "operation " in str(caught.value)
    assert str(caught.value).endswith(": the mean is not finite")
    assert isinstance(caught.value, RunFailed)
    assert [row["iteration"] for row in caught.value.history] == [0]


def test_a_loss_that_is_not_finite_is_named_and_the_rows_so_far_are_kept() -> None:
    seen: list[dict[str, object]] = []
    options = {"lower_rounds": 1, "lower_step": 1e50, "local_steps": 1, "upper_step": 0.0, "neumann_terms": 0}
    with pytest.raises(
        NonFinite, match=r"fednest, seed 0, iteration \d+: operation evaluate, round \d+: \w+ is"
    ) as got:
        simulate(PROBLEM, "fednest", iterations=9, observe=seen.append, **options)
    assert len(seen) > 2
    assert list(got.value.history) == seen


def test_an_evaluation_that_raises_is_named() -> None:
    problem = Fragile("evaluation")

    def observe(row: dict[str, object]) -> None:
        problem.armed = True

    with pytest.raises(
        RunFailed, match=r"fednest, seed 0, iteration 1: operation evaluate, round 10: ValueError"
    ) as got:
        simulate(problem, "fednest", iterations=3, observe=observe)
    assert [row["iteration"] for row in got.value.history] == [0]


# ---- random draws ----

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
