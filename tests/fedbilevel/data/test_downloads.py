"""Downloads, which are never made here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedbilevel.data import load
from tests.datasets import refused


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
