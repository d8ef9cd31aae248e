"""What the tests of the Flower app share: configs, the ServerApp over a grid, and histories in files."""

import csv
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from fedbilevel.config.tables import read
from fedbilevel.report import RunDirectory
from fedbilevel.results.history import SOLUTION_COLUMNS
from server.app import app as server_app
from server.grids.local import LocalGrid
from server.running.experiment import Experiment, Observer, local

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
                # what is found at the lower solution is found by iteration
                allowed = max(tolerance, 1e-9) if column in SOLUTION_COLUMNS else tolerance
                assert float(texts[0]) == pytest.approx(float(texts[1]), rel=allowed, abs=allowed), column
        assert row["algorithm"] == wanted["algorithm"]
