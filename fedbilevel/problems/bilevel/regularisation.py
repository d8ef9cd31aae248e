"""Regularisation: x holds the logarithms of l2 penalties, one per feature or one in all; y is a linear model.

The lower loss is the penalised training loss, the upper loss that on the validation part (after Bengio, 2000;
Pedregosa, ICML 2016). With squares, "ridge", y*(x), F(x) and its gradient are known in closed form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fedbilevel.data import split_levels
from fedbilevel.errors import BadInput, unknown
from fedbilevel.problem import ClientData
from fedbilevel.problems.bilevel.linear_models import Logistic, Ridge

TABLES = {"ridge": ("diabetes",), "logistic": ("breast_cancer", "wine")}
"""scikit-learn's own tables for each model; the first is the default."""
TEST = 0.2
"""The share of a table that is held out for testing."""


def regularisation(
    model: Literal["ridge", "logistic"] = "ridge",
    table: str | None = None,
    penalties: Literal["feature", "one"] = "feature",
    clients: int = 5,
    spread: Literal["iid", "sorted"] = "sorted",
    validation: float = 0.5,
    rho: float = 1e-3,
    weights: Literal["size", "uniform"] | Sequence[float] = "size",
    seed: int = 0,
) -> Ridge | Logistic:
    """g_i = mean loss(y; a, b) + 1/2 sum_j exp(x_j) |y_j|^2, f_i = mean loss(y; a, b) + rho/2 |x|^2 on other examples.

    Parameters
    ----------
    model
        "ridge": squares/2 of a number; "logistic": cross-entropy of a softmax over classes.
    table
        A table of scikit-learn: "diabetes" (ridge), "breast_cancer" or "wine" (logistic). Features, and the number that
        ridge predicts, are standardised by the training part of all clients; logistic has a constant feature too.
    penalties
        "feature": x_j for each feature; "one": one x for all.
    clients
        How many share the table; a fifth of it is the server's test set.
    spread
        "iid"; or "sorted" by what is predicted, so that clients differ as much as they can.
    validation
        The share of a client's examples that goes to the upper level.
    rho
        Keeps x finite: without it a useless feature's best penalty is infinite, and that of a good one often 0.
    weights
        "size", "uniform" or numbers: p_i.
    seed
        Draws the test set, the clients' examples and their levels.

    Raises BadInput for a parameter out of range.
    """
    if model not in TABLES:
        raise BadInput("problem.model", model, '"ridge" or "logistic"')
    name = TABLES[model][0] if table is None else table
    if name not in TABLES[model]:
        raise unknown("problem.table", name, TABLES[model])
    if penalties not in ("feature", "one"):
        raise BadInput("problem.penalties", penalties, '"feature" or "one"')
    if spread not in ("iid", "sorted"):
        raise BadInput("problem.spread", spread, '"iid" or "sorted"')
    if not 0 <= rho < float("inf"):
        raise BadInput("problem.rho", rho, "a finite number of at least 0")
    if seed < 0:
        raise BadInput("problem.seed", seed, "an integer of at least 0")
    inputs, target = _table(name)
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(target))
    held_out = round(TEST * len(target))
    test, mine = order[:held_out], order[held_out:]
    if not 1 <= clients <= len(mine) // 2:
        raise BadInput("problem.clients", clients, f"an integer from 1 to {len(mine) // 2}: each has two examples")
    if spread == "sorted":
        mine = mine[np.argsort(target[mine], kind="stable")]
    try:
        levels = split_levels(np.array_split(mine, clients), validation=validation, seed=seed)
    except BadInput as error:
        raise BadInput(error.key.replace("data.", "problem."), error.value, error.allowed) from None
    training = np.concatenate(levels[0])
    inputs = _standardised(inputs, training)
    if model == "ridge":
        target = _standardised(target, training)
    else:
        inputs = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
    a, b = torch.from_numpy(inputs), torch.from_numpy(target)
    lower, upper = ([{"a": a[rows], "b": b[rows]} for rows in level] for level in levels)
    kind = Ridge if model == "ridge" else Logistic
    return kind(ClientData(lower, upper, weights), {"a": a[test], "b": b[test]}, penalties, rho)


def _table(name: str) -> tuple[NDArray[np.float64], NDArray[Any]]:
    from sklearn import datasets

    inputs, target = getattr(datasets, f"load_{name}")(return_X_y=True)
    return np.asarray(inputs, np.float64), np.asarray(target)


def _standardised(values: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean 0 and deviation 1 over these rows; what is constant there is only centred."""
    deviation = values[rows].std(0)
    return np.asarray((values - values[rows].mean(0)) / np.where(deviation > 0, deviation, 1.0), np.float64)
