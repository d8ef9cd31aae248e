"""A heterogeneous quadratic minimax problem whose saddle point, y*(x), value and gradient are known in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbilevel.errors import BadInput
from fedbilevel.machine.memory import require
from fedbilevel.problem import ClientData, Ragged
from fedbilevel.problems.drawn import definite, hold, least_and_most, means

Array = NDArray[np.float64]


class MinimaxQuadratic:
    r"""Per example e of client i: f = 1/2 x'A x + x'B y - 1/2 y'C y + a'x - c'y, which x descends and y ascends.

    A and C have eigenvalues in [mu, L]; the clients' mean of B has singular values in [coupling/2, coupling]. Each
    client's matrices and vectors are a common part plus `heterogeneity` times a part of its own (B's have mean 0), each
    example's vectors a and c differ by `noise`. A bilinear game has no A and no C: there y*(x) does not exist, and the
    saddle point does.

    Parameters
    ----------
    clients, dim_x, dim_y
        Number of clients m, dimensions of x and y; these are equal in a bilinear game.
    examples
        Examples of each client: one number, or [low, high], drawn per client.
    heterogeneity
        0: identical clients.
    mu, L
        Strong convexity in x, strong concavity in y, and smoothness of every f_i in each.
    coupling
        How strongly x and y play against each other: the largest singular value of the clients' mean of B.
    bilinear
        f = x'B y + a'x - c'y.
    weights
        "size", "uniform" or numbers: p_i.
    seed
        Which instance.
    """

    def __init__(
        self,
        clients: int = 10,
        dim_x: int = 5,
        dim_y: int = 5,
        examples: int | Sequence[int] = (2, 6),
        heterogeneity: float = 1.0,
        noise: float = 0.1,
        mu: float = 0.2,
        L: float = 1.0,
        coupling: float = 1.0,
        bilinear: bool = False,
        weights: Literal["size", "uniform"] | Sequence[float] = "size",
        seed: int = 0,
    ) -> None:
        sizes = {"heterogeneity": heterogeneity, "noise": noise}
        hold({"clients": clients, "dim_x": dim_x, "dim_y": dim_y}, sizes, mu, L, seed)
        low, high = least_and_most(examples)
        if not 0 < coupling < np.inf:
            raise BadInput("problem.coupling", coupling, "a finite number above 0")
        if bilinear and dim_x != dim_y:
            raise BadInput("problem.dim_y", dim_y, f"dim_x ({dim_x}) where bilinear = true")
        self.dim_x, self.dim_y, self.bilinear = dim_x, dim_y, bilinear
        per_example = 8 * (dim_x**2 + dim_y**2 + dim_x * dim_y + dim_x + dim_y)
        require(3.0 * clients * max(high, 2) * per_example, "problem", "fewer clients or examples, smaller dimensions")
        draw = np.random.Generator(np.random.Philox(seed))
        counts = draw.integers(low, high + 1, size=clients)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        # p_i, which the clients' own parts of B are centred by, before there are losses
        p = ClientData.single(Ragged(torch.empty(int(offsets[-1])), offsets), weights).weights

        def vectors(dim: int) -> Tensor:
            """A common vector, turned away from by each client, once per example and with noise."""
            own = draw.standard_normal(dim) + heterogeneity * draw.standard_normal((clients, dim))
            return repeated(own) + noise * torch.from_numpy(draw.standard_normal((int(offsets[-1]), dim)))

        def repeated(own: Array) -> Tensor:
            return torch.from_numpy(np.repeat(own, counts, axis=0))

        def couplings() -> Array:
            """B of each client [clients, dim_x, dim_y], whose mean by p_i is the common part."""
            U, V = (np.linalg.qr(draw.standard_normal((dim, dim)))[0] for dim in (dim_x, dim_y))
            r = min(dim_x, dim_y)
            own = draw.standard_normal((clients, dim_x, dim_y)) / np.sqrt(dim_x + dim_y)
            common = (U[:, :r] * np.linspace(1.0, 0.5, r)) @ V[:, :r].T
            return np.asarray(coupling * (common + heterogeneity * (own - np.tensordot(p, own, axes=1))))

        values = {"B": repeated(couplings()), "a": vectors(dim_x), "c": vectors(dim_y)}
        if bilinear:  # y*(x) does not exist: what a run finds by these names, it uses
            vars(self).update(dict.fromkeys(("lower_solution", "value", "hypergradient")))
        else:
            values |= {
                name: repeated(definite(draw, clients, dim, heterogeneity, mu, L))
                for name, dim in (("A", dim_x), ("C", dim_y))
            }
        self.clients = ClientData.single(Ragged(values, offsets), weights)

    def initial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A standard normal start."""
        x0 = torch.randn(self.dim_x, generator=generator, dtype=torch.float64)
        y0 = torch.randn(self.dim_y, generator=generator, dtype=torch.float64)
        return x0, y0

    def upper(self, x: Tensor, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        """`f` of each example."""
        f = (examples["B"] @ y + examples["a"]) @ x - examples["c"] @ y
        if self.bilinear:
            return f
        return f + 0.5 * (examples["A"] @ x) @ x - 0.5 * (examples["C"] @ y) @ y

    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """`distance`: |z - z*|, `upper_distance`: |x - x*|, `lower_distance`: |y - y*|; not bilinear: `test_loss` F(x).

        z* = (x*, y*) is the saddle point.
        """
        x, y = x.double().cpu(), y.double().cpu()
        x_star, y_star = self.saddle_point()
        off_x, off_y = (float(torch.linalg.vector_norm(off)) for off in (x - x_star, y - y_star))
        found = {"distance": float(np.hypot(off_x, off_y)), "upper_distance": off_x, "lower_distance": off_y}
        return found if self.bilinear else found | {"test_loss": self.value(x)}

    # ---- closed forms ----

    def _mean(self, *names: str) -> list[Tensor]:
        """sum_i p_i mean_e of some arrays, in float64."""
        return means(self.clients.upper, self.clients.weights, *names)

    def saddle_point(self) -> tuple[Tensor, Tensor]:
        """`(x*, y*)`, where A x + B y + a = 0 and B'x - C y - c = 0 with the clients' means, float64."""
        B, a, c = self._mean("B", "a", "c")
        A, C = (B.new_zeros(len(a), len(a)), B.new_zeros(len(c), len(c))) if self.bilinear else self._mean("A", "C")
        field = torch.cat([torch.cat([A, B], 1), torch.cat([-B.mT, C], 1)])
        z = torch.linalg.solve(field, torch.cat([-a, -c]))
        return z[: self.dim_x], z[self.dim_x :]

    def solution(self) -> Tensor:
        """`x*`, float64, shape [dx]."""
        return self.saddle_point()[0]

    def lower_solution(self, x: Tensor) -> Tensor:
        """`y*(x) = C^-1 (B'x - c)`, the maximiser of f in y, float64, shape [dy]; not of a bilinear game."""
        B, C, c = self._mean("B", "C", "c")
        return torch.as_tensor(torch.linalg.solve(C, B.mT @ x.double() - c))

    def value(self, x: Tensor) -> float:
        """`F(x) = max_y sum_i p_i f_i(x, y)`; not of a bilinear game."""
        A, B, C, a, c = self._mean("A", "B", "C", "a", "c")
        x, y = x.double(), self.lower_solution(x)
        return float(0.5 * x @ A @ x + x @ B @ y - 0.5 * y @ C @ y + a @ x - c @ y)

    def hypergradient(self, x: Tensor) -> Tensor:
        """`grad F(x) = A x + B y*(x) + a`, float64, shape [dx]: fx at y*(x); not of a bilinear game."""
        A, B, a = self._mean("A", "B", "a")
        return torch.as_tensor(A @ x.double() + B @ self.lower_solution(x) + a)
