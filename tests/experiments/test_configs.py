"""Every committed config runs: shortened, on every algorithm and seed it names."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from fedbilevel.config.tables import check, read, write
from fedbilevel.report import RunDirectory
from server.running.experiment import Experiment, Observer, local
from server.running.plan import check_problem, plan, resolved
from tests.datasets import skip_without_data
from tests.processes.console import ROOT

CONFIGS = sorted((ROOT / "experiments" / "configs").glob("*.toml"))


def test_the_configs_are_there() -> None:
    assert {"demo", "fednest_fig2", "aggitd_vs_fednest", "flower"} <= {path.stem for path in CONFIGS}


LONG = {
    "byzantine",
    "byzantine_mnist",
    "dropouts_every_method",
    "loss_tuning",
    "omniglot",
    "omniglot_active",
    "omniglot_closed",
    "single_loop",
}


def shortened(path: Path) -> ParameterSet:
    marks = [pytest.mark.slow, pytest.mark.beside] if path.stem in LONG else []
    return pytest.param(path, id=path.stem, marks=marks)


@pytest.mark.parametrize("path", [shortened(path) for path in CONFIGS])
def test_a_committed_config_runs_shortened(path: Path, tmp_path: Path) -> None:
    skip_without_data(path.read_text())
    config = read(path)
    changes = [f"run.seeds={config.run.seeds[:1]}", "run.rounds=20", "run.evaluate_every=10"]
    if "tasks_per_client" in config.options:
        changes += ["options.evaluation_tasks=10", "options.tasks_per_client=1"]
    shorter = read(path, changes)
    jobs = plan(shorter)
    check_problem(jobs)
    directory = RunDirectory.create(tmp_path / "run")
    directory.write_config(write(resolved(shorter)))
    assert Experiment(shorter, directory, local, Observer()).run() == []
    rows = directory.read_history()
    assert {row["algorithm"] for row in rows} == set(config.algorithms)
    for label in config.algorithms:
        own = [row for row in rows if row["algorithm"] == label]
        assert own[0]["round"] == 0
        assert int(str(own[-1]["round"])) >= 20
        assert all(math.isfinite(float(str(row["upper_loss"]))) for row in own)
    measure = "accuracy" if rows[0]["test_accuracy"] is not None else "upper_loss"
    assert (directory.path / f"rounds_vs_{measure}.png").stat().st_size > 10_000
    assert (directory.path / f"rounds_vs_{measure}.svg").read_text().count("<path") > 5


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_resolved_config_is_the_same_config(path: Path, tmp_path: Path) -> None:
    config = resolved(read(path))
    (tmp_path / "config.toml").write_text(write(config))
    again = read(tmp_path / "config.toml")
    assert again == config
    assert resolved(again) == config
    first, second = plan(config), plan(read(path))
    assert [(job.label, job.seed, job.options) for job in first] == [
        (job.label, job.seed, job.options) for job in second
    ]


def test_the_demo_is_what_it_promises() -> None:
    config = read(next(path for path in CONFIGS if path.stem == "demo"))
    assert {"aggitd", "fednest", "lfednest", "memfbo"} <= set(config.algorithms)
    assert len(config.run.seeds) == 3
    assert config.data is not None
    assert (config.data.name, config.data.clients) == ("digits", 20)


def test_the_fig2_config_is_the_paper_s_setting() -> None:
    config = read(next(path for path in CONFIGS if path.stem == "fednest_fig2"))
    assert config.data is not None
    assert (config.data.name, config.data.clients, config.data.partition) == ("mnist", 100, "shards")
    assert config.data.parameters == {"shards_per_client": 2}
    assert (config.run.clients_per_round, config.run.batch) == (10, 64)
    assert config.problem.parameters["hidden"] == [200]
    by_label = {job.label: job for job in plan(config)}
    assert {"fednest", "lfednest", "fednest-sgd", "aggitd"} <= set(by_label)
    for name in ("fednest", "lfednest", "fednest-sgd"):
        assert by_label[name].options.model_dump()["neumann_terms"] == 5
        assert by_label[name].options.model_dump()["local_steps"] == {"epochs": 5}


def test_a_config_without_algorithms_is_refused() -> None:
    with pytest.raises(ValueError, match="algorithms"):
        check({"run": {"rounds": 1}, "problem": {"name": "quadratic"}, "algorithms": {}})
