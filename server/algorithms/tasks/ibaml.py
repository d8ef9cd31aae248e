"""Implicit Bayesian meta-learning: the shared x is a Gaussian prior, its mean and its variances."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedbilevel.strict import MOST
from server.algorithms.tasks.imaml import ImplicitOptions
from server.kit.algorithm import Algorithm, algorithm
from server.kit.meta import MetaState, meta_algorithm


class Options(ImplicitOptions):
    """Options of `ibaml`."""

    inference: Annotated[
        Literal["map", "variational"],
        Field(description="posterior of a task: its mode with Laplace's variance, or a mean-field Gaussian"),
    ] = "map"
    initial_variance: Annotated[
        float, Field(ge=1e-12, le=1e12, description="s0: the prior's variances at the start (1/lam of imaml)")
    ] = 1.0
    learn_variance: Annotated[bool, Field(description="learn log s; false: the prior's variances stay")] = True
    temperature: Annotated[
        float,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="T: weight of the KL term against the mean support loss; 1/n is Bayes with n support examples",
        ),
    ] = 1.0
    samples: Annotated[
        int,
        Field(
            ge=2,
            le=MOST,
            multiple_of=2,
            description="draws of a variational posterior, in antithetic pairs; or probes of the Hessian's diagonal "
            "for Laplace's variance (exact from d on)",
        ),
    ] = 8


@algorithm(
    "ibaml",
    source="Zhang, Li, Gao & Giannakis, Scalable Bayesian Meta-Learning through Generalized Implicit "
    "Gradients, AAAI 2023",
    options=Options,
    lower="local",
    confirmed="implicit gradients in the prior's mean and variances",
    reading="fixed noise of the variational posterior; temperature",
)
def ibaml(o: Options) -> Algorithm[MetaState]:
    """Implicit gradients of a task's posterior in the prior's mean and log variances; 1 round, x = (mu, log s)."""

    def start(x: Tensor) -> Tensor:
        return torch.cat([x, torch.full_like(x, math.log(o.initial_variance))])

    return meta_algorithm("ibaml", o, start)
