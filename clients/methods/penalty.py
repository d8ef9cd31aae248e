"""First-order methods for a proximal lower level: `g(x, y) = L(y) + (lam_p/2) |y - x|^2` on every task."""

from __future__ import annotations

import torch
from torch import Tensor

from clients.methods.method import Adapted, Method, Settings, method
from clients.tasks import TaskBatch


def _lower(tasks: TaskBatch, x: Tensor, y: Tensor, o: Settings) -> Tensor:
    """`gy = grad L(y) + lam_p (y - x)`."""
    lam_p: float = o["proximal"]
    return tasks.gradient("lower", y) + lam_p * (y - x)


def _minimised(tasks: TaskBatch, x: Tensor, y: Tensor, steps: int, o: Settings) -> Tensor:
    """Gradient descent on g from y."""
    for _ in range(steps):
        y = y - o["lower_step"] * _lower(tasks, x, y, o)
    return y


class Proximal(Method):
    """Adapts by K gradient steps on g from x."""

    def adapt(self, tasks: TaskBatch, x: Tensor, o: Settings) -> Adapted:
        """`z_K`."""
        return Adapted(_minimised(tasks, x, tasks.spread(x), o["local_steps"], o))


@method("memfbo")
class MemFBO(Proximal):
    """Penalty lam: z descends g, y descends f + lam g, both K steps from x. Bias O(1/lam)."""

    def meta_gradient(self, tasks: TaskBatch, x: Tensor, o: Settings) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`lam (gx(x, y) - gx(x, z)) = lam lam_p (z - y)`, as `gx(x, y) = -lam_p (y - x)`."""
        y, z = tasks.spread(x), self.adapt(tasks, x, o).y
        for _ in range(o["local_steps"]):
            dy = tasks.gradient("upper", y) + o["penalty"] * _lower(tasks, x, y, o)
            y = y - o["penalised_lower_step"] * dy
        return o["penalty"] * o["proximal"] * (z - y), ()

    def passes(self, o: Settings) -> tuple[float, float]:
        """K gradients for z, and K of each loss for y."""
        return 2.0 * o["local_steps"], float(o["local_steps"])


@method("bome")
class Bome(Proximal):
    """A multiplier per task: y takes K steps with the barrier of q = g(x, y) - g(x, yh), yh T steps of g from y.

    x stays where it is meanwhile, so that y alone descends q and n2 is |gy|^2 (our reading). Then the multiplier grows
    until fy + mult gy vanishes: h tends to the implicit gradient, with a bias that falls with the step.
    """

    def meta_gradient(self, tasks: TaskBatch, x: Tensor, o: Settings) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`mult (gx(x, y) - gx(x, yh)) = mult lam_p (yh - y)`."""
        y = tasks.spread(x)
        for _ in range(o["local_steps"]):
            fy, gy, mult = self._directions(tasks, x, y, o)
            y = y - o["upper_level_lower_step"] * (fy + mult * gy)
        mult = self._directions(tasks, x, y, o)[2]
        return mult * o["proximal"] * (_minimised(tasks, x, y, o["lower_rounds"], o) - y), ()

    @staticmethod
    def _directions(tasks: TaskBatch, x: Tensor, y: Tensor, o: Settings) -> tuple[Tensor, Tensor, Tensor]:
        """`fy`, `gy` and `mult = max(eta n2 - <fy, gy>, 0) / n2` [B, 1], 0 where n2 is."""
        fy, gy = tasks.gradient("upper", y), _lower(tasks, x, y, o)
        n2 = (gy * gy).sum(-1, keepdim=True)
        wanted = (o["barrier"] * n2 - (fy * gy).sum(-1, keepdim=True)).clamp(min=0)
        return fy, gy, torch.where(n2 > 0, wanted / n2, 0.0)

    def passes(self, o: Settings) -> tuple[float, float]:
        """K + 1 directions, and T gradients for yh."""
        return o["local_steps"] + 1.0 + o["lower_rounds"], o["local_steps"] + 1.0
