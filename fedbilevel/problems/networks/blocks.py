r"""The convolutional blocks of B tasks at once, with their first and second derivatives in closed form.

A block takes patches $P$ [B, m, 9 c] of its input (m: the positions in all images of a task) to
$h = \mathrm{relu}(\gamma n + \beta)$ with $n = r (z - \bar z)$, $z = P w$, $r = (\mathrm{var}\,z + \epsilon)^{-1/2}$,
mean and variance over m. The derivative of n in z is $D t = r (t - \bar t - n\,\overline{n t})$, its own transpose: it
takes tangents forward, $\dot n = D \dot z$, and cotangents back, $z^* = D \gamma u^*$. Below, `moved` is a tangent (the
derivative along a direction in the parameters) and `pulled` a cotangent (the derivative of a scalar in a value).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

EPSILON = 1e-5


class Weights(NamedTuple):
    """A block's parameters, or a direction in them: kernel [B, 9 c, filters], scale and shift [B, 1, filters]."""

    kernel: Tensor
    scale: Tensor
    shift: Tensor


@dataclass(frozen=True)
class Passed:
    """What a block keeps of the way forward.

    patches P [B, m, 9 c]; normal n [B, m, filters]; inverse r [B, 1, filters]; output h [B, n, side, side, filters];
    side: of the input's images.
    """

    patches: Tensor
    normal: Tensor
    inverse: Tensor
    output: Tensor
    side: int


@dataclass(frozen=True)
class Pulled:
    """Of the way back: e = u* - mean u* - n mean(n u*), of which z* = r scale e, and mean(n u*) [B, 1, filters]."""

    centred: Tensor
    slope: Tensor


@dataclass(frozen=True)
class Moved:
    """Of a tangent: the patches of the input's (none: it does not move), that of n, and mean(n dz) [B, 1, filters]."""

    patches: Tensor | None
    normal: Tensor
    slope: Tensor


def forward(blocks: Sequence[Weights], inputs: Tensor) -> tuple[Tensor, list[Passed]]:
    """The mean over positions [B, n, filters] of the last block's output, for images [B, n, side, side, channels]."""
    padded, side, passed = _padded(inputs), inputs.shape[2], []
    for block in blocks:
        P = _patches(padded)
        z = P @ block.kernel
        z = z.sub_(z.mean(1, keepdim=True))
        r = z.square().mean(1, keepdim=True).add(EPSILON).rsqrt()
        n = z.mul_(r)
        h = _images(torch.addcmul(block.shift, n, block.scale).relu_(), inputs, side)
        padded = _padded(h)
        passed.append(Passed(P, n, r, h, side))
        side = h.shape[2]
    return h.mean((2, 3)), passed


def pull(blocks: Sequence[Weights], passed: Sequence[Passed], pulled: Tensor) -> tuple[list[Tensor], list[Pulled]]:
    """The gradients of <features, pulled> in the parameters, [B, -1] each, and what `curve` goes on from."""
    back = _spread(pulled, passed[-1].output)
    found: list[Tensor] = []
    kept: list[Pulled] = []
    for k in reversed(range(len(blocks))):
        block, one = blocks[k], passed[k]
        n, r = one.normal, one.inverse
        e = _masked(back, one)
        shift, scale = e.sum(1, keepdim=True), (e * n).sum(1, keepdim=True)
        slope = scale / n.shape[1]
        e = torch.addcmul(e.sub_(shift / n.shape[1]), n, slope, value=-1)
        z = e * (r * block.scale)
        found = [(one.patches.mT @ z).flatten(1), scale.flatten(1), shift.flatten(1), *found]
        kept = [Pulled(e, slope), *kept]
        if k:
            back = _scattered(z @ block.kernel.mT, one)
    return found, kept


def push(blocks: Sequence[Weights], along: Sequence[Weights], passed: Sequence[Passed]) -> tuple[Tensor, list[Moved]]:
    """How the features [B, n, filters] move along a direction in the parameters, and what `curve` goes on from."""
    h: Tensor | None = None
    kept: list[Moved] = []
    for block, moved, one in zip(blocks, along, passed, strict=True):
        n, r = one.normal, one.inverse
        patches = None if h is None else _patches(_padded(h))
        z = one.patches @ moved.kernel
        if patches is not None:
            z = torch.baddbmm(z, patches, block.kernel)
        slope = (z * n).mean(1, keepdim=True)
        dn = torch.addcmul(z.sub_(z.mean(1, keepdim=True)), n, slope, value=-1).mul_(r)
        u = torch.addcmul(torch.addcmul(moved.shift, n, moved.scale), dn, block.scale)
        h = torch.ops.aten.threshold_backward(u.view_as(one.output), one.output, 0.0)
        kept.append(Moved(patches, dn, slope))
    assert h is not None  # there is a block
    return h.mean((2, 3)), kept


def curve(
    blocks: Sequence[Weights],
    along: Sequence[Weights],
    passed: Sequence[Passed],
    kept: Sequence[Pulled],
    moves: Sequence[Moved],
    pulled: Tensor,
) -> list[Tensor]:
    """How what `pull` found moves along the direction of `push`, its cotangent moving by `pulled` [B, n, filters]."""
    back = _spread(pulled, passed[-1].output)
    found: list[Tensor] = []
    for k in reversed(range(len(blocks))):
        block, moved, one, old, move = blocks[k], along[k], passed[k], kept[k], moves[k]
        n, r, dn = one.normal, one.inverse, move.normal
        m = n.shape[1]
        de = _masked(back, one)
        # mean(n u*) moves by mean(n du* + dn u*), and of u* = e + mean u* + n mean(n u*) the mean is orthogonal to dn
        # and n is but for epsilon: mean(n dn) = epsilon r^3 mean(n dz)
        scale = (de * n).sum(1, keepdim=True) + (old.centred * dn).sum(1, keepdim=True)
        scale = scale + m * EPSILON * r**3 * move.slope * old.slope
        shift = de.sum(1, keepdim=True)
        de = torch.addcmul(de.sub_(shift / m), n, scale, value=-1 / m)
        de = torch.addcmul(de, dn, old.slope, value=-1)
        # z* = r scale e, and r moves by -r^2 mean(n dz)
        of_e = r * (moved.scale - block.scale * r * move.slope)
        dz = torch.addcmul(de.mul_(r * block.scale), old.centred, of_e)
        kernel = one.patches.mT @ dz
        if move.patches is not None:
            z = old.centred * (r * block.scale)
            kernel = torch.baddbmm(kernel, move.patches.mT, z)
            back = _scattered(torch.baddbmm(dz @ block.kernel.mT, z, moved.kernel.mT), one)
        found = [kernel.flatten(1), scale.flatten(1), shift.flatten(1), *found]
    return found


def _images(rows: Tensor, like: Tensor, side: int) -> Tensor:
    """Rows [B, m, c] as images [B, n, side, side, c] of half the side."""
    side = (side + 1) // 2
    return rows.view(*like.shape[:2], side, side, rows.shape[2])


def _spread(of_mean: Tensor, h: Tensor) -> Tensor:
    """The cotangent of h from that of its mean over positions, [B, n, filters]."""
    return (of_mean / (h.shape[2] * h.shape[3]))[:, :, None, None].expand_as(h)


def _masked(back: Tensor, one: Passed) -> Tensor:
    """The cotangent u* [B, m, filters] from that of h = relu(u)."""
    masked: Tensor = torch.ops.aten.threshold_backward(back, one.output, 0.0)
    return masked.reshape(one.normal.shape)


def _padded(h: Tensor) -> Tensor:
    """Images [B, n, side, side, c] with a border of zeros, one wide before and as wide behind as strides of 2 reach."""
    side = h.shape[2]
    padded = h.new_zeros(*h.shape[:2], side + 2 - (side + 1) % 2, side + 2 - (side + 1) % 2, h.shape[4])
    padded[:, :, 1 : side + 1, 1 : side + 1] = h
    return padded


def _patches(padded: Tensor) -> Tensor:
    """The 3x3 patches in steps of 2 of padded images [B, n, side, side, c]: [B, m, 9 c]."""
    patches = padded.unfold(2, 3, 2).unfold(3, 3, 2).movedim(4, 6)
    return patches.reshape(len(padded), -1, 9 * padded.shape[4])


def _scattered(patches: Tensor, one: Passed) -> Tensor:
    """The transpose of patching: what every pixel [B, n, side, side, c] gets from the patches [B, m, 9 c] it is in.

    A pixel's row is the middle row of one patch (even rows), or the last of one and the first of the next; so columns.
    """
    half = one.output.shape[2]
    p = patches.view(*one.output.shape[:4], 3, 3, -1)
    h = p.new_empty(*p.shape[:2], half, 2, half, 2, p.shape[6])
    h.copy_(p[..., 1:, 1:, :].transpose(3, 4))
    h[:, :, :, :, :-1, 1] += p[:, :, :, 1:, 1:, 0].transpose(3, 4)
    h[:, :, :-1, 1] += p[:, :, 1:, :, 0, 1:]
    h[:, :, :-1, 1, :-1, 1] += p[:, :, 1:, 1:, 0, 0]
    return h.view(*p.shape[:2], 2 * half, 2 * half, -1)[:, :, : one.side, : one.side]
