"""`flwr run .`: the ServerApp and the ClientApp in Flower's own runtime."""

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app_runs import BROKEN, assert_same_history, run_locally, write_text
from tests.flower import REPOSITORY, Flower, processes_with, stop_all


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
