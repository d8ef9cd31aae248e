"""The problem `sinusoid`: the clients' ranges, the tasks, and that methods learn it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from fedbilevel import simulate
from fedbilevel.config.build import build
from fedbilevel.errors import BadInput
from fedbilevel.problems.tasks.sinusoid import Sinusoid
from fedbilevel.tasks import Tasks


def fitted(tasks: Tasks) -> tuple[np.ndarray, np.ndarray]:
    """Amplitude and phase of every task by least squares on sin t and cos t; the fit is exact."""
    found = []
    for k in range(len(tasks)):
        parts = [tasks.support, tasks.query]
        t = np.concatenate([part["input"][k, :, 0].double().numpy() for part in parts])
        label = np.concatenate([part["label"][k].double().numpy() for part in parts])
        assert np.abs(t).max() <= 5
        (a, b), residual, *_ = np.linalg.lstsq(np.stack([np.sin(t), np.cos(t)], 1), label, rcond=None)
        assert float(residual[0]) < 1e-16
        found.append((math.hypot(a, b), math.atan2(b, a) % (2 * math.pi)))
    amplitude, phase = np.array(found).T
    return amplitude, phase


def drawn(problem: Sinusoid, tasks: int) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.random.default_rng(0).random((len(problem.clients), tasks, problem.draws))
    amplitude, phase = fitted(problem.tasks(problem.clients.lower, numbers))
    return amplitude.reshape(-1, tasks), phase.reshape(-1, tasks)


def same_curves(found: torch.Tensor, expected: torch.Tensor) -> None:
    """To the last bits of a sine, which other places in a batch may round otherwise: 4 ulps, of amplitudes up to 5."""
    torch.testing.assert_close(found, expected, rtol=0, atol=5 * 4 * 2.0**-52)


def test_shapes() -> None:
    problem = Sinusoid(clients=4, shots=3, queries=7)
    tasks = problem.tasks(problem.clients.lower, np.random.default_rng(0).random((4, 5, problem.draws)))
    assert (len(tasks), problem.draws, problem.task_sizes) == (20, 12, (3, 7))
    assert (tasks.support["input"].shape, tasks.support["label"].shape) == ((20, 3, 1), (20, 3))
    assert (tasks.query["input"].shape, tasks.query["label"].shape) == ((20, 7, 1), (20, 7))
    x, y = problem.initial(torch.Generator().manual_seed(0))
    assert x.shape == y.shape == (40 + 40 + 1600 + 40 + 40 + 1,)
    one = {name: tensor[0] for name, tensor in tasks.query.items()}
    expected = (problem.outputs(x, one) - one["label"]) ** 2
    torch.testing.assert_close(problem.lower(x, x, one), expected)
    torch.testing.assert_close(problem.upper(x, x, one), expected)


def test_without_heterogeneity_every_client_has_the_whole_ranges() -> None:
    amplitude, phase = drawn(Sinusoid(clients=4, heterogeneity=0.0), 200)
    for own, low, high in ((amplitude, 0.1, 5.0), (phase, 0.0, math.pi)):
        assert own.min() >= low
        assert own.max() <= high
        width = high - low
        assert (own.min(1) < low + 0.05 * width).all()
        assert (own.max(1) > high - 0.05 * width).all()


@pytest.mark.parametrize("clients", [1, 5, 10, 12])
def test_with_full_heterogeneity_the_ranges_are_disjoint_and_cover_everything(clients: int) -> None:
    problem = Sinusoid(clients=clients)
    low, high = (problem.clients.lower.values[key].numpy() for key in ("low", "high"))
    assert float((high - low).prod(1).sum()) == pytest.approx(4.9 * math.pi)
    for i in range(clients):
        for j in range(i):
            overlap = np.minimum(high[i], high[j]) - np.maximum(low[i], low[j])
            assert overlap.min() <= 1e-12
    amplitude, phase = drawn(problem, 20)
    for k, own in enumerate((amplitude, phase)):
        assert (own >= low[:, k : k + 1] - 1e-9).all()
        assert (own <= high[:, k : k + 1] + 1e-9).all()


def test_heterogeneity_narrows_the_ranges_in_proportion() -> None:
    widths = []
    for heterogeneity in (0.0, 0.5, 1.0):
        held = Sinusoid(clients=6, heterogeneity=heterogeneity).clients.lower.values
        widths.append(held["high"] - held["low"])
    torch.testing.assert_close(widths[1], (widths[0] + widths[2]) / 2)


def test_clients_hold_nothing_but_their_ranges() -> None:
    held = Sinusoid(clients=7).clients.lower
    assert {name: tuple(tensor.shape) for name, tensor in held.values.items()} == {"low": (7, 2), "high": (7, 2)}


def test_the_same_numbers_make_the_same_tasks_wherever_a_client_is() -> None:
    problem = Sinusoid(clients=6)
    numbers = np.random.default_rng(0).random((6, 3, problem.draws))
    whole = problem.tasks(problem.clients.lower, numbers)
    some = np.array([5, 2])
    part = problem.tasks(problem.clients.lower.take(some), numbers[some])
    same_curves(whole.query["label"][[15, 16, 17, 6, 7, 8]], part.query["label"])


def test_the_sequence_of_test_tasks_is_fixed_and_over_the_whole_ranges() -> None:
    problem = Sinusoid(clients=3)
    longer, shorter, other = problem.test_tasks(300), Sinusoid(clients=9).test_tasks(7), Sinusoid(seed=1).test_tasks(7)
    same_curves(longer.support["label"][:7], shorter.support["label"])
    assert not torch.equal(other.support["label"], shorter.support["label"])
    amplitude, phase = fitted(longer)
    assert amplitude.min() < 0.3
    assert amplitude.max() > 4.8
    assert phase.min() < 0.15
    assert phase.max() > 3.0


def test_tasks_for_testing_may_come_from_ranges_that_no_client_has() -> None:
    seen = {"amplitude": [0.1, 3.0], "phase": [0.0, 1.5], "inputs": [-5.0, 2.0]}
    held_out = {"test_amplitude": [3, 5], "test_phase": [1.5, 3.0], "test_inputs": [2.0, 4.0]}
    problem = build("sinusoid", {"clients": 6, **seen, **held_out}, data=lambda: pytest.fail("data"), dtype=None)
    assert isinstance(problem, Sinusoid)
    numbers = np.random.default_rng(0).random((6, 100, problem.draws))
    for tasks, (low, high) in (
        (problem.tasks(problem.clients.lower, numbers), (-5, 2)),
        (problem.test_tasks(600), (2, 4)),
    ):
        t = torch.cat([tasks.support["input"], tasks.query["input"]], 1)
        assert low <= float(t.min()) < low + 0.1
        assert high - 0.1 < float(t.max()) <= high
        amplitude, phase = fitted(tasks)
        for found, key, test in ((amplitude, "amplitude", "test_amplitude"), (phase, "phase", "test_phase")):
            least, most = seen[key] if low < 0 else held_out[test]
            assert least - 1e-6 <= found.min() < least + 0.1
            assert most - 0.1 < found.max() <= most + 1e-6


def test_noise_is_normal_on_every_point_and_changes_nothing_else() -> None:
    clean, noisy = Sinusoid(clients=4, shots=3, queries=7), Sinusoid(clients=4, shots=3, queries=7, noise=0.3)
    assert (clean.noise_variance, noisy.noise_variance) == (0, pytest.approx(0.09))
    numbers = np.random.default_rng(0).random((4, 500, noisy.draws))
    one = clean.tasks(clean.clients.lower, numbers[..., : clean.draws])
    other = noisy.tasks(noisy.clients.lower, numbers)
    again = noisy.test_tasks(40)
    assert torch.equal(again.query["label"][:7], noisy.test_tasks(7).query["label"])
    assert torch.equal(one.query["input"], other.query["input"])
    errors = [(b["label"] - a["label"]).numpy() for a, b in ((one.support, other.support), (one.query, other.query))]
    assert [each.shape for each in errors] == [(2000, 3), (2000, 7)]
    whole = np.concatenate(errors, 1) / 0.3
    assert kstest(whole.ravel(), "norm").pvalue > 0.01
    assert np.abs(np.corrcoef(whole.T) - np.eye(10)).max() < 5 / 2000**0.5  # a point's noise is its own


@pytest.mark.parametrize(
    ("parameters", "key"),
    [
        ({"clients": 0}, "problem.clients"),
        ({"heterogeneity": 1.5}, "problem.heterogeneity"),
        ({"heterogeneity": float("nan")}, "problem.heterogeneity"),
        ({"shots": 0}, "problem.shots"),
        ({"queries": -1}, "problem.queries"),
        ({"hidden": []}, "problem.hidden"),
        ({"activation": "gelu"}, "problem.activation"),
        ({"noise": -0.1}, "problem.noise"),
        ({"noise": float("inf")}, "problem.noise"),
        ({"amplitude": [2.0, 2.0]}, "problem.amplitude"),
        ({"phase": [1.0, 0.0]}, "problem.phase"),
        ({"inputs": [0.0, float("inf")]}, "problem.inputs"),
        ({"test_amplitude": [3.0, 2.0]}, "problem.test_amplitude"),
        ({"test_phase": [0.0]}, "problem.test_phase"),
        ({"test_inputs": [0.0, float("nan")]}, "problem.test_inputs"),
        ({"seed": -1}, "problem.seed"),
        ({"clents": 3}, "problem.clents"),
    ],
)
def test_bad_input_is_named(parameters: dict[str, Any], key: str) -> None:
    with pytest.raises(BadInput) as error:
        build("sinusoid", parameters, data=lambda: pytest.fail("asked for data"), dtype=None)
    assert error.value.key == key


def test_maml_learns_curves() -> None:
    result = simulate(
        Sinusoid(clients=4),
        "maml",
        iterations=60,
        evaluate_every=60,
        local_steps=1,
        lower_step=0.01,
        upper_step=0.01,
        upper_optimiser="adam",
        evaluation_tasks=100,
        dtype="float32",
    )
    first, last = (row["test_loss"] for row in (result.history[0], result.history[-1]))
    assert isinstance(first, float)
    assert isinstance(last, float)
    assert last < 0.8 * first
    assert result.x.dtype == torch.float32


def test_a_run_does_not_depend_on_the_number_of_workers() -> None:
    options: dict[str, Any] = {"iterations": 3, "evaluation_tasks": 5, "lower_step": 0.01, "upper_step": 0.001}
    one, three = (simulate(Sinusoid(clients=4, hidden=[8]), "maml", workers=w, **options) for w in (1, 3))
    assert one.x.dtype == torch.float64
    torch.testing.assert_close(one.x, three.x, rtol=1e-10, atol=1e-12)
