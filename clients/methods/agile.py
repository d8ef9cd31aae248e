"""AGILE: MAML on tasks of which a part is augmented, with support sets that are chosen from a pool by uncertainty.

The support set of the problem is the pool. Of it a task labels `labelled` examples: those about which the network at x
is least certain under dropout, or any; labels are not looked at before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from clients.methods.method import Adapted, Method, Settings, method
from clients.methods.unrolled import Maml
from clients.tasks import TaskBatch
from fedbilevel.problem import map_examples
from fedbilevel.tasks import Tasks


@method("agile")
class Agile(Method):
    """MAML around the choice and the augmentation: x is the initialisation."""

    def adapt(self, tasks: TaskBatch, x: Tensor, o: Settings) -> Adapted:
        """`y_K` from the examples chosen; nothing is augmented."""
        return Maml().adapt(chosen(tasks, x, o), x, o)

    def meta_gradient(self, tasks: TaskBatch, x: Tensor, o: Settings) -> tuple[Tensor, tuple[Tensor, ...]]:
        """MAML's, of augmented tasks and chosen examples."""
        return Maml().meta_gradient(chosen(augmented(tasks, o), x, o), x, o)

    def passes(self, o: Settings) -> tuple[float, float]:
        """MAML's, as if of the whole pool; the dropout passes differentiate nothing."""
        return Maml().passes(o)


def chosen(tasks: TaskBatch, x: Tensor, o: Settings) -> TaskBatch:
    """The tasks with `labelled` examples of their pools each (None, or as many as there are: all, in their order)."""
    n = tasks.tasks.support["label"].shape[1]
    if o["labelled"] is None or o["labelled"] >= n:
        return tasks
    if o["selection"] == "random":
        score = torch.stack([torch.rand(n, generator=draw, dtype=torch.float64) for draw in tasks.generators("choice")])
    else:
        score = entropy(tasks, x, o)
    rows = score.argsort(stable=True, dim=-1, descending=True)[:, : o["labelled"]].to(x.device)
    return _with(tasks, support=map_examples(lambda t: _rows(t, rows), tasks.tasks.support))


def entropy(tasks: TaskBatch, x: Tensor, o: Settings) -> Tensor:
    """The entropy [B, n] of the mean prediction over passes that drop features with probability `dropout`."""
    problem: Any = tasks.problem  # one with `features` and `classes`
    draws = tasks.generators("dropout")
    phi = vmap(lambda inputs: problem.features(x, inputs))(tasks.tasks.support["input"])
    C, w = int(problem.classes), phi.shape[-1]
    weight, bias = x[-C * (w + 1) : -C].view(C, w), x[-C:]
    mean = phi.new_zeros(*phi.shape[:2], C)
    for _ in range(o["passes"]):
        numbers = torch.stack([torch.rand(phi.shape[1:], generator=draw) for draw in draws]).to(phi.device)
        kept = (numbers >= o["dropout"]).to(phi.dtype) / (1 - o["dropout"])
        mean += torch.softmax((kept * phi) @ weight.mT + bias, -1) / o["passes"]
    return torch.as_tensor(torch.special.entr(mean).sum(-1))


def augmented(tasks: TaskBatch, o: Settings) -> TaskBatch:
    """The tasks, of which each is augmented with probability `augmented`, support and query set alike.

    Labels are permuted; square images turned, each class by quarter turns of its own; classes mixed, each with another
    one: its k-th image becomes a mean of it and the other's k-th, with a weight in [1/2, 1] of its own.
    """
    problem: Any = tasks.problem  # one with `classes`
    C, sets = int(problem.classes), [dict(part) for part in (tasks.tasks.support, tasks.tasks.query)]
    draws = tasks.generators("augmentation")
    numbers = torch.stack([torch.rand(1 + 4 * C, generator=draw, dtype=torch.float64) for draw in draws])
    numbers = numbers.to(sets[0]["input"].device)
    share = numbers[:, 0] < o["augmented"]
    order, turns, partner, weight = numbers[:, 1:].split(C, -1)
    for part in sets:
        label, inputs = part["label"].long(), part["input"]
        changed = inputs
        if "classes" in o["augmentations"]:
            ring = partner.argsort(-1)  # every class is mixed with the next one in a random order
            changed = _mixed(changed, label, ring.scatter(1, ring, ring.roll(-1, 1)), 0.5 + 0.5 * weight)
        if "turns" in o["augmentations"] and inputs.ndim == 4 and inputs.shape[2] == inputs.shape[3]:
            changed = _turned(changed, (4 * turns).long().gather(1, label))
        part["input"] = torch.where(_beside(share, inputs), changed, inputs)
        if "labels" in o["augmentations"]:
            part["label"] = torch.where(share[:, None], order.argsort(-1).gather(1, label), label)
    return _with(tasks, *sets)


def _turned(images: Tensor, turns: Tensor) -> Tensor:
    """Each of images [B, n, side, side] by its number of quarter turns [B, n]."""
    found = images
    for k in (1, 2, 3):
        found = torch.where(_beside(turns == k, images), torch.rot90(images, k, (2, 3)), found)
    return found


def _mixed(inputs: Tensor, label: Tensor, partner: Tensor, weight: Tensor) -> Tensor:
    """Each of inputs [B, n, ...] with the example of the same rank in its class's partner [B, C], by weights [B, C]."""
    place, n = label.argsort(stable=True, dim=-1), label.shape[1]  # class by class
    here = torch.arange(n, device=label.device).expand_as(place)
    counts = torch.nn.functional.one_hot(label, partner.shape[1]).sum(1)
    first = counts.cumsum(-1) - counts
    rank = torch.empty_like(place).scatter_(1, place, here) - first.gather(1, label)
    other = partner.gather(1, label)
    size = counts.gather(1, other)
    found = place.gather(1, (first.gather(1, other) + rank % size.clamp(min=1)).clamp(max=n - 1))
    row = torch.where(size > 0, found, here)
    w = _beside(weight.gather(1, label).to(inputs.dtype), inputs)
    return w * inputs + (1 - w) * _rows(inputs, row)


def _rows(tensor: Tensor, rows: Tensor) -> Tensor:
    """Some rows [B, k] of each task's tensor [B, n, ...]."""
    return torch.take_along_dim(tensor, _beside(rows, tensor), 1)


def _beside(values: Tensor, tensor: Tensor) -> Tensor:
    """Values with as many dimensions as the tensor."""
    return values.reshape(*values.shape, *(1,) * (tensor.ndim - values.ndim))


def _with(tasks: TaskBatch, support: Any = None, query: Any = None) -> TaskBatch:
    """The batch with other sets."""
    own = tasks.tasks
    sets = Tasks(own.support if support is None else support, own.query if query is None else query)
    return TaskBatch(tasks.problem, sets, tasks.x, tasks.words)
