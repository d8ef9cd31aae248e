# A config to begin with: it runs as it is, names every key that the models check, and replaces nothing unasked.

from __future__ import annotations

import re
import resource
import subprocess
import tomllib
from pathlib import Path

import pytest

from experiments.cli import main
from experiments.init import starter
from fedbilevel.config.tables import DataTable, EngineTable, RunTable
from fedbilevel.problems import PROBLEMS
from tests.processes.console import process, refused, rows


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def part(text: str, header: str) -> str:
    """The lines of a table."""
    return text.split(f"\n[{header}]\n")[1].split("\n[")[0]


def test_the_config_runs_as_it_is_and_the_answer_says_how(capsys):
    assert main(["init"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Next: fedbilevel run experiment.toml"
    assert main(["run", "experiment.toml", "--out", "a", "--set", "run.rounds=20", "--set", "problem.hidden=[4]"]) == 0
    assert {row["algorithm"] for row in rows("a")} == {"aggitd", "fednest"}


def test_every_key_of_a_table_is_there_with_its_default_and_its_meaning():
    text = starter("hyper_representation")
    for header, model in (("run", RunTable), ("data", DataTable), ("engine", EngineTable)):
        keys = re.findall(r"^(?:# )?(\w+)(?: =|:)", part(text, header), re.MULTILINE)
        assert set(model.model_fields) <= set(keys)
        assert len(keys) == len(set(keys))
    assert '# name = "local"  # a name of `fedbilevel list`' in part(text, "engine")
    assert "# latency_ms = 50.0" in part(text, "systems.network")
    assert "rounds = 200  # a run ends with the iteration that reaches this many rounds" in part(text, "run")


@pytest.mark.parametrize("problem", sorted(PROBLEMS))
def test_a_key_holds_as_well_without_its_comment_mark(problem):
    text = starter(problem)
    assert tomllib.loads(text)["problem"]["name"] == problem
    bare = re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE)
    assert set(tomllib.loads(text)["run"]) < set(tomllib.loads(bare)["run"])


@pytest.mark.parametrize("problem", ["quadratic", "minimax_quadratic", "sinusoid"])
def test_a_problem_of_each_kind_has_a_config_that_runs(problem, capsys):
    assert main(["init", "mine.toml", "--problem", problem]) == 0
    assert main(["run", "mine.toml", "--out", "a", "--set", "run.rounds=20"]) == 0
    assert len({row["algorithm"] for row in rows("a")}) == 2


@pytest.mark.slow
@pytest.mark.beside
@pytest.mark.parametrize("problem", ["few_shot", "loss_tuning", "personal_representation", "sinusoid", "unlearning"])
def test_the_longest_starters_end_within_a_minute_and_have_got_somewhere(problem):
    """About 20 s of one core, three quarters of a minute at the most; the others take half as much."""
    assert main(["init", "mine.toml", "--problem", problem]) == 0
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    one = "import torch; torch.set_num_threads(1)"
    run = process("run", "mine.toml", "--out", "a", first=one, stdout=subprocess.DEVNULL)
    run.communicate(timeout=280)
    assert run.returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 45
    for label in {row["algorithm"] for row in rows("a")}:
        own = [row for row in rows("a") if row["algorithm"] == label]
        assert own[-1]["upper_loss"] < 0.8 * own[0]["upper_loss"]


def test_a_file_that_is_there_is_replaced_by_force_alone(capsys):
    Path("mine.toml").write_text("kept")
    assert "--force" in refused(capsys, "init", "mine.toml")
    assert Path("mine.toml").read_text() == "kept"
    assert main(["init", "mine.toml", "--force"]) == 0
    assert Path("mine.toml").read_text() == starter("hyper_representation")


def test_an_unknown_problem_is_named_with_the_nearest(capsys):
    assert "did you mean 'quadratic'?" in refused(capsys, "init", "--problem", "quadratik")
    assert not Path("experiment.toml").exists()
