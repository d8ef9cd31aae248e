"""3x3 convolutions in steps of 2 of the images of B tasks, a kernel per task: as products with patches, or torch's own.

Images are [B, n, side, side, c], patches [B, m, 9 c] with m the positions in all n images of a task.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import conv2d

LONG = 400
"""Positions of a task from which on torch's own convolution, task by task, is faster than one product for all tasks."""


class Strided:
    """The convolution of some images with kernels [B, 9 c, filters], and its transposes; z is [B, m, filters]."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        native = images.device.type == "cpu" and images.dtype == torch.float32 and torch.backends.mkldnn.is_available()
        self._native = native and images.shape[1] * ((images.shape[2] + 1) // 2) ** 2 >= LONG

    @cached_property
    def patches(self) -> Tensor:
        """The patches of the images."""
        return patches(self.images)

    def __call__(self, kernel: Tensor) -> Tensor:
        """What a kernel makes of the images."""
        if not self._native:
            return self.patches @ kernel
        pairs = zip(self._planes(self.images), self._kernels(kernel), strict=True)
        return _stack([conv2d(h, w, stride=2, padding=1).movedim(1, 3).flatten(0, 2) for h, w in pairs])

    def pull(self, z: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
        """What a cotangent of z, or [R, B, m, filters] of them, makes of the kernel and of the images."""
        if z.ndim == 4:
            back = z.movedim(0, 1).flatten(1, 2) @ kernel.mT  # one product of all R with the kernel of a task
            apart = back.view(len(kernel), len(z), -1, kernel.shape[1]).movedim(1, 0)
            return folded(self.patches.mT, z), self.scattered(apart.flatten(0, 1)).unflatten(0, (len(z), -1))
        if not self._native:
            return self.patches.mT @ z, self.scattered(z @ kernel.mT)
        backward, steps = torch.ops.aten.convolution_backward, ([2, 2], [1, 1], [1, 1], False, [0, 0], 1)
        of = zip(*map(self._planes, (images(z, self.images.shape[1]), self.images)), self._kernels(kernel), strict=True)
        pulled = [backward(*each, None, *steps, [True, True, False])[:2] for each in of]
        of_kernel = _stack([k.permute(2, 3, 1, 0).flatten(0, 2) for _, k in pulled])
        return of_kernel, _stack([h.movedim(1, 3) for h, _ in pulled])

    def scattered(self, patches: Tensor) -> Tensor:
        """The transpose of taking patches."""
        return scattered(patches, *self.images.shape[1:3])

    def _planes(self, images: Tensor) -> list[Tensor]:
        return [each.movedim(3, 1) for each in images]

    def _kernels(self, kernel: Tensor) -> list[Tensor]:
        return [each.unflatten(0, (3, 3, -1)).permute(3, 2, 0, 1) for each in kernel]


def _stack(rows: list[Tensor]) -> Tensor:
    return torch.stack(rows) if len(rows) > 1 else rows[0].unsqueeze(0)


def folded(A: Tensor, right: Tensor) -> Tensor:
    """`A z` for A [B, p, m] and z [B, m, c], or [R, B, m, c]: then one product of A with all R of them."""
    if right.ndim == 3:
        return A @ right
    found = A @ right.permute(1, 2, 0, 3).flatten(2)
    return found.view(*found.shape[:2], len(right), -1).permute(2, 0, 1, 3)


def patches(images: Tensor) -> Tensor:
    """The patches of images with a border of zeros, [B, m, 9 c], m = n ceil(side / 2)^2."""
    side, channels = images.shape[2], images.shape[4]
    wide = side + 2 - (side + 1) % 2  # strides of 2 reach the zeros behind where the side is odd
    padded = images.new_zeros(*images.shape[:2], wide, wide, channels)
    padded[:, :, 1 : side + 1, 1 : side + 1] = images
    return padded.unfold(2, 3, 2).unfold(3, 3, 2).movedim(4, 6).reshape(len(images), -1, 9 * channels)


def images(rows: Tensor, n: int) -> Tensor:
    """Rows [B, m, c] for the positions of n square images, as these images."""
    side = round((rows.shape[1] / n) ** 0.5)
    return rows.view(len(rows), n, side, side, -1)


def scattered(patches: Tensor, n: int, side: int) -> Tensor:
    """The transpose: what every pixel of images [B, n, side, side, c] gets from the patches that it is in.

    An even row is the middle one of a patch, an odd one the last of a patch and the first of the next; so are columns.
    """
    half = (side + 1) // 2
    p = patches.view(len(patches), n, half, half, 3, 3, -1)
    h = p.new_empty(len(p), n, half, 2, half, 2, p.shape[6])
    h.copy_(p[..., 1:, 1:, :].transpose(3, 4))
    h[:, :, :, :, :-1, 1] += p[:, :, :, 1:, 1:, 0].transpose(3, 4)
    h[:, :, :-1, 1] += p[:, :, 1:, :, 0, 1:]
    h[:, :, :-1, 1, :-1, 1] += p[:, :, 1:, 1:, 0, 0]
    return h.view(len(p), n, 2 * half, 2 * half, -1)[:, :, :side, :side]


def spread(of_mean: Tensor, output: Tensor) -> Tensor:
    """The cotangent of images [..., B, n, side, side, c] from that of their mean over positions [..., B, n, c]."""
    each = (of_mean / (output.shape[2] * output.shape[3]))[..., None, None, :]
    return torch.as_tensor(each.expand(*of_mean.shape[:-1], *output.shape[2:4], -1))
