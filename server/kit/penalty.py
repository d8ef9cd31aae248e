"""Options that the first-order methods share: lam and the lower steps that match it, and the local lower level."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from fedbilevel.errors import BadInput
from fedbilevel.federation.systems import LocalSteps
from server.kit import options
from server.kit.meta import MetaOptions, TaskOptions


class PenaltyOptions(options.UpperOptions):
    """F2SA's and MemFBO's common options.

    With L, mu the lower level's smoothness and strong convexity, the matched steps are eta_z = 2/(L + mu) and
    eta_y = 2/(L_f + lam (L + mu)); unless given, eta_y = 2 eta_z / (2 + 2 lam) under L_f = L + mu, that is
    lower_step / (1 + lam).
    """

    lower_step: Annotated[options.Step, Field(description="eta_z: step size of z, the lower-level iterate")] = 0.1
    penalised_lower_step: Annotated[
        options.Step | None, Field(description="eta_y: step size of y; default: lower_step / (1 + penalty)")
    ] = None
    penalty: options.Penalty = 10.0

    def penalised_step(self, penalty: float) -> float:
        """eta_y for the current penalty lam."""
        return self.lower_step / (1.0 + penalty) if self.penalised_lower_step is None else self.penalised_lower_step


class ProximalOptions(TaskOptions):
    """What these methods take where the lower level is local: `g(x, y) = L(y) + (lam_p/2) |y - x|^2` of a task."""

    local_steps: Annotated[
        LocalSteps | None,
        Field(description="tau: local steps on y, default 1; with a local lower level K, default 5, on a task"),
    ] = None
    proximal: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="lam_p: pull to x where the lower level is local")
    ] = 1.0

    def hold_local(self) -> None:
        """Raises BadInput for local steps that are not one number."""
        if not isinstance(self.local_steps, int | None):
            raise BadInput(
                "options.local_steps", self.local_steps, "an integer of at least 1 where the lower level is local"
            )

    def settings(self) -> dict[str, Any]:
        """What the clients' method reads of these."""
        K = MetaOptions.model_fields["local_steps"].default if self.local_steps is None else self.local_steps
        return super().settings() | {"local_steps": K}
