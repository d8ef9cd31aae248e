"""Robust linear regression: x is a linear model, y perturbs its inputs, at a quadratic penalty."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbilevel.data.datasets import random_untouched
from fedbilevel.errors import BadInput
from fedbilevel.machine.memory import require
from fedbilevel.problem import ClientData, Ragged

Examples = dict[str, Tensor]
Arrays = tuple[NDArray[np.float64], NDArray[np.float64]]
HELD_OUT = 0.2
"""The share of every client's examples that is the server's test set (rounded down, at least one)."""


class RobustRegression:
    r"""Per example (a, b) of client i: f = 1/2 (x'(a + y_i) - b)^2 - penalty/2 |y_i|^2.

    Each client's inputs are perturbed by one vector: a shift of the distribution, as of its instruments (Reisizadeh et
    al., NeurIPS 2020), so that y holds a perturbation per client and feature; or one vector is common to all (robust
    regression of Sun & Wei 2022, with a penalty in place of their ball). The common one is harmless where the residuals
    of all clients together have mean zero, as on centred data: y*(x) = 0.

    f is concave in y where penalty > |x|^2, and unbounded in y elsewhere. With r_i the mean residual x'a - b of client
    i and q = |x|^2,

        y_i*(x) = r_i x / (penalty - q),  F(x) = sum_i p_i (mean (x'a - b)^2 + q r_i^2 / (penalty - q)) / 2,

    and with the mean over all clients in place of r_i where y is common. F is convex. Gradient and curvature in y_i go
    with p_i: a step in y is to be of the size of the number of clients.

    Parameters
    ----------
    table
        "synthetic": clients with linear models and mean inputs of their own; "diabetes": scikit-learn's 442 patients,
        10 features, all standardised, cut into clients of equal size.
    perturbation
        "client": one vector y_i for each client; "common": one for all.
    penalty
        On |y|^2 / 2. The least-squares solutions of the seeds 0 to 9 have |x|^2 of 0.5 to 1.2 ("diabetes") and of 0.4
        to 1.9 ("synthetic").
    clients
        How many.
    heterogeneity
        0: identical clients. Of "synthetic": what multiplies a client's own part of its model and of its mean input; of
        "diabetes": patients are cut into clients in the order of heterogeneity times target plus standard normal noise.
    examples, features, noise
        Of "synthetic": examples of each client, dimension of its inputs, standard deviation of the targets' noise.
    weights
        p_i: "size" or "uniform".
    seed
        Which instance.
    """

    def __init__(
        self,
        table: Literal["synthetic", "diabetes"] = "synthetic",
        perturbation: Literal["client", "common"] = "client",
        penalty: float = 3.0,
        clients: int = 10,
        heterogeneity: float = 1.0,
        examples: int = 40,
        features: int = 8,
        noise: float = 0.1,
        weights: Literal["size", "uniform"] = "size",
        seed: int = 0,
    ) -> None:
        if table not in ("synthetic", "diabetes"):
            raise BadInput("problem.table", table, '"synthetic" or "diabetes"')
        if perturbation not in ("client", "common"):
            raise BadInput("problem.perturbation", perturbation, '"client" or "common"')
        if not 0 < penalty < math.inf:
            raise BadInput("problem.penalty", penalty, "a finite number above 0")
        for key, value, least in (("clients", clients, 1), ("examples", examples, 2), ("features", features, 1)):
            if value < least:
                raise BadInput(f"problem.{key}", value, f"an integer of at least {least}")
        for key, number in (("heterogeneity", heterogeneity), ("noise", noise)):
            if not 0 <= number < math.inf:
                raise BadInput(f"problem.{key}", number, "a finite number of at least 0")
        if seed < 0:
            raise BadInput("problem.seed", seed, "an integer of at least 0")
        self.penalty = penalty
        draw = np.random.Generator(np.random.Philox(seed))
        if table == "synthetic":
            require(3.0 * 8 * clients * examples * (features + 1), "problem", "fewer clients, examples or features")
            parts = _synthetic(draw, clients, examples, features, heterogeneity, noise)
        else:
            parts = _diabetes(draw, clients, heterogeneity)
        training, test = [], []
        for i, (a, b) in enumerate(parts):
            held = max(int(HELD_OUT * len(b)), 1)
            own = {"input": torch.from_numpy(a), "target": torch.from_numpy(b)}
            own["group"] = torch.full((len(b),), i if perturbation == "client" else 0)
            training.append({key: values[held:] for key, values in own.items()})
            test.append({key: values[:held] for key, values in own.items()})
        self.groups = clients if perturbation == "client" else 1
        self.clients = ClientData.single(training, weights)
        self.test = dict(Ragged.join(test, "test").values)

    @property
    def dim_x(self) -> int:
        """Features."""
        return int(self.clients.upper.values["input"].shape[1])

    def initial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """x0 normal with a standard deviation of a tenth over all entries; y0 = 0, no perturbation."""
        x0 = torch.randn(self.dim_x, generator=generator, dtype=torch.float64)
        x0 *= 0.1 * math.sqrt(min(self.penalty, 1.0) / self.dim_x)
        return x0, torch.zeros(self.groups * self.dim_x, dtype=torch.float64)

    def upper(self, x: Tensor, y: Tensor, examples: Examples) -> Tensor:
        """Half the squared residual at the perturbed input, less the penalty."""
        rows = y.view(self.groups, self.dim_x)
        residual = examples["input"] @ x - examples["target"] + (rows @ x)[examples["group"]]
        return 0.5 * (residual.square() - self.penalty * rows.square().sum(-1)[examples["group"]])

    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Half the mean squared residual on the server's test set: `test_loss`, and `robust_loss` with inputs + y*(x).

        `robust_loss` is infinite where penalty <= |x|^2. `margin`: penalty - |x|^2; `perturbation`: the length of the
        longest y_i.
        """
        residual = self.test["input"] @ x - self.test["target"]
        moved = (self.lower_solution(x).to(residual).view(self.groups, self.dim_x) @ x)[self.test["group"]]
        margin = self.penalty - float(x @ x)
        return {
            "test_loss": 0.5 * float(residual.square().mean()),
            "robust_loss": 0.5 * float((residual + moved).square().mean()) if margin > 0 else math.inf,
            "margin": margin,
            "perturbation": float(y.view(self.groups, self.dim_x).norm(dim=-1).max()),
        }

    # ---- closed forms ----

    def _pooled(self) -> tuple[Examples, Tensor]:
        """The clients' examples and the weight p_i / n_i of each, float64."""
        level = self.clients.upper
        examples = {k: v.cpu().double() if v.is_floating_point() else v.cpu() for k, v in level.values.items()}
        return examples, level.shares(self.clients.weights)

    def lower_solution(self, x: Tensor) -> Tensor:
        """`y*(x)`, float64, shape [dy]; NaN where penalty <= |x|^2, for there is none."""
        (examples, share), x = self._pooled(), x.double().cpu()
        residual = share * (examples["input"] @ x - examples["target"])
        total = torch.zeros(2, self.groups, dtype=torch.float64)
        total = total.index_add(1, examples["group"], torch.stack([residual, share]))
        margin = self.penalty - float(x @ x)
        return torch.outer(total[0] / total[1], x).flatten() / (margin if margin > 0 else math.nan)

    def value(self, x: Tensor) -> float:
        """`F(x) = sum_i p_i f_i(x, y*(x))`."""
        examples, share = self._pooled()
        return float(share @ self.upper(x.double().cpu(), self.lower_solution(x), examples))

    def hypergradient(self, x: Tensor) -> Tensor:
        """`grad F(x) = fx(x, y*(x))`; float64, shape [dx]."""
        (examples, share), y = self._pooled(), self.lower_solution(x)
        found: Tensor = torch.func.grad(lambda x: share @ self.upper(x, y, examples))(x.double().cpu())
        return found


def _synthetic(
    draw: np.random.Generator, clients: int, examples: int, features: int, heterogeneity: float, noise: float
) -> list[Arrays]:
    """Inputs [examples, features] and targets [examples] of each client."""
    model = draw.standard_normal(features) + heterogeneity * draw.standard_normal((clients, features))
    mean = heterogeneity * draw.standard_normal((clients, 1, features))
    a = mean + draw.standard_normal((clients, examples, features))
    b = np.einsum("cef,cf->ce", a, model * features**-0.5) + noise * draw.standard_normal((clients, examples))
    return list(zip(a, b, strict=True))


@random_untouched()
def _diabetes(draw: np.random.Generator, clients: int, heterogeneity: float) -> list[Arrays]:
    """The standardised table, cut into clients; within a client the order is drawn."""
    from sklearn.datasets import load_diabetes

    a, b = load_diabetes(return_X_y=True)
    if 2 * clients > len(b):
        raise BadInput(
            "problem.clients", clients, f"at most {len(b) // 2}, so that each has 2 of the {len(b)} patients"
        )
    a, b = (a - a.mean(0)) / a.std(0), (b - b.mean()) / b.std()
    order = np.argsort(heterogeneity * b + draw.standard_normal(len(b)), kind="stable")
    parts = [draw.permutation(rows) for rows in np.array_split(order, clients)]
    return [(a[rows], b[rows]) for rows in parts]
