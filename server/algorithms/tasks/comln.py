"""COMLN: each task adapts a linear softmax head by its gradient flow; the horizon of the flow is learned."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from clients.methods.comln import initial_horizon
from fedbilevel.errors import BadInput
from fedbilevel.strict import Positive
from server.algorithms.tasks.amaml import FlowOptions
from server.kit import options
from server.kit.algorithm import Algorithm, algorithm
from server.kit.meta import MetaState, meta_algorithm


class Options(FlowOptions):
    """Options of `comln`."""

    initial_horizon: Annotated[
        Positive | None, Field(description="T of the flow at the start; default: local_steps * lower_step")
    ] = None
    learn_horizon: Annotated[bool, Field(description="learn log T with the other parameters; metric_horizon is T")] = (
        True
    )
    ode_steps: Annotated[
        options.Count | None,
        Field(
            description="steps of the solver to the initial horizon (not of dopri5; default: local_steps); their "
            "length is kept as T changes"
        ),
    ] = None


@algorithm(
    "comln",
    source="Deleu et al., Continuous-Time Meta-Learning with Forward Mode Differentiation, ICLR 2022",
    options=Options,
    lower="local",
    needs="flow",
    confirmed="flow of the head in sample space, forward sensitivities, learned horizon",
)
def comln(o: Options) -> Algorithm[MetaState]:
    """Forward sensitivities of the head's gradient flow, whose horizon is learned; 1 round, memory flat in T."""
    T = initial_horizon(o.settings())
    if T == 0.0:
        raise BadInput("options.initial_horizon", T, "a horizon above 0 (the default is local_steps * lower_step)")

    def start(x: Tensor) -> Tensor:
        return torch.cat([x, x.new_full((1,), math.log(T))])

    return meta_algorithm("comln", o, start)
