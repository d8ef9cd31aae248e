"""3x3 patches in steps of 2 of the images of B tasks, and back: a convolution is a product with patches.

Images are [B, n, side, side, c], patches [B, m, 9 c] with m the positions in all n images of a task.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
    """The cotangent of images [B, n, side, side, c] from that of their mean over positions [B, n, c]."""
    return torch.as_tensor((of_mean / (output.shape[2] * output.shape[3]))[:, :, None, None].expand_as(output))
