"""Runs one algorithm on one problem: the loop around its steps, evaluation, and `simulate` for Python users."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from clients.node import Setting
from clients.operations.oracles import losses
from fedbilevel.config import RunTable
from fedbilevel.data import federate
from fedbilevel.device import Device, at_hand, chosen, placed
from fedbilevel.errors import BadInput, NonFinite, RunFailed, unknown
from fedbilevel.federation import Federation, Population
from fedbilevel.memory import require
from fedbilevel.messages import Exchange
from fedbilevel.problem import Problem
from fedbilevel.problems import build, convert
from fedbilevel.problems.build import data_dtype, inspect_problem
from fedbilevel.systems import BatchSize, Systems
from fedbilevel.tasks import is_local
from fedbilevel.validation import validated
from server.algorithm import Algorithm, Entry, State, find, option_names
from server.checkpoints import Checkpoint
from server.grids.engines import opened
from server.memory import estimate
from server.options import Options

Row = dict[str, object]


@dataclass(frozen=True)
class TraceEntry:
    """One outer iteration: x and y after it, the hypergradient by which x moved, and the rounds it took.

    index is the random Q or N' if one was drawn. Fields can also be read as items: `entry["x"]`.
    """

    iteration: int
    x: Tensor
    y: Tensor
    hypergradient: Tensor | None
    rounds: int
    index: int | None = None

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

    @property
    def batch(self) -> BatchSize:
        """Minibatch size of local steps."""
        return None if self.table.batch == "full" else self.table.batch

    @property
    def gradient_batch(self) -> BatchSize:
        """Minibatch size of all other derivatives."""
        chosen = self.table.batch if self.table.gradient_batch is None else self.table.gradient_batch
        return None if chosen == "full" else chosen

    def check(self, problem: Problem, options: Options) -> None:
        """Raises BadInput for what only the problem can tell: too few clients for a sample, local steps for others,
        options that a local lower level cannot use.
        """
        m = len(problem.clients)
        sample = self.table.clients_per_round
        if sample is not None and sample > m:
            raise BadInput("run.clients_per_round", sample, f"at most the number of clients, {m}")
        if is_local(problem):
            options.hold_local()
        for name in ("local_steps", "upper_local_steps"):
            taus = getattr(options, name, None)
            if isinstance(taus, list) and len(taus) != m:
                raise BadInput(f"options.{name}", f"{len(taus)} numbers", f"one number for each of the {m} clients")
        need = estimate(problem, initial(problem, self.seed), options, sample).total
        require(need, "run", "fewer clients_per_round, or a smaller problem", at_hand(self.table.device))
        indices, iterations = getattr(options, "indices", None), self.table.iterations
        if indices is not None and iterations is not None and len(indices) < iterations:
            raise BadInput("options.indices", f"{len(indices)} indices", f"one per outer iteration, {iterations}")


def run_one(
    run: Run,
    problem: Problem,
    exchange: Exchange,
    *,
    start: tuple[Tensor, Tensor] | None = None,
    observe: Callable[[Row], None] = lambda row: None,
    trace: bool = False,
    resume: Checkpoint | None = None,
    keep: Callable[[Checkpoint], None] | None = None,
    tick: Callable[[int, int], None] = lambda iteration, rounds: None,
) -> Result:
    """Run to the end and return the result; `observe` receives every row when it is made.

    resume, keep: continue from a checkpoint, and receive one after every evaluation; tick: told of every iteration and
    the rounds so far.

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
    )
    rows: list[Row] = []
    entries: list[TraceEntry] = []
    seconds = 0.0
    iteration = 0

    def done() -> bool:
        if table.iterations is not None:
            return iteration >= table.iterations
        return fed.ledger.rounds >= (table.rounds or 0)

    def evaluate() -> None:
        row = _row(run, problem, fed, state, iteration, seconds)
        rows.append(row)
        observe(row)
        if keep is not None:
            keep(Checkpoint(state, iteration, seconds, fed.ledger.totals()))

    try:
        if resume is None:
            state: State = run.algorithm.init(*(start or initial(problem, run.seed)))
            evaluate()
        else:
            state, iteration, seconds = resume.state, resume.iteration, resume.seconds
            for name, value in resume.ledger.items():
                setattr(fed.ledger, name, value)
        evaluated = fed.ledger.rounds
        while not done():
            before, began = fed.ledger.rounds, time.perf_counter()
            fed.begin(iteration)
            state = run.algorithm.step(state, fed)
            seconds += time.perf_counter() - began
            iteration += 1
            tick(iteration, fed.ledger.rounds)
            if trace:
                taken = fed.ledger.rounds - before
                entries.append(TraceEntry(iteration, state.x, state.y, state.hypergradient, taken, state.index))
            if done() or fed.ledger.rounds // table.evaluate_every > evaluated // table.evaluate_every:
                evaluated = fed.ledger.rounds
                evaluate()
    except RunFailed as error:
        failed = type(error)(f"{run.label}, seed {run.seed}, iteration {iteration}: {error}")
        failed.history = rows
        raise failed from error
    return Result(state.x, state.y, rows, entries if trace else None, fed.ledger.totals())


def _row(run: Run, problem: Problem, fed: Federation, state: State, iteration: int, seconds: float) -> Row:
    """One line of history. Raises NonFinite if a loss is not finite."""
    try:
        measures = _measures(run, problem, fed, state)
    except RunFailed:
        raise
    except Exception as error:
        raise RunFailed(f"operation evaluate, round {fed.ledger.rounds}: {type(error).__name__}: {error}") from error
    h = state.hypergradient
    row: Row = {
        "algorithm": run.label,
        "seed": run.seed,
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
        **{f"metric_{name}": value for name, value in measures.items()},
    }
    for name in ("upper_loss", "lower_loss", "test_loss"):
        value = row[name]
        if isinstance(value, float) and not np.isfinite(value):
            raise NonFinite(f"operation evaluate, round {fed.ledger.rounds}: {name} is {value}")
    return row


def _measures(run: Run, problem: Problem, fed: Federation, state: State) -> dict[str, float]:
    device = at_hand(run.table.device)
    problem = placed(problem, device)
    if run.algorithm.evaluate is not None and is_local(problem):
        return dict(run.algorithm.evaluate(state, problem, fed))
    upper, lower = fed.measure(losses, x=state.x, y=state.y).tolist()
    with torch.no_grad():
        own = {name: float(value) for name, value in problem.evaluate(state.x.to(device), state.y.to(device)).items()}
    return own | {"upper_loss": upper, "lower_loss": lower}


def simulate(
    problem: Problem | str,
    algorithm: str,
    *,
    iterations: int | None = None,
    rounds: int | None = None,
    seed: int = 0,
    dtype: Literal["float32", "float64"] | torch.dtype | None = None,
    device: Device = "auto",
    batch: Literal["full"] | int = "full",
    gradient_batch: Literal["full"] | int | None = None,
    clients_per_round: int | None = None,
    weighting: Literal["normalised", "unbiased"] = "normalised",
    evaluate_every: int = 1,
    systems: Systems | Mapping[str, Any] | None = None,
    trace: bool = False,
    x0: Tensor | None = None,
    y0: Tensor | None = None,
    engine: str = "local",
    workers: int | None = None,
    threads: int | None = None,
    ray_address: str | None = None,
    observe: Callable[[Row], None] = lambda row: None,
    **options: Any,
) -> Result:
    """Simulate one federation.

    Parameters
    ----------
    problem
        An object with the methods of `fedbilevel.Problem`, or a name: "quadratic", "hyper_representation" (on the
        digits data), "path/to/file.py:factory".
    algorithm
        A name of `fedbilevel list`.
    iterations, rounds
        Outer iterations, or communication rounds to reach; 100 iterations if neither is given.
    seed
        Keys every random draw and the start.
    dtype
        "float32" or "float64"; default: the problem's own.
    device
        Where clients compute and the server evaluates: "cpu", "cuda", or "auto", a CUDA card where there is one.
    batch, gradient_batch
        "full" or the minibatch size of local steps, and of all other derivatives (default: `batch`).
    clients_per_round
        |S|, the clients sampled for an outer iteration; default: all.
    weighting
        Of a sampled set: "normalised" p_i / sum_S p_j, or "unbiased" (m/|S|) p_i.
    evaluate_every
        Rounds between evaluations.
    systems
        Availability and network, as in the `[systems]` table.
    trace
        Keep x, y, hypergradient and rounds of every iteration.
    x0, y0
        A start of your own.
    engine
        "local": in this process; "ray": over Ray actors, which receive a copy of the problem (a Ray of its own is
        started and ended, which takes seconds, unless `ray.init` was called before).
    workers
        Nodes over which the clients are spread, on which the result does not depend; default: 1, and an actor per CPU
        on ray.
    threads, ray_address
        On ray: torch's threads in each actor (default: CPUs / workers), and the cluster to join, "host:port" or "auto".
    observe
        Receives every history row when it is made.
    options
        The algorithm's options (see `fedbilevel list`): upper_step (alpha), lower_step (beta), neumann_step (lam),
        lower_rounds (T; N for aggitd), neumann_terms (N), local_steps (tau), upper_local_steps, estimator, warm_start,
        accounting, indices (Q or N' per iteration), penalty (lam of F2SA and MemFBO), ... One set can be passed to
        every algorithm of a comparison: each reads the options that it has.

    Raises BadInput for anything that cannot be used, RunFailed when the run goes wrong (its `history` attribute holds
    the rows so far).

    >>> result = simulate("quadratic", "fednest", iterations=2, neumann_terms=3, lower_rounds=1, trace=True)
    >>> [entry.rounds for entry in result.trace]
    [8, 8]
    """
    entry = find(algorithm)
    plain = {name: _plain(value) for name, value in options.items()}
    table = validated(
        RunTable,
        {
            "seeds": [_plain(seed)],
            "iterations": 100 if iterations is None and rounds is None else _plain(iterations),
            "rounds": _plain(rounds),
            "evaluate_every": _plain(evaluate_every),
            "batch": _plain(batch),
            "gradient_batch": _plain(gradient_batch),
            "clients_per_round": _plain(clients_per_round),
            "weighting": weighting,
            "device": device,
        },
        "",
    )
    taken = applicable(plain, entry)
    network = systems if isinstance(systems, Systems) else validated(Systems, dict(systems or {}), "systems")
    if engine == "local":
        chosen(table.device, "device")
    ready = _ready(problem, dtype, table.seeds[0])
    entry.hold(ready, "algorithm")
    setting = Run(algorithm, table.seeds[0], entry.factory(taken), table, network)
    setting.check(ready, taken)
    start = None
    if x0 is not None or y0 is not None:
        first = initial(ready, setting.seed)
        start = (_start(x0, first[0], "x0"), _start(y0, first[1], "y0"))
    with opened(engine, workers=workers, threads=threads, ray_address=ray_address) as carrier:
        exchange = carrier(ready, Setting(setting.seed, setting.batch, setting.gradient_batch, table.device))
        return run_one(setting, ready, exchange, start=start, observe=observe, trace=trace)


def initial(problem: Problem, seed: int) -> tuple[Tensor, Tensor]:
    """Return the start of a run: the problem's own, in the dtype of its data."""
    x0, y0 = problem.initial(torch.Generator().manual_seed(seed))
    dtype = data_dtype(problem.clients) or x0.dtype
    return x0.to(dtype), y0.to(dtype)


def applicable(options: Mapping[str, Any], entry: Entry) -> Options:
    """Return an algorithm's options out of a set that may serve several algorithms.

    Raises BadInput for a name that no algorithm has, and for values that this one cannot use.
    """
    for name in options:
        if name not in option_names():
            raise unknown("options", name, option_names())
    return entry.parse({name: value for name, value in options.items() if name in entry.options.model_fields})


def _plain(value: Any) -> Any:
    """Give numpy and torch scalars and arrays as Python numbers and lists."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray | Tensor) else value


def _ready(problem: Problem | str, dtype: str | torch.dtype | None, seed: int) -> Problem:
    wanted = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if wanted not in (None, torch.float32, torch.float64):
        raise BadInput("dtype", dtype, '"float32" or "float64"')
    if isinstance(problem, str):
        return build(problem, {}, data=lambda: federate(seed=seed), dtype=wanted)
    inspect_problem(problem, type(problem).__name__)
    return problem if wanted is None else convert(problem, wanted)


def _start(own: Tensor | None, default: Tensor, name: str) -> Tensor:
    if own is None:
        return default
    if not isinstance(own, Tensor) or own.shape != default.shape:
        found = tuple(own.shape) if isinstance(own, Tensor) else type(own).__name__
        raise BadInput(name, found, f"a tensor of shape {tuple(default.shape)}")
    return own.to(default)
