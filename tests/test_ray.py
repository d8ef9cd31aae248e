"""Engine ray and sweeps: the same history as in one process, whatever dies; and nothing of Ray is left behind."""

import contextlib
import csv
import gc
import json
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from ray.cluster_utils import Cluster
from torch import Tensor

from clients.node import Setting
from fedbilevel import simulate
from fedbilevel.config.tables import Config, check
from fedbilevel.data import federate
from fedbilevel.errors import BadInput, ClientFailed, RunFailed
from fedbilevel.problems import HyperRepresentation, Quadratic
from fedbilevel.results import RunDirectory
from server.grids.actors import Shares
from server.grids.cluster import _alive, _family, connected
from server.grids.engines import opened
from server.grids.flower_internals import SERVER_NODE_ID
from server.grids.parcels import pack, restricted, unpack
from server.grids.ray import RayGrid
from server.running.experiment import Experiment, Observer, engine, local
from server.running.plan import Job
from server.running.run import Result
from server.running.sweep import Sweep
from tests.console import heed_ctrl_c
from tests.flower import processes_with

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(120),
    # Ray leaves the files and processes that it starts for the garbage collector to close
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

REPOSITORY = Path(__file__).resolve().parents[1]

# What makes engines differ if anything does: sampled clients, absent ones, minibatches, local steps, and algorithms
# that send the same vectors in several rounds of an iteration.
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
    """A Ray cluster of two machines on this one: a head with one CPU, which this process joins, and one with two."""
    environment = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "FEDBILEVEL_TEST": uuid.uuid4().hex,
    }
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
    """X has 784 * 20 numbers, 125 KB: beyond what travels with a message. Each is put there once, for two actors."""
    problem = HyperRepresentation(federate("digits", clients=4, partition_name="iid"), hidden=[200])
    options: dict[str, Any] = {"iterations": 2, "dtype": "float64", "lower_rounds": 2, "local_steps": 2}
    assert problem.initial(torch.Generator())[0].numel() * 8 > 50_000
    expected = simulate(problem, "aggitd", **options)
    assert_same(simulate(problem, "aggitd", engine="ray", workers=2, **options).history, expected.history)


def test_tasks_of_the_clients_give_the_same_history(cluster: Cluster) -> None:
    options: dict[str, Any] = {"iterations": 3, "clients_per_round": 5, "upper_optimiser": "adam", "local_steps": 2}
    for name in ("maml", "memfbo"):
        expected = simulate("quadratic_tasks", name, **options)
        assert_same(simulate("quadratic_tasks", name, engine="ray", workers=2, **options).history, expected.history)


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
        request = json.loads(message.content.config_records["request"]["what"])
        iteration, operations = request["iteration"], request["operations"]
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

        monkeypatch.setattr("server.running.simulation.opened", given)
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


def test_clients_that_kill_every_actor_end_the_run(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an operation that needs more memory than there is would."""
    problem = Stalling(tmp_path)
    (tmp_path / "die").write_text(str(os.getpid()))
    with grid_of(monkeypatch, Shares(actors=1, threads=1)) as grid:
        says = r"^aggitd, seed 0, iteration 0: worker 0 of 1 has died 3 times in a row: The actor is dead because"
        with pytest.raises(RunFailed, match=says):
            run_with(problem)
        assert grid.actors.started == 3


# --- what goes wrong ---


def test_a_failing_client_is_named_as_on_one_process(cluster: Cluster) -> None:
    failures = []
    for options in ({}, {"engine": "ray", "workers": 2, "threads": 1}):
        with pytest.raises(ClientFailed) as failed:
            simulate(Broken(), "aggitd", iterations=2, **options)
        failures.append(str(failed.value))
    says = "aggitd, seed 0, iteration 0: client 4, operation losses, round 0: ValueError: fifty are too many"
    assert failures == [says, says]


class NotHere(Quadratic):
    """Cannot be made again from what was pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (int, ("no such data on this machine",))


class Unpicklable(Quadratic):
    def __init__(self) -> None:
        super().__init__(clients=3)
        self.lock = threading.Lock()


def test_a_problem_that_does_not_travel_is_refused(cluster: Cluster) -> None:
    with opened("ray", workers=1, threads=1) as carrier:
        with pytest.raises(
            BadInput, match=r"^problem: got 'Unpicklable'; allowed: an object that can be pickled .*lock"
        ):
            carrier(Unpicklable(), Setting())
        with pytest.raises(RunFailed, match=r"worker 0 cannot take its clients: ValueError: .*no such data"):
            carrier(NotHere(clients=3), Setting())
        carrier(Quadratic(clients=3), Setting())


def test_unknown_nodes_and_messages_are_bad_input(cluster: Cluster) -> None:
    with RayGrid(Shares(actors=2, threads=1)) as grid:
        nodes = grid.get_node_ids()
        assert len(nodes) == 2
        assert SERVER_NODE_ID not in nodes
        hello = [grid.create_message(RecordDict(), "query.hello", node, "") for node in nodes]
        ids = grid.push_messages(hello)
        replies = grid.pull_messages(reversed(ids))
        assert [reply.metadata.src_node_id for reply in replies] == nodes[::-1]
        assert [reply.metadata.reply_to_message_id for reply in replies] == ids[::-1]
        with pytest.raises(BadInput, match="message_id"):
            grid.pull_messages(ids[:1])
        with pytest.raises(BadInput, match="dst_node_id: got 99"):
            grid.push_messages([hello[0], Message(RecordDict(), 99, "query.hello")])
        [reply] = grid.send_and_receive([Message(RecordDict(), nodes[0], "query.unheard")])
        assert "unheard" in str(reply.error.reason)


def test_an_actor_is_given_its_own_clients_alone() -> None:
    """Examples of others stay here, and numbers of clients and weights are kept."""
    problem = Quadratic(clients=40, dim_x=8, dim_y=8, examples=(1, 9))
    part = unpack(pack(restricted(problem, 10, 20)))
    assert len(pack(restricted(problem, 10, 20))) < len(pack(problem)) / 3
    assert np.array_equal(part.clients.weights, problem.clients.weights)
    for level in ("lower", "upper"):
        whole, held = getattr(problem.clients, level), getattr(part.clients, level)
        assert np.array_equal(held.sizes, np.where((np.arange(40) >= 10) & (np.arange(40) < 20), whole.sizes, 0))
        mine = np.array([11, 19, 10])
        for name, values in whole.take(mine).values.items():
            assert torch.equal(held.take(mine).values[name], values)


@contextmanager
def listening() -> Iterator[int]:
    """A port where somebody answers who is not Ray."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_an_address_without_ray_is_refused_within_seconds() -> None:
    with listening() as port:
        says = {
            "127.0.0.1:1": r"host:port of its head, or auto, and nothing answers there \(Connection refused\)$",
            "no.such.host.invalid:6379": "and nothing answers there",
            "localhost": "host:port of its head, or auto$",
            "ray://127.0.0.1:10001": "host:port of its head, or auto$",
            f"127.0.0.1:{port}": "and what answers there is not Ray$",
        }
        code = f"""
import time
from fedbilevel import BadInput, simulate
for address in {list(says)!r}:
    began = time.monotonic()
    try:
        simulate("quadratic", "aggitd", iterations=1, engine="ray", ray_address=address)
    except BadInput as error:
        print(error, end="" if time.monotonic() - began < 12 else " - after a long time")
        print()
"""
        lines = script(code).communicate(timeout=100)[0].splitlines()
    assert len(lines) == len(says)
    for line, (address, said) in zip(lines, says.items(), strict=True):
        assert line.startswith(f"ray_address: got {address!r}; allowed: the address of a Ray cluster, ")
        assert re.search(said, line)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"engine": "rya"}, "engine: got 'rya'; allowed: local, ray"),
        ({"engine": "ray", "workers": 0}, "workers: got 0"),
        ({"engine": "ray", "threads": 0}, "threads: got 0"),
        ({"ray_address": "auto"}, "ray_address: got 'auto'; allowed: nothing, since the engine is local"),
    ],
)
def test_what_an_engine_cannot_use_is_bad_input(options: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        simulate("quadratic", "aggitd", iterations=1, **options)


# --- sweeps ---


class Events(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.all: list[tuple[str, str, int]] = []

    def started(self, job: Job) -> None:
        self.all.append(("started", job.label, job.seed))

    def row(self, job: Job, row: dict[str, object]) -> None:
        self.all.append(("row", job.label, job.seed))

    def ended(self, job: Job, error: Exception | None) -> None:
        self.all.append(("failed" if error else "ended", job.label, job.seed))


def test_a_sweep_gives_the_same_history_and_a_failing_run_does_not_stop_it(
    cluster: Cluster, partial: tuple[Config, list[dict[str, object]]], tmp_path: Path
) -> None:
    config, expected = partial
    tables = config.model_dump(exclude_none=True)
    tables["algorithms"] = {"diverges": {"algorithm": "memfbo", "lower_step": 1e300}, **tables["algorithms"]}
    events = Events()
    sweep = Sweep(check(tables), RunDirectory.create(tmp_path / "out"), events, jobs=2)
    failures = sweep.run()
    assert [(job.label, job.seed) for job, _ in failures] == [("diverges", 3), ("diverges", 4)]
    assert str(failures[0][1]).startswith("diverges, seed 3, iteration")
    rows = [row for row in sweep.directory.read_history() if row["algorithm"] != "diverges"]
    assert without_wall_seconds(rows) == without_wall_seconds(expected)
    for job in sweep.jobs:
        mine = [kind for kind, *which in events.all if which == [job.label, job.seed]]
        assert mine[0] == "started"
        assert mine[-1] == ("failed" if job.label == "diverges" else "ended")
        assert mine.count("row") == len(sweep.rows[job.label, job.seed])
    assert (tmp_path / "out" / "summary.csv").exists()


def test_a_run_of_a_sweep_whose_process_is_killed_goes_on_from_its_checkpoint(cluster: Cluster, tmp_path: Path) -> None:
    tables = {
        **PARTIAL,
        "run": {**PARTIAL["run"], "seeds": [3], "iterations": 1500, "evaluate_every": 10},
        "options": {"upper_step": 0.05},
        "algorithms": {"memfbo": {}},
    }
    config = check(tables)
    alone = Experiment(config, RunDirectory.create(tmp_path / "alone"), local, Observer())
    assert alone.run() == []

    class Killer(Observer):
        def __init__(self) -> None:
            self.killed: list[int] = []

        def stepped(self, job: Job, iteration: int, rounds: int) -> None:
            if not self.killed and (tmp_path / "out" / "checkpoints").exists():
                self.killed += kill_federations()

    killer = Killer()
    sweep = Sweep(config, RunDirectory.create(tmp_path / "out"), killer, jobs=2)
    assert sweep.run() == []
    assert len(killer.killed) == 1
    assert without_wall_seconds(sweep.history()) == without_wall_seconds(alone.history())


def kill_federations() -> list[int]:
    """Kill the processes that run a job of a sweep of this test; returns their pids."""
    mine = processes_with(f"FEDBILEVEL_TEST={os.environ['FEDBILEVEL_TEST']}")
    pids = [pid for pid, command in mine.items() if command.startswith("ray::federation")]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return pids


def test_a_run_whose_process_dies_every_time_fails_alone(cluster: Cluster, tmp_path: Path) -> None:
    tables = {
        **PARTIAL,
        "run": {**PARTIAL["run"], "seeds": [3], "iterations": 3000, "evaluate_every": 10**6},
        "options": {"upper_step": 0.05},
        "algorithms": {"victim": {"algorithm": "memfbo"}, "joint": {}},
    }

    class Killer(Events):
        def stepped(self, job: Job, iteration: int, rounds: int) -> None:
            if job.label == "victim" and iteration < 3000:
                kill_federations()

    killer = Killer()
    failures = Sweep(check(tables), RunDirectory.create(tmp_path / "out"), killer, jobs=1).run()
    assert [job.label for job, _ in failures] == ["victim"]
    assert re.search(r"^victim, seed 3: its process has died 3 times in a row", str(failures[0][1]))
    assert ("failed", "victim", 3) in killer.all
    assert ("ended", "joint", 3) in killer.all


# --- nothing is left behind ---


def script(code: str, **environment: str) -> subprocess.Popen[str]:
    """Run a script with nothing of this process's Ray."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "FEDBILEVEL_"))}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
        env={**kept, **environment},
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=heed_ctrl_c,
    )


FINISHES_AND_FAILS = """
import os, signal
from fedbilevel import RunFailed, simulate
from fedbilevel.problems import Quadratic

class Broken(Quadratic):
    def lower(self, x, y, examples):
        if os.getpid() != self.here:
            raise ValueError("not here")
        return super().lower(x, y, examples)

print(len(simulate("quadratic", "aggitd", iterations=2, engine="ray", workers=2).history))
broken = Broken(clients=4)
broken.here = os.getpid()
try:
    simulate(broken, "aggitd", iterations=2, engine="ray", workers=1)
except RunFailed as error:
    print(error)
print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
"""

GOES_ON = """
import signal
from fedbilevel.config.tables import check
from fedbilevel.results import RunDirectory
from server.running.experiment import Experiment, Observer, engine
from server.running.sweep import Sweep

class Tell(Observer):
    told = 0
    def stepped(self, job, iteration, rounds):
        self.told += 1
        if self.told == 5:
            print("runs", flush=True)

run = {"seeds": [0, 1], "iterations": 1000000, "evaluate_every": 100}
def end(number, frame):
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, end)
config = check({"run": run, "problem": {"name": "quadratic"}, "algorithms": {"aggitd": {}}})
out = RunDirectory.create(OUT)
try:
    if SWEEP:
        Sweep(config, out, Tell(), jobs=2).run()
    else:
        with engine("ray", workers=2, threads=1) as connect:
            Experiment(config, out, connect, Tell()).run()
except KeyboardInterrupt:
    print("interrupted")
"""


@contextmanager
def watched(code: str) -> Iterator[tuple[subprocess.Popen[str], str, Path]]:
    """Run a script whose processes can be told by a variable; whatever is left in the end is killed by its pid.

    Its scratch files lie in a folder with a short name, since Ray's sockets do too. Ray's agents write their titles
    over the variable: they are told by their ancestors.
    """
    scratch = Path(tempfile.mkdtemp(prefix="fb"))
    mark = f"FEDBILEVEL_TEST={uuid.uuid4().hex}"
    name, value = mark.split("=")
    process = script(code, **{name: value, "TMPDIR": str(scratch)})
    try:
        yield process, mark, scratch
    finally:
        for pid in processes_with(mark):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=20)
        shutil.rmtree(scratch, ignore_errors=True)


def test_a_finished_and_a_failed_run_leave_nothing_and_say_nothing() -> None:
    with watched(FINISHES_AND_FAILS) as (process, mark, scratch):
        out, _ = process.communicate(timeout=100)
        assert list(scratch.glob("fb-ray-*")) == []
        assert processes_with(mark) == {}
    failed = "aggitd, seed 0, iteration 0: client 0, operation losses, round 0: ValueError: not here"
    assert out.splitlines() == ["3", failed, "True"]


@pytest.mark.parametrize(
    ("sweep", "number"),
    [(False, signal.SIGTERM), (True, signal.SIGINT), (True, signal.SIGKILL)],
    ids=["engine, SIGTERM", "sweep, Ctrl-C", "sweep, SIGKILL"],
)
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, sweep: bool, number: signal.Signals) -> None:
    with watched(f"OUT, SWEEP = {str(tmp_path / 'out')!r}, {sweep}\n{GOES_ON}") as (process, mark, scratch):
        assert process.stdout is not None
        assert process.stdout.readline() == "runs\n"
        started = _family([process.pid])
        assert len(started) >= 8  # Ray's head and node with their agents, and workers
        process.send_signal(number)
        assert process.stdout.read() == ("" if number == signal.SIGKILL else "interrupted\n")
        process.wait(30)
        deadline = time.monotonic() + (20 if number == signal.SIGKILL else 0)
        while (left := set(_alive(started, [])) | set(processes_with(mark))) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert left == set()
        assert list(scratch.glob("fb-ray-*")) == []
    if number != signal.SIGKILL:
        with open(tmp_path / "out" / "history.csv") as file:
            assert list(csv.DictReader(file))
