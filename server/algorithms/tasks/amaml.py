"""A-MAML: the lower level is the gradient flow of each task, differentiated by its adjoint."""

from __future__ import annotations

import warnings
from typing import Annotated, Literal

from pydantic import Field

from fedbilevel.strict import Positive
from server.kit import options
from server.kit.algorithm import Algorithm, algorithm
from server.kit.meta import MetaOptions, MetaState, meta_algorithm


class FlowOptions(MetaOptions):
    """Options of the methods that run a gradient flow."""

    solver: Annotated[
        Literal["rk4", "euler", "midpoint", "dopri5"],
        Field(
            description="of the flow; dopri5 chooses its steps, the same for all tasks that a worker has at one time: "
            "up to rtol and atol the result depends on which these are"
        ),
    ] = "rk4"
    rtol: Annotated[Positive, Field(description="relative error of a step of dopri5")] = 1e-6
    atol: Annotated[Positive, Field(description="absolute error of a step of dopri5")] = 1e-8


class Options(FlowOptions):
    """Options of `a-maml`."""

    horizon: Annotated[Positive | None, Field(description="T of the flow; default: local_steps * lower_step")] = None
    ode_steps: Annotated[
        options.Count | None, Field(description="steps of the solver to T (not of dopri5); default: local_steps")
    ] = None
    adjoint: Annotated[
        Literal["stored", "backward"],
        Field(description="keep the forward states, or run them backwards (no memory, but unstable for long horizons)"),
    ] = "stored"

    unstable: Annotated[
        Literal["refuse", "report"],
        Field(
            description="steps too long for the curvature that the flow meets: end the run, and say which are stable; "
            "or go on, and report the share of tasks whose support loss grew (metric_unstable)"
        ),
    ] = "refuse"

    def kept(self) -> int:
        """The stored states, and the slopes where the sweep needs them."""
        steps = self.local_steps if self.ode_steps is None else self.ode_steps
        return 0 if self.adjoint == "backward" else (1 if self.solver == "euler" else 2) * (steps + 1)


@algorithm(
    "a-maml",
    source="Li, Wang, Narayan, Kirby & Zhe, Meta-Learning with Adjoint Methods, 2021",
    options=Options,
    lower="local",
    confirmed="the gradient flow and its adjoint ODE; Euler is maml",
    reading="forward states stored on the grid; Runge-Kutta's midpoints by Hermite",
)
def amaml(o: Options) -> Algorithm[MetaState]:
    """The adjoint of the gradient flow by Hessian products, no graph; 1 round, memory O(ODE steps)."""
    if o.adjoint == "backward":
        warnings.warn(
            'a-maml with adjoint = "backward" runs the flow backwards, which multiplies every error by '
            'exp(curvature * T): compare with adjoint = "stored" before you trust a long horizon',
            stacklevel=2,
        )
    return meta_algorithm("a-maml", o)
