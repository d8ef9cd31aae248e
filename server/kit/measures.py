"""Measures of adapted parameters on the query sets of unseen tasks: losses, calibration, and uncertainty against error.

A method with a posterior is judged by its predictive distribution, any other by the point that it adapted to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from clients.methods.method import Adapted
from clients.tasks import TaskBatch
from fedbilevel.measures import auroc
from fedbilevel.tasks import OwnTests, is_local, is_personal
from server.kit.predictive import Curves, predict

BINS = 15

Judged = dict[str, Tensor]


def judge(batch: TaskBatch, adapted: Adapted) -> Judged:
    """What `summary` needs of some tasks: numbers per task [B], and per query [B, q].

    Per task `test_loss` at the adapted parameters y, and `unadapted_loss` at the initialisation. Per query `nll`, the
    negative log-likelihood of the label; for classification also `correct` (0 or 1), the `confidence` in the predicted
    class and the `entropy` of the prediction; for regression with a posterior the `deviation` of the prediction and its
    absolute `error`. Where tasks are clients' own, `unadapted_correct` is that of the initialisation.
    """
    problem = batch.problem
    assert is_local(problem)
    judged = {"test_loss": adapted.losses(batch, "upper"), "unadapted_loss": batch.losses("upper", batch.x)}
    if problem.kind is None:
        return judged
    predictive = predict(batch, adapted)
    judged["nll"] = predictive.nll
    if isinstance(predictive, Curves):
        if adapted.variance is not None:
            error = (predictive.mean - predictive.label).abs()
            judged |= {"deviation": predictive.variance.sqrt(), "error": error}
        return judged
    log_p, label = predictive.log_p, predictive.label
    confidence, predicted = log_p.exp().max(-1)
    judged["correct"] = (predicted == label).to(log_p.dtype)
    if is_personal(problem):
        start = Adapted(batch.spread(batch.x)).outputs(batch, "upper")
        judged["unadapted_correct"] = (start.argmax(-1) == label).to(log_p.dtype)
    judged["confidence"] = confidence
    judged["entropy"] = -(log_p.exp() * log_p).nan_to_num().sum(-1)
    return judged


def summary(judged: Sequence[Judged]) -> dict[str, float]:
    """Measures over all tasks judged, in one go or in parts.

    `test_loss`, `test_accuracy` and `unadapted_loss` are means over tasks, `test_interval` is half the 95 % interval of
    the accuracy's (else the loss's) mean, `nll` the mean over queries, `ece` the expected calibration error (Guo et
    al., ICML 2017). `uncertainty_auroc` is how well the predictive entropy tells wrong predictions from right ones
    (0.5: not at all); for regression `uncertainty_spearman` is the rank correlation of the predictive deviation with
    the error. Both are nan where there is nothing to tell apart.
    """
    values = _together(judged)
    main = values["test_loss"]
    measures: dict[str, float] = {
        key: float(values[key].mean()) for key in ("test_loss", "unadapted_loss", "nll") if key in values
    }
    if "correct" in values:
        main = values["correct"].mean(-1)
        measures["test_accuracy"] = float(main.mean())
        measures["ece"] = calibration_error(values["confidence"].flatten(), values["correct"].flatten())
        measures["uncertainty_auroc"] = auroc(values["entropy"].flatten(), values["correct"].flatten() == 0)
    if "deviation" in values:
        measures["uncertainty_spearman"] = spearman(values["deviation"].flatten(), values["error"].flatten())
    measures["test_interval"] = float(1.96 * main.std() / len(main) ** 0.5) if len(main) > 1 else math.nan
    return measures


def by_client(judged: Sequence[Judged], of: OwnTests) -> dict[str, float]:
    """Measures of clients' own adapted models, each on its own tests: what is a mean is one over clients.

    Of those in training: `test_accuracy`, `test_loss` (the negative log-likelihood), `test_interval` (half the 95 %
    interval of the mean accuracy, over clients), `worst_tenth`, the mean accuracy of the tenth of them (rounded up)
    that fares worst, and `global_accuracy`, that of the one model x before it is adapted. `new_accuracy` and
    `new_global_accuracy` are of the clients that were not in training. Those over queries (`nll`, `ece`,
    `uncertainty_auroc`) and `unadapted_loss` are of all clients' tasks.
    """
    values = _together(judged)
    owner, counted, trained = (each.to(values["correct"].device) for each in (of.owner, of.counted, of.trained))
    queries = {key: values[key][counted].unsqueeze(-1) for key in ("correct", "confidence", "entropy", "nll")}
    over = {"test_loss": queries["nll"].squeeze(-1), "unadapted_loss": values["unadapted_loss"]}
    measures = summary([queries | over])

    def own(key: str) -> Tensor:
        """The mean over every client's tests, and over its tasks."""
        of_task = (values[key] * counted).sum(-1) / counted.sum(-1)
        total = of_task.new_zeros(len(trained)).index_add_(0, owner, of_task)
        return total / torch.bincount(owner, minlength=len(trained))

    accuracy, start, loss = own("correct"), own("unadapted_correct"), own("nll")
    seen = accuracy[trained]
    measures["test_accuracy"], measures["test_loss"] = float(seen.mean()), float(loss[trained].mean())
    measures["test_interval"] = float(1.96 * seen.std() / len(seen) ** 0.5) if len(seen) > 1 else math.nan
    measures["worst_tenth"] = float(seen.sort().values[: math.ceil(len(seen) / 10)].mean())
    measures["global_accuracy"] = float(start[trained].mean())
    if not bool(trained.all()):
        measures["new_accuracy"] = float(accuracy[~trained].mean())
        measures["new_global_accuracy"] = float(start[~trained].mean())
    return measures


def _together(judged: Sequence[Judged]) -> Judged:
    return {key: torch.cat([each[key] for each in judged]).double() for key in judged[0]}


def calibration_error(confidence: Tensor, correct: Tensor, bins: int = BINS, weight: Tensor | None = None) -> float:
    """The mean over predictions [n] of |accuracy - mean confidence| in the prediction's bin (see `bin_of`).

    weight: how often a prediction counts, [n]. Ours: scikit-learn's `calibration_curve` gives the bins without their
    counts, by which they have to be weighed.
    """
    each = correct - confidence if weight is None else (correct - confidence) * weight
    gap = torch.zeros(bins, dtype=each.dtype, device=each.device).index_add_(0, bin_of(confidence, bins), each)
    return float(gap.abs().sum() / (len(confidence) if weight is None else weight.sum()))


def bin_of(confidence: Tensor, bins: int = BINS) -> Tensor:
    """The bin of each confidence [n], from 0: `bins` equal ones of (0, 1]."""
    return (confidence * bins).ceil().long().clamp(1, bins) - 1


def spearman(a: Tensor, b: Tensor) -> float:
    """The rank correlation of two samples [n]; nan where one of them is constant."""
    from scipy.stats import spearmanr

    first, second = a.numpy(force=True), b.numpy(force=True)
    if any((each == each[0]).all() for each in (first, second)):
        return math.nan
    return float(spearmanr(first, second).statistic)
