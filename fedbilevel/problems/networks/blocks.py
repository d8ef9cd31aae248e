r"""The convolutional blocks of B tasks at once, with their first and second derivatives in closed form.

A block takes the patches $P$ [B, m, 9 c] of its input to $h = \mathrm{relu}(\gamma n + \beta)$, where
$n = r (z - \bar z)$, $z = P w$ and $r = (\mathrm{var}\,z + \epsilon)^{-1/2}$, mean and variance over m. What moves z
moves n by $\dot n = r (\dot z - \overline{\dot z} - n\,\overline{n \dot z})$, and that map is its own transpose: a
cotangent u* of $u = \gamma n + \beta$ makes $z^* = r \gamma e$ with $e = u^* - \overline{u^*} - n\,\overline{n u^*}$.

A pass is gone back by one cotangent for every task, [B, ...], or by R of them at one time, [R, B, ...].

The input of the first block does not move. With $Q = P - \bar P$ and $C = Q^\top Q / m$ its n is $Q (r w)$ with
$\mathrm{var}\,z = w^\top C w$: all of the above has a few coefficients for every filter, [B, 9 c, filters], in place of
m values, and only u, h and their cotangents are written out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedbilevel.problems.networks.strided import Strided, folded, images, patches, spread

EPSILON = 1e-5


class Weights(NamedTuple):
    """A block's parameters, or a direction in them: kernel [B, 9 c, filters], scale and shift [B, 1, filters]."""

    kernel: Tensor
    scale: Tensor
    shift: Tensor


class Pulled(NamedTuple):
    """Of a way back: u* less its mean, e, and the gradient in the scale, sum n u*."""

    raw: Tensor
    centred: Tensor
    scale: Tensor


class Moved(NamedTuple):
    """Of a direction: how the block's patches move (None: they do not), how n does, and mean(n dz) [B, 1, filters]."""

    patches: Tensor | None
    normal: Tensor
    slope: Tensor


class Block(ABC):
    """One pass of a block: n, r [B, 1, filters], and output h [B, n, side, side, filters].

    Vectors over the m positions may be held by coefficients: the sum of share * dual(a) * b is mean(a b).
    """

    weights: Weights
    share: float
    normal: Tensor
    inverse: Tensor
    output: Tensor

    @abstractmethod
    def dual(self, a: Tensor) -> Tensor:
        """What makes means with a vector a, but for the factor `share`."""

    @abstractmethod
    def raw(self, cotangent: Tensor) -> Tensor:
        """A cotangent u* [..., B, m, filters] less its mean, as far as products with vectors of this block see it."""

    @abstractmethod
    def preactivation(self, along: Weights, normal: Tensor) -> Tensor:
        """How u moves, [B, m, filters], where n moves by `normal`."""

    def masked(self, moved: Tensor) -> Tensor:
        """What is left of a tangent of u, or of a cotangent of h, by the ReLU: [..., B, n, side, side, filters]."""
        masked: Tensor = torch.ops.aten.threshold_backward(moved, self.output, 0.0)
        return masked

    def pull(self, back: Tensor) -> tuple[Tensor, Tensor, Pulled]:
        """z* and the gradient in the shift from the cotangent of h, and what `curve` goes on from."""
        u = self.masked(back).flatten(-4, -2)
        raw = self.raw(u)
        scale = (self.normal * raw).sum(-2, keepdim=True)
        e = torch.addcmul(raw, self.dual(self.normal), scale, value=-self.share)
        return e * (self.inverse * self.weights.scale), u.sum(-2, keepdim=True), Pulled(raw, e, scale)

    def push(self, along: Weights, z: Tensor, patches: Tensor | None) -> tuple[Tensor, Moved]:
        """How h moves where z less its mean moves by z."""
        slope = (self.dual(self.normal) * z).sum(1, keepdim=True) * self.share
        normal = torch.addcmul(z, self.normal, slope, value=-1).mul_(self.inverse)
        return self.masked(self.preactivation(along, normal).view(self.output.shape)), Moved(patches, normal, slope)

    def curve(self, along: Weights, old: Pulled, move: Moved, back: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """How z* and the gradients in the scale and the shift move, where the cotangent of h moves by `back`."""
        n, r, gamma = self.normal, self.inverse, self.weights.scale
        u = self.masked(back).flatten(1, 3)
        raw = self.raw(u)
        scale = (n * raw).sum(1, keepdim=True) + (move.normal * old.raw).sum(1, keepdim=True)
        e = torch.addcmul(raw, self.dual(n), scale, value=-self.share)
        e = torch.addcmul(e, self.dual(move.normal), old.scale, value=-self.share)
        # z* = r gamma e, and r moves by -r^2 mean(n dz)
        z = torch.addcmul(e.mul_(r * gamma), old.centred, r * (along.scale - gamma * r * move.slope))
        return z, scale, u.sum(1, keepdim=True)


class First(Block):
    """The first block, of images [B, n, side, side, c]; z, n and e are coefficients [B, 9 c, filters]."""

    share = 1.0

    def __init__(self, weights: Weights, inputs: Tensor) -> None:
        P = patches(inputs)
        self.weights, self.patches = weights, P.sub_(P.mean(1, keepdim=True))
        self._covariance = self.patches.mT @ self.patches / P.shape[1]
        variance = (weights.kernel * (self._covariance @ weights.kernel)).sum(1, keepdim=True)
        self.inverse = variance.add(EPSILON).rsqrt()
        self.normal = self.inverse * weights.kernel
        u = torch.baddbmm(weights.shift, self.patches, self.normal * weights.scale)
        self.output = images(u.relu_(), inputs.shape[1])

    def dual(self, a: Tensor) -> Tensor:
        """`C a`."""
        return self._covariance @ a

    def raw(self, cotangent: Tensor) -> Tensor:
        """`Q' u*`."""
        return folded(self.patches.mT, cotangent)

    def preactivation(self, along: Weights, normal: Tensor) -> Tensor:
        """By one product."""
        moved = torch.addcmul(self.normal * along.scale, normal, self.weights.scale)
        return torch.baddbmm(along.shift, self.patches, moved)


class Inner(Block):
    """A block on the output [B, n, side, side, c] of another; z, n and e are [B, m, filters]."""

    def __init__(self, weights: Weights, inputs: Tensor) -> None:
        self.weights, self.convolution = weights, Strided(inputs)
        z = self.raw(self.convolution(weights.kernel))
        self.share = 1.0 / z.shape[1]
        self.inverse = z.square().mean(1, keepdim=True).add(EPSILON).rsqrt()
        self.normal = z.mul_(self.inverse)
        u = torch.addcmul(weights.shift, self.normal, weights.scale)
        self.output = images(u.relu_(), inputs.shape[1])

    def dual(self, a: Tensor) -> Tensor:
        """Itself."""
        return a

    def raw(self, cotangent: Tensor) -> Tensor:
        """Less the mean."""
        return cotangent - cotangent.mean(-2, keepdim=True)

    def preactivation(self, along: Weights, normal: Tensor) -> Tensor:
        """Value by value."""
        return torch.addcmul(torch.addcmul(along.shift, self.normal, along.scale), normal, self.weights.scale)


class Body:
    """One pass of all blocks; feature: the mean over positions [B, n, filters] of the last one's output."""

    def __init__(self, weights: Sequence[Weights], inputs: Tensor) -> None:
        self.first, self.inner = First(weights[0], inputs), list[Inner]()
        last: Block = self.first
        for each in weights[1:]:
            last = Inner(each, last.output)
            self.inner.append(last)
        self.last, self.feature = last.output, last.output.mean((2, 3))

    def pull(self, cotangent: Tensor) -> tuple[list[Tensor], list[Pulled]]:
        """The gradient of <feature, cotangent> in the parameters, part by part, and what `curve` goes on from.

        cotangent: [B, n, filters], or several, [R, B, n, filters], which make gradients [R, B, ...].
        """
        back, found, kept = spread(cotangent, self.last), list[Tensor](), list[Pulled]()
        for block in reversed(self.inner):
            z, shift, one = block.pull(back)
            kernel, back = block.convolution.pull(z, block.weights.kernel)
            found[:0], kept[:0] = (kernel, one.scale, shift), [one]
        z, shift, one = self.first.pull(back)
        return [z, one.scale, shift, *found], [one, *kept]

    def push(self, along: Sequence[Weights]) -> tuple[Tensor, list[Moved]]:
        """How the feature moves along a direction in the parameters, and what `curve` goes on from."""
        h, one = self.first.push(along[0], along[0].kernel, None)
        kept = [one]
        for block, each in zip(self.inner, along[1:], strict=True):
            moved = patches(h)
            z = torch.baddbmm(block.convolution(each.kernel), moved, block.weights.kernel)
            h, one = block.push(each, block.raw(z), moved)
            kept.append(one)
        return h.mean((2, 3)), kept

    def curve(
        self, along: Sequence[Weights], pulled: Sequence[Pulled], moves: Sequence[Moved], cotangent: Tensor
    ) -> list[Tensor]:
        """How the gradient moves along the direction, where its cotangent moves by another one."""
        back, found = spread(cotangent, self.last), list[Tensor]()
        for block, each, old, move in reversed(list(zip(self.inner, along[1:], pulled[1:], moves[1:], strict=True))):
            dz, scale, shift = block.curve(each, old, move, back)
            z = old.centred * (block.inverse * block.weights.scale)
            assert move.patches is not None  # its input moves
            of = block.convolution
            found[:0] = (torch.baddbmm(of.patches.mT @ dz, move.patches.mT, z), scale, shift)
            back = of.scattered(torch.baddbmm(dz @ block.weights.kernel.mT, z, each.kernel.mT))
        return [*self.first.curve(along[0], pulled[0], moves[0], back), *found]
