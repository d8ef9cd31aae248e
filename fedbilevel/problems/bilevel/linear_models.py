"""Linear models under l2 penalties whose logarithms are x: the problems of `regularisation`.

y holds one weight per output and feature. Ridge knows y*(x), F(x) and its gradient.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedbilevel.problem import ClientData

Examples = dict[str, Tensor]


class Regularisation:
    """A linear model y [outputs * features] under penalties exp(x), see `regularisation`."""

    outputs = 1

    def __init__(self, clients: ClientData, test: Examples, penalties: Literal["feature", "one"], rho: float) -> None:
        self.clients, self.test, self.rho = clients, test, rho
        self.features = int(test["a"].shape[1])
        self.dim_x = self.features if penalties == "feature" else 1

    def initial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Penalties of 1 and a model of zeros."""
        return torch.zeros(self.dim_x, dtype=torch.float64), torch.zeros(self.dim_y, dtype=torch.float64)

    @property
    def dim_y(self) -> int:
        """One weight per output and feature."""
        return self.outputs * self.features

    def penalty(self, x: Tensor, y: Tensor) -> Tensor:
        """1/2 sum_j exp(x_j) |y_j|^2, y_j being the weights of feature j."""
        return 0.5 * (torch.exp(x) * y.view(self.outputs, self.features).square().sum(0)).sum()

    def loss(self, y: Tensor, examples: Examples) -> Tensor:
        """The loss of each example, [n]."""
        raise NotImplementedError

    def lower(self, x: Tensor, y: Tensor, examples: Examples) -> Tensor:
        """Training loss plus penalty."""
        return self.loss(y, examples) + self.penalty(x, y)

    def upper(self, x: Tensor, y: Tensor, examples: Examples) -> Tensor:
        """Validation loss plus rho/2 |x|^2."""
        return self.loss(y, examples) + 0.5 * self.rho * (x @ x)


class Logistic(Regularisation):
    """Cross-entropy of a softmax over classes."""

    def __init__(self, clients: ClientData, test: Examples, penalties: Literal["feature", "one"], rho: float) -> None:
        super().__init__(clients, test, penalties, rho)
        self.outputs = 1 + max(int(level.values["b"].max()) for level in (clients.lower, clients.upper))

    def _logits(self, y: Tensor, examples: Examples) -> Tensor:
        return examples["a"] @ y.view(self.outputs, self.features).mT

    def loss(self, y: Tensor, examples: Examples) -> Tensor:
        """Cross-entropy of each example, [n]."""
        return cross_entropy(self._logits(y, examples), examples["b"], reduction="none")

    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Loss and accuracy on the test set."""
        right = self._logits(y, self.test).argmax(-1) == self.test["b"]
        return {"test_loss": float(self.loss(y, self.test).mean()), "test_accuracy": float(right.double().mean())}


class Ridge(Regularisation):
    """Half squares, whose lower solution, value and hypergradient are known."""

    _best: Tensor | None = None

    def loss(self, y: Tensor, examples: Examples) -> Tensor:
        """(a'y - b)^2 / 2 of each example, [n]."""
        return 0.5 * (examples["a"] @ y - examples["b"]).square()

    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Loss on the test set, and the gap F(x) - F(x*)."""
        gap = self.value(x) - self.value(self.solution())
        return {"test_loss": float(self.loss(y, self.test).mean()), "gap": gap}

    def _moments(self, level: Literal["lower", "upper"]) -> tuple[Tensor, Tensor, Tensor]:
        """sum_i p_i mean of a a', of a b and of b^2 / 2, in float64."""
        ragged = getattr(self.clients, level)
        share = ragged.shares(self.clients.weights)
        a, b = (ragged.values[key].double().cpu() for key in ("a", "b"))
        return (a.mT * share) @ a, a.mT @ (share * b), 0.5 * share @ b.square()

    def _solve(self, x: Tensor, right: Tensor) -> Tensor:
        """(A + diag exp(x))^-1 right."""
        A, _, _ = self._moments("lower")
        return torch.as_tensor(torch.linalg.solve(A + torch.diag(torch.exp(x.double()).expand(len(A))), right))

    def lower_solution(self, x: Tensor) -> Tensor:
        """`y*(x) = (A + diag exp(x))^-1 c`, A and c the clients' mean a a' and a b; float64, shape [dy]."""
        return self._solve(x, self._moments("lower")[1])

    def value(self, x: Tensor) -> float:
        """`F(x) = sum_i p_i f_i(x, y*(x))`."""
        x, y, (A, c, constant) = x.double(), self.lower_solution(x), self._moments("upper")
        return float(0.5 * y @ A @ y - y @ c + constant + 0.5 * self.rho * x @ x)

    def hypergradient(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """`grad F(x)_j = rho x_j - exp(x_j) y_j v_j`, v = H^-1 fy, at y*(x) or at the y given; float64, shape [dx]."""
        y = self.lower_solution(x) if y is None else y.double()
        A, c, _ = self._moments("upper")
        x = x.double()
        along = torch.exp(x) * y * self._solve(x, A @ y - c)
        return self.rho * x - (along if self.dim_x > 1 else along.sum(0, keepdim=True))

    def solution(self) -> Tensor:
        """`x*`, where the hypergradient vanishes, by BFGS from x = 0; float64, shape [dx]."""
        if self._best is None:
            from scipy.optimize import minimize

            def both(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
                at = torch.from_numpy(x)
                return self.value(at), self.hypergradient(at).numpy()

            self._best = torch.from_numpy(minimize(both, np.zeros(self.dim_x), jac=True, options={"gtol": 1e-9}).x)
        return self._best

    # ---- closed forms of the derivatives, over any leading dimensions of x, y, v and weights [..., n] ----

    def upper_gradient_y(self, x: Tensor, y: Tensor, prepared: Examples, weights: Tensor) -> Tensor:
        """`fy`."""
        residual = _along(prepared["a"], y) - prepared["b"]
        return _back(prepared["a"], residual * weights)

    def lower_gradient(self, x: Tensor, y: Tensor, prepared: Examples, weights: Tensor) -> Tensor:
        """`gy`."""
        return self.upper_gradient_y(x, y, prepared, weights) + weights.sum(-1, keepdim=True) * torch.exp(x) * y

    def lower_hvp(self, x: Tensor, y: Tensor, v: Tensor, prepared: Examples, weights: Tensor) -> Tensor:
        """`H v`."""
        curved = _back(prepared["a"], _along(prepared["a"], v) * weights)
        return curved + weights.sum(-1, keepdim=True) * torch.exp(x) * v

    def upper_gradient_x(self, x: Tensor, y: Tensor, examples: Examples, prepared: Examples, weights: Tensor) -> Tensor:
        """`fx` = rho x."""
        return self.rho * weights.sum() * x

    def cross_vjp(
        self, x: Tensor, y: Tensor, v: Tensor, examples: Examples, prepared: Examples, weights: Tensor
    ) -> Tensor:
        """`J v`: exp(x_j) y_j v_j, or their sum."""
        along = weights.sum() * torch.exp(x) * y * v
        return along if self.dim_x > 1 else along.sum(0, keepdim=True)


def _along(a: Tensor, y: Tensor) -> Tensor:
    """The products a'y of all examples, [..., n]."""
    return (a @ y.unsqueeze(-1)).squeeze(-1)


def _back(a: Tensor, r: Tensor) -> Tensor:
    """sum_n r_n a_n, [..., d]."""
    return (r.unsqueeze(-2) @ a).squeeze(-2)
