# Medians and spreads over seeds of which some never arrived, by hand.

from __future__ import annotations

import math

import pytest

from fedbilevel.results.spread import Amount, Spread, spread


def reached(value):
    return Amount(value, False)


def beyond(value):
    return Amount(value, True)


@pytest.mark.parametrize(
    ("values", "ends", "low", "median", "high"),
    [
        ([692.0], [], reached(692.0), reached(692.0), reached(692.0)),
        ([600.0, 500.0], [], reached(500.0), reached(550.0), reached(600.0)),
        ([600.0, 500.0, 900.0], [], reached(500.0), reached(600.0), reached(900.0)),
        # two of three arrived: the median is one of them, the highest is not
        ([846.0, 500.0], [900.0], reached(500.0), reached(846.0), beyond(900.0)),
        # one of three: the median seed never arrived
        ([846.0], [900.0, 900.0], reached(846.0), beyond(900.0), beyond(900.0)),
        ([], [900.0, 906.0, 912.0], beyond(900.0), beyond(906.0), beyond(912.0)),
        # one of two: half way between 500 and more than 900 is more than 700
        ([500.0], [900.0], reached(500.0), beyond(700.0), beyond(900.0)),
        # a seed that broke off at 300 never arrived either, and ranks behind the one that did at 500
        ([500.0], [300.0, 900.0], reached(500.0), beyond(500.0), beyond(900.0)),
        ([500.0, 700.0], [300.0], reached(500.0), reached(700.0), beyond(700.0)),
    ],
)
def test_fewer_than_four_seeds_span_from_the_lowest_to_the_highest(values, ends, low, median, high):
    assert spread(values, ends) == Spread(median, low, high, "range")


@pytest.mark.parametrize(
    ("values", "ends", "low", "median", "high"),
    [
        # of 4 the quartiles lie at places 0.75 and 2.25: 10 + 0.75 * 10, 30 + 0.25 * 30
        ([60.0, 10.0, 20.0, 30.0], [], reached(17.5), reached(25.0), reached(37.5)),
        # of 5 at places 1 and 3
        ([1.0, 2.0, 4.0, 8.0, 16.0], [], reached(2.0), reached(4.0), reached(8.0)),
        # the upper quartile lies between 30 and a seed that never arrived: 30 + 0.25 * (90 - 30)
        ([10.0, 20.0, 30.0], [90.0], reached(17.5), reached(25.0), beyond(45.0)),
        # exactly on the fourth of five, and beside a fifth that never arrived
        ([1.0, 2.0, 4.0, 8.0], [9.0], reached(2.0), reached(4.0), reached(8.0)),
        ([10.0], [90.0, 90.0, 90.0], beyond(70.0), beyond(90.0), beyond(90.0)),
    ],
)
def test_four_seeds_and_more_span_from_quartile_to_quartile(values, ends, low, median, high):
    assert spread(values, ends) == Spread(median, low, high, "quartiles")


def test_nothing_has_no_spread():
    assert spread([]) is None


def test_nan_shows_and_infinity_stays():
    found = spread([1.0, math.nan, 2.0])
    assert math.isnan(found.median.value)
    assert math.isnan(found.high.value)
    assert spread([1.0, math.inf]).median == reached(math.inf)
    assert spread([math.inf, math.inf, 1.0, math.inf]).low == reached(math.inf)
    assert spread([-1.7e308, 1.7e308]).median == reached(0.0)  # their difference has no place in a double
