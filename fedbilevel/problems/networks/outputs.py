"""What the convolutional network with a linear head says of B tasks, and the Jacobian J of that, in closed form."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fedbilevel.problems.networks import softmax
from fedbilevel.problems.networks.blocks import Body, Moved, Pulled
from fedbilevel.problems.networks.convolutions import Convolutions

TOGETHER = 80
"""About how many images a thread computes on at one time: what a block makes of them is to stay near the processor."""


def together(images: int) -> int:
    """How many passes over so many images are made at one time, at least one."""
    return max(1, TOGETHER * torch.get_num_threads() // images)


class Back(NamedTuple):
    """Of a way back: the cotangent u* it began with, and what the blocks' `curve` goes on from."""

    cotangent: Tensor
    blocks: list[Pulled]


class Forth(NamedTuple):
    """Of a direction v: v itself, how the features move along it, and what the blocks' `curve` goes on from."""

    direction: Tensor
    feature: Tensor
    blocks: list[Moved]


class Outputs:
    """One pass at parameters y [B, size] over inputs [B, n, ...]: logits u [B, outputs, n], and products with J."""

    def __init__(self, network: Convolutions, y: Tensor, inputs: Tensor) -> None:
        self._network, self._body = network, Body(network.blocks(y), network.images(inputs, 2))
        self._classes, head = network.outputs, y[:, network.body :]
        self._weight, _ = softmax.parts(head, network.width, self._classes)
        self.logits = softmax.logits(head, self._body.feature, self._classes)

    def pull(self, cotangent: Tensor) -> tuple[Tensor, Back]:
        """`J' u*`: [B, size] for a cotangent of u, [R, B, size] for R of them, [R, B, outputs, n]."""
        parts, blocks = self._body.pull(cotangent.mT @ self._weight)
        of_head = softmax.gradient(cotangent, self._body.feature)
        return _joined(parts, of_head), Back(cotangent, blocks)

    def push(self, v: Tensor) -> tuple[Tensor, Forth]:
        """`J v` [B, outputs, n] for v [B, size]."""
        feature, blocks = self._body.push(self._network.blocks(v))
        moved = softmax.logits(v[:, self._network.body :], self._body.feature, self._classes)
        return moved + self._weight @ feature.mT, Forth(v, feature, blocks)

    def curve(self, back: Back, forth: Forth, cotangent: Tensor | None = None) -> Tensor:
        """How `J' u*` moves along v, [B, size], where u* moves by another cotangent (None: it stays)."""
        network, v = self._network, forth.direction
        by_head, _ = softmax.parts(v[:, network.body :], network.width, self._classes)
        of_feature, of_weight = back.cotangent.mT @ by_head, back.cotangent @ forth.feature
        of_bias = torch.zeros_like(of_weight[..., 0])
        if cotangent is not None:
            of_feature = torch.baddbmm(of_feature, cotangent.mT, self._weight)
            of_weight, of_bias = torch.baddbmm(of_weight, cotangent, self._body.feature), cotangent.sum(-1)
        curved = self._body.curve(network.blocks(v), back.blocks, forth.blocks, of_feature)
        return _joined(curved, torch.cat([of_weight.flatten(-2), of_bias], -1))


class Jacobian:
    """Logits [B, n C] of B tasks at common parameters y [size], image by image, and products with their Jacobian J.

    rows: how many rows of a task's J are computed at one time, or fewer, that what they make stays near the processor.
    """

    def __init__(self, network: Convolutions, y: Tensor, inputs: Tensor, rows: int) -> None:
        self._network, self._y, self._inputs, self._most = network, y, inputs, rows
        self._pass = Outputs(network, y.expand(len(inputs), -1), inputs)
        self.value = self._pass.logits.mT.flatten(1)

    def rows(self) -> Tensor:
        """`J` [B, n C, size]."""
        B, n, C = (*self._inputs.shape[:2], self._network.outputs)
        each = torch.eye(n * C, dtype=self._y.dtype, device=self._y.device).view(-1, 1, n, C).mT.expand(-1, B, -1, -1)
        found = self._y.new_empty(B, n * C, len(self._y))
        size = min(self._most, together(B * n))
        for start, some in zip(range(0, n * C, size), each.split(size), strict=True):
            found[:, start : start + size] = self._pass.pull(some)[0].movedim(0, 1)
        return found

    def pull(self, c: Tensor) -> Tensor:
        """`J' c` [B, size] for c [B, n C]."""
        return self._pass.pull(self._cotangent(c))[0]

    def push(self, v: Tensor) -> Tensor:
        """`J v` [B, n C] for v [B, size]."""
        return self._pass.push(v)[0].mT.flatten(1)

    def curve(self, c: Tensor, v: Tensor) -> Tensor:
        """`d/dy sum_k <c_k, J(y) v_k>` [B, size] for c [B, k, n C] and v [B, k, size]: some k after others."""
        found, n = torch.zeros_like(v[:, 0]), self._inputs.shape[1]
        size = min(self._most, together(len(c) * n))
        for some_c, some_v in zip(c.split(size, 1), v.split(size, 1), strict=True):
            k = some_c.shape[1]
            again = Outputs(
                self._network,
                self._y.expand(len(c) * k, -1),
                self._inputs.unsqueeze(1).expand(-1, k, *self._inputs.shape[1:]).flatten(0, 1),
            )
            _, back = again.pull(self._cotangent(some_c.flatten(0, 1)))
            _, forth = again.push(some_v.flatten(0, 1))
            found += again.curve(back, forth).view(len(c), k, -1).sum(1)
        return found

    def _cotangent(self, c: Tensor) -> Tensor:
        return c.view(len(c), -1, self._network.outputs).mT


def _joined(parts: list[Tensor], head: Tensor) -> Tensor:
    return torch.cat([*(part.flatten(-2) for part in parts), head], -1)
