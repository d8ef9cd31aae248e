"""Ray actors and machines that die in the middle of a round: the same history, or a clear end."""

import json
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from torch import Tensor

from fedbilevel import simulate
from fedbilevel.errors import RunFailed
from fedbilevel.problems import Quadratic
from server.grids.actors import Shares
from server.grids.cluster.room import has_room
from server.grids.ray import RayGrid
from server.running.run import Result
from tests.histories import assert_same
from tests.processes.room import free

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(120),
    # Ray leaves the files and processes that it starts for the garbage collector to close
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


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
        monkeypatch.setattr("server.running.simulation.opened", lambda name, **options: nullcontext(grid.exchange))
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


@pytest.mark.filterwarnings("ignore:.* gives every client one vote")
def test_conditions_outlive_the_death_of_a_worker(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of each client, an attack, a rule that goes on from its last aggregate, and wires with a memory."""
    problem = Stalling(tmp_path)
    options: dict[str, Any] = {
        "iterations": 5,
        "lower_step": 0.2,
        "variant": "momentum",
        "systems": {"dropout": 0.2, "byzantine": {"share": 0.2, "attack": "ipm"}},
        "aggregation": {"rule": "centred_clipping", "byzantine": 1},
        "channel": {"uplink": "quantise", "downlink": "quantise"},
    }
    expected = simulate(problem, "br-fedbi", **options)
    with grid_of(monkeypatch, Shares(actors=2, threads=1)) as grid:
        interrupted = Interrupted(grid, tmp_path, {k: (["momentum_directions"], kill) for k in (1, 3)})
        result = simulate(problem, "br-fedbi", **options)
        assert interrupted.done == [1, 3]
    assert_same(result.history, expected.history)
    assert result.communication == expected.communication


def test_what_clients_keep_outlives_the_death_of_their_worker(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Stalling(tmp_path)
    options = {"iterations": 5, "clients_per_round": 5, "gradient_batch": 2, "variant": "momentum", "lower_step": 0.2}
    expected = simulate(problem, "br-fedbi", **options)
    with grid_of(monkeypatch, Shares(actors=2, threads=1)) as grid:
        interrupted = Interrupted(grid, tmp_path, {k: (["momentum_directions"], kill) for k in (1, 3)})
        result = simulate(problem, "br-fedbi", **options)
        assert interrupted.done == [1, 3]
    assert_same(result.history, expected.history)


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


def test_actors_without_room_and_actors_that_are_slow_are_told_apart(cluster: Cluster) -> None:
    """The cluster has three CPUs; in a hundredth of a second no actor is ready."""
    free(3)
    says = r"^no capacity for 1 of 4 workers: within 8 s Ray has found no room of 1 CPU for each; add machines"
    with pytest.raises(RunFailed, match=says):
        RayGrid(Shares(actors=4, threads=1, patience=8.0))
    for actors in (1, 2):
        free(3)
        says = rf"^slow start: {actors} of {actors} workers have room and were not ready within 0.01 s; engine.patience"
        with pytest.raises(RunFailed, match=says):
            RayGrid(Shares(actors=actors, threads=1, patience=0.01))


def test_room_is_what_is_free_for_those_that_wait(cluster: Cluster) -> None:
    """Three CPUs, one of which somebody else has taken; a CPU and a half fits once, on the larger machine."""
    free(3)
    assert has_room(3, 3, 1, 0)
    assert not has_room(4, 1, 1, 0)
    assert not has_room(1, 1, 1, 1)
    assert has_room(1, 1, 1.5, 0)
    assert not has_room(2, 1, 1.5, 0)

    @ray.remote(num_cpus=1)
    class Other:
        def here(self) -> bool:
            return True

    other = Other.remote()
    assert ray.get(other.here.remote())
    deadline = time.monotonic() + 20
    while has_room(3, 3, 1, 0):
        assert time.monotonic() < deadline
    assert has_room(3, 2, 1, 0)
    ray.kill(other)
    assert has_room(3, 3, 1, 0)
