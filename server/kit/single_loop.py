"""What the single-loop methods share: their options, and a state that carries v = H^-1 fy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from fedbilevel.strict import Positive
from server.kit import options
from server.kit.algorithm import State


class SingleLoopOptions(options.UpperOptions):
    """Options of the methods that move x, y and v together."""

    lower_step: options.LowerStep = 0.1
    neumann_step: Annotated[
        options.Step | None, Field(description="eta_v: step size of v; default: the lower step")
    ] = None

    @property
    def steps(self) -> dict[str, float]:
        """The three steps, as operations take them."""
        eta_v = self.lower_step if self.neumann_step is None else self.neumann_step
        return {"upper_step": self.upper_step, "lower_step": self.lower_step, "neumann_step": eta_v}


class RadiusOptions(SingleLoopOptions):
    """Options of the methods that keep v in a ball."""

    radius: Annotated[
        Positive | None, Field(description="R: v is projected to |v| <= R after each step; default: it is not")
    ] = None

    def projected(self, v: Tensor) -> Tensor:
        """`Proj_{|v| <= R}(v)`."""
        if self.radius is None:
            return v
        size = float(v.norm())
        return v if size <= self.radius else v * (self.radius / size)


@dataclass(frozen=True)
class SingleLoopState(State):
    """v: the estimate of H^-1 fy, 0 at first."""

    v: Tensor | None = None


def single_loop_start(x: Tensor, y: Tensor) -> SingleLoopState:
    """(x0, y0, v = 0)."""
    return SingleLoopState(x, y, v=0 * y)
