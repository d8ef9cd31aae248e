# What is judged, and the table that keeps it.

from __future__ import annotations

import csv

from fedbilevel.statistics.profiles import Ranks
from fedbilevel.statistics.table import STATISTICS_COLUMNS, judge, judge_hardest, lines, write_statistics
from tests.fedbilevel.results.rows import run


def both(*seeds):
    found = []
    for seed, (a, b) in enumerate(seeds):
        for label, at in (("a", a), ("b", b)):
            found += run(label, seed, [(0, 0.0), *([(at, 0.5)] if at else []), (90, 0.5 if at else 0.0)])
    return found


def test_only_what_several_seeds_and_algorithms_reached_is_judged():
    rows = both((10, 20), (30, None))
    [judged] = judge(rows, [0.5, 0.9])
    assert judged.target.threshold == 0.5
    assert {name: (each.reached, each.seeds) for name, each in judged.medians.items()} == {"a": (2, 2), "b": (1, 2)}
    assert judge(both((10, 20)), [0.5]) == []
    assert judge([row for row in rows if row["algorithm"] == "a"], [0.5]) == []
    assert judge(rows, []) == []


def test_the_hardest_target_is_the_last_that_some_algorithm_meets_in_the_median():
    """0.5 is met by a in two of three seeds, 0.45 too; 0.9 by no seed."""
    rows = both((10, None), (30, None), (None, 5))
    assert judge_hardest(rows, [0.45, 0.5, 0.9]).target.threshold == 0.5
    assert judge_hardest(both((10, None), (None, None), (None, 5)), [0.4, 0.5]).target.threshold == 0.5
    mixed = rows + run("a", 3, [(0, 0.0), (9, 0.6)])
    assert judge_hardest(mixed, [0.5, 0.6]).target.threshold == 0.5  # a meets 0.6 in one seed of four
    assert judge_hardest(rows, [0.9]) is None


def test_a_seed_that_only_one_side_has_counts_in_its_median_and_in_no_pair():
    rows = [row for row in both((10, 20), (30, 20), (50, 60)) if (row["algorithm"], row["seed"]) != ("b", 2)]
    [judged] = judge(rows, [0.5])
    assert (judged.medians["a"].median, judged.medians["b"].median, judged.seeds) == (30.0, 20.0, 2)
    pair = judged.pairs["a", "b"]
    assert (pair.wins, pair.ties, pair.losses) == (1, 0, 1)


def test_the_table_keeps_infinity_and_leaves_nothing_known_empty(tmp_path):
    made = lines(judge(both((10, None), (30, None)), [0.5]), Ranks(2, {"a": 1.0, "b": 2.0}, None, None, None))
    write_statistics(tmp_path / "statistics.csv", made)
    with open(tmp_path / "statistics.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == list(STATISTICS_COLUMNS)
    assert [(line["algorithm"], line["other"], line["value"], line["p_value"]) for line in read] == [
        ("a", "", "20.0", ""),
        ("b", "", "inf", ""),
        ("a", "b", "1.0", "0.5"),
        ("b", "a", "0.0", "0.5"),
        ("a", "", "1.0", ""),
        ("b", "", "2.0", ""),
    ]
