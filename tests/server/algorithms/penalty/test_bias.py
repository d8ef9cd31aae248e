"""The bias of first-order methods: of F2SA and MemFBO in the penalty, of BOME in its step."""

from __future__ import annotations

import numpy as np
import pytest

from fedbilevel.problems import Quadratic
from tests.agreement import relative
from tests.problem_table import lower_point
from tests.reference import Dense
from tests.runs import last_state, traced


@pytest.mark.parametrize("name", ["f2sa", "memfbo"])
def test_the_bias_of_penalty_methods_falls_as_one_over_the_penalty(name: str) -> None:
    problem = Quadratic(clients=3, dim_x=3, dim_y=4, mu=0.5, heterogeneity=0.5, seed=10)
    x, y = lower_point(problem)
    dense = Dense.of(problem)
    penalties, errors, offsets = [1e1, 1e2, 1e3], [], []
    repeats = {"iterations": 1, "lower_rounds": 60} if name == "f2sa" else {"iterations": 60}
    for penalty in penalties:
        steps = {"upper_step": 0.0, "lower_step": 1.3, "penalised_lower_step": 2 / (1 + 1.5 * penalty)}
        state = last_state(problem, name, x, y, penalty=penalty, **repeats, **steps)
        errors.append(relative(state.hypergradient, dense.hypergradient(x.numpy())))
        offsets.append(relative(penalty * (state.z - state.y), dense.v(y.numpy())))
        assert relative(state.z, y) < 1e-12
    for bias in (errors, offsets):
        slope = np.polyfit(np.log(penalties), np.log(bias), 1)[0]
        assert -1.1 < slope < -0.9
        assert bias[-1] < 5e-3


def test_the_bias_of_bome_is_of_the_order_of_its_step() -> None:
    """With constant steps it circles near x* once the lower solution is close; averaged over the last third."""
    problem = Quadratic(clients=2, dim_x=2, dim_y=2, examples=2, mu=0.8, heterogeneity=0.5, rho=1.0, seed=11)
    best = problem.solution()
    sizes, biases = (0.08, 0.04, 0.02), []
    for step in sizes:
        steps = {"upper_step": step, "upper_level_lower_step": step, "lower_rounds": 3, "lower_step": 1.1}
        result = traced(problem, "bome", round(3 / step), x0=best, y0=problem.lower_solution(best), **steps)
        assert result.trace is not None
        tail = result.trace[-len(result.trace) // 3 :]
        biases.append(float(np.mean([float((entry.x - best).norm()) for entry in tail])))
    assert biases[-1] < 0.01 * float(best.norm())
    assert 0.85 < np.polyfit(np.log(sizes), np.log(biases), 1)[0] < 1.15
