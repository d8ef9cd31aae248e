"""Stochastic bilevel optimisation on tasks: the lower solution is a distribution, sampled by Langevin chains."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.func import vmap

from clients.methods.method import Adapted, Method, Settings, method
from clients.tasks import TaskBatch

TOGETHER = 1 << 22
"""The most numbers of points that are differentiated at one time, but for one sample of every task."""


@method("stochastic-bilevel")
class Langevin(Method):
    """p(y|x) ~ exp(-g(x, y)/T) for `g = L(y) + (lam_p/2) |y - x|^2`: S chains of K steps from x, whose ends count.

    First order: neither L nor f is differentiated twice, nor anything inverted.
    """

    def adapt(self, tasks: TaskBatch, x: Tensor, o: Settings) -> Adapted:
        """The mean and the variance of the samples."""
        y = chains(tasks, x, o)
        return Adapted(y.mean(0), y.var(0))

    def meta_gradient(self, tasks: TaskBatch, x: Tensor, o: Settings) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`-Cov(f, gx)/T = lam_p Cov(f, y)/T`, as `gx = -lam_p (y - x)` and f does not depend on x itself."""
        y = chains(tasks, x, o)
        f = vmap(lambda y: tasks.losses("upper", y), chunk_size=_samples_together(y))(y)
        return o["proximal"] / o["temperature"] * covariance(f, y), ()

    def passes(self, o: Settings) -> tuple[float, float]:
        """K gradients of every chain; of f only values are taken."""
        return float(o["lower_rounds"] * o["samples"]), 0.0


def chains(tasks: TaskBatch, x: Tensor, o: Settings) -> Tensor:
    """`y -= eta gy - sqrt(2 eta T) xi`: the last points [S, B, d]. The numbers xi are each task's own."""
    eta, draws = o["lower_step"], tasks.generators("langevin")
    y = tasks.spread(x).expand(o["samples"], -1, -1)
    for _ in range(o["lower_rounds"]):
        xi = torch.stack(
            [torch.randn(len(y), y.shape[-1], generator=each, dtype=torch.float64) for each in draws], 1
        ).to(y)
        gy = vmap(lambda y: tasks.gradient("lower", y), chunk_size=_samples_together(y))(y) + o["proximal"] * (y - x)
        y = y - eta * gy + math.sqrt(2 * eta * o["temperature"]) * xi
    return y


def _samples_together(y: Tensor) -> int:
    """Of samples y [S, B, d]."""
    return max(1, TOGETHER // y[0].numel())


def covariance(f: Tensor, g: Tensor) -> Tensor:
    """The unbiased covariance of samples f [S, ...] with samples g [S, ..., d], [..., d]."""
    return ((f - f.mean(0)).unsqueeze(-1) * (g - g.mean(0))).sum(0) / (len(f) - 1)
