"""What predictive distributions of many tasks are worth, as measures in which every task may count several times."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr

from server.kit.measures import BINS, bin_of, calibration_error
from server.kit.predictive import Classes, Predictive

Floats = NDArray[np.float64]
LEVELS = np.arange(1, 20) / 20
"""Levels of central intervals of which the coverage is held against the level itself."""
SHOWN = (0.5, 0.8, 0.95)


@dataclass(frozen=True)
class Scores:
    """Of N tasks with q queries each, [N, q] all.

    nll: negative log-likelihood of the label. loss: 0 or 1, or the squared error. doubt: what predictions are ranked
    by, the least doubtful first: 1 minus the confidence in the predicted class, or the variance. level: that
    confidence, or the level of the smallest central interval that holds the label. seed [N]: the run's.
    """

    kind: Literal["classification", "regression"]
    nll: Floats
    loss: Floats
    doubt: Floats
    level: Floats
    seed: NDArray[np.int64]

    @classmethod
    def of(cls, predictive: Predictive, seed: int) -> Scores:
        """Those of one seed's tasks."""
        nll, label = predictive.nll.double().numpy(force=True), predictive.label
        seeds = np.full(len(nll), seed, np.int64)
        if isinstance(predictive, Classes):
            confidence, predicted = (each.numpy(force=True) for each in predictive.log_p.double().exp().max(-1))
            wrong = (predicted != label.numpy(force=True)).astype(np.float64)
            return cls("classification", nll, wrong, 1 - confidence, confidence, seeds)
        error = (label - predictive.mean).double().numpy(force=True)
        variance = predictive.variance.double().numpy(force=True)
        level = 2 * ndtr(np.abs(error) / np.sqrt(variance)) - 1
        return cls("regression", nll, error**2, variance, level, seeds)

    @classmethod
    def joined(cls, parts: Sequence[Scores]) -> Scores:
        """Those of several seeds."""
        names = ("nll", "loss", "doubt", "level", "seed")
        return cls(parts[0].kind, *(np.concatenate([getattr(each, name) for each in parts]) for name in names))

    def measures(self, counts: NDArray[np.int64]) -> dict[str, float]:
        """`nll`, `calibration_error`, `accuracy` or `squared_error`, `risk_coverage_area`; of curves `coverage_50`, ...

        The calibration error is that of the confidences, or the mean over `LEVELS` of |coverage - level| (after
        Kuleshov, Fenner & Ermon, ICML 2018). counts [N]: how often each task counts.
        """
        weight = np.broadcast_to(counts[:, None].astype(np.float64), self.nll.shape)
        loss = float(np.average(self.loss, weights=weight))
        found = {"nll": float(np.average(self.nll, weights=weight)), "calibration_error": self._gap(weight)}
        found |= {"accuracy": 1 - loss} if self.kind == "classification" else {"squared_error": loss}
        found["risk_coverage_area"] = self._area(weight)
        if self.kind == "regression":
            found |= {f"coverage_{round(100 * a)}": float(self.coverage([a], weight)[0]) for a in SHOWN}
        return found

    def _gap(self, weight: Floats) -> float:
        if self.kind == "regression":
            return float(np.abs(self.coverage(LEVELS, weight) - LEVELS).mean())
        level, right, count = (torch.from_numpy(each.flatten()) for each in (self.level, 1 - self.loss, weight))
        return calibration_error(level, right, weight=count)

    def coverage(self, levels: Sequence[float] | Floats, weight: Floats) -> Floats:
        """The share of labels within the central intervals of these levels."""
        places = np.searchsorted(np.asarray(levels), self.level.ravel())
        inside = np.bincount(places, weight.ravel(), len(levels) + 1)[: len(levels)]
        return np.asarray(inside.cumsum() / weight.sum())

    def bins(self) -> tuple[Floats, Floats, Floats]:
        """Of classes: the mean confidence, the accuracy and the share of predictions in each bin that has any."""
        place = bin_of(torch.from_numpy(self.level.ravel())).numpy()
        number = np.bincount(place, minlength=BINS)
        sums = [np.bincount(place, of.ravel(), BINS) for of in (self.level, 1 - self.loss)]
        there = number > 0
        return sums[0][there] / number[there], sums[1][there] / number[there], number[there] / number.sum()

    @functools.cached_property
    def _ranked(self) -> list[tuple[NDArray[np.int64], NDArray[np.int64], int]]:
        """Of each seed: its tasks; each query's place among the seed's doubts, equal ones sharing one; how many."""
        found = []
        for seed in np.unique(self.seed):
            own = np.flatnonzero(self.seed == seed)
            doubts, place = np.unique(self.doubt[own].ravel(), return_inverse=True)
            found.append((own, place, len(doubts)))
        return found

    def _area(self, weight: Floats) -> float:
        """The area under the risk-coverage curve of a seed, as a mean over seeds."""
        found = []
        for own, place, many in self._ranked:
            count = weight[own].ravel()
            if count.any():
                lost = count * self.loss[own].ravel()
                queries, losses = (np.bincount(place, each, many).astype(np.float64) for each in (count, lost))
                found.append((area(queries, losses), count.sum()))
        areas, weights = zip(*found, strict=True)
        return float(np.average(areas, weights=weights))

    def risk_coverage(self, coverages: Floats) -> Floats:
        """The mean loss of the share of a seed's queries that is least doubtful, as a mean over seeds."""
        curves = []
        for own, place, many in self._ranked:
            loss = self.loss[own].ravel()
            queries = np.bincount(place, minlength=many).cumsum()
            lost = np.bincount(place, loss, many).cumsum()
            answered = np.concatenate([[0], queries])
            risk = np.interp(coverages * len(loss), answered, np.concatenate([[0.0], lost])) / (coverages * len(loss))
            curves.append(risk)
        return np.asarray(np.mean(curves, 0))


def area(queries: Floats, losses: Floats) -> float:
    """The mean over n = 1, 2, ... of the mean loss of the n least doubtful (Geifman & El-Yaniv, NeurIPS 2017).

    queries, losses: how many queries share each doubt, ascending, and the sum of their losses. Their order is random,
    and this is the mean over it: with losses L0 of n0 queries before a group, after j of its own there are L0 + j m,
    and the sum of (L0 + j m) / (n0 + j) is n m + (L0 - n0 m) (H(n0 + n) - H(n0)), H the harmonic numbers.

    >>> area(np.array([1.0, 1.0]), np.array([0.0, 1.0])), area(np.array([2.0]), np.array([1.0]))
    (0.25, 0.5)
    """
    end, lost = queries.cumsum(), losses.cumsum()
    before, lost_before = end - queries, lost - losses
    mean = np.divide(losses, queries, out=np.zeros_like(losses), where=queries > 0)
    harmonic = np.concatenate([[0.0], (1.0 / np.arange(1, int(end[-1]) + 1)).cumsum()])
    between = harmonic[end.astype(np.int64)] - harmonic[before.astype(np.int64)]
    return float((losses + (lost_before - before * mean) * between).sum() / end[-1])
