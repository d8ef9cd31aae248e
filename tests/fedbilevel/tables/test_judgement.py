# Reports that say how sure a comparison is.

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from experiments.cli import main
from fedbilevel.results import write_history
from fedbilevel.statistics.profiles import ranks
from fedbilevel.tables.judgement import Trial, rank_sheet, shared_costs
from tests.console import config, tree
from tests.fedbilevel.results.rows import run


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def drawn(stem, folder):
    return {f"{folder}/{stem}.{kind}" for kind in ("png", "svg", "pdf")}


def summary(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_report_of_several_seeds_says_how_sure_it_is(capsys):
    assert main(["run", config(), "--out", "a", "--set", "run.targets=[]"]) == 0
    found = []
    for seed, (mine, joint) in enumerate([(10, 20), (10, 30), (20, 20), (None, None), (10, None), (10, 40)]):
        for label, at in (("aggitd", mine), ("mine", joint)):
            found += run(label, seed, [(0, 0.0), *([(at, 0.5)] if at else []), (90, 0.5 if at else 0.0)])
    write_history("a/history.csv", found)
    text = Path("a/config.toml").read_text()
    Path("a/config.toml").write_text(text.replace("targets = []", "targets = [0.5]"))
    capsys.readouterr()
    assert main(["report", "a"]) == 0
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "Median rounds until test accuracy ≥ 0.5: 95 % interval by the percentile bootstrap over seeds" in said
    assert "aggitd 5/6 10 10 never" in said
    assert "aggitd — 0.83" in said  # four won, two tied, of six
    assert "mine 0.17 —" in said
    assert f"aggitd : mine 4–2–0 0.83 {0.025**0.25:.2f}–1.00 0.125" in said
    lines = summary("a/statistics.csv")
    assert [(line["algorithm"], line["other"], line["value"]) for line in lines] == [
        ("aggitd", "", "10.0"),
        ("mine", "", "35.0"),
        ("aggitd", "mine", repr(5 / 6)),
        ("mine", "aggitd", repr(1 / 6)),
    ]
    assert [line["seeds_reached"] for line in lines[:2]] == ["5", "4"]
    assert lines[2]["p_value"] == "0.125"


def test_a_report_of_several_problems_ranks_and_profiles(capsys):
    for folder, clients in (("a", 4), ("b", 5)):
        target = 'run.targets=[{column="metric_distance", at_most=1e9}]'
        assert main(["run", config(), "--out", folder, "--set", f"problem.clients={clients}", "--set", target]) == 0
    capsys.readouterr()
    assert main(["report", "a", "b", "--anyway", "--out", "d"]) == 0
    said = capsys.readouterr().out
    assert "Average ranks by median rounds over 2 problems: no test of fewer than three algorithms" in said
    assert "2 seeds are few" in said
    assert drawn("performance_profile", "d") | {"d/statistics.csv"} <= set(tree("d"))
    ranked = [line for line in summary("d/statistics.csv") if line["statistic"] == "average rank"]
    assert [(line["algorithm"], line["value"], line["problems"]) for line in ranked] == [
        ("aggitd", "1.5", "2"),  # all arrive at their start
        ("mine", "1.5", "2"),
    ]


def trial(name, algorithms, **ends):
    """Runs of two seeds that meet an accuracy of 0.5 at these rounds (None: never), and 0.9 never."""
    found = []
    for label, at in ends.items():
        for seed in (0, 1):
            found += run(label, seed, [(0, 0.0), *([(at, 0.5)] if at else []), (90, 0.5 if at else 0.0)])
    return Trial(name, found, [0.1, 0.5, 0.9], algorithms)


def test_problems_are_ranked_at_their_hardest_target_by_the_algorithms_that_all_have_once():
    """In p, `twice` stands for two labels, and `only` is in no other problem: three algorithms are left."""
    first = {"a": "a", "b": "b", "c": "c", "t1": "twice", "t2": "twice", "only": "only"}
    trials = [
        trial("p", first, a=10, b=20, c=None, t1=1, t2=2, only=5),
        trial("q", {"a": "a", "b2": "b", "c": "c", "twice": "twice"}, a=10, b2=40, c=50, twice=1),
    ]
    costs, told = shared_costs(trials)
    assert costs == [{"a": 10.0, "b": 20.0, "c": float("inf")}, {"a": 10.0, "b": 40.0, "c": 50.0}]
    sheet = rank_sheet(ranks(costs), told)
    assert sheet.rows == [["a", "1.00"], ["b", "2.00"], ["c", "3.00"]]
    # of two problems in one order: chi2 = 4, p = exp(-2); of three algorithms on two problems CD = q = 2.343
    assert sheet.title == (
        "Average ranks by median rounds over 2 problems: Friedman test p = 0.135; "
        "Nemenyi critical difference at 0.05: 2.34"
    )
    assert sheet.note == (
        "until p: test accuracy ≥ 0.5; q: test accuracy ≥ 0.5; not once in every problem, so left out: only, twice"
    )
    assert shared_costs(trials[:1]) == ([], [])
