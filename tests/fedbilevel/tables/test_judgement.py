# Reports that say how sure a comparison is.

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from experiments.cli import main
from fedbilevel.results import write_history
from fedbilevel.results.targets import accuracy
from fedbilevel.statistics.intervals import median_interval
from fedbilevel.statistics.pairs import win_table
from fedbilevel.statistics.profiles import ranks
from fedbilevel.statistics.table import Judged
from fedbilevel.tables.judgement import Trial, judged_sheets, rank_sheet, shared_costs, told_apart
from tests.fedbilevel.results.rows import run
from tests.processes.console import config, tree


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def drawn(stem, folder):
    return {f"{folder}/{stem}.{kind}" for kind in ("png", "svg", "pdf")}


def summary(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_report_of_several_seeds_says_how_sure_it_is(capsys):
    arrivals("a", [(10, 20), (10, 30), (20, 20), (None, None), (10, None), (10, 40)])
    capsys.readouterr()
    assert main(["report", "a"]) == 0
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    title = said.index("Median rounds until test accuracy ≥ 0.5: 95 % interval by the percentile")
    assert said[title + 1] == "bootstrap over seeds"
    assert "aggitd 5/6 10 10 never" in said
    assert "aggitd — 0.83" in said  # four won, two tied, of six
    assert "mine 0.17 —" in said
    assert f"aggitd : mine 4–2–0 0.83 {0.025**0.25:.2f}–1.00 0.125 0.125" in said
    lines = summary("a/statistics.csv")
    assert [(line["algorithm"], line["other"], line["value"]) for line in lines] == [
        ("aggitd", "", "10.0"),
        ("mine", "", "35.0"),
        ("aggitd", "mine", repr(5 / 6)),
        ("mine", "aggitd", repr(1 / 6)),
    ]
    assert [line["seeds_reached"] for line in lines[:2]] == ["5", "4"]
    assert lines[2]["p_value"] == lines[2]["p_corrected"] == "0.125"
    Path("a/config.toml").write_text(Path("a/config.toml").read_text().replace("[0.5]", "[0.9]"))
    assert main(["report", "a"]) == 0  # nobody arrives: there is nothing to be sure of, and no file that says otherwise
    assert not Path("a/statistics.csv").exists()


def arrivals(folder, seeds):
    """A run directory whose two algorithms meet an accuracy of 0.5 at these rounds (None: never), seed by seed."""
    assert main(["run", config(), "--out", folder, "--set", "run.targets=[]"]) == 0
    found = []
    for seed, both in enumerate(seeds):
        for label, at in zip(("aggitd", "mine"), both, strict=True):
            found += run(label, seed, [(0, 0.0), *([(at, 0.5)] if at else []), (90, 0.5 if at else 0.0)])
    write_history(f"{folder}/history.csv", found)
    text = Path(f"{folder}/config.toml").read_text()
    Path(f"{folder}/config.toml").write_text(text.replace("targets = []", "targets = [0.5]"))


def test_as_csv_a_report_is_one_table_whose_first_column_says_which(capsys):
    arrivals("a", [(10, 20), (10, None)])
    capsys.readouterr()
    assert main(["report", "a", "--format", "csv"]) == 0
    read = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert next(iter(read[0])) == "table"
    assert all(None not in line and None not in line.values() for line in read)  # every row is as wide as the head
    for name in ("summary", "statistics"):
        own = [line for line in read if line["table"] == name]
        kept = summary(f"a/{name}.csv")
        assert [{key: line[key] for key in kept[0]} for line in own] == kept
        assert all(not value for line in own for key, value in line.items() if key not in kept[0] and key != "table")


def test_a_run_of_several_seeds_ends_with_how_sure_it_is_and_a_resumed_one_too(capsys):
    """Every seed of both meets the first target at its start, and none the second: two ties."""
    met, missed = ("{column='upper_loss', at_most=" + bound + "}" for bound in ("1e9", "-1e9"))
    assert main(["run", config(), "--out", "a", "--set", f"run.targets=[{met}, {missed}]"]) == 0
    said = capsys.readouterr().out
    end = said[said.index("How sure until upper loss ≤ 1e+09: median rounds, 95 % intervals over seeds") :]
    assert all(len(line) <= 80 or line.startswith("a: ") for line in end.splitlines())
    told = [" ".join(line.split()) for line in end.splitlines()]
    assert "aggitd 2/2 0 0 0" in told
    assert "2 seeds are few: intervals are rough, and no sign test over them can give less" in told
    assert "Wins until upper loss ≤ 1e+09: share of seeds with fewer rounds than column" in told
    assert "aggitd — 0.50" in told
    assert "the pair is not told apart, and with 2 seeds none could be" in " ".join(told)
    assert "statistics.csv" in told[-1]
    kept = summary("a/statistics.csv")
    assert [(line["target_threshold"], line["algorithm"], line["ties"]) for line in kept] == [
        *((("1000000000.0"), name, "") for name in ("aggitd", "mine")),
        *((("1000000000.0"), name, "2") for name in ("aggitd", "mine")),
    ]
    history = Path("a/history.csv").read_text().splitlines()
    Path("a/history.csv").write_text("\n".join(line for line in history if not line.startswith("mine,1,")) + "\n")
    assert main(["resume", "a"]) == 0
    assert "aggitd — 0.50" in [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    Path("a/statistics.csv").unlink()
    assert main(["resume", "a"]) == 0  # a run that was killed at its last step
    assert summary("a/statistics.csv") == kept


def judged(**costs):
    """What is judged of these costs, one per seed."""
    by_seed = {name: dict(enumerate(each)) for name, each in costs.items()}
    medians = {name: median_interval(each) for name, each in costs.items()}
    return Judged(accuracy(0.5), medians, win_table(by_seed))


def test_pairs_that_cannot_be_told_apart_say_so():
    """All of n seeds won is p = 2^(1-n), times 3 for three pairs: 5 seeds tell one pair, 6 two of a table at most."""
    low, high, mixed = [1.0] * 8, [2.0] * 8, [1.5] * 4 + [0.5] * 4
    assert told_apart(judged(a=low, b=high)) == "every pair is told apart"  # 2^-7
    assert told_apart(judged(a=low[:5], b=high[:5])) == "the pair is not told apart, and with 5 seeds none could be"
    assert told_apart(judged(a=low, b=mixed)) == "the pair is not told apart"
    # a : c and c : m are won in all 8 seeds, 3 / 128 and 2 / 128; a : m is even
    assert told_apart(judged(a=low, c=high, m=mixed)) == "not told apart, 1 of 3 pairs: a : m"
    six = judged(a=low[:6], c=high[:6], m=[3.0] * 6)
    assert told_apart(six) == "no pair is told apart, and with 6 seeds none could be"  # 3 / 32
    assert "*" not in str(judged_sheets([six])[1].rows)
    assert "Holm's correction over all 3 pairs" in judged_sheets([six])[1].note
    # of six algorithms in one order, 15 pairs, ten seeds tell every pair: 15 / 512
    ten = judged(**{name: [float(place)] * 10 for place, name in enumerate("abcdef")})
    assert told_apart(ten) == "every pair is told apart"
    names = judged(**{name: [1.0] * 10 for name in "abcde"}, f=[2.0] * 10)
    assert told_apart(names) == "not told apart, 10 of 15 pairs"


def test_a_report_of_several_problems_ranks_and_profiles(capsys):
    for folder, clients in (("a", 4), ("b", 5)):
        target = 'run.targets=[{column="metric_distance", at_most=1e9}]'
        assert main(["run", config(), "--out", folder, "--set", f"problem.clients={clients}", "--set", target]) == 0
    capsys.readouterr()
    assert main(["report", "a", "b", "--anyway", "--out", "d"]) == 0
    said = " ".join(capsys.readouterr().out.split())
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
