"""`fedbilevel deal`: what it says, and one line for bad input, which leaves nothing behind."""

from pathlib import Path

import pytest

from experiments.cli import main
from tests.processes.app_runs import write_text
from tests.processes.identity import identity_kept

CONFIG = """
[run]
iterations = 2
[problem]
name = "fair_classification"
[data]
clients = 5
[algorithms.fedgda]
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "fair.toml", CONFIG)


def test_it_says_whose_each_file_is_and_what_the_server_cannot_measure(capsys: pytest.CaptureFixture[str]) -> None:
    with identity_kept():
        assert main(["deal", "fair.toml", "--nodes", "2", "--out", "parties"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "parties/node-0.npz: clients 0 to 2",
        "parties/node-1.npz: clients 3 to 4",
        "parties/server.npz: numbers of examples, weights and the test set; "
        "it cannot measure worst_loss, worst_accuracy, accuracy_spread",
    ]
    assert sorted(path.name for path in Path("parties").iterdir()) == ["node-0.npz", "node-1.npz", "server.npz"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nodes", "6", "--out", "a"], "--nodes: got 6; allowed: an integer from 1 to the number of clients, 5"),
        (["--nodes", "2", "--out", "."], "--out: got '.'; allowed: a new folder or an empty one"),
        (["--nodes", "2", "--out", "a", "--seed", "-1"], "--seed: got -1"),
        (["--nodes", "2", "--out", "a", "--set", "data.clients=0"], "data.clients: got 0"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deal", "fair.toml", *arguments]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["fair.toml"]
