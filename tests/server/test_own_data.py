"""Parties with files of their own: the history is that of one place, and a client's examples never leave its node."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from clients.own import OwnNode
from fedbilevel.config.setup import Setup
from fedbilevel.config.tables import read
from fedbilevel.errors import BadInput, ClientFailed, RunFailed
from fedbilevel.federation.messages import Request
from fedbilevel.problem import Problem, leaves
from fedbilevel.report import RunDirectory
from fedbilevel.shares.share import Share
from server.running.deal import SERVER, node_file
from server.running.plan import plan
from tests.processes.app_runs import assert_same_history, run_app, run_locally, write_text
from tests.processes.identity import identity_kept
from tests.processes.parties import CONFIG, RecordingGrid, dealt, traces

ALGORITHMS = "[algorithms.aggitd]\n[algorithms.fednest]\n[algorithms.memfbo]\npenalty = 5.0\n"


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    with identity_kept():
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("config") / "own.toml", CONFIG + ALGORITHMS)


@pytest.fixture(scope="module")
def folder(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dealt(config, tmp_path_factory.mktemp("dealt") / "files")


@pytest.fixture(scope="module")
def setup(config: Path) -> Setup:
    return plan(read(config))[0].setup()


@pytest.fixture(scope="module")
def whole(setup: Setup) -> Problem:
    return setup.problem()


def all_bytes(path: Path) -> bytes:
    with np.load(path) as file:
        return b"\0".join(array.tobytes() for array in file.values())


def test_the_history_is_that_of_the_local_engine_and_no_example_travels(
    config: Path, folder: Path, whole: Problem, tmp_path: Path
) -> None:
    grid = RecordingGrid(folder)
    run_app(grid, config=str(config), data=str(folder / SERVER), out=str(tmp_path / "out"))
    expected = run_locally(config, tmp_path / "local")
    assert_same_history(tmp_path / "out", expected, 1e-6)
    travelled = b"\0".join(grid.up + grid.down)
    assert len(grid.up) > 60  # three nodes, three algorithms
    assert len(travelled) > 100_000
    given_away = [trace for trace in traces(whole) if trace in travelled]
    assert not given_away


def test_no_example_travels_where_each_clients_own_vector_does(
    config: Path, folder: Path, whole: Problem, tmp_path: Path
) -> None:
    grid = RecordingGrid(folder)
    given = {"config": str(config), "data": str(folder / SERVER), "out": str(tmp_path / "out")}
    run_app(grid, **given, set="aggregation.rule=median; run.iterations=1; algorithms={aggitd={}}")
    travelled = b"\0".join(grid.up + grid.down)
    assert len(travelled) > 50_000
    assert not [trace for trace in traces(whole) if trace in travelled]


def test_the_search_for_examples_finds_them_where_they_are(folder: Path, whole: Problem) -> None:
    """Every trace that could be in the nodes' files is, in the dtype in which they are held."""
    held = b"\0".join(all_bytes(folder / node_file(j)) for j in range(3))
    n = sum(int(level.offsets[-1]) for level in (whole.clients.lower, whole.clients.upper))
    assert sum(trace in held for trace in traces(whole)) > n


def test_a_node_holds_its_own_clients_alone_and_the_server_none(folder: Path, setup: Setup, whole: Problem) -> None:
    rows = {}
    for j, (first, end) in enumerate(((0, 3), (3, 5), (5, 7))):
        share = Share.read(folder / node_file(j))
        assert (share.first, share.end) == (first, end)
        cut = share.problem(setup).clients
        own = whole.clients.only(first, end)
        for level in ("lower", "upper"):
            held, wanted = getattr(cut, level), getattr(own, level)
            assert held.offsets.tolist() == wanted.offsets.tolist()
            assert all((a == b).all() for a, b in zip(leaves(held.values), leaves(wanted.values), strict=True))
        rows[j] = {trace for trace in traces(share.problem(setup)) if len(trace) == 64 * 8}
        assert rows[j]
    for j in rows:
        mine = all_bytes(folder / node_file(j))
        others = set().union(*(rows[k] for k in rows if k != j)) - rows[j]
        assert not [trace for trace in others if trace in mine]
    server = Share.read(folder / SERVER)
    assert server.partition is None
    clients = server.problem(setup).clients
    assert all(len(leaf) == 0 for level in (clients.lower, clients.upper) for leaf in leaves(level.values))
    assert clients.lower.sizes.tolist() == whole.clients.lower.sizes.tolist()
    assert clients.weights.tolist() == whole.clients.weights.tolist()
    held = all_bytes(folder / SERVER)
    assert not [trace for trace in traces(whole) if trace in held]


OTHERS = {
    "few_shot": ("maml", 'clients = 4\nnetwork = "mlp"\nhidden = [8]', ""),
    "hyper_cleaning": ("aggitd", "examples = 12", "[data]\nclients = 5\n"),
    "loss_tuning": (
        "simfbo",
        "largest = 40\nimbalance = 4\nupper_examples = 10\nhidden = [4]",
        "[data]\nclients = 5\n",
    ),
}


@pytest.mark.parametrize("problem", OTHERS)
def test_other_problems_with_data_run_on_files_too(problem: str, tmp_path: Path) -> None:
    """A local lower level, blocks of x that are the clients' own, and losses scaled over all clients."""
    algorithm, parameters, data = OTHERS[problem]
    run = '[run]\niterations = 2\ndtype = "float64"\nsolution_every = 0\nclients_per_round = 3\n'
    text = f'{run}[problem]\nname = "{problem}"\n{parameters}\n{data}[algorithms.{algorithm}]\n'
    config = write_text(tmp_path / "own.toml", text)
    folder = dealt(config, tmp_path / "files", 2)
    run_app(RecordingGrid(folder, 2), config=str(config), data=str(folder / SERVER), out=str(tmp_path / "out"))
    assert_same_history(tmp_path / "out", run_locally(config, tmp_path / "local"), 1e-6)


class DyingGrid(RecordingGrid):
    """The node of partition 1 is silent from the given exchange on, the hello being the first."""

    def __init__(self, folder: Path, last: int) -> None:
        super().__init__(folder)
        self._left = last

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        self._left -= 1
        silent = self.get_node_ids()[1] if self._left < 0 else None
        return super().send_and_receive([m for m in messages if m.metadata.dst_node_id != silent], timeout=timeout)


def test_with_drop_the_run_goes_on_without_a_node_that_is_silent(config: Path, folder: Path, tmp_path: Path) -> None:
    """FedAvg-like rounds of a vector each way: with the five clients of seven that are left, 5/7 of the bytes."""
    out = tmp_path / "out"
    overrides = "systems.failures=drop; run.iterations=4; options={upper_step=0.1}; algorithms={simfbo={}}"
    run_app(DyingGrid(folder, 4), config=str(config), data=str(folder / SERVER), out=str(out), set=overrides)
    rows = RunDirectory.open(out).read_history()
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3, 4]
    losses = [float(str(row[name])) for row in rows for name in ("upper_loss", "lower_loss", "test_loss")]
    assert np.isfinite(losses).all()
    up = np.diff([float(str(row["uplink_bytes"])) for row in rows])
    assert up[0] > 0
    assert (up[1:] * 7 == up[0] * 5).all()


def test_a_node_refuses_to_be_asked_for_anothers_client(folder: Path, setup: Setup, whole: Problem) -> None:
    node = OwnNode(Share.read(folder / node_file(1)), setup)
    request = Request((), np.array([4, 5]), {}, {}, round=3)
    with pytest.raises(ClientFailed, match="client 5, round 3: asked of a node that holds the clients 3 to 4 alone"):
        node.answer(request)


def refusal(error: type[Exception], folder: Path, **run_config: str) -> str:
    with pytest.raises(error) as caught:
        run_app(RecordingGrid(folder), **run_config)
    return str(caught.value)


def test_a_run_of_another_problem_is_refused_by_the_server(config: Path, folder: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"config": str(config), "data": str(folder / SERVER), "out": str(tmp_path / "out")}
    assert refusal(BadInput, folder, **given, set="data.alpha=0.4") == (
        "data.alpha: got 0.4; allowed: 0.3, of which server.npz was dealt"
    )
    assert "data.seed: got 1; allowed: 0" in refusal(BadInput, folder, **given, set="run.seeds=[0, 1]")
    assert "run.dtype: got 'float32'" in refusal(BadInput, folder, **given, set="run.dtype=float32")
    given["data"] = str(folder / node_file(0))
    assert "allowed: the server's file, and it is that of a node" in refusal(BadInput, folder, **given)
    given["data"] = str(config)
    assert "allowed: a file that `fedbilevel deal` has written" in refusal(BadInput, folder, **given)
    assert not (tmp_path / "out").exists()


def test_a_node_refuses_a_run_of_another_problem(config: Path, folder: Path, tmp_path: Path) -> None:
    """The server has the data set here, and asks for another partition of it than the nodes hold."""
    said = refusal(RunFailed, folder, config=str(config), set="data.alpha=0.4", out=str(tmp_path / "out"))
    assert "data.alpha: got 0.4; allowed: 0.3, of which node-0.npz was dealt" in said


def test_a_node_with_the_file_of_another_says_so(config: Path, folder: Path, tmp_path: Path) -> None:
    grid = RecordingGrid(folder)
    grid._own[1] = grid._own[2]
    grid._begin(grid._run)
    with pytest.raises(ClientFailed, match="it is that of partition 2 of 3"):
        run_app(grid, config=str(config), data=str(folder / SERVER), out=str(tmp_path / "out"))
