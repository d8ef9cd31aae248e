# Which algorithm under which conditions a curve is.

from __future__ import annotations

from fedbilevel.config.cross import expanded
from fedbilevel.results.crossing import crossing, ended
from fedbilevel.results.ending import Ends
from tests.fedbilevel.results.rows import row, run

CROSS = {
    "systems": {"byzantine": [{"attack": "none"}, {"attack": "ipm", "strength": 10.0}]},
    "aggregation": [
        {"rule": "mean"},
        {"rule": "multi_krum", "byzantine": 4},
        {"rule": "trimmed_mean", "before": "nnm", "byzantine": 4},
    ],
}


def test_labels_are_taken_apart_into_the_algorithm_and_what_it_is_under():
    algorithms = expanded({"algorithms": {"a, b": {}, "c": {}}, "cross": CROSS})["algorithms"]
    found = crossing(algorithms)
    assert found.factors == ("systems", "aggregation")
    assert list(found.places) == list(algorithms)
    assert found.places["a, b, ipm strength 10, multi_krum byzantine 4"] == (
        *("a, b", "ipm strength 10", "multi_krum byzantine 4"),
    )
    assert found.levels(0) == ["a, b", "c"]
    assert found.levels(1) == ["none", "ipm strength 10"]
    # f = 4 wherever there is one; a strength and a `before` are of one level alone, and stay
    assert [found.named([level]) for level in found.levels(2)] == ["mean", "multi krum", "trimmed mean, nnm"]
    assert found.named(["ipm strength 10", "mean"]) == "ipm, strength 10; mean"


def test_what_all_share_stays_where_nothing_else_tells_levels_apart():
    cross = {"systems": [{"dropout": 0.3}, {"dropout": 0.3, "dropout_lasts": "iteration"}, {"deadline_seconds": 0.15}]}
    found = crossing(expanded({"algorithms": {"a": {}}, "cross": cross})["algorithms"])
    names = [found.named([level]) for level in found.levels(1)]
    assert names == ["dropout 0.3", "dropout 0.3, iteration", "deadline seconds 0.15"]


def test_one_condition_is_no_crossing():
    assert crossing({"a": {}, "b": {"upper_step": 1.0}}) is None
    assert crossing({"a": {"under": {"systems": {"dropout": 0.3}}}}) is None
    alone = crossing({"a": {}, "b": {"under": {"systems": {"dropout": 0.3}}}})
    assert [alone.named([level]) for level in alone.levels(1)] == ["as configured", "dropout 0.3"]


def test_an_end_is_the_median_over_seeds_and_none_where_one_of_them_has_no_number():
    rows = [
        *(each for seed, end in enumerate((0.1, 0.9, 0.5)) for each in run("whole", seed, [(0, 0.0), (9, end)])),
        *run("broken", 0, [(0, 0.1), (9, 0.4)]),
        *run("broken", 1, [(0, 0.1)]),
        row("blank", 0, 0, 0.7),
        row("blank", 0, 9, None),
    ]
    found = ended(rows, "test_accuracy", Ends(frozenset({("broken", 1)})))
    assert found == {"whole": 0.5, "broken": None, "blank": None}
