"""What a run directory keeps beside its history: models, and checkpoints that no other run can use."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import fedbilevel
from experiments.cli import main
from fedbilevel import BadInput, simulate
from fedbilevel.config.tables import read
from fedbilevel.problems import Quadratic
from server.kit.algorithm import State
from server.running.checkpoints import Checkpoint, Checkpoints
from server.running.experiment import Experiment
from server.running.plan import fingerprint, resolved

CONFIG = """
[run]
iterations = 4
seeds = [0, 3]
dtype = "float64"
[problem]
name = "quadratic"
clients = 4
[options]
upper_step = 0.05
[algorithms.f2sa]
[algorithms."a b/c"]
algorithm = "aggitd"
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("c.toml").write_text(CONFIG)
    assert main(["run", "c.toml", "--out", "out"]) == 0
    return tmp_path / "out"


def test_load_gives_back_what_each_run_ended_with(run: Path) -> None:
    loaded = fedbilevel.load(run)
    assert set(loaded) == {("f2sa", 0), ("f2sa", 3), ("a b/c", 0), ("a b/c", 3)}
    for label, name in (("f2sa", "f2sa"), ("a b/c", "aggitd")):
        expected = simulate(Quadratic(clients=4, seed=3), name, iterations=4, seed=3, upper_step=0.05, dtype="float64")
        model = loaded[label, 3]
        assert torch.equal(model.x, expected.x)
        assert torch.equal(model.y, expected.y)
        assert (model.algorithm, model.seed, model.iteration) == (label, 3, 4)
        assert model.round == expected.communication["rounds"]
        measures = loaded.problem(3).evaluate(model.x, model.y)
        assert measures["distance"] == expected.history[-1]["metric_distance"]
    assert len(loaded.history) == 4 * 5
    with pytest.raises(KeyError, match="f2sa"):
        loaded["f2sa", 1]
    with pytest.raises(BadInput, match="seed: got '7'; allowed: 0, 3"):
        loaded.problem(7)


def test_a_model_of_another_config_or_a_damaged_one_is_refused(run: Path) -> None:
    file = next((run / "models").glob("f2sa-0.*"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    with pytest.raises(BadInput, match=r"f2sa-0\.safetensors"):
        fedbilevel.load(run)
    file.write_bytes(whole)
    save_file(load_file(file), file)  # without what it says of itself
    with pytest.raises(BadInput, match=r"f2sa-0\.safetensors"):
        fedbilevel.load(run)
    file.write_bytes(whole)
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("upper_step = 0.05", "upper_step = 0.06", 1))
    with pytest.raises(BadInput, match="has changed since"):
        fedbilevel.load(run)
    (run / "config.toml").write_text(text.replace('title = "fedbilevel"', 'title = "another"'))
    assert len(fedbilevel.load(run)) == 4


def test_the_fingerprint_follows_what_numbers_depend_on(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(CONFIG)

    def of(*overrides: str) -> str:
        return fingerprint(resolved(read(tmp_path / "c.toml", overrides)))

    first = of()
    assert of() == first
    for same in ('title="x"', "engine.workers=2", "run.targets=[0.5]"):
        assert of(same) == first
    for other in (
        "run.seeds=[0]", "run.iterations=5", "run.batch=3", "problem.clients=5", "options.upper_step=0.051",
        "systems.availability=0.9", "algorithms.f2sa.penalty=11.0", 'run.dtype="float32"', "run.evaluate_every=2",
    ):  # fmt: skip
        assert of(other) != first, other


def test_the_fingerprint_follows_the_text_of_users_files(tmp_path: Path) -> None:
    text = "from fedbilevel.problems import Quadratic\ndef own(clients: int = 4):\n    return Quadratic(clients)\n"
    (tmp_path / "own.py").write_text(text)
    (tmp_path / "c.toml").write_text(CONFIG.replace('"quadratic"', '"own.py:own"'))
    first = fingerprint(resolved(read(tmp_path / "c.toml")))
    (tmp_path / "own.py").write_text(text + "# another\n")
    assert fingerprint(resolved(read(tmp_path / "c.toml"))) != first


# ---- checkpoints ----


@dataclass(frozen=True)
class Carried(State):
    v: torch.Tensor | None = None
    k: int = 0


def first() -> Carried:
    return Carried(torch.arange(3.0), torch.arange(2.0))


def checkpoint() -> Checkpoint:
    ledger = dict.fromkeys(("rounds", "messages", "vectors_down", "vectors_up", "downlink_bytes", "uplink_bytes"), 3)
    state = replace(first(), v=torch.ones(2), k=4, hypergradient=torch.zeros(3))
    return Checkpoint(state, 2, 0.5, {**ledger, "simulated_seconds": 0.25, "gradient_evaluations": 7}, 3)


@pytest.fixture
def kept(tmp_path: Path) -> Checkpoints:
    checkpoints = Checkpoints(tmp_path / "checkpoints", "the fingerprint")
    checkpoints.save("a-0", checkpoint())
    return checkpoints


def test_a_checkpoint_comes_back_whole(kept: Checkpoints) -> None:
    back = kept.load("a-0", first())
    assert back is not None
    assert torch.equal(back.state.v, torch.ones(2))  # type: ignore[attr-defined]  # of Carried
    assert (back.iteration, back.seconds, back.evaluations, dict(back.ledger)) == (2, 0.5, 3, dict(checkpoint().ledger))
    assert kept.load("a-1", first()) is None


def test_any_flipped_bit_is_refused(kept: Checkpoints) -> None:
    file = next(kept.folder.glob("*.pt"))
    whole = file.read_bytes()
    for place in range(0, len(whole), 41):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(BadInput, match="delete it to start this run over"):
            kept.load("a-0", first())
    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:cut])
        with pytest.raises(BadInput, match="delete it"):
            kept.load("a-0", first())


def test_another_runs_checkpoint_and_another_config_are_refused(kept: Checkpoints) -> None:
    file = next(kept.folder.glob("*.pt"))
    (kept.folder / "b-0.pt").write_bytes(file.read_bytes())
    with pytest.raises(BadInput, match="of the run a-0"):
        kept.load("b-0", first())
    with pytest.raises(BadInput, match="of another config"):
        Checkpoints(kept.folder, "another").load("a-0", first())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"iteration": 2.5}, "2.5"),
        ({"iteration": -1}, "-1"),
        ({"evaluations": -3}, "-3"),
        ({"seconds": float("nan")}, "nan"),
        ({"ledger": {**checkpoint().ledger, "rounds": -3}}, "-3"),
        ({"ledger": {**checkpoint().ledger, "uplink_bytes": 1.5}}, "1.5"),
        ({"state": replace(checkpoint().state, v=torch.ones(4))}, "v has another shape"),
        ({"state": replace(checkpoint().state, v=torch.ones(2, dtype=torch.float64))}, "v has another shape or dtype"),
        ({"state": replace(checkpoint().state, v="ones")}, "v is of the type str"),
        ({"state": replace(checkpoint().state, k=1.5)}, "k is of the type float"),
        ({"state": replace(checkpoint().state, x=torch.ones(4))}, "x has another shape"),
        ({"state": replace(checkpoint().state, x=None)}, "x is of the type NoneType"),
    ],
)
def test_strange_contents_are_refused_even_with_a_digest(kept: Checkpoints, changed: dict[str, Any], said: str) -> None:
    kept.save("a-0", replace(checkpoint(), **changed))
    with pytest.raises(BadInput) as caught:
        kept.load("a-0", first())
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_of_another_kind_is_refused(kept: Checkpoints) -> None:
    content = io.BytesIO()
    torch.save({"state": {}, "iteration": 1}, content)
    next(kept.folder.glob("*.pt")).write_bytes(content.getvalue())
    with pytest.raises(BadInput, match="another kind of file, or of another version"):
        kept.load("a-0", first())


def test_what_killed_writers_left_is_removed_on_resume(run: Path) -> None:
    assert not (run / "checkpoints").exists()
    for folder in (run, run / "models"):
        (folder / ".history.csv.1-2.part").write_text("half")
    lines = (run / "history.csv").read_text().splitlines(keepends=True)
    (run / "history.csv").write_text("".join(lines[:-2]))
    assert main(["resume", str(run)]) == 0
    assert not list(run.rglob("*.part"))
    again = [line.split(",") for line in (run / "history.csv").read_text().splitlines()]
    for fields, others in zip((line.rstrip("\n").split(",") for line in lines), again, strict=True):
        assert fields[:7] + fields[8:] == others[:7] + others[8:]  # all but wall_seconds


def test_a_model_that_a_kill_prevented_is_written_on_resume(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fedbilevel.load(run)
    monkeypatch.setattr(Experiment, "keep_model", lambda *what: None)
    monkeypatch.setattr(Checkpoints, "remove", lambda self: None)
    assert main(["run", "c.toml", "--out", "killed"]) == 0
    monkeypatch.undo()
    monkeypatch.chdir(run.parent)
    assert not (run.parent / "killed" / "models").exists()
    assert main(["resume", "killed"]) == 0
    again = fedbilevel.load("killed")
    assert set(again) == set(whole)
    for name, model in again.items():
        assert torch.equal(model.x, whole[name].x)
        assert torch.equal(model.y, whole[name].y)
        assert (model.iteration, model.round) == (4, whole[name].round)
    assert not (run.parent / "killed" / "checkpoints").exists()
