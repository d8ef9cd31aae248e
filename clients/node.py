"""A node: the worker that answers requests for the clients it holds. Pure torch; it knows nothing of the transport."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from clients.cohort import Cohort
from clients.held import Draw, Held
from clients.operations import OPERATIONS, Operation
from fedbilevel.config.setup import Setup
from fedbilevel.errors import ClientFailed
from fedbilevel.federation.aggregation import per_output
from fedbilevel.federation.messages import Kept, Reply, Request
from fedbilevel.federation.systems import BatchSize
from fedbilevel.machine.device import Device, chosen, placed
from fedbilevel.problem import Problem
from fedbilevel.user_files import UserFile, run


@dataclass(frozen=True)
class Setting:
    """What a node knows of the run besides the problem: the seed of its draws, the minibatch sizes, and the device.

    files: the user's own with operations or methods that the run's algorithm asks for.
    """

    seed: int = 0
    batch: BatchSize = None
    gradient_batch: BatchSize = None
    device: Device = "cpu"
    files: tuple[UserFile, ...] = ()

    @classmethod
    def of(cls, setup: Setup) -> Setting:
        """Return what a setup says of it."""
        return cls(setup.seed, setup.batch_size, setup.gradient_batch_size, setup.device, setup.files)


class Node:
    """Answers requests for any of the problem's clients; deterministic, so a request may be answered again.

    The examples of the latest two sets of clients stay gathered (the sampled clients and, for evaluation, all). It
    computes on the device of its setting; vectors come and go on the CPU.

    Raises BadInput for a device that this process does not have, and whatever a user's own file raises.
    """

    def __init__(self, problem: Problem, setting: Setting) -> None:
        for file in setting.files:
            run(file)
        self.device = chosen(setting.device)
        self.problem, self.setting = placed(problem, self.device), setting
        self._on_device: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._parts: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._held: dict[bytes, Held] = {}

    def answer(self, request: Request) -> Reply:
        """Run the operations on the request's clients.

        Raises ClientFailed, naming the first client that fails on its own, if an operation raises.
        """
        held = self._gather(request.clients)
        tensors = {name: self._here(self._mine(name, tensor, request)) for name, tensor in request.tensors.items()}
        own = {name: Kept(kept.rows.to(self.device), kept.known) for name, kept in request.own.items()}
        ends = None if request.ends is None else request.ends - request.skip
        request = replace(request, tensors=tensors, own=own, ends=ends, skip=0)
        sums, kept_now = [], []
        for key in request.operations:
            operation = OPERATIONS[key]
            try:
                outputs, kept = self._sums(operation, held, request)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a user's loss may even leave the program
                raise self._blame(operation, request, error) from error
            sums.append(outputs)
            kept_now.append(kept)
        return Reply(tuple(sums), float(held.weights.sum()), tuple(kept_now), request.clients)

    def _mine(self, name: str, tensor: Tensor, request: Request) -> Tensor:
        """The vector, or of blocks of x those of the request's clients: the same object for as long as it lives."""
        if name not in request.cut or request.ends is None:
            return tensor
        span = (request.skip, int(request.ends[-1]))
        if span == (0, len(tensor)):
            return tensor
        if tensor not in self._parts or self._parts[tensor][0] != span:
            self._parts[tensor] = (span, tensor[span[0] : span[1]])
        part: Tensor = self._parts[tensor][1]
        return part

    def _here(self, tensor: Tensor) -> Tensor:
        """The vector on this node's device: the same tensor object for as long as the one that came lives."""
        if tensor.device == self.device:
            return tensor
        if tensor not in self._on_device:
            self._on_device[tensor] = tensor.to(self.device)
        moved: Tensor = self._on_device[tensor]
        return moved

    def _gather(self, clients: NDArray[np.int64]) -> Held:
        key = clients.tobytes()
        held = self._held.pop(key, None) or Held.of(self.problem, clients)
        self._held[key] = held
        if len(self._held) > 2:
            del self._held[next(iter(self._held))]
        return held

    def _sums(self, operation: Operation, held: Held, request: Request) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Per output sum p_i u_i in float64, from the mean over the cohort [d] or from one row per client [S, d], or
        where they are asked for these rows; and what the clients keep.

        In the space of an x that falls into blocks of the clients' own it is p_i times the client's own block, of an
        iterate p_i times its displacement there.
        """
        setting = self.setting
        draw = Draw(setting.seed, request.round, operation.name, setting.batch, setting.gradient_batch)
        blocks = held.blocks
        pooled = operation.linear(request.options) and (blocks is None or not any(operation.elsewhere))
        pooled = pooled and not request.rows
        cohort = Cohort(held, draw, pooled=pooled, apart=request.rows)
        kept = None
        with torch.no_grad():
            outputs = operation(cohort, request.tensors, request.options, request.own)
            if operation.keeps is not None:
                *most, kept = outputs
                outputs, kept = tuple(most), kept.cpu()
        if request.rows:
            return tuple(u.expand(len(held.clients), -1).cpu() for u in outputs), kept
        weights = torch.as_tensor(held.weights, device=outputs[0].device)

        def total(u: Tensor) -> Tensor:
            summed = weights @ u.double() if u.ndim == 2 else u.to(torch.float64, copy=True).mul_(weights.sum())
            return summed.cpu()

        if blocks is None or not any(operation.gives):
            return tuple(total(u) for u in outputs), kept
        about = per_output(operation.about, len(outputs))
        sums = []
        for u, start, of_x in zip(outputs, about, operation.gives, strict=True):
            if not of_x:
                sums.append(total(u))
                continue
            moved = cohort.joined(u).double()
            if start is not None:
                moved = moved - request.tensors[start].double()
            sums.append((moved * (weights.sum() if u.ndim == 1 else cohort.share_of_x(weights))).cpu())
        return tuple(sums), kept

    def _alone(self, request: Request, client: np.int64) -> Request:
        """The same request to one client."""
        alone = request.of(np.array([client]))
        mine = {name: self._mine(name, tensor, alone) for name, tensor in request.tensors.items()}
        return replace(alone, tensors=mine, skip=0)

    def _blame(self, operation: Operation, request: Request, error: BaseException) -> ClientFailed:
        where = f"{len(request.clients)} clients together"
        for client in request.clients:
            try:
                self._sums(operation, Held.of(self.problem, np.array([client])), self._alone(request, client))
            except KeyboardInterrupt:
                raise
            except BaseException as own:
                where, error = f"client {client}", own
                break
        what = " ".join(f"{type(error).__name__}: {error}".split())
        return ClientFailed(f"{where}, operation {operation.name}, round {request.round}: {what}")
