"""How well a score tells two kinds apart: measures that problems and the server's evaluation share."""

from __future__ import annotations

import math

from scipy.stats import rankdata
from torch import Tensor


def auroc(score: Tensor, positive: Tensor) -> float:
    """The chance that a positive has the higher score than a negative, ties counting half; [n] each; nan without both.

    From the rank sum (Mann & Whitney, 1947), whose halves are exact: scikit-learn's area under the curve is the same
    number but for rounding.
    """
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if positives == 0 or negatives == 0:
        return math.nan
    ranks = rankdata(score.numpy(force=True))[positive.numpy(force=True)]
    return float((ranks.sum() - positives * (positives + 1) / 2) / (positives * negatives))


def f1(found: Tensor, positive: Tensor) -> float:
    """The harmonic mean of precision and recall of what was found, [n] each, boolean; nan where nothing is positive.

    >>> from torch import tensor
    >>> f1(tensor([True, True, False, False]), tensor([True, False, True, False]))
    0.5
    """
    both = int((found & positive).sum())
    return 2 * both / int(found.sum() + positive.sum()) if bool(positive.any()) else math.nan
