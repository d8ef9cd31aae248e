"""Requests for any operation, with random vectors for whatever it reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from clients.operations import OPERATIONS as ALL
from fedbilevel.federation.messages import Kept, Request
from tests.differentiable import randn

OPERATIONS = {name: operation for name, operation in ALL.items() if not operation.tasks}
"""Those of a global lower level."""


VALUES: dict[str, Any] = {
    "neumann_step": 0.4,
    "lower_step": 0.2,
    "upper_step": 0.1,
    "auxiliary_step": 0.15,
    "neumann_terms": 3,
    "index": None,
    "penalty": 2.5,
    "lower_weight": 0.7,
    "coefficients": None,
    "normalised": False,
    "momentum_decay": 0.3,
    "momentum": 0.6,
    "full": False,
    "samples": 2,
}


def ask(name: str, problem: Any, spec: Any, clients: list[int], **values: Any) -> Request:
    """A request with random vectors for whatever the operation reads."""
    operation = OPERATIONS[name]
    x0, y0 = problem.initial(torch.Generator().manual_seed(0))
    dx, dy = len(x0), len(y0)
    sizes = {"x": dx, "hypergradient": dx, "mx": dx, "dx": dx, "points": VALUES["samples"] * dy}
    tensors = {key: 0.3 * randn(sizes.get(key, dy), seed=50 + k) for k, key in enumerate(operation.reads)}
    options = {key: values.get(key, VALUES.get(key, spec)) for key in operation.options}
    own = {}
    if operation.keeps is not None:  # client 1 is asked for the first time
        width = (dx + 2 * dy) * (2 if name == "page_directions" else 1)
        known = np.array([client != 1 for client in clients])
        rows = torch.stack([0.3 * randn(width, seed=70 + client) * (client != 1) for client in clients])
        own = {operation.keeps: Kept(rows, known)}
    tokens = {key: k for k, key in enumerate(tensors)}
    return Request((name,), np.array(clients), tensors, tokens, options, 2, 9, own=own)
