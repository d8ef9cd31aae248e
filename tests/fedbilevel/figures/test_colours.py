# One colour and dash for each algorithm, by its name.

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from fedbilevel.figures.colours import KNOWN, styles

ROOT = Path(__file__).resolve().parents[3]


def test_no_two_algorithms_of_a_figure_are_alike():
    names = [*KNOWN, *(f"{name} ({run})" for name in KNOWN for run in "ab"), *(f"mine {i}" for i in range(60))]
    assert len(set(styles(names).values())) == len(names)


@pytest.mark.parametrize("order", list(itertools.permutations(["fednest", "mine", "aggitd"])))
def test_the_name_decides_and_not_the_place(order):
    assert styles(order) == styles(sorted(order))
    assert list(styles(order)) == list(order)
    assert styles(order)["mine"] == styles(["mine"])["mine"]
    assert styles(order)["aggitd"] == KNOWN["aggitd"] == styles(["aggitd", "joint"])["aggitd"]


def test_a_known_name_keeps_its_style_beside_any_other_label():
    for number in range(200):
        assert styles([f"label {number}", *KNOWN])["memfbo"] == KNOWN["memfbo"]


def test_a_run_of_a_known_algorithm_keeps_its_style_beside_any_other_label():
    """Some of these labels have the very style of that run where they stand alone, and then give way."""
    (run,) = styles(["aggitd (a)"]).values()
    labels = [f"label {number}" for number in range(200)]
    assert any(styles([label])[label] == run for label in labels)
    for label in labels:
        assert styles([label, "aggitd (a)"])["aggitd (a)"] == run


def test_runs_of_one_algorithm_share_its_colour_and_differ_in_their_dashes():
    for name, style in KNOWN.items():
        found = styles([f"{name} (a)", f"{name} (b)", f"{name}-slow"])
        assert {each.colour for each in found.values()} == {style.colour}
        assert len({each.dash for each in found.values()}) == 3
    assert styles(["fednest-sgd (a)"])["fednest-sgd (a)"].colour == KNOWN["fednest-sgd"].colour


def test_a_label_of_ones_own_has_the_same_style_in_every_process():
    script = "from fedbilevel.figures.colours import styles; print(styles(['mine', 'ours']))"
    said = {
        subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, env={"PYTHONHASHSEED": seed}, capture_output=True, text=True
        ).stdout
        for seed in ("1", "2")
    }
    assert said == {f"{styles(['mine', 'ours'])}\n"}
