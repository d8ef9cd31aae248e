"""Q and N' of an iteration: drawn, or given, one for each."""

from __future__ import annotations

import numpy as np
import pytest

from fedbilevel.errors import BadInput
from fedbilevel.federation.rounds import Federation
from server.kit.algorithm import draw_index
from tests.federations import sampling


def at(iteration: int, seed: int = 0) -> Federation:
    fed = sampling(3, seed=seed)
    fed.begin(iteration)
    return fed


def test_none_is_drawn_for_the_sum() -> None:
    assert draw_index(at(0), "sum", 0, None) is None
    assert draw_index(at(0), "sum", 4, [1]) is None


def test_those_given_are_taken_one_an_iteration() -> None:
    assert [draw_index(at(k), "sample", 4, [3, 0, 2]) for k in range(3)] == [3, 0, 2]
    with pytest.raises(
        BadInput, match=r"^indices: got \[3, 0, 2\]; .*one index per outer iteration \(none for iteration 3"
    ):
        draw_index(at(3), "sample", 4, [3, 0, 2])
    with pytest.raises(BadInput, match=r"^indices\[0\]: got 3; allowed: an integer from 0 to 2"):
        draw_index(at(0), "sample", 3, [3, 0, 2])
    with pytest.raises(BadInput, match=r"^neumann_terms: got 0; allowed: an integer of at least 1"):
        draw_index(at(0), "sample", 0, [3, 0, 2])


def test_those_drawn_are_below_n_and_of_all_that_are() -> None:
    drawn = [draw_index(at(k), "sample", 4, None) for k in range(400)]
    counts = np.bincount(np.array(drawn, dtype=np.int64), minlength=4)
    assert len(counts) == 4
    assert float(np.sum((counts - 100) ** 2 / 100)) < 16.3  # chi-square, 3 degrees of freedom, 0.1 %
    assert drawn != [draw_index(at(k, seed=1), "sample", 4, None) for k in range(400)]
