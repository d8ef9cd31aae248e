"""Data sets, partitions and the split into levels, each held against counts made here and against bad input."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedbilevel.data import DATASETS, PARTITIONS, Dataset, load, partition, split_levels
from fedbilevel.data.partitions import index_lists
from fedbilevel.errors import BadInput

Arrays = dict[str, NDArray[Any]]
LABELS = np.random.default_rng(7).integers(0, 10, 3000)
OWNERS = np.random.default_rng(8).integers(100, 160, 3000)
SHARED_FOLDER = os.environ.get("FEDBILEVEL_DATA", "")


@pytest.fixture(autouse=True)
def _no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDBILEVEL_DATA", raising=False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDBILEVEL_DATA", str(tmp_path))
    return tmp_path


def arrays(**changed: Any) -> Arrays:
    """Twelve small training examples of three classes and six for testing, with what is changed."""
    rng = np.random.default_rng(0)
    good: dict[str, Any] = {
        "x_train": rng.integers(0, 256, (12, 4, 4), dtype=np.uint8),
        "y_train": np.arange(12) % 3,
        "x_test": rng.integers(0, 256, (6, 4, 4), dtype=np.uint8),
        "y_test": np.arange(6) % 3,
    }
    return {key: value for key, value in {**good, **changed}.items() if value is not None}


def refused(call: Callable[[], object], key: str, *parts: str) -> str:
    """The one line of the BadInput that the call raises, which names the key and holds the parts."""
    with pytest.raises(BadInput) as caught:
        call()
    line = str(caught.value)
    assert caught.value.key == key
    assert "\n" not in line
    for part in parts:
        assert part in line
    return line


# Data sets


def test_digits() -> None:
    from sklearn.datasets import load_digits

    data = load("digits")
    assert data.x_train.shape == (1437, 8, 8)
    assert data.x_test.shape == (360, 8, 8)
    assert (data.x_train.dtype, data.y_train.dtype) == (np.float32, np.int64)
    assert (data.x_train.min(), data.x_train.max(), data.classes, data.owners) == (0, 1, 10, None)
    # Together the two parts are scikit-learn's examples, each with its label, and every class gives a fifth.
    images, labels = load_digits(return_X_y=True)
    whole = np.concatenate(
        [np.c_[data.x_train.reshape(-1, 64) * 16, data.y_train], np.c_[data.x_test.reshape(-1, 64) * 16, data.y_test]]
    )
    assert sorted(map(tuple, whole)) == sorted(map(tuple, np.c_[images, labels]))
    assert np.abs(np.bincount(data.y_test) - np.bincount(labels) / 5).max() < 1
    assert np.array_equal(load("digits").x_test, data.x_test)


def test_npz_is_read(folder: Path) -> None:
    raw = arrays(owners=np.array(["ada", "bob", "eve"] * 4))
    np.savez(folder / "mine.npz", **raw)
    data = load("mine")
    np.testing.assert_allclose(data.x_train, raw["x_train"].astype(float) / 255, rtol=1e-6)
    assert data.x_train.dtype == np.float32
    assert data.y_train.tolist() == raw["y_train"].tolist()
    assert data.y_test.dtype == np.int64
    assert (data.classes, data.name) == (3, "mine")
    assert data.owners is not None
    assert data.owners.tolist() == raw["owners"].tolist()


def test_floats_are_kept_as_they_are(folder: Path) -> None:
    x = np.linspace(-3, 700, 12 * 5).reshape(12, 5)
    np.savez_compressed(folder / "floats.npz", **arrays(x_train=x, x_test=x[:6]))
    assert np.array_equal(load("floats").x_train, x.astype(np.float32))


@pytest.mark.parametrize("name", ["mnist", "digits"])
def test_a_local_file_goes_before_every_other_source(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedbilevel.data.datasets._download", pytest.fail)
    monkeypatch.setattr("fedbilevel.data.datasets._digits", pytest.fail)
    np.savez(folder / f"{name}.npz", **arrays())
    assert load(name).x_train.shape == (12, 4, 4)


@pytest.mark.skipif(not (Path(SHARED_FOLDER) / "mnist.npz").is_file(), reason="no mnist.npz in $FEDBILEVEL_DATA")
def test_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDBILEVEL_DATA", SHARED_FOLDER)
    data = load("mnist")
    assert data.x_train.shape == (60_000, 28, 28)
    assert data.x_test.shape == (10_000, 28, 28)
    assert (data.x_train.min(), data.x_train.max(), data.classes) == (0, 1, 10)
    # The class counts and the pixel mean that are published for MNIST.
    assert np.bincount(data.y_train).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert data.x_train.mean(dtype=np.float64) == pytest.approx(0.1307, abs=1e-4)
    parts = partition(data.y_train, name="pathological", clients=100, seed=0)
    assert all(len(np.unique(data.y_train[part])) == 2 for part in parts)


def test_unknown_names(folder: Path) -> None:
    np.savez(folder / "birds.npz", **arrays())
    refused(lambda: load("mnits"), "data.name", *DATASETS, "birds", "did you mean 'mnist'?")
    refused(lambda: load("bird"), "data.name", "did you mean 'birds'?")


@pytest.mark.parametrize("name", ["", ".", "../birds", "birds.npz", "*"])
def test_a_name_is_no_path(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(folder / "birds.npz", **arrays())
    (folder / "inner").mkdir()
    monkeypatch.setenv("FEDBILEVEL_DATA", str(folder / "inner"))
    refused(lambda: load(name), "data.name", "allowed: cifar10")


@pytest.mark.parametrize("inner", ["absent", "file"])
def test_folder_that_is_none(inner: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "file").touch()
    monkeypatch.setenv("FEDBILEVEL_DATA", str(folder / inner))
    refused(lambda: load("digits"), "FEDBILEVEL_DATA", inner, "a folder that exists")


def test_empty_folder_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDBILEVEL_DATA", "")
    assert load("digits").classes == 10


X, Y = arrays()["x_train"], arrays()["y_train"]


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"y_test": None}, "absent: y_test"),
        ({"x_train": None, "y_train": None}, "absent: x_train, y_train"),
        ({"y_train": Y[:-1]}, "x_train has 12 and y_train 11"),
        ({"x_test": X[:5]}, "x_test has 5 and y_test 6"),
        ({"y_train": Y.astype(float)}, "y_train of integers, not float64"),
        ({"y_test": np.array(list("abcabc"))}, "y_test of integers"),
        ({"y_train": Y == 1}, "y_train of integers, not bool"),
        ({"y_train": Y[:, None]}, "y_train of shape [n], not [12, 1]"),
        ({"y_train": np.array(3)}, "y_train of shape [n], not []"),
        ({"y_train": Y - 1}, "y_train goes from -1 to 1"),
        ({"y_train": Y.astype(np.uint64) * 2**62}, "y_train goes from 0 to 9223372036854775808"),
        ({"y_test": np.array([0, 1, 2, 3, 0, 1])}, "which [3] do not"),
        ({"y_train": Y * 2, "y_test": Y[:6]}, "which [1] do not"),
        ({"x_train": np.where(X > 200, np.nan, X)}, "x_train holds NaN"),
        ({"x_test": np.full((6, 4, 4), 1e300)}, "x_test holds NaN or infinity"),
        ({"x_train": X[:0], "y_train": Y[:0]}, "nowhere empty, not [0, 4, 4]"),
        ({"x_train": X[:, :0]}, "nowhere empty, not [12, 0, 4]"),
        ({"x_train": X[:, 0, 0]}, "x_train of shape [n, *shape]"),
        ({"x_test": X[:6, :3]}, "x_train has (4, 4) and x_test (3, 4)"),
        ({"x_train": X.astype(np.int64)}, "x_train of uint8 (divided by 255) or floats, not int64"),
        ({"x_train": X.astype(complex)}, "not complex128"),
        ({"owners": np.arange(11)}, "owners of integers or strings, one per training example"),
        ({"owners": np.arange(12.0)}, "not float64"),
    ],
)
def test_unusable_arrays(changed: dict[str, Any], part: str, folder: Path) -> None:
    np.savez(folder / "bad.npz", **arrays(**changed))
    refused(lambda: load("bad"), "data.name", "'bad'", part, "bad.npz")


class Trap:
    """Unpickling one of these leaves a trace."""

    sprung = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (setattr, (Trap, "sprung", True))


def test_pickled_objects_are_never_opened(folder: Path) -> None:
    np.savez(folder / "trap.npz", **arrays(y_train=np.array([Trap()] * 12, dtype=object)))
    refused(lambda: load("trap"), "data.name", "trap.npz", "allow_pickle=False")
    np.save(folder / "trap", np.array([Trap()], dtype=object), allow_pickle=True)
    (folder / "trap.npy").replace(folder / "trap.npz")
    refused(lambda: load("trap"), "data.name", "no zip file")
    assert not Trap.sprung


def test_files_that_are_no_npz(folder: Path) -> None:
    for name, content in {"empty": b"", "text": b"x_train,y_train\n", "bytes": bytes(range(256)) * 40}.items():
        (folder / f"{name}.npz").write_bytes(content)
        refused(lambda name=name: load(name), "data.name", f"{name}.npz", "no zip file")
    with zipfile.ZipFile(folder / "readme.npz", "w") as archive:
        archive.writestr("README", "no arrays here")
    refused(lambda: load("readme"), "data.name", "absent: x_train, y_train, x_test, y_test")
    with zipfile.ZipFile(folder / "hollow.npz", "w") as archive:
        for key in arrays():
            archive.writestr(f"{key}.npy", b"no array in it")
    refused(lambda: load("hollow"), "data.name", "hollow.npz")
    (folder / "inner.npz").mkdir()
    refused(lambda: load("inner"), "data.name", "IsADirectoryError")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_truncated_file_is_refused(save: Callable[..., None], folder: Path) -> None:
    path = folder / "cut.npz"
    save(path, **arrays())
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        refused(lambda: load("cut"), "data.name", "cut.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_bytes_are_refused_or_harmless(save: Callable[..., None], folder: Path) -> None:
    """Whatever bytes are overwritten: the file is refused, or the data are still exactly those that were saved."""
    path = folder / "hit.npz"
    save(path, **arrays())
    whole, good = path.read_bytes(), load("hit")
    rng = np.random.default_rng(3)
    refusals = 0
    for _ in range(300):
        hit = bytearray(whole)
        start, width = int(rng.integers(len(whole))), int(rng.integers(1, 9))
        hit[start : start + width] = rng.bytes(width)
        path.write_bytes(hit[: len(whole)])
        try:
            data = load("hit")
        except BadInput:
            refusals += 1
        else:
            assert np.array_equal(data.x_train, good.x_train)
            assert np.array_equal(data.y_test, good.y_test)
    assert refusals > 100


# Downloads, which are never made here


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A Hub that is reachable and gives what stands here under a repository's name, or fails as is said here."""
    import datasets
    import huggingface_hub

    content: dict[str, Any] = {"offline": False, "asked_offline": None}

    def dataset_info(self: object, repository: str, **_: object) -> None:
        if content["offline"]:
            raise OSError("Name or\nservice not known")

    def load_dataset(repository: str) -> Any:
        content["asked_offline"] = datasets.config.HF_HUB_OFFLINE and huggingface_hub.constants.HF_HUB_OFFLINE
        if repository not in content:
            raise ConnectionError(f"Couldn't reach {repository!r} on the Hub")
        return content[repository]

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return content


def images(pixels: NDArray[np.uint8], image: str, **columns: NDArray[Any]) -> Any:
    """A Hugging Face data set of encoded images."""
    import datasets
    from PIL import Image

    features = datasets.Features(
        {
            image: datasets.Image(),
            **{key: datasets.Value("string" if of.dtype.kind == "U" else "int64") for key, of in columns.items()},
        }
    )
    rows = {image: [Image.fromarray(of) for of in pixels], **{key: of.tolist() for key, of in columns.items()}}
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize(
    ("name", "repository", "image", "shape"),
    [
        ("mnist", "ylecun/mnist", "image", (28, 28)),
        ("fashion_mnist", "zalando-datasets/fashion_mnist", "image", (28, 28)),
        ("cifar10", "uoft-cs/cifar10", "img", (32, 32, 3)),
    ],
)
def test_download(name: str, repository: str, image: str, shape: tuple[int, ...], hub: dict[str, Any]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, *shape), dtype=np.uint8)
    labels = np.arange(30) % 10
    hub[repository] = {
        "train": images(pixels[:20], image, label=labels[:20]),
        "test": images(pixels[20:], image, label=labels[20:]),
    }
    data = load(name)
    np.testing.assert_allclose(data.x_train, pixels[:20] / 255, rtol=1e-6)
    np.testing.assert_allclose(data.x_test, pixels[20:] / 255, rtol=1e-6)
    assert data.y_train.tolist() == labels[:20].tolist()
    assert (data.x_train.dtype, data.y_test.dtype, data.classes) == (np.float32, np.int64, 10)
    assert hub["asked_offline"] is False


def test_femnist_holds_out_a_tenth_of_every_writer(hub: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (100, 28, 28), dtype=np.uint8)
    writers = rng.permutation(np.array(["f1"] * 50 + ["f2"] * 31 + ["f3"] * 19))
    labels = np.arange(100) % 4
    hub["flwrlabs/femnist"] = {"train": images(pixels, "image", writer_id=writers, character=labels)}
    data = load("femnist")
    assert data.owners is not None
    counts = dict(zip(*np.unique(data.owners, return_counts=True), strict=True))
    assert counts == {"f1": 45, "f2": 28, "f3": 18}  # less 5, 3 and 1: a tenth, rounded down
    # Every example is in one part, still with its label and writer.
    original = {pixel.tobytes(): n for n, pixel in enumerate((pixels / np.float32(255)).astype(np.float32))}
    train, test = ([original[pixel.tobytes()] for pixel in x] for x in (data.x_train, data.x_test))
    assert sorted(train + test) == list(range(100))
    assert data.owners.tolist() == writers[train].tolist()
    assert data.y_train.tolist() == labels[train].tolist()
    assert data.y_test.tolist() == labels[test].tolist()
    assert np.array_equal(load("femnist").x_test, data.x_test)


def test_offline_is_one_line(
    hub: dict[str, Any], folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    hub["offline"] = True
    parts = ("mnist.npz", "ylecun/mnist", "Name or service not known", "FEDBILEVEL_DATA", "digits")
    refused(lambda: load("mnist"), "data.name", *parts, str(folder))
    monkeypatch.delenv("FEDBILEVEL_DATA")
    refused(lambda: load("mnist"), "data.name", *parts, "set FEDBILEVEL_DATA")
    assert hub["asked_offline"] is True  # no second, slow attempt on the network
    assert datasets.config.HF_HUB_OFFLINE is False or os.environ.get("HF_HUB_OFFLINE")
    assert capfd.readouterr() == ("", "")


def test_offline_takes_what_was_downloaded_before(hub: dict[str, Any]) -> None:
    split = images(np.zeros((4, 28, 28), np.uint8), "image", label=np.array([0, 1, 0, 1]))
    hub.update({"offline": True, "ylecun/mnist": {"train": split, "test": split}})
    assert load("mnist").x_train.shape == (4, 28, 28)


def test_download_that_breaks_off(hub: dict[str, Any]) -> None:
    refused(lambda: load("cifar10"), "data.name", "uoft-cs/cifar10", "ConnectionError: Couldn't reach")


def test_the_real_libraries_fail_fast_and_quietly(tmp_path: Path) -> None:
    """Behind an address where no one listens, and without a cache, in a process of its own."""
    script = (
        "import time; from fedbilevel.data import load; import datasets\n"
        "start = time.monotonic()\n"
        "try: load('mnist')\n"
        "except ValueError as error: print(error)\n"
        "print(time.monotonic() - start)"
    )
    environment = {
        **{key: value for key, value in os.environ.items() if "proxy" not in key.lower()},
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=100
    )
    line, seconds = done.stdout.splitlines()
    assert line.startswith("data.name: got 'mnist'; allowed: a data set at hand")
    assert float(seconds) < 15
    assert done.stderr == ""


# Partitions

CASES: list[tuple[str, dict[str, Any]]] = [
    ("iid", {}),
    ("dirichlet", {}),
    ("dirichlet", {"alpha": 5, "min_size": 40}),
    ("pathological", {}),
    ("pathological", {"classes_per_client": 10}),
    ("shards", {}),
    ("shards", {"shards_per_client": 7}),
    ("size_skew", {}),
    ("size_skew", {"power": 3}),
    ("natural", {}),
]


def parts_of(name: str, clients: int = 20, seed: int = 0, **parameters: Any) -> list[NDArray[np.int64]]:
    return partition(LABELS, name=name, clients=clients, seed=seed, owners=OWNERS, **parameters)


def fingerprint() -> str:
    """Of every case, in one number."""
    digest = hashlib.sha256()
    for name, parameters in CASES:
        lower, upper = split_levels(parts_of(name, **parameters), validation=0.25, seed=5)
        for part in [*lower, *upper]:
            digest.update(part.tobytes() + b"|")
    return digest.hexdigest()


def test_every_partition_is_a_case() -> None:
    assert {name for name, _ in CASES} == set(PARTITIONS)


@pytest.mark.parametrize(("name", "parameters"), CASES)
def test_contract(name: str, parameters: dict[str, Any]) -> None:
    states = random.getstate(), np.random.get_state()[1].copy()
    parts = parts_of(name, **parameters)
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert len(parts) == 20
    for part in parts:
        assert part.dtype == np.int64
        assert len(part) >= 2
        assert np.all(np.diff(part) > 0)
    every = np.concatenate(parts)
    assert len(np.unique(every)) == len(every)
    assert every.min() >= 0
    assert every.max() < len(LABELS)
    if name == "shards":  # drops what does not fill a shard
        shards = 20 * parameters.get("shards_per_client", 2)
        assert len(every) == len(LABELS) // shards * shards
    elif name != "natural":
        assert len(every) == len(LABELS)
    again, other = parts_of(name, **parameters), parts_of(name, seed=1, **parameters)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(parts, other, strict=True))


def test_equal_in_another_process() -> None:
    script = f"import runpy; print(runpy.run_path({__file__!r})['fingerprint']())"
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=100,
        )
        assert done.stdout.strip() == fingerprint()
        assert done.stderr == ""


def test_the_first_imports_leave_the_global_state_alone() -> None:
    """Libraries draw from `random` while they are imported, so a process is needed that has not imported them."""
    script = (
        "import random\n"
        "from fedbilevel.data import load, partition\n"
        "before = random.getstate()\n"
        "data = load('digits')\n"
        "assert random.getstate() == before\n"
        "partition(data.y_train, name='iid', clients=3, seed=0)\n"
        "assert random.getstate() == before\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    for name, parameters in CASES:
        parts_of(name, **parameters)
    assert capfd.readouterr() == ("", "")


def distance(parts: list[NDArray[np.int64]], labels: NDArray[np.int64] = LABELS) -> float:
    """Mean total variation between a client's class shares and those of the whole."""
    whole = np.bincount(labels, minlength=10) / len(labels)
    shares = [np.bincount(labels[part], minlength=10) / len(part) for part in parts]
    return float(np.mean([np.abs(share - whole).sum() / 2 for share in shares]))


def test_iid_is_even_and_alike() -> None:
    parts = parts_of("iid", clients=7)
    assert sorted({len(part) for part in parts}) == [428, 429]
    assert distance(parts) < 0.1


def test_iid_cuts_as_flower_does() -> None:
    from datasets import Dataset as HuggingFaceDataset
    from flwr_datasets.partitioner import IidPartitioner, SizePartitioner

    theirs = IidPartitioner(7)
    theirs.dataset = HuggingFaceDataset.from_dict({"row": np.arange(100)})
    rows = [list(theirs.load_partition(client)["row"]) for client in range(7)]
    assert [
        part.tolist() for part in index_lists(SizePartitioner([len(row) for row in rows]), np.zeros(100, int))
    ] == rows
    sizes = sorted((len(part) for part in partition(np.zeros(100, int), name="iid", clients=7, seed=0)), reverse=True)
    assert sizes == [len(row) for row in rows]


@pytest.mark.parametrize("kind", ["dirichlet", "pathological", "shards", "size", "natural"])
def test_index_lists_are_those_of_the_public_interface(kind: str) -> None:
    """The private attribute that is read at once holds what `load_partition` gives client by client."""
    from datasets import Dataset as HuggingFaceDataset
    from flwr_datasets import partitioner as flower

    def make() -> Any:
        return {
            "dirichlet": lambda: flower.DirichletPartitioner(6, "label", 0.5, 2),
            "pathological": lambda: flower.PathologicalPartitioner(6, "label", 4, "first-deterministic"),
            "shards": lambda: flower.ShardPartitioner(6, "label", 3),
            "size": lambda: flower.SizePartitioner([500] * 6),
            "natural": lambda: flower.NaturalIdPartitioner("label"),
        }[kind]()

    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        public = make()
        public.dataset = HuggingFaceDataset.from_dict({"label": LABELS, "row": np.arange(3000)})
        public.load_partition(0)
        rows = [list(public.load_partition(client)["row"]) for client in range(public.num_partitions)]
    assert [part.tolist() for part in index_lists(make(), LABELS)] == rows


def test_dirichlet_grows_more_uneven_as_alpha_falls() -> None:
    """Ten equal classes: a client's shares spread with variance p (1 - p) / (1 + 10 alpha) at about equal sizes."""
    distances = [
        np.mean([distance(parts_of("dirichlet", clients=10, seed=seed, alpha=alpha)) for seed in range(5)])
        for alpha in (100, 1, 0.3, 0.1)
    ]
    assert distances == sorted(distances)
    assert distances[0] < 0.12 < 0.3 < distances[1] < distances[3]
    assert distances[3] > 0.6


def test_dirichlet_keeps_its_least_size() -> None:
    assert min(map(len, parts_of("dirichlet", alpha=1.0, min_size=60))) >= 60


@pytest.mark.parametrize("alpha", [1e-3, 1e6])
def test_dirichlet_at_its_limits(alpha: float) -> None:
    parts = parts_of("dirichlet", clients=2, seed=3, alpha=alpha)
    assert len(np.concatenate(parts)) == 3000
    assert (distance(parts) < 0.01) == (alpha > 1)


@pytest.mark.parametrize(("clients", "classes"), [(10, 1), (10, 3), (25, 2), (3, 10)])
def test_pathological_counts(clients: int, classes: int) -> None:
    parts = parts_of("pathological", clients=clients, classes_per_client=classes)
    held = np.array([np.bincount(LABELS[part], minlength=10) for part in parts])
    assert np.all((held > 0).sum(axis=1) == classes)
    # The clients that share a class share it evenly, and all of it.
    assert np.array_equal(held.sum(axis=0), np.bincount(LABELS))
    for column in held.T:
        assert np.ptp(column[column > 0]) <= 1


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_shards_counts(shards: int) -> None:
    """Examples sorted by class and cut into equal shards: each shard holds one class, or two neighbours at a border."""
    labels = np.repeat(np.arange(10), 300)[np.random.default_rng(0).permutation(3000)]
    parts = partition(labels, name="shards", clients=10, seed=0, shards_per_client=shards)
    held = np.array([np.bincount(labels[part], minlength=10) for part in parts])
    assert np.all(held.sum(axis=1) == 300)
    assert np.all(held % (300 // shards) == 0)  # 300 examples per class: no shard crosses a border
    assert np.all((held > 0).sum(axis=1) <= shards)


def test_size_skew_follows_the_power() -> None:
    for power in (0.0, 1.0, 2.0):
        sizes = np.array([len(part) for part in parts_of("size_skew", clients=20, power=power)])
        wanted = np.arange(1, 21) ** power
        wanted = 2 + (3000 - 40) * wanted / wanted.sum()
        assert np.all(np.abs(sizes - wanted)[:-1] < 1)
        assert sizes.sum() == 3000
    big = parts_of("size_skew", clients=20, power=1.0)[10:]
    assert distance(big) < 0.15  # sizes differ, classes do not


def test_size_skew_leaves_every_client_two() -> None:
    assert min(map(len, parts_of("size_skew", clients=1500, power=10))) == 2


@pytest.mark.parametrize("names", [OWNERS, np.char.add("writer ", OWNERS.astype(str))])
def test_natural_clients_are_owners(names: NDArray[Any]) -> None:
    everyone = partition(LABELS, name="natural", clients=60, seed=0, owners=names)
    for owner, part in zip(np.unique(names), everyone, strict=True):
        assert np.array_equal(part, np.flatnonzero(names == owner))
    some = partition(LABELS, name="natural", clients=12, seed=0, owners=names)
    assert all(any(np.array_equal(part, other) for other in everyone) for part in some)


def test_natural_passes_over_owners_of_one_example() -> None:
    owners = np.array([3, 1, 1, 2, 2, 2])
    parts = partition(np.zeros(6, int), name="natural", clients=2, seed=0, owners=owners)
    assert [part.tolist() for part in parts] == [[1, 2], [3, 4, 5]]
    refused(
        lambda: partition(np.zeros(6, int), name="natural", clients=3, seed=0, owners=owners),
        "data.clients",
        "at most 2",
    )


@pytest.mark.parametrize(
    ("name", "changed", "key", "part"),
    [
        ("dirichlett", {}, "data.partition", "did you mean 'dirichlet'?"),
        ("natural", {"owners": None}, "data.partition", "these data name no owners"),
        ("iid", {"alpha": 0.3}, "data.alpha", "partition iid takes no parameters"),
        ("dirichlet", {"shards_per_client": 2}, "data.shards_per_client", "dirichlet takes alpha, min_size"),
        ("iid", {"clients": 0}, "data.clients", "an integer from 1"),
        ("iid", {"clients": 2.0}, "data.clients", "an integer from 1"),
        ("iid", {"clients": True}, "data.clients", "an integer from 1"),
        ("iid", {"clients": 1501}, "data.clients", "at most 1500"),
        ("natural", {"clients": 61}, "data.clients", "at most 60"),
        ("iid", {"seed": -1}, "seed", "an integer from 0"),
        ("iid", {"seed": 2**64}, "seed", "an integer from 0"),
        ("dirichlet", {"alpha": 0}, "data.alpha", "a number from 0.001"),
        ("dirichlet", {"alpha": float("nan")}, "data.alpha", "a number from 0.001"),
        ("dirichlet", {"alpha": float("inf")}, "data.alpha", "a number from 0.001"),
        ("dirichlet", {"alpha": "0.3"}, "data.alpha", "a number from 0.001"),
        ("dirichlet", {"alpha": [0.3]}, "data.alpha", "a number from 0.001"),
        ("dirichlet", {"min_size": 1}, "data.min_size", "an integer from 2"),
        ("dirichlet", {"min_size": 151}, "data.min_size", "at most 150"),
        ("dirichlet", {"alpha": 0.01, "clients": 200}, "data.alpha", "in eleven draws"),
        ("pathological", {"classes_per_client": 0}, "data.classes_per_client", "an integer from 1"),
        ("pathological", {"classes_per_client": 1.5}, "data.classes_per_client", "an integer from 1"),
        ("pathological", {"classes_per_client": 11}, "data.classes_per_client", "at most 10"),
        (
            "pathological",
            {"classes_per_client": 2, "clients": 3},
            "data.classes_per_client",
            "no one holds the classes",
        ),
        ("pathological", {"classes_per_client": 10, "clients": 400}, "data.clients", "more clients share a class"),
        ("pathological", {"classes_per_client": 1, "clients": 1500}, "data.classes_per_client", "has 1 examples"),
        ("shards", {"shards_per_client": -1}, "data.shards_per_client", "an integer from 1"),
        ("shards", {"shards_per_client": 151}, "data.shards_per_client", "at most 150"),
        ("size_skew", {"power": -1}, "data.power", "a number from 0"),
        ("size_skew", {"power": 11}, "data.power", "a number from 0.0 to 10"),
    ],
)
def test_what_a_partition_refuses(name: str, changed: dict[str, Any], key: str, part: str) -> None:
    arguments: dict[str, Any] = {"name": name, "clients": 20, "seed": 0, "owners": OWNERS, **changed}
    refused(lambda: partition(LABELS, **arguments), key, part)


def test_the_limits_that_errors_name_are_right() -> None:
    assert len(parts_of("iid", clients=1500)) == 1500
    assert len(parts_of("shards", shards_per_client=150)) == 20
    assert len(parts_of("natural", clients=60)) == 60


def test_hundred_clients_over_sixty_thousand_labels_are_quick() -> None:
    import time

    labels = np.random.default_rng(0).integers(0, 10, 60_000)
    parts_of("dirichlet")  # the imports
    start = time.process_time()
    for name in ("iid", "dirichlet", "pathological", "shards", "size_skew"):
        assert len(partition(labels, name=name, clients=100, seed=0)) == 100
    assert time.process_time() - start < 5


# The two levels


@pytest.mark.parametrize("validation", [0.001, 0.2, 0.5, 0.999])
def test_split_levels(validation: float) -> None:
    indices = [*parts_of("size_skew", clients=60), np.array([5, 9])]
    lower, upper = split_levels(indices, validation=validation, seed=3)
    for mine, low, up in zip(indices, lower, upper, strict=True):
        assert sorted([*low, *up]) == mine.tolist()
        assert len(low) >= 1
        assert len(up) >= 1
        assert abs(len(up) - min(max(validation * len(mine), 1), len(mine) - 1)) <= 0.5
        assert low.dtype == up.dtype == np.int64


def test_split_levels_draws() -> None:
    """One client's draw depends on the seed and on its number, and not on the other clients."""
    indices = [np.arange(50)] * 3
    lower, upper = split_levels(indices, validation=0.4, seed=1)
    alone, _ = split_levels(indices[:1], validation=0.4, seed=1)
    other, _ = split_levels(indices, validation=0.4, seed=2)
    assert np.array_equal(lower[0], alone[0])
    assert not np.array_equal(lower[0], lower[1])
    assert not np.array_equal(lower[0], other[0])
    assert upper[0].tolist() != sorted(upper[0])


def test_both_levels_hold_the_classes_alike() -> None:
    """Even where a client's examples stand sorted by class; without a shuffle the distance would be 1."""
    parts = np.split(np.argsort(LABELS, kind="stable"), 2)
    for low, up in zip(*split_levels(parts, validation=0.5, seed=0), strict=True):
        share = [np.bincount(LABELS[part], minlength=10) / len(part) for part in (low, up)]
        assert np.abs(share[0] - share[1]).sum() / 2 < 0.1


@pytest.mark.parametrize("validation", [0, 1, 1.0, -0.1, 2, float("nan"), True, "0.5", None])
def test_split_levels_refuses_shares(validation: Any) -> None:
    refused(lambda: split_levels([np.arange(4)], validation=validation, seed=0), "data.validation", "between 0 and 1")


def test_split_levels_refuses_a_client_of_one_example() -> None:
    refused(
        lambda: split_levels([np.arange(4), np.arange(1)], validation=0.5, seed=0), "data.clients", "client 1 has 1"
    )


def test_a_data_set_is_frozen() -> None:
    data = load("digits")
    assert isinstance(data, Dataset)
    with pytest.raises(AttributeError):
        data.classes = 3
