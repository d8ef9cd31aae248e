"""Simulated time, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from clients.operations import local, oracles
from fedbilevel import randomness
from fedbilevel.federation.systems import Network, Systems
from tests.federations import PROBLEM, X_BYTES, Y_BYTES, M, X, Y, federation

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
