"""Operations of the local lower level: a client's meta-gradient over its tasks, and its losses after adaptation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clients.cohort import Cohort
from clients.methods import methods
from clients.operations.registry import operation
from fedbilevel.errors import RunFailed


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


@operation(lower=_passes(0), upper=_passes(1), tasks=True, report=True)
def weighted_meta_gradient(
    cohort: Cohort, x: Tensor, *, method: str, settings: Mapping[str, Any], tasks: int, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The means over the client's tasks of w d f / dx and of w = exp(f / temperature) [1], and of what is reported.

    f is the query loss, reported by the method as `query_loss`. Raises RunFailed where a weight is beyond the numbers.
    """
    chosen = methods()[method]
    batch = cohort.tasks(chosen.parameters(x), tasks)
    gradient, reports = chosen.meta_gradient(batch, x, settings)
    loss = reports[chosen.reports.index("query_loss")]
    weights = torch.exp(loss.double() / temperature)
    if not bool((weights * gradient.abs().amax(-1)).to(gradient.dtype).isfinite().all()):
        worst = float(loss.max())
        raise RunFailed(
            f"a task's weight exp(loss / temperature) is beyond the numbers: its loss is {worst:.3g}, the temperature "
            f"{temperature:g}; take a higher temperature"
        )
    told = torch.stack(reports, -1)
    weighed = weights[:, None] * gradient.double()
    return _mean(weighed, tasks), _mean(weights[:, None], tasks), _mean(told.to(gradient.dtype), tasks)


@operation(tasks=True)
def adapted_losses(cohort: Cohort, x: Tensor, *, method: str, settings: Mapping[str, Any], tasks: int) -> Tensor:
    """`(f_i, L_i)` at the adapted parameters, for evaluation: never counted as communication."""
    chosen = methods()[method]
    batch = cohort.tasks(chosen.parameters(x), tasks, fixed=True)
    adapted = chosen.adapt(batch, x, settings)
    return _mean(torch.stack([adapted.losses(batch, "upper"), adapted.losses(batch, "lower")], -1), tasks)
