"""R2D2: the head of a task by ridge regression in closed form on shared features (Bertinetto et al., ICLR 2019).

With features Phi [n, w+1] of the support set (a last one is the constant 1, for the bias) and its one-hot labels Y
[n, C] the head is W = scale Phi' (Phi Phi' + lam I)^-1 Y: a system of the size of the support set, not of the features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.functional import pad

from clients.methods.method import Adapted, Method, Settings, method
from clients.tasks import TaskBatch


def ridge_head(problem: Any, x: Tensor, support: Any, o: Settings) -> Tensor:
    """Parameters y [d] of one task: those of the representation in x [d+2], and the head that ridge regression finds.

    problem: one with `features` and `classes`; the last entries of x are log lam and log scale.
    """
    y, C = x[:-2], int(problem.classes)
    features = problem.features(y, support["input"])
    phi = pad(features, (0, 1), value=1.0).to(solving(x, o))
    log_lam, log_scale = x[-2:].to(phi.dtype)
    Y = (support["label"].unsqueeze(-1) == torch.arange(C, device=x.device)).to(phi.dtype)
    system = phi @ phi.mT + log_lam.exp() * torch.eye(len(phi), dtype=phi.dtype, device=x.device)
    W = log_scale.exp() * phi.mT @ torch.linalg.solve(system, Y)
    head = torch.cat([W[:-1].mT.flatten(), W[-1]]).to(x.dtype)
    return torch.cat([y[: len(y) - len(head)], head])


def solving(x: Tensor, o: Settings) -> torch.dtype:
    """In what precision small systems are solved: float64, or that of the run."""
    return torch.float64 if o["solve_dtype"] == "float64" else x.dtype


@method("r2d2")
class RidgeHead(Method):
    """x = (the problem's parameters, log lam, log scale); the head that stands in x is never used, and never moves.

    Reports lam and the scale of the logits.
    """

    reports = ("ridge", "scale")

    def parameters(self, x: Tensor) -> Tensor:
        """X without log lam and log scale."""
        return x[:-2]

    def adapt(self, tasks: TaskBatch, x: Tensor, o: Settings) -> Adapted:
        """The head by ridge regression on the shared features."""
        return Adapted(vmap(lambda support: ridge_head(tasks.problem, x, support, o))(tasks.tasks.support))

    def meta_gradient(self, tasks: TaskBatch, x: Tensor, o: Settings) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The gradient of the query loss through the solution and the features, [B, d+2]."""

        def loss(x: Tensor, support: Any, query: Any) -> Tensor:
            return tasks.problem.upper(x[:-2], ridge_head(tasks.problem, x, support, o), query).mean()

        gradient = torch.as_tensor(vmap(grad(loss), in_dims=(None, 0, 0))(x, tasks.tasks.support, tasks.tasks.query))
        learned = gradient.new_tensor([o["learn_ridge"], o["learn_scale"]])
        told = x[-2:].exp().expand(len(tasks), 2)
        return torch.cat([gradient[:, :-2], learned * gradient[:, -2:]], 1), (told[:, 0], told[:, 1])

    def passes(self, o: Settings) -> tuple[float, float]:
        """The features of the support set and the query loss, each differentiated once."""
        return 1.0, 1.0
