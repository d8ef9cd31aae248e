"""R2D2 against ridge regression by scikit-learn, central differences, and what its options say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from torch import Tensor

from clients.methods import methods
from clients.tasks import TaskBatch
from fedbilevel import BadInput, simulate
from fedbilevel.problems.inspection import convert
from server.kit.algorithm import find
from server.running.estimate import estimate
from tests.agreement import relative
from tests.problem_table import BODY, CLASSES, HEAD, HIDDEN, INPUTS, SHOTS, Softmax, Wavy
from tests.runs import meta_gradient, settings, tasks_of

LAM, SCALE = 0.3, 4.0
OWN = {"initial_ridge": LAM, "initial_scale": SCALE}


def with_ridge(x: Tensor, lam: float = LAM, scale: float = SCALE) -> Tensor:
    """What R2D2 carries: the parameters, log lam and log scale."""
    return torch.cat([x, x.new_tensor([lam, scale]).log()])


def head_by_scikit_learn(tasks: TaskBatch, b: int, x: NDArray[Any]) -> NDArray[Any]:
    """The logits of the queries of one task: an explicit feature 1 for the bias, penalised like all others."""

    def features(part: Any) -> NDArray[Any]:
        W, bias = x[: INPUTS * HIDDEN].reshape(INPUTS, HIDDEN), x[INPUTS * HIDDEN : BODY]
        phi = np.tanh(part["input"][b].numpy() @ W + bias)
        return np.concatenate([phi, np.ones((len(phi), 1))], 1)

    ridge = Ridge(alpha=np.exp(x[-2]), fit_intercept=False, solver="svd")
    ridge.fit(features(tasks.tasks.support), np.eye(CLASSES)[tasks.tasks.support["label"][b].numpy()])  # type: ignore[call-overload, index]
    return np.exp(x[-1]) * ridge.predict(features(tasks.tasks.query))


def loss_by_scikit_learn(tasks: TaskBatch, b: int, x: NDArray[Any]) -> float:
    logits = head_by_scikit_learn(tasks, b, x)
    label = tasks.tasks.query["label"][b].numpy()  # type: ignore[call-overload, index]
    return float(np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(label)), label]))


def test_the_head_is_ridge_regression_on_the_features() -> None:
    tasks, x = tasks_of(Softmax(2), 2, seed=3)
    z = with_ridge(x)
    y = methods()["r2d2"].adapt(tasks, z, settings("r2d2", **OWN)).y
    problem: Any = tasks.problem
    for b in range(len(tasks)):
        assert torch.equal(y[b, :BODY], x[:BODY])
        query = {key: t[b] for key, t in tasks.tasks.query.items()}  # type: ignore[union-attr]
        assert np.allclose(problem.outputs(y[b], query).numpy(), head_by_scikit_learn(tasks, b, z.numpy()), atol=1e-12)


def test_the_meta_gradient_is_that_of_central_differences() -> None:
    """Of a loss written in numpy around scikit-learn's ridge regression."""
    tasks, x = tasks_of(Softmax(2), 2, seed=3)
    z, h = with_ridge(x), 1e-5
    found = meta_gradient("r2d2", tasks, z, **OWN)
    for b in range(len(tasks)):
        steps = h * np.eye(len(z))
        ends = [
            (loss_by_scikit_learn(tasks, b, z.numpy() + s) - loss_by_scikit_learn(tasks, b, z.numpy() - s)) / (2 * h)
            for s in steps
        ]
        assert relative(found[b], torch.tensor(ends)) < 1e-7
        assert all(abs(float(found[b, k]) - ends[k]) < 1e-7 * abs(ends[k]) for k in (-1, -2))
    assert bool((found[:, BODY:-2] == 0).all())


@pytest.mark.parametrize(("option", "entry"), [("learn_ridge", -2), ("learn_scale", -1)])
def test_what_is_not_learned_stays(option: str, entry: int) -> None:
    tasks, x = tasks_of(Softmax(2), 1)
    free, held = (meta_gradient("r2d2", tasks, with_ridge(x), **OWN, **{option: learn}) for learn in (True, False))
    assert bool((held[:, entry] == 0).all())
    assert bool((free[:, entry] != 0).all())
    others = [k for k in range(free.shape[1]) if k != free.shape[1] + entry]
    assert torch.equal(free[:, others], held[:, others])


def test_systems_are_solved_in_double_precision_unless_told() -> None:
    """With a tiny ridge more examples than features leave a system that single precision cannot solve."""
    exact_tasks, x = tasks_of(Softmax(2), 2, seed=3)
    z = with_ridge(x, lam=1e-5)
    exact = meta_gradient("r2d2", exact_tasks, z)
    tasks = tasks_of(convert(Softmax(2), torch.float32), 2, seed=3)[0]
    assert SHOTS * CLASSES > HIDDEN + 1
    assert tasks.tasks.support["input"].dtype == torch.float32  # type: ignore[call-overload, index]
    double, single = (meta_gradient("r2d2", tasks, z.float(), solve_dtype=dtype) for dtype in ("float64", "run"))
    assert double.dtype == single.dtype == torch.float32
    assert relative(double.double(), exact) < 1e-3
    assert relative(single.double(), exact) > 10 * relative(double.double(), exact)


def test_r2d2_runs_and_learns() -> None:
    result = simulate(Softmax(), "r2d2", iterations=30, upper_step=0.3, evaluation_tasks=20, seed=1)
    assert result.x.shape == (BODY + HEAD + 2,)
    first, last = result.history[0], result.history[-1]
    assert last["test_loss"] < first["test_loss"]  # type: ignore[operator]
    assert last["metric_ridge"] == pytest.approx(float(result.x[-2].exp()), rel=0.1)
    assert 0 <= last["test_accuracy"] <= 1  # type: ignore[operator]
    still = simulate(Softmax(), "r2d2", iterations=2, learn_ridge=False, learn_scale=False, **OWN, evaluation_tasks=5)
    assert still.x[-2:].exp().tolist() == pytest.approx([LAM, SCALE], rel=1e-14)


def test_problems_without_a_representation_are_refused() -> None:
    for problem in ("quadratic_tasks", "sinusoid", Wavy()):
        with pytest.raises(BadInput, match=r"algorithm: got 'r2d2'; allowed: a problem whose network ends in a linear"):
            simulate(problem, "r2d2", iterations=1)
    for key, value in (("initial_ridge", 0.0), ("initial_scale", -1.0), ("solve_dtype", "float16")):
        with pytest.raises(BadInput, match=f"options.{key}: got .*; allowed"):
            simulate(Softmax(), "r2d2", iterations=1, **{key: value})


def test_both_sets_are_in_the_estimate_of_memory() -> None:
    problem = Softmax()
    start = problem.initial(torch.Generator())

    def rows(name: str, tasks: int) -> float:
        options = {"tasks_per_client": tasks, "evaluation_tasks": 1}
        return estimate(problem, start, find(name).parse(options), None).rows

    more = {name: rows(name, 100) - rows(name, 50) for name in ("r2d2", "fomaml")}
    assert more["r2d2"] > more["fomaml"] > 0
