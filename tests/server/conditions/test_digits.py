"""The committed configs of conditions keep what their page says: attackers, dropouts and thin wires on digits."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from fedbilevel.config.tables import Config, read
from fedbilevel.report import RunDirectory
from fedbilevel.results import summarise
from fedbilevel.results.history import Row
from fedbilevel.results.targets import accuracy
from server.running.experiment import Experiment, Observer, local

pytestmark = [pytest.mark.slow, pytest.mark.beside, pytest.mark.timeout(600)]
METHODS = ("br-fedbi-m", "aggitd")


def rows_of(name: str, tmp_path: Path, labels: Iterable[str], *overrides: str) -> list[Row]:
    """The rows of some curves of a committed config, at its first seed."""
    config = read(name, ["run.seeds=[0]", *overrides])
    chosen: Config = config.model_copy(update={"algorithms": {label: config.algorithms[label] for label in labels}})
    experiment = Experiment(chosen, RunDirectory.create(tmp_path / "run"), local, Observer())
    assert experiment.run() == []
    return experiment.history()


def ends(rows: Iterable[Row]) -> dict[str, float]:
    """The accuracy at the end, by curve."""
    return {str(row["algorithm"]): float(str(row["test_accuracy"])) for row in rows}


ATTACKS = ("sign_flip", "ipm strength 10", "alie", "gaussian", "mimic", "label_flip")
WITHSTANDS = "trimmed_mean nnm byzantine 4"


@pytest.mark.parametrize("method", METHODS)
def test_one_rule_withstands_every_attack(method: str, tmp_path: Path) -> None:
    labels = [f"{method}, {attack}, {WITHSTANDS}" for attack in ATTACKS]
    found = ends(rows_of("byzantine", tmp_path, [f"{method}, none, mean", *labels]))
    clean = found.pop(f"{method}, none, mean")
    assert clean > 0.95
    assert min(found.values()) >= clean - 0.03


@pytest.mark.parametrize("method", METHODS)
def test_the_mean_is_ruined_by_one_attack_and_worn_by_another(method: str, tmp_path: Path) -> None:
    labels = [f"{method}, {attack}, mean" for attack in ("none", "ipm strength 10", "sign_flip")]
    clean, ruined, worn = ends(rows_of("byzantine", tmp_path, labels)).values()
    assert ruined <= clean - 0.2
    assert ruined + 0.3 < worn < clean


@pytest.mark.parametrize("method", ["simfbo", "aggitd", "fednest"])
def test_a_third_of_the_answers_lost_costs_a_point_at_most(method: str, tmp_path: Path) -> None:
    polite, lost = ends(rows_of("dropouts", tmp_path, [f"{method}, dropout 0", f"{method}, dropout 0.3"])).values()
    assert lost >= polite - 0.01


def test_eight_bits_save_three_quarters_of_the_uplink(tmp_path: Path) -> None:
    labels = ["simfbo, exact", "simfbo, quantise"]
    rows = rows_of("compression", tmp_path, labels, "run.evaluate_every=1")
    exact, coded = summarise(rows, [accuracy(0.9)])
    assert exact["uplink_bytes"] >= 3.5 * coded["uplink_bytes"]
    assert coded["rounds"] <= 1.1 * exact["rounds"]
