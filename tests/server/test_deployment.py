"""Real clients: a SuperLink and three SuperNodes on loopback, each with a file of its own, on a home of the tests'."""

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedbilevel.report import RunDirectory
from fedbilevel.results.history import Row
from tests.processes.app_runs import assert_same_history, run_locally, write_text
from tests.processes.deployment import Deployment, until
from tests.processes.flower import processes_with
from tests.processes.parties import CONFIG, dealt

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# every message starts a process that imports torch: a few rounds take a minute
ALGORITHM = '[algorithms.once]\nalgorithm = "simfbo"\n'
OPTIONS = "\n[options]\n"
PATIENCE = 90


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    head = CONFIG.partition(OPTIONS)[0]
    return write_text(tmp_path_factory.mktemp("config") / "own.toml", f"{head}{OPTIONS}upper_step = 0.5\n{ALGORITHM}")


@pytest.fixture(scope="module")
def deployment(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Nothing is left running, whatever happens."""
    if not Path("/proc/self/environ").exists() or shutil.which("flwr", path=str(Path(sys.executable).parent)) is None:
        pytest.skip("needs /proc to find processes, and flwr beside this Python")
    home = Path(tempfile.mkdtemp(prefix="fb"))
    parties = Deployment(home, dealt(config, tmp_path_factory.mktemp("dealt") / "files"))
    try:
        parties.start()
        yield parties
    finally:
        parties.stop()
        time.sleep(0.2)
        left = processes_with(parties.variable)
        shutil.rmtree(home, ignore_errors=True)
    assert not left


def test_the_history_is_that_of_the_local_engine(deployment: Deployment, config: Path, tmp_path: Path) -> None:
    run = deployment.begin(f"config='{config}' out='{tmp_path / 'out'}'")
    said = deployment.finished(run, 400)
    assert f"Results: {tmp_path / 'out'}" in said, said + deployment.said()
    assert "the server holds no client's examples" in said
    expected = run_locally(config, tmp_path / "local")
    assert_same_history(tmp_path / "out", expected, 1e-6)
    for one, other in zip(rows_of(tmp_path / "out"), rows_of(expected), strict=True):
        assert all(one[name] == other[name] for name in ("round", "uplink_bytes", "downlink_bytes"))


def test_a_run_goes_on_when_a_node_is_killed(deployment: Deployment, config: Path, tmp_path: Path) -> None:
    """Clients 3 and 4 are those of the node that is killed: five of seven clients are left, and 5/7 of the bytes."""
    out = tmp_path / "out"
    overrides = "systems.failures=drop; run.iterations=4"
    run = deployment.begin(f"config='{config}' out='{out}' set='{overrides}' patience={PATIENCE}.0")
    until(lambda: run.poll() is not None or len(rows_of(out)) >= 2, 300, deployment.said)
    deployment.kill(1)
    said = deployment.finished(run, 500)
    assert f"Results: {out}" in said, said + deployment.said()
    assert "the node of partition 1 does not answer: the run goes on without it" in said
    rows = rows_of(out)
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3, 4]
    assert np.isfinite([float(str(row[name])) for row in rows for name in ("upper_loss", "lower_loss")]).all()
    up = np.diff([float(str(row["uplink_bytes"])) for row in rows])
    assert up[0] > 0
    assert up[-1] * 7 == up[0] * 5
    assert set((up * 7 / up[0]).tolist()) <= {7.0, 5.0}


def rows_of(folder: Path) -> list[Row]:
    """The rows so far: the file is written whole."""
    directory = RunDirectory(folder)
    return directory.read_history() if directory.history_path.exists() else []
