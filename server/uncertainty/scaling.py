"""Temperatures that tasks of training choose by the negative log-likelihood of their queries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from scipy.optimize import brentq

from clients.methods.method import Adapted
from server.kit.predictive import Classes, Predictive

WIDEST = math.log(1e3)
"""The most that the logarithm of a temperature may be away from 0."""
FACTORS = tuple(10.0 ** (k / 2) for k in range(-8, 9))
"""Multiples of a posterior's variance to choose from."""


def fitted_temperature(predictive: Predictive) -> float:
    """The temperature at which `predictive.scaled` has the least mean negative log-likelihood.

    Of classes (Guo et al., ICML 2017) it is convex in b = 1/temperature: its slope E_{p^b} log p - log p_label, which
    ascends, is 0. Of normal distributions the temperature is the mean of (label - mean)^2 / variance. Between 1/1000
    and 1000.
    """
    if not isinstance(predictive, Classes):
        found = float(((predictive.label - predictive.mean).square() / predictive.variance).double().mean())
        return min(max(found, math.exp(-WIDEST)), math.exp(WIDEST))
    log_p, label = predictive.log_p.double(), predictive.label
    of_label = float(log_p.gather(-1, label.unsqueeze(-1)).mean())

    def slope(log_b: float) -> float:
        p = (log_p * math.exp(log_b)).softmax(-1)
        return float((p * log_p).nan_to_num().sum(-1).mean()) - of_label

    if slope(-WIDEST) >= 0:
        return math.exp(WIDEST)
    if slope(WIDEST) <= 0:
        return math.exp(-WIDEST)
    return math.exp(-float(brentq(slope, -WIDEST, WIDEST, xtol=1e-10)))


def tempered(adapted: Adapted, factor: float) -> Adapted:
    """The posterior with its variance multiplied.

    Of `ibaml` with `inference = "map"` that is the posterior at `factor` times the temperature and the prior variances,
    which leave the mode, and so the whole training, where they are.
    """
    return replace(adapted, variance=None if adapted.variance is None else adapted.variance * factor)


def chosen_factor(predictives: Sequence[Predictive], factors: Sequence[float] = FACTORS) -> float:
    """The factor whose predictive distributions, one for each factor, have the least negative log-likelihood."""
    costs = [float(each.nll.double().mean()) for each in predictives]
    return factors[min(range(len(factors)), key=lambda k: (not math.isfinite(costs[k]), costs[k]))]
