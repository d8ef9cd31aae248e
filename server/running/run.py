"""The run of one algorithm for one seed: the loop around its steps, its evaluations, and what comes out."""

from __future__ import annotations

import functools
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbilevel.conditions.tables import Conditions
from fedbilevel.config.tables import RunTable
from fedbilevel.errors import BadInput, RunFailed, said
from fedbilevel.federation.messages import Exchange
from fedbilevel.federation.participation import Population
from fedbilevel.federation.rounds import Federation
from fedbilevel.federation.systems import BatchSize, Systems
from fedbilevel.machine.device import at_hand
from fedbilevel.machine.memory import require
from fedbilevel.problem import Problem
from fedbilevel.problems.inspection import data_dtype
from fedbilevel.results.history import SOLUTION_COLUMNS, Row
from fedbilevel.results.targets import column_of, hold_target
from fedbilevel.shares.cut import is_hollow
from fedbilevel.tasks import is_local
from server.evaluation.rows import Evaluator
from server.evaluation.solution import every
from server.kit.algorithm import Algorithm, State
from server.kit.options import Options
from server.running import conditions
from server.running.checkpoints import Checkpoint
from server.running.estimate import estimate

MOST_WAITS = 10_000
"""An iteration may wait so many times, on average, until a client is there."""


@dataclass(frozen=True)
class TraceEntry:
    """One outer iteration: x and y after it, the hypergradient by which x moved, and the rounds it took.

    index is the random Q or N' if one was drawn; clients are those that were asked, round by round. Fields can also be
    read as items: `entry["x"]`.
    """

    iteration: int
    x: Tensor
    y: Tensor
    hypergradient: Tensor | None
    rounds: int
    index: int | None = None
    clients: tuple[NDArray[np.int64], ...] = ()

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


@dataclass(frozen=True)
class Result:
    """What a run found: final x and y, one history row per evaluation, and the trace if it was asked for.

    communication holds the ledger's totals: rounds, messages, vectors and bytes both ways, simulated seconds.
    """

    x: Tensor
    y: Tensor
    history: list[Row]
    trace: list[TraceEntry] | None = None
    communication: Mapping[str, int | float] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One algorithm, one seed: everything the loop needs."""

    label: str
    seed: int
    algorithm: Algorithm[Any]
    table: RunTable
    systems: Systems
    conditions: Conditions = field(default_factory=Conditions)

    @property
    def batch(self) -> BatchSize:
        """Minibatch size of local steps."""
        return None if self.table.batch == "full" else self.table.batch

    @property
    def gradient_batch(self) -> BatchSize:
        """Minibatch size of all other derivatives."""
        chosen = self.table.batch if self.table.gradient_batch is None else self.table.gradient_batch
        return None if chosen == "full" else chosen

    def remarks(self, problem: Problem, options: Options) -> list[str]:
        """What the options say of running with these clients and batches."""
        asked, m, systems = self.table.clients_per_round, len(problem.clients), self.systems
        sampled = (asked is not None and asked < m) or systems.availability < 1.0 or not systems.everybody_answers
        own = options.remarks(sampled=sampled, minibatches=(self.batch, self.gradient_batch) != (None, None))
        return [*own, *conditions.remarks(self.conditions, systems, problem.clients.weights, self.table)]

    def check(self, problem: Problem, options: Options) -> None:
        """Raises BadInput for what only the problem can tell: too few clients for a sample, local steps for others,
        options that a local lower level cannot use.
        """
        m = len(problem.clients)
        sample = self.table.clients_per_round
        if sample is not None and sample > m:
            raise BadInput("run.clients_per_round", sample, f"at most the number of clients, {m}")
        conditions.hold(self.conditions, self.systems, self.table, problem, self.seed)
        a = self.systems.availability
        if (
            a < 1.0
            and self.systems.availability_pattern != "day"
            and (present := -math.expm1(m * math.log1p(-a))) < 1.0 / MOST_WAITS
        ):
            allowed = (
                f"a chance by which one of {m} clients is there at least once in {MOST_WAITS} times, not {present:.1g}"
            )
            raise BadInput("systems.availability", a, allowed)
        if a < 1.0 and self.systems.availability_pattern == "day":
            night = self.systems.longest_night(self.seed, np.arange(m))
            if night > MOST_WAITS:
                allowed = f"a share of {self.systems.availability_period} iterations by which one of {m} clients is "
                raise BadInput("systems.availability", a, f"{allowed}there at least once in {MOST_WAITS} iterations")
        if is_local(problem):
            options.hold_local()
            if self.table.solution_every:
                allowed = "0 where the lower level is local: every task has a solution of its own"
                raise BadInput("run.solution_every", self.table.solution_every, allowed)
        if problem.clients.blocks is not None:
            options.hold_blocks()
        if not is_local(problem):
            options.hold_clients(self._local_steps(problem, options))
        start = initial(problem, self.seed)
        solved = every(self.table.solution_every, problem, *start) > 0
        self._hold_stop(problem, start, solved=solved)
        if not is_hollow(problem.clients):  # else the clients are elsewhere, and so is the memory that they take
            apart = self.conditions.apart(self.systems.byzantine)
            need = estimate(problem, start, options, sample, solved=solved, apart=apart).total
            require(need, "run", "fewer clients_per_round, or a smaller problem", at_hand(self.table.device))
        indices, iterations = getattr(options, "indices", None), self.table.iterations
        if indices is not None and iterations is not None and len(indices) < iterations:
            raise BadInput("options.indices", f"{len(indices)} indices", f"one per outer iteration, {iterations}")

    def _hold_stop(self, problem: Problem, start: tuple[Tensor, Tensor], *, solved: bool) -> None:
        """Hold `stop_at` against what is measured; of a local lower level, its methods tell. Raises BadInput."""
        stop = self.table.ending.stop_at
        if stop is not None and stop.column in SOLUTION_COLUMNS and not solved:
            allowed = "a column that is measured here, and the lower level is not solved: see run.solution_every"
            raise BadInput("run.stop_at.column", stop.column, allowed)
        if self.table.stop_at is not None and not is_local(problem):
            with torch.no_grad():
                names = problem.evaluate(*start)
            hold_target(self.table.stop_at, ["upper_loss", "lower_loss", *map(column_of, names)], "run.stop_at")

    def _local_steps(self, problem: Problem, options: Options) -> dict[str, NDArray[np.int64]]:
        """tau_i of all clients by option. Raises BadInput for a list of another length."""
        population, m, found = Population.of(problem.clients), len(problem.clients), {}
        for name, level in (("local_steps", "lower"), ("upper_local_steps", "upper")):
            taus = getattr(options, name, None)
            if isinstance(taus, list) and len(taus) != m:
                raise BadInput(f"options.{name}", f"{len(taus)} numbers", f"one number for each of the {m} clients")
            if taus is not None:
                found[name] = population.local_steps(taus, self.seed, np.arange(m), self.batch, level)
        return found


def run_one(
    run: Run,
    problem: Problem,
    exchange: Exchange,
    *,
    start: tuple[Tensor, Tensor] | None = None,
    observe: Callable[[Row], object] = lambda row: None,
    trace: bool = False,
    resume: Checkpoint | None = None,
    keep: Callable[[Checkpoint], None] | None = None,
    tick: Callable[[int, int], None] = lambda iteration, rounds: None,
    say: Callable[[str], None] = warnings.warn,
    enough: Callable[[], bool] = lambda: False,
) -> Result:
    """Run until the table's `ending` and return the result.

    observe: receives every row when it is made, and ends the run with it by returning True;
    resume, keep: continue from a checkpoint of a run that is not over, and receive one after every evaluation;
    tick: told of every iteration and the rounds so far; say: told in a line what the reader of the results should know;
    enough: whether to end early, asked after every iteration.

    Raises NonFinite, naming algorithm, seed, iteration and operation, when a loss or a mean is not finite, and
    ClientFailed when a client raises.
    """
    table = run.table
    fed = Federation(
        exchange,
        Population.of(problem.clients, problem.task_sizes if is_local(problem) else None),
        seed=run.seed,
        clients_per_round=table.clients_per_round,
        weighting=table.weighting,
        systems=run.systems,
        batch=run.batch,
        gradient_batch=run.gradient_batch,
        x_shapes=getattr(problem, "x_shapes", ()),
        conditions=run.conditions,
    )
    rows: list[Row] = []
    entries: list[TraceEntry] = []
    seconds = 0.0
    iteration = 0

    ending = table.ending
    stopped = reported = False

    def done() -> bool:
        if stopped or enough():
            return True
        ledger = fed.ledger
        counts: Row = {"iteration": iteration, "round": ledger.rounds, "simulated_seconds": ledger.simulated_seconds}
        return ending.spent(counts | {"uplink_bytes": ledger.uplink_bytes, "downlink_bytes": ledger.downlink_bytes})

    def evaluate(used: Tensor | None) -> None:
        nonlocal stopped
        row = evaluator.row(state, iteration, seconds, used, last=lambda row: done() or ending.met(row))
        rows.append(row)
        stopped = (observe(row) is True) or ending.met(row)
        if keep is not None:
            keep(Checkpoint(state, iteration, seconds, fed.ledger.totals(), evaluator.made, fed.remembered()))

    try:
        first = start or initial(problem, run.seed)
        evaluator = Evaluator(run.label, run.seed, run.algorithm, table, problem, fed, first, say)
        if resume is None:
            state: State = run.algorithm.init(*first)
            evaluate(None)
        else:
            state, iteration, seconds = resume.state, resume.iteration, resume.seconds
            evaluator.made = resume.evaluations
            for name, value in resume.ledger.items():
                setattr(fed.ledger, name, value)
            fed.remember(resume.federation)
            reported = fed.rows.dropped > 0
        evaluated = fed.ledger.rounds
        while not done():
            before, began = fed.ledger.rounds, time.perf_counter()
            used = state.x
            state = conditions.persevere(functools.partial(run.algorithm.step, state, fed), fed, iteration)
            seconds += time.perf_counter() - began
            if fed.rows.dropped and not reported:
                reported = True
                say(f"{run.label}, seed {run.seed}: answers that are not finite were dropped, {fed.rows.dropped_where}")
            iteration += 1
            tick(iteration, fed.ledger.rounds)
            if trace:
                taken = fed.ledger.rounds - before
                told = (state.x, state.y, state.hypergradient, taken, state.index, tuple(fed.asked))
                entries.append(TraceEntry(iteration, *told))
            if done() or fed.ledger.rounds // table.evaluate_every > evaluated // table.evaluate_every:
                evaluated = fed.ledger.rounds
                evaluate(used)
    except (KeyboardInterrupt, BadInput):
        raise
    except BaseException as error:  # a user's own algorithm or problem may raise anything, or leave the program
        kind, what = (type(error), str(error)) if isinstance(error, RunFailed) else (RunFailed, said(error))
        failed = kind(f"{run.label}, seed {run.seed}, iteration {iteration}: {what}")
        failed.history = rows
        raise failed from error
    return Result(state.x, state.y, rows, entries if trace else None, fed.ledger.communication())


def initial(problem: Problem, seed: int) -> tuple[Tensor, Tensor]:
    """Return the start of a run: the problem's own, in the dtype of its data."""
    x0, y0 = problem.initial(torch.Generator().manual_seed(seed))
    dtype = data_dtype(problem.clients) or x0.dtype
    return x0.to(dtype), y0.to(dtype)
