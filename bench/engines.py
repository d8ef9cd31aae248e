"""What the engines cost and gain: overheads per round and per client, and speed-ups of actors and of sweeps.

Every function returns a median of repeated runs; `unit_ms` measures the compute unit in the same process, so that a
ratio can be quoted on a noisy machine.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.timing import compute_unit, median
from clients.node import Setting
from clients.operations.local import local_hypergradient_steps, svrg_steps
from fedbilevel.config.tables import check
from fedbilevel.federation.participation import Population
from fedbilevel.federation.rounds import Federation
from fedbilevel.problem import ClientData, Examples, Ragged
from fedbilevel.problems.bilevel.quadratic import Quadratic
from fedbilevel.report import RunDirectory
from server.grids.engines import Carrier, in_process, opened
from server.running.experiment import Experiment, Observer, local

DOWN, UP = 160_000, 1_000
"""Numbers in x (640 KB in float32) and in y (its sums travel up in float64: 8 KB)."""


class Empty:
    """Clients with one number each, and two losses that nobody differentiates."""

    def __init__(self, clients: int) -> None:
        level = Ragged(torch.zeros(clients, 1), np.arange(clients + 1))
        self.clients = ClientData(level, level, "uniform")

    def initial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return zeros."""
        return torch.zeros(DOWN), torch.zeros(UP)

    def lower(self, x: Tensor, y: Tensor, examples: Examples) -> Tensor:
        """Return what nobody asks for."""
        return torch.as_tensor(examples[:, 0] * y.sum())

    def upper(self, x: Tensor, y: Tensor, examples: Examples) -> Tensor:
        """Return what nobody asks for."""
        return torch.as_tensor(examples[:, 0] * y.sum())

    def evaluate(self, x: Tensor, y: Tensor) -> Mapping[str, float]:
        """Return nothing."""
        return {}


def unit_ms(repeats: int = 15) -> float:
    """The compute unit, in this process."""
    return 1e3 * median(compute_unit(), repeats)


def _empty_round(carrier: Carrier, clients: int, sample: int | None = None) -> Callable[[], object]:
    """A round in which a new x goes down, and clients answer without a derivative: a single corrected step of SVRG."""
    problem = Empty(clients)
    fed = Federation(carrier(problem, Setting()), Population.of(problem.clients), clients_per_round=sample)
    fed.begin(0)
    y, gradient = torch.zeros(UP), torch.zeros(UP)

    def call() -> None:
        fed.mean(svrg_steps, x=torch.zeros(DOWN), y=y, gradient=gradient, lower_step=0.1, local_steps=1)

    return call


def _products(seconds: float) -> int:
    """How many compute units this process gets done."""
    torch.set_num_threads(1)
    unit = compute_unit()
    end, done = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        unit()
        done += 1
    return done


def machine_speedup(seconds: float = 2.0) -> float:
    """What the machine itself gains from a second process: the bound of the speed-ups below, 2 on two idle cores."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(_products, [0.1, 0.1], chunksize=1)
        alone = pool.apply(_products, [seconds])
        return sum(pool.map(_products, [seconds, seconds], chunksize=1)) / alone


def round_overhead_ms(repeats: int = 200) -> float:
    """Engine local, an operation that does nothing, one client, 640 KB down, 8 KB up."""
    return 1e3 * median(_empty_round(in_process, 1), repeats)


def client_overhead_us(repeats: int = 100) -> float:
    """Engine local, the empty operation: what a sampled client beyond the first costs, with 1,000 sampled."""
    many, one = (_empty_round(in_process, 1_000, sample) for sample in (None, 1))
    return 1e6 * (median(many, repeats) - median(one, repeats)) / 999


def fresh_client_overhead_us(repeats: int = 50) -> float:
    """The same with 1,000 of 10,000 clients sampled anew for every round, their examples gathered."""
    problem = Empty(10_000)

    def rounds(sample: int) -> Callable[[], object]:
        exchange = in_process(problem, Setting())
        fed = Federation(exchange, Population.of(problem.clients), clients_per_round=sample)
        y, iterations = torch.zeros(UP), iter(range(10**9))

        def call() -> None:
            fed.begin(next(iterations))
            fed.mean(svrg_steps, x=torch.zeros(DOWN), y=y, gradient=y, lower_step=0.1, local_steps=1)

        return call

    return 1e6 * (median(rounds(1_000), repeats) - median(rounds(1), repeats)) / 999


def ray_round_overhead_ms(repeats: int = 100, actors: int = 2) -> float:
    """Engine ray, the empty operation, 640 KB down."""
    with opened("ray", workers=actors, threads=1) as carrier:
        return 1e3 * median(_empty_round(carrier, 100), repeats)


def ray_speedup(repeats: int = 7) -> float:
    """Two actors with one thread each over one actor with one thread, for local work on every client's own Hessian."""
    problem = Quadratic(clients=64, dim_x=96, dim_y=96, examples=24)
    options = {"upper_step": 0.1, "neumann_step": 0.1, "neumann_terms": 40, "index": None, "upper_local_steps": 1}

    def seconds(actors: int) -> float:
        with opened("ray", workers=actors, threads=1) as carrier:
            fed = Federation(carrier(problem, Setting()), Population.of(problem.clients))
            fed.begin(0)
            x, y = problem.initial(torch.Generator().manual_seed(0))
            return median(lambda: fed.mean(local_hypergradient_steps, x=x, y=y, **options), repeats)

    return seconds(1) / seconds(2)


SWEEP = {
    "run": {"seeds": [0, 1, 2, 3], "iterations": 1500, "evaluate_every": 1000},
    "problem": {"name": "hyper_representation", "hidden": [32]},
    "data": {"name": "digits", "clients": 20, "partition": "iid"},
    "options": {"upper_step": 0.1, "lower_step": 0.1, "lower_rounds": 5, "neumann_terms": 5, "local_steps": 5},
    "algorithms": {"aggitd": {}, "fednest": {}},
}


def sweep_speedup() -> float:
    """Eight runs of several seconds two at a time over one after another, one thread each, starting Ray included."""
    from server.running.sweep import Sweep

    config = check(SWEEP)

    def seconds(make: Callable[[RunDirectory], Experiment]) -> float:
        with tempfile.TemporaryDirectory() as folder:
            experiment = make(RunDirectory.create(Path(folder) / "out"))
            began = time.perf_counter()
            assert not experiment.run()
            return time.perf_counter() - began

    with _threads(1):
        alone = seconds(lambda directory: Experiment(config, directory, local, Observer()))
        return alone / seconds(lambda directory: Sweep(config, directory, Observer(), jobs=2, threads=1))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


MEASURES: dict[str, Callable[[], float]] = {
    "unit_ms": unit_ms,
    "machine_speedup": machine_speedup,
    "round_overhead_ms": round_overhead_ms,
    "client_overhead_us": client_overhead_us,
    "fresh_client_overhead_us": fresh_client_overhead_us,
    "ray_round_overhead_ms": ray_round_overhead_ms,
    "ray_speedup": ray_speedup,
    "sweep_speedup": sweep_speedup,
}
