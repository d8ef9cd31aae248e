"""The functions of the tangent kernel by which methods adapt: the gradient flow to a time T, and ridge regression."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clients.methods.kernel import Kernel, Spectrum
from clients.methods.method import Settings, method
from clients.tasks import TaskBatch


@method("ntk-maml")
class TangentKernel(Kernel):
    """The gradient flow to the time T. x = (the problem's parameters, log T). Reports T too."""

    reports = ("query_loss", "horizon")

    def parameters(self, x: Tensor) -> Tensor:
        """X without log T."""
        return x[:-1]

    def spectrum(self, w: Tensor, x: Tensor, o: Settings) -> Spectrum:
        """`phi(w) = (1 - exp(-w T)) / w`, T at w = 0; `dphi/dT = exp(-w T)`."""
        T = x[-1].exp()
        return Spectrum(flow(w, T), divided(w, T), T * (-w * T).exp() * float(o["learn_horizon"]))

    def meta_gradient(self, tasks: TaskBatch, x: Tensor, o: Settings) -> tuple[Tensor, tuple[Tensor, ...]]:
        """In the parameters and log T."""
        gradient, (loss,) = super().meta_gradient(tasks, x, o)
        return gradient, (loss, x[-1].exp().expand(len(tasks)))


@method("kernel-maml")
class RidgeKernel(Kernel):
    """The minimum with a pull lam |y - x|^2 / 2."""

    def spectrum(self, w: Tensor, x: Tensor, o: Settings) -> Spectrum:
        """`phi(w) = 1 / (w + lam)`, whose divided differences are `-phi(w_i) phi(w_j)`."""
        phi = 1.0 / (w + o["proximal"])
        return Spectrum(phi, -torch.outer(phi, phi), torch.zeros_like(w))


def flow(w: Tensor, T: Tensor) -> Tensor:
    """`(1 - exp(-w T)) / w`, and T at w = 0."""
    small = w * T == 0
    return torch.where(small, T, -torch.expm1(-w * T) / torch.where(small, 1.0, w))


def divided(w: Tensor, T: Tensor) -> Tensor:
    """The divided differences of `flow` [k, k]; near the diagonal its derivative halfway."""
    phi = flow(w, T)
    gap, middle = w[:, None] - w, (w[:, None] + w) / 2
    z = middle * T
    # (exp(-z) (1 + z) - 1) / z^2, by its series where that cancels
    series = sum((-1) ** (k - 1) * (k - 1) / math.factorial(k) * z ** (k - 2) for k in range(2, 14))
    exact = (torch.exp(-z) * (1 + z) - 1) / torch.where(z < 0.2, 1.0, z * z)
    near = T * T * torch.where(z < 0.2, series, exact)
    close = gap.abs() * T <= torch.finfo(w.dtype).eps ** (1 / 3) * (1 + z)
    return torch.where(close, near, (phi[:, None] - phi) / torch.where(close, 1.0, gap))
