"""COMLN: the gradient flow of a linear softmax head, with its sensitivities, in one forward solve (Deleu et al., 2022).

In sample space the weights of a task with features Phi [n, w] (a last one is the constant 1, for the bias) and labels Y
[n, C] are W(t) = W0 - S(t)' Phi / n, where S(0) = 0 and dS/dt = softmax(z0 - G S / n) - Y with z0 = Phi W0' and
G = Phi Phi'. U = dS/dz0 and V = dS/dG obey linear equations driven by the softmax's Jacobian, and are run beside S: the
state [n, C, 1 + n C + n n] does not grow with the horizon T, which is learned as log T.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp, vmap
from torch.nn.functional import cross_entropy, one_hot, pad

from clients.methods.method import Adapted, Method, Settings, method
from clients.solvers.flow import MOST_STEPS, solve
from clients.solvers.stability import UnstableFlow, refuse
from clients.tasks import TaskBatch


def initial_horizon(o: Settings) -> float:
    """T at the start: as given, or that of K gradient steps."""
    given = o.get("initial_horizon")
    return float(o["local_steps"] * o["lower_step"] if given is None else given)


def _grid_steps(o: Settings, T: float) -> int:
    """Steps of the length that `ode_steps` steps have at the initial horizon, whatever T has become."""
    given = o.get("ode_steps")
    steps = (o["local_steps"] if given is None else given) * T / initial_horizon(o)
    if not steps <= MOST_STEPS:
        raise UnstableFlow(
            f"the learned horizon T = {T:.4g} takes more than {MOST_STEPS} steps; take a smaller upper_step"
        )
    return max(1, math.ceil(float(steps) - 1e-6))


class _Head:
    """The head of B tasks at the parameters y0 [d] of representation and head: Phi [B, n, w+1], W0 [C, w+1], G, z0."""

    def __init__(self, tasks: TaskBatch, y0: Tensor) -> None:
        self.tasks, self.y0 = tasks, y0
        problem: Any = tasks.problem  # one with `features` and `classes`
        self.inputs, self.label = (tasks.tasks.support[name] for name in ("input", "label"))
        self.features, self.classes = problem.features, int(problem.classes)
        features = vmap(lambda inputs: self.features(y0, inputs))(self.inputs)
        self.n, self.width = features.shape[1:]
        self.phi = pad(features, (0, 1), value=1.0)
        self.W0 = self.weights(y0)
        self.Y = one_hot(self.label.long(), self.classes).to(y0.dtype)
        self.G = self.phi @ self.phi.mT
        self.z0 = self.phi @ self.W0.mT

    def weights(self, y: Tensor) -> Tensor:
        """Weight and bias out of parameters [..., d], [..., C, w+1]."""
        C, w = self.classes, self.width
        weight, bias = y[..., -C * (w + 1) : -C], y[..., -C:]
        return torch.cat([weight.unflatten(-1, (C, w)), bias.unsqueeze(-1)], -1)

    def with_head(self, body: Tensor, W: Tensor) -> Tensor:
        """Parameters [B, d]: those of `body` [B, d], with the head W [B, C, w+1] in place of theirs."""
        rest = body[:, : body.shape[1] - self.classes * (self.width + 1)]
        return torch.cat([rest, W[..., :-1].flatten(1), W[..., -1]], 1)

    def adapted(self, S: Tensor) -> Tensor:
        """y(T) [B, d]."""
        return self.with_head(self.tasks.spread(self.y0), self.W0 - S.mT @ self.phi / self.n)

    def rate(self, t: Tensor, X: Tensor) -> Tensor:
        """d/dt of X [B, n, C, 1 (+ n C + n n)]: S, and behind it U and V."""
        n, C = self.n, self.classes
        M = (self.G @ X.flatten(2)).view_as(X).div_(-n)
        p = torch.softmax(self.z0 + M[..., 0], -1)
        if X.shape[-1] > 1:
            M[..., 1 : 1 + n * C] += torch.eye(n * C, dtype=X.dtype, device=X.device).view(n, C, n * C)
            dG = M[..., 1 + n * C :].unflatten(-1, (n, n)).diagonal(dim1=1, dim2=3)  # [B, C, j, i]
            dG -= X[..., 0].mT.unsqueeze(-1) / n
            M = p.unsqueeze(-1) * (M - p.unsqueeze(2) @ M)
        M[..., 0] = p - self.Y
        return M

    def run(self, T: float, o: Settings, sensitivities: bool) -> Tensor:
        """X(T). Raises UnstableFlow if the steps are too long for the curvature, at most |G| / 2n."""
        steps = _grid_steps(o, T)
        n, C = self.n, self.classes
        start = self.phi.new_zeros(len(self.phi), n, C, 1 + (n * C + n * n) * sensitivities)
        end = solve(self.rate, start, 0.0, T, o, steps)
        z = self.z0 - self.G @ end[..., 0] / n
        before, after = (cross_entropy(z.mT, self.label.long(), reduction="none").mean(1) for z in (self.z0, z))
        if o["solver"] != "dopri5" and not bool((after <= before * (1 + 1e-6)).all()):
            largest = float(torch.linalg.eigvalsh(self.G)[:, -1].max()) / (2 * n)
            refuse(T / steps, o["solver"], largest, finite=bool(torch.isfinite(after).all()))
        return end


@method("comln")
class Comln(Method):
    """x = (the problem's parameters, log T); a task adapts its head, on the mean cross-entropy of its support set."""

    reports = ("horizon",)

    def parameters(self, x: Tensor) -> Tensor:
        """X without log T."""
        return x[:-1]

    def adapt(self, tasks: TaskBatch, x: Tensor, o: Settings) -> Adapted:
        """The head at T on the shared features."""
        head = _Head(tasks, x[:-1])
        return Adapted(head.adapted(head.run(_horizon(x), o, sensitivities=False)[..., 0]))

    def meta_gradient(self, tasks: TaskBatch, x: Tensor, o: Settings) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The gradient in the representation, the head's start and log T; reports T."""
        T, head = _horizon(x), _Head(tasks, x[:-1])
        B, n, C, phi = len(tasks), head.n, head.classes, head.phi
        X = head.run(T, o, sensitivities=True)
        S = X[..., 0]
        direct = tasks.gradient("upper", head.adapted(S))
        of_W = head.weights(direct)
        of_S = -(phi @ of_W.mT) / n
        of_z0 = torch.einsum("bkc,bkcp->bp", of_S, X[..., 1 : 1 + n * C]).view(B, n, C)
        of_G = torch.einsum("bkc,bkcp->bp", of_S, X[..., 1 + n * C :]).view(B, n, n)
        of_phi = of_z0 @ head.W0 - S @ of_W / n + (of_G + of_G.mT) @ phi

        def pull(inputs: Tensor, cotangent: Tensor) -> Tensor:
            return torch.as_tensor(vjp(lambda y: head.features(y, inputs), x[:-1])[1](cotangent)[0])

        through = direct + vmap(pull)(head.inputs, of_phi[..., :-1])
        speed = (of_S * head.rate(phi, S.unsqueeze(-1))[..., 0]).sum((1, 2))  # dF/dT = -<grad L, grad f>
        of_log_T = (T if o["learn_horizon"] else 0.0) * speed
        gradient = head.with_head(through, of_W + of_z0.mT @ phi)
        return torch.cat([gradient, of_log_T[:, None]], 1), (torch.full_like(speed, T),)

    def passes(self, o: Settings) -> tuple[float, float]:
        """The features, and their product with what comes back: the flow itself meets no example, only G."""
        return 2.0, 1.0


def _horizon(x: Tensor) -> float:
    return float(x[-1].exp())
