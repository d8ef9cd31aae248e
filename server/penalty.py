"""Options that the penalty methods share: lam, and the two lower steps that must match it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from server import options


class PenaltyOptions(options.Options):
    """F2SA's and MemFBO's common options.

    With L, mu the lower level's smoothness and strong convexity, the matched steps are eta_z = 2/(L + mu) and
    eta_y = 2/(L_f + lam (L + mu)); unless given, eta_y = 2 eta_z / (2 + 2 lam) under L_f = L + mu, that is
    lower_step / (1 + lam).
    """

    upper_step: options.UpperStep = 0.1
    lower_step: Annotated[options.Step, Field(description="eta_z: step size of z, the lower-level iterate")] = 0.1
    penalised_lower_step: Annotated[
        options.Step | None, Field(description="eta_y: step size of y; default: lower_step / (1 + penalty)")
    ] = None
    penalty: options.Penalty = 10.0

    def penalised_step(self, penalty: float) -> float:
        """eta_y for the current penalty lam."""
        return self.lower_step / (1.0 + penalty) if self.penalised_lower_step is None else self.penalised_lower_step
