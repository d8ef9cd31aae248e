"""AGILE: the choice of a support set and the augmentation against loops over tasks, and MAML around both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from clients.methods import methods
from clients.methods.agile import augmented, chosen, entropy
from clients.tasks import TaskBatch
from fedbilevel import BadInput, simulate
from fedbilevel.problems.inspection import convert
from fedbilevel.problems.tasks.few_shot import FewShot
from fedbilevel.tasks import Tasks
from tests.agreement import relative
from tests.problem_table import BODY, CLASSES, HIDDEN, SHOTS, Softmax
from tests.runs import meta_gradient, settings, start, tasks_of

POOL = SHOTS * CLASSES
STEPS = {"lower_step": 0.3, "local_steps": 3}
IMAGES: dict[str, Any] = {"clients": 2, "ways": 3, "shots": 2, "queries": 3, "network": "mlp", "hidden": [5]}


def sets(tasks: TaskBatch) -> list[dict[str, Any]]:
    return [dict(part) for part in (tasks.tasks.support, tasks.tasks.query)]  # type: ignore[arg-type]


def of_digits(count: int = 6) -> TaskBatch:
    problem: Any = convert(FewShot(**IMAGES), torch.float64)
    return tasks_of(problem, count)[0]


def test_with_all_of_its_pool_it_is_maml_on_augmented_tasks() -> None:
    tasks, x = tasks_of(Softmax(3), 4)
    for labelled in (None, POOL, POOL + 5):
        o = settings("agile", **STEPS, augmented=1.0, labelled=labelled)
        changed = augmented(tasks, o)
        found = meta_gradient("agile", tasks, x, **STEPS, augmented=1.0, labelled=labelled)
        assert torch.equal(found, meta_gradient("maml", changed, x, **STEPS))
        assert relative(found, meta_gradient("maml", tasks, x, **STEPS)) > 1e-3
    plain = meta_gradient("agile", tasks, x, **STEPS, augmented=0.0)
    assert torch.equal(plain, meta_gradient("maml", tasks, x, **STEPS))
    adapted = methods()["agile"].adapt(tasks, x, settings("agile", **STEPS, augmented=1.0)).y
    assert torch.equal(adapted, methods()["maml"].adapt(tasks, x, settings("maml", **STEPS)).y)


def test_the_entropy_is_of_the_mean_prediction_under_dropout() -> None:
    """By numpy, one pass and one task after another, with the task's own numbers."""
    tasks, x = tasks_of(Softmax(2), 2)
    o = settings("agile", passes=4, dropout=0.3)
    found = entropy(tasks, x, o)
    V, c = x[BODY : BODY + CLASSES * HIDDEN].view(CLASSES, HIDDEN).numpy(), x[-CLASSES:].numpy()
    for b, draw in enumerate(tasks.generators("dropout")):
        phi, mean = Softmax(2).features(x, sets(tasks)[0]["input"][b]).numpy(), 0.0
        for _ in range(4):
            logits = np.where(torch.rand(phi.shape, generator=draw).numpy() < 0.3, 0.0, phi / 0.7) @ V.T + c
            mean = mean + np.exp(logits) / np.exp(logits).sum(1, keepdims=True) / 4
        assert np.allclose(found[b].numpy(), -(mean * np.log(mean)).sum(1), atol=1e-7)


@pytest.mark.parametrize("selection", ["entropy", "random"])
def test_the_examples_chosen_are_the_most_uncertain_ones_or_any(selection: str) -> None:
    tasks = of_digits(10)
    x = tasks.x
    o = settings("agile", labelled=2, selection=selection)
    some, again = (chosen(tasks, x, o) for _ in range(2))
    pool, few = sets(tasks)[0], sets(some)[0]
    assert few["input"].shape[:2] == few["label"].shape == (20, 2)
    assert torch.equal(few["input"], sets(again)[0]["input"])
    assert torch.equal(sets(some)[1]["input"], sets(tasks)[1]["input"])
    score, rows = entropy(tasks, x, o), []
    for b in range(20):
        own = [int((pool["input"][b] == each).flatten(1).all(1).nonzero()[0]) for each in few["input"][b]]
        assert torch.equal(pool["label"][b, own], few["label"][b])
        assert len(set(own)) == 2
        rows.append(sorted(own))
        if selection == "entropy":
            assert sorted(own) == sorted(score[b].topk(2).indices.tolist())
    if selection == "random":
        assert len({tuple(each) for each in rows}) > 5
    y = methods()["agile"].adapt(tasks, x, {**o, **STEPS}).y
    assert torch.equal(y, methods()["maml"].adapt(some, x, settings("maml", **STEPS)).y)
    reduced = meta_gradient("agile", tasks, x, **STEPS, labelled=2, selection=selection, augmented=0.0)
    assert torch.equal(reduced, meta_gradient("maml", some, x, **STEPS))


def changed_by(name: str, tasks: TaskBatch, share: float = 1.0) -> list[dict[str, Any]]:
    o = settings("agile", augmented=share, augmentations=[name])
    return sets(augmented(tasks, o))


def test_labels_are_permuted_alike_in_both_sets() -> None:
    tasks, seen = of_digits(), set()
    for b in range(len(tasks)):
        maps = []
        for before, after in zip(sets(tasks), changed_by("labels", tasks), strict=True):
            assert torch.equal(before["input"], after["input"])
            maps.append({(int(i), int(j)) for i, j in zip(before["label"][b], after["label"][b], strict=True)})
        assert maps[0] == maps[1]
        assert sorted(j for _, j in maps[0]) == [0, 1, 2]
        seen.add(tuple(sorted(maps[0])))
    assert len(seen) > 2


def test_classes_are_turned_alike_in_both_sets() -> None:
    tasks, seen = of_digits(), set()
    before, after = sets(tasks), changed_by("turns", tasks)
    for b in range(len(tasks)):
        for label in range(3):
            fits = set(range(4))
            for old, new in zip(before, after, strict=True):
                assert torch.equal(old["label"], new["label"])
                for i in (old["label"][b] == label).nonzero()[:, 0]:
                    turned = [np.rot90(old["input"][b, i].numpy(), k) for k in range(4)]
                    fits &= {k for k in range(4) if np.array_equal(turned[k], new["input"][b, i].numpy())}
            assert len(fits) == 1
            seen |= fits
    assert seen == {0, 1, 2, 3}


def test_classes_are_mixed_in_pairs_alike_in_both_sets() -> None:
    """The k-th image of a class with the k-th of one other, by one weight in [1/2, 1]."""
    tasks = of_digits()
    before, after = sets(tasks), changed_by("classes", tasks)
    for b in range(len(tasks)):
        partners = set()
        for label in range(3):
            fits = []
            for other in {0, 1, 2} - {label}:
                weights = []
                for old, new in zip(before, after, strict=True):
                    mine, theirs, mixed = (
                        part["input"][b][old["label"][b] == each].double()
                        for part, each in ((old, label), (old, other), (new, label))
                    )
                    d = (mine - theirs).flatten(1)
                    w = ((mixed - theirs).flatten(1) * d).sum(1) / (d * d).sum(1)
                    exact = (w[:, None] * d - (mixed - theirs).flatten(1)).abs().max() < 1e-5
                    weights += [*w.tolist(), *([] if bool(exact) else [9.0])]
                if max(weights) - min(weights) < 1e-5:
                    assert 0.5 <= weights[0] <= 1.0
                    fits.append(other)
            assert len(fits) == 1
            partners.add(fits[0])
        assert partners == {0, 1, 2}


def test_so_many_tasks_are_augmented_and_inputs_that_are_no_images_are_not_turned() -> None:
    tasks = of_digits(100)
    moved = (changed_by("classes", tasks, 0.5)[0]["input"] != sets(tasks)[0]["input"]).flatten(1).any(1)
    assert 60 < int(moved.sum()) < 140
    flat, _ = tasks_of(Softmax(2), 2)
    assert torch.equal(changed_by("turns", flat)[0]["input"], sets(flat)[0]["input"])


def test_classes_of_unequal_sizes_are_mixed_too() -> None:
    """Two of one class beside one of another: ranks begin again; and a class without examples mixes with nothing."""
    problem, x = Softmax(1), start(Softmax(1))[0]
    inputs = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]] * 40, dtype=torch.float64)
    part = {"input": inputs, "label": torch.tensor([[1, 1, 0]] * 40)}
    found = changed_by("classes", TaskBatch(problem, Tasks(part, part), x))[0]["input"]
    kinds = set()
    for new in found:
        assert torch.allclose(new.sum(1), torch.ones(3, dtype=torch.float64))
        assert bool((new.diagonal() >= 0.5).all())
        kinds.add(tuple((new > 0).flatten().tolist()))
    assert len(kinds) == 2
    assert any(bool((new[1, 2] > 0) & (new[0, 2] > 0) & (new[2] == inputs[0, 2]).all()) for new in found)


def test_agile_runs_and_refuses() -> None:
    shared = {"iterations": 2, "evaluation_tasks": 12, **STEPS}
    for selection in ("entropy", "random"):
        result = simulate(FewShot(**IMAGES), "agile", labelled=3, selection=selection, **shared)
        assert 0 <= float(result.history[-1]["test_accuracy"]) <= 1  # type: ignore[arg-type]
    for problem in ("quadratic_tasks", "sinusoid"):
        with pytest.raises(BadInput, match="algorithm: got 'agile'; allowed: a problem whose network ends in a linear"):
            simulate(problem, "agile", iterations=1)
    wrong = {
        "labelled": 0,
        "selection": "margin",
        "dropout": 1.0,
        "augmented": 1.5,
        "augmentations": ["noise"],
        "passes": 0,
    }
    for key, value in wrong.items():
        with pytest.raises(BadInput, match=rf"options\.{key}.*: got .*; allowed"):
            simulate(Softmax(), "agile", iterations=1, **{key: value})
