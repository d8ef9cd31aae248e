"""Measures that problems and the server's evaluation share.

scipy.stats takes about a second to import: it is imported where it is used, and not by every process of a run.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import cross_entropy


def classification(logits: Tensor, label: Tensor) -> dict[str, float]:
    """`test_loss`, the mean cross-entropy of logits [n, classes] for labels [n], and `test_accuracy`.

    >>> from torch import tensor
    >>> classification(tensor([[0.0, 0.0], [0.0, 0.0]]), tensor([0, 1]))["test_accuracy"]
    0.5
    """
    return {
        "test_loss": float(cross_entropy(logits, label)),
        "test_accuracy": float((logits.argmax(-1) == label).double().mean()),
    }


def auroc(score: Tensor, positive: Tensor) -> float:
    """The chance that a positive has the higher score than a negative, ties counting half; [n] each; nan without both.

    From the rank sum (Mann & Whitney, 1947), whose halves are exact: scikit-learn's area under the curve is the same
    number but for rounding.
    """
    from scipy.stats import rankdata

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
