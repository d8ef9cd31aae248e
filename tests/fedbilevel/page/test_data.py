# What the page's script is given: medians and limits by hand, thinning, and vectors kept once.

from __future__ import annotations

import base64
import json
import math
import struct

import pytest

from fedbilevel.page.data import MOST_MEDIANS, MOST_POINTS, Pool, payload
from fedbilevel.page.document import document
from fedbilevel.results.ending import Ends
from fedbilevel.results.targets import Target
from tests.fedbilevel.results.rows import row, run


def vector(data, place):
    content = base64.b64decode(data["arrays"][place])
    return list(struct.unpack(f"<{len(content) // 8}d", content))


def piece(data, x, y, method, number=0):
    found = data["views"][x][y]["curves"][method][number]
    return {
        key: vector(data, place) if key in ("x", "median", "low", "high") else place for key, place in found.items()
    }


def test_medians_are_taken_over_seeds_and_pieces_say_of_how_many():
    """Seeds at 0, 10, 20 with 1, 3, 5 and 2, 5; a third at 0 and 20 with 3, 9: 6 at 10, on its straight line."""
    rows = [
        *run("a", 0, [(0, 1.0), (10, 3.0), (20, 5.0)], "loss"),
        *run("a", 1, [(0, 2.0), (10, 5.0)], "loss"),
        *run("a", 2, [(0, 3.0), (20, 9.0)], "loss"),
    ]
    data = payload(rows, (), Ends(frozenset({("a", 1)})))
    assert piece(data, "rounds", "upper_loss", 0) == {
        "seeds": 3,
        "held": 0,
        "x": [0, 10],
        "median": [2.0, 5.0],
        "low": [1.0, 3.0],
        "high": [3.0, 6.0],
    }
    assert piece(data, "bytes", "upper_loss", 0, 1) == {
        "seeds": 2,
        "held": 0,
        "x": [300, 600],
        "median": [4.5, 7.0],
        "low": [3.0, 5.0],
        "high": [6.0, 9.0],
    }
    assert data["runs"][0]["lengths"] == [3, 2, 2]
    assert vector(data, data["runs"][0]["y"]["upper_loss"]) == [1.0, 3.0, 5.0, 2.0, 5.0, 3.0, 9.0]
    assert vector(data, data["runs"][0]["x"]["bytes"]) == [0, 300, 600, 0, 300, 0, 600]
    assert data["methods"][0]["broken"] == [1]
    assert [each["key"] for each in data["x"]] == ["rounds", "bytes", "seconds", "wall"]
    assert "test_accuracy" not in data["views"]["rounds"]


def test_only_axes_and_measures_with_data_are_offered_and_the_error_is_one_less_accuracy():
    rows = [row("a", 0, t, accuracy=0.25 * t, metric_gap=2.0) | {"simulated_seconds": None} for t in range(3)]
    data = payload(rows, [0.25, Target(column="metric_gap", at_most=1.0)])
    assert [each["key"] for each in data["x"]] == ["rounds", "bytes", "wall"]
    assert [each["key"] for each in data["y"]] == [
        *("upper_loss", "lower_loss", "test_loss", "test_accuracy", "hypergradient_norm", "metric_gap", "error"),
    ]
    assert piece(data, "rounds", "error", 0)["median"] == [1.0, 0.75, 0.5]
    assert data["targets"] == {"test_accuracy": [0.25], "metric_gap": [1.0]}


def test_a_logarithmic_axis_is_offered_where_something_is_positive():
    falling = [(t, 10.0**-t) for t in range(5)]
    views = payload([*run("a", 0, falling, "loss"), *run("b", 0, [(0, 0.0), (4, 1.0)], "loss")])["views"]["rounds"]
    assert views["upper_loss"]["suits"] == "log"
    low, high = views["upper_loss"]["log"]
    assert 0.0 < low <= 1e-4
    assert high >= 1.0
    negative = payload(run("a", 0, [(0, -1.0), (1, -2.0)], "loss"))["views"]["rounds"]["upper_loss"]
    assert (negative["log"], negative["suits"]) == (None, "linear")


def test_what_is_no_number_or_past_all_bounds_is_nan_and_the_rest_is_exact():
    values = [math.nan, math.inf, None, 1e300, 0.1 + 0.2, 5e-324]
    data = payload(run("a", 0, list(enumerate(values)), "loss"))
    found = vector(data, data["runs"][0]["y"]["upper_loss"])
    assert [math.isnan(value) for value in found] == [True] * 4 + [False] * 2
    assert found[4:] == [0.1 + 0.2, 5e-324]
    json.dumps(data, allow_nan=False)


@pytest.mark.parametrize("rows", [[], [row(loss=None, lower_loss=None, test_loss=None, hypergradient_norm=None)]])
def test_without_data_there_is_nothing_to_choose(rows):
    assert payload(rows)["y"] == []


def test_long_histories_are_thinned_and_keep_both_ends():
    """40,000 evaluations are on a page: of 100,001 every third is, and the last; of a median 240, each exact."""
    count = 100_001
    rows = [{"algorithm": "a", "seed": 0, "round": t, "upper_loss": float(t)} for t in range(count)]
    data = payload(rows)
    assert (MOST_POINTS, data["step"]) == (40_000, 3)
    assert vector(data, data["runs"][0]["round"]) == [*range(0, count, 3), count - 1]
    found = piece(data, "rounds", "upper_loss", 0)
    assert len(found["x"]) <= MOST_MEDIANS + 1
    assert found["x"] == found["median"]
    assert (found["x"][0], found["x"][-1]) == (0, count - 1)


def test_equal_vectors_are_kept_once():
    pool = Pool()
    assert [pool.put([1.0, math.nan]), pool.put([2.0]), pool.put([1.0, math.nan])] == [0, 1, 0]
    assert pool.texts == [base64.b64encode(struct.pack("<2d", 1.0, math.nan)).decode(), "AAAAAAAAAEA="]


def test_the_chart_is_the_same_whatever_was_made_before():
    from bokeh.plotting import figure

    first = document()
    figure().line([1], [2])
    document.cache_clear()
    assert document() == first
