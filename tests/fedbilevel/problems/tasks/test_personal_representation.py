"""The problem `personal_representation`: whose examples a task has, who is judged on what, and new clients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from clients.methods import methods
from clients.tasks import TaskBatch
from fedbilevel import ClientData, simulate
from fedbilevel.data import FederatedData
from fedbilevel.data.own_tests import own_tests
from fedbilevel.errors import BadInput
from fedbilevel.problems.tasks.personal_representation import PersonalRepresentation
from fedbilevel.tasks import OwnTests
from server.kit.algorithm import algorithms, find
from server.kit.measures import by_client

SIZES = ((8, 8), (30, 10), (5, 23), (12, 4), (9, 9))
CLASSES = 4


def data() -> FederatedData:
    """Inputs [client, level, number of the example, label] of clients with two classes each."""
    levels: tuple[list[Any], list[Any]] = ([], [])
    for client, sizes in enumerate(SIZES):
        for level, n in enumerate(sizes):
            number = torch.arange(n)
            label = (client + number % 2) % CLASSES
            row = torch.stack([torch.full((n,), client), torch.full((n,), level), number, label], 1).float()
            levels[level].append({"input": row, "label": label})
    return FederatedData(ClientData(*levels), np.zeros((1, 4), np.float32), np.zeros(1, np.int64), CLASSES, 4)


def small(**parameters: Any) -> PersonalRepresentation:
    return PersonalRepresentation(
        data(), **{"hidden": [3], "support": 6, "queries": 5, "new_clients": 2, "activation": "tanh"} | parameters
    )


def read(inputs: torch.Tensor) -> set[tuple[int, ...]]:
    return {tuple(row) for row in inputs.reshape(-1, 4).int().tolist()}


def test_a_task_adapts_on_lower_examples_of_its_client_and_learns_from_upper_ones() -> None:
    problem = small()
    numbers = np.random.default_rng(0).random((3, 50, problem.draws))
    tasks = problem.tasks(problem.clients.lower, numbers)
    assert tasks.support["input"].shape == (150, 6, 4)
    assert tasks.query["input"].shape == (150, 5, 4)
    for level, part in enumerate((tasks.support, tasks.query)):
        rows = part["input"].view(3, 50, -1, 4)
        assert bool((rows[..., 0] == torch.arange(3.0)[:, None, None]).all())
        assert bool((rows[..., 1] == level).all())
        assert bool((rows[..., 3] == part["label"].view(3, 50, -1)).all())
    for row in tasks.support["input"]:  # nobody has fewer than 4 lower examples, and 6 of 4 are all of them
        assert len(read(row)) == min(
            6, int((problem.clients.lower.take(row[:1, 0].numpy().astype(int)).values["upper"] == 0).sum())
        )


def test_tests_are_of_every_class_alike_and_nobody_learns_from_them() -> None:
    problem = small()
    pool = read(problem.clients.lower.values["input"])
    new = read(problem._new["input"])
    tests = problem._test["input"]
    everything = set().union(*(read(part.values["input"]) for part in (data().clients.lower, data().clients.upper)))
    assert pool | new | read(tests) == everything
    assert not pool & new
    assert not (pool | new) & read(tests)
    assert {row[0] for row in pool} == {0, 1, 2}
    for client, sizes in enumerate(SIZES):
        own = tests[tests[:, 0] == client]
        for level, n in enumerate(sizes):
            of_level = own[own[:, 1] == level]
            assert len(of_level) == math.floor(n / 4 + 0.5)
            counts = [int((of_level[:, 3] == k).sum()) for k in of_level[:, 3].unique()]
            assert max(counts) - min(counts) <= 1
    again = own_tests(np.zeros(40, int), np.repeat([0, 1], [36, 4]), 0.25, seed=5)
    assert (again[:36].sum(), again[36:].sum()) == (9, 1)


def test_every_client_is_judged_on_all_of_its_own_tests() -> None:
    problem = small()
    tasks, of = problem.test_tasks(12), problem.tested(12)
    assert len(tasks) == len(of.owner) == 15
    assert of.trained.tolist() == [True] * 3 + [False] * 2
    for b, client in enumerate(of.owner.tolist()):
        assert {row[0] for row in read(tasks.support["input"][b])} == {client}
        assert {row[1] for row in read(tasks.support["input"][b])} == {0}
        counted = tasks.query["input"][b][of.counted[b]]
        wanted = problem._test["input"][problem._test["input"][:, 0] == client]
        assert torch.equal(counted, wanted)
    first, second = (tasks.support["input"][b] for b in (1, 6))
    assert read(first) != read(second)  # of client 1, which has more lower examples than a support set takes
    assert torch.equal(problem.test_tasks(5).support["input"], tasks.support["input"][:5])


def test_losses_are_those_of_a_network_with_its_head() -> None:
    problem = small(l2=0.3)
    y = torch.randn(len(problem.initial(torch.Generator())[0]), generator=torch.Generator().manual_seed(1))
    examples = {"input": problem._test["input"], "label": problem._test["label"]}
    W, b, V, c = (part for part in y.split([12, 3, 3 * CLASSES, CLASSES]))
    feature = torch.tanh(examples["input"] @ W.view(3, 4).T + b)
    logits = feature @ V.view(CLASSES, 3).T + c
    expected = logits.logsumexp(-1) - logits[torch.arange(len(logits)), examples["label"]]
    torch.testing.assert_close(problem.outputs(y, examples), logits)
    torch.testing.assert_close(problem.features(y, examples["input"]), feature)
    torch.testing.assert_close(problem.upper(y, y, examples), expected)
    head = float(V.square().sum() + c.square().sum())
    torch.testing.assert_close(problem.lower(y, y, examples), expected + 0.15 * head)


def test_measures_are_means_over_clients_of_their_own_counted_tests() -> None:
    """Two tasks each of twelve clients, the last of which is new; a query that does not count is always wrong."""
    draw = torch.Generator().manual_seed(0)
    m, turns, q = 12, 2, 6
    counts = torch.arange(m) % 5 + 2
    counted = (torch.arange(q) < counts[:, None]).repeat(turns, 1)
    correct, start = ((torch.rand(m * turns, q, generator=draw) < 0.6) & counted for _ in range(2))
    nll = torch.rand(m * turns, q, generator=draw)
    judged = {
        "test_loss": torch.rand(m * turns),
        "unadapted_loss": torch.rand(m * turns),
        "correct": correct.double(),
        "unadapted_correct": start.double(),
        "nll": nll,
        "confidence": nll,
        "entropy": nll,
    }
    owner = torch.arange(m).repeat(turns)
    halves = [{key: value[rows] for key, value in judged.items()} for rows in (slice(0, 7), slice(7, None))]
    found = by_client(halves, OwnTests(owner, counted, torch.arange(m) < m - 1))

    def own(values: torch.Tensor) -> list[float]:
        return [float(np.mean([values[t, : counts[i]].double().mean() for t in (i, i + m)])) for i in range(m)]

    accuracy = own(correct)
    assert found["test_accuracy"] == pytest.approx(np.mean(accuracy[:-1]))
    assert found["worst_tenth"] == pytest.approx(np.mean(sorted(accuracy[:-1])[:2]))
    assert found["new_accuracy"] == pytest.approx(accuracy[-1])
    assert found["global_accuracy"] == pytest.approx(np.mean(own(start)[:-1]))
    assert found["new_global_accuracy"] == pytest.approx(own(start)[-1])
    assert found["test_loss"] == pytest.approx(np.mean(own(nll)[:-1]))
    assert found["test_interval"] == pytest.approx(1.96 * np.std(accuracy[:-1], ddof=1) / 11**0.5)
    assert found["nll"] == pytest.approx(float(nll[counted].double().mean()))


def test_heads_are_the_clients_own_and_new_clients_are_never_seen() -> None:
    """With another `new_clients`' examples a run moves x the same; adapted heads differ from client to client."""
    problem, other = small(), small()
    for values in (other._new, other._test):
        values["input"] = 100.0 - values["input"]
    shared: dict[str, Any] = {"iterations": 3, "upper_step": 0.1, "dtype": "float64", "evaluation_tasks": 5}
    results = [simulate(each, "r2d2", **shared) for each in (problem, other)]
    assert torch.equal(results[0].x, results[1].x)
    assert results[0].history[-1]["test_loss"] != results[1].history[-1]["test_loss"]
    x = results[0].x.float()
    tasks = problem.test_tasks(5)
    y = methods()["r2d2"].adapt(TaskBatch(problem, tasks, x[:-2]), x, find("r2d2").parse({}).settings()).y  # type: ignore[attr-defined]
    assert bool((y[:, : problem.body] == x[: problem.body]).all())
    heads = y[:, problem.body :]
    apart = torch.cdist(heads, heads) + torch.eye(5)
    assert float(apart.min()) > 1e-3


@pytest.mark.parametrize("name", algorithms("local"))
def test_every_method_of_tasks_runs_and_tells_every_measure(name: str) -> None:
    shared: dict[str, Any] = {"iterations": 1, "upper_step": 0.01, "evaluation_tasks": 5}
    last = simulate(small(), name, **shared).history[-1]
    for key in ("test_accuracy", "metric_worst_tenth", "metric_new_accuracy", "metric_global_accuracy"):
        assert 0 <= last[key] <= 1
    assert last["metric_worst_tenth"] <= last["test_accuracy"]


def test_without_new_clients_everybody_is_in_training() -> None:
    problem = small(new_clients=0)
    assert problem.tested(1).trained.tolist() == [True] * 5
    last = simulate(problem, "r2d2", iterations=1, evaluation_tasks=5).history[-1]
    assert not [key for key in last if "new" in key]
    assert 0 <= last["metric_worst_tenth"] <= last["test_accuracy"] <= 1


def test_without_a_step_of_adaptation_the_adapted_model_is_the_global_one() -> None:
    last = simulate(small(), "fomaml", iterations=2, lower_step=0.0, upper_step=0.01, evaluation_tasks=5).history[-1]
    assert last["test_accuracy"] == last["metric_global_accuracy"]
    assert last["metric_new_accuracy"] == last["metric_new_global_accuracy"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"new_clients": 5}, "problem.new_clients: got 5; allowed: an integer from 0 to 4"),
        ({"test": 1.0}, "problem.test: got 1.0; allowed: a number between 0 and 1"),
        ({"test": 0.01}, "problem.test: got 0.01; allowed: a share that leaves each client test examples: client 0"),
        ({"test": 0.95}, "problem.test: got 0.95; allowed: a share that leaves each client lower examples: client 0"),
        ({"support": 0}, "problem.support: got 0; allowed: an integer of at least 1"),
        ({"queries": 0}, "problem.queries: got 0; allowed: an integer of at least 1"),
        ({"l2": -1.0}, "problem.l2: got -1.0; allowed: a finite number of at least 0"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(given: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as caught:
        small(**given)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_a_server_without_examples_cannot_judge() -> None:
    problem = small()
    problem.clients = problem.clients.only(0, 0)
    with pytest.raises(BadInput, match="without the clients' own examples"):
        problem.test_tasks(5)
