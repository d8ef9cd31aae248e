"""`fedbilevel check` where the lower level is local: every method's meta-gradients against dense derivatives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clients.methods import methods
from clients.tasks import TaskBatch
from fedbilevel import randomness
from fedbilevel.errors import BadInput
from fedbilevel.problem import map_examples
from fedbilevel.reference.comparison import relative
from fedbilevel.reference.local_level import FINE, DenseTasks, flowing
from fedbilevel.tasks import TaskProblem
from server.kit.algorithm import Entry, algorithms
from server.kit.meta import TaskOptions
from server.kit.options import Options
from server.running.run import initial

CLIENTS, PER_CLIENT = 3, 2
"""The tasks that are checked: so many of each of the first clients."""
LARGEST = 1500
"""The largest dimension of y for which the Hessians of these tasks are written down."""
EXACT = 1e-9
"""Relative error that an exact method may have."""
SOLVER = 1e-6
"""Relative error that a method may have which solves a differential equation numerically."""
PENALTIES = (1e2, 1e3)
PENALISED = 1e-8
"""Relative error that a penalty method may have, whose direction is a small difference times a large number."""


@dataclass(frozen=True)
class Finding:
    """One method's relative error, what it is compared with, and what it may be; no error: there is no reference."""

    estimator: str
    reference: str
    error: float | None = None
    allowed: float = EXACT

    @property
    def passed(self) -> bool:
        """Whether the error is within what is allowed."""
        return self.error is None or self.error <= self.allowed


class TaskOracle:
    """Some tasks of a problem at x0, their dense derivatives, and the methods run on them."""

    def __init__(self, problem: TaskProblem, seed: int) -> None:
        self.problem = problem
        self.x, self.y = initial(problem, seed)
        if len(self.x) > LARGEST:
            found = f"a lower level of dimension {len(self.x)}"
            raise BadInput("problem", found, f"at most {LARGEST}, for dense derivatives of every task")
        clients = np.arange(min(CLIENTS, len(problem.clients)))
        numbers = randomness.uniform(seed, clients, 0, "tasks to check", PER_CLIENT * problem.draws)
        drawn = problem.tasks(problem.clients.lower.take(clients), numbers.reshape(len(clients), PER_CLIENT, -1))
        self.batch = TaskBatch(problem, drawn, self.x)
        self.dense = DenseTasks(problem, drawn, self.x)
        eigenvalues = torch.linalg.eigvalsh(self.dense.hessian(self.batch.spread(self.x)))
        self.smallest, self.largest = float(eigenvalues.min()), float(eigenvalues.max())

    @property
    def proximal(self) -> float:
        """A lam_p with which the lower level is well conditioned: twice the largest curvature at x0."""
        return 2.0 * max(abs(self.smallest), abs(self.largest))

    def run(self, name: str, **wanted: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """The meta-gradient of a method, its y, and the settings used: those wanted that it has, else its defaults."""
        entry = algorithms("local")[name]
        fields = entry.options.model_fields
        options = entry.parse({key: value for key, value in wanted.items() if key in fields})
        x, settings = self.start(entry, options)
        with torch.no_grad():
            return self.gradient(entry, options), methods()[name].adapt(self.batch, x, settings).y, settings

    def start(self, entry: Entry, options: Options) -> tuple[Tensor, dict[str, Any]]:
        """The x that an algorithm begins with, and what its clients read of its options."""
        assert isinstance(options, TaskOptions)
        return entry.factory(options).init(self.x, self.y).x, options.settings()

    def gradient(self, entry: Entry, options: Options) -> Tensor:
        """The meta-gradients [B, dx] of an algorithm with these options."""
        x, settings = self.start(entry, options)
        with torch.no_grad():
            return methods()[entry.name].meta_gradient(self.batch, x, settings)[0]

    def findings(self) -> Iterator[Finding]:
        """Every method, one after another."""
        for name, entry in algorithms("local").items():
            try:
                entry.hold(self.problem, "algorithm")
            except BadInput:
                yield Finding(name, "does not solve this problem")
                continue
            yield from REFERENCES.get(name, TaskOracle.unknown)(self, name)

    def unknown(self, name: str) -> Iterator[Finding]:
        """A method that has no reference here."""
        yield Finding(name, "no dense reference")

    def unrolled(self, name: str) -> Iterator[Finding]:
        """MAML, whole and truncated, and first-order MAML: products of I - eta Hess L(y_k)."""
        for truncation in (None, 2) if name == "maml" else (0,):
            found, _, o = self.run(name, truncation=truncation)
            kept = o["local_steps"] if truncation is None else truncation
            _, expected = self.dense.descent(o["local_steps"], o["lower_step"], kept)
            label = f"{name}, truncation {truncation}" if truncation else name
            reference = (
                "the gradient at y_K" if truncation == 0 else f"Hessians along {kept} of {o['local_steps']} steps"
            )
            yield Finding(label, reference, relative(found, expected))

    def active(self, name: str) -> Iterator[Finding]:
        """AGILE: without augmentation and with all of its pool it is MAML."""
        found, _, o = self.run(name, augmented=0.0)
        K = o["local_steps"]
        expected = self.dense.descent(K, o["lower_step"], K)[1]
        reference = f"Hessians along {K} of {K} steps"
        yield Finding(f"{name}, not augmented, whole pool", reference, relative(found, expected))

    def way_back(self, name: str) -> Iterator[Finding]:
        """Reptile."""
        found, _, o = self.run(name)
        y = self.dense.descent(o["local_steps"], o["lower_step"], 0)[0]
        yield Finding(name, "x - y_K: not a gradient", relative(found, self.dense.x - y))

    def implicit(self, name: str) -> Iterator[Finding]:
        """IMAML, and iBaML's mode under the prior N(x, I/lam): dense solves at their own y.

        With u = (Hess L(y) + lam I)^-1 grad f(y), iBaML's gradient is lam u in the mean and lam u (y - x) in log s.
        """
        lam = self.proximal
        solver = {"lower_step": 1 / lam, "cg_steps": 4 * len(self.x), "cg_tolerance": 1e-13}
        found, y, _ = self.run(name, proximal=lam, initial_variance=1 / lam, **solver)
        expected = self.dense.implicit(lam, y)
        if name == "ibaml":
            expected = torch.cat([expected, expected * (y - self.x)], -1)
        yield Finding(name, f"dense solve at its y, lam = {lam:.3g}", relative(found, expected))

    def flow(self, name: str) -> Iterator[Finding]:
        """A-MAML: the sensitivity of the flow on a fine grid; by Euler steps, that of as many gradient steps."""
        found, _, o = self.run(name, ode_steps=40)
        T = o["local_steps"] * o["lower_step"] if o["horizon"] is None else o["horizon"]
        yield self._flowed(name, "dense flow", T, found, lambda steps: self.dense.flow(T, steps=steps)[0])
        found, _, o = self.run(name, solver="euler", ode_steps=o["local_steps"])
        _, expected = self.dense.descent(o["local_steps"], T / o["local_steps"], o["local_steps"])
        yield Finding(f"{name}, Euler", f"Hessians along {o['local_steps']} steps", relative(found, expected))

    def head(self, name: str) -> Iterator[Finding]:
        """COMLN: the sensitivity of the flow of the head alone, and the derivative in the logarithm of its horizon."""
        found, _, o = self.run(name, ode_steps=40)
        T = o["local_steps"] * o["lower_step"]
        yield self._flowed(name, "dense flow of the head", T, found, self.flowing_head(T))

    def flowing_head(self, T: float) -> Callable[[int], Tensor]:
        """The dense meta-gradient [B, d + 1] of the flow of the head to T and in log T, by its number of steps."""
        one: Any = map_examples(lambda t: t[0], self.batch.tasks.support)
        width = self.problem.features(self.x, one["input"]).shape[1]  # type: ignore[attr-defined]  # it has a head
        moving = self.problem.classes * (width + 1)  # type: ignore[attr-defined]

        def expected(steps: int) -> Tensor:
            in_x, in_T = self.dense.flow(T, moving, steps)
            return torch.cat([in_x, T * in_T[:, None]], 1)

        return expected

    def ridge(self, name: str) -> Iterator[Finding]:
        """R2D2: the derivative of the normal equations, in lam and the scale too."""
        found, _, o = self.run(name)
        expected = self.dense.ridge_head(o["initial_ridge"], o["initial_scale"])
        yield Finding(name, "the normal equations of its features", relative(found, expected))

    def tangent(self, name: str) -> Iterator[Finding]:
        """Kernel adaptation: autograd through dense Jacobians and a matrix function, in log T too."""
        found, _, o = self.run(name)
        expected = self.flowing_tangent(o["local_steps"] * o["lower_step"], o["label_scale"])
        yield Finding(name, "dense Jacobians and a matrix exponential", relative(found, expected))

    def ridge_tangent(self, name: str) -> Iterator[Finding]:
        """The same with an inverse; the tasks' own gradients, before they are weighed."""
        found, _, o = self.run(name)
        expected = self.pulled_tangent(o["proximal"], o["label_scale"])
        yield Finding(name, "dense Jacobians and an inverse, tasks not weighed", relative(found, expected))

    def pulled_tangent(self, lam: float, scale: float) -> Tensor:
        """The dense meta-gradient [B, d] of the linearised network with a pull lam |y - x|^2 / 2."""
        return self.dense.tangent(lambda K, z: torch.linalg.inv(K + lam * torch.eye(len(K)).to(K)), self.x, scale)

    def flowing_tangent(self, T: float, scale: float) -> Tensor:
        """The dense meta-gradient [B, d + 1] of the flow of the linearised network to T and in log T."""
        return self.dense.tangent(flowing, torch.cat([self.x, self.x.new_tensor([T]).log()]), scale)

    def _flowed(self, name: str, reference: str, T: float, found: Tensor, expected: Callable[[int], Tensor]) -> Finding:
        fine, known = settled(expected)
        said = f"{reference} to T = {T:g}" + (f", which is known to {known:.0e}" if 10 * known > SOLVER else "")
        return Finding(name, said, relative(found, fine), max(SOLVER, 10 * known))

    def minimum(self, lam: float) -> tuple[Tensor, Tensor]:
        """The minimisers of `L(y) + (lam/2) |y - x|^2` [B, d], and the tasks [B] that have one where L is smooth.

        On a kink (ReLU) Newton's method does not end, and where lam is too small it may end at no minimum.
        """
        y = self.dense.minimiser(lam)
        slope = self.dense.gradient("lower", y) + lam * (y - self.dense.x)
        ended = torch.linalg.vector_norm(slope, dim=-1) <= 1e-9 * (1 + lam * torch.linalg.vector_norm(y, dim=-1))
        return y, ended & (torch.linalg.eigvalsh(self.dense.hessian(y))[:, 0] > -lam)

    def penalty(self, name: str) -> Iterator[Finding]:
        """MemFBO: at one penalty against dense minimisers of g and of f + penalty g; and its error falls as 1/penalty.

        So ten times the penalty leaves a tenth of what it is off the implicit gradient.
        """
        lam, errors = self.proximal, []
        z, smooth = self.minimum(lam)
        if not bool(smooth.any()):
            yield Finding(name, "no reference: every minimiser lies on a kink")
            return
        some = "" if bool(smooth.all()) else f", on {int(smooth.sum())} of {len(smooth)} tasks: the others have kinks"
        expected = self.dense.implicit(lam, z)[smooth]
        top = float(torch.linalg.eigvalsh(self.dense.hessian(self.dense.x, "upper")).abs().max())
        found = {}
        for penalty in PENALTIES:
            step = 1.0 / (penalty * 1.5 * lam + top)
            steps = {"local_steps": 150, "lower_step": 1 / (1.5 * lam), "penalised_lower_step": step}
            found[penalty] = self.run(name, proximal=lam, penalty=penalty, **steps)[0]
            errors.append(relative(found[penalty][smooth], expected))
        first, last = PENALTIES
        y = self.dense.minimiser(lam, first)
        slope = self.dense.gradient("upper", y) + first * self.dense.pulled(y, lam)
        ended = smooth & (torch.linalg.vector_norm(slope, dim=-1) <= 1e-9 * first)
        if bool(ended.any()):
            solved = (first * lam * (z - y))[ended]
            said = f"dense minimisers of g and f + {first:g} g{some}"
            yield Finding(f"{name}, penalty {first:g}", said, relative(found[first][ended], solved), PENALISED)
        reference = f"a tenth of {errors[0]:.1e} at penalty {first:g}{some}"
        yield Finding(f"{name}, penalty {last:g}", reference, errors[1], 0.15 * errors[0])

    def barrier(self, name: str) -> Iterator[Finding]:
        """BOME: its recurrence on dense derivatives, task by task.

        Its weight follows y and its steps do not end, so that no solve says where they lead; how far that is from the
        implicit gradient falls with their length, unevenly, and stands with the config's own algorithms.
        """
        lam = self.proximal
        steps = {"lower_step": 1 / (1.5 * lam), "upper_level_lower_step": 0.2 / lam, "local_steps": 20}
        found, _, o = self.run(name, proximal=lam, **steps)
        reference = f"its {o['local_steps']} + {o['lower_rounds']} steps on dense derivatives"
        yield Finding(name, reference, relative(found, self.dense.barrier(lam, o)), PENALISED)


REFERENCES: dict[str, Callable[[TaskOracle, str], Iterator[Finding]]] = {
    "maml": TaskOracle.unrolled,
    "fomaml": TaskOracle.unrolled,
    "reptile": TaskOracle.way_back,
    "imaml": TaskOracle.implicit,
    "ibaml": TaskOracle.implicit,
    "a-maml": TaskOracle.flow,
    "comln": TaskOracle.head,
    "memfbo": TaskOracle.penalty,
    "bome": TaskOracle.barrier,
    "agile": TaskOracle.active,
    "r2d2": TaskOracle.ridge,
    "ntk-maml": TaskOracle.tangent,
    "kernel-maml": TaskOracle.ridge_tangent,
}
"""What each method is held against."""


def settled(expected: Callable[[int], Tensor]) -> tuple[Tensor, float]:
    """The solution of a flow by its number of steps, and how well it is known.

    The steps double, up to FINE, until they change it little; at kinks (ReLU) they go on doing so.
    """
    steps = FINE // 4
    coarse, fine = expected(steps), expected(2 * steps)
    while (known := relative(coarse, fine)) > SOLVER / 1000 and 2 * steps < FINE:
        steps *= 2
        coarse, fine = fine, expected(2 * steps)
    return fine, known
