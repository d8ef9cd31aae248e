"""The problem `few_shot`: who owns which characters, what a task is, and its networks against torch.nn."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.functional import cross_entropy

from fedbilevel import simulate
from fedbilevel.config.build import build
from fedbilevel.data.characters import load_characters, read_archives
from fedbilevel.data.episodes import Episodes, dealt, held_out
from fedbilevel.errors import BadInput
from fedbilevel.problem import Ragged
from fedbilevel.problems import networks
from fedbilevel.problems.few_shot import FewShot
from fedbilevel.problems.networks import Convolutions, Network, Perceptron

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


def test_dealing_by_hand() -> None:
    units = [[(0, 0), (1, 0), (2, 0)], [(3, 0), (4, 0)]]
    assert dealt(units, 1) == [[*units[0], *units[1]]]
    assert dealt(units, 2) == units
    assert dealt(units, 3) == [[(0, 0), (2, 0)], units[1], [(1, 0)]]


def test_what_is_held_out() -> None:
    assert [NAMES[a] for a in held_out(NAMES, 0.375)] == ["Japanese_(katakana)", "Sanskrit", "Tagalog"]
    assert [NAMES[a] for a in held_out(NAMES, 0.5)] == ["Japanese_(katakana)", "Sanskrit", "Tagalog", "Zulu"]
    assert len(held_out(NAMES, 0.01)) == 1
    assert len(held_out(NAMES, 0.99)) == 7


def test_only_as_many_turns_as_asked_for(folder: Path) -> None:
    _, _, _, turns = read(small(clients=5, rotations=2).clients.lower.values["input"])
    assert set(turns) == {0, 1}


def test_images_shrink_by_averaging(folder: Path) -> None:
    own, half = (small(side=side).clients.lower.values["input"] for side in (None, 2))
    assert half.shape[1:] == (2, 2)
    torch.testing.assert_close(half, nn.functional.avg_pool2d(own.unsqueeze(1), 2).squeeze(1))


# ---- tasks ----


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


def test_a_draw_by_hand() -> None:
    # two owners; classes of 2, 3 | 2, 2, 2 images
    pool = Ragged({"class": torch.tensor([7, 7, 8, 8, 8, 8, 8, 1, 1, 2, 2])}, np.array([0, 5, 11]))
    episodes = Episodes(ways=2, shots=1, queries=1, classes=3, images=3)
    first = [0.9, 0.1, 0.0, 0.5, 0.2, 0.3, 0.4, 0.2, 0.0]  # class 8 (third image, first), class 7 (second, first)
    second = [0.3, 0.2, 0.1, 0.1, 0.2, 0.0, 0.9, 0.8, 0.7]  # class 2 (first, second), class 1 (second, first)
    support, query = episodes.draw(pool, np.array([[first], [second]]))
    assert episodes.draws == 9
    assert support.tolist() == [[3, 1], [9, 8]]
    assert query.tolist() == [[4, 0], [10, 7]]


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


@pytest.mark.parametrize(
    ("change", "allowed"),
    [
        ({"images": np.zeros((4, 3, 2), np.uint8)}, "side, side"),
        ({"images": np.zeros((4, 2, 2), np.int64)}, "uint8 or floats"),
        ({"images": np.full((4, 2, 2), np.nan)}, "finite"),
        ({"character": np.arange(3)}, "one per image"),
        ({"character": np.zeros(4, np.int64)}, "one alphabet each"),
        ({"alphabet": np.array([0, 0, 2, 2])}, "below 2"),
        ({"alphabet_names": np.arange(2)}, "strings"),
        ({"alphabet": None}, "absent: alphabet"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], allowed: str
) -> None:
    arrays: dict[str, Any] = {
        "images": np.zeros((4, 2, 2), np.uint8),
        "character": np.arange(4),
        "alphabet": np.array([0, 0, 1, 1]),
        "alphabet_names": np.array(["a", "b"]),
    }
    monkeypatch.setenv("FEDBILEVEL_DATA", str(tmp_path))
    np.savez(tmp_path / "mine.npz", **arrays)
    assert load_characters("mine").names == ("a", "b")
    np.savez(tmp_path / "mine.npz", **{k: v for k, v in (arrays | change).items() if v is not None})
    with pytest.raises(BadInput, match=allowed) as error:
        load_characters("mine")
    assert error.value.key == "problem.images"


def test_offline_the_full_set_fails_with_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no network\nat all")

    monkeypatch.setenv("FEDBILEVEL_DATA", str(tmp_path))
    monkeypatch.setattr("datasets.DownloadManager.download", unreachable)
    with pytest.raises(BadInput, match=r"problem.images: got 'omniglot'.*no local omniglot.npz.*no network") as error:
        load_characters("omniglot")
    assert "\n" not in str(error.value)


def test_the_authors_archives_are_read(tmp_path: Path) -> None:
    pixels = np.full((105, 105), True)
    for number, (part, alphabets) in enumerate({"background": ["B", "A"], "evaluation": ["C"]}.items()):
        with zipfile.ZipFile(tmp_path / f"{part}.zip", "w") as archive:
            for alphabet in alphabets:
                for character in range(2 + number):
                    for drawer in range(2):
                        marked = pixels.copy()
                        marked[: 15 * (character + 1), :15] = False  # ink
                        Image.fromarray(marked).save(tmp_path / "one.png")
                        name = f"images_{part}/{alphabet}/character{character + 1:02}/0001_{drawer:02}.png"
                        archive.write(tmp_path / "one.png", name)
    found = read_archives([tmp_path / "background.zip", tmp_path / "evaluation.zip"])
    assert found.images.shape == (14, 28, 28)
    assert found.names == ("A", "B", "C")
    assert np.bincount(found.alphabet).tolist() == [4, 4, 6]
    assert np.bincount(found.character).tolist() == [2] * 7
    of_c = found.images[found.alphabet == 2].reshape(3, 2, 28, 28)
    np.testing.assert_allclose(of_c.sum((2, 3)), [[16 * k] * 2 for k in (1, 2, 3)], rtol=0.01)
    assert of_c[0, 0, 0, 0] == 1
    assert of_c[0, 0, -1, -1] == 0


def test_the_digits_turned_are_no_digit_held_out() -> None:
    problem = FewShot("digits", clients=8)
    seen = {int(label) // 4 for label in problem.clients.lower.values["class"].unique()}
    assert seen == {0, 1, 2, 3, 4, 5, 7}
    assert {int(label) // 4 for label in problem._unseen_class.unique()} == {6, 8, 9}
    assert float(problem.clients.lower.values["input"].min()) >= 0
    assert float(problem.clients.lower.values["input"].max()) == 1


# ---- networks ----


class Reference(nn.Module):
    """The convolutional network by torch.nn."""

    def __init__(self, network: Convolutions, y: Tensor, side: int) -> None:
        super().__init__()
        parts, blocks, channels = network.parts(y.detach()), [], 1
        step = 3 if network.normalise else 2
        for weight, *rest in zip(*(parts[k:-2:step] for k in range(step)), strict=True):
            conv = nn.Conv2d(channels, weight.shape[1], 3, stride=2, padding=1, bias=not network.normalise)
            conv.weight.data = weight.view(3, 3, channels, -1).permute(3, 2, 0, 1).contiguous()
            blocks.append(conv)
            if network.normalise:
                norm = nn.BatchNorm2d(weight.shape[1], track_running_stats=False)
                norm.weight.data, norm.bias.data = rest
                blocks.append(norm)
            else:
                assert conv.bias is not None
                conv.bias.data = rest[0]
            blocks.append(nn.ReLU())
            channels = weight.shape[1]
        self.body = nn.Sequential(*blocks).to(y.dtype)
        self.head = nn.Linear(channels, network.outputs, dtype=y.dtype)
        self.head.weight.data, self.head.bias.data = parts[-2:]

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images.unsqueeze(1)).mean((2, 3)))  # type: ignore[no-any-return]

    def gradient(self, images: Tensor, label: Tensor) -> Tensor:
        """In the order of the flat vector."""
        self.zero_grad()
        cross_entropy(self(images), label).backward()
        found = []
        for name, p in self.named_parameters():
            assert p.grad is not None
            found.append((p.grad.permute(2, 3, 1, 0) if p.grad.ndim == 4 else p.grad).flatten())
            assert "num_batches" not in name
        return torch.cat(found)


def draw(network: Network, tasks: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    y = torch.stack([network.initial(generator) for _ in range(tasks)])
    return (y + 0.1 * torch.randn(y.shape, generator=generator, dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("side", [8, 14, 7])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_convolutions_are_torch_s(normalise: bool, side: int, dtype: torch.dtype) -> None:
    network = Convolutions(1, 5, 3, normalise=normalise)
    y = draw(network, 4, dtype)
    images = torch.rand(4, 6, side, side, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)
    label = torch.tensor([0, 1, 2, 2, 1, 0])

    def loss(y: Tensor, images: Tensor) -> Tensor:
        return cross_entropy(network(y, images), label)

    outputs, gradients = vmap(network)(y, images), vmap(grad(loss))(y, images)
    for k in range(4):
        reference = Reference(network, y[k], side)
        torch.testing.assert_close(outputs[k], reference(images[k]))
        tolerance = {"rtol": 1e-3, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-8, "atol": 1e-10}
        torch.testing.assert_close(gradients[k], reference.gradient(images[k], label), **tolerance)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_perceptron_is_torch_s(activation: Any) -> None:
    network = Perceptron([4, 5, 3], 2, activation)
    (y,) = draw(network, 1)
    inputs = torch.rand(6, 2, 2, dtype=torch.float64)
    layers = [nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(3, 2)]
    nonlinear = {"relu": nn.ReLU, "tanh": nn.Tanh}[activation]
    reference = nn.Sequential(nn.Flatten(), layers[0], nonlinear(), layers[1], nonlinear(), layers[2]).double()
    nn.utils.vector_to_parameters(y, reference.parameters())
    torch.testing.assert_close(network(y, inputs), reference(inputs))


NETWORKS: dict[str, Callable[[], Network]] = {
    "conv": lambda: Convolutions(1, 4, 3),
    "plain conv": lambda: Convolutions(1, 4, 3, normalise=False),
    "mlp": lambda: Perceptron([64, 6], 3, "tanh"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_head_is_last_and_linear_on_the_features(name: str) -> None:
    network = NETWORKS[name]()
    (y,) = draw(network, 1)
    images = torch.rand(5, 8, 8, dtype=torch.float64)
    body = y.numel() - 3 * (network.width + 1)
    weight, bias = y[body:-3].view(3, network.width), y[-3:]
    features = network.features(y, images)
    assert features.shape == (5, network.width)
    torch.testing.assert_close(network(y, images), features @ weight.T + bias)
    other = torch.cat([y[:body], torch.zeros_like(y[body:])])
    assert torch.equal(network.features(other, images), features)


@pytest.mark.parametrize("name", NETWORKS)
def test_second_derivatives_under_vmap_are_differences_of_gradients(name: str) -> None:
    network = NETWORKS[name]()
    y = draw(network, 3)
    generator = torch.Generator().manual_seed(4)
    v = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    images = torch.rand(3, 6, 8, 8, generator=generator, dtype=torch.float64)
    label = torch.tensor([0, 1, 2, 2, 1, 0])

    def gradient(y: Tensor, images: Tensor) -> Tensor:
        return grad(lambda y: cross_entropy(network(y, images), label))(y)

    def product(y: Tensor, v: Tensor, images: Tensor) -> Tensor:
        return grad(lambda y: torch.dot(gradient(y, images), v))(y)

    found = vmap(product)(y, v, images)
    h = 1e-6
    expected = (vmap(gradient)(y + h * v, images) - vmap(gradient)(y - h * v, images)) / (2 * h)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


def test_a_start_is_scaled_to_the_fan_in() -> None:
    network = Convolutions(1, 64, 5)
    parts = network.parts(network.initial(torch.Generator().manual_seed(0)))
    assert float(parts[3].std()) == pytest.approx((2 / 576) ** 0.5, rel=0.02)
    assert all(bool((parts[k] == 1).all()) and not parts[k + 1].any() for k in (1, 4, 7, 10))
    assert not parts[-1].any()
    plain = Convolutions(1, 8, 5, normalise=False)
    assert not any(part.any() for part in plain.parts(plain.initial(torch.Generator()))[1::2])


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


def test_the_first_use_of_a_network_may_be_inside_a_transform() -> None:
    networks._index.cache_clear()
    network = networks.Convolutions(1, 2, 3, 1)
    y = network.initial(torch.Generator().manual_seed(0))
    inputs = torch.zeros(2, 6, 6, dtype=torch.float64)
    torch.func.grad(lambda y: network(y, inputs).sum())(y)
    assert network(y, inputs).shape == (2, 3)
    assert torch.func.grad(lambda y: network(y, inputs).sum())(y).shape == y.shape
