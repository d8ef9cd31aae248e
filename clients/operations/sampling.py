"""Operations of a lower solution that is a distribution: losses and gradients at samples y_1, ..., y_S of it.

The samples travel as one vector [S dy], one after another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clients.cohort import Cohort
from clients.operations.registry import operation


def _samples(options: Mapping[str, Any]) -> float:
    return float(options["samples"])


@operation(lower=_samples)
def lower_gradients(cohort: Cohort, x: Tensor, points: Tensor, *, samples: int) -> Tensor:
    """`gy_i(x, y_s)` at every sample, [S dy]."""
    return torch.cat([cohort.lower_gradient(x, y) for y in points.view(samples, -1)], -1)


@operation(lower=_samples, upper=lambda options: 2 * _samples(options))
def values_at_samples(cohort: Cohort, x: Tensor, points: Tensor, *, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """`f_i(x, y_s)` [S], the mean of `fx_i(x, y_s)` [dx], and `gx_i(x, y_s)` [S dx]."""
    points = points.view(samples, -1)
    f = torch.stack([cohort.losses("upper", x, y) for y in points], -1)
    fx = torch.stack([cohort.upper_gradient_x(x, y) for y in points]).mean(0)
    return f, fx, torch.cat([cohort.lower_gradient_x(x, y) for y in points], -1)
