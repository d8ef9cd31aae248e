"""Implicit MAML: the lower level holds a task's parameters near the shared ones; its gradient is the implicit one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from server.kit import options
from server.kit.algorithm import Algorithm, algorithm
from server.kit.meta import MetaOptions, MetaState, meta_algorithm


class ImplicitOptions(MetaOptions):
    """Options of the implicit methods."""

    local_steps: Annotated[options.Count, Field(description="K: steps of the inner solver on a task")] = 16
    inner_solver: Annotated[
        Literal["gd", "momentum", "newton"],
        Field(
            description="of a task: gd, with step 1/(1/beta + prior precision) (proximal gradient); momentum, the same "
            "with Nesterov's 0.9; newton, Newton-CG with safeguarded steps (no beta)"
        ),
    ] = "gd"
    cg_steps: Annotated[
        options.Count,
        Field(
            description="most conjugate gradient steps of a linear system; for networks two or three are often better "
            "than many, which follow nearly singular directions far"
        ),
    ] = 10
    cg_tolerance: Annotated[
        float, Field(gt=0, lt=1, description="relative residual at which a task's linear system is solved")
    ] = 1e-10
    damping: Annotated[
        float,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="multiple of the prior precision added to a task's Hessian that has negative curvature, "
            "doubled up to 2^9 times it; then the task is left out. metric_negative_curvature: the share of such tasks",
        ),
    ] = 1.0


class Options(ImplicitOptions):
    """Options of `imaml`."""

    proximal: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="lam: weight of |y - x|^2 / 2 in the lower level")
    ] = 1.0


@algorithm(
    "imaml",
    source="Rajeswaran, Finn, Kakade & Levine, Meta-Learning with Implicit Gradients, NeurIPS 2019",
    options=Options,
    lower="local",
    confirmed="(I + H/lam)^-1 grad f by conjugate gradients at the proximal solution",
    reading="damping and report of negative curvature",
)
def imaml(o: Options) -> Algorithm[MetaState]:
    """Implicit gradient of a proximal lower level by conjugate gradients; 1 round, memory independent of K."""
    return meta_algorithm("imaml", o)
