"""Attackers who lie about their data: class k becomes C-1-k on both levels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fedbilevel import BadInput, ClientData
from fedbilevel.conditions.attacks import Byzantine
from fedbilevel.data.poison import flipped_share, poisoned

M, CLASSES = 10, 4


def problem(labels: Any = None) -> Any:
    """Client i holds i + 1 lower and two upper examples; class 3 is on the upper level alone."""

    def part(n: int, i: int, most: int) -> dict[str, torch.Tensor]:
        label = (torch.arange(n) + i) % most if labels is None else labels(n)
        return {"features": torch.full((n, 2), float(i)), "label": label}

    lower, upper = [part(i + 1, i, CLASSES - 1) for i in range(M)], [part(2, i, CLASSES) for i in range(M)]
    return SimpleNamespace(clients=ClientData(lower, upper), name="labels")


def test_the_labels_of_attackers_are_flipped_on_both_levels_and_nothing_else() -> None:
    honest = problem()
    before = [level.values["label"].clone() for level in (honest.clients.lower, honest.clients.upper)]
    lying: Any = poisoned(honest, 0.3, 5)
    attackers = set(Byzantine(share=0.3, attack="label_flip").attackers(5, M).tolist())
    assert len(attackers) == 3
    for level, labels in zip(("lower", "upper"), before, strict=True):
        old, new = getattr(honest.clients, level), getattr(lying.clients, level)
        assert torch.equal(old.values["label"], labels)
        assert torch.equal(old.values["features"], new.values["features"])
        for i in range(M):
            mine = slice(int(old.offsets[i]), int(old.offsets[i + 1]))
            expected = CLASSES - 1 - labels[mine] if i in attackers else labels[mine]
            assert torch.equal(new.values["label"][mine], expected)
    assert np.array_equal(lying.clients.weights, honest.clients.weights)
    assert lying.name == "labels"


def test_only_label_flips_change_data() -> None:
    assert flipped_share(None) == flipped_share(Byzantine(share=0.4, attack="sign_flip")) == 0.0
    assert flipped_share(Byzantine(share=0.4, attack="label_flip")) == 0.4


@pytest.mark.parametrize("labels", [torch.ones, lambda n: torch.ones(n, dtype=torch.float64)])
def test_numbers_are_no_classes(labels: Any) -> None:
    with pytest.raises(BadInput, match=r"^systems.byzantine.attack: got 'label_flip'; allowed: .*labels"):
        poisoned(problem(labels), 0.3, 5)
