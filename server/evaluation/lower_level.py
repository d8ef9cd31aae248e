"""The lower level of all clients together at one x: its minimiser, and linear systems in its Hessian."""

from __future__ import annotations

import contextlib
import functools
import math

import torch
from torch import Tensor

from clients.cohort import Cohort
from clients.held import Draw, Held
from fedbilevel.errors import RunFailed

SHORTEST = 1e-13
"""The minimiser is found where Newton's step is this short, relative to y, whatever the gradient."""
NEWTON_STEPS = 100
PRODUCTS = 5_000
"""The most Hessian products at one x; a lower level that takes more counts as one that does not converge."""
COARSE, FINE = 1e-3, 1e-4
"""Residuals to which Newton's systems and the adjoint's are solved in single precision, before double looks again."""
SKETCH, DENSE = 1_000, 3_000
"""The examples of a Hessian that is written down, and the dimension up to which one is."""


class NoSolution(RunFailed):
    """The lower level has no solution here that could be found: it is not strongly convex, or too flat."""


def together(held: Held) -> Cohort:
    """The clients as one, with all of their examples."""
    return Cohort(held, Draw(0, 0, "solution"), pooled=True)


class Sketch:
    """What is close to the inverse of the Hessian at one point: its inverse on a few of the examples, factorised.

    With it conjugate gradients take a fifth of the products. It need not be exact, and serves close by too. Where that
    Hessian is not positive definite, or too large to be written down, it is the identity.
    """

    def __init__(self, pooled: Cohort, x: Tensor, y: Tensor) -> None:
        self._factor: Tensor | None = None
        if len(y) <= DENSE:
            H = pooled.sketched_hessian(x, y, SKETCH)
            factor, failed = torch.linalg.cholesky_ex(0.5 * (H + H.mT))
            self._factor = None if bool(failed) else factor

    def __call__(self, u: Tensor) -> Tensor:
        """Return about `H^-1 u`, in the dtype of u."""
        if self._factor is None:
            return u
        return torch.cholesky_solve(u[:, None].to(self._factor), self._factor)[:, 0].to(u)


class LowerLevel:
    """The lower level at x [dx], in the precision of x.

    held: all clients; single: the same in single precision, for the products inside conjugate gradients, in half of the
    time; None: all is in the precision of x. y0: the lower gradient there, or at 0 where it is larger, is the scale of
    all. sketch: of a point close by; None: one is made. large: it is worth while.
    """

    def __init__(
        self, held: Held, single: Held | None, x: Tensor, y0: Tensor, *, large: bool, sketch: Sketch | None = None
    ) -> None:
        self.pooled, self._products = together(held), 0
        self.x = x.to(self.pooled.device)
        self._single = None if single is None else (together(single), self.x.float())
        self._large, self.sketch = large, sketch
        points = [y0.to(self.x), torch.zeros_like(y0).to(self.x)][0 if bool(y0.any()) else 1 :]
        at_start = (float(self.pooled.lower_gradient(self.x, point).norm()) for point in points)
        self._scale = max(filter(math.isfinite, at_start), default=0.0)

    def minimiser(self, y: Tensor, tolerance: float, *, polished: bool = False) -> Tensor:
        """y*(x) from y: the lower gradient falls to this part of the scale.

        Newton's method with conjugate gradients; a step is halved until the lower loss falls enough (Armijo).
        polished: one more step, where it costs nothing: what differs in the last bits at the start differs so at the
        end. Raises NoSolution.
        """
        pooled, x, scale = self.pooled, self.x, self._scale
        y = y.to(x)
        g = pooled.lower_gradient(x, y)
        if self._large and self.sketch is None:
            sketched, at = self._single or (pooled, x)
            self.sketch = Sketch(sketched, at, y.to(at))
        for _ in range(NEWTON_STEPS):
            size = float(g.norm())
            if size <= tolerance * scale:
                return self._polished(y, g) if polished else y
            if not math.isfinite(size):
                break
            d = self._newton(y, g, max(min(0.1, size / scale), 0.3 * tolerance * scale / size))
            if float(d.norm()) <= SHORTEST * (1.0 + float(y.norm())):
                return y  # the gradient is rounding
            y, g = self._along(y, d, g)
        raise NoSolution(f"the lower gradient does not fall to {tolerance:g} of what it is at the start")

    def adjoint(self, y: Tensor, tolerance: float, v: Tensor) -> Tensor:
        """`v = H^-1 fy` at y, from v, to a residual of `tolerance * |fy|`. Raises NoSolution.

        Where products are single, by corrections whose residuals are in double precision.
        """
        pooled, x, left = self.pooled, self.x, math.inf
        b, v = pooled.upper_gradient_y(x, y), v.to(x)
        scale = float(b.norm())
        while self._single is not None and scale > 0.0:
            r = b - pooled.hvp(x, y, v) if bool(v.any()) else b
            before, left = left, float(r.norm()) / scale
            if left <= tolerance:
                return v
            if left > 0.1 * before:
                break  # single precision gains no more
            try:
                v = v + self._corrected(y, r, max(0.5 * tolerance / left, FINE))
            except NoSolution:
                break
        return self._solved(pooled, x, y, b, tolerance, v)

    def hypergradient(self, y: Tensor, v: Tensor) -> Tensor:
        """`fx - J v` at y, [dx]."""
        return self.pooled.upper_gradient_x(self.x, y) - self.pooled.cross_vjp(self.x, y, v)

    def _along(self, y: Tensor, d: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """The next y along Newton's direction d from y, where the gradient is g, and its gradient.

        Near the solution rounding hides what the loss still falls by: it is enough if the gradient is halved.
        """
        slope, size, t, loss = float(g @ d), float(g.norm()), 1.0, math.nan
        while t >= 1e-10:
            moved = y + t * d
            gradient = self.pooled.lower_gradient(self.x, moved)
            if float(gradient.norm()) < 0.5 * size:
                return moved, gradient
            loss = float(self.pooled.losses("lower", self.x, y)) if math.isnan(loss) else loss
            if float(self.pooled.losses("lower", self.x, moved)) <= loss + 1e-4 * t * slope:
                return moved, gradient
            t *= 0.5
        raise NoSolution("the lower loss does not fall along Newton's direction")

    def _polished(self, y: Tensor, g: Tensor) -> Tensor:
        d = self._newton(y, g, 1e-6)
        closer = float(self.pooled.lower_gradient(self.x, y + d).norm()) < float(g.norm())
        return y + d if closer else y

    def _newton(self, y: Tensor, g: Tensor, forcing: float) -> Tensor:
        """`-H^-1 g`, to a residual of `forcing`, or of COARSE where products are single."""
        if self._single is not None:
            with contextlib.suppress(NoSolution):  # what is flat, or not convex, in single precision alone
                return self._corrected(y, -g, max(forcing, COARSE))
        return self._solved(self.pooled, self.x, y, -g, forcing, torch.zeros_like(g))

    def _corrected(self, y: Tensor, b: Tensor, tolerance: float) -> Tensor:
        """`H^-1 b` with products in single precision, into whose range b is scaled."""
        assert self._single is not None
        scale = float(b.norm())
        if scale == 0.0:
            return b
        scaled = (b / scale).float()
        return scale * self._solved(*self._single, y.float(), scaled, tolerance, torch.zeros_like(scaled)).to(b)

    def _solved(self, pooled: Cohort, x: Tensor, y: Tensor, b: Tensor, tolerance: float, u: Tensor) -> Tensor:
        """Preconditioned conjugate gradients for `H u = b` from u, until the residual is `tolerance * |b|`."""
        product, near = functools.partial(pooled.hvp, x, y), self.sketch or (lambda r: r)
        r = b - product(u) if bool(u.any()) else b.clone()
        z = near(r)
        p, rz = z, float(r @ z)
        goal = tolerance**2 * float(b @ b)
        while float(r @ r) > goal:
            Hp = product(p)
            curvature = float(p @ Hp)
            self._products += 1
            if not curvature > 0.0:
                raise NoSolution("the lower level is not strongly convex")
            if self._products > PRODUCTS:
                raise NoSolution(f"the lower level takes more than {PRODUCTS} Hessian products")
            step = rz / curvature
            u, r = u + step * p, r - step * Hp
            z = near(r)
            before, rz = rz, float(r @ z)
            p = z + (rz / before) * p
        return u
