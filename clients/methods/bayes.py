"""iBaML (Zhang et al., Scalable Bayesian Meta-Learning through Generalized Implicit Gradients, AAAI 2023).

The server learns a Gaussian prior N(mu, diag s), x = (mu, log s) [2d]; a client adapts to the posterior of a task. With
a temperature T the posterior minimises E_q L + T KL(q | prior), L the mean support loss. T = 1, the default, weighs the
support set as one example; T = 1/n gives the Bayesian posterior of n independent examples whose loss is their negative
log-likelihood. Below, p = T / s, so that a point estimate with T = 1 and s = 1/lam is iMAML's.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.func import vmap

from clients.methods.method import Adapted, Method, Settings, method
from clients.methods.proximal import Proximal, implicit, minimise, reports, support_passes
from clients.solvers.conjugate_gradients import Product
from clients.tasks import TaskBatch
from fedbilevel import randomness
from fedbilevel.derivatives import Level

LOG_VARIANCE = 30.0
"""Beyond plus or minus this log s counts as this, with the gradient there, so that it can come back."""


@functools.lru_cache(maxsize=8)
def noise(samples: int, dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The standard noise of the posterior's draws, [samples, dim]: the same for all tasks, clients and rounds.

    Antithetic pairs, scaled so that every coordinate has second moment 1: the mean over the draws of a quadratic with
    diagonal Hessian is exact.
    """
    drawn = randomness.generator(0, randomness.SERVER, 0, "noise of a posterior").standard_normal((samples // 2, dim))
    half = torch.from_numpy(drawn)
    half = half / (half * half).mean(0).sqrt()
    return torch.cat([half, -half]).to(dtype=dtype, device=device)


class Variational(Proximal):
    """`J(m, sigma) = E_q L + T KL(q | prior)`, q = N(m, diag sigma^2); z = (m, sigma) [B, 2d].

    E_q is the mean over the fixed draws m + sigma eps. In sigma, unlike in the variance, J is convex where L is
    (Challis & Barber, 2013), and a step size that is safe for L is safe here.
    """

    def __init__(self, tasks: TaskBatch, mean: Tensor, precision: Tensor, temperature: float, samples: int) -> None:
        super().__init__(tasks, mean, precision)
        self.temperature = temperature
        self.eps = noise(samples, mean.shape[-1], mean.dtype, mean.device)[:, None]

    def start(self) -> Tensor:
        """The prior."""
        return torch.cat([self.x, (self.temperature / self.precision).sqrt().expand_as(self.x)], -1)

    def _mean(self, per_draw: Tensor) -> Tensor:
        """E_q of vectors in y [samples, B, d] as vectors in (m, sigma) [B, 2d]."""
        return torch.cat([per_draw.mean(0), (self.eps * per_draw).mean(0)], -1)

    def _draws(self, z: Tensor) -> Tensor:
        m, sigma = z.chunk(2, -1)
        return m + self.eps * sigma

    def loss(self, level: Level, z: Tensor) -> Tensor:
        """`E_q L` or `E_q f`."""
        return vmap(lambda y: self.tasks.losses(level, y))(self._draws(z)).mean(0)

    def slope(self, level: Level, z: Tensor) -> Tensor:
        """`E grad`, `E eps grad`."""
        return self._mean(vmap(lambda y: self.tasks.gradient(level, y))(self._draws(z)))

    def hessian(self, z: Tensor) -> Product:
        """`E H w`, `E eps H w` with w = v_m + eps v_sigma."""
        product = self.tasks.hessian(self._draws(z))
        return lambda v: self._mean(product(self._draws(v)))

    def penalty(self, z: Tensor) -> Tensor:
        """`T KL`, but for a constant; NaN where a sigma is negative."""
        m, sigma = z.chunk(2, -1)
        quadratic = 0.5 * self.precision * ((m - self.x) ** 2 + sigma**2)
        return (quadratic - self.temperature * sigma.log()).sum(-1)

    def pull(self, z: Tensor) -> Tensor:
        """`p (m - mu)`, `p sigma - T / sigma`."""
        m, sigma = z.chunk(2, -1)
        return torch.cat([super().pull(m), self.precision * sigma - self.temperature / sigma], -1)

    def curvature(self, z: Tensor) -> Tensor:
        """`p`, `p + T / sigma^2`."""
        m, sigma = z.chunk(2, -1)
        return torch.cat([self.precision.expand_as(m), self.precision + self.temperature / sigma**2], -1)

    def step(self, z: Tensor, length: float) -> Tensor:
        """In sigma the positive root of (1 + length p) w^2 - sigma w - length T = 0, without cancellation."""
        m, sigma = z.chunk(2, -1)
        a, c = 1 + length * self.precision, length * self.temperature
        large = sigma.abs() + (sigma**2 + 4 * a * c).sqrt()
        return torch.cat([super().step(m, length), torch.where(sigma >= 0, large / (2 * a), 2 * c / large)], -1)


def diagonal(tasks: TaskBatch, y: Tensor, samples: int) -> Tensor:
    """The diagonal of Hess L(y), [B, d]: exact by unit vectors where samples >= d.

    Else by Hutchinson's estimate with `samples` fixed Rademacher probes; negative entries count as 0.
    """
    dim = y.shape[-1]
    probes = torch.eye(dim).to(y) if samples >= dim else noise(2 * samples, dim, y.dtype, y.device)[:samples].sign()
    products = vmap(lambda v: tasks.hvp(y, v))(probes[:, None].expand(-1, *y.shape))
    return ((probes[:, None] * products).sum(0) / (1 if samples >= dim else samples)).clamp_min(0)


@method("ibaml")
class ImplicitBayes(Method):
    """`inference` "map": y = argmin L + 1/2 sum p (y - mu)^2, Laplace variance T / (diag Hess L + p).

    "variational": q of `Variational`. Both differentiate the query loss implicitly in mu and log s: at y, or E_q f with
    the draws of E_q L. Reported: as iMAML.
    """

    reports = ("negative_curvature", "cg_residual")

    def parameters(self, x: Tensor) -> Tensor:
        """`mu`."""
        return x.chunk(2, -1)[0]

    def _objective(self, tasks: TaskBatch, x: Tensor, o: Settings) -> Proximal:
        mu, log_variance = x.chunk(2, -1)
        precision = o["temperature"] * torch.exp(-log_variance.clamp(-LOG_VARIANCE, LOG_VARIANCE))
        if o["inference"] == "map":
            return Proximal(tasks, mu, precision)
        return Variational(tasks, mu, precision, o["temperature"], o["samples"])

    def adapt(self, tasks: TaskBatch, x: Tensor, o: Settings) -> Adapted:
        """The posterior's mean and variance."""
        objective = self._objective(tasks, x, o)
        z = minimise(objective, o)
        if isinstance(objective, Variational):
            m, sigma = z.chunk(2, -1)
            return Adapted(m, sigma**2)
        return Adapted(z, o["temperature"] / (diagonal(tasks, z, o["samples"]) + objective.precision))

    def meta_gradient(self, tasks: TaskBatch, x: Tensor, o: Settings) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`u = (Hess J)^-1 grad f`; `p u_m` in mu, `p (u_m (m - mu) + u_sigma sigma)` in log s, [B, 2d]."""
        objective = self._objective(tasks, x, o)
        z = minimise(objective, o)
        found = implicit(objective, z, objective.slope("upper", z), o)
        d = objective.x.shape[-1]
        in_mean = objective.precision * found.u[:, :d]
        if not o["learn_variance"]:
            in_variance = torch.zeros_like(in_mean)
        else:
            in_variance = in_mean * (z[:, :d] - objective.x)
            if isinstance(objective, Variational):
                in_variance = in_variance + objective.precision * found.u[:, d:] * z[:, d:]
        return torch.cat([in_mean, in_variance], -1), reports(found)

    def passes(self, o: Settings) -> tuple[float, float]:
        """As iMAML, once per draw."""
        draws = float(o["samples"]) if o["inference"] == "variational" else 1.0
        return draws * support_passes(o), draws
