"""The ServerApp and the ClientApp: over the in-process grid, in processes that are not pinned, and by `flwr run .`."""

import csv
import functools
import itertools
import logging
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity

import clients.app
from clients.app import Decoded, decoded_of_process, make_app, node_of_setup
from clients.node import Node, Setting
from clients.operations.oracles import lower_gradient, neumann_factor
from fedbilevel.config.tables import read
from fedbilevel.errors import BadInput, ClientFailed, RunFailed
from fedbilevel.federation.messages import Request
from fedbilevel.federation.participation import Population
from fedbilevel.federation.rounds import Federation
from fedbilevel.problems.quadratic import Quadratic
from fedbilevel.results import RunDirectory
from server.app import app as server_app
from server.grids.exchange import GridExchange, Placement
from server.grids.local import LocalGrid
from server.running.experiment import Experiment, Observer, local
from tests.flower import REPOSITORY, Flower, processes_with, stop_all

IDENTITY = ("_task_id", "_run_id", "_node_id")

# What makes engines differ if anything does: sampled clients, absent ones, minibatches, local steps, a second seed, and
# algorithms that send the same vectors in several rounds of an iteration.
PARTIAL = """
[run]
seeds = [3, 4]
iterations = 3
dtype = "float64"
batch = 2
gradient_batch = 3
clients_per_round = 3

[problem]
name = "quadratic"
clients = 9
dim_x = 3
dim_y = 4

[systems]
availability = 0.7

[options]
upper_step = 0.05
lower_step = 0.1
neumann_terms = 2
lower_rounds = 2
local_steps = 2

[algorithms.aggitd]
[algorithms.fednest]
[algorithms.memfbo]
[algorithms.f2sa]
"""

# Fifty examples of client 4 cannot be differentiated; the other five clients can.
BROKEN = """
import torch
from fedbilevel.problem import ClientData


class Broken:
    def __init__(self):
        sizes = [2, 2, 2, 2, 50, 2]
        level = [{"c": torch.full((n, 3), float(i), dtype=torch.float64)} for i, n in enumerate(sizes)]
        self.clients = ClientData(level, level, "uniform")

    def initial(self, generator):
        return torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)

    def lower(self, x, y, examples):
        if len(examples["c"]) >= 50:
            raise ValueError("fifty are\\ntoo many")
        return 0.5 * ((y - x - examples["c"]) ** 2).sum(-1)

    def upper(self, x, y, examples):
        return 0.5 * ((y - examples["c"]) ** 2).sum(-1)

    def evaluate(self, x, y):
        return {}
"""


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    """Flower's task identity is one per process: leave it as it was."""
    before = {name: getattr(TaskIdentity, name) for name in IDENTITY}
    yield
    for name, value in before.items():
        setattr(TaskIdentity, name, value)


def run_app(grid: LocalGrid, **run_config: str) -> None:
    config = {"config": "", "set": "", "out": "", **run_config}
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=dict(config))
    server_app(grid, context)


def write_text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def run_locally(config: Path, out: Path, overrides: tuple[str, ...] = ()) -> Path:
    """What `fedbilevel run` does on its engine `local`."""
    assert Experiment(read(config, overrides), RunDirectory.create(out), local, Observer()).run() == []
    return out


def assert_same_history(one: Path, other: Path, tolerance: float) -> None:
    """Every column but wall_seconds: numbers to the tolerance (relative and absolute), text exactly."""
    with open(one / "history.csv") as a, open(other / "history.csv") as b:
        rows, expected = list(csv.DictReader(a)), list(csv.DictReader(b))
    assert len(rows) == len(expected) > 0
    for row, wanted in zip(rows, expected, strict=True):
        assert row.keys() == wanted.keys()
        for column in row.keys() - {"wall_seconds", "algorithm"}:
            texts = row[column], wanted[column]
            if "" in texts:
                assert texts[0] == texts[1], column
            else:
                assert float(texts[0]) == pytest.approx(float(texts[1]), rel=tolerance, abs=tolerance), column
        assert row["algorithm"] == wanted["algorithm"]


# --- the ServerApp over nodes in this process ---


@pytest.mark.parametrize("nodes", [1, 4, 11])
def test_history_does_not_depend_on_the_number_of_nodes(tmp_path: Path, nodes: int) -> None:
    config = write_text(tmp_path / "partial.toml", PARTIAL)
    run_app(LocalGrid(clients.app.app, nodes), config=str(config), out=str(tmp_path / "flower"))
    assert_same_history(tmp_path / "flower", run_locally(config, tmp_path / "local"), 1e-12)


def test_default_config_writes_a_whole_run_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With nothing given: flower.toml, below the current directory; the log ends with where."""
    caplog.set_level(logging.INFO, "flwr")
    monkeypatch.chdir(tmp_path)
    overrides = "run.rounds=4; run.evaluate_every=4;;"
    run_app(LocalGrid(clients.app.app, 3), set=overrides)
    [out] = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"flower-flower-\d{8}-\d{6}", out.name)
    assert caplog.messages[-1] == f"Results: {out}"
    assert {path.name for path in out.iterdir()} >= {
        "config.toml",
        "history.csv",
        "summary.csv",
        "rounds_vs_accuracy.png",
        "rounds_vs_accuracy.svg",
    }
    # the config that is left behind is resolved, and gives the same run again
    again = run_locally(out / "config.toml", tmp_path / "again")
    assert_same_history(out, again, 1e-12)
    assert {row.split(",")[0] for row in (out / "history.csv").read_text().splitlines()[1:]} == {
        "aggitd",
        "fednest",
        "memfbo",
    }


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"config": "flowr.toml"}, r"config: got 'flowr.toml'; allowed: .*\(did you mean 'flower.toml'\?\)"),
        ({"config": "experiments/configs/flower.toml"}, "config: got .*; allowed: .*an absolute path"),
        ({"config": "/no/such.toml"}, "config: got '/no/such.toml'; allowed: a file that can be read"),
        ({"set": "run.rounds=0"}, "run.rounds: got 0"),
        ({"set": "run.rounds"}, "--set: got 'run.rounds'; allowed: table.key=value"),
        ({"set": "run.clients_per_round=9"}, "run.clients_per_round: got 9; allowed: at most the number of clients, 8"),
        ({"out": str(REPOSITORY)}, "out: got .* which is not empty"),
    ],
)
def test_bad_input_is_one_line_and_an_exception(
    given: dict[str, str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception, since Flower takes SystemExit in a ServerApp for success."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=says):
        run_app(LocalGrid(clients.app.app, 2), **given)
    [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert re.search(says, line)
    assert "\n" not in line
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_does_not_stop_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    diverges = '\n[algorithms.diverges]\nalgorithm = "memfbo"\nlower_step = 1e300\n[algorithms.fedavg-alternating]\n'
    text = PARTIAL.replace("\n[algorithms.f2sa]\n", diverges).replace("seeds = [3, 4]", "seeds = [3]")
    config = write_text(tmp_path / "partial.toml", text)
    with pytest.raises(RunFailed, match=r"1 of 5 runs failed, the first: diverges, seed 3, iteration \d: operation"):
        run_app(LocalGrid(clients.app.app, 2), config=str(config), out=str(tmp_path / "out"))
    assert any(message.startswith("failed: diverges, seed 3") for message in caplog.messages)
    last = {}
    with open(tmp_path / "out" / "history.csv") as file:
        for row in csv.DictReader(file):
            last[row["algorithm"]] = int(row["iteration"])
    assert last.pop("diverges") < 3
    assert last == dict.fromkeys(["aggitd", "fednest", "memfbo", "fedavg-alternating"], 3)
    assert (tmp_path / "out" / "summary.csv").exists()


@pytest.mark.parametrize("nodes", [1, 3])
def test_a_failing_client_is_named(tmp_path: Path, nodes: int) -> None:
    write_text(tmp_path / "broken.py", BROKEN)
    config = write_text(
        tmp_path / "broken.toml",
        '[run]\niterations = 2\ndtype = "float64"\n[problem]\nname = "broken.py:Broken"\n[algorithms.aggitd]\n',
    )
    says = "aggitd, seed 0, iteration 0: client 4, operation losses, round 0: ValueError: fifty are too many$"
    with pytest.raises(RunFailed, match=says):
        run_app(LocalGrid(clients.app.app, nodes), config=str(config), out=str(tmp_path / "out"))


# --- processes that are not pinned: any of them may answer for any node ---


class Unpinned:
    """Several processes' worth of the ClientApp: each message goes to the next in `order`, the Context with it."""

    def __init__(self, node_for: Callable[[], Callable[[str], Node]], processes: int, order: Iterator[int]) -> None:
        self.apps, self.order = [make_app(node_for()) for _ in range(processes)], order

    def __call__(self, message: Message, context: Context) -> Message:
        return self.apps[next(self.order)](message, context)

    def grid(self, nodes: int) -> LocalGrid:
        return LocalGrid(cast(ClientApp, self), nodes)


def nodes_of_a_process() -> Callable[[str], Node]:
    """A `node_of_setup` with a cache of its own, as another process has."""
    return functools.lru_cache(maxsize=1)(node_of_setup.__wrapped__)


def in_turn(processes: int) -> Iterator[int]:
    return itertools.cycle(range(processes))


def at_random(processes: int) -> Iterator[int]:
    draw = np.random.default_rng(0)
    while True:
        yield int(draw.integers(processes))


@pytest.mark.parametrize(("nodes", "order"), [(3, in_turn), (5, at_random)])
def test_any_process_answers_for_any_node(tmp_path: Path, nodes: int, order: Callable[[int], Iterator[int]]) -> None:
    """Sampled clients leave nodes without messages for iterations, and then another process answers for them."""
    config = write_text(tmp_path / "partial.toml", PARTIAL)
    processes = Unpinned(nodes_of_a_process, 2, order(2))
    run_app(processes.grid(nodes), config=str(config), out=str(tmp_path / "flower"))
    assert_same_history(tmp_path / "flower", run_locally(config, tmp_path / "local"), 1e-12)


class CheckedRun:
    """Rounds of one run on a quadratic, each held against the problem's own matrices."""

    def __init__(self, placement: Placement, problem: Quadratic, seed: int) -> None:
        exchange, population = GridExchange(placement, ""), Population.of(problem.clients)
        self.problem, self.fed = problem, Federation(exchange, population, seed=seed, clients_per_round=3)
        self.draw = torch.Generator().manual_seed(seed)

    def begin(self, iteration: int) -> None:
        self.fed.begin(iteration)
        self.x, self.y = (torch.randn(d, generator=self.draw).double() for d in (5, 8))

    def round(self, number: int) -> None:
        """Over a new sample: the mean of r - H_i r / 2 and of A_i y - B_i x - b_i, all weights being equal."""
        self.fed.resample(f"sample {number}")
        x, y, r = self.x, self.y, torch.randn(8, generator=self.draw).double()
        factor, gradient = self.fed.mean(neumann_factor, lower_gradient, x=x, y=y, r=r, neumann_step=0.5)
        examples = self.problem.clients.lower.take(self.fed.sampled).values
        A, B, b = examples["A"], examples["B"], examples["b"]
        torch.testing.assert_close(factor, r - 0.5 * A.mean(0) @ r)
        torch.testing.assert_close(gradient, (A @ y - B @ x - b).mean(0))


@pytest.mark.parametrize("processes", [1, 2])
def test_runs_of_the_same_processes_never_see_each_others_vectors(processes: int) -> None:
    """Two Flower runs by turns, and each with a second algorithm after the first, which counts vectors and iterations
    from 0 again: the setup is the same for all, so only the session tells their vectors apart.
    """
    problem = Quadratic(clients=6, examples=2, weights="uniform")
    node = Node(problem, Setting())
    shared = Unpinned(lambda: lambda setup: node, processes, at_random(processes))
    placements = [Placement(shared.grid(3), 6) for _ in range(2)]
    for algorithm in range(2):
        runs = [CheckedRun(placement, problem, 10 * algorithm + j) for j, placement in enumerate(placements)]
        for iteration in range(3):
            for run in runs:
                run.begin(iteration if algorithm == 0 else 2)
            for number in range(4):
                for run in runs:
                    run.round(number)


def test_two_sessions_by_turns_on_one_grid_are_sent_their_vectors_again() -> None:
    """A node holds the vectors of one session: the other's come again, and no number is wrong."""
    problem = Quadratic(clients=6, examples=2, weights="uniform")
    node = Node(problem, Setting())
    placement = Placement(LocalGrid(make_app(lambda setup: node), 2), 6)
    runs = [CheckedRun(placement, problem, seed) for seed in range(2)]
    for run in runs:
        run.begin(0)
        run.round(0)
    for number in range(4):
        for run in runs:
            run.round(number)  # the first time over those whom the session asked before


def lower_gradient_request(iteration: int = 0, round_: int = 0) -> Request:
    """From all of six clients, at the same x and y."""
    x, y = Quadratic(clients=6).initial(torch.Generator().manual_seed(0))
    vectors, tokens = {"x": x, "y": y}, {"x": 0, "y": 1}
    alive = frozenset(tokens.values())
    return Request(("lower_gradient",), np.arange(6), vectors, tokens, {}, iteration, round_, alive)


def test_a_vector_travels_to_a_node_once_per_iteration() -> None:
    node = Node(Quadratic(clients=6), Setting())
    sent: list[list[str]] = []

    def watch(message: Message, context: Context) -> Message:
        records = message.content.array_records
        sent.append(sorted(records["vectors"]) if "vectors" in records else [])
        return make_app(lambda setup: node)(message, context)

    exchange = GridExchange(Placement(LocalGrid(cast(ClientApp, watch), 2), 6), "")
    sent.clear()
    for iteration in (0, 0, 1):
        exchange(lower_gradient_request(iteration))
    assert sent == [["0", "1"]] * 2 + [[]] * 2 + [["0", "1"]] * 2


def test_replies_are_in_client_order_whatever_order_they_come_in() -> None:
    class Backwards(LocalGrid):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
            return super().send_and_receive(messages, timeout=timeout)[::-1]

    problem = Quadratic(clients=6, weights=[1, 2, 3, 4, 5, 6])
    node = Node(problem, Setting())
    exchange = GridExchange(Placement(Backwards(make_app(lambda setup: node), 4), 6), "")
    weights = [reply.weight for reply in exchange(lower_gradient_request())]
    # 6 clients over 4 nodes: 0-1, 2-3, 4, 5; p_i = (i + 1) / 21
    assert weights == pytest.approx([3 / 21, 7 / 21, 5 / 21, 6 / 21])


def test_a_node_holds_only_what_may_still_be_asked_for(tmp_path: Path) -> None:
    grid = LocalGrid(clients.app.app, 2)
    config = write_text(tmp_path / "partial.toml", PARTIAL)
    run_app(grid, config=str(config), set="run.clients_per_round=9", out=str(tmp_path / "out"))
    for context in grid._contexts.values():
        assert 1 <= len(context.state.array_records["held"]) <= 8
    assert 1 <= len(decoded_of_process()._tensors) <= 8


def test_a_node_that_has_lost_its_context_is_sent_all_vectors_again() -> None:
    """One of two nodes loses its context between two rounds; the other is asked once per round as ever."""
    node = Node(Quadratic(clients=6), Setting())
    sent: list[tuple[int, list[str]]] = []

    def watch(message: Message, context: Context) -> Message:
        if "vectors" in message.content.array_records:
            sent.append((int(context.node_config["partition-id"]), sorted(message.content.array_records["vectors"])))
        return make_app(lambda setup: node)(message, context)

    grid = LocalGrid(cast(ClientApp, watch), 2)
    exchange = GridExchange(Placement(grid, 6), "")
    before = exchange(lower_gradient_request())
    grid._contexts[grid.get_node_ids()[1]].state = RecordDict()
    sent.clear()
    after = exchange(lower_gradient_request(round_=1))
    assert sent == [(0, []), (1, []), (1, ["0", "1"])]
    assert exchange(lower_gradient_request(round_=2))
    assert sent[3:] == [(0, []), (1, [])]
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one.sums[0][0], other.sums[0][0])


def test_a_node_that_loses_whatever_it_is_sent_is_a_clear_failure() -> None:
    def forgetful(message: Message, context: Context) -> Message:
        if "vectors" in message.content.array_records:
            message.content["vectors"] = ArrayRecord()
        return make_app(lambda setup: Node(Quadratic(clients=6), Setting()))(message, context)

    exchange = GridExchange(Placement(LocalGrid(cast(ClientApp, forgetful), 2), 6), "")
    says = "^clients 0 to 2, operation lower_gradient, round 7: the node has lost what it was just sent: x, y$"
    with pytest.raises(ClientFailed, match=says):
        exchange(lower_gradient_request(round_=7))


def test_what_goes_wrong_before_the_operation_names_the_clients() -> None:
    """For instance data that one machine of a deployment does not have."""

    def no_data(setup: str) -> Node:
        raise BadInput("data.name", "mnist", "a file\nthat is there")

    exchange = GridExchange(Placement(LocalGrid(make_app(no_data), 2), 3), "")
    zero = torch.zeros(2)
    request = Request(("lower_gradient",), np.arange(2, 3), {"v": zero}, {"v": 0}, round=5, alive=frozenset({0}))
    with pytest.raises(
        ClientFailed, match=r"^client 2, operation lower_gradient, round 5: BadInput: data.name: got 'mnist'; .* a file"
    ):
        exchange(request)


def test_a_node_that_does_not_answer_is_a_failure_in_time() -> None:
    class Silent(LocalGrid):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
            assert timeout is not None
            time.sleep(timeout)
            return []

    with pytest.raises(RunFailed, match="only 0 of 1 nodes answered within 0 s"):
        Placement(Silent(clients.app.app, 2), 4, timeout=0.3)


def test_an_app_pickled_for_every_message_keeps_what_its_process_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's simulation pickles the ClientApp for every message; a vector is decoded once all the same.

    Its identity is what tells a node that the features it prepared for x are still good.
    """
    from ray import cloudpickle

    pickled: Callable[[object], bytes] = cloudpickle.dumps
    decoded: list[int] = []
    seen: set[int] = set()
    original = Decoded.tensor

    def spy(self: Decoded, name: str, token: int, held: object) -> torch.Tensor:
        tensor = original(self, name, token, held)  # type: ignore[arg-type]  # as it was called
        seen.add(id(tensor))
        decoded.append(token)
        return tensor

    monkeypatch.setattr(Decoded, "tensor", spy)

    def fresh(message: Message, context: Context) -> Message:
        answer: Message = cloudpickle.loads(pickled(clients.app.app))(message, context)
        return answer

    setup = (
        '{"run": "a 0", "problem_table": {"name": "quadratic", "clients": 6}, "data": null, "dtype": "float64",'
        ' "seed": 0, "batch": "full", "gradient_batch": null}'
    )
    problem = Quadratic(clients=6)
    fed = Federation(
        GridExchange(Placement(LocalGrid(cast(ClientApp, fresh), 3), 6), setup), Population.of(problem.clients)
    )
    fed.begin(0)
    x, y = problem.initial(torch.Generator().manual_seed(0))
    nodes = {node_of_setup(setup)}
    for _ in range(4):
        fed.mean(lower_gradient, x=x, y=y)
        nodes.add(node_of_setup(setup))
    assert len(decoded) == 3 * 4 * 2  # nodes, rounds, vectors
    assert len(seen) == 2
    assert len(nodes) == 1


# --- Flower's own runtime ---


@pytest.fixture
def flower() -> Iterator[Flower]:
    """Flower in a scratch folder with a short name, since Ray's sockets live there; nothing is left running."""
    if not Path("/proc/self/environ").exists() or shutil.which("flwr", path=str(Path(sys.executable).parent)) is None:
        pytest.skip("needs /proc to find processes, and flwr beside this Python")
    home = Path(tempfile.mkdtemp(prefix="fb"))
    command = Flower(home)
    try:
        yield command
    finally:
        stubborn = stop_all(command.variable)
        time.sleep(0.2)
        left = processes_with(command.variable)
        shutil.rmtree(home, ignore_errors=True)
    assert not stubborn
    assert not left


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_flwr_run(flower: Flower, tmp_path: Path) -> None:
    """One completed run, equal to the local engine's, and one in which a client fails; 3 nodes, 2 Ray workers."""
    overrides = ("run.rounds=3", "run.evaluate_every=3", "options.lower_rounds=1", "options.neumann_terms=1")
    out = tmp_path / "flower"
    log = flower.run(f"set='{'; '.join(overrides)}' out='{out}'")
    assert flower.statuses() == [("finished:completed", "N/A")]
    assert f"Results: {out}" in log
    expected = run_locally(REPOSITORY / "experiments" / "configs" / "flower.toml", tmp_path / "local", overrides)
    assert_same_history(out, expected, 1e-6)
    assert {path.name for path in out.iterdir()} >= {"config.toml", "summary.csv", "rounds_vs_accuracy.png"}

    [bundle] = (Path(flower.environment["FLWR_HOME"]) / "apps").iterdir()
    files = {str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.suffix != ".pyc" and path.is_file()}
    assert files >= {"pyproject.toml", "LICENSE", "server/app.py", "clients/app.py", "experiments/configs/flower.toml"}
    assert {file.split("/")[0] for file in files if "/" in file} <= {
        ".info",
        "clients",
        "experiments",
        "fedbilevel",
        "server",
    }

    write_text(tmp_path / "broken.py", BROKEN)
    config = write_text(
        tmp_path / "broken.toml", '[run]\niterations = 1\n[problem]\nname = "broken.py:Broken"\n[algorithms.aggitd]\n'
    )
    log = flower.run(f"config='{config}' out='{tmp_path / 'broken'}'")
    says = "aggitd, seed 0, iteration 0: client 4, operation losses, round 0: ValueError: fifty are too many"
    assert f"failed: {says}" in log
    status, details = flower.statuses()[0]
    assert status == "finished:failed"
    assert says in details
