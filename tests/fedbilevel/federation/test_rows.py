"""Clients' own answers: each output by itself, one vote each, what is dropped, and every number against numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from clients.node import Setting
from clients.operations import first_order, local, oracles
from fedbilevel.conditions.attacks import Byzantine
from fedbilevel.conditions.compression import ChannelTable
from fedbilevel.conditions.privacy import PrivacyTable
from fedbilevel.conditions.rule import AggregationTable
from fedbilevel.conditions.tables import Conditions
from fedbilevel.errors import NobodyAnswered, NonFinite
from fedbilevel.federation.messages import Reply, Request
from fedbilevel.federation.rows import RowAggregation
from fedbilevel.federation.systems import Systems
from server.grids.engines import in_process
from tests.federations import PROBLEM, X_BYTES, Y_BYTES, M, X, Y, federation
from tests.reference import clients_of

CLIENTS = clients_of(PROBLEM)
P = np.array([client.p for client in CLIENTS])
x, y = X.numpy(), Y.numpy()
GY = np.array([client.gy(x, y) for client in CLIENTS])
H = np.array([client.fx(x, y) - client.cross(y) for client in CLIENTS])
STEP = 0.1


def under(rule: str = "median", workers: int = 1, carried: Callable[[Any], Any] | None = None, **told: Any) -> Any:
    """A federation under a rule; told: of the rule, or settings of the federation."""
    own = {key: told.pop(key) for key in ("before", "byzantine", "bucket", "radius") if key in told}
    conditions = Conditions(
        AggregationTable(rule=rule, **own),  # type: ignore[arg-type]  # a name in a test
        ChannelTable(**told.pop("channel", {})),
        told.pop("privacy", None),
    )
    exchange = in_process(PROBLEM, Setting(), workers)
    return federation(carried(exchange) if carried else exchange, conditions=conditions, **told)


def attack(name: Any, share: Any = 0.3, strength: float = 1.0) -> Systems:
    return Systems(byzantine=Byzantine(share=share, attack=name, strength=strength))


def attackers(seed: int = 0, share: Any = 0.3) -> Any:
    return Byzantine(share=share, attack="nan").attackers(seed, M)


def close(got: Any, expected: Any) -> None:
    np.testing.assert_allclose(got.numpy() if hasattr(got, "numpy") else got, expected, rtol=1e-10, atol=1e-11)


# ---- one vote each, output by output ----


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("weighting", ["normalised", "unbiased"])
def test_a_rule_gives_every_client_one_vote_for_each_output(workers: int, weighting: Any) -> None:
    fed = under(workers=workers, weighting=weighting)
    gradient, h = fed.mean(oracles.lower_gradient, oracles.hypergradient, x=X, y=Y, v=Y)
    close(gradient, np.median(GY, axis=0))
    close(h, np.median(H, axis=0))
    assert fed.ledger.uplink_bytes == M * (X_BYTES + Y_BYTES)


def test_trimmed_mean_is_of_those_who_answered() -> None:
    fed = under("trimmed_mean", byzantine=1, clients_per_round=5)
    ordered = np.sort(GY[fed.sampled], axis=0)
    close(fed.mean(oracles.lower_gradient, x=X, y=Y), ordered[1:-1].mean(0))


def test_krum_chooses_each_output_by_itself() -> None:
    def chosen(u: Any) -> int:
        """The least sum of squared distances to the n - f - 2 = 4 nearest others."""
        distances = np.sort(((u[:, None] - u[None]) ** 2).sum(-1), axis=1)
        return int(distances[:, 1:5].sum(1).argmin())

    fed = under("krum", byzantine=1)
    gradient, h = fed.mean(oracles.lower_gradient, oracles.hypergradient, x=X, y=Y, v=Y)
    close(gradient, GY[chosen(GY)])
    close(h, H[chosen(H)])
    assert chosen(GY) != chosen(H)


def test_an_iterate_is_aggregated_as_its_displacement() -> None:
    """Clipped about 0 the answers themselves would be cut to radius 1; their displacements are not all."""
    fed = under("centred_clipping", radius=0.5)
    got = fed.mean(local.sgd_steps, x=X, y=Y, lower_step=STEP, local_steps=1)
    u, z = -STEP * GY, np.zeros(len(y))
    for _ in range(3):
        difference = u - z
        norms = np.linalg.norm(difference, axis=1, keepdims=True)
        z = z + (difference * np.minimum(1.0, 0.5 / norms)).mean(0)
    close(got, y + z)
    close(fed.rows.last["sgd_steps.0"], z)


def test_centred_clipping_starts_from_the_last_aggregate_of_the_same_output() -> None:
    fed = under("centred_clipping", radius=0.2)
    z = {"gy": np.zeros(4), "h": np.zeros(3)}

    def clipped(name: str, u: Any) -> Any:
        for _ in range(3):
            norms = np.linalg.norm(u - z[name], axis=1, keepdims=True)
            z[name] = z[name] + ((u - z[name]) * np.minimum(1.0, 0.2 / norms)).mean(0)
        return z[name]

    for k in range(3):
        fed.begin(k)
        gradient, h = fed.mean(oracles.lower_gradient, oracles.hypergradient, x=X, y=Y, v=Y)
        close(gradient, clipped("gy", GY))
        close(h, clipped("h", H))


def test_the_mean_of_attacked_answers_keeps_the_weights_and_the_start_of_an_iterate() -> None:
    for weighting in ("normalised", "unbiased"):
        fed = under("mean", systems=attack("sign_flip", strength=2.0), weighting=weighting, clients_per_round=5)
        who = fed.sampled
        signs = np.where(np.isin(who, attackers()), -2.0, 1.0)
        assert set(signs) == {-2.0, 1.0}
        w = P[who] * signs * (1 / P[who].sum() if weighting == "normalised" else M / 5)
        close(fed.mean(oracles.lower_gradient, x=X, y=Y), w @ GY[who])
        close(fed.mean(local.sgd_steps, x=X, y=Y, lower_step=STEP, local_steps=1), y - STEP * w @ GY[who])


@pytest.mark.parametrize(
    "told",
    [{"rule": "mean", "systems": attack("nan", 0.0)}, {}, {"privacy": PrivacyTable(clip=1e9, noise_multiplier=0.0)}],
)
def test_a_step_along_an_aggregate_is_whole_where_weights_are_used_and_where_they_are_not(told: dict[str, Any]) -> None:
    """All clients make the same step: unbiased weights of a sample would scale it, votes leave it as it is."""
    rule = {"rule": "mean"} if "privacy" in told else {}
    fed = under(**rule, **told, weighting="unbiased", clients_per_round=5)
    assert abs(M / 5 * P[fed.sampled].sum() - 1) > 0.01
    gradient = torch.arange(1.0, 5.0, dtype=torch.float64)
    got = fed.mean(local.svrg_steps, x=X, y=Y, gradient=gradient, lower_step=STEP, local_steps=1)
    close(got, y - STEP * gradient.numpy())


def test_attackers_know_all_honest_answers_of_the_round_over_all_workers() -> None:
    for workers in (1, 3):
        fed = under("mean", workers, systems=attack("ipm", strength=3.0))
        bad = np.isin(np.arange(M), attackers())
        u = np.where(bad[:, None], -3.0 * GY[~bad].mean(0), GY)
        close(fed.mean(oracles.lower_gradient, x=X, y=Y), P @ u / P.sum())


def test_bursts_follow_the_iteration_and_not_the_round() -> None:
    fed = under("mean", systems=Systems(byzantine=Byzantine(share=[0.0, 0.3], attack="sign_flip")))
    signs = np.where(np.isin(np.arange(M), attackers()), -1.0, 1.0)
    for k in range(4):
        fed.begin(k)
        for _ in range(2):
            close(fed.mean(oracles.lower_gradient, x=X, y=Y), (P * (signs if k % 2 else 1.0)) @ GY)


def test_pooled_sums_are_asked_for_where_rows_are_not_needed() -> None:
    seen: list[Request] = []

    def recorded(inner: Any) -> Any:
        def exchange(request: Request) -> Any:
            seen.append(request)
            return inner(request)

        return exchange

    polite: list[dict[str, Any]] = [{}, {"systems": attack("label_flip")}, {"systems": attack("none")}]
    polite += [{"systems": Systems(dropout=0.2)}, {"channel": {"downlink": "float16"}}]
    rude: list[dict[str, Any]] = [{"systems": attack("nan", 0.0)}, {"channel": {"uplink": "float16"}}]
    rude += [{"privacy": PrivacyTable(clip=1.0, noise_multiplier=0.0)}, {"rule": "median"}]
    for told, rows in [*((each, False) for each in polite), *((each, True) for each in rude)]:
        fed = under(**{"rule": "mean", "carried": recorded, **told})
        fed.mean(oracles.lower_gradient, x=X, y=Y)
        assert seen[-1].rows is rows, told
        fed.measure(oracles.losses, x=X, y=Y)
        assert not seen[-1].rows, told


def test_bucketing_draws_its_buckets_anew_in_every_round() -> None:
    fed = under("median", before="bucketing", bucket=3)
    draws = {tuple(fed.mean(oracles.lower_gradient, x=X, y=Y).tolist()) for _ in range(6)}
    assert len(draws) > 3
    again = under("median", before="bucketing", bucket=3, workers=3)
    assert all(
        np.isclose(again.mean(oracles.lower_gradient, x=X, y=Y).tolist(), list(draws)).all(1).any() for _ in "ab"
    )


def aggregated(fed: Any, operation: Any, *outputs: Any, round: int = 0, dtype: Any = torch.float64) -> Any:
    """What the rows of an operation's outputs become, without the clients."""
    sent = {"x": X.to(dtype), "y": Y.to(dtype)}
    reply = Reply((tuple(torch.as_tensor(rows).to(dtype) for rows in outputs),), 1.0)
    [found] = fed.rows((operation,), sent, {}, np.arange(M), [reply], 0, round)
    return found


def test_single_precision_is_aggregated_in_double_and_comes_back_single() -> None:
    """Summed in single precision, 1 beside 10^8 would be lost."""
    rows = np.array([[1e8], [1.0], [-1e8], [1.0], [1.0], [1.0], [1.0]])
    [got] = aggregated(under("trimmed_mean", privacy=None), oracles.lower_gradient, rows, dtype=torch.float32)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), [5 / 7], rtol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"channel": {"uplink": "random_k", "keep": 1}},
        {"channel": {"uplink": "quantise", "bits": 2}},
        {"systems": attack("gaussian")},
        {"privacy": PrivacyTable(clip=1.0, noise_multiplier=1.0)},
        {"rule": "median", "before": "bucketing", "bucket": 3},
    ],
)
def test_draws_are_of_the_round_the_operation_and_the_output(settings: dict[str, Any]) -> None:
    """The same rows, drawn for anew; over again they are the same."""
    fed = under(**{"rule": "mean", **settings})
    one, two = aggregated(fed, first_order.penalty_gradients, GY, GY)
    again, _ = aggregated(fed, first_order.penalty_gradients, GY, GY)
    [other] = aggregated(fed, oracles.lower_gradient, GY)
    [later] = aggregated(fed, oracles.lower_gradient, GY, round=1)
    assert torch.equal(one, again)
    assert len({tuple(each.tolist()) for each in (one, two, other, later)}) == 4


# ---- answers that cannot be used ----


def spoiled(which: dict[int, float], output: int = 0) -> Callable[[Any], Any]:
    """An exchange in which one output of some clients' answers is something else."""

    def carried(inner: Any) -> Any:
        def exchange(request: Request) -> list[Reply]:
            found = []
            for reply in inner(request):
                sums = [[each.clone() for each in own] for own in reply.sums]
                for place, client in enumerate(reply.clients):
                    if int(client) in which:
                        sums[0][output][place, 1] = which[int(client)]
                found.append(replace(reply, sums=tuple(map(tuple, sums))))
            return found

        return exchange

    return carried


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_answer_that_is_not_finite_is_dropped_and_counted(bad: float, workers: int) -> None:
    fed = under("median", workers, spoiled({2: bad, 5: np.nan}))
    others = np.delete(np.arange(M), [2, 5])
    for k in range(3):
        close(fed.mean(oracles.lower_gradient, x=X, y=Y), np.median(GY[others], axis=0))
        assert fed.measures() == {"metric_dropped": 2 * (k + 1)}
    assert fed.rows.dropped_where == "2 of 7 in operation lower_gradient, round 0"
    assert fed.ledger.uplink_bytes == 3 * M * Y_BYTES  # they were sent


def test_only_the_output_that_is_not_finite_is_dropped() -> None:
    fed = under("median", carried=spoiled({2: np.nan}, output=1))
    got = fed.mean(first_order.penalty_gradients, x=X, y=Y, z=Y, penalty=1.0)
    whole = under("median").mean(first_order.penalty_gradients, x=X, y=Y, z=Y, penalty=1.0)
    close(got[0], whole[0].numpy())
    assert not np.allclose(got[1].numpy(), whole[1].numpy())
    assert fed.rows.dropped == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"rule": "mean", "systems": attack("nan")},
        {"rule": "mean", "systems": attack("nan"), "privacy": PrivacyTable(clip=1.0, noise_multiplier=0.1)},
    ],
)
def test_under_the_mean_an_answer_that_is_not_finite_ends_the_run(settings: dict[str, Any]) -> None:
    fed = under(**settings)
    with pytest.raises(NonFinite, match=r"^operation lower_gradient, round 1: the mean is not finite$"):
        fed.mean(oracles.lower_gradient, x=X, y=Y)
    assert "metric_dropped" not in fed.measures()


def test_answers_of_another_length_are_dropped() -> None:
    def carried(inner: Any) -> Any:
        def exchange(request: Request) -> Any:
            first, *rest = inner(request)
            return [replace(first, sums=((first.sums[0][0][:, :2],),)), *rest]

        return exchange

    fed = under("median", 3, carried)
    close(fed.mean(oracles.lower_gradient, x=X, y=Y), np.median(GY[3:], axis=0))  # of 3 + 2 + 2 clients
    assert fed.rows.dropped == 3


def test_where_no_answer_is_finite_the_round_is_counted_and_the_next_attempt_is_another_round() -> None:
    fed = under("median", carried=spoiled(dict.fromkeys(range(M), np.nan)))
    with pytest.raises(NobodyAnswered, match=r"^operation lower_gradient, round 0: no answer is finite$"):
        fed.mean(oracles.lower_gradient, x=X, y=Y)
    assert fed.ledger.rounds == 1
    assert fed.ledger.uplink_bytes == M * Y_BYTES
    assert fed.ledger.downlink_bytes == M * (X_BYTES + Y_BYTES)
    assert fed.rows.dropped == M


def test_fewer_answers_than_the_rule_needs_are_withstood_as_far_as_it_can() -> None:
    """Five of seven are lost: of two, trimmed mean drops nobody."""
    fed = under("trimmed_mean", byzantine=2, carried=spoiled(dict.fromkeys(range(5), np.nan)))
    close(fed.mean(oracles.lower_gradient, x=X, y=Y), GY[5:].mean(0))


# ---- privacy and thin wires within a federation ----


def test_private_iterates_are_clipped_as_displacements_and_every_client_counts_alike() -> None:
    fed = under("mean", privacy=PrivacyTable(clip=0.3, noise_multiplier=0.0), weighting="unbiased", clients_per_round=5)
    u = -STEP * GY[fed.sampled]
    clipped = u * np.minimum(1.0, 0.3 / np.linalg.norm(u, axis=1, keepdims=True))
    close(fed.mean(local.sgd_steps, x=X, y=Y, lower_step=STEP, local_steps=1), y + clipped.sum(0) / 5)


def test_a_private_sum_is_divided_by_the_expected_number_whoever_answers() -> None:
    systems = Systems(dropout=0.5)
    fed = under("mean", privacy=PrivacyTable(clip=1e9, noise_multiplier=0.0), systems=systems, seed=2)
    got = fed.mean(oracles.lower_gradient, x=X, y=Y)
    assert 0 < len(fed.answered) < M
    close(got, GY[fed.answered].sum(0) / (0.5 * M))


def test_every_output_of_a_round_is_told_of_one_set() -> None:
    fed = under("mean", privacy=PrivacyTable(clip=1.0, noise_multiplier=1.0), clients_per_round=3)
    fed.mean(oracles.lower_gradient, oracles.hypergradient, x=X, y=Y, v=Y)
    fed.mean(oracles.lower_gradient, x=X, y=Y)
    assert fed.privacy.told() == {3: 1}
    fed.resample("others")
    fed.mean(oracles.lower_gradient, x=X, y=Y)
    fed.resample()
    fed.mean(oracles.lower_gradient, x=X, y=Y)
    assert fed.privacy.told() == {4: 1, 1: 1}
    fed.begin(1)
    fed.mean(oracles.lower_gradient, x=X, y=Y)
    assert fed.privacy.told() == {4: 1, 1: 2}
    assert set(fed.measures()) == {"epsilon"}


def test_the_accountant_is_told_how_clients_are_drawn() -> None:
    def asked(**settings: Any) -> Any:
        made = under("mean", privacy=PrivacyTable(clip=1.0, noise_multiplier=1.0), **settings).privacy
        return made._asked, made._poisson, made._clients

    assert asked() == (None, False, M)
    assert asked(clients_per_round=3) == (3, False, M)
    assert asked(clients_per_round=3, systems=Systems(sampling="poisson")) == (3, True, M)
    assert asked(clients_per_round=3, systems=Systems(over_selection=2)) == (5, False, M)
    assert asked(clients_per_round=3, systems=Systems(availability=0.5)) == (None, False, M)


def test_private_noise_is_added_once_however_many_workers() -> None:
    told = {"privacy": PrivacyTable(clip=1.0, noise_multiplier=1.0)}
    here, spread = (under("mean", workers, **told).mean(oracles.lower_gradient, x=X, y=Y) for workers in (1, 3))
    close(here, spread.numpy())


def test_rows_are_needed_for_what_is_done_to_each_answer() -> None:
    def needed(conditions: Conditions, byzantine: Byzantine | None = None) -> bool:
        return RowAggregation(federation().aggregation, conditions, byzantine, None).needed

    assert not needed(Conditions())
    assert needed(Conditions(AggregationTable(before="nnm")))
