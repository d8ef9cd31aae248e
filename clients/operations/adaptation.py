"""Operations of the local lower level: a client's meta-gradient over its tasks, and its losses after adaptation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clients.cohort import Cohort
from clients.methods import methods
from clients.operations.registry import operation


def _passes(level: int) -> Any:
    def count(options: Mapping[str, Any]) -> float:
        return float(options["tasks"] * methods()[options["method"]].passes(options["settings"])[level])

    return count


def _mean(values: Tensor, tasks: int) -> Tensor:
    """The mean over each client's tasks: [S * tasks, ...] to [S, ...]."""
    return torch.mean(values.unflatten(0, (-1, tasks)), 1)


@operation(lower=_passes(0), upper=_passes(1), tasks=True, report=True)
def meta_gradient(
    cohort: Cohort, x: Tensor, *, method: str, settings: Mapping[str, Any], tasks: int
) -> tuple[Tensor, Tensor]:
    """The mean over the client's tasks of d f(y(x)) / dx, and of what the method reports."""
    chosen = methods()[method]
    batch = cohort.tasks(chosen.parameters(x), tasks)
    gradient, reports = chosen.meta_gradient(batch, x, settings)
    told = torch.stack(reports, -1) if reports else gradient.new_zeros(len(batch), 0)
    return _mean(gradient, tasks), _mean(told.to(gradient.dtype), tasks)


@operation(tasks=True)
def adapted_losses(cohort: Cohort, x: Tensor, *, method: str, settings: Mapping[str, Any], tasks: int) -> Tensor:
    """`(f_i, L_i)` at the adapted parameters, for evaluation: never counted as communication."""
    chosen = methods()[method]
    batch = cohort.tasks(chosen.parameters(x), tasks, fixed=True)
    adapted = chosen.adapt(batch, x, settings)
    return _mean(torch.stack([adapted.losses(batch, "upper"), adapted.losses(batch, "lower")], -1), tasks)
