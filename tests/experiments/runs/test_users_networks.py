"""A network of a user's own in a config: resumed, edited, moved elsewhere, and listed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import server.running.experiment
from experiments.cli import main
from experiments.runs.progress import Lines
from experiments.runs.trust import files_of
from fedbilevel.config import setup
from fedbilevel.config.setup import Setup
from fedbilevel.config.tables import read
from server.running.plan import fingerprint, resolved

NETS = """
import torch
from torch import nn

def body():
    open(r'{}', 'w').close()
    return nn.Sequential(nn.Conv2d(1, 2, 3, stride=3), nn.Tanh())
"""
CONFIG = """
[run]
iterations = 3
[problem]
name = "hyper_representation"
network = "{}"
[data]
clients = 3
[algorithms.joint]
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(server.running.experiment, "WRITE_SECONDS", 0.0)
    Path("executed").touch()


@pytest.fixture
def nets(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in another place than this, beside its config."""
    place = tmp_path_factory.mktemp("elsewhere")
    (place / "nets.py").write_text(NETS.format(tmp_path / "executed"))
    (place / "c.toml").write_text(CONFIG.format("nets.py:body"))
    return place / "nets.py"


def interrupted(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave in `out` a run that was stopped after two iterations of three."""
    stops = iter([None, KeyboardInterrupt])

    def stop(self: Lines, *arguments: object) -> None:
        if error := next(stops):
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(Lines, "stepped", stop)
        assert main(["run", str(config), "--out", "out"]) == 130
    assert Path("out/checkpoints/joint-0.pt").is_file()
    setup._problem.cache_clear()  # as in a new process
    Path("executed").unlink()


def rows(out: str) -> list[list[str]]:
    """The history but for the wall clock."""
    header, *held = [line.split(",") for line in Path(out, "history.csv").read_text().splitlines()]
    return [[value for name, value in zip(header, row, strict=True) if "wall" not in name] for row in held]


def test_a_run_is_resumed_with_its_network(
    nets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(nets.parent / "c.toml"), "--out", "whole"]) == 0
    interrupted(nets.parent / "c.toml", monkeypatch)
    capsys.readouterr()
    assert main(["resume", "out"]) == 2
    said = capsys.readouterr().err
    assert str(nets) in said
    assert "--trust" in said
    assert not Path("executed").exists()
    assert main(["resume", "out", "--trust"]) == 0
    assert Path("executed").exists()
    assert rows("out") == rows("whole")


def test_a_network_that_was_edited_is_another_config(
    nets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(nets.parent / "c.toml", monkeypatch)
    nets.write_text(nets.read_text().replace("Tanh", "ReLU"))
    capsys.readouterr()
    assert main(["resume", "out", "--trust"]) == 2
    assert "a file that it names has changed" in capsys.readouterr().err


def test_its_text_is_in_the_fingerprint_and_in_the_kept_problem(nets: Path) -> None:
    config = read(nets.parent / "c.toml")
    assert files_of(config) == [nets]
    before, problem = fingerprint(resolved(config)), Setup.of(config, "joint", 0).problem()
    assert Setup.of(config, "joint", 0).problem() is problem
    nets.write_text(nets.read_text().replace("Conv2d(1, 2", "Conv2d(1, 5"))
    assert fingerprint(resolved(config)) != before
    assert len(Setup.of(config, "joint", 0).problem().initial(torch.Generator())[0]) == 5 * 10


def test_a_network_is_found_from_here_or_beside_its_config(nets: Path) -> None:
    assert read(nets.parent / "c.toml").problem.parameters["network"] == f"{nets}:body"
    here = Path(shutil.copy(nets, "nets.py")).resolve()
    assert read(nets.parent / "c.toml").problem.parameters["network"] == f"{here}:body"


def test_a_refusal_names_the_key(nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nets.write_text("from torch import nn\ndef body(): return nn.BatchNorm2d(1)\n")
    assert main(["run", str(nets.parent / "c.toml"), "--out", "out"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("fedbilevel: problem.network: got ")
    assert "running_mean is a buffer" in said
    assert len(said.splitlines()) == 1
    assert not Path("out").exists()
