"""What adapted models say of the query sets of some tasks, as distributions: of a class, or of a point of a curve.

A method with a posterior N(y, diag variance) predicts by draws of it, the same standard normal numbers for every task;
any other by the point that it adapted to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap

from clients.methods.method import Adapted
from clients.tasks import TaskBatch
from fedbilevel.tasks import is_local

SAMPLES = 10
NOISE = 0.5
"""Variance of a label around the curve where the problem has no `noise_variance`: the one for which the squared error
is a negative log-likelihood but for a constant."""


@dataclass(frozen=True)
class Classes:
    """log_p [B, q, classes]: of each class; label [B, q]."""

    log_p: Tensor
    label: Tensor

    @property
    def nll(self) -> Tensor:
        """The negative log-likelihood of the label, [B, q]."""
        return -self.log_p.gather(-1, self.label.unsqueeze(-1)).squeeze(-1)

    def scaled(self, temperature: float) -> Classes:
        """`p^(1/temperature)`, normalised: the logits divided by the temperature."""
        return Classes((self.log_p / temperature).log_softmax(-1), self.label)


@dataclass(frozen=True)
class Curves:
    """Normal distributions of the label [B, q]: mean and variance [B, q]."""

    mean: Tensor
    variance: Tensor
    label: Tensor

    @property
    def nll(self) -> Tensor:
        """The negative log-likelihood of the label, [B, q]."""
        return 0.5 * ((self.mean - self.label).square() / self.variance + (2 * math.pi * self.variance).log())

    def scaled(self, temperature: float) -> Curves:
        """`p^(1/temperature)`, normalised: the variance times the temperature."""
        return Curves(self.mean, self.variance * temperature, self.label)


Predictive = Classes | Curves


def predict(batch: TaskBatch, adapted: Adapted, samples: int = SAMPLES) -> Predictive:
    """Of a problem with a kind: the mean of the draws' probabilities, or the moments of the draws and of the noise."""
    problem = batch.problem
    assert is_local(problem)
    outputs, label = predictions(batch, adapted, samples), batch.examples["upper"]["label"]
    if problem.kind == "regression":
        noise = getattr(problem, "noise_variance", 0.0) or NOISE
        return Curves(outputs.mean(0), outputs.var(0, correction=0) + noise, label)
    return Classes(outputs.log_softmax(-1).logsumexp(0) - math.log(len(outputs)), label)


def predictions(batch: TaskBatch, adapted: Adapted, samples: int) -> Tensor:
    """Outputs for the query sets, [samples, B, q] or [samples, B, q, classes]; one sample without a posterior."""
    problem, query = batch.problem, batch.examples["upper"]
    assert is_local(problem)
    if adapted.variance is None:
        return adapted.outputs(batch, "upper").unsqueeze(0)
    size = (samples, adapted.y.shape[-1])
    noise = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(adapted.y)
    deviation = adapted.variance.sqrt()
    return torch.stack([vmap(problem.outputs)(adapted.y + deviation * each, query) for each in noise])


def mixture(members: Sequence[Predictive]) -> Predictive:
    """An ensemble (Lakshminarayanan, Pritzel & Blundell, NeurIPS 2017): members of the same tasks, each weighing alike.

    Of classes the mean of the probabilities; of curves the normal distribution with the mixture's mean and variance.
    """
    label = members[0].label
    if isinstance(members[0], Classes):
        log_p = torch.stack([each.log_p for each in members if isinstance(each, Classes)])
        return Classes(log_p.logsumexp(0) - math.log(len(log_p)), label)
    curves = [each for each in members if isinstance(each, Curves)]
    mean, variance = (torch.stack(parts) for parts in zip(*((c.mean, c.variance) for c in curves), strict=True))
    return Curves(mean.mean(0), variance.mean(0) + mean.var(0, correction=0), label)


def joined(parts: Sequence[Predictive]) -> Predictive:
    """Those of some tasks and of others, as one."""
    label = torch.cat([each.label for each in parts])
    if isinstance(parts[0], Classes):
        return Classes(torch.cat([each.log_p for each in parts if isinstance(each, Classes)]), label)
    curves = [each for each in parts if isinstance(each, Curves)]
    return Curves(torch.cat([c.mean for c in curves]), torch.cat([c.variance for c in curves]), label)
