"""`flwr run .`: the ServerApp and the ClientApp in Flower's own runtime, on one SuperLink of the tests' own."""

import functools
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.processes.app_runs import BROKEN, assert_same_history, run_locally, write_text
from tests.processes.flower import REPOSITORY, Flower, processes_with, stop_all

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

OVERRIDES = ("run.rounds=3", "run.evaluate_every=3", "options.lower_rounds=1", "options.neumann_terms=1")


@pytest.fixture(scope="module")
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


class Runs(NamedTuple):
    """What `flwr run` said of a run that completes and of one in which a client fails, and where the first lies."""

    completed: str
    failed: str
    out: Path


@pytest.fixture(scope="module")
def runs(flower: Flower, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Two runs side by side, for most of their time is spent waiting; 3 nodes and 2 Ray workers each."""
    folder = tmp_path_factory.mktemp("flwr")
    write_text(folder / "broken.py", BROKEN)
    config = write_text(
        folder / "broken.toml", '[run]\niterations = 1\n[problem]\nname = "broken.py:Broken"\n[algorithms.aggitd]\n'
    )
    assert flower.statuses() == []  # starts the SuperLink, which the two runs share
    with ThreadPoolExecutor(2) as pool:
        asked = [f"set='{'; '.join(OVERRIDES)}' out='{folder / 'out'}'", f"config='{config}' out='{folder / 'broken'}'"]
        completed, failed = pool.map(functools.partial(flower.run, timeout=240), asked)
    return Runs(completed, failed, folder / "out")


def test_a_run_gives_the_history_of_the_local_engine(runs: Runs, tmp_path: Path) -> None:
    assert f"Results: {runs.out}" in runs.completed
    expected = run_locally(REPOSITORY / "experiments" / "configs" / "flower.toml", tmp_path / "local", OVERRIDES)
    assert_same_history(runs.out, expected, 1e-6)
    assert {path.name for path in runs.out.iterdir()} >= {"config.toml", "summary.csv", "rounds_vs_accuracy.png"}


def test_what_is_sent_is_the_code_and_nothing_else(runs: Runs, flower: Flower) -> None:
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


def test_a_failing_client_fails_the_run_and_is_named(runs: Runs, flower: Flower) -> None:
    says = "aggitd, seed 0, iteration 0: client 4, operation losses, round 0: ValueError: fifty are too many"
    assert f"failed: {says}" in runs.failed
    [completed, failed] = sorted(flower.statuses())
    assert completed == ("finished:completed", "N/A")
    assert failed[0] == "finished:failed"
    assert says in failed[1]
