"""What `fedbilevel check CONFIG.toml` says of the config's own algorithms: how far off their directions are as set.

Estimators run to their end are held to a bound (`estimators.py`, `tasks.py`). This is what a run is in for: one
iteration with the config's own N, T, lam, penalty, from the lower level's solution.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from experiments.checks.tasks import TaskOracle, settled
from fedbilevel.errors import RunFailed
from fedbilevel.problem import Problem
from fedbilevel.reference.comparison import relative
from server.evaluation.directions import directions
from server.kit.algorithm import State
from server.kit.meta import TaskOptions
from server.running.plan import Job

HELD = 100
"""Iterations at x0 after which a method is looked at again that goes on from what its last iteration found."""
CHANGE = 1e-6
"""Relative change of the direction in the second iteration at x0 that shows such a method."""
NONE = "no direction: upper_step is 0, or the algorithm tells none"


@dataclass(frozen=True)
class OwnError:
    """A line of the table: a label of the config, the relative error of its direction, and what is to be said of it.

    error: None where there is no direction or nothing to hold it against; failed: it is not finite, or did not come.
    """

    label: str
    error: float | None
    notes: tuple[str, ...]
    failed: bool = False


class OwnAlgorithms:
    """The algorithms of a config at (x, y*(x)), against the hypergradient h there.

    bias: relative distance from h to the mean of the clients' own hypergradients, which LFedNest tends to.
    """

    def __init__(self, problem: Problem, x: Tensor, y: Tensor, h: Tensor, bias: float) -> None:
        self.problem, self.x, self.y, self.h, self.bias = problem, x, y, h, bias

    def errors(self, job: Job) -> Iterator[OwnError]:
        """One line, or two for a method that is warm-started: after one iteration and after `HELD` of them.

        With estimator "sample" the one line is of the mean over every index that may be drawn.
        """
        label = job.label
        sampled = getattr(job.options, "estimator", "sum") == "sample" and hasattr(job.options, "indices")
        try:
            for found in [self._sampled(job)] if sampled else self._summed(job):
                yield found
                label = ""
        except RunFailed as error:
            yield OwnError(label, None, (str(error),), failed=True)

    def _notes(self, job: Job) -> tuple[str, ...]:
        if not (about := job.entry.biased):
            return (settings(job),)
        return settings(job), f"biased by design: {about.format(bias=self.bias)}"

    def _sampled(self, job: Job) -> OwnError:
        """Every draw of Q or N', one iteration each."""
        o: Any = job.options
        N: int = getattr(o, "N", None) or o.neumann_terms
        draws = []
        for index in range(N):
            options = job.options.model_copy(update={"indices": [index]})
            h = next(self._states(job, options)).hypergradient
            if h is None:
                return OwnError(job.label, None, (*self._notes(job), NONE))
            draws.append(h)
        mean = torch.stack(draws).mean(0)
        spread = math.sqrt(sum(relative(h - mean, self.h, zero=True) ** 2 for h in draws) / N)
        return self._error(
            job.label, mean, *self._notes(job), f"the mean of all {N} draws; one is off it by {spread:.1e}"
        )

    def _summed(self, job: Job) -> Iterator[OwnError]:
        states = self._states(job, job.options)
        first = next(states).hypergradient
        if first is None:
            yield OwnError(job.label, None, (*self._notes(job), NONE))
            return
        found = self._error(job.label, first, *self._notes(job))
        yield found
        if found.failed:
            return
        second = next(states).hypergradient
        if second is None or relative(second, first) <= CHANGE:
            return
        last = next(itertools.islice(states, HELD - 3, None)).hypergradient
        if last is not None:
            yield self._error("", last, f"after {HELD} iterations at x0, each of which goes on from the last")

    def _error(self, label: str, h: Tensor, *notes: str) -> OwnError:
        if not bool(torch.isfinite(h).all()):
            return OwnError(label, None, (*notes, "not finite"), failed=True)
        return OwnError(label, relative(h, self.h), notes)

    def _states(self, job: Job, options: Any) -> Iterator[State]:
        device = job.config.run.device
        return directions(job.entry, options, self.problem, self.x, self.y, seed=job.seed, device=device)


class OwnMethods:
    """The algorithms of a config on the tasks of an oracle, against the dense meta-gradient that each stands for."""

    def __init__(self, oracle: TaskOracle) -> None:
        self.oracle = oracle

    def errors(self, job: Job) -> Iterator[OwnError]:
        """One line."""
        try:
            yield self._error(job)
        except RunFailed as error:
            yield OwnError(job.label, None, (str(error),), failed=True)

    def _error(self, job: Job) -> OwnError:
        truth = TRUTHS.get(job.entry.name)
        if truth is None:
            oracle, device = self.oracle, job.config.run.device
            states = directions(
                job.entry, job.options, oracle.problem, oracle.x, oracle.y, seed=job.seed, device=device
            )
            gradient, against = next(states).hypergradient, Against(None, "no dense reference")
        else:
            gradient, against = self.oracle.gradient(job.entry, job.options), truth(self.oracle, job.options)
        notes: tuple[str, ...] = (task_settings(job), against.said)
        if len("; ".join(notes)) <= 76:
            notes = ("; ".join(notes),)
        if gradient is None:
            return OwnError(job.label, None, (*notes, NONE))
        if not bool(torch.isfinite(gradient).all()):
            return OwnError(job.label, None, (*notes, "not finite"), failed=True)
        if against.gradient is None:
            return OwnError(job.label, None, notes)
        held = slice(None) if against.held is None else against.held
        return OwnError(job.label, relative(gradient[held], against.gradient[held]), notes)


@dataclass(frozen=True)
class Against:
    """Dense meta-gradients [B, dx] (None: there are none), what they are, and the tasks [B] that have one."""

    gradient: Tensor | None
    said: str
    held: Tensor | None = None


def _unrolled(oracle: TaskOracle, o: Any) -> Against:
    """All Hessians along the K steps."""
    K = o.local_steps
    return Against(oracle.dense.descent(K, o.lower_step, K)[1], "against the derivative of all steps")


def _first_order(oracle: TaskOracle, o: Any) -> Against:
    against = _unrolled(oracle, o)
    return Against(against.gradient, f"biased by design: no Hessians; {against.said}")


def _no_gradient(oracle: TaskOracle, o: Any) -> Against:
    return Against(None, "x - y_K is no gradient: no reference")


def _implicit(oracle: TaskOracle, o: Any, lam: float | None = None) -> Against:
    """`lam (Hess L(y*) + lam I)^-1 grad f(y*)` at the minimiser y*, whatever y the method reaches."""
    lam = o.proximal if lam is None else lam
    y, held = oracle.minimum(lam)
    said = f"against the dense solve at the minimum with lam_p = {lam:g}"
    if not bool(held.any()):
        return Against(None, f"no reference: with lam_p = {lam:g} no task has a smooth minimum")
    if not bool(held.all()):
        said += f", for {int(held.sum())} of {len(held)} tasks: the others have no smooth one"
    return Against(oracle.dense.implicit(lam, y), said, held)


def _posterior(oracle: TaskOracle, o: Any) -> Against:
    """With u the implicit gradient at the mode: u in the mean, u (y - x) in log s."""
    if o.inference != "map":
        return Against(None, "a variational posterior: no dense reference")
    lam = o.temperature / o.initial_variance
    against = _implicit(oracle, o, lam)
    if against.gradient is None:
        return against
    in_variance = against.gradient * (oracle.minimum(lam)[0] - oracle.x) * o.learn_variance
    return Against(torch.cat([against.gradient, in_variance], -1), against.said, against.held)


def _flow(oracle: TaskOracle, o: Any) -> Against:
    T = o.local_steps * o.lower_step if o.horizon is None else o.horizon
    fine, known = settled(lambda steps: oracle.dense.flow(T, steps=steps)[0])
    return Against(fine, f"against the flow to T = {T:g}, known to {known:.0e}")


def _head(oracle: TaskOracle, o: Any) -> Against:
    T = o.local_steps * o.lower_step if o.initial_horizon is None else o.initial_horizon
    fine, known = settled(oracle.flowing_head(T))
    fine[:, -1] *= o.learn_horizon
    return Against(fine, f"against the flow of the head to T = {T:g}, known to {known:.0e}")


def _ridge(oracle: TaskOracle, o: Any) -> Against:
    gradient = oracle.dense.ridge_head(o.initial_ridge, o.initial_scale)
    gradient[:, -2:] *= gradient.new_tensor([o.learn_ridge, o.learn_scale])
    return Against(gradient, "against the normal equations of its features")


def _tangent(oracle: TaskOracle, o: Any) -> Against:
    T = o.local_steps * o.lower_step if o.initial_horizon is None else o.initial_horizon
    gradient = oracle.flowing_tangent(T, o.label_scale)
    gradient[:, -1] *= o.learn_horizon
    return Against(gradient, f"against dense Jacobians and a matrix exponential to T = {T:g}")


def _pulled_tangent(oracle: TaskOracle, o: Any) -> Against:
    gradient = oracle.pulled_tangent(o.proximal, o.label_scale)
    return Against(gradient, f"against dense Jacobians with lam_p = {o.proximal:g}, tasks not weighed")


TRUTHS: dict[str, Callable[[TaskOracle, Any], Against]] = {
    "maml": _unrolled,
    "fomaml": _first_order,
    "reptile": _no_gradient,
    "imaml": _implicit,
    "ibaml": _posterior,
    "memfbo": _implicit,
    "bome": _implicit,
    "a-maml": _flow,
    "comln": _head,
    "r2d2": _ridge,
    "ntk-maml": _tangent,
    "kernel-maml": _pulled_tangent,
}
"""What the meta-gradient of each method stands for, however many steps it takes for it."""


def settings(job: Job) -> str:
    """What the direction depends on, in the papers' symbols."""
    o: dict[str, Any] = job.options.model_dump()
    if hasattr(job.options, "N"):
        o |= {"lower_rounds": None, "neumann_terms": job.options.N}
    if "neumann_step" in o and o["neumann_step"] is None:
        o["neumann_step"] = o.get("lower_step")
    parts = _numbers(o, {"lower_rounds": "T", "neumann_terms": "N", "neumann_step": "lam", "penalty": "penalty"})
    for name, symbol in (("local_steps", "tau"), ("upper_local_steps", "tau of x")):
        if name in o and o[name] not in (None, 0, 1):
            parts.append(f"{symbol} = {_steps(o[name])}")
    if o.get("warm_start"):
        parts.append("warm start")
    return ", ".join(parts) or "no option that matters"


def task_settings(job: Job) -> str:
    """The same for a method of clients' tasks."""
    o = job.options.settings() if isinstance(job.options, TaskOptions) else job.options.model_dump()
    symbols = {"local_steps": "K", "lower_step": "eta", "lower_rounds": "T"}
    parts = _numbers(o, symbols | {name: name for name in ("truncation", "cg_steps", "penalty")})
    return ", ".join([*parts, o["solver"]] if "solver" in o else parts) or "no option that matters"


def _numbers(values: Mapping[str, Any], symbols: Mapping[str, str]) -> list[str]:
    return [f"{shown} = {values[key]:g}" for key, shown in symbols.items() if isinstance(values.get(key), int | float)]


def _steps(spec: Any) -> str:
    if isinstance(spec, dict):
        return f"{spec['epochs']} epochs" if "epochs" in spec else f"{spec['low']} to {spec['high']}"
    return "one per client" if isinstance(spec, list) else f"{spec}"
