"""`fedbilevel check`: every estimator's hypergradient against a dense solve, on a problem of one's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from experiments.check_tasks import relative, task_table
from fedbilevel.config.setup import Setup
from fedbilevel.config.tables import Config, check, read
from fedbilevel.problem import Problem
from fedbilevel.reference.global_level import Implicit, Losses, cross, hessian, lower_solution
from fedbilevel.tasks import is_local
from server.running.run import initial
from server.running.simulation import simulate

TOLERANCE = 1e-8
"""Relative error that an exact estimator may have beyond its own truncation."""
TERMS = 20_000
"""The most Neumann terms that are run; a longer series is truncated, and its exact truncation error allowed for."""
PENALTIES = (1e2, 1e3)
OWN_PROBLEMS: tuple[dict[str, Any], ...] = (
    {"problem": {"name": "quadratic"}},
    {
        "problem": {"name": "hyper_representation", "hidden": [8], "activation": "tanh", "l2": 0.1},
        "data": {"name": "digits", "clients": 5, "partition": "dirichlet"},
    },
    {"problem": {"name": "quadratic_tasks"}, "algorithms": {"maml": {}}},
)
"""What is checked without a config."""


@dataclass(frozen=True)
class Finding:
    """One estimator's relative error, what it is compared with, and what it may be."""

    estimator: str
    terms: str
    reference: str
    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether the error is within what is allowed."""
        return self.error <= self.allowed


def run_check(path: Path | None, overrides: list[str], console: Console) -> bool:
    """Check the problem of a config, or problems that come with the project; print a table for each.

    Returns whether every estimator is within its bound. Raises BadInput.
    """
    if path is None:
        common = {"run": {"iterations": 1, "dtype": "float64"}, "algorithms": {"aggitd": {}}}
        configs = [check({**common, **tables}) for tables in OWN_PROBLEMS]
    else:
        configs = [read(path, [*overrides, "run.dtype=float64"])]
    passed = [_table(config, console) for config in configs]
    return all(passed)


def _table(config: Config, console: Console) -> bool:
    problem = Setup.of(config, "check", config.run.seeds[0]).problem()
    if is_local(problem):
        return task_table(config.problem.name, problem, config.run.seeds[0], console)
    oracle = _Oracle(problem, config.run.seeds[0], console)
    m, dx, dy = len(problem.clients), len(oracle.x), len(oracle.y)

    def line(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True, markup=False)

    line(f"{config.problem.name}: {m} clients, x [{dx}], y [{dy}], float64, full batch, at y*(x0)")
    line(f"  lower level: mu = {oracle.dense.smallest:.3g}, L = {oracle.dense.largest:.3g}")
    line(f"  {'estimator':32} {'terms':>6} {'relative error':>15} {'allowed':>9}        against")
    passed = True
    for finding in oracle.findings():
        passed = passed and finding.passed
        verdict = "ok" if finding.passed else "FAILED"
        row = f"  {finding.estimator:32} {finding.terms:>6} {finding.error:15.1e} {finding.allowed:9.1e} {verdict:6}"
        line(f"{row} {finding.reference}")
    line("  bome, fedavg-alternating and joint have no estimator of the hypergradient: biased by design")
    return passed


class _Oracle:
    """The dense solution at (x0, y*(x0)), and the estimators run from there by the algorithms themselves."""

    def __init__(self, problem: Problem, seed: int, console: Console) -> None:
        self.problem, self.console, self.seed = problem, console, seed
        self.everyone = np.arange(len(problem.clients))
        losses = Losses.of(problem, self.everyone)
        self.x, y0 = initial(problem, seed)
        with self._status("dense solve"):
            self.y = lower_solution(losses.lower, self.x, y0)
            self.dense = Implicit.of(losses, self.x, self.y)
            self.upper_hessian = hessian(losses.upper, self.x, self.y)
        self.losses = losses

    def _status(self, what: str) -> Any:
        return self.console.status(what)

    def estimate(self, algorithm: str, **options: Any) -> Tensor:
        """The hypergradient of the last iteration of an algorithm that starts at (x0, y*)."""
        chosen: dict[str, Any] = {"iterations": 1, "upper_step": 1.0, "lower_step": self.lam, **options}
        with self._status(algorithm):
            result = simulate(
                self.problem,
                algorithm,
                seed=self.seed,
                x0=self.x,
                y0=self.y,
                trace=True,
                evaluate_every=10**9,
                solution_every=0,
                **chosen,
            )
        assert result.trace is not None
        h = result.trace[-1].hypergradient
        assert h is not None
        return h

    @property
    def lam(self) -> float:
        """Lam = beta = 2 / (L + mu): the best constant step."""
        return 2.0 / (self.dense.largest + self.dense.smallest)

    def _terms(self, lam: float, smallest: float, largest: float) -> int:
        rate = max(abs(1 - lam * smallest), abs(1 - lam * largest))
        return min(TERMS, math.ceil(math.log(1e-12) / math.log(rate))) if 0 < rate < 1 else 1

    def findings(self) -> Iterator[Finding]:
        """Every estimator, one after another."""
        yield from self._global()
        yield from self._sampled()
        yield self._local()
        yield from self._penalty()

    def _global(self) -> Iterator[Finding]:
        N = self._terms(self.lam, self.dense.smallest, self.dense.largest)
        factor = torch.eye(len(self.y), dtype=self.y.dtype) - self.lam * self.dense.H
        left = torch.linalg.matrix_power(factor, N) @ self.dense.v
        truncation = relative(cross(self.losses.lower, self.x, self.y, left), self.dense.h, zero=True)
        for name, options in (
            ("aggitd", {"lower_rounds": N, "accounting": "merged"}),
            ("fednest", {"lower_rounds": 1, "neumann_terms": N - 1, "accounting": "merged"}),
            ("fednest-sgd", {"lower_rounds": 1, "neumann_terms": N - 1}),
        ):
            error = relative(self.estimate(name, **options), self.dense.h)
            yield Finding(f"{name}, sum", str(N), "dense solve", error, TOLERANCE + 1.01 * truncation)
        warm = self.estimate("aggitd", lower_rounds=1, warm_start=True, iterations=N, upper_step=0.0)
        error = relative(warm, self.dense.h)
        yield Finding("aggitd, warm start, N = 1", str(N), "dense solve", error, TOLERANCE + 1.01 * truncation)

    def _sampled(self) -> Iterator[Finding]:
        N = 6
        for name, options in (("aggitd", {"lower_rounds": N}), ("fednest", {"neumann_terms": N})):
            draws = [self.estimate(name, estimator="sample", indices=[q], **options) for q in range(N)]
            whole = options if name == "aggitd" else {"neumann_terms": N - 1}
            error = relative(torch.stack(draws).mean(0), self.estimate(name, **whole))
            which = "Q" if name == "aggitd" else "N'"
            yield Finding(f"{name}, sample, mean over all {which}", str(N), f"the sum of {N} terms", error, 1e-12)

    def _local(self) -> Finding:
        h = torch.zeros_like(self.x)
        smallest, largest = math.inf, 0.0
        for client in self.everyone:
            own = Implicit.of(Losses.of(self.problem, np.array([client])), self.x, self.y)
            smallest, largest = min(smallest, own.smallest), max(largest, own.largest)
            h += float(self.problem.clients.weights[client]) * own.h
        lam = 2.0 / (largest + smallest)
        N = self._terms(lam, smallest, largest)
        rate = max(abs(1 - lam * smallest), abs(1 - lam * largest))
        estimate = self.estimate("lfednest", neumann_step=lam, neumann_terms=N, lower_rounds=1)
        bias = relative(h, self.dense.h)
        reference = f"dense solve per client (bias against the true one: {bias:.1e})"
        return Finding("lfednest, sum", str(N), reference, relative(estimate, h), TOLERANCE + 100 * rate**N)

    def _penalty(self) -> Iterator[Finding]:
        """F2SA and MemFBO: the error falls as 1/penalty, so ten times the penalty leaves a tenth."""
        runs: dict[str, Callable[[int], dict[str, Any]]] = {
            "f2sa": lambda R: {"lower_rounds": R},
            "memfbo": lambda R: {"iterations": R, "upper_step": 0.0},
        }
        top = float(torch.linalg.eigvalsh(self.upper_hessian)[-1])
        for name, options in runs.items():
            errors = []
            for penalty in PENALTIES:
                smallest, largest = penalty * self.dense.smallest, penalty * self.dense.largest + top
                step = 2.0 / (smallest + largest)
                R = self._terms(step, smallest, largest)
                h = self.estimate(name, penalty=penalty, penalised_lower_step=step, **options(R))
                errors.append(relative(h, self.dense.h))
            first, second = errors
            label = f"{name}, penalty {PENALTIES[1]:g}"
            reference = f"a tenth of its error at penalty {PENALTIES[0]:g} ({first:.1e})"
            yield Finding(label, str(R), reference, second, 0.15 * first)
