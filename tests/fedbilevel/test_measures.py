"""Telling two kinds apart, against scikit-learn and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score

from fedbilevel.measures import auroc, f1


@pytest.mark.parametrize("levels", [5, 10**9])
def test_the_measures_are_those_of_the_reference(levels: int) -> None:
    rng = np.random.default_rng(levels)
    score = rng.integers(0, levels, 200).astype(float)
    wrong = rng.random(200) < 0.3 + 0.4 * score / levels
    assert auroc(torch.tensor(score), torch.tensor(wrong)) == pytest.approx(roc_auc_score(wrong, score))
    found = score > levels / 3
    assert f1(torch.tensor(found), torch.tensor(wrong)) == pytest.approx(f1_score(wrong, found))


def test_ties_and_what_there_is_nothing_to_tell_apart_in() -> None:
    # of the two pairs, 3 against 1 is right and 3 against 3 counts half
    assert auroc(torch.tensor([3.0, 1.0, 3.0]), torch.tensor([True, False, False])) == 0.75
    every, none = torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)
    assert math.isnan(auroc(torch.rand(4), every))
    assert math.isnan(auroc(torch.rand(4), none))
    assert math.isnan(f1(every, none))
    assert f1(none, every) == 0.0
