"""The closed forms of quadratic tasks."""

from __future__ import annotations

import torch
from torch import Tensor

from fedbilevel.problems.tasks.quadratic_adaptation import QuadraticAdaptation
from tests.agreement import relative
from tests.problem_table import DIM, quadratic_tasks
from tests.runs import tasks_of


def test_closed_forms_are_the_derivatives_of_the_query_loss() -> None:
    """Each gradient against autograd through the closed form of y, and each y against what defines it."""
    tasks, x = tasks_of(quadratic_tasks(), 2)
    own = QuadraticAdaptation(tasks.tasks)

    def query(y: Tensor) -> Tensor:
        r = y - own.c
        return 0.5 * torch.einsum("bi,bij,bj->b", r, own.C, r)

    def slope(y: Tensor) -> Tensor:
        return torch.einsum("bij,bj->bi", own.A, y - own.a)

    log_s = torch.linspace(-1, 1, DIM, dtype=torch.float64)
    found = {
        "maml": lambda x: own.maml(x[:, :DIM], steps=5, step=0.3),
        "flow": lambda x: own.flow(x[:, :DIM], time=2.0),
        "imaml": lambda x: own.imaml(x[:, :DIM], proximal=0.7),
        "ibaml": lambda x: own.ibaml_map(x[:, :DIM], x[:, DIM:]),
    }
    start = torch.cat([x, log_s]).expand(len(tasks), -1).clone().requires_grad_()
    for name, closed in found.items():
        adapted = closed(start)
        expected = torch.autograd.grad(query(adapted.y).sum(), start)[0][:, : adapted.gradient.shape[1]]
        assert relative(adapted.gradient.detach(), expected) < 1e-10, name
    y = x.expand(len(tasks), -1)
    for _ in range(5):
        y = y - 0.3 * slope(y)
    assert relative(own.maml(x, steps=5, step=0.3).y, y) < 1e-10
    assert relative(own.imaml(x, proximal=0.7).y, x - slope(own.imaml(x, proximal=0.7).y) / 0.7) < 1e-10
    posterior = own.ibaml_map(x, log_s)
    assert relative(posterior.y, x - log_s.exp() * slope(posterior.y)) < 1e-10
    fine = own.maml(x, steps=200_000, step=1e-5)
    flow = own.flow(x, time=2.0)
    assert relative(fine.y, flow.y) < 1e-5
    assert relative(fine.gradient, flow.gradient) < 1e-5
    later, earlier = (query(own.flow(x, time=2.0 + h).y) for h in (1e-5, -1e-5))
    assert relative(own.flow_time_gradient(x, time=2.0), (later - earlier) / 2e-5) < 1e-8
