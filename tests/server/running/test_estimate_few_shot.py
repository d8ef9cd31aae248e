"""The estimate of memory against the measured peak of a meta-gradient, for methods that hold more than a path."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedbilevel.problems.inspection import convert
from fedbilevel.problems.tasks.few_shot import FewShot
from server.kit.algorithm import find
from server.running.estimate import estimate
from server.running.peak import meta_gradient_peak
from server.running.run import initial

CASES: list[tuple[str, dict[str, Any]]] = [
    ("r2d2", {}),
    ("agile", {"local_steps": 1}),
    ("ntk-maml", {"jacobian_rows": 18}),
    ("ntk-maml", {"jacobian_rows": 6}),
    ("kernel-maml", {"jacobian_rows": 18}),
    ("stochastic-bilevel", {"lower_rounds": 2, "samples": 8}),
    ("stochastic-bilevel", {"lower_rounds": 2, "samples": 2}),
]


@pytest.mark.slow
@pytest.mark.beside
@pytest.mark.parametrize(("name", "own"), CASES)
def test_the_estimate_is_of_the_size_of_the_peak(name: str, own: dict[str, Any]) -> None:
    problem: Any = convert(FewShot(clients=1, ways=3, shots=2, rotations=1), torch.float32)
    options = {**own, "tasks_per_client": 4, "evaluation_tasks": 1}
    measured = meta_gradient_peak(problem, name, options)
    estimated = estimate(problem, initial(problem, 0), find(name).parse(options), None).total
    assert measured < 1.5 * estimated
    assert estimated < 4 * measured
