"""The ServerApp over nodes in this process: whole run directories, and what goes wrong."""

import csv
import logging
import re
from pathlib import Path

import pytest

import clients.app
from fedbilevel.errors import BadInput, RunFailed
from server.grids.local import LocalGrid
from tests.processes.app_runs import BROKEN, PARTIAL, assert_same_history, run_app, run_locally, write_text
from tests.processes.flower import REPOSITORY


@pytest.mark.parametrize("nodes", [1, 4, 11])
def test_history_does_not_depend_on_the_number_of_nodes(
    partial_run: tuple[Path, Path], tmp_path: Path, nodes: int
) -> None:
    config, expected = partial_run
    run_app(LocalGrid(clients.app.app, nodes), config=str(config), out=str(tmp_path / "flower"))
    assert_same_history(tmp_path / "flower", expected, 1e-12)


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
        ({"config": "flowr.toml"}, r"config: got 'flowr.toml'; allowed: .*\(did you mean 'flower'\?\)"),
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
