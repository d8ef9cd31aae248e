"""Data sets by name and from files, good, unusable and damaged."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedbilevel.data import DATASETS, Dataset, load, partition
from fedbilevel.errors import BadInput
from tests.datasets import arrays, refused

SHARED_FOLDER = os.environ.get("FEDBILEVEL_DATA", "")


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


def test_a_data_set_is_frozen() -> None:
    data = load("digits")
    assert isinstance(data, Dataset)
    with pytest.raises(AttributeError):
        data.classes = 3
