"""What travels: every vector once to every client of an iteration."""

from __future__ import annotations

from clients.node import Setting
from clients.operations import oracles
from fedbilevel.federation.messages import Reply, Request
from server.grids.engines import in_process
from tests.federations import PROBLEM, X_BYTES, Y_BYTES, M, X, Y, federation


class Recorder:
    """An exchange that keeps the requests it carries."""

    def __init__(self) -> None:
        self.inner, self.requests = in_process(PROBLEM, Setting()), list[Request]()

    def __call__(self, request: Request) -> list[Reply]:
        self.requests.append(request)
        return self.inner(request)


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
