"""`fedbilevel check`: hypergradients against a dense solve, on a problem of one's own.

Every estimator is run to its end and held to a bound. Beside them stand the config's own algorithms at their own
settings, for information (`algorithms.py`). Local lower levels: `tasks.py`.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from experiments.checks.algorithms import OwnAlgorithms, OwnError, OwnMethods
from experiments.checks.tasks import TaskOracle
from fedbilevel.config.setup import Setup
from fedbilevel.config.tables import Config, check, read
from fedbilevel.errors import BadInput
from fedbilevel.problem import Problem, has_one_loss
from fedbilevel.reference.comparison import relative
from fedbilevel.reference.global_level import Implicit, Losses, cross, hessian, lower_solution
from fedbilevel.tasks import TaskProblem, is_local
from server.evaluation.directions import directions
from server.kit.algorithm import Entry, algorithms
from server.running.plan import Job, check_problem, plan
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
    {"problem": {"name": "minimax_quadratic"}},
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


def run_check(path: Path | None, overrides: Sequence[str], console: Console) -> bool:
    """Check the problem of a config, or problems that come with the project; print a table for each.

    With a config a second table shows the error of each of its own algorithms as it is set, which is for information:
    it fails only where there is no finite direction.

    Returns whether nothing failed. Raises BadInput, also for overrides without a config, and for an algorithm or an
    option that a run of the config would refuse.
    """
    if path is None:
        if overrides:
            raise BadInput("--set", " ".join(overrides), "a config to override")
        common = {"run": {"iterations": 1, "dtype": "float64"}, "algorithms": {"aggitd": {}}}
        passed = [_tables(check({**common, **tables}), [], console) for tables in OWN_PROBLEMS]
        return all(passed)
    config = read(path, [*overrides, "run.dtype=float64"])
    jobs = [job for job in plan(config) if job.seed == config.run.seeds[0]]
    check_problem(jobs)
    return _tables(config, jobs, console)


def _tables(config: Config, jobs: Sequence[Job], console: Console) -> bool:
    """Print the table of the estimators, and of the config's own algorithms if there are any."""
    name, seed = Path(config.problem.name).name, config.run.seeds[0]  # of a file of one's own not the folders
    problem = Setup.of(config, "check", seed).problem()
    if is_local(problem):
        return _of_tasks(name, problem, seed, jobs, console)
    return _of_clients(name, problem, seed, jobs, console)


def _line(console: Console, text: str) -> None:
    console.print(text.rstrip(), highlight=False, soft_wrap=True, markup=False)


def _of_clients(name: str, problem: Problem, seed: int, jobs: Sequence[Job], console: Console) -> bool:
    """The tables where the lower level is the clients' common one."""
    oracle = _Oracle(problem, seed, console)
    m, dx, dy = len(problem.clients), len(oracle.x), len(oracle.y)
    _line(console, f"{name}: {m} clients, x [{dx}], y [{dy}], float64, full batch, at y*(x0)")
    _line(console, f"  lower level: mu = {oracle.dense.smallest:.3g}, L = {oracle.dense.largest:.3g}")
    _line(console, f"  {'estimator':33} {'terms':>5} {'error':>8} {'allowed':>8}        against")
    passed = True
    for found in oracle.findings():
        passed = passed and found.passed
        row = f"  {found.estimator:33} {found.terms:>5} {found.error:8.1e} {found.allowed:8.1e}"
        _line(console, f"{row} {'ok' if found.passed else 'FAILED':6} {found.reference}")
    _line(console, "  bome, fedavg-alternating and joint have no estimator of the hypergradient: biased by design")
    if not jobs:
        return passed
    own = OwnAlgorithms(problem, oracle.x, oracle.y, oracle.dense.h, oracle.bias)
    said = "this config's algorithms as they are set, one iteration from (x0, y*(x0)): |h - h*| / |h*|"
    return _own(said, jobs, own.errors, console) and passed


def _of_tasks(name: str, problem: TaskProblem, seed: int, jobs: Sequence[Job], console: Console) -> bool:
    """The tables where every client has tasks of its own."""
    with console.status("dense derivatives"):
        oracle = TaskOracle(problem, seed)
    m, tasks, dy = len(problem.clients), len(oracle.batch), len(oracle.x)
    _line(console, f"{name}: {m} clients, {tasks} tasks, y [{dy}], float64, at x0")
    _line(console, f"  support losses: eigenvalues from {oracle.smallest:.3g} to {oracle.largest:.3g}")
    _line(console, f"  {'method':32} {'error':>8} {'allowed':>8}        against")
    passed = True
    for found in oracle.findings():
        passed = passed and found.passed
        verdict, numbers = "", " " * 17
        if found.error is not None:
            verdict, numbers = "ok" if found.passed else "FAILED", f"{found.error:8.1e} {found.allowed:8.1e}"
        _line(console, f"  {found.estimator:32} {numbers} {verdict:6} {found.reference}")
    if not jobs:
        return passed
    own = OwnMethods(oracle)
    said = f"this config's algorithms as they are set, on these {tasks} tasks: |h - h*| / |h*|"
    return _own(said, jobs, own.errors, console) and passed


def _own(said: str, jobs: Sequence[Job], errors: Callable[[Job], Iterable[OwnError]], console: Console) -> bool:
    """Print the table of the config's own algorithms. Returns whether none failed."""
    _line(console, f"  {said}")
    _line(console, "  (no bound; run.batch, run.gradient_batch, run.clients_per_round and [systems] are ignored)")
    width, passed = min(32, max(9, *(len(job.label) for job in jobs))), True
    _line(console, f"  {'algorithm':{width}} {'error':>8}  with")
    for job in jobs:
        with console.status(job.label):
            found = list(errors(job))
        for each in found:
            passed = passed and not each.failed
            number = "FAILED" if each.failed else "-" if each.error is None else f"{each.error:.1e}"
            _line(console, f"  {each.label:{width}} {number:>8}  {each.notes[0]}")
            for note in each.notes[1:]:
                _line(console, f"  {'':{width}} {'':8}  {note}")
    return passed


class _Oracle:
    """The dense solution at (x0, y*(x0)), and the estimators run from there by the algorithms themselves."""

    def __init__(self, problem: Problem, seed: int, console: Console) -> None:
        self.problem, self.console, self.seed = problem, console, seed
        self.everyone = np.arange(len(problem.clients))
        losses = Losses.of(problem, self.everyone)
        self.x, self.y0 = initial(problem, seed)
        with self._status("dense solve"):
            self.y = lower_solution(losses.lower, self.x, self.y0)
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
        yield from self._single_loop()
        yield from self._sampled()
        yield self._local()
        yield from self._penalty()
        if has_one_loss(self.problem):
            yield from self._minimax()

    def _global(self) -> Iterator[Finding]:
        N = self._terms(self.lam, self.dense.smallest, self.dense.largest)
        truncation = self._truncation(N)
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

    def _single_loop(self) -> Iterator[Finding]:
        """At x0 and y*, v goes to H^-1 fy step by step; x is taken back after each."""
        N = self._terms(self.lam, self.dense.smallest, self.dense.largest)
        truncation = self._truncation(N)
        for name, entry in algorithms("global").items():
            if entry.family not in ("single_loop", "own"):
                continue
            carries = "momentum_decay" in entry.options.model_fields  # its first directions have to wear off
            options, steps = ({"momentum_decay": 0.5, "upper_step": 0.0}, 4 * N + 60) if carries else ({}, N + 1)
            if "memory" in entry.options.model_fields:  # it mixes points, among which x has to stay where it is
                options, steps = {"upper_step": 0.0}, 4 * N + 60
            with self._status(name):
                h = self._settled(entry, steps, **options)
            yield Finding(name, str(steps - 1), "dense solve", relative(h, self.dense.h), TOLERANCE + 1.01 * truncation)
        own = algorithms("global")["br-fedbi"]
        steps = max(4 * N, 120)  # momenta forget their first directions by a factor of 0.7 a step at the best
        with self._status("br-fedbi"):
            h = self._settled(own, steps, variant="momentum", momentum=0.5, neumann_step=self.lam / 2)
        yield Finding("br-fedbi, momenta", str(steps - 1), "dense solve", relative(h, self.dense.h), TOLERANCE)

    def _settled(self, entry: Entry, iterations: int, **options: Any) -> Tensor:
        """The direction of the last of so many iterations, each from x0."""
        known = entry.options.model_fields
        own = {name: step for name, step in (("lower_step", self.lam), ("upper_step", 1.0)) if name in known}
        found = directions(entry, entry.parse(own | options), self.problem, self.x, self.y, seed=self.seed)
        h = next(itertools.islice(found, iterations - 1, None)).hypergradient
        assert h is not None
        return h

    def _truncation(self, terms: int) -> float:
        """How far the hypergradient is off with so many Neumann terms, relative to itself."""
        factor = torch.eye(len(self.y), dtype=self.y.dtype) - self.lam * self.dense.H
        left = torch.linalg.matrix_power(factor, terms) @ self.dense.v
        return relative(cross(self.losses.lower, self.x, self.y, left), self.dense.h, zero=True)

    def _sampled(self) -> Iterator[Finding]:
        N = 6
        for name, options in (
            ("aggitd", {"lower_rounds": N, "estimator": "sample"}),
            ("fednest", {"neumann_terms": N, "estimator": "sample"}),
            ("fedmbo", {"neumann_terms": N}),
        ):
            draws = [self.estimate(name, indices=[q], **options) for q in range(N)]
            same, whole = ("aggitd", {"lower_rounds": N}) if name == "aggitd" else ("fednest", {"neumann_terms": N - 1})
            error = relative(torch.stack(draws).mean(0), self.estimate(same, **whole))
            which = "Q" if name == "aggitd" else "N'"
            yield Finding(f"{name}, sample, mean over all {which}", str(N), f"the sum of {N} terms", error, 1e-12)

    @functools.cached_property
    def _own_solutions(self) -> tuple[Tensor, float, float]:
        """The mean of the clients' own hypergradients, and the least and the largest eigenvalue of their Hessians."""
        h = torch.zeros_like(self.x)
        smallest, largest = math.inf, 0.0
        for client in self.everyone:
            own = Implicit.of(Losses.of(self.problem, np.array([client])), self.x, self.y)
            smallest, largest = min(smallest, own.smallest), max(largest, own.largest)
            h += float(self.problem.clients.weights[client]) * own.h
        return h, smallest, largest

    @property
    def bias(self) -> float:
        """How far the mean of the clients' own hypergradients is off."""
        return relative(self._own_solutions[0], self.dense.h)

    def _local(self) -> Finding:
        h, smallest, largest = self._own_solutions
        lam = 2.0 / (largest + smallest)
        N = self._terms(lam, smallest, largest)
        rate = max(abs(1 - lam * smallest), abs(1 - lam * largest))
        estimate = self.estimate("lfednest", neumann_step=lam, neumann_terms=N, lower_rounds=1)
        reference = f"dense per client (bias {self.bias:.1e})"
        return Finding("lfednest, sum", str(N), reference, relative(estimate, h), TOLERANCE + 100 * rate**N)

    def _penalty(self) -> Iterator[Finding]:
        """F2SA and MemFBO: the error falls as 1/penalty, so ten times the penalty leaves a tenth.

        Of a minimax problem they are exact: f + penalty g is (penalty - 1) g, which has the minimiser of g.
        """
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
            if has_one_loss(self.problem):
                yield Finding(label, str(R), "dense solve", second, TOLERANCE)
                continue
            reference = f"a tenth of {first:.1e} at penalty {PENALTIES[0]:g}"
            yield Finding(label, str(R), reference, second, 0.15 * first)

    def _minimax(self) -> Iterator[Finding]:
        """At y*(x0) the field's part in x is the hypergradient; FedNest's is also looked for from y0.

        Extragradient's is that at the trial point, which is (x0, y*) where x stands still.
        """
        for name, entry in algorithms("minimax").items():
            if entry.lower == "minimax":
                h = self._settled(entry, 1, upper_step=0.0 if name == "fed-extragradient" else 1.0)
                yield Finding(name, "-", "dense solve", relative(h, self.dense.h), TOLERANCE)
        N = self._terms(self.lam, self.dense.smallest, self.dense.largest)
        rate = 1 - self.lam * self.dense.smallest
        own = algorithms("minimax")["fednest-minimax"]
        options = own.parse({"lower_step": self.lam, "lower_rounds": N})
        with self._status("fednest-minimax"):
            state = next(directions(own, options, self.problem, self.x, self.y0, seed=self.seed))
        assert state.hypergradient is not None
        error = relative(state.hypergradient, self.dense.h)
        yield Finding("fednest-minimax, from y0", str(N), "dense solve", error, TOLERANCE + 100 * rate**N)
