"""What a simulation costs: iterations of FedNest's second figure, populations, memory, start-up, and stock Flower.

Every timing is a median of repeated runs; those of the figure are in compute units measured in the same process.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.timing import compute_unit, ratio, seconds
from clients.node import Setting
from clients.operations.oracles import lower_gradient
from fedbilevel.config.tables import read
from fedbilevel.data import FederatedData
from fedbilevel.federation.participation import Population
from fedbilevel.federation.rounds import Federation
from fedbilevel.federation.systems import Systems
from fedbilevel.problem import ClientData, Problem, Ragged
from fedbilevel.problems import Quadratic, hyper_cleaning
from fedbilevel.report import RunDirectory
from fedbilevel.results import read_history
from server.grids.engines import in_process
from server.kit.algorithm import find
from server.running.experiment import Experiment, Observer, local
from server.running.plan import Job, plan
from server.running.run import initial

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "experiments" / "configs"


# ---- one outer iteration of the figure ----


def fig2_units(algorithm: str, threads: int) -> float:
    """One outer iteration without evaluation over the compute unit. Raises BadInput where there is no MNIST."""
    return _with_threads(threads, _figure(algorithm), compute_unit())


def fig2_ratio(algorithm: str, other: str, threads: int) -> float:
    """One outer iteration of an algorithm over one of another. Raises BadInput where there is no MNIST."""
    return _with_threads(threads, _figure(algorithm), _figure(other))


def _with_threads(threads: int, one: Callable[[], object], other: Callable[[], object]) -> float:
    """The ratio of two calls, both with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return ratio(one, other, repeats=25, warm=3)
    finally:
        torch.set_num_threads(before)


_FULL = {"run.batch": '"full"', "options.local_steps": 1}
_FIG2 = {"simfbo": _FULL, "aggitd-s": _FULL}
"""What an algorithm that the figure does not have is run with: the same clients' examples, all in one step."""
_UNTUNED = {"aggitd-s": {"upper_step", "lower_step"}}
"""Options of the figure's that an algorithm does without."""


def _figure(algorithm: str) -> Callable[[], None]:
    """A function that does the next outer iteration of the figure by an algorithm."""
    config = read(CONFIGS / "fednest_fig2.toml", [f"{key}={value}" for key, value in _FIG2.get(algorithm, {}).items()])
    taken = find(algorithm).options.model_fields.keys() - _UNTUNED.get(algorithm, set())
    options = {key: value for key, value in config.options.items() if key in taken}
    own = {algorithm: config.algorithms.get(algorithm, {})}
    return _iterations(plan(config.model_copy(update={"options": options, "algorithms": own}))[0])


def _iterations(job: Job) -> Callable[[], None]:
    """A function that does the next outer iteration of a job."""
    problem, setup, run = job.setup().problem(), job.setup(), job.run()
    fed = Federation(
        local(setup, problem),
        Population.of(problem.clients),
        clients_per_round=job.config.run.clients_per_round,
        batch=setup.batch_size,
        gradient_batch=setup.gradient_batch_size,
        systems=Systems(),
    )
    state = run.algorithm.init(*initial(problem, job.seed))
    done = 0

    def step() -> None:
        nonlocal state, done
        fed.begin(done)
        state, done = run.algorithm.step(state, fed), done + 1

    return step


# ---- data cleaning ----


def hyper_cleaning_ms(repeats: int = 25) -> float:
    """A SimFBO iteration of data cleaning, 100 clients of 50 training and 50 validation images of noise, in ms."""
    draw = np.random.default_rng(0)

    def images(n: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        return draw.random((n, 28, 28), dtype=np.float32), draw.integers(0, 10, n)

    def level() -> Ragged:
        inputs, label = images(5000)
        values = {"input": torch.from_numpy(inputs).flatten(1), "label": torch.from_numpy(label)}
        return Ragged(values, np.arange(0, 5001, 50))

    problem = hyper_cleaning(FederatedData(ClientData(level(), level()), *images(10), 10, 784), noise=0.6)
    fed = Federation(in_process(problem, Setting()), Population.of(problem.clients))
    entry = find("simfbo")
    method = entry.factory(entry.options(upper_step=100.0, lower_step=0.01, neumann_step=0.01))
    state, done = method.init(*initial(problem, 0)), 0

    def step() -> None:
        nonlocal state, done
        fed.begin(done)
        state, done = method.step(state, fed), done + 1

    for _ in range(3):
        step()
    return 1000 * statistics.median(seconds(step) for _ in range(repeats))


# ---- populations ----


def _rounds(problem: Problem, sampled: int) -> Callable[[], None]:
    """A function that does one more round with newly sampled clients."""
    fed = Federation(in_process(problem, Setting()), Population.of(problem.clients), clients_per_round=sampled)
    x, y = initial(problem, 0)
    done = 0

    def call() -> None:
        nonlocal done
        fed.begin(done)
        fed.mean(lower_gradient, x=x + 0, y=y + 0)
        done += 1

    return call


def population_ratio(repeats: int = 400) -> float:
    """The time of a round with 100,000 registered clients over that with 1,000; 100 sampled."""
    many, few = (_rounds(Quadratic(clients=m, examples=1), 100) for m in (100_000, 1_000))
    return ratio(many, few, repeats, warm=20)


_POPULATION = """
import re
from pathlib import Path
from bench.simulation import _rounds
from fedbilevel.problems import Quadratic
problem = Quadratic(clients=100_000, examples=1)
def memory(which):
    return int(re.search(which + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
call = _rounds(problem, 100)
for _ in range(200):
    call()
print(memory("VmHWM") - before)
"""


def population_peak_mb() -> float:
    """Peak memory of that run beyond the imported libraries and the data, in MB."""
    return float(_python(_POPULATION))


# ---- memory and start-up ----

_DRIFT = """
from pathlib import Path
from fedbilevel import simulate
from fedbilevel.data import federate
from fedbilevel.problems import HyperRepresentation

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

problem = HyperRepresentation(federate("digits", clients=20), hidden=[32])
seen = {}
def observe(row):
    seen.setdefault(row["round"] // 200, resident())
simulate(problem, "aggitd", rounds=2200, lower_rounds=5, evaluate_every=200, observe=observe)
print(seen[11] - seen[1])
"""


def memory_drift_mb() -> float:
    """Growth of resident memory over 2,000 AggITD rounds after the first 200, in MB."""
    return float(_python(_DRIFT))


_FIRST_ROUND = """
import os, sys
from experiments.runs import progress
def first(self, job, iteration, rounds):
    os._exit(0)
progress.Display.stepped = first
from experiments.cli import main
main(["run", sys.argv[1], "--out", sys.argv[2]])
os._exit(1)
"""


def startup_s(repeats: int = 5) -> float:
    """`fedbilevel run` on digits to its first finished iteration, minus `import torch`, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        demo = str(CONFIGS / "demo.toml")
        runs = [
            seconds(lambda k=k: _python(_FIRST_ROUND, demo, f"{folder}/{k}"))  # type: ignore[misc]  # bound now
            for k in range(repeats)
        ]
        imports = [seconds(lambda: _python("import torch")) for _ in range(repeats)]
    return statistics.median(runs) - statistics.median(imports)


def _python(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300).stdout


# ---- stock Flower ----


def stock_flower_ratio(rounds: int = 200) -> float:
    """Wall time of 200 rounds of the demo (aggitd) on Flower's simulation runtime, start-up not counted, over local."""
    from tests.processes.flower import Flower, stop_all

    demo = (CONFIGS / "demo.toml").read_text()
    with tempfile.TemporaryDirectory(prefix="fb") as folder:
        config = Path(folder) / "demo.toml"
        config.write_text(demo[: demo.index("[algorithms.")] + "[algorithms.aggitd]\nlower_rounds = 5\n")
        overrides = ["run.seeds=[0]", f"run.rounds={rounds}", "run.evaluate_every=1000000"]
        here = Experiment(read(config, overrides), RunDirectory.create(f"{folder}/local"), local, Observer())
        here.run()
        flower = Flower(Path(folder))
        try:
            flower.run(f"config='{config}' set='{'; '.join(overrides)}' out='{folder}/stock'", timeout=550)
        finally:
            stop_all(flower.variable)
        stock, own = (_wall(Path(folder) / name / "history.csv") for name in ("stock", "local"))
    return stock / own


def _wall(history: Path) -> float:
    last: Any = read_history(history)[-1]["wall_seconds"]
    return float(last)


MEASURES: dict[str, Callable[[], float]] = {
    "fednest_fig2_units": lambda: fig2_units("fednest", 2),
    "fednest_fig2_units_one_thread": lambda: fig2_units("fednest", 1),
    "aggitd_fig2_units": lambda: fig2_units("aggitd", 2),
    "aggitd_fig2_units_one_thread": lambda: fig2_units("aggitd", 1),
    "simfbo_fig2_units": lambda: fig2_units("simfbo", 1),
    "aggitd_s_over_simfbo": lambda: fig2_ratio("aggitd-s", "simfbo", 2),
    "aggitd_s_over_simfbo_one_thread": lambda: fig2_ratio("aggitd-s", "simfbo", 1),
    "hyper_cleaning_ms": hyper_cleaning_ms,
    "population_ratio": population_ratio,
    "population_peak_mb": population_peak_mb,
    "memory_drift_mb": memory_drift_mb,
    "startup_s": startup_s,
    "stock_flower_ratio": stock_flower_ratio,
}
