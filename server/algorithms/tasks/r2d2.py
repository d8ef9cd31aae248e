"""R2D2: each task's head is a ridge regression on shared features, solved in closed form."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedbilevel.strict import Positive
from server.kit.algorithm import Algorithm, algorithm
from server.kit.meta import MetaState, SolveDtype, TaskOptions, meta_algorithm


class Options(TaskOptions):
    """Options of `r2d2`."""

    initial_ridge: Annotated[Positive, Field(description="lam of the ridge regression at the start")] = 1.0
    learn_ridge: Annotated[bool, Field(description="learn log lam with the other parameters; metric_ridge is lam")] = (
        True
    )
    initial_scale: Annotated[
        Positive, Field(description="what the regression's outputs are multiplied by to be logits, at the start")
    ] = 10.0
    learn_scale: Annotated[bool, Field(description="learn the logarithm of that scale; metric_scale is the scale")] = (
        True
    )
    solve_dtype: SolveDtype = "float64"

    def held(self, tasks: int, vector: float, support: float, query: float) -> float:
        """The features of both sets at one time."""
        return tasks * (support + query)


@algorithm(
    "r2d2",
    source="Bertinetto, Henriques, Torr & Vedaldi, Meta-Learning with Differentiable Closed-Form Solvers, ICLR 2019",
    options=Options,
    lower="local",
    needs="features",
    confirmed="ridge regression on features in closed form by an n x n system; lam and scale learned",
    reading="the bias is a feature that is penalised too; no common shift of the logits, which changes no probability",
)
def r2d2(o: Options) -> Algorithm[MetaState]:
    """A ridge regression as the head of every task, differentiated through its closed form; 1 round, no inner steps."""

    def start(x: Tensor) -> Tensor:
        return torch.cat([x, x.new_tensor([math.log(o.initial_ridge), math.log(o.initial_scale)])])

    return meta_algorithm("r2d2", o, start)
