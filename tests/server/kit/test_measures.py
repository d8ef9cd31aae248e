"""Measures of adapted parameters against values by hand and scikit-learn's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from clients.methods.method import Adapted
from clients.tasks import TaskBatch
from fedbilevel.problems.tasks.quadratic_tasks import QuadraticTasks
from fedbilevel.tasks import Tasks
from server.kit.measures import calibration_error, judge, spearman, summary
from server.kit.predictive import SAMPLES


class Table:
    """Outputs are the parameters themselves, whatever the input: y [q * width] are the outputs of the q queries."""

    draws, task_sizes = 1, (1, 1)

    def __init__(self, kind: Any, width: int) -> None:
        self.kind, self.width = kind, width

    def tasks(self, held: Any, draws: Any) -> Tasks:
        raise NotImplementedError

    def outputs(self, y: Tensor, examples: Any) -> Tensor:
        return y.view(-1, self.width) if self.kind == "classification" else y

    def upper(self, x: Tensor, y: Tensor, examples: Any) -> Tensor:
        if self.kind == "classification":
            return torch.nn.functional.cross_entropy(self.outputs(y, examples), examples["label"], reduction="none")
        return (y - examples["label"]).square()


def batch(kind: Any, label: Any, width: int = 1, x: Tensor | None = None) -> TaskBatch:
    examples = {"label": torch.as_tensor(label)}
    start = torch.zeros(len(label[0]) * width, dtype=torch.float64) if x is None else x
    problem: Any = Table(kind, width)
    return TaskBatch(problem, Tasks(examples, examples), start)


def logits(probabilities: Any) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log().flatten(1)


P = [[[0.8, 0.2], [0.3, 0.7]], [[0.6, 0.4], [0.9, 0.1]]]  # two tasks, two queries, two classes
LABEL = [[0, 0], [0, 1]]


def test_a_point_estimate_of_classes_by_hand() -> None:
    judged = judge(batch("classification", LABEL, 2), Adapted(logits(P)))
    assert judged["correct"].tolist() == [[1, 0], [1, 0]]
    assert judged["confidence"].flatten().tolist() == pytest.approx([0.8, 0.7, 0.6, 0.9])
    nll = [-math.log(p) for p in (0.8, 0.3, 0.6, 0.1)]
    assert judged["nll"].flatten().tolist() == pytest.approx(nll)
    found = summary([judged])
    assert found["test_accuracy"] == pytest.approx(0.5)
    assert found["test_loss"] == pytest.approx(np.mean(nll))
    assert found["nll"] == pytest.approx(found["test_loss"])  # of a point estimate the two are the same
    assert found["unadapted_loss"] == pytest.approx(math.log(2))
    # every prediction is in a bin of its own: 0.8 right, 0.7 wrong, 0.6 right, 0.9 wrong
    assert found["ece"] == pytest.approx((0.2 + 0.7 + 0.4 + 0.9) / 4)
    # entropies fall in the order 0.6 (right), 0.7 (wrong), 0.8 (right), 0.9 (wrong): one of four pairs is in order
    assert found["uncertainty_auroc"] == pytest.approx(0.25)
    assert found["test_interval"] == 0
    assert "uncertainty_spearman" not in found


def test_the_parts_make_the_whole() -> None:
    whole = judge(batch("classification", LABEL, 2), Adapted(logits(P)))
    parts = [judge(batch("classification", [LABEL[k]], 2), Adapted(logits(P)[k : k + 1])) for k in (0, 1)]
    assert summary(parts) == pytest.approx(summary([whole]))


def test_the_interval_is_over_tasks() -> None:
    labels = [[0, 0], [0, 1], [1, 1]]  # predicted 0 and 0: accuracies 1, 1/2, 0
    y = logits([[[0.9, 0.1], [0.8, 0.2]]] * 3)
    found = summary([judge(batch("classification", labels, 2), Adapted(y))])
    assert found["test_interval"] == pytest.approx(1.96 * 0.5 / 3**0.5)
    alone = summary([judge(batch("classification", labels[:1], 2), Adapted(y[:1]))])
    assert math.isnan(alone["test_interval"])
    assert math.isnan(alone["uncertainty_auroc"])  # nothing is wrong


def test_a_posterior_of_classes_is_judged_by_its_predictive_distribution() -> None:
    rng = np.random.default_rng(0)
    y = torch.tensor(rng.standard_normal((2, 6)))
    variance = torch.tensor(rng.random((2, 6)))
    label = [[0, 2], [1, 1]]
    judged = judge(batch("classification", label, 3), Adapted(y, variance))
    noise = torch.randn(SAMPLES, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = torch.stack([(y + variance.sqrt() * each).view(2, 2, 3).softmax(-1) for each in noise]).mean(0)
    right = p.gather(-1, torch.tensor(label)[..., None]).squeeze(-1)
    torch.testing.assert_close(judged["nll"], -right.log())
    torch.testing.assert_close(judged["confidence"], p.max(-1).values)
    torch.testing.assert_close(judged["entropy"], -(p * p.log()).sum(-1))
    assert judged["correct"].tolist() == (p.argmax(-1) == torch.tensor(label)).double().tolist()
    # the same numbers for every task and every call
    alone = judge(batch("classification", label[1:], 3), Adapted(y[1:], variance[1:]))
    torch.testing.assert_close(alone["nll"], judged["nll"][1:])


def test_a_posterior_without_variance_is_the_point() -> None:
    point = judge(batch("classification", LABEL, 2), Adapted(logits(P)))
    certain = judge(batch("classification", LABEL, 2), Adapted(logits(P), torch.zeros_like(logits(P))))
    assert point.keys() == certain.keys()
    for key, value in point.items():
        torch.testing.assert_close(certain[key], value)


def test_certain_predictions_have_no_entropy_and_finite_measures() -> None:
    y = torch.tensor([[1000.0, 0.0, 0.0, 1000.0]], dtype=torch.float64)
    judged = judge(batch("classification", [[0, 0]], 2), Adapted(y))
    torch.testing.assert_close(judged["entropy"], torch.zeros(1, 2, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(judged["nll"], torch.tensor([[0.0, 1000.0]], dtype=torch.float64), rtol=0, atol=1e-12)
    assert summary([judged])["ece"] == pytest.approx(0.5)


def test_regression_by_hand() -> None:
    y = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    judged = judge(batch("regression", [[1.5, 0.0]], x=torch.ones(2, dtype=torch.float64)), Adapted(y))
    found = summary([judged])
    assert found["test_loss"] == pytest.approx((0.25 + 4) / 2)
    assert found["unadapted_loss"] == pytest.approx((0.25 + 1) / 2)
    # the squared error is the negative log-likelihood of variance 1/2 but for its constant
    assert found["nll"] == pytest.approx(found["test_loss"] + 0.5 * math.log(math.pi))
    assert not {"test_accuracy", "ece", "uncertainty_auroc", "uncertainty_spearman"} & found.keys()


def test_the_noise_of_a_problem_is_the_variance_of_its_labels() -> None:
    tasks = batch("regression", [[1.5, 0.0]])
    tasks.problem.noise_variance = 0.09  # type: ignore[attr-defined]  # the table takes anything
    found = judge(tasks, Adapted(torch.tensor([[1.0, 2.0]], dtype=torch.float64)))["nll"]
    expected = [-math.log(math.exp(-(e**2) / 0.18) / (2 * math.pi * 0.09) ** 0.5) for e in (0.5, 2.0)]
    assert found.flatten().tolist() == pytest.approx(expected)


def test_a_posterior_of_curves_by_hand() -> None:
    rng = np.random.default_rng(1)
    y, variance, label = (torch.tensor(rng.random((3, 8))) for _ in range(3))
    judged = judge(batch("regression", label), Adapted(y, variance))
    noise = torch.randn(SAMPLES, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
    drawn = y.numpy() + np.sqrt(variance.numpy()) * noise[:, None]
    mean, spread = drawn.mean(0), drawn.var(0) + 0.5
    nll = 0.5 * np.log(2 * np.pi * spread) + (label.numpy() - mean) ** 2 / (2 * spread)
    np.testing.assert_allclose(judged["nll"].numpy(), nll)
    expected = spearmanr(np.sqrt(spread).ravel(), np.abs(mean - label.numpy()).ravel()).statistic
    assert summary([judged])["uncertainty_spearman"] == pytest.approx(expected)


def test_what_cannot_be_judged_has_losses_only() -> None:
    problem = QuadraticTasks(clients=2, dim=3)
    tasks = problem.test_tasks(4)
    x = torch.zeros(3, dtype=torch.float64)
    found = summary([judge(TaskBatch(problem, tasks, x), Adapted(x.expand(4, -1)))])
    assert found.keys() == {"test_loss", "unadapted_loss", "test_interval"}
    assert found["test_loss"] == pytest.approx(found["unadapted_loss"], rel=1e-12)


# ---- the measures one by one ----


def test_calibration_error_by_hand() -> None:
    confidence = torch.tensor([0.95, 0.96, 0.97, 0.55, 1.0, 0.0])
    correct = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    # bins of 1/15: the four from 14/15 on together (3 of 4 right), 0.55 and 0.0 alone
    together = abs(3 - (0.95 + 0.96 + 0.97 + 1.0))
    assert calibration_error(confidence, correct) == pytest.approx((together + 0.45 + 0.0) / 6, abs=1e-6)


@pytest.mark.parametrize("levels", [5, 10**9])
def test_ranks_are_those_of_the_references(levels: int) -> None:
    rng = np.random.default_rng(levels)
    a, b = (rng.integers(0, levels, 200).astype(float) for _ in range(2))
    assert spearman(torch.tensor(a), torch.tensor(b)) == pytest.approx(spearmanr(a, b).statistic)


def test_what_there_is_nothing_to_tell_apart_in() -> None:
    # ranks 2.5, 1, 2.5 and 1, 2, 3: covariance 0 and so no correlation; against 3, 1, 2: 1.5 / sqrt(1.5 * 2)
    assert spearman(torch.tensor([3.0, 1.0, 3.0]), torch.tensor([1.0, 2.0, 3.0])) == pytest.approx(0.0, abs=1e-15)
    assert spearman(torch.tensor([3.0, 1.0, 3.0]), torch.tensor([3.0, 1.0, 2.0])) == pytest.approx(1.5 / 3**0.5)
    assert math.isnan(spearman(torch.ones(4), torch.rand(4)))
