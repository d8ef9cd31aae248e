"""Quadratic tasks with a local lower level: every method's adaptation and meta-gradient have closed forms."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbilevel.problem import ClientData, Examples, Ragged
from fedbilevel.problems.drawn import hold
from fedbilevel.tasks import Tasks


class QuadraticTasks:
    r"""A task of client i: L(y) = 1/2 (y - a)'A(y - a), f(y) = 1/2 (y - c)'C (y - c).

    A and C are the client's, with eigenvalues in [mu, L]; a and c are the client's centre plus the task's own part. The
    closed forms are those of `fedbilevel.problems.tasks.quadratic_adaptation`.

    Parameters
    ----------
    clients, dim
        Number of clients, dimension of x and y.
    tasks
        Tasks that each client owns; they are drawn with replacement.
    heterogeneity
        How far apart the clients' centres are.
    spread
        How far apart a client's tasks are.
    mu, L
        Bounds of the eigenvalues.
    seed
        Which instance.
    """

    draws = 1
    task_sizes = (1, 1)
    kind = None

    def __init__(
        self,
        clients: int = 8,
        dim: int = 6,
        tasks: int = 20,
        heterogeneity: float = 1.0,
        spread: float = 0.5,
        mu: float = 0.2,
        L: float = 1.0,
        seed: int = 0,
    ) -> None:
        sizes = {"heterogeneity": heterogeneity, "spread": spread}
        hold({"clients": clients, "dim": dim, "tasks": tasks}, sizes, mu, L, seed)
        self.dim = dim
        draw = np.random.Generator(np.random.Philox(seed))

        def pool(owners: int) -> dict[str, Tensor]:
            def matrices() -> NDArray[np.float64]:
                turned, _ = np.linalg.qr(draw.standard_normal((owners, dim, dim)))
                values = mu + (L - mu) * draw.random((owners, dim))
                return np.asarray((turned * values[:, None, :]) @ turned.transpose(0, 2, 1))

            def points() -> NDArray[np.float64]:
                own = heterogeneity * draw.standard_normal((owners, 1, dim))
                return (own + spread * draw.standard_normal((owners, tasks, dim))).reshape(-1, dim)

            arrays = {"A": matrices().repeat(tasks, 0), "a": points(), "C": matrices().repeat(tasks, 0), "c": points()}
            return {name: torch.from_numpy(array) for name, array in arrays.items()}

        offsets = np.arange(clients + 1, dtype=np.int64) * tasks
        pools = Ragged(pool(clients), offsets)
        self.clients = ClientData(pools, pools)
        self._unseen = pool(max(1, -(-1000 // tasks)))

    def initial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A standard normal start; y0 = x0."""
        x0 = torch.randn(self.dim, generator=generator, dtype=torch.float64)
        return x0, x0.clone()

    @staticmethod
    def _split(pool: Examples, index: Tensor) -> Tasks:
        support, query = (
            {name: pool[name].index_select(0, index).unsqueeze(1) for name in names} for names in ("Aa", "Cc")
        )
        return Tasks(support, query)

    def tasks(self, held: Ragged, draws: NDArray[np.float64]) -> Tasks:
        """Tasks of each client's own pool."""
        chosen = held.offsets[:-1, None] + (draws[:, :, 0] * held.sizes[:, None]).astype(np.int64)
        return self._split(held.values, torch.from_numpy(chosen.ravel()))

    def test_tasks(self, count: int) -> Tasks:
        """Tasks of clients that do not take part. The sequence repeats itself after 1000 tasks or a few more."""
        n = int(self._unseen["a"].shape[0])
        like = self.clients.lower.values["a"]
        pool = {name: tensor.to(like) for name, tensor in self._unseen.items()}
        return self._split(pool, torch.arange(count) % n)

    def lower(self, x: Tensor, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        """`L` of the task."""
        r = y - examples["a"]
        return 0.5 * (r * torch.einsum("nij,nj->ni", examples["A"], r)).sum(-1)

    def upper(self, x: Tensor, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        """`f` of the task."""
        r = y - examples["c"]
        return 0.5 * (r * torch.einsum("nij,nj->ni", examples["C"], r)).sum(-1)

    def outputs(self, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        """Nothing that could be judged: the loss."""
        return self.upper(y, y, examples)

    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Nothing without an adaptation."""
        return {}
