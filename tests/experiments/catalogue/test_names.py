# The list of names, and what each of them takes.

from __future__ import annotations

import typing
from pathlib import Path

import pytest

from experiments.catalogue.names import KINDS
from experiments.cli import main
from fedbilevel.config.tables import EngineTable
from server.grids import engines
from server.kit.optimisers import OPTIMISERS, SCHEDULES
from server.kit.options import UpperOptions
from tests.processes.console import refused

PROBLEM = """
from fedbilevel.problems import Quadratic

class Own(Quadratic):
    \"\"\"Mine.

    Parameters
    ----------
    size
        How large it is.
    low, high
        Where it lies.
    \"\"\"

    def __init__(self, size: int, low: float = 0.5, high: float = 1.0, seed: int = 0):
        super().__init__(clients=size)

number = 3
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDBILEVEL_DATA", raising=False)


def listed(capsys, *name):
    capsys.readouterr()
    assert main(["list", *name]) == 0
    return capsys.readouterr().out


def table(said):
    """The rows of the tables by their first word, split where two spaces or more are."""
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in said.splitlines()]
    return {row[0]: row[1:] for row in rows if row}


def test_every_name_of_the_list_is_shown_with_its_line(capsys):
    said = listed(capsys)
    for kind in KINDS:
        assert kind.title in said
        for name in kind.names():
            assert f"  {name} " in said
            assert f"{name}: " in listed(capsys, name)


@pytest.mark.parametrize(
    ("name", "key", "row"),
    [
        ("adam", "upper_beta2", ["0.999", "b2", "decay of the second moment of upper_optimiser"]),
        ("cosine", "upper_period", ["-", "k"]),
        ("maml", "local_steps", ["5", "K", "inner steps of a client on a task", "an integer of at least 1"]),
        ("simfbo", "radius", ["-", "R", "v is projected to |v| <= R after each step; default: it is not"]),
        ("aggitd", "upper_step", ["0.1", "alpha", "step size of x", "a number of at least 0"]),
        ("mlp", "activation", ['"relu"', "see hidden", '"relu" or "tanh"']),
        ("conv", "blocks", ["2", "see filters", "an integer"]),
        ("ray", "gpus", ["0.0", "GPUs that an actor reserves"]),
        ("digits", "validation", ["0.5", "share of a client's examples on the upper level"]),
        ("dirichlet", "min_size", ["2", "a draw that leaves a client fewer examples is repeated", "an integer from 2"]),
        ("quadratic", "examples", ["[2, 6]"]),
        ("hyper_cleaning", "cleaning", ['"example"']),
    ],
)
def test_a_row_says_default_symbol_meaning_and_what_is_allowed(capsys, name, key, row):
    found = table(listed(capsys, name))[key]
    assert [cell[: len(part)] for cell, part in zip(found, row, strict=False)] == row


def test_sources_are_named(capsys):
    assert "Yurochkin et al., ICML 2019" in listed(capsys, "dirichlet")
    assert "after Franceschi et al., ICML 2017" in listed(capsys, "hyper_cleaning")
    assert "Loshchilov" not in listed(capsys, "yogi")
    assert "Reddi et al., ICLR 2021" in listed(capsys, "yogi")
    assert "problem.name = hyper_cleaning, fair_classification" in listed(capsys, "linear")


def test_a_name_of_two_kinds_shows_both(capsys):
    said = listed(capsys, "sinusoid")
    assert "1 of 2. Problems, problem.name\nsinusoid: local lower level" in said
    assert "2 of 2. Configs, fedbilevel run NAME\nsinusoid: sine curves, 10 points" in said
    assert "of 2." not in listed(capsys, "quadratic")


def test_files_of_ones_own_are_shown(capsys, monkeypatch):
    Path("own.py").write_text(PROBLEM)
    rows = table(listed(capsys, "own.py:Own"))
    assert rows["size"] == ["required", "How large it is.", "an integer"]
    assert rows["high"] == ["1.0", "see low", "a number"]
    assert rows["seed"][0] == "the run's"
    assert "NAME: got 'own.py:number'" in refused(capsys, "list", "own.py:number")
    Path("sine.npz").write_bytes(b"")
    monkeypatch.setenv("FEDBILEVEL_DATA", ".")
    assert "Read from " in listed(capsys, "sine")
    assert "did you mean 'sine'?" in refused(capsys, "list", "sinee")
    monkeypatch.setenv("FEDBILEVEL_DATA", "nowhere")
    assert "digits: 1,797" in listed(capsys, "digits")


def test_the_tables_of_names_are_those_that_are_allowed():
    fields = typing.get_type_hints(UpperOptions)
    assert set(OPTIMISERS) == set(typing.get_args(fields["upper_optimiser"]))
    assert set(SCHEDULES) == set(typing.get_args(fields["upper_schedule"]))
    assert set(engines.TAKES) == set(engines.ENGINES)
    assert {key for keys in engines.TAKES.values() for key in keys} == set(EngineTable.model_fields) - {"name"}
