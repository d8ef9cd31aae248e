"""A heterogeneous quadratic problem whose lower solution, hypergradient and upper solution are known in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedbilevel.machine.memory import require
from fedbilevel.problem import ClientData, Ragged
from fedbilevel.problems.drawn import definite, hold, least_and_most, means


class Quadratic:
    r"""Per example e of client i: g = 1/2 y'A y - y'(B x + b), f = 1/2 (y - c)'C (y - c) + d'x + rho/2 |x|^2.

    A and C have eigenvalues in [mu, L]. Each client's matrices and vectors are a common part plus `heterogeneity` times
    a part of its own, each example's vectors b and c differ by `noise`.

    Parameters
    ----------
    clients, dim_x, dim_y
        Number of clients m, dimensions of x and y.
    examples
        Examples of each client on both levels: one number, or [low, high], drawn per client.
    heterogeneity
        0: identical clients.
    mu, L
        Strong convexity and smoothness of every g_i in y.
    rho
        Strong convexity of f in x.
    weights
        "size", "uniform" or numbers: p_i.
    seed
        Which instance.
    """

    def __init__(
        self,
        clients: int = 10,
        dim_x: int = 5,
        dim_y: int = 8,
        examples: int | Sequence[int] = (2, 6),
        heterogeneity: float = 1.0,
        noise: float = 0.1,
        mu: float = 0.2,
        L: float = 1.0,
        rho: float = 0.5,
        weights: Literal["size", "uniform"] | Sequence[float] = "size",
        seed: int = 0,
    ) -> None:
        sizes = {"heterogeneity": heterogeneity, "noise": noise, "rho": rho}
        hold({"clients": clients, "dim_x": dim_x, "dim_y": dim_y}, sizes, mu, L, seed)
        low, high = least_and_most(examples)
        self.dim_x, self.dim_y, self.rho = dim_x, dim_y, rho
        per_example = 8 * (2 * dim_y**2 + dim_y * dim_x + 2 * dim_y + dim_x)
        require(3.0 * clients * max(high, 2) * per_example, "problem", "fewer clients or examples, smaller dimensions")
        draw = np.random.Generator(np.random.Philox(seed))
        counts = draw.integers(low, high + 1, size=clients)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

        def vectors(dim: int, scale: float = 1.0) -> np.ndarray:
            """A common vector, turned away from by each client: [clients, dim]."""
            return scale * (draw.standard_normal(dim) + heterogeneity * draw.standard_normal((clients, dim)))

        def examples_of(own: np.ndarray) -> Tensor:
            """Each client's vector, once per example and with noise."""
            return torch.from_numpy(np.repeat(own, counts, axis=0) + noise * draw.standard_normal((offsets[-1], dim_y)))

        def repeated(own: np.ndarray) -> Tensor:
            return torch.from_numpy(np.repeat(own, counts, axis=0))

        base, _ = np.linalg.qr(draw.standard_normal((dim_y, dim_y)))

        def matrices() -> np.ndarray:
            return definite(draw, clients, dim_y, heterogeneity, mu, L, base)

        B = vectors(dim_y * dim_x, dim_x**-0.5).reshape(clients, dim_y, dim_x)
        lower = {"A": repeated(matrices()), "B": repeated(B), "b": examples_of(vectors(dim_y))}
        upper = {"C": repeated(matrices()), "c": examples_of(vectors(dim_y)), "d": repeated(vectors(dim_x))}
        self.clients = ClientData(Ragged(lower, offsets), Ragged(upper, offsets), weights)

    def initial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A standard normal start."""
        x0 = torch.randn(self.dim_x, generator=generator, dtype=torch.float64)
        y0 = torch.randn(self.dim_y, generator=generator, dtype=torch.float64)
        return x0, y0

    def lower(self, x: Tensor, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        """`g` of each example."""
        A, B, b = examples["A"], examples["B"], examples["b"]
        return 0.5 * ((A @ y) * y).sum(-1) - (B @ x + b) @ y

    def upper(self, x: Tensor, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        """`f` of each example."""
        r = y - examples["c"]
        Cr = torch.einsum("nij,nj->ni", examples["C"], r)
        return 0.5 * (r * Cr).sum(-1) + examples["d"] @ x + 0.5 * self.rho * (x @ x)

    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """`test_loss`: F(x), at the exact lower solution; `distance`: |x - x*|; `lower_distance`: |y - y*(x)|."""
        x, y = x.double().cpu(), y.double().cpu()
        return {
            "test_loss": self.value(x),
            "distance": float(torch.linalg.vector_norm(x - self.solution())),
            "lower_distance": float(torch.linalg.vector_norm(y - self.lower_solution(x))),
        }

    # ---- closed forms ----

    def _mean(self, level: Literal["lower", "upper"], *names: str) -> list[Tensor]:
        """sum_i p_i mean_e of some arrays, in float64."""
        return means(getattr(self.clients, level), self.clients.weights, *names)

    def _upper_in_y(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean of C, of C c, and of c'C c / 2."""
        ragged = self.clients.upper
        share = ragged.shares(self.clients.weights)
        C, c = ragged.values["C"].double().cpu(), ragged.values["c"].double().cpu()
        Cc = torch.einsum("nij,nj->ni", C, c)
        return torch.einsum("n,nij->ij", share, C), share @ Cc, 0.5 * share @ (Cc * c).sum(-1)

    def lower_solution(self, x: Tensor) -> Tensor:
        """`y*(x) = A^-1 (B x + b)` with the clients' means, float64, shape [dy]."""
        A, B, b = self._mean("lower", "A", "B", "b")
        return torch.as_tensor(torch.linalg.solve(A, B @ x.double() + b))

    def value(self, x: Tensor) -> float:
        """`F(x) = sum_i p_i f_i(x, y*(x))`."""
        (d,), (C, Cc, constant) = self._mean("upper", "d"), self._upper_in_y()
        x, y = x.double(), self.lower_solution(x)
        return float(0.5 * y @ C @ y - y @ Cc + constant + d @ x + 0.5 * self.rho * x @ x)

    def hypergradient(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """`grad F(x) = d + rho x + B' A^-1 (C y - C c)` at y*(x), or at the y given; float64, shape [dx]."""
        A, B = self._mean("lower", "A", "B")
        (d,), (C, Cc, _) = self._mean("upper", "d"), self._upper_in_y()
        y = self.lower_solution(x) if y is None else y.double()
        v = torch.linalg.solve(A, C @ y - Cc)
        return torch.as_tensor(d + self.rho * x.double() + B.mT @ v)

    def solution(self) -> Tensor:
        """`x*`, where the hypergradient vanishes (rho > 0 makes it unique), float64, shape [dx]."""
        zero = torch.zeros(self.dim_x, dtype=torch.float64)
        h0 = self.hypergradient(zero)
        columns = [self.hypergradient(e) - h0 for e in torch.eye(self.dim_x, dtype=torch.float64)]
        return torch.as_tensor(torch.linalg.solve(torch.stack(columns, dim=1), -h0))
