"""Every algorithm against its second implementation, and the paper's count of rounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedbilevel.federation.systems import Between, Epochs, local_steps
from server.kit.algorithm import algorithms, find
from tests import reference
from tests.agreement import agree
from tests.algorithm_table import GLOBAL, LOCAL, MINIMAX, SHARED
from tests.algorithm_table.row import INDICES, STEPS, TAU, UPPER_TAU, N, Options
from tests.problem_table import WEIGHTS, M, problem_for, quadratic
from tests.runs import sampled_sets, silent, start, traced

ITERATIONS = 3
CASES = [(name, case) for name, row in SHARED.items() for case in row.cases]
COUNTS = [(name, *count) for name, row in SHARED.items() for count in row.counts]
STEPPING = sorted(name for name, (_, taken) in reference.ALGORITHMS.items() if "local_steps" in taken)
"""Those whose clients make local steps."""


def label(case: tuple[str, Options]) -> str:
    told = {key: value for key, value in case[1].items() if key not in (*STEPS, "neumann_step", "indices")}
    return f"{case[0]} {told}".replace("'", "")


def drawn(name: str, options: Options) -> bool:
    """Whether the number of Neumann terms is random."""
    return options.get("estimator") == "sample" or name == "fedmbo"


def resampled(problem: Any, iterations: int, seed: int, size: int) -> dict[int, list[Any]]:
    """The clients of each round of FedMBO's estimate: N independent samples in every iteration."""
    fed, found = silent(problem, seed, clients_per_round=size), {}
    purposes = ["gradient of the estimate", *(f"factor {n} of the estimate" for n in range(N))]
    for k in range(iterations):
        fed.begin(k)
        found[k] = []
        for purpose in purposes:
            fed.resample(purpose)
            found[k].append(fed.sampled)
    return found


def held(name: str, options: Options, told: Options | None = None, *, seed: int = 0, **sampling: Any) -> None:
    """A run's iterates are the reference's; told: the options as the library gets them, where they differ."""
    problem = problem_for(name)
    x, y = start(problem, seed)
    iterations, size = sampling.pop("iterations", ITERATIONS), sampling.get("clients_per_round")
    sets = None if size is None else sampled_sets(problem, size, iterations, seed)
    assert sets is None or len({tuple(each) for each in sets}) > 1
    unbiased = sampling.get("weighting") == "unbiased"
    told = told or options
    if name == "fedmbo" and size is not None:
        options = {**options, "resampled": resampled(problem, iterations, seed, size)}
    expected = reference.run(
        name, problem, x.numpy(), y.numpy(), iterations, options, sets=sets, unbiased=unbiased, seed=seed
    )
    agree(traced(problem, name, iterations, seed=seed, **told, **sampling), expected)


def test_every_algorithm_is_in_the_table() -> None:
    assert set(algorithms("global")) == set(GLOBAL)
    assert set(algorithms("minimax")) == set(SHARED) == set(reference.ALGORITHMS)
    assert {name for name, entry in algorithms().items() if entry.lower == "minimax"} == set(MINIMAX)
    assert set(algorithms("local")) == set(LOCAL)
    assert all(row.cases and row.counts and row.travels for row in SHARED.values())


@pytest.mark.parametrize("case", CASES, ids=label)
def test_iterates_equal_the_reference_and_rounds_the_formula(case: tuple[str, Options]) -> None:
    name, options = case
    problem = problem_for(name)
    result = traced(problem, name, ITERATIONS, **options)
    x, y = start(problem)
    agree(result, reference.run(name, problem, x.numpy(), y.numpy(), ITERATIONS, options))
    algorithm = find(name).make(options)
    assert result.trace is not None
    for k, entry in enumerate(result.trace):
        index = INDICES[k] if drawn(name, options) else None
        assert entry.index == index
        assert entry.rounds == SHARED[name].rounds(options, index)
        assert algorithm.rounds(index) == entry.rounds
    assert result.communication["rounds"] == sum(entry.rounds for entry in result.trace)


@pytest.mark.parametrize(("name", "options", "expected"), COUNTS)
def test_rounds_of_the_papers_tables(name: str, options: Options, expected: int) -> None:
    """T = 3 (and N = 3 for aggitd), N = 4, N' = Q = 2."""
    takes = find(name).options.model_fields
    shared = {"lower_rounds": 3, "neumann_terms": 4, "indices": [2, 2]}
    options = {**{key: value for key, value in shared.items() if key in takes}, **options}
    index = 2 if drawn(name, options) else None
    assert find(name).make(options).rounds(index) == expected
    result = traced(problem_for(name), name, 2, **options)
    assert result.trace is not None
    assert [entry.rounds for entry in result.trace] == [expected, expected]
    assert result.history[-1]["round"] == 2 * expected


@pytest.mark.parametrize("weights", list(WEIGHTS))
def test_weights_of_the_clients(weights: str) -> None:
    problem = quadratic(weights)
    options = {**STEPS, "lower_rounds": 2, "local_steps": 2, "upper_local_steps": 2}
    x, y = start(problem, 5)
    expected = reference.run("aggitd", problem, x.numpy(), y.numpy(), ITERATIONS, options)
    agree(traced(problem, "aggitd", ITERATIONS, **options, seed=5), expected)


# ---- sampled clients ----


@pytest.mark.filterwarnings("ignore:aggitd-aq. mixing takes the noise")
@pytest.mark.parametrize("weighting", ["normalised", "unbiased"])
@pytest.mark.parametrize("name", sorted(SHARED))
def test_partial_participation(name: str, weighting: str) -> None:
    held(name, {**STEPS, **SHARED[name].sampled}, seed=8, iterations=4, clients_per_round=3, weighting=weighting)


@pytest.mark.parametrize("weighting", ["normalised", "unbiased"])
@pytest.mark.parametrize(("tau", "upper"), [(3, 3), (TAU, UPPER_TAU)], ids=["equal", "unequal"])
@pytest.mark.parametrize("name", STEPPING)
def test_partial_participation_with_local_steps(name: str, tau: Any, upper: Any, weighting: str) -> None:
    given = {"local_steps": tau, "upper_local_steps": upper}
    options = {**STEPS, **SHARED[name].sampled, **taken(name, given), **plain(name)}
    held(name, options, seed=2, iterations=4, clients_per_round=2, weighting=weighting)


@pytest.mark.parametrize("name", ["aggitd", "fednest"])
def test_aggregates_of_sampled_estimates_with_unbiased_weights(name: str) -> None:
    options = {**STEPS, "lower_rounds": N, "estimator": "sample", "indices": [1, 0, 3]}
    if name == "fednest":
        options["neumann_terms"] = N
    held(name, options, seed=4, clients_per_round=2, weighting="unbiased")


def plain(name: str) -> Options:
    """No coefficients of local steps: those of a row fit its own steps."""
    return taken(name, {"coefficients": None})


def taken(name: str, options: Options) -> Options:
    """Those of the options that the algorithm has."""
    return {key: value for key, value in options.items() if key in find(name).options.model_fields}


# ---- local steps of the clients' own ----


@pytest.mark.parametrize("sampling", [{}, {"clients_per_round": 3, "weighting": "unbiased"}], ids=["all", "unbiased"])
@pytest.mark.parametrize("name", STEPPING)
@pytest.mark.parametrize("spec", [{"low": 1, "high": 5}, {"epochs": 3}], ids=["between", "epochs"])
def test_local_steps_drawn_or_in_epochs(name: str, spec: dict[str, int], sampling: Options) -> None:
    """Drawn once per seed and client; with the full batch an epoch is one step."""
    problem, clients = problem_for(name), np.arange(M)
    if "epochs" in spec:
        assert local_steps(Epochs(**spec), 6, clients, problem.clients.lower.sizes, None).tolist() == [3] * M
        taus = [3] * M
    else:
        taus = local_steps(Between(**spec), 6, clients, problem.clients.lower.sizes, None).tolist()
        assert len(set(taus)) > 1
    options = {**STEPS, **SHARED[name].sampled, **plain(name)}
    typed = taken(name, {"local_steps": taus, "upper_local_steps": taus})
    held(name, {**options, **typed}, {**options, **dict.fromkeys(typed, spec)}, seed=6, **sampling)
