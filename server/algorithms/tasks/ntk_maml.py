"""Kernel adaptation (Meta-RKHS-II): the gradient flow of each task's linearised network, in closed form."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from clients.methods.comln import initial_horizon
from fedbilevel.errors import BadInput
from fedbilevel.strict import Positive
from server.kit import options
from server.kit.algorithm import Algorithm, algorithm
from server.kit.meta import MetaOptions, MetaState, SolveDtype, TaskOptions, meta_algorithm


class KernelOptions(TaskOptions):
    """Options of the methods that adapt by the tangent kernel."""

    label_scale: Annotated[
        Positive, Field(description="what the squared loss on logits wants of the right class; 0 of the others")
    ] = 1.0
    jacobian_rows: Annotated[
        options.Count,
        Field(description="rows of Jacobians (outputs times parameters) that a worker holds at one time"),
    ] = 128
    solve_dtype: SolveDtype = "float64"

    def held(self, tasks: int, vector: float, support: float, query: float) -> float:
        """Rows of the Jacobian and of what it is multiplied by, with a part of what each keeps to be differentiated."""
        return self.jacobian_rows * (4 * vector + support / 2) + 2 * tasks * query


class Options(KernelOptions, MetaOptions):
    """Options of `ntk-maml`."""

    initial_horizon: Annotated[
        Positive | None, Field(description="T of the flow at the start; default: local_steps * lower_step")
    ] = None
    learn_horizon: Annotated[bool, Field(description="learn log T with the other parameters; metric_horizon is T")] = (
        True
    )


@algorithm(
    "ntk-maml",
    source="Zhou, Wang, Xian, Chen & Xu, Meta-Learning with Neural Tangent Kernels, ICLR 2021",
    options=Options,
    lower="local",
    needs="kind",
    confirmed="adaptation for a time T in closed form by the neural tangent kernel",
    reading="Meta-RKHS-II: squared loss on outputs to adapt, the problem's loss to judge; the gradient; a learned T",
)
def ntk_maml(o: Options) -> Algorithm[MetaState]:
    """The flow of each task's linearised network to the time T in closed form, by its tangent kernel; 1 round."""
    T = initial_horizon(o.settings())
    if T == 0.0:
        raise BadInput("options.initial_horizon", T, "a horizon above 0 (the default is local_steps * lower_step)")

    def start(x: Tensor) -> Tensor:
        return torch.cat([x, x.new_full((1,), math.log(T))])

    return meta_algorithm("ntk-maml", o, start)
