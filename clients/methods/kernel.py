"""Adaptation of a network that is linearised at x, in closed form by its tangent kernel, and the derivative of that.

With squared loss |Y - f(X)|^2 / 2n on the outputs (n examples of C outputs; Y: labels, of classes scaled one-hot), the
Jacobian J = df(X)/dx [n C, d] of a task's support set and K = J J' the adapted parameters are

    y = x + J' phi(K/n) (Y - f_x(X)) / n,   and the outputs of the network linearised at x   f_x(Xq) + J_q (y - x),

where phi(w) = (1 - exp(-w T)) / w is the gradient flow to the time T (Meta-RKHS-II), and phi(w) = 1 / (w + lam) the
minimum with a pull lam |y - x|^2 / 2. Nothing has the size of J J' for all tasks, nor of J: products with J and J' are
forward and reverse derivatives, some rows at a time.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from clients.jacobian import Jacobian, jacobian
from clients.methods.method import Adapted, Method, Settings
from clients.methods.r2d2 import solving
from clients.tasks import TaskBatch
from fedbilevel.problem import map_examples
from fedbilevel.tasks import Tasks, loss_of_outputs


class Spectrum(NamedTuple):
    """phi(w) [k], (phi(w_i) - phi(w_j)) / (w_i - w_j) [k, k]; dphi/dlog T [k], 0 where no T is learned."""

    phi: Tensor
    slope: Tensor
    in_log_time: Tensor


class Solved(NamedTuple):
    """Tasks of n examples in the eigenbases V of K/n: V' (Y - f) = r, and c = phi(K/n) (Y - f) / n, so y = x + J' c."""

    at: Jacobian
    J: Tensor
    V: Tensor
    spectrum: Spectrum
    r: Tensor
    c: Tensor
    n: int


class Kernel(Method):
    """A method that adapts by a function phi of the kernel. Reports the query loss at the adapted outputs."""

    reports: ClassVar[tuple[str, ...]] = ("query_loss",)

    @abstractmethod
    def spectrum(self, w: Tensor, x: Tensor, o: Settings) -> Spectrum:
        """Phi at eigenvalues w [k] >= 0."""

    def solve(self, problem: Any, x: Tensor, support: Any, o: Settings) -> Solved:
        """Tasks at the parameters in x, all at once."""
        y, Y = self.parameters(x), support["label"]
        at = jacobian(problem, y, support, o["jacobian_rows"])
        B, n = Y.shape
        if problem.kind == "classification":
            classes = at.value.shape[1] // n
            Y = o["label_scale"] * (Y.unsqueeze(-1) == torch.arange(classes, device=y.device))
        J = at.rows()
        w, V = torch.linalg.eigh((J @ J.mT).to(solving(y, o)) / n)
        spectrum = vmap(lambda w: self.spectrum(w.clamp(min=0.0), x.to(w.dtype), o))(w)
        r = times(V.mT, (Y.view(B, -1) - at.value).to(w.dtype))
        return Solved(at, J, V, spectrum, r, (times(V, spectrum.phi * r) / n).to(y.dtype), n)

    def adapt(self, tasks: TaskBatch, x: Tensor, o: Settings) -> Adapted:
        """Y of the network that is linearised at the parameters in x."""
        y, found = self.parameters(x), []
        for some in _together(tasks, y, o):
            solved = self.solve(tasks.problem, x, some.support, o)
            found.append(y + times(solved.J.mT, solved.c))
        return Adapted(torch.cat(found), linear=True)

    def meta_gradient(self, tasks: TaskBatch, x: Tensor, o: Settings) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Through f_x, K and J_q. With g the gradient in the outputs, p = J_q' g, u = J p, and B = phi(K/n) / n:

        dF = <g, d(f_q + J_q (y - x))> - <B u, df> + <c, dJ p> + <M + M', dJ J'>, where by Daleckii and Krein's theorem
        M = V (V'u (V'r)' * slope) V' / n^2 is the derivative of the quadratic form u' phi(K/n) r / n in K. Of the
        eigenvectors q of M + M' those count that do not vanish in rounding: <q, dJ J'q> times its eigenvalue each.
        """
        found = [self._part(tasks.problem, x, some, o) for some in _together(tasks, self.parameters(x), o)]
        gradient, in_log_time, loss = (torch.cat(parts) for parts in zip(*found, strict=True))
        return torch.cat([gradient, in_log_time[:, None]], 1)[:, : len(x)], (loss,)

    def _part(self, problem: Any, x: Tensor, tasks: Tasks, o: Settings) -> tuple[Tensor, Tensor, Tensor]:
        """Of some tasks: the gradient in the parameters [B, d] and in log T [B], and the query loss [B]."""
        y, query = self.parameters(x), tasks.query
        at, J, V, (phi, slope, in_log_time), r, c, n = self.solve(problem, x, tasks.support, o)
        at_query, step = jacobian(problem, y, query, o["jacobian_rows"]), times(J.mT, c)

        def loss(out: Tensor, label: Tensor) -> Tensor:
            shaped = out.view(len(label), -1) if problem.kind == "classification" else out
            return loss_of_outputs(problem, shaped, label).mean()

        g, value = vmap(grad_and_value(loss))(at_query.value + at_query.push(step), query["label"])
        p = at_query.pull(g)
        u = times(V.mT, times(J, p).to(V.dtype))
        by_outputs = at_query.curve(g[:, None], step[:, None]) - at.pull((times(V, phi * u) / n).to(y.dtype))
        M = V @ (u[:, :, None] * r[:, None] * slope) @ V.mT / n**2
        size, Q = torch.linalg.eigh(M + M.mT)
        order = size.abs().argsort(-1, descending=True)
        most = int((size.abs() > torch.finfo(y.dtype).eps * size.abs().amax(-1, keepdim=True)).sum(-1).max())
        size = size.gather(-1, order)[:, :most, None].to(y.dtype)
        Q = Q.mT.gather(1, order[:, :most, None].expand(-1, -1, Q.shape[1])).to(y.dtype)
        by_kernel = at.curve(torch.cat([size * Q, c[:, None]], 1), torch.cat([Q @ J, p[:, None]], 1))
        return p + by_outputs + by_kernel, (u * in_log_time * r).sum(-1).to(y.dtype) / n, value

    def passes(self, o: Settings) -> tuple[float, float]:
        """What is differentiated beside the rows of J, whose number n C is not known here: see the documentation."""
        return 2.0, 3.0


def times(A: Tensor, v: Tensor) -> Tensor:
    """`A v` of every task."""
    return (A @ v.unsqueeze(-1)).squeeze(-1)


def _together(tasks: TaskBatch, y: Tensor, o: Settings) -> Iterator[Tasks]:
    """As many tasks at one time as have `jacobian_rows` rows together, or one."""
    outputs: Any = tasks.problem.outputs  # type: ignore[attr-defined]  # of a local lower level
    size = outputs(y, map_examples(lambda t: t[0], tasks.tasks.support)).numel()
    return tasks.tasks.chunks(max(1, o["jacobian_rows"] // size))
