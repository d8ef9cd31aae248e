"""How the server steps along a direction: its optimiser, the schedule of its step, and weight decay.

Whatever an algorithm does to find the direction h of its x step, `upper_optimiser` says what is done with it.
torch.optim has most of these; its moments are changed in place, where a state is frozen, and its last bits differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from server.kit.options import UpperOptions
from server.kit.spectral import Block, lengths, stepped

OPTIMISERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "sgd": ("x - alpha h", ()),
    "momentum": ("m = b1 m + h, x - alpha m (Polyak's heavy ball)", ("upper_beta1",)),
    "adam": (
        "m and s = b2 s + (1 - b2) h^2, without bias (Kingma & Ba, ICLR 2015)",
        ("upper_beta1", "upper_beta2", "upper_epsilon"),
    ),
    "adamomentum": (
        "as adam with s = b2 s + (1 - b2) m^2 + eps (AdaMomentum: Wang et al., 2021; our reading)",
        ("upper_beta1", "upper_beta2", "upper_epsilon"),
    ),
    "yogi": (
        "as adam with s - (1 - b2) sign(s - h^2) h^2 (Reddi et al., ICLR 2021)",
        ("upper_beta1", "upper_beta2", "upper_epsilon"),
    ),
    "spectral": (
        "m as adam; W_j - min(alpha n_j, rho |W_j(x0)|_2) Q_j for each matrix of x, Q_j the polar factor of m's and "
        "n_j its nuclear norm (after Muon: Jordan et al., 2024); of a vector Q = m / |m|, or, with upper_vectors "
        "adam, its entries step by rho rms(x0) m / (sqrt(s) + eps)",
        ("upper_beta1", "upper_limit", "upper_vectors"),
    ),
}
"""Every `upper_optimiser`: its step in a line, and the options that it reads beside upper_step."""
SCHEDULES: dict[str, tuple[str, tuple[str, ...]]] = {
    "constant": ("alpha", ()),
    "halving": ("alpha 2^(-t/k) after t steps, k = upper_period", ("upper_period",)),
    "cosine": ("alpha (1 + cos(pi min(t/k, 1)))/2 after t steps, k = upper_period", ("upper_period",)),
    "inverse_sqrt": ("alpha (1 + t/k)^(-1/2) after t steps, k = upper_period", ("upper_period",)),
    "inverse": ("alpha / (1 + t/k) after t steps, k = upper_period", ("upper_period",)),
}
"""Every `upper_schedule`, likewise."""


@dataclass(frozen=True)
class Moments:
    """first, second: m and s, None before the first step; steps: how many were made.

    lengths: of the spectral step, the spectral norms of the matrices of x before the first one.
    """

    first: Tensor | None = None
    second: Tensor | None = None
    steps: int = 0
    lengths: tuple[float, ...] | None = None


def plain(o: UpperOptions) -> bool:
    """Whether the server's step is x - alpha h and nothing else."""
    return o.upper_optimiser == "sgd" and o.upper_schedule == "constant" and o.upper_weight_decay == 0.0


def scheduled(o: UpperOptions, t: int) -> float:
    """The factor of alpha after t steps: 1, 2^(-t/k), (1 + cos(pi min(t/k, 1)))/2, (1 + t/k)^(-1/2) or (1 + t/k)^-1.

    k is the period.

    >>> from server.kit.options import UpperOptions
    >>> halving = UpperOptions(upper_schedule="halving", upper_period=10)
    >>> [scheduled(halving, t) for t in (0, 10, 20)]
    [1.0, 0.5, 0.25]
    """
    k = o.upper_period or (100 if o.upper_schedule == "inverse" else 1)
    if o.upper_schedule == "halving":
        return float(2.0 ** (-t / k))
    if o.upper_schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * min(t / k, 1.0)))
    if o.upper_schedule == "inverse":
        return 1.0 / (1.0 + t / k)
    return (1.0 + t / k) ** -0.5 if o.upper_schedule == "inverse_sqrt" else 1.0


def moved(
    x: Tensor, h: Tensor, moments: Moments, o: UpperOptions, layout: Sequence[Block] | None = None
) -> tuple[Tensor, Moments]:
    """One step from x along h [dx each]: the next x, and the moments after it.

    b1, b2 = upper_beta1, upper_beta2; eps = upper_epsilon; alpha = upper_step, by the schedule; rho = upper_limit.
    layout: the matrices of x, for the spectral step; default: x is one vector.
    """
    share = scheduled(o, moments.steps)
    alpha = o.upper_step * share
    direction, after = _direction(h, moments, o)
    if o.upper_optimiser == "spectral":  # W_j -= min(alpha n_j, rho |W_j(x0)|_2) Q_j; a schedule scales both
        layout = layout or [Block(0, len(x), 1)]
        entries = _by_root(direction, after, o) if o.upper_vectors == "adam" else None
        held = moments.lengths or lengths(x, layout, entries=entries is not None)
        after = replace(after, lengths=held)
        x_next = stepped(x, direction, layout, [o.upper_limit * each for each in held], o.upper_step, share, entries)
    else:
        x_next = x - alpha * direction
    if o.upper_weight_decay > 0.0:  # decoupled: Loshchilov & Hutter, ICLR 2019
        x_next = x_next - alpha * o.upper_weight_decay * x
    return x_next, after


def _direction(h: Tensor, moments: Moments, o: UpperOptions) -> tuple[Tensor, Moments]:
    b1, b2, eps, t = o.upper_beta1, o.upper_beta2, o.upper_epsilon, moments.steps + 1
    m = torch.zeros_like(h) if moments.first is None else moments.first
    s = torch.zeros_like(h) if moments.second is None else moments.second
    if o.upper_optimiser == "sgd":
        return h, Moments(steps=t)
    if o.upper_optimiser == "momentum":  # m = b1 m + h (Polyak's heavy ball)
        m = b1 * m + h
        return m, Moments(m, None, t)
    m = b1 * m + _rest(b1) * h
    if o.upper_optimiser == "spectral" and o.upper_vectors == "gradient":
        return m / (1 - b1**t), Moments(m, None, t)
    if o.upper_optimiser in ("adam", "spectral"):  # s = b2 s + (1-b2) h^2 (Kingma & Ba, ICLR 2015)
        s = b2 * s + _rest(b2) * h * h
    elif o.upper_optimiser == "yogi":  # s = s - (1-b2) sign(s - h^2) h^2 (Reddi et al., ICLR 2021)
        s = s - _rest(b2) * torch.sign(s - h * h) * h * h
    else:  # s = b2 s + (1-b2) m^2 + eps: the momentum is squared (AdaMomentum: Wang et al., 2021; our reading)
        s = b2 * s + _rest(b2) * m * m + eps
        return (m / (1 - b1**t)) / (s / (1 - b2**t)).sqrt(), Moments(m, s, t)
    after = Moments(m, s, t)
    return (m / (1 - b1**t)) if o.upper_optimiser == "spectral" else _by_root(m / (1 - b1**t), after, o), after


def _by_root(m: Tensor, moments: Moments, o: UpperOptions) -> Tensor:
    """Adam's direction: m without bias over the root of s without bias."""
    s = torch.as_tensor(moments.second) / (1 - o.upper_beta2**moments.steps)
    return torch.as_tensor(m / (s.sqrt() + o.upper_epsilon))


def _rest(b: float) -> float:
    """1 - b in decimals: 0.1 for 0.9, where binary subtraction gives 0.09999999999999998.

    >>> _rest(0.999)
    0.001
    """
    return float(1 - Fraction(repr(b)))
