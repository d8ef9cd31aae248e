"""What the code of the README and of the pages finds is right: rounds, distances, losses."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest

from fedbilevel import simulate
from fedbilevel.config.tables import check
from fedbilevel.data import load
from server.kit import algorithm as table
from server.running.plan import plan
from tests.docs.blocks import PAGES, blocks


def block(language: str, holds: str) -> str:
    found = [each for page in PAGES for each in blocks(page) if each.language == language and holds in each.text]
    assert len({each.text for each in found}) == 1
    return found[0].text


def test_the_python_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block("python", "Quadratic(clients=10"), "README", "exec"), {})
    rounds, distance = capsys.readouterr().out.splitlines()[0].split()
    assert rounds == "1100"
    assert float(distance) < 0.1


def test_the_config_is_valid() -> None:
    import tomllib

    config = check(tomllib.loads(block("toml", "[algorithms.aggitd-warm]")))
    assert [job.label for job in plan(config)][:2] == ["aggitd", "aggitd-warm"]


def test_the_problem_file_learns(tmp_path: Path) -> None:
    (tmp_path / "ridge.py").write_text(block("python", "class Ridge"))
    result = simulate(
        f"{tmp_path / 'ridge.py'}:ridge", "aggitd", iterations=60, lower_rounds=10, lower_step=0.2, upper_step=1.0
    )
    losses = [float(str(row["upper_loss"])) for row in result.history]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
@pytest.mark.beside
def test_the_algorithm_file_is_found_and_converges(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("server.algorithms.soba")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(table, "_TABLE", dict(table.algorithms()))
    exec(compile(block("python", '"single-loop"'), "README", "exec"), module.__dict__)
    assert table.find("single-loop").summary.startswith("One step on y, v and x")
    steps = {"lower_step": 0.8, "upper_step": 0.02}
    result = simulate("quadratic", "single-loop", iterations=1500, evaluate_every=500, dtype="float64", **steps)
    assert result.history[-1]["round"] == 1500
    assert float(str(result.history[-1]["metric_distance"])) < 1e-6


def test_the_data_set_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block("python", "blobs.npz"), "README", "exec"), {})
    monkeypatch.setenv("FEDBILEVEL_DATA", str(tmp_path))
    data = load("blobs")
    assert data.classes == 4
    assert np.isfinite(data.x_train).all()


@pytest.mark.slow
@pytest.mark.beside
def test_the_algorithm_with_an_operation_of_its_own_converges(tmp_path: Path) -> None:
    (tmp_path / "scaled.py").write_text(block("python", "def curvature"))
    name = f"{tmp_path / 'scaled.py'}:scaled"
    result = simulate("quadratic", name, iterations=1500, evaluate_every=500, dtype="float64", upper_step=0.02)
    assert result.history[-1]["round"] == 1500
    assert float(str(result.history[-1]["metric_distance"])) < 1e-6
