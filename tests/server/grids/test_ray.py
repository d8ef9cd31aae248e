"""Engine ray: the same history as in one process, and what goes wrong."""

import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict
from ray.cluster_utils import Cluster
from torch import Tensor

from clients.node import Setting
from fedbilevel import simulate
from fedbilevel.config.tables import Config
from fedbilevel.data import federate
from fedbilevel.errors import BadInput, ClientFailed, RunFailed
from fedbilevel.problems import HyperRepresentation, Quadratic
from fedbilevel.report import RunDirectory
from server.grids.actors import Shares
from server.grids.engines import opened
from server.grids.flower_internals import SERVER_NODE_ID
from server.grids.ray import RayGrid
from server.running.experiment import Experiment, Observer, engine, over
from tests.histories import assert_same
from tests.problem_table import Weighted
from tests.processes.identity import identity_kept

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(120),
    # Ray leaves the files and processes that it starts for the garbage collector to close
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


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


@pytest.fixture(scope="module")
def grid(cluster: Cluster) -> Iterator[RayGrid]:
    """Two actors for every test that leaves them alive, spread over two machines."""
    with identity_kept(), RayGrid(Shares(actors=2, threads=1)) as grid:
        yield grid


@pytest.fixture
def on_ray(grid: RayGrid, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What makes `simulate` run on these actors."""
    monkeypatch.setattr(
        "server.running.simulation.opened",
        lambda name, **options: nullcontext(grid.exchange) if name == "ray" else opened(name, **options),
    )
    return {"engine": "ray"}


# --- the same history ---


@pytest.mark.parametrize("actors", [1, 2, 3])
def test_history_is_that_of_one_process(
    cluster: Cluster, grid: RayGrid, partial: tuple[Config, list[dict[str, Any]]], tmp_path: Path, actors: int
) -> None:
    """Two seeds (their problems differ) and four algorithms by the same actors, spread over two machines."""
    config, expected = partial
    with (
        nullcontext(over(grid.exchange)) if actors == 2 else engine("ray", workers=actors, threads=1, cpus=0) as connect
    ):
        experiment = Experiment(config, RunDirectory.create(tmp_path / "out"), connect, Observer())
        assert experiment.run() == []
    assert_same(experiment.history(), expected)


def test_large_vectors_travel_through_the_object_store(on_ray: dict[str, Any]) -> None:
    """X has 784 * 20 numbers, 125 KB: beyond what travels with a message. Each is put there once, for two actors."""
    problem = HyperRepresentation(federate("digits", clients=4, partition_name="iid"), hidden=[200])
    options: dict[str, Any] = {"iterations": 2, "dtype": "float64", "lower_rounds": 2, "local_steps": 2}
    assert problem.initial(torch.Generator())[0].numel() * 8 > 50_000
    expected = simulate(problem, "aggitd", **options)
    assert_same(simulate(problem, "aggitd", **on_ray, **options).history, expected.history)


def test_tasks_of_the_clients_give_the_same_history(on_ray: dict[str, Any]) -> None:
    options: dict[str, Any] = {"iterations": 3, "clients_per_round": 5, "upper_optimiser": "adam", "local_steps": 2}
    for name in ("maml", "memfbo"):
        expected = simulate("quadratic_tasks", name, **options)
        assert_same(simulate("quadratic_tasks", name, **on_ray, **options).history, expected.history)


@pytest.mark.parametrize("variant", ["momentum", "page"])
def test_what_clients_keep_is_theirs_on_every_engine(on_ray: dict[str, Any], variant: str) -> None:
    options: dict[str, Any] = {"iterations": 5, "clients_per_round": 4, "gradient_batch": 2, "dtype": "float64"}
    options |= {"variant": variant, "page_probability": 0.4, "lower_step": 0.3}
    expected = simulate("quadratic", "br-fedbi", **options)
    assert_same(simulate("quadratic", "br-fedbi", **on_ray, **options).history, expected.history)


ROUGH: dict[str, Any] = {
    "systems": {"dropout": 0.2, "byzantine": {"share": 0.2, "attack": "alie"}, "network": {"spread": 0.5}},
    "aggregation": {"rule": "trimmed_mean", "before": "nnm", "byzantine": 2},
    "channel": {"uplink": "quantise", "downlink": "top_k", "keep": 0.5},
}
"""Lost answers, lies, a robust rule and thin wires at once."""


@pytest.mark.filterwarnings("ignore:.* gives every client one vote")
@pytest.mark.parametrize("name", ["br-fedbi", "fednest", "aggitd-s"])
def test_conditions_are_the_same_on_every_engine(on_ray: dict[str, Any], name: str) -> None:
    options: dict[str, Any] = {"iterations": 5, "dtype": "float64", **ROUGH}
    expected = simulate("quadratic", name, **options)
    found = simulate("quadratic", name, **on_ray, **options)
    assert_same(found.history, expected.history)
    assert found.communication == expected.communication


def test_blocks_of_the_clients_own_are_spread_over_actors(on_ray: dict[str, Any]) -> None:
    options: dict[str, Any] = {"iterations": 4, "clients_per_round": 3, "local_steps": 2, "dtype": "float64"}
    for name in ("simfbo", "fednest", "fedbioacc"):
        expected = simulate(Weighted(True), name, **options)
        found = simulate(Weighted(True), name, **on_ray, **options)
        assert_same(found.history, expected.history)
        assert found.communication == expected.communication


def test_a_failing_client_is_named_as_on_one_process(on_ray: dict[str, Any]) -> None:
    failures = []
    for options in ({}, on_ray):
        with pytest.raises(ClientFailed) as failed:
            simulate(Broken(), "aggitd", iterations=2, **options)
        failures.append(str(failed.value))
    says = "aggitd, seed 0, iteration 0: client 4, operation losses, round 0: ValueError: fifty are too many"
    assert failures == [says, says]


def test_unknown_nodes_and_messages_are_bad_input(grid: RayGrid) -> None:
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


class NotHere(Quadratic):
    """Cannot be made again from what was pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (int, ("no such data on this machine",))


class Unpicklable(Quadratic):
    def __init__(self) -> None:
        super().__init__(clients=3)
        self.lock = threading.Lock()


def test_a_problem_that_does_not_travel_is_refused(grid: RayGrid) -> None:
    carrier = grid.exchange
    with pytest.raises(BadInput, match=r"^problem: got 'Unpicklable'; allowed: an object that can be pickled .*lock"):
        carrier(Unpicklable(), Setting())
    with pytest.raises(RunFailed, match=r"worker 0 cannot take its clients: ValueError: .*no such data"):
        carrier(NotHere(clients=3), Setting())
    carrier(Quadratic(clients=3), Setting())
