"""One row of history: what a run has spent, what its state is worth, and how good the direction was that moved x."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clients.operations.oracles import losses
from fedbilevel.config.tables import RunTable
from fedbilevel.errors import NonFinite, RunFailed, users_code
from fedbilevel.federation.rounds import Federation
from fedbilevel.machine.device import at_hand, placed
from fedbilevel.problem import Problem
from fedbilevel.problems.inspection import is_measure_name
from fedbilevel.results.history import SOLUTION_COLUMNS, Row
from fedbilevel.tasks import is_local
from server.evaluation.lower_level import NoSolution
from server.evaluation.solution import Solver, every
from server.kit.algorithm import Algorithm, State


class Evaluator:
    """Makes the rows of one run of an algorithm, from `start` = (x0, y0).

    made: the evaluations made before (a run that goes on); say: told once if the lower level has no solution. The
    solution is looked for at the evaluations 0, k, 2k, ... and at the last one, k as `solution.every` says.
    """

    def __init__(
        self,
        label: str,
        seed: int,
        algorithm: Algorithm[Any],
        table: RunTable,
        problem: Problem,
        fed: Federation,
        start: tuple[Tensor, Tensor],
        say: Callable[[str], None],
    ) -> None:
        self._label, self._seed, self._algorithm, self._fed, self._say = label, seed, algorithm, fed, say
        self._device = at_hand(table.device)
        self._problem = placed(problem, self._device)
        self._every = every(table.solution_every, problem, *start)
        self._solver = Solver(self._problem, start[1]) if self._every else None
        self._said = False
        self.made = 0

    def row(
        self, state: State, iteration: int, seconds: float, used: Tensor | None, *, last: Callable[[Row], bool]
    ) -> Row:
        """Return the row of a state, and count it. Raises NonFinite if a loss is not finite.

        used: the x at which the state's hypergradient was taken, None before the first iteration; last: whether the run
        ends with a row of which all is known but what is found at the lower solution.
        """
        fed = self._fed
        where = f"operation evaluate, round {fed.ledger.rounds}"
        with users_code(lambda said: RunFailed(f"{where}: {said}")):
            measures = self._measures(state)
        if strange := [name for name in measures if not is_measure_name(name)]:
            raise RunFailed(f"{where}: a measure is called {strange[0]!r}, not by 1 to 80 printable characters")
        h = state.hypergradient
        row: Row = {
            "algorithm": self._label,
            "seed": self._seed,
            "iteration": iteration,
            "round": fed.ledger.rounds,
            "uplink_bytes": fed.ledger.uplink_bytes,
            "downlink_bytes": fed.ledger.downlink_bytes,
            "simulated_seconds": fed.ledger.simulated_seconds,
            "wall_seconds": seconds,
            "upper_loss": measures.pop("upper_loss"),
            "lower_loss": measures.pop("lower_loss"),
            "test_loss": measures.pop("test_loss", None),
            "test_accuracy": measures.pop("test_accuracy", None),
            "hypergradient_norm": None if h is None else float(torch.linalg.vector_norm(h.double())),
        }
        own = {f"metric_{name}": value for name, value in measures.items()} | fed.measures()
        for name in ("upper_loss", "lower_loss", "test_loss"):
            value = row[name]
            if isinstance(value, float) and not np.isfinite(value):
                raise NonFinite(f"{where}: {name} is {value}")
        with users_code(lambda said: RunFailed(f"{where}: {said}")):
            found = self._at_solution(state, used, last=last(row | own))
        self.made += 1
        return {**row, **found, "gradient_evaluations": fed.ledger.gradient_evaluations, **own}

    def _measures(self, state: State) -> dict[str, float]:
        """The losses at the state's own x and y, and the problem's measures of them."""
        problem, algorithm = self._problem, self._algorithm
        if algorithm.evaluate is not None and is_local(problem):
            return dict(algorithm.evaluate(state, problem, self._fed))
        upper, lower = self._fed.measure(losses, x=state.x, y=state.y).tolist()
        return self._judged(problem, state.x, state.y) | {"upper_loss": upper, "lower_loss": lower}

    def _judged(self, problem: Problem, x: Tensor, y: Tensor) -> dict[str, float]:
        with torch.no_grad():
            measures = problem.evaluate(x.to(self._device), y.to(self._device))
        return {name: float(value) for name, value in measures.items()}

    def _at_solution(self, state: State, used: Tensor | None, *, last: bool) -> Row:
        """The columns at the true lower solution: empty where it is not looked for or not found."""
        if self._solver is None:
            return {}
        cells: Row = dict.fromkeys(SOLUTION_COLUMNS)
        if self.made % self._every and not last:
            return cells
        try:
            here = self._solver.at(state.x, state.y)
            cells["value"], cells["gradient_norm"] = here.value, float(torch.linalg.vector_norm(here.gradient))
            cells["value_accuracy"] = self._judged(self._solver.problem, state.x.double(), here.y).get("test_accuracy")
            if used is not None and state.hypergradient is not None:
                gradient = self._solver.gradient(used, here)
                norm = float(torch.linalg.vector_norm(gradient))
                error = float(torch.linalg.vector_norm(state.hypergradient.double().cpu() - gradient.cpu()))
                cells["hypergradient_error"] = error / norm if norm > 0 else None
        except NoSolution as reason:
            if not self._said:
                self._said = True
                self._say(
                    f"{self._label}, seed {self._seed}, round {self._fed.ledger.rounds}: {reason}; "
                    f"{', '.join(SOLUTION_COLUMNS)} stay empty where that is so"
                )
            return dict.fromkeys(SOLUTION_COLUMNS)
        return cells
