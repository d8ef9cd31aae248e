"""Measures of adapted parameters on the query sets of unseen tasks."""

from __future__ import annotations

from torch import Tensor
from torch.func import vmap

from clients.methods.method import Adapted
from clients.tasks import TaskBatch
from fedbilevel.tasks import is_local


def judge(batch: TaskBatch, adapted: Adapted) -> dict[str, Tensor]:
    """Measures of each task, [B]: `test_loss`, and `test_accuracy` where labels are predicted."""
    problem = batch.problem
    assert is_local(problem)
    found = {"test_loss": batch.losses("upper", adapted.y)}
    if problem.kind == "classification":
        logits = vmap(problem.outputs)(adapted.y, batch.examples["upper"])
        label = batch.examples["upper"]["label"]
        found["test_accuracy"] = (logits.argmax(-1) == label).to(adapted.y.dtype).mean(-1)
    return found
