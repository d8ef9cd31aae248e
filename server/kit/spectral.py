"""The spectral step: x falls into matrices, and each moves along the polar factor of its part of the direction.

Steepest descent in the spectral norm, as Muon does it for plain training (Jordan et al., 2024); in federated training
the polar factor has to be taken after aggregation (FedMuon, ICLR 2026), which is what a server does here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedbilevel.errors import BadInput
from fedbilevel.problem import Part

_CUT = 8.0
"""Singular values below so many roundings of the largest one, in the dtype of x, are none."""


@dataclass(frozen=True)
class Block:
    """One matrix of x: entries from `start`, [rows, columns] as they lie there, and a bias behind them or none.

    The bias is one more column, or one more row where the outputs are the columns; a vector is a single column.
    """

    start: int
    rows: int
    columns: int
    bias: int = 0
    outputs_last: bool = False

    @property
    def size(self) -> int:
        """How many entries of x it takes."""
        return self.rows * self.columns + self.bias

    @property
    def vector(self) -> bool:
        """Whether it is no matrix."""
        return self.columns == 1 and self.bias == 0

    def of(self, x: Tensor) -> Tensor:
        """The matrix in x [dx], its bias appended."""
        held = x[self.start : self.start + self.size]
        matrix, bias = held[: self.rows * self.columns].view(self.rows, self.columns), held[self.rows * self.columns :]
        if not self.bias:
            return matrix
        return torch.cat([matrix, bias[None, :] if self.outputs_last else bias[:, None]], int(not self.outputs_last))

    def flat(self, matrix: Tensor) -> Tensor:
        """The entries of x, from the matrix."""
        if not self.bias or self.outputs_last:  # the bias, as the last row, lies behind the others already
            return matrix.flatten()
        return torch.cat([matrix[:, :-1].flatten(), matrix[:, -1]])


def blocks(parts: Sequence[Part], size: int) -> list[Block]:
    """The matrices of x [size] from its parts, in order; without parts x is one vector.

    A part of two or more dimensions is [outputs, the others flattened] (or the other way round, `outputs_last`); one of
    a single dimension is the bias of the part before it where both are called alike but for the last word, as in
    `0.weight` and `0.bias`, and it has an entry per output; else it is a vector of its own.

    Raises BadInput for parts that do not add up to x.

    >>> [(b.rows, b.columns, b.bias) for b in blocks([Part("a.weight", (2, 3)), Part("a.bias", (2,))], 8)]
    [(2, 3, 2)]
    """
    if sum(math.prod(shape) for _, shape, *_ in parts) != (size if parts else 0):
        raise BadInput(
            "problem.x_shapes", [list(shape) for _, shape, *_ in parts], f"shapes of {size} numbers together"
        )
    return list(_blocks([Part(*part) for part in parts])) if parts else [Block(0, size, 1)]


def _blocks(parts: Sequence[Part]) -> Iterator[Block]:
    start, k = 0, 0
    while k < len(parts):
        name, shape, last = parts[k]
        count, k = math.prod(shape), k + 1
        if len(shape) < 2:
            yield Block(start, count, 1)
            start += count
            continue
        rows, columns = (count // shape[-1], shape[-1]) if last else (shape[0], count // shape[0])
        bias = 0
        if k < len(parts):
            after, behind, _ = parts[k]
            if behind == ((columns if last else rows),) and after == f"{name.rpartition('weight')[0]}bias":
                bias, k = behind[0], k + 1
        yield Block(start, rows, columns, bias, last)
        start += count + bias


def polar(matrix: Tensor) -> tuple[Tensor, float]:
    """The polar factor `U V'` of a matrix `U S V'`, over its singular values that are not 0, and their sum.

    Computed in float64, whatever the dtype: from the symmetric eigenproblem of the shorter side where that is exact
    enough (float32: six digits of the smallest singular value that counts), else from the singular values. 0 for 0.

    >>> factor, nuclear = polar(torch.tensor([[3.0, 0.0], [0.0, -2.0]]))
    >>> factor.tolist(), nuclear
    ([[1.0, 0.0], [0.0, -1.0]], 5.0)
    """
    scale = float(matrix.abs().max()) if matrix.numel() else 0.0
    if scale == 0.0:
        return torch.zeros_like(matrix), 0.0
    m = matrix.double() / scale  # so that no square leaves the range
    cut = _CUT * torch.finfo(matrix.dtype).eps
    if m.shape[0] == 1 or m.shape[1] == 1:
        size = float(m.norm())
        return (m / size).to(matrix.dtype), size * scale
    if matrix.dtype == torch.float64:
        u, s, vh = torch.linalg.svd(m, full_matrices=False)
        kept = s > cut * max(m.shape) ** 0.5 * s[0]
        return u[:, kept] @ vh[kept], float(s[kept].sum()) * scale
    wide = m if m.shape[0] <= m.shape[1] else m.mT
    w, u = torch.linalg.eigh(wide @ wide.mT)
    kept = w > (cut**2) * w[-1]
    s, u = w[kept].sqrt(), u[:, kept]
    factor = (u / s) @ (u.mT @ wide)
    return (factor if wide is m else factor.mT).to(matrix.dtype), float(s.sum()) * scale


def spectral_norm(matrix: Tensor) -> float:
    """The largest singular value.

    >>> round(spectral_norm(torch.tensor([[3.0, 0.0], [0.0, -4.0]])), 6)
    4.0
    """
    return float(torch.linalg.matrix_norm(matrix.double(), 2))


def lengths(x: Tensor, layout: Sequence[Block], *, entries: bool = False) -> tuple[float, ...]:
    """The spectral norm of every matrix of x, 1 for a matrix of zeros: what the limits of a step are shares of.

    entries: of a vector the root mean square of its entries instead.
    """
    return tuple(
        spectral_norm(block.of(x)) / (math.sqrt(block.size) if entries and block.vector else 1.0) or 1.0
        for block in layout
    )


def stepped(
    x: Tensor,
    m: Tensor,
    layout: Sequence[Block],
    limits: Sequence[float],
    alpha: float,
    share: float,
    entries: Tensor | None = None,
) -> Tensor:
    """`W_j - share min(alpha n_j, limit_j) Q_j` of every matrix: Q_j the polar factor of m's, n_j its nuclear norm.

    entries [dx]: vectors are stepped along it instead, by `share limit_j` (none for alpha = 0).
    """
    moved = []
    for block, limit in zip(layout, limits, strict=True):
        inside = slice(block.start, block.start + block.size)
        if entries is not None and block.vector:
            moved.append(x[inside] - entries[inside] * (share * limit if alpha > 0 else 0.0))
            continue
        q, nuclear = polar(block.of(m))
        moved.append(x[inside] - block.flat(q) * (share * min(alpha * nuclear, limit)))
    return torch.cat(moved)
