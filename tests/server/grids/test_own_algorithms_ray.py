"""An algorithm of a user's own over Ray, whose processes have never seen its file: by actors, and in a sweep.

One Ray serves all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.supercore.task_identity import TaskIdentity

from fedbilevel import simulate
from fedbilevel.config.tables import Config, read
from fedbilevel.data import federate
from fedbilevel.problems import HyperRepresentation
from fedbilevel.report import RunDirectory
from server.grids.cluster.connection import connected
from server.running.experiment import Experiment, Observer, engine, local
from server.running.plan import plan
from server.running.run import run_one
from server.running.sweep import Sweep
from tests.own_algorithms import METHOD, PROBLEM_TOO, own

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(120),
    # Ray leaves the files and processes that it starts for the garbage collector to close
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

OPTIONS: dict[str, Any] = {"iterations": 3, "dtype": "float64", "clients_per_round": 4, "gradient_batch": 1, "seed": 2}
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    with connected(None, cpus=2):
        yield


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Flower's task identity is one per process: it is left as it was."""
    names = ("_task_id", "_run_id", "_node_id")
    before = {name: getattr(TaskIdentity, name) for name in names}
    monkeypatch.chdir(tmp_path)
    yield
    for name, value in before.items():
        setattr(TaskIdentity, name, value)


def same(found: Rows, expected: Rows) -> None:
    """Every column but the wall clock: numbers to 1e-12, the rest exactly."""
    assert len(found) == len(expected) > 1
    for row, wanted in zip(found, expected, strict=True):
        assert row.keys() == wanted.keys()
        for name in row.keys() - {"wall_seconds"}:
            number = isinstance(wanted[name], float)
            assert row[name] == (pytest.approx(wanted[name], rel=1e-12, abs=1e-12) if number else wanted[name]), name


def test_actors_run_its_operation_as_this_process_does(tmp_path: Path) -> None:
    """Then the file is edited, and holds a problem as well."""
    own(tmp_path)
    ray, here = (simulate("quadratic", "own.py:blended", workers=2, engine=e, **OPTIONS) for e in ("ray", "local"))
    same(ray.history, here.history)
    assert ray.communication == here.communication
    edited = own(tmp_path, "own.py", ("FACTOR = 1.0", "FACTOR = 3.0"))
    edited.write_text(edited.read_text() + PROBLEM_TOO)
    same(*(simulate("own.py:Spread", "own.py:blended", engine=e, **OPTIONS).history for e in ("ray", "local")))


def test_actors_run_its_method_of_adaptation(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(METHOD)
    options: dict[str, Any] = {"iterations": 2, "workers": 2, "evaluation_tasks": 5}
    same(*(simulate("quadratic_tasks", "own.py:constant", engine=e, **options).history for e in ("ray", "local")))


NETWORK = """
from torch import nn

class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, stride=3)
    def forward(self, images):
        return self.conv(images).tanh()
"""


def test_actors_run_a_network_whose_file_is_gone(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(NETWORK)
    problem = HyperRepresentation(federate("digits", clients=3), network="nets.py:Body")
    (tmp_path / "nets.py").unlink()
    options: dict[str, Any] = {"iterations": 2, "dtype": "float64", "workers": 2}
    same(*(simulate(problem, "aggitd", engine=e, **options).history for e in ("ray", "local")))


CONFIG = """
[run]
iterations = 3
dtype = "float64"
clients_per_round = 4
[problem]
name = "both.py:Spread"
[options]
blend = 0.25
[algorithms.one]
algorithm = "one.py:blended"
[algorithms."two.py:blended"]
[algorithms.both]
algorithm = "both.py:blended-descent"
[algorithms.joint]
"""


@pytest.fixture
def files(tmp_path: Path) -> Config:
    """Three files with the same names within, one of which holds the problem too."""
    own(tmp_path, "one.py")
    own(tmp_path, "two.py", ("FACTOR = 1.0", "FACTOR = 2.0"))
    (tmp_path / "both.py").write_text((tmp_path / "one.py").read_text() + PROBLEM_TOO)
    (tmp_path / "config.toml").write_text(CONFIG)
    return read("config.toml")


def alone(config: Config) -> Rows:
    """The rows of every job, one after another in this process."""
    rows: Rows = []
    for job in plan(config):
        problem = job.setup().problem()
        rows += run_one(job.run(), problem, local(job.setup(), problem)).history
    return rows


def test_a_sweep_runs_files_that_are_gone_by_then(files: Config, tmp_path: Path) -> None:
    expected = alone(files)
    sweep = Sweep(files, RunDirectory.create(tmp_path / "out"), Observer(), jobs=2)
    for name in ("one", "two"):  # their text travels
        (tmp_path / f"{name}.py").unlink()
    assert sweep.run() == []
    same(sweep.history(), expected)
    ends = {row["algorithm"]: row["upper_loss"] for row in expected}
    assert len(ends) == 4
    assert ends["one"] == pytest.approx(ends["both"], rel=1e-12)
    assert len({round(float(end), 9) for end in ends.values()}) == 3


def test_the_same_actors_run_one_file_after_another(files: Config, tmp_path: Path) -> None:
    with engine("ray", workers=2, threads=1) as connect:
        experiment = Experiment(files, RunDirectory.create(tmp_path / "out"), connect, Observer())
        assert experiment.run() == []
    same(experiment.history(), alone(files))
