"""Kernel-and-gradient meta-learning: ridge regression in the tangent space, and tasks weighed by their losses."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from clients.methods import methods
from clients.operations.adaptation import weighted_meta_gradient
from fedbilevel.federation.rounds import Federation
from server.algorithms.tasks.ntk_maml import KernelOptions
from server.kit.algorithm import Algorithm, algorithm
from server.kit.meta import MetaState, meta_algorithm


class Options(KernelOptions):
    """Options of `kernel-maml`."""

    proximal: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="lam: weight of |y - x|^2 / 2 in the lower level")
    ] = 0.1
    temperature: Annotated[
        float, Field(gt=0, description="of the weights exp(query loss / temperature) of tasks; inf: all tasks alike")
    ] = 1.0

    def settings(self) -> dict[str, Any]:
        """What the clients' method reads of these."""
        return {name: value for name, value in super().settings().items() if name != "temperature"}


@algorithm(
    "kernel-maml",
    source="Fast Adaptation with Kernel and Gradient based Meta Learning, 2024",
    options=Options,
    lower="local",
    needs="kind",
    confirmed="adaptation in closed form by a kernel, tasks weighed by their losses",
    reading="all formulas: ridge regression by the tangent kernel, weights exp(loss / temperature), their sum sent too",
)
def kernel_maml(o: Options) -> Algorithm[MetaState]:
    """Ridge regression by the tangent kernel, tasks weighed by exp(loss / temperature); 1 round, one more number up."""
    name, settings, plain = "kernel-maml", o.settings(), meta_algorithm("kernel-maml", o)

    def step(state: MetaState, fed: Federation) -> MetaState:
        # h = agg(w grad f) / agg(w), w = exp(f / temperature)
        weighed, weight, told = fed.mean(
            weighted_meta_gradient,
            x=state.x,
            method=name,
            settings=settings,
            tasks=o.tasks_per_client,
            temperature=o.temperature,
        )
        h = weighed / weight
        report = dict(zip(methods()[name].reports, told.tolist(), strict=True))
        return replace(state, x=state.x - o.upper_step * h, hypergradient=h, report=report)

    return replace(plain, step=step)
