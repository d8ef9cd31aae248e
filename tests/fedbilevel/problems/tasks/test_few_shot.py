"""The problem `few_shot`: who owns which characters, what a task is, and that methods learn it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedbilevel import simulate
from fedbilevel.config.build import build
from fedbilevel.errors import BadInput
from fedbilevel.problems.tasks.few_shot import FewShot

NAMES = ("Balinese", "Greek", "Japanese_(katakana)", "Korean", "Latin", "Sanskrit", "Tagalog", "Zulu")
SIZES = (5, 6, 7, 8, 9, 10, 6, 5)  # characters of each alphabet
DRAWERS = 9


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Made-up alphabets, in no order. The 4x4 images tell what they are: the top left pixel of alphabet a, character c
    and drawer d is c * DRAWERS + d + 1, all other pixels 0, so that a turn moves it to another corner.
    """
    character = np.repeat(np.arange(sum(SIZES)), DRAWERS)
    alphabet = np.repeat(np.repeat(np.arange(len(SIZES)), SIZES), DRAWERS)
    images = np.zeros((len(character), 4, 4), dtype=np.float32)
    images[:, 0, 0] = np.arange(len(character)) + 1
    mixed = np.random.default_rng(0).permutation(len(character))
    arrays: dict[str, Any] = {"images": images[mixed], "character": character[mixed], "alphabet": alphabet[mixed]}
    np.savez(tmp_path / "omniglot_small.npz", alphabet_names=np.array(NAMES), **arrays)
    monkeypatch.setenv("FEDBILEVEL_DATA", str(tmp_path))
    return tmp_path


CORNERS = {(0, 0): 0, (3, 0): 1, (3, 3): 2, (0, 3): 3}  # where np.rot90 takes the top left pixel


def read(images: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Alphabet, character, drawer and quarter turns of images [..., 4, 4]."""
    flat = images.flatten(0, -3)
    mark = flat.amax((1, 2)).long().numpy() - 1
    place = flat.flatten(1).argmax(1).numpy()
    turns = np.array([CORNERS[int(at) // 4, int(at) % 4] for at in place])
    character = mark // DRAWERS
    alphabet = np.repeat(np.arange(len(SIZES)), SIZES)[character]
    shape = images.shape[:-2]
    return tuple(a.reshape(shape) for a in (alphabet, character, mark % DRAWERS, turns))  # type: ignore[return-value]


def small(**parameters: Any) -> FewShot:
    return FewShot("omniglot", **{"clients": 20, "ways": 5, "shots": 2, "queries": 3, "filters": 4} | parameters)


def numbers(problem: FewShot, clients: int, tasks: int) -> np.ndarray:
    return np.random.default_rng(3).random((clients, tasks, problem.draws))


UNSEEN = [NAMES.index(name) for name in ("Japanese_(katakana)", "Sanskrit", "Tagalog")]


# ---- who owns what ----


def test_a_client_owns_one_turned_alphabet_and_nobody_an_unseen_one(folder: Path) -> None:
    problem = small(mixed=False)
    held = problem.clients.lower
    owners = []
    for i in range(20):
        alphabet, character, _, turns = read(held.take(np.array([i])).values["input"])
        assert len(set(alphabet)) == len(set(turns)) == 1
        assert len(set(character)) * DRAWERS == len(character) == SIZES[alphabet[0]] * DRAWERS
        owners.append((alphabet[0], turns[0]))
    assert sorted(owners) == [(a, t) for a in range(8) if a not in UNSEEN for t in range(4)]
    test = problem.test_tasks(90)
    for part in (test.support, test.query):
        alphabet, _, _, turns = read(part["input"])
        assert sorted(set(alphabet.ravel())) == UNSEEN
        assert (alphabet == alphabet[:, :1]).all()
        assert not turns.any()


@pytest.mark.parametrize("clients", [1, 3, 5, 10, 20, 23, 25])
def test_the_characters_are_dealt_out_once_and_evenly(folder: Path, clients: int) -> None:
    problem = small(clients=clients, ways=2)
    whole = problem.clients.lower
    alphabet, character, drawer, turns = read(whole.values["input"])
    rows = list(zip(character, drawer, turns, strict=True))
    assert len(set(rows)) == len(rows) == 4 * DRAWERS * sum(n for a, n in enumerate(SIZES) if a not in UNSEEN)
    assert not set(alphabet) & set(UNSEEN)
    for i in range(clients):
        own = slice(whole.offsets[i], whole.offsets[i + 1])
        assert len(set(zip(character[own], turns[own], strict=True))) >= 2
        assert len(set(zip(alphabet[own], turns[own], strict=True))) in {20 // clients, -(-20 // clients), 1}
        labels = whole.values["class"][own].numpy()
        assert len(set(labels)) == len(set(zip(labels, character[own], turns[own], strict=True)))


def test_only_as_many_turns_as_asked_for(folder: Path) -> None:
    _, _, _, turns = read(small(clients=5, rotations=2).clients.lower.values["input"])
    assert set(turns) == {0, 1}


def test_images_shrink_by_averaging(folder: Path) -> None:
    own, half = (small(side=side).clients.lower.values["input"] for side in (None, 2))
    assert half.shape[1:] == (2, 2)
    torch.testing.assert_close(half, nn.functional.avg_pool2d(own.unsqueeze(1), 2).squeeze(1))


def test_the_alphabets_held_out_may_be_turned(folder: Path) -> None:
    upright, turned = small(), small(test_turns=3)
    assert torch.equal(upright.clients.lower.values["input"], turned.clients.lower.values["input"])
    one, other = upright.test_tasks(30), turned.test_tasks(30)
    assert set(read(other.query["input"])[3].ravel()) == {3}
    torch.testing.assert_close(other.query["input"], torch.rot90(one.query["input"], 3, (2, 3)))


# ---- tasks ----


def test_noise_makes_labels_of_support_sets_wrong_and_nothing_else(folder: Path) -> None:
    clean, noisy = small(clients=5), small(clients=5, noise=0.3)
    drawn = numbers(noisy, 5, 400)
    one = clean.tasks(clean.clients.lower, drawn[..., : clean.draws])
    other = noisy.tasks(noisy.clients.lower, drawn)
    assert torch.equal(one.query["label"], other.query["label"])
    for part, noised in ((one.support, other.support), (one.query, other.query)):
        assert torch.equal(part["input"], noised["input"])
    turned = (other.support["label"] - one.support["label"]) % 5
    n = turned.numel()  # a label stays with 0.7, and is each of the four others with 0.3 / 4
    for by, chance in enumerate([0.7, 0.075, 0.075, 0.075, 0.075]):
        assert abs(int((turned == by).sum()) - chance * n) < 5 * (chance * (1 - chance) * n) ** 0.5
    wrong = (turned > 0).double().numpy()
    assert np.abs(np.corrcoef(wrong.T) - np.eye(wrong.shape[1])).max() < 5 / len(wrong) ** 0.5
    test = noisy.test_tasks(60)
    assert torch.equal(test.support["label"][:7], noisy.test_tasks(7).support["label"])
    assert 0.2 < float((test.support["label"] != clean.test_tasks(1).support["label"]).double().mean()) < 0.4


@pytest.mark.parametrize("clients", [20, 23, 3])
def test_a_task_has_its_own_classes_and_no_image_twice(folder: Path, clients: int) -> None:
    problem = small(clients=clients, ways=2 if clients > 20 else 5)
    tasks = problem.tasks(problem.clients.lower, numbers(problem, clients, 6))
    n = problem.classes
    assert problem.task_sizes == (2 * n, 3 * n)
    assert tasks.support["input"].shape == (clients * 6, 2 * n, 4, 4)
    assert tasks.query["input"].shape == (clients * 6, 3 * n, 4, 4)
    both = {key: torch.cat([tasks.support[key], tasks.query[key]], 1) for key in ("input", "label")}
    _, character, drawer, turns = read(both["input"])
    label = both["label"].numpy()
    owned = problem.clients.lower
    for task in range(clients * 6):
        images = list(zip(character[task], drawer[task], turns[task], strict=True))
        assert len(set(images)) == 5 * n
        of_label = {(k, c, t) for k, c, t in zip(label[task], character[task], turns[task], strict=True)}
        assert len(of_label) == len({k for k, _, _ in of_label}) == len({(c, t) for _, c, t in of_label}) == n
        mine = read(owned.take(np.array([task // 6])).values["input"])
        assert set(images) <= set(zip(*mine[1:], strict=True))
    assert np.bincount(tasks.support["label"][0].numpy()).tolist() == [2] * n
    assert np.bincount(tasks.query["label"][0].numpy()).tolist() == [3] * n


def test_every_class_and_every_image_gets_its_turn(folder: Path) -> None:
    problem = small(clients=5)
    tasks = problem.tasks(problem.clients.lower, numbers(problem, 5, 400))
    _, character, drawer, turns = read(tasks.support["input"])
    owned = read(problem.clients.lower.values["input"])
    assert set(zip(character.ravel(), drawer.ravel(), turns.ravel(), strict=True)) == set(zip(*owned[1:], strict=True))
    # client 0 owns 4 x 5 classes: each is in a quarter of its tasks, and has each of the 5 labels in a fifth of those
    first = 4 * character[:400, ::2] + turns[:400, ::2]
    assert len(np.unique(first)) == 20
    counts = np.array([[(first[:, k] == c).sum() for k in range(5)] for c in np.unique(first)])
    assert abs(counts - 20).max() < 5 * 20**0.5
    assert abs(counts.sum(1) - 100).max() < 5 * 75**0.5


def test_the_same_numbers_make_the_same_tasks_wherever_a_client_is(folder: Path) -> None:
    problem = small(clients=23, ways=2)
    drawn = numbers(problem, 23, 2)
    whole = problem.tasks(problem.clients.lower, drawn)
    again = problem.tasks(problem.clients.lower, drawn)
    some = np.array([22, 4])
    part = problem.tasks(problem.clients.lower.take(some), drawn[some])
    rows = torch.tensor([44, 45, 8, 9])
    for key in ("input", "label"):
        for one, other, few in ((whole.support, again.support, part.support), (whole.query, again.query, part.query)):
            assert torch.equal(one[key], other[key])
            assert torch.equal(one[key][rows], few[key])


def test_the_sequence_of_test_tasks_is_fixed(folder: Path) -> None:
    problem = small(mixed=False)
    longer, shorter = problem.test_tasks(40), small(mixed=False).test_tasks(7)
    other = small(mixed=False, seed=1).test_tasks(7)
    assert torch.equal(longer.support["input"][:7], shorter.support["input"])
    assert torch.equal(longer.query["label"][:7], shorter.query["label"])
    assert not torch.equal(other.support["input"], shorter.support["input"])
    assert read(shorter.query["input"])[0][:, 0].tolist() == [*UNSEEN, *UNSEEN, UNSEEN[0]]


def test_the_alphabets_held_out_may_be_mixed(folder: Path) -> None:
    problem = small(ways=5, clients=20)
    longer, shorter = problem.test_tasks(60), small().test_tasks(7)
    assert torch.equal(longer.support["input"][:7], shorter.support["input"])
    alphabet, character, drawer, turns = read(torch.cat([longer.support["input"], longer.query["input"]], 1))
    assert sorted(set(alphabet.ravel())) == UNSEEN
    assert max(len(set(own)) for own in alphabet) == 3
    assert not turns.any()
    assert len(set(character.ravel())) == sum(SIZES[a] for a in UNSEEN)
    for task in range(60):
        assert len(set(character[task])) == 5
        assert len(set(zip(character[task], drawer[task], strict=True))) == 25


def test_a_run_does_not_depend_on_the_number_of_workers() -> None:
    problem = FewShot("digits", network="mlp", hidden=[8], clients=5)
    options: dict[str, Any] = {"iterations": 2, "dtype": "float64", "evaluation_tasks": 5, "clients_per_round": 4}
    one, three = (simulate(problem, "maml", workers=workers, **options) for workers in (1, 3))
    torch.testing.assert_close(one.x, three.x, rtol=1e-10, atol=1e-12)


# ---- bad input ----


@pytest.mark.parametrize(
    ("parameters", "key", "allowed"),
    [
        ({"ways": 6}, "problem.ways", "at most 5,"),
        ({"ways": 1}, "problem.ways", "at least 2"),
        ({"ways": 10**6}, "problem.ways", "at most 5,"),
        ({"shots": 7}, "problem.shots", r"problem.queries \(3\) at most 9"),
        ({"clients": 0}, "problem.clients", "at least 1"),
        ({"clients": 21}, "problem.clients", "at most 20,"),
        ({"clients": 10**9, "ways": 2}, "problem.clients", "at most 40,"),
        ({"unseen": 1.0}, "problem.unseen", "between 0 and 1"),
        ({"rotations": 5}, "problem.rotations", "quarter turns"),
        ({"test_turns": 4}, "problem.test_turns", "quarter turns"),
        ({"noise": 1.0}, "problem.noise", "below 1"),
        ({"noise": -0.1}, "problem.noise", "at least 0"),
        ({"side": 3}, "problem.side", "1, 2, 4"),
        ({"hidden": [0]}, "problem.hidden", "at least 1"),
        ({"seed": -1}, "problem.seed", "at least 0"),
        ({"images": "omniglt"}, "problem.images", "did you mean 'omniglot'"),
        ({"network": "cnn"}, "problem.network", "conv"),
        ({"data": "digits"}, "problem.data", "images"),
    ],
)
def test_bad_input_is_named(folder: Path, parameters: dict[str, Any], key: str, allowed: str) -> None:
    given = {"images": "omniglot", "clients": 20, "ways": 5, "shots": 2, "queries": 3} | parameters
    with pytest.raises(BadInput, match=allowed) as error:
        build("few_shot", given, data=lambda: pytest.fail("asked for data"), dtype=None)
    assert error.value.key == key
    assert "\n" not in str(error.value)


# ---- the digits ----


def test_the_digits_turned_are_no_digit_held_out() -> None:
    problem = FewShot("digits", clients=8)
    seen = {int(label) // 4 for label in problem.clients.lower.values["class"].unique()}
    assert seen == {0, 1, 2, 3, 4, 5, 7}
    assert {int(label) // 4 for label in problem._unseen_class.unique()} == {6, 8, 9}
    assert float(problem.clients.lower.values["input"].min()) >= 0
    assert float(problem.clients.lower.values["input"].max()) == 1


@pytest.mark.parametrize("network", ["conv", "mlp"])
def test_maml_learns_on_the_digits(network: str) -> None:
    result = simulate(
        FewShot("digits", network=network, filters=8, hidden=[32], shots=5, clients=8),  # type: ignore[arg-type]
        "maml",
        iterations=60,
        evaluate_every=60,
        local_steps=1,
        lower_step=0.2,
        upper_step=0.01,
        upper_optimiser="adam",
        tasks_per_client=2,
        evaluation_tasks=60,
    )
    first, last = (row["upper_loss"] for row in (result.history[0], result.history[-1]))
    assert isinstance(first, float)
    assert isinstance(last, float)
    assert last < 0.6 * first
    assert result.x.dtype == torch.float32
    float64 = simulate("few_shot", "fomaml", dtype="float64", iterations=1, tasks_per_client=1, evaluation_tasks=2)
    assert float64.x.dtype == torch.float64
