"""`simulate`: one federation from Python."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from clients.node import Setting
from fedbilevel.conditions.compression import ChannelTable
from fedbilevel.conditions.privacy import PrivacyTable
from fedbilevel.conditions.rule import AggregationTable
from fedbilevel.conditions.tables import Conditions
from fedbilevel.config.build import build
from fedbilevel.config.tables import RunTable
from fedbilevel.config.validation import validated
from fedbilevel.data import federate
from fedbilevel.data.poison import flipped_share, poisoned
from fedbilevel.errors import BadInput, unknown
from fedbilevel.federation.systems import Systems
from fedbilevel.machine.device import Device, chosen
from fedbilevel.problem import Problem
from fedbilevel.problems.inspection import convert, inspect_problem
from fedbilevel.results.history import Row
from fedbilevel.results.targets import Target, hold_target, measured
from fedbilevel.strict import Strict
from server.grids.engines import opened
from server.kit.algorithm import Entry, find, option_names
from server.kit.options import Options
from server.running.run import Result, Run, initial, run_one

T = TypeVar("T", bound=Strict)


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
    solution_every: int | None = None,
    stop_at: float | Target | Mapping[str, Any] | None = None,
    max_bytes: float | None = None,
    max_simulated_seconds: float | None = None,
    systems: Systems | Mapping[str, Any] | None = None,
    aggregation: AggregationTable | Mapping[str, Any] | None = None,
    channel: ChannelTable | Mapping[str, Any] | None = None,
    privacy: PrivacyTable | Mapping[str, Any] | None = None,
    trace: bool = False,
    x0: Tensor | None = None,
    y0: Tensor | None = None,
    engine: str = "local",
    workers: int | None = None,
    threads: int | None = None,
    ray_address: str | None = None,
    patience: float = 60.0,
    observe: Callable[[Row], object] = lambda row: None,
    **options: Any,
) -> Result:
    """Simulate one federation.

    Parameters
    ----------
    problem
        An object with the methods of `fedbilevel.Problem`, or a name: "quadratic", "hyper_representation" (on the
        digits data), "path/to/file.py:factory".
    algorithm
        A name of `fedbilevel list`, or "path/to/file.py:name", the name of a factory of your own below `@algorithm`.
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
    solution_every
        Evaluations between two at the true lower solution (`value`, `gradient_norm`, ...); 0: none; default: 1 for
        problems with closed forms, 10 for small ones, else 0.
    stop_at
        Ends the run at the first evaluation that meets it: a test accuracy, or a table or `Target` of a column and its
        bound, `{"column": "upper_loss", "at_most": 0.1}`.
    max_bytes, max_simulated_seconds
        End the run with the iteration that reaches so many bytes, uplink and downlink, or simulated seconds.
    systems
        Who is there, who answers in time and honestly, and the network, as in the `[systems]` table.
    aggregation, channel, privacy
        How answers are aggregated, compressed and protected, as in the tables of these names.
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
    patience
        On ray: seconds in which an actor has to be ready.
    observe
        Receives every history row when it is made; where it returns True, the run ends with that row. What it raises
        ends the run as an error of the run.
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
            "solution_every": _plain(solution_every),
            "stop_at": _plain(dict(stop_at) if isinstance(stop_at, Mapping) else stop_at),
            "max_bytes": _plain(max_bytes),
            "max_simulated_seconds": _plain(max_simulated_seconds),
            "batch": _plain(batch),
            "gradient_batch": _plain(gradient_batch),
            "clients_per_round": _plain(clients_per_round),
            "weighting": weighting,
            "device": device,
        },
        "",
    )
    taken = applicable(plain, entry)
    network = _table(Systems, systems or {}, "systems")
    conditions = Conditions(
        _table(AggregationTable, aggregation or {}, "aggregation"),
        _table(ChannelTable, channel or {}, "channel"),
        None if privacy is None else _table(PrivacyTable, privacy, "privacy"),
    )
    if engine == "local":
        chosen(table.device, "device")
    ready = _ready(problem, dtype, table.seeds[0])
    if share := flipped_share(network.byzantine):
        ready = poisoned(ready, share, table.seeds[0])
    entry.hold(ready, "algorithm")
    setting = Run(algorithm, table.seeds[0], entry.build(taken), table, network, conditions)
    try:
        setting.check(ready, taken)
    except BadInput as error:
        raise BadInput(error.key.removeprefix("run."), error.value, error.allowed) from error
    for remark in setting.remarks(ready, taken):
        warnings.warn(f"{algorithm}: {remark}", stacklevel=2)
    start = None
    if x0 is not None or y0 is not None:
        first = initial(ready, setting.seed)
        start = (_start(x0, first[0], "x0"), _start(y0, first[1], "y0"))
    with opened(engine, workers=workers, threads=threads, ray_address=ray_address, patience=patience) as carrier:
        exchange = carrier(
            ready, Setting(setting.seed, setting.batch, setting.gradient_batch, table.device, entry.client_files)
        )
        return run_one(setting, ready, exchange, start=start, observe=_looked_over(observe, table), trace=trace)


def _looked_over(observe: Callable[[Row], object], table: RunTable) -> Callable[[Row], object]:
    """The same observer, with a look at what is measured after a step: of a local lower level it is not known before.

    It raises BadInput for a `stop_at` whose column never comes.
    """
    rows: list[Row] = []

    def look(row: Row) -> object:
        if table.stop_at is not None and len(rows) < 2:
            rows.append(row)
            if len(rows) == 2:
                hold_target(table.stop_at, measured(rows), "stop_at")
        return observe(row)

    return look


def applicable(options: Mapping[str, Any], entry: Entry) -> Options:
    """Return an algorithm's options out of a set that may serve several algorithms.

    Raises BadInput for a name that no algorithm has, and for values that this one cannot use.
    """
    for name in options:
        if name not in option_names(entry):
            raise unknown("options", name, option_names(entry))
    return entry.parse({name: value for name, value in options.items() if name in entry.options.model_fields})


def _table(kind: type[T], value: T | Mapping[str, Any], key: str) -> T:
    """A table that may be given as a mapping. Raises BadInput."""
    return value if isinstance(value, kind) else validated(kind, dict(value), key)


def _plain(value: Any) -> Any:
    """Give numpy and torch scalars and arrays as Python numbers and lists."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray | Tensor) else value


def _ready(problem: Problem | str, dtype: str | torch.dtype | None, seed: int) -> Problem:
    wanted = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if wanted not in (None, torch.float32, torch.float64):
        raise BadInput("dtype", dtype, '"float32" or "float64"')
    if isinstance(problem, str):
        return build(problem, {}, data=lambda: federate(seed=seed), dtype=wanted, seed=seed)
    inspect_problem(problem, type(problem).__name__)
    return problem if wanted is None else convert(problem, wanted)


def _start(own: Tensor | None, default: Tensor, name: str) -> Tensor:
    if own is None:
        return default
    if not isinstance(own, Tensor) or own.shape != default.shape:
        found = tuple(own.shape) if isinstance(own, Tensor) else type(own).__name__
        raise BadInput(name, found, f"a tensor of shape {tuple(default.shape)}")
    return own.to(default)
