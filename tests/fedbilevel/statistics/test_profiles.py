# Several problems: profiles counted by hand, ranks and tests as published.

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest

from fedbilevel.figures.profile import draw_profiles
from fedbilevel.statistics.profiles import critical_difference, profiles, ranks

INF = math.inf
COSTS = [
    {"a": 10.0, "b": 20.0, "c": INF},
    {"a": 30.0, "b": 10.0, "c": 10.0},
    {"a": INF, "b": INF, "c": INF},
    {"a": 0.0, "b": 5.0, "c": 0.0},
]


def test_profiles_by_hand():
    found = {profile.algorithm: profile for profile in profiles(COSTS)}
    assert {name: profile.ratios for name, profile in found.items()} == {
        "a": (1.0, 1.0, 3.0, INF),
        "b": (1.0, 2.0, INF, INF),
        "c": (1.0, 1.0, INF, INF),
    }
    assert [found["a"].share(factor) for factor in (1.0, 2.9, 3.0, 1e9)] == [0.5, 0.5, 0.75, 0.75]
    assert [found["b"].share(factor) for factor in (1.0, 1.9, 2.0)] == [0.25, 0.25, 0.5]


def test_ranks_by_hand():
    """Ranks 1 2 3; 3 1.5 1.5; 2 2 2; 1.5 3 1.5."""
    found = ranks(COSTS)
    assert found.average == {"a": 7.5 / 4, "b": 8.5 / 4, "c": 8.0 / 4}
    assert found.problems == 4


def test_the_friedman_test_in_closed_form():
    """Always the same order: chi2 = 12 N / (k (k + 1)) sum (R - (k + 1) / 2)^2 = 2 N of three, p = exp(-chi2 / 2)."""
    found = ranks([{"a": 1.0, "b": 2.0, "c": INF}] * 5)
    assert found.statistic == pytest.approx(10.0)
    assert found.p_value == pytest.approx(math.exp(-5.0))


def test_all_tied_differs_by_nothing():
    found = ranks([{"a": INF, "b": INF, "c": INF}] * 3)
    assert (found.average, found.statistic, found.p_value) == ({"a": 2.0, "b": 2.0, "c": 2.0}, 0.0, 1.0)


def test_two_algorithms_or_one_problem_are_ranked_without_a_test():
    for costs in ([{"a": 1.0, "b": 2.0}] * 4, COSTS[:1]):
        found = ranks(costs)
        assert found.average["a"] == 1.0
        assert (found.statistic, found.p_value, found.difference) == (None, None, None)


def test_the_critical_difference_is_that_of_demsars_example():
    """Demsar 2006, section 3.2: four classifiers on 14 data sets, q = 2.569, CD = 1.25."""
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    assert critical_difference(4, 14) / math.sqrt(4 * 5 / (6 * 14)) == pytest.approx(2.569, abs=5e-4)


@pytest.mark.parametrize(("algorithms", "q"), [(2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)])
def test_critical_values_are_those_of_demsars_table(algorithms, q):
    factor = math.sqrt(algorithms * (algorithms + 1) / 6)
    assert critical_difference(algorithms, 1) / factor == pytest.approx(q, abs=1e-3)


def test_problems_without_the_same_algorithms_are_refused():
    for costs in ([], [{"a": 1.0}, {"b": 1.0}]):
        with pytest.raises(ValueError, match="all with the same algorithms"):
            profiles(costs)


def test_the_figure_names_its_lines_and_repeats_to_the_byte(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    first = draw_profiles(profiles(COSTS), tmp_path / "1", title="Four")
    second = draw_profiles(profiles(COSTS), tmp_path / "2", title="Four")
    assert [path.name for path in first] == [f"performance_profile.{kind}" for kind in ("png", "svg", "pdf")]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    said = ["".join(node.itertext()) for node in ET.parse(first[1]).iter("{http://www.w3.org/2000/svg}text")]
    assert {"a", "b", "c", "Four", "share of problems solved within the factor"} <= set(said)


def test_the_figure_of_no_solved_problem_is_drawn(tmp_path):
    assert len(draw_profiles(profiles(COSTS[2:3]), tmp_path, title="None")) == 3
