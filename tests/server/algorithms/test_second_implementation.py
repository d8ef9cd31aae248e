"""Every algorithm against its second implementation, the paper's count of rounds, and vectors counted by hand."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch

from fedbilevel import BadInput, simulate
from fedbilevel.federation.messages import Reply, Request
from fedbilevel.federation.participation import Population
from fedbilevel.federation.rounds import Federation
from fedbilevel.federation.systems import Between, Epochs, local_steps
from fedbilevel.problems import Quadratic
from server.kit.algorithm import algorithms, find
from server.running.run import Result
from tests import reference

M, DX, DY = 5, 3, 4
T, N = 3, 4
ITERATIONS = 3
INDICES = [2, 0, 3]
STEPS = {"upper_step": 0.2, "lower_step": 0.3}
WEIGHTS: dict[str, Any] = {"size": "size", "uniform": "uniform", "list": [0.1, 0.5, 1.0, 2.0, 0.7]}


@functools.cache
def quadratic(weights: str = "list") -> Quadratic:
    return Quadratic(clients=M, dim_x=DX, dim_y=DY, examples=(2, 5), weights=WEIGHTS[weights], seed=3)


def start(problem: Quadratic, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return problem.initial(torch.Generator().manual_seed(seed))


def run(problem: Quadratic, name: str, options: dict[str, Any], **settings: Any) -> Result:
    settings = {"iterations": ITERATIONS, "dtype": "float64", "trace": True, **settings}
    return simulate(problem, name, **settings, **options)


def agree(result: Result, entries: list[reference.Entry]) -> None:
    assert result.trace is not None
    assert len(result.trace) == len(entries)
    for found, expected in zip(result.trace, entries, strict=True):
        assert found.hypergradient is not None
        for ours, theirs in ((found.x, expected.x), (found.y, expected.y), (found.hypergradient, expected.h)):
            assert ours.dtype == torch.float64
            assert np.linalg.norm(ours.numpy() - theirs) <= 1e-10 * np.linalg.norm(theirs)
    assert torch.equal(result.x, result.trace[-1].x)
    assert torch.equal(result.y, result.trace[-1].y)


def sampled_sets(problem: Quadratic, size: int, iterations: int, seed: int) -> list[list[int]]:
    """The sets that a run with this seed samples."""

    def nobody(request: Request) -> list[Reply]:
        raise AssertionError(request)

    fed = Federation(nobody, Population.of(problem.clients), seed=seed, clients_per_round=size)
    sets = []
    for k in range(iterations):
        fed.begin(k)
        sets.append(fed.sampled.tolist())
    return sets


def cases() -> list[Any]:
    """One row per algorithm and combination of options."""
    rows: list[tuple[str, dict[str, Any]]] = []
    sampling: list[dict[str, Any]] = [{"estimator": "sum"}, {"estimator": "sample", "indices": INDICES}]
    for estimate in [*sampling, {"estimator": "sum", "warm_start": True}]:
        for accounting in ("paper", "merged"):
            for tau in (1, 3, [1, 2, 4, 1, 3]):
                for upper in (0, 1, 2):
                    o = {**estimate, "accounting": accounting, "local_steps": tau, "upper_local_steps": upper}
                    rows.append(("aggitd", {**STEPS, "neumann_step": 0.5, "lower_rounds": N, **o}))
    series = {**STEPS, "neumann_step": 0.5, "lower_rounds": T, "neumann_terms": N}
    for estimate in sampling:
        for accounting in ("paper", "merged"):
            for tau in (1, 3, [1, 2, 4, 1, 3]):
                for upper in (0, 1, [2, 1, 1, 3, 2]):
                    o = {**estimate, "accounting": accounting, "local_steps": tau, "upper_local_steps": upper}
                    rows.append(("fednest", {**series, **o}))
                    rows.append(("fednest-sgd", {**series, **o}))
                    if upper != 0:
                        rows.append(("lfednest", {**series, **o}))
                        rows.append(("lfednest-svrg", {**series, **o}))
    rows.append(("fednest", {**STEPS, "lower_rounds": T, "neumann_terms": N}))
    rows.append(("fednest", {**series, "neumann_terms": 0}))
    rows.append(("aggitd", {**STEPS, "lower_rounds": 1, "warm_start": True, "accounting": "merged"}))
    for decay in (0.0, 0.5):
        o = {"upper_level_lower_step": 0.15, "barrier": 0.6, "step_decay": decay}
        rows.append(("bome", {**STEPS, "lower_rounds": T, **o}))
    for growth in (0.0, 1.5):
        for matched in (None, 0.02):
            o = {"penalty": 7.0, "penalty_growth": growth, "penalised_lower_step": matched}
            rows.append(("f2sa", {**STEPS, "lower_rounds": T, **o}))
    for tau in (1, 3, [1, 2, 4, 1, 3]):
        for matched in (None, 0.02):
            o = {"penalty": 7.0, "penalised_lower_step": matched, "local_steps": tau}
            rows.append(("memfbo", {**STEPS, **o}))
        rows.append(("joint", {**STEPS, "lower_weight": 0.7, "local_steps": tau}))
        for upper in (1, [2, 1, 1, 3, 2]):
            o = {"local_steps": tau, "upper_local_steps": upper}
            rows.append(("fedavg-alternating", {**STEPS, "lower_rounds": T, **o}))
    return rows


def label(case: tuple[str, dict[str, Any]]) -> str:
    told = {key: value for key, value in case[1].items() if key not in (*STEPS, "neumann_step", "indices")}
    return f"{case[0]} {told}".replace("'", "")


def paper_rounds(name: str, o: dict[str, Any], index: int | None) -> int:
    """Rounds of one iteration, from the papers' tables."""
    one_step = o.get("local_steps", 1) == 1
    merged = o.get("accounting", "paper") == "merged"
    t, upper = o.get("lower_rounds", 0), o.get("upper_local_steps", 1)
    svrg = t if merged and one_step else 2 * t
    out = 0 if upper == 0 or (merged and upper == 1) else 1
    neumann = o.get("neumann_terms", 0) if index is None else index
    return {
        "aggitd": svrg + 1 + out,
        "fednest": svrg + neumann + 2 + out,
        "fednest-sgd": t + neumann + 2 + out,
        "lfednest": t + 1,
        "lfednest-svrg": svrg + 1,
        "bome": t + 1,
        "f2sa": t + 1,
        "memfbo": 1,
        "fedavg-alternating": t + 1,
        "joint": 1,
    }[name]


@pytest.mark.parametrize("case", cases(), ids=label)
def test_iterates_equal_the_reference_and_rounds_the_formula(case: tuple[str, dict[str, Any]]) -> None:
    name, options = case
    problem = quadratic()
    result = run(problem, name, options)
    x, y = start(problem)
    agree(result, reference.run(name, problem, x.numpy(), y.numpy(), ITERATIONS, options))
    algorithm = find(name).make(options)
    assert result.trace is not None
    for k, entry in enumerate(result.trace):
        index = INDICES[k] if options.get("estimator") == "sample" else None
        assert entry.index == index
        assert entry.rounds == paper_rounds(name, options, index)
        assert algorithm.rounds(index) == entry.rounds
    assert result.communication["rounds"] == sum(entry.rounds for entry in result.trace)


def test_every_algorithm_is_in_the_table() -> None:
    assert set(algorithms("global")) == {name for name, _ in cases()} == set(reference.ALGORITHMS)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("fednest", {}, 2 * 3 + 4 + 3),
        ("fednest", {"accounting": "merged"}, 3 + 4 + 2),
        ("fednest", {"estimator": "sample"}, 2 * 3 + 2 + 3),
        ("fednest", {"estimator": "sample", "accounting": "merged"}, 3 + 2 + 2),
        ("fednest-sgd", {}, 3 + 4 + 3),
        ("fednest-sgd", {"estimator": "sample"}, 3 + 2 + 3),
        ("lfednest", {}, 3 + 1),
        ("lfednest-svrg", {}, 2 * 3 + 1),
        ("lfednest-svrg", {"accounting": "merged"}, 3 + 1),
        ("aggitd", {}, 2 * 3 + 2),
        ("aggitd", {"upper_local_steps": 0}, 2 * 3 + 1),
        ("aggitd", {"accounting": "merged"}, 3 + 1),
        ("aggitd", {"accounting": "merged", "estimator": "sample"}, 3 + 1),
        ("aggitd", {"accounting": "merged", "local_steps": 2}, 2 * 3 + 1),
        ("bome", {}, 3 + 1),
        ("f2sa", {}, 3 + 1),
        ("memfbo", {}, 1),
        ("fedavg-alternating", {}, 3 + 1),
        ("joint", {}, 1),
    ],
)
def test_rounds_of_the_papers_tables(name: str, options: dict[str, Any], expected: int) -> None:
    """T = 3 (and N = 3 for aggitd), N = 4, N' = Q = 2."""
    takes = find(name).options.model_fields
    shared = {"lower_rounds": 3, "neumann_terms": 4, "indices": [2, 2]}
    options = {**{key: value for key, value in shared.items() if key in takes}, **options}
    index = 2 if options.get("estimator") == "sample" else None
    assert find(name).make(options).rounds(index) == expected
    result = run(quadratic(), name, options, iterations=2)
    assert result.trace is not None
    assert [entry.rounds for entry in result.trace] == [expected, expected]
    assert result.history[-1]["round"] == 2 * expected


@pytest.mark.parametrize("weights", list(WEIGHTS))
def test_weights_of_the_clients(weights: str) -> None:
    problem = quadratic(weights)
    options = {**STEPS, "lower_rounds": 2, "local_steps": 2, "upper_local_steps": 2}
    x, y = start(problem, 5)
    expected = reference.run("aggitd", problem, x.numpy(), y.numpy(), ITERATIONS, options)
    agree(run(problem, "aggitd", options, seed=5), expected)


FULL: dict[str, dict[str, Any]] = {
    "aggitd": {"lower_rounds": 3, "local_steps": [1, 2, 4, 1, 3], "upper_local_steps": 2, "warm_start": True},
    "fednest": {"lower_rounds": 2, "neumann_terms": 3, "local_steps": 2, "upper_local_steps": [2, 1, 1, 3, 2]},
    "fednest-sgd": {"lower_rounds": 2, "neumann_terms": 4, "estimator": "sample", "indices": [2, 0, 3, 1]},
    "lfednest": {"lower_rounds": 2, "neumann_terms": 3, "local_steps": 2, "upper_local_steps": [2, 1, 1, 3, 2]},
    "lfednest-svrg": {"lower_rounds": 2, "neumann_terms": 3, "local_steps": 2, "upper_local_steps": 2},
    "bome": {"lower_rounds": 2, "upper_level_lower_step": 0.15, "barrier": 0.6},
    "f2sa": {"lower_rounds": 2, "penalty": 7.0, "penalty_growth": 0.5},
    "memfbo": {"penalty": 7.0, "local_steps": [1, 2, 4, 1, 3]},
    "fedavg-alternating": {"lower_rounds": 2, "local_steps": 2, "upper_local_steps": [2, 1, 1, 3, 2]},
    "joint": {"local_steps": [1, 2, 4, 1, 3]},
}


@pytest.mark.parametrize("weighting", ["normalised", "unbiased"])
@pytest.mark.parametrize("name", sorted(FULL))
def test_partial_participation(name: str, weighting: str) -> None:
    problem, options = quadratic(), {**STEPS, **FULL[name]}
    sets = sampled_sets(problem, 3, 4, seed=8)
    assert len({tuple(s) for s in sets}) > 1
    x, y = start(problem, 8)
    unbiased = weighting == "unbiased"
    expected = reference.run(name, problem, x.numpy(), y.numpy(), 4, options, sets=sets, unbiased=unbiased)
    agree(run(problem, name, options, iterations=4, seed=8, clients_per_round=3, weighting=weighting), expected)


@pytest.mark.parametrize("name", ["aggitd", "fednest"])
def test_aggregates_of_sampled_estimates_with_unbiased_weights(name: str) -> None:
    problem = quadratic()
    options = {**STEPS, "lower_rounds": N, "estimator": "sample", "indices": [1, 0, 3]}
    if name == "fednest":
        options["neumann_terms"] = N
    x, y = start(problem, 4)
    sets = sampled_sets(problem, 2, ITERATIONS, seed=4)
    expected = reference.run(name, problem, x.numpy(), y.numpy(), ITERATIONS, options, sets=sets, unbiased=True)
    agree(run(problem, name, options, seed=4, clients_per_round=2, weighting="unbiased"), expected)


@pytest.mark.parametrize("name", sorted(set(FULL) - {"bome", "f2sa"}))
@pytest.mark.parametrize("spec", [{"low": 1, "high": 5}, {"epochs": 3}], ids=["between", "epochs"])
def test_local_steps_drawn_or_in_epochs(name: str, spec: dict[str, int]) -> None:
    """Drawn once per seed and client; with the full batch an epoch is one step."""
    problem, clients = quadratic(), np.arange(M)
    if "epochs" in spec:
        assert local_steps(Epochs(**spec), 6, clients, problem.clients.lower.sizes, None).tolist() == [3] * M
        taus = [3] * M
    else:
        taus = local_steps(Between(**spec), 6, clients, problem.clients.lower.sizes, None).tolist()
        assert len(set(taus)) > 1
    options = {**STEPS, **FULL[name]}
    x, y = start(problem, 6)
    typed = (
        {"local_steps": taus, "upper_local_steps": taus} if "upper_local_steps" in options else {"local_steps": taus}
    )
    expected = reference.run(name, problem, x.numpy(), y.numpy(), ITERATIONS, {**options, **typed})
    agree(run(problem, name, {**options, **dict.fromkeys(typed, spec)}, seed=6), expected)


def test_drawn_local_steps_are_uniform_and_the_clients_own() -> None:
    clients = np.arange(6000)
    sizes = np.ones(6000, dtype=np.int64)
    drawn = local_steps(Between(low=2, high=4), 1, clients, sizes, None)
    counts = np.bincount(drawn, minlength=6)
    assert counts[:2].sum() == 0
    assert counts[5:].sum() == 0
    assert np.all(np.abs(counts[2:5] - 2000) < 4 * np.sqrt(6000 * 2 / 9))
    some = clients[[5, 999, 17]]
    assert np.array_equal(local_steps(Between(low=2, high=4), 1, some, sizes[:3], None), drawn[some])
    assert not np.array_equal(local_steps(Between(low=2, high=4), 2, clients, sizes, None), drawn)


def test_epochs_count_minibatches_of_the_own_examples() -> None:
    sizes = np.array([1, 4, 5, 9])
    assert local_steps(Epochs(epochs=2), 0, np.arange(4), sizes, 4).tolist() == [2, 2, 4, 6]


# ---- what travels ----

DIMENSION = {"x": DX, "h": DX, "fx": DX, "qx": DX}
Transcript = list[tuple[str, str]]
IHGP_3: Transcript = [("y", "fy"), ("p", "p"), ("p", "p"), ("p", "p"), ("p_sum", "h")]
PENALTY: Transcript = [("y z", "dy gz"), ("y z", "h")]

TRANSCRIPTS: list[tuple[str, dict[str, Any], list[Transcript]]] = [
    (
        "aggitd",
        {"lower_rounds": 2, "accounting": "merged"},
        [[("x y", "gy fy"), ("y v", "gy v"), ("y v", "h")]] * 2,
    ),
    (
        "aggitd",
        {"lower_rounds": 2},
        [[("x y", "gy fy"), ("g", "y"), ("y v", "gy v"), ("g", "y"), ("y v", "h"), ("h", "x")]] * 2,
    ),
    (
        "aggitd",
        {"lower_rounds": 2, "local_steps": 3, "upper_local_steps": 0, "accounting": "merged"},
        [[("x y", "gy fy"), ("g", "y"), ("y v", "gy v"), ("g", "y"), ("y v", "h")]] * 2,
    ),
    (
        "aggitd",
        {"lower_rounds": 2, "accounting": "merged", "warm_start": True},
        [[("x y", "gy fy"), ("y v", "gy v"), ("y v", "h")], [("x y v", "gy v"), ("y v", "gy v"), ("y v", "h")]],
    ),
    (
        "aggitd",
        {"lower_rounds": 3, "accounting": "merged", "estimator": "sample", "indices": [1, 2]},
        [
            [("x y", "gy"), ("y", "gy fy"), ("y r", "gy r"), ("y r", "h")],
            [("x y", "gy"), ("y", "gy"), ("y", "gy fy"), ("y r", "h")],
        ],
    ),
    (
        "fednest",
        {"lower_rounds": 2, "neumann_terms": 3},
        [[("x y", "gy"), ("g", "y"), ("y", "gy"), ("g", "y"), *IHGP_3, ("h", "x")]] * 2,
    ),
    (
        "fednest",
        {"lower_rounds": 2, "neumann_terms": 3, "accounting": "merged"},
        [[("x y", "gy"), ("y", "gy"), *IHGP_3]] * 2,
    ),
    (
        "fednest",
        {"lower_rounds": 1, "neumann_terms": 3, "accounting": "merged", "estimator": "sample", "indices": [0, 2]},
        [
            [("x y", "gy"), ("y", "fy"), ("p", "h")],
            [("x y", "gy"), ("y", "fy"), ("p", "p"), ("p", "p"), ("p", "h")],
        ],
    ),
    (
        "fednest-sgd",
        {"lower_rounds": 2, "neumann_terms": 3, "local_steps": 2},
        [[("x y", "y"), ("y", "y"), *IHGP_3, ("h", "x")]] * 2,
    ),
    ("lfednest", {"lower_rounds": 2, "neumann_terms": 3}, [[("x y", "y"), ("y", "y"), ("y", "x")]] * 2),
    (
        "lfednest-svrg",
        {"lower_rounds": 2},
        [[("x y", "gy"), ("g", "y"), ("y", "gy"), ("g", "y"), ("y", "x")]] * 2,
    ),
    ("bome", {"lower_rounds": 2}, [[("x y", "gy"), ("yh", "gy"), ("yh", "fx fy qx gy")]] * 2),
    # z starts as y itself: in the first iteration one vector serves as both
    ("f2sa", {"lower_rounds": 2}, [[("x y", "dy gz"), *PENALTY], [("x y z", "dy gz"), *PENALTY]]),
    ("memfbo", {"local_steps": 2}, [[("x y", "x y z")], [("x y z", "x y z")]]),
    ("fedavg-alternating", {"lower_rounds": 2}, [[("x y", "y"), ("y", "y"), ("y", "x")]] * 2),
    ("joint", {}, [[("x y", "x y")]] * 2),
]


def length(names: str) -> int:
    return sum(DIMENSION.get(name, DY) for name in names.split())


@pytest.mark.parametrize(("name", "options", "transcript"), TRANSCRIPTS)
@pytest.mark.parametrize("asked", [None, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_travels(
    name: str, options: dict[str, Any], transcript: list[Transcript], asked: int | None, dtype: str
) -> None:
    """Per round: the vectors down that a client does not hold yet in this iteration, and the vectors up."""
    result = run(quadratic(), name, {**options}, iterations=2, clients_per_round=asked, dtype=dtype)
    clients, item = asked or M, {"float32": 4, "float64": 8}[dtype]
    rounds = [each for iteration in transcript for each in iteration]
    total = result.communication
    assert total["rounds"] == len(rounds)
    assert total["messages"] == 2 * clients * len(rounds)
    assert total["vectors_down"] == clients * sum(len(down.split()) for down, _ in rounds)
    assert total["vectors_up"] == clients * sum(len(up.split()) for _, up in rounds)
    assert total["downlink_bytes"] == clients * item * sum(length(down) for down, _ in rounds)
    assert total["uplink_bytes"] == clients * item * sum(length(up) for _, up in rounds)
    first = result.history[1]
    assert first["round"] == len(transcript[0])
    assert first["downlink_bytes"] == clients * item * sum(length(down) for down, _ in transcript[0])
    assert first["uplink_bytes"] == clients * item * sum(length(up) for _, up in transcript[0])


# ---- options ----


def test_one_set_of_options_serves_every_algorithm() -> None:
    shared = {**STEPS, "lower_rounds": 2, "neumann_terms": 3, "penalty": 4.0, "local_steps": 2, "barrier": 0.3}
    for name, entry in algorithms("global").items():
        own = {key: value for key, value in shared.items() if key in entry.options.model_fields}
        assert own != shared
        together, alone = (run(quadratic(), name, options, iterations=2) for options in (shared, own))
        assert torch.equal(together.x, alone.x)
        assert torch.equal(together.y, alone.y)


def test_drawn_indices_are_in_range_keyed_by_the_seed_and_can_be_given_back() -> None:
    for name in ("aggitd", "fednest", "lfednest"):
        options = {**STEPS, "estimator": "sample", "lower_rounds": N, "neumann_terms": N}
        first, again, other = (run(quadratic(), name, options, iterations=12, seed=s) for s in (1, 1, 2))
        assert first.trace is not None
        assert again.trace is not None
        assert other.trace is not None
        drawn = [entry.index for entry in first.trace]
        assert drawn == [entry.index for entry in again.trace]
        assert drawn != [entry.index for entry in other.trace]
        assert set(drawn) <= set(range(N))
        assert len(set(drawn)) > 1
        given = run(quadratic(), name, {**options, "indices": drawn}, iterations=12, seed=1)
        assert torch.equal(given.x, first.x)


def test_drawn_indices_are_uniform() -> None:
    options = {"estimator": "sample", "lower_rounds": 1, "neumann_terms": 4, "upper_step": 0.0}
    result = run(quadratic(), "lfednest", options, iterations=400, evaluate_every=10**6)
    assert result.trace is not None
    counts = np.bincount([entry.index or 0 for entry in result.trace], minlength=4)
    assert len(counts) == 4
    assert np.sum((counts - 100) ** 2 / 100) < 16.3  # chi-square, 3 degrees of freedom, 0.1 %


@pytest.mark.parametrize("name", ["aggitd", "fednest", "fednest-sgd", "lfednest", "lfednest-svrg"])
@pytest.mark.parametrize(
    ("indices", "key"),
    [([0, 1], "indices"), ([0, 1, N], r"indices\[2\]"), ([0, -1, 1], "indices"), ([0, 1.5, 1], "indices")],
)
def test_indices_that_cannot_be_used(name: str, indices: list[Any], key: str) -> None:
    options = {"estimator": "sample", "indices": indices, "lower_rounds": N, "neumann_terms": N}
    with pytest.raises(BadInput, match=key):
        run(quadratic(), name, options)


@pytest.mark.parametrize("name", ["aggitd", "fednest", "fednest-sgd", "lfednest", "lfednest-svrg"])
def test_a_sampled_estimate_needs_a_term(name: str) -> None:
    with pytest.raises(BadInput, match="neumann_terms: got 0"):
        run(quadratic(), name, {"estimator": "sample", "neumann_terms": 0})


@pytest.mark.parametrize(
    ("name", "options", "key"),
    [
        ("aggitd", {"lower_rounds": 0}, "lower_rounds"),
        ("aggitd", {"local_steps": [1, 2]}, "local_steps"),
        ("aggitd", {"local_steps": 0}, "local_steps"),
        ("aggitd", {"upper_step": -0.1}, "upper_step"),
        ("aggitd", {"upper_step": float("nan")}, "upper_step"),
        ("fednest", {"upper_local_steps": [1] * 6}, "upper_local_steps"),
        ("fednest", {"estimator": "mean"}, "estimator"),
        ("fednest", {"accounting": "ours"}, "accounting"),
        ("fednest", {"local_steps": {"low": 3, "high": 2}}, "local_steps"),
        ("f2sa", {"penalty": 0.0}, "penalty"),
        ("fednest", {"upper_stpe": 0.1}, "upper_step"),
        ("fednset", {}, "fednest"),
    ],
)
def test_options_that_cannot_be_used(name: str, options: dict[str, Any], key: str) -> None:
    with pytest.raises(BadInput, match=key):
        run(quadratic(), name, options)
