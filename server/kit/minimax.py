"""What the methods of minimax problems share: the steps of x and of y along the field F(z) = (fx, -fy)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from server.kit import options


class FieldOptions(options.Options):
    """The two steps eta of z = (x, y)."""

    upper_step: options.UpperStep = 0.1
    lower_step: Annotated[
        options.Step | None, Field(description="eta of y: its step size; default: the upper step")
    ] = None

    @property
    def steps(self) -> dict[str, float]:
        """The two steps, as operations take them."""
        return {"upper_step": self.upper_step, "lower_step": self.eta_y}

    @property
    def eta_y(self) -> float:
        """The step of y."""
        return self.upper_step if self.lower_step is None else self.lower_step


class MinimaxOptions(FieldOptions, options.UpperOptions):
    """Options of the methods whose x step the server can make in several ways; that of y is plain."""
