"""Code of a user's own: what it raises ends its run, what it hangs on is given up, what a directory names is told."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.cli import main
from fedbilevel.config import setup

PROBLEM = """
import sys
import torch
from fedbilevel import ClientData
from fedbilevel.problems import Quadratic

class Own(Quadratic):
    calls = 0

    def upper(self, x, y, examples):
        Own.calls += 1
        if Own.calls > 8:
            raise {what}
        return super().upper(x, y, examples)

def own():
    return Own(clients=3)
"""
CONFIG = """
[run]
iterations = 4
[problem]
name = "{name}"
[algorithms.f2sa]
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("what", ["SystemExit(0)", "GeneratorExit('x')", "BaseException('y')", "StopIteration('z')"])
def test_a_loss_that_leaves_the_program_ends_its_run(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.py").write_text(PROBLEM.format(what=what))
    Path("c.toml").write_text(CONFIG.format(name="own.py:own"))
    assert main(["run", "c.toml", "--out", "out"]) == 1
    said = capsys.readouterr().err
    assert what.split("(")[0] in said
    assert "f2sa, seed 0" in said
    assert Path("out/history.csv").is_file()


ALGORITHM = """
from server.kit import options
from server.kit.algorithm import Algorithm, State, algorithm

class Options(options.Options):
    "None."

@algorithm("own", source="here", options=Options)
def own(o):
    "One."
    {factory}
    def step(state, fed):
        {step}
        return state
    return Algorithm(State, step, lambda index: 0)
"""


@pytest.mark.parametrize(
    ("factory", "step", "status", "said"),
    [
        ("pass", "raise SystemExit(0)", 1, "own, seed 0, iteration 0: SystemExit"),
        ("pass", "raise GeneratorExit", 1, "own, seed 0, iteration 0: GeneratorExit"),
        ("pass", "1 / 0", 1, "own, seed 0, iteration 0: ZeroDivisionError: division by zero"),
        ("raise SystemExit(0)", "pass", 2, "a factory that runs, but it raised SystemExit: 0"),
    ],
)
def test_an_algorithm_that_leaves_the_program_ends_its_run(
    factory: str, step: str, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own.py").write_text(ALGORITHM.format(factory=factory, step=step))
    Path("c.toml").write_text(CONFIG.format(name="quadratic") + '[algorithms.own]\nalgorithm = "own.py:own"\n')
    assert main(["run", "c.toml", "--out", "out"]) == status
    assert said in capsys.readouterr().err
    if status == 1:  # the other algorithm has finished
        assert Path("out/history.csv").read_text().count("\nf2sa,0,4,") == 1


@pytest.mark.parametrize("what", ["import sys; sys.exit(0)", "raise GeneratorExit", "raise BaseException('no')"])
def test_a_file_that_leaves_the_program_at_import_is_bad_input(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.py").write_text(what)
    Path("c.toml").write_text(CONFIG.format(name="own.py:own"))
    assert main(["run", "c.toml", "--out", "out"]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "problem.name: got" in said
    assert not Path("out").exists()


@pytest.mark.parametrize("body", ["import time\ntime.sleep(600)", "while True: pass"])
def test_a_file_that_hangs_is_given_up(body: str) -> None:
    Path("own.py").write_text(body)
    Path("c.toml").write_text(CONFIG.format(name="own.py:own"))
    began = time.monotonic()
    command = [sys.executable, "-m", "fedbilevel", "run", "c.toml", "--out", "out"]
    environment = {**os.environ, "FEDBILEVEL_IMPORT_SECONDS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[3]), environment.get("PYTHONPATH", "")])
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert "has not been imported within 1 s" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert not Path("out").exists()
    assert time.monotonic() - began < 100


# ---- what a run directory names ----


@pytest.fixture
def elsewhere(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory whose problem lies in another place than this, and that has a row to make still."""
    place = tmp_path_factory.mktemp("elsewhere")
    text = (
        "from fedbilevel.problems import Quadratic\ndef own():\n    open(r'{}', 'w').close()\n    return Quadratic(3)\n"
    )
    (place / "own.py").write_text(text.format(tmp_path / "executed"))
    Path("c.toml").write_text(CONFIG.format(name=f"{place / 'own.py'}:own"))
    assert main(["run", "c.toml", "--out", "out"]) == 0
    history = Path("out/history.csv").read_text().splitlines(keepends=True)
    Path("out/history.csv").write_text("".join(history[:-1]))
    Path("executed").unlink()
    setup._problem.cache_clear()  # as in a new process
    return place / "own.py"


def test_resume_refuses_a_file_from_elsewhere_unless_it_is_trusted(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["resume", "out"]) == 2
    said = capsys.readouterr().err
    assert str(elsewhere) in said
    assert "--trust" in said
    assert not Path("executed").exists()
    assert main(["resume", "out", "--trust"]) == 0
    assert f"executes {elsewhere}" in " ".join(capsys.readouterr().out.split())
    assert Path("executed").exists()


def test_resume_takes_a_file_below_the_run_directory_or_the_current_folder(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in (Path("out/own.py"), Path("sub/own.py")):
        place.parent.mkdir(exist_ok=True)
        shutil.copy(elsewhere, place)
        config = Path("out/config.toml")
        name = next(line for line in config.read_text().splitlines() if line.startswith('name = "/'))
        config.write_text(config.read_text().replace(name, f'name = "{place.resolve()}:own"'))
        capsys.readouterr()
        assert main(["resume", "out"]) == 0
        history = Path("out/history.csv").read_text().splitlines(keepends=True)
        Path("out/history.csv").write_text("".join(history[:-1]))
    assert main(["report", "out"]) == 0


def test_report_executes_nothing(elsewhere: Path) -> None:
    elsewhere.write_text("raise SystemExit(3)")
    assert main(["report", "out"]) == 0
    assert not Path("executed").exists()
