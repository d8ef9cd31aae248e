"""Data sets by name: scikit-learn's digits, npz files of the user, and Hugging Face downloads.

A file `NAME.npz` in the folder `$FEDBILEVEL_DATA` goes first and needs no network.
Heavy imports stand inside functions.
"""

from __future__ import annotations

import logging
import os
import random
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedbilevel.errors import BadInput, unknown

FOLDER = "FEDBILEVEL_DATA"
ARRAYS = ("x_train", "y_train", "x_test", "y_test")
MOST_CLASSES = 1_000_000  # a larger label is no class, and a head of that size would not fit in memory
HELD_OUT = 0.1  # of every owner's examples, where a source has no test split
PROBE_SECONDS = 5.0

DATASETS: dict[str, str] = {
    "digits": "1,797 handwritten digits of 8x8 pixels, 10 classes; ships with scikit-learn (the default)",
    "mnist": "70,000 handwritten digits of 28x28 pixels, 10 classes; downloaded from ylecun/mnist",
    "fashion_mnist": "70,000 clothes of 28x28 pixels, 10 classes; downloaded from zalando-datasets/fashion_mnist",
    "cifar10": "60,000 colour photographs of 32x32x3 pixels, 10 classes; downloaded from uoft-cs/cifar10",
    "femnist": "814,277 characters of 28x28 pixels by 3,597 writers, 62 classes; downloaded from flwrlabs/femnist",
}
"""The built-in data sets, one line each; `load` also knows every `NAME.npz` in `$FEDBILEVEL_DATA`."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled examples, split for training and for testing.

    Attributes:
        name: the name it was loaded by.
        x_train: float32 [n, *shape]; uint8 images scaled to [0, 1], floats as they were given.
        y_train: int64 [n], from 0 to below `classes`.
        x_test: float32 [m, *shape].
        y_test: int64 [m]; no class that is absent from `y_train`.
        classes: the number of classes, the largest training label + 1.
        owners: [n] the natural client of every training example (integers or strings), where the data have one.
    """

    name: str
    x_train: NDArray[np.float32]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int64]
    classes: int
    owners: NDArray[Any] | None = None


@dataclass(frozen=True)
class _Hub:
    """Where a data set lies on the Hugging Face Hub, and what its columns are called."""

    repository: str
    image: str
    label: str
    owner: str | None = None


_HUB = {
    "mnist": _Hub("ylecun/mnist", "image", "label"),
    "fashion_mnist": _Hub("zalando-datasets/fashion_mnist", "image", "label"),
    "cifar10": _Hub("uoft-cs/cifar10", "img", "label"),
    "femnist": _Hub("flwrlabs/femnist", "image", "character", "writer_id"),
}


@contextmanager
def random_untouched() -> Iterator[None]:
    """Leave Python's global random state as it was: libraries draw from it while they are being imported."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


@random_untouched()
def load(name: str) -> Dataset:
    """The data set of that name: an npz file in `$FEDBILEVEL_DATA`, else a built-in one.

    An npz file holds x_train, y_train, x_test and y_test, and may hold owners (one per training example).

    Raises:
        BadInput: the name is unknown, the file cannot be used, or the download failed.

    >>> digits = load("digits")
    >>> digits.x_train.shape, digits.x_test.shape, digits.classes
    ((1437, 8, 8), (360, 8, 8), 10)
    """
    files = local_files()
    if name in files:
        return _from_arrays(name, read_arrays("data.name", name, files[name], (*ARRAYS, "owners")), str(files[name]))
    if name == "digits":
        return _digits()
    if name in _HUB:
        return _download(name, _HUB[name])
    raise unknown("data.name", name, {*DATASETS, *files})


def local_files() -> dict[str, Path]:
    """The npz files of `$FEDBILEVEL_DATA` by name; none where it is not set."""
    value = os.environ.get(FOLDER)
    if not value:
        return {}
    folder = Path(value).expanduser()
    if not folder.is_dir():
        raise BadInput(FOLDER, value, "a folder that exists, or not set")
    return {path.stem: path for path in sorted(folder.glob("*.npz"))}


def read_arrays(setting: str, name: str, path: Path, keys: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Those of some arrays that an npz file has. Pickled objects are never opened: they could run code.

    Raises:
        BadInput: the file cannot be read; its key is `setting`.
    """
    try:
        # Without this numpy takes a file that is no zip for a pickle and says so.
        if path.is_file() and not zipfile.is_zipfile(path):
            raise ValueError("it is no zip file, or it was cut short")
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with np.load(file, allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in keys if key in archive.files}
        for key, array in arrays.items():
            if not isinstance(array, np.ndarray):  # numpy hands out a member without its magic number as bytes
                raise ValueError(f"{key} is no array")
        return arrays
    except Exception as error:  # on a mangled file zipfile, zlib and numpy raise almost anything
        raise BadInput(setting, name, f"a readable npz file, which {path} is not ({reason(error)})") from error


def _from_arrays(name: str, arrays: Mapping[str, NDArray[Any]], source: str) -> Dataset:
    """A data set of raw arrays, or the error that says what is wrong with them."""

    def require(good: bool, allowed: str) -> None:
        if not good:
            raise BadInput("data.name", name, f"{allowed}; in {source}")

    missing = [key for key in ARRAYS if key not in arrays]
    require(not missing, f"an npz file with the arrays {', '.join(ARRAYS)}; absent: {', '.join(missing)}")
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        require(
            x.dtype == np.uint8 or x.dtype.kind == "f", f"x_{part} of uint8 (divided by 255) or floats, not {x.dtype}"
        )
        require(x.ndim >= 2 and x.size > 0, f"x_{part} of shape [n, *shape], nowhere empty, not {list(x.shape)}")
        require(y.dtype.kind in "iu", f"y_{part} of integers, not {y.dtype}")
        require(y.ndim == 1, f"y_{part} of shape [n], not {list(y.shape)}")
        require(len(x) == len(y), f"as many labels as examples, where x_{part} has {len(x)} and y_{part} {len(y)}")
        least, most = int(y.min()), int(y.max())
        require(
            least >= 0 and most < MOST_CLASSES,
            f"labels from 0 to below {MOST_CLASSES}, where y_{part} goes from {least} to {most}",
        )
    shapes = [arrays[key].shape[1:] for key in ("x_train", "x_test")]
    require(shapes[0] == shapes[1], f"examples of one shape, where x_train has {shapes[0]} and x_test {shapes[1]}")
    y_train, y_test = (arrays[key].astype(np.int64) for key in ("y_train", "y_test"))
    strangers = np.setdiff1d(y_test, y_train)
    require(not strangers.size, f"test labels that occur in y_train, which {strangers[:5].tolist()} do not")
    owners = arrays.get("owners")
    if owners is not None:
        require(
            owners.dtype.kind in "iuU" and owners.shape == y_train.shape,
            f"owners of integers or strings, one per training example, not {owners.dtype} {list(owners.shape)}",
        )
    x_train, x_test = (pixels_of(arrays[key]) for key in ("x_train", "x_test"))
    for part, pixels in (("train", x_train), ("test", x_test)):
        require(bool(np.isfinite(pixels).all()), f"finite numbers, where x_{part} holds NaN or infinity (as float32)")
    return Dataset(name, x_train, y_train, x_test, y_test, int(y_train.max()) + 1, owners)


def pixels_of(x: NDArray[Any]) -> NDArray[np.float32]:
    """Examples as float32; uint8 images are scaled to [0, 1]."""
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite then, and refused
        pixels = x.astype(np.float32)
    if x.dtype == np.uint8:
        pixels /= 255
    return pixels


def _digits() -> Dataset:
    """scikit-learn's digits: 16 grey levels; 20 % of every class is held out, always the same."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        (images / 16).reshape(-1, 8, 8), labels, test_size=0.2, stratify=labels, random_state=0
    )
    arrays = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    return _from_arrays("digits", arrays, "scikit-learn")


def _download(name: str, hub: _Hub) -> Dataset:
    """A data set of the Hugging Face Hub, from its cache where it was downloaded before."""
    import datasets
    import huggingface_hub

    unreachable = ""
    with quiet():
        try:
            # One request without retries: a download without a network would retry for half a minute.
            huggingface_hub.HfApi().dataset_info(hub.repository, timeout=PROBE_SECONDS)
        except Exception as error:  # whatever the client raises, the cache may still hold the data
            unreachable = reason(error)
        try:
            with _cache_only(bool(unreachable)):
                arrays = _columns(datasets.load_dataset(hub.repository), hub)
        except Exception as error:  # network, disk, checksums, decoding: the library raises almost anything
            why = unreachable or reason(error)
            raise BadInput("data.name", name, absent(name, hub.repository, why)) from error
    return _from_arrays(name, arrays, hub.repository)


def absent(name: str, source: str, why: str) -> str:
    """What is allowed where a download failed."""
    where = f"set {FOLDER} to a folder with {name}.npz"
    if os.environ.get(FOLDER):
        where = f"put {name}.npz into {FOLDER} ({os.environ[FOLDER]})"
    return (
        f"a data set at hand, but there is no local {name}.npz and the download of {source} failed "
        f"({why}); {where}, or take digits, which needs no network"
    )


def _columns(splits: Mapping[str, Any], hub: _Hub) -> dict[str, NDArray[Any]]:
    """The raw arrays of a downloaded data set; without a test split, a tenth of every owner's examples is held out."""
    arrays: dict[str, NDArray[Any]] = {}
    for part in ("train", "test"):
        if part in splits:
            images = splits[part].select_columns([hub.image]).with_format("numpy")
            arrays[f"x_{part}"] = np.concatenate([batch[hub.image] for batch in images.iter(1000)])
            arrays[f"y_{part}"] = _column(splits[part], hub.label)
    if hub.owner is not None:
        arrays["owners"] = _column(splits["train"], hub.owner)
    if "test" not in splits:
        owners = arrays.get("owners", np.zeros(len(arrays["y_train"]), np.int64))
        test = _held_out(owners)
        for axis in ("x", "y"):
            whole = arrays[f"{axis}_train"]
            arrays[f"{axis}_train"], arrays[f"{axis}_test"] = whole[~test], whole[test]
        if "owners" in arrays:
            arrays["owners"] = owners[~test]
    return arrays


def _column(split: Any, name: str) -> NDArray[Any]:
    """One column of numbers or strings."""
    return np.array(split.select_columns([name]).with_format("arrow")[:][name].to_pylist())


def _held_out(owners: NDArray[Any]) -> NDArray[np.bool_]:
    """Which examples are for testing: of every owner the same share (rounded down), drawn with a fixed seed."""
    _, owner, counts = np.unique(owners, return_inverse=True, return_counts=True)
    order = np.lexsort((np.random.default_rng(0).random(len(owners)), owner))  # owner by owner, shuffled within
    starts = np.cumsum(counts) - counts
    place = np.arange(len(owners)) - starts[owner[order]]
    test = np.zeros(len(owners), np.bool_)
    test[order] = place < np.floor(HELD_OUT * counts)[owner[order]]
    return test


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the Hub's warnings and log lines: what matters in them is said by the error."""
    from datasets.utils import logging as of_datasets
    from huggingface_hub.utils import logging as of_hub

    before = of_datasets.get_verbosity(), of_hub.get_verbosity()
    of_datasets.set_verbosity_error()
    of_hub.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        of_datasets.set_verbosity(before[0])
        of_hub.set_verbosity(before[1])


@contextmanager
def _cache_only(wanted: bool) -> Iterator[None]:
    """Where wanted, the libraries look into their cache and send nothing; they offer no argument for it."""
    import datasets.config
    import huggingface_hub.constants

    switches: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [switch.HF_HUB_OFFLINE for switch in switches]
    try:
        for switch in switches:
            switch.HF_HUB_OFFLINE = wanted or switch.HF_HUB_OFFLINE
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.HF_HUB_OFFLINE = value


def reason(error: BaseException) -> str:
    """An error in a few words of one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")
    return text if len(text) <= 160 else text[:157] + "..."
