"""Engine ray and sweeps: the same history as in one process, whatever dies; and nothing of Ray is left behind."""

import csv
import gc
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from ray.cluster_utils import Cluster
from torch import Tensor

from clients.node import Setting
from fedbilevel import simulate
from fedbilevel.config import Config, check, read
from fedbilevel.errors import BadInput, ClientFailed, RunFailed
from fedbilevel.problem import Examples
from fedbilevel.problems import HyperRepresentation, Quadratic
from fedbilevel.data import federate
from fedbilevel.results import RunDirectory
from server.experiment import Experiment, Job, Observer, engine, local
from server.grids.actors import Shares
from server.grids.cluster import connected
from server.grids.engines import opened
from server.grids.flower_internals import SERVER_NODE_ID
from server.grids.parcels import pack, restricted, unpack
from server.grids.ray import RayGrid
from server.simulation import Result
from server.sweep import Sweep

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(120),
    # Ray leaves the files and processes that it starts for the garbage collector to close
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

REPOSITORY = Path(__file__).resolve().parents[1]

# What makes engines differ if anything does: sampled clients, absent ones, minibatches, local steps, and algorithms that
# send the same vectors in several rounds of an iteration.
PARTIAL: dict[str, Any] = {
    "run": {
        "seeds": [3, 4],
        "iterations": 3,
        "dtype": "float64",
        "batch": 2,
        "gradient_batch": 3,
        "clients_per_round": 4,
    },
    "problem": {"name": "quadratic", "clients": 9, "dim_x": 3, "dim_y": 4, "examples": [1, 4]},
    "systems": {"availability": 0.7},
    "options": {"upper_step": 0.05, "lower_step": 0.1, "neumann_terms": 2, "lower_rounds": 2, "local_steps": 2},
    "algorithms": {"aggitd": {"estimator": "sample"}, "fednest": {}, "memfbo": {}, "f2sa": {}},
}


class Stalling(Quadratic):
    """A quadratic whose losses stop in the process named in the file `stall`, and end the one named in `die`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(clients=7, dim_x=3, dim_y=4, examples=(1, 4), seed=5)
        self.folder = str(folder)

    def _meet(self) -> None:
        folder = Path(self.folder)
        if (folder / "die").exists() and os.getpid() != int((folder / "die").read_text()):
            os.kill(os.getpid(), signal.SIGKILL)
        if (folder / "stall").exists() and os.getpid() == int((folder / "stall").read_text()):
            (folder / "inside").touch()
            time.sleep(60)

    def lower(self, x: Tensor, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        self._meet()
        return super().lower(x, y, examples)

    def upper(self, x: Tensor, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        self._meet()
        return super().upper(x, y, examples)


class Broken(Quadratic):
    """The losses of client 4, who alone has 50 examples, raise."""

    def __init__(self) -> None:
        super().__init__(clients=6, dim_x=3, dim_y=3, examples=2)
        parts = [
            {k: v[:1].expand(50 if i == 4 else 2, *v.shape[1:]) for k, v in self._part(i).items()} for i in range(6)
        ]
        self.clients = type(self.clients)(parts, self.clients.upper, "uniform")

    def _part(self, client: int) -> dict[str, Tensor]:
        values: dict[str, Tensor] = self.clients.lower.take(np.array([client])).values
        return values

    def lower(self, x: Tensor, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        if len(examples["b"]) >= 50:
            raise ValueError("fifty are\ntoo many")
        return super().lower(x, y, examples)


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    """Flower's task identity is one per process: leave it as it was."""
    names = ("_task_id", "_run_id", "_node_id")
    before = {name: getattr(TaskIdentity, name) for name in names}
    yield
    for name, value in before.items():
        setattr(TaskIdentity, name, value)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A Ray cluster of two machines on this one: a head with one CPU, which this process has joined, and another with two."""
    environment = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        made.add_node(num_cpus=2)
        try:
            with connected(made.address):
                yield made
        finally:
            made.shutdown()
            gc.collect()


def without_wall_seconds(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{name: value for name, value in row.items() if name != "wall_seconds"} for row in rows]


def assert_same(rows: list[dict[str, object]], expected: list[dict[str, object]], tolerance: float = 1e-12) -> None:
    """Every column but wall_seconds: numbers to the tolerance (relative and absolute), the rest exactly."""
    assert len(rows) == len(expected) > 0
    for row, wanted in zip(without_wall_seconds(rows), without_wall_seconds(expected), strict=True):
        assert row.keys() == wanted.keys()
        for name, value in row.items():
            if isinstance(value, float):
                assert value == pytest.approx(wanted[name], rel=tolerance, abs=tolerance), name
            else:
                assert value == wanted[name], name


# --- the same history ---


@pytest.fixture(scope="module")
def partial(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, list[dict[str, object]]]:
    """A config and its history on the engine local."""
    config = check(PARTIAL)
    experiment = Experiment(config, RunDirectory.create(tmp_path_factory.mktemp("partial") / "out"), local, Observer())
    assert experiment.run() == []
    return config, experiment.history()


@pytest.mark.parametrize("actors", [1, 2, 3])
def test_history_is_that_of_one_process(
    cluster: Cluster, partial: tuple[Config, list[dict[str, object]]], tmp_path: Path, actors: int
) -> None:
    """Two seeds (their problems differ) and four algorithms by the same actors, spread over two machines."""
    config, expected = partial
    with engine("ray", workers=actors, threads=1) as connect:
        experiment = Experiment(config, RunDirectory.create(tmp_path / "out"), connect, Observer())
        assert experiment.run() == []
    assert_same(experiment.history(), expected)


def test_large_vectors_travel_through_the_object_store(cluster: Cluster) -> None:
    """x has 784 * 20 numbers, 125 KB: beyond what travels with a message. Each is put there once, for two actors."""
    problem = HyperRepresentation(federate("digits", clients=4, partition_name="iid"), hidden=[200])
    options: dict[str, Any] = {"iterations": 2, "dtype": "float64", "lower_rounds": 2, "local_steps": 2}
    assert problem.initial(torch.Generator())[0].numel() * 8 > 50_000
    expected = simulate(problem, "aggitd", **options)
    assert_same(simulate(problem, "aggitd", engine="ray", workers=2, **options).history, expected.history)


# --- what dies ---


class Interrupted:
    """Stops an actor in the middle of an operation of a round, lets something happen, and sees that it did.

    when: for each iteration, the operations of the round, and what happens to the actor's process.
    """

    def __init__(self, grid: RayGrid, folder: Path, when: dict[int, tuple[list[str], Callable[[int], None]]]) -> None:
        self.actors, self.folder, self.when = grid.actors, folder, when
        self.done: list[int] = []
        self._ask, self._victim = grid.actors.ask, self.victim
        grid.actors.ask = self  # type: ignore[method-assign,assignment]  # what this class is for

    def victim(self) -> int:
        """The partition to strike; on the machine that is not the head, if there are several."""
        return 0

    def __call__(self, partition: int, *arguments: Any) -> Any:
        message = pickle.loads(arguments[0]).message
        if message.metadata.message_type != "query.operate":
            return self._ask(partition, *arguments)
        request = message.content.config_records["request"]
        iteration, operations = int(request["iteration"]), json.loads(request["operations"])
        wanted, happen = self.when.get(iteration, ([], print))
        if iteration in self.done or operations != wanted or partition != self.victim():
            return self._ask(partition, *arguments)
        pid = self.actors.pids()[partition]
        (self.folder / "stall").write_text(str(pid))
        call = self._ask(partition, *arguments)
        deadline = time.monotonic() + 30
        while not (self.folder / "inside").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        happen(pid)
        for name in ("stall", "inside"):
            (self.folder / name).unlink()
        self.done.append(iteration)
        return call


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


LOWER_STEP = ["svrg_steps"]
HESSIAN_VECTOR = ["lower_gradient", "linear_system_step"]
HYPERGRADIENT = ["hypergradient"]
UPPER_STEP = ["outer_steps"]
OPTIONS: dict[str, Any] = {
    "iterations": 6,
    "batch": 2,
    "gradient_batch": 3,
    "clients_per_round": 5,
    "lower_rounds": 2,
    "lower_step": 0.1,
    "upper_step": 0.05,
    "local_steps": 2,
    "upper_local_steps": 2,
}


@contextmanager
def grid_of(monkeypatch: pytest.MonkeyPatch, shares: Shares) -> Iterator[RayGrid]:
    """A grid that `simulate(engine="ray")` uses, whatever it is told."""
    with RayGrid(shares) as grid:

        @contextmanager
        def given(name: str, **options: Any) -> Iterator[Any]:
            yield grid.exchange

        monkeypatch.setattr("server.simulation.opened", given)
        yield grid
        monkeypatch.undo()


def run_with(problem: Stalling, iterations: int = 6) -> Result:
    return simulate(problem, "aggitd", **{**OPTIONS, "iterations": iterations})


def test_an_actor_killed_in_the_middle_of_each_kind_of_round(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Stalling(tmp_path)
    expected = run_with(problem)
    with grid_of(monkeypatch, Shares(actors=2, threads=1)) as grid:
        when = dict(enumerate([LOWER_STEP, HESSIAN_VECTOR, HYPERGRADIENT, UPPER_STEP], start=1))
        interrupted = Interrupted(grid, tmp_path, {k: (operations, kill) for k, operations in when.items()})
        result = run_with(problem)
        assert interrupted.done == [1, 2, 3, 4]
        assert grid.actors.started == 2 + 4
    assert_same(result.history, expected.history)
    assert result.communication == expected.communication


def test_a_machine_killed_in_the_middle_of_each_kind_of_round(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One CPU per actor. A machine is added before another dies; when the last one dies, there is no room."""
    problem = Stalling(tmp_path)
    expected = run_with(problem)

    def machine_of(pid: int) -> Any:
        raylet = int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
        nodes = cluster.list_all_nodes()
        return next(node for node in nodes if node.all_processes["raylet"][0].process.pid == raylet)

    def lose(pid: int, *, replace: bool) -> None:
        machine = machine_of(pid)
        if replace:
            cluster.add_node(num_cpus=1)
        cluster.remove_node(machine, allow_graceful=False)

    try:
        with grid_of(monkeypatch, Shares(actors=2, threads=1, patience=30.0)) as grid:
            rounds = [LOWER_STEP, HESSIAN_VECTOR, UPPER_STEP]
            interrupted = Interrupted(
                grid,
                tmp_path,
                {k: (what, lambda pid: lose(pid, replace=True)) for k, what in enumerate(rounds, start=1)},
            )

            def victim() -> int:
                machines = [machine_of(pid) for pid in grid.actors.pids()]
                return next(j for j, machine in enumerate(machines) if machine is not cluster.head_node)

            monkeypatch.setattr(interrupted, "victim", victim)
            result = run_with(problem)
            assert interrupted.done == [1, 2, 3]
            assert grid.actors.started == 2 + 3
            assert_same(result.history, expected.history)
            assert result.communication == expected.communication

            grid.actors.shares = Shares(actors=2, threads=1, patience=3.0)
            interrupted.when, interrupted.done = {2: (UPPER_STEP, lambda pid: lose(pid, replace=False))}, []
            says = (
                r"aggitd, seed 0, iteration 2: worker \d of 2 has died \(.*\); no capacity for 1 of 2 workers: within 3"
            )
            with pytest.raises(RunFailed, match=says) as failed:
                run_with(problem)
            assert_same(list(map(dict, failed.value.history)), expected.history[:3])
    finally:
        cluster.add_node(num_cpus=2)
