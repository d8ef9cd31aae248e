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
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, vjp, vmap

from clients.methods.method import Adapted, Method, Settings, linearised
from clients.methods.r2d2 import solving
from clients.tasks import TaskBatch
from fedbilevel.problem import map_examples
from fedbilevel.tasks import Tasks, loss_of_outputs

Outputs = Callable[[Tensor], Tensor]
"""From parameters [d] to all outputs of one set [n C]."""


def pull(f: Outputs, x: Tensor, c: Tensor) -> Tensor:
    """`J' c` [d] for c [n C]."""
    return torch.as_tensor(vjp(f, x)[1](c)[0])


def jacobian(f: Outputs, x: Tensor, size: int, rows: int) -> Tensor:
    """`J` [n C, d] of one task, so many rows at one time."""
    back, one = vjp(f, x)[1], torch.eye(size, dtype=x.dtype, device=x.device)
    return torch.cat([vmap(lambda row: back(row)[0])(some) for some in one.split(rows)])


def bilinear(f: Outputs, x: Tensor, c: Tensor, v: Tensor) -> Tensor:
    """`d/dx <c, J(x) v>` [d] with c and v held, summed over rows c [k, n C] and v [k, d]."""

    def value(x: Tensor) -> Tensor:
        back = vjp(f, x)[1]
        return torch.as_tensor(vmap(lambda c, v: torch.dot(back(c)[0], v))(c, v).sum())

    return torch.as_tensor(grad(value)(x))


class Spectrum(NamedTuple):
    """phi(w) [k], (phi(w_i) - phi(w_j)) / (w_i - w_j) [k, k]; dphi/dlog T [k], 0 where no T is learned."""

    phi: Tensor
    slope: Tensor
    in_log_time: Tensor


class Solved(NamedTuple):
    """One task in the eigenbasis V of K/n: V' (Y - f) = r, and c = phi(K/n) (Y - f) / n, so that y = x + J' c."""

    J: Tensor
    V: Tensor
    spectrum: Spectrum
    r: Tensor
    c: Tensor


class Kernel(Method):
    """A method that adapts by a function phi of the kernel. Reports the query loss at the adapted outputs."""

    reports: ClassVar[tuple[str, ...]] = ("query_loss",)

    @abstractmethod
    def spectrum(self, w: Tensor, x: Tensor, o: Settings) -> Spectrum:
        """Phi at eigenvalues w [k] >= 0."""

    def solve(self, problem: Any, x: Tensor, support: Any, o: Settings) -> Solved:
        """One task at the parameters in x."""
        y = self.parameters(x)
        outputs, Y = problem.outputs(y, support), support["label"]
        if problem.kind == "classification":
            Y = o["label_scale"] * (Y.unsqueeze(-1) == torch.arange(outputs.shape[-1], device=y.device))
        r, n = (Y - outputs).flatten(), len(outputs)
        J = jacobian(_outputs(problem, support), y, len(r), o["jacobian_rows"])
        w, V = torch.linalg.eigh((J @ J.mT).to(solving(y, o)) / n)
        spectrum = self.spectrum(w.clamp(min=0.0), x.to(w.dtype), o)
        turned = V.mT @ r.to(w.dtype)
        return Solved(J, V, spectrum, turned, (V @ (spectrum.phi * turned) / n).to(y.dtype))

    def adapt(self, tasks: TaskBatch, x: Tensor, o: Settings) -> Adapted:
        """Y of the network that is linearised at the parameters in x."""

        def one(support: Any) -> Tensor:
            solved = self.solve(tasks.problem, x, support, o)
            return self.parameters(x) + solved.J.mT @ solved.c

        return Adapted(
            torch.cat([vmap(one)(some.support) for some in _together(tasks, self.parameters(x), o)]), linear=True
        )

    def meta_gradient(self, tasks: TaskBatch, x: Tensor, o: Settings) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Through f_x, K and J_q. With g the gradient in the outputs, p = J_q' g, u = J p, and B = phi(K/n) / n:

        dF = <g, d(f_q + J_q (y - x))> - <B u, df> + <c, dJ p> + <M + M', dJ J'>, where by Daleckii and Krein's theorem
        M = V (V'u (V'r)' * slope) V' / n^2 is the derivative of the quadratic form u' phi(K/n) r / n in K. Of the
        eigenvectors q of M + M' those count that do not vanish in rounding: <q, dJ J'q> times its eigenvalue each.
        """
        y, problem = self.parameters(x), tasks.problem

        def first(support: Any, query: Any) -> tuple[Tensor, ...]:
            f, f_q = _outputs(problem, support), _outputs(problem, query)
            J, V, (phi, slope, in_log_time), r, c = self.solve(problem, x, support, o)
            n, step = len(support["label"]), J.mT @ c

            def loss(out: Tensor) -> Tensor:
                shaped = out.view_as(problem.outputs(y, query))  # type: ignore[attr-defined]  # of a local lower level
                return loss_of_outputs(problem, shaped, query["label"]).mean()  # type: ignore[arg-type]  # the same

            g, value = grad_and_value(loss)(linearised(f_q, y, step))
            p = pull(f_q, y, g)
            u = V.mT @ (J @ p).to(V.dtype)
            direct = p + bilinear(f_q, y, g[None], step[None]) - pull(f, y, (V @ (phi * u) / n).to(y.dtype))
            M = V @ (torch.outer(u, r) * slope) @ V.mT / n**2
            size, Q = torch.linalg.eigh(M + M.mT)
            return direct, value, (u * in_log_time * r).sum() / n, c, p, J, size, Q.mT.to(y.dtype)

        def second(support: Any, size: Tensor, Q: Tensor, J: Tensor, c: Tensor, p: Tensor) -> Tensor:
            f = _outputs(problem, support)
            left, right = torch.cat([size[:, None] * Q, c[None]]), torch.cat([Q @ J, p[None]])
            parts = zip(left.split(o["jacobian_rows"]), right.split(o["jacobian_rows"]), strict=True)
            return sum((bilinear(f, y, *part) for part in parts), torch.zeros_like(y))

        found = []
        for some in _together(tasks, self.parameters(x), o):
            direct, loss, in_log_time, c, p, J, size, Q = vmap(first)(some.support, some.query)
            order = size.abs().argsort(-1, descending=True)
            size, Q = size.gather(-1, order), Q.gather(1, order[..., None].expand_as(Q))
            counts = size.abs() > torch.finfo(y.dtype).eps * size.abs().amax(-1, keepdim=True)
            most = int(counts.sum(-1).max())
            through = vmap(second)(some.support, size[:, :most].to(y.dtype), Q[:, :most], J, c, p)
            found.append((direct + through, in_log_time.to(y.dtype), loss))
        gradient, in_log_time, loss = (torch.cat(parts) for parts in zip(*found, strict=True))
        return torch.cat([gradient, in_log_time[:, None]], 1)[:, : len(x)], (loss,)

    def passes(self, o: Settings) -> tuple[float, float]:
        """What is differentiated beside the rows of J, whose number n C is not known here: see the documentation."""
        return 2.0, 3.0


def _outputs(problem: Any, examples: Any) -> Outputs:
    return lambda y: problem.outputs(y, examples).flatten()


def _together(tasks: TaskBatch, y: Tensor, o: Settings) -> Iterator[Tasks]:
    """As many tasks at one time as have `jacobian_rows` rows together, or one."""
    outputs: Any = tasks.problem.outputs  # type: ignore[attr-defined]  # of a local lower level
    size = outputs(y, map_examples(lambda t: t[0], tasks.tasks.support)).numel()
    return tasks.tasks.chunks(max(1, o["jacobian_rows"] // size))
