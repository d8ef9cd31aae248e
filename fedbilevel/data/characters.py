"""Collections of characters for few-shot learning: images by alphabet and character.

Omniglot (Lake, Salakhutdinov & Tenenbaum, Science 2015), scikit-learn's digits, and npz files of the user.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedbilevel.data.datasets import FOLDER, absent, local_files, pixels_of, quiet, read_arrays, reason
from fedbilevel.errors import BadInput, unknown

KEY = "problem.images"
SIDE = 28
ARCHIVES = tuple(
    f"https://raw.githubusercontent.com/brendenlake/omniglot/master/python/images_{part}.zip"
    for part in ("background", "evaluation")
)
"""All of Omniglot by its authors: 1,623 characters of 50 alphabets, 20 drawings of each, 105x105 pixels."""
UNSEEN = ("Japanese_(katakana)", "Sanskrit", "Tagalog", "6 8 9")
"""Alphabets that are the first to be held out for testing."""


@dataclass(frozen=True, eq=False)
class Characters:
    """images float32 [n, side, side] in [0, 1], ink bright; character and alphabet int64 [n]; names of the alphabets.

    A character belongs to one alphabet; `alphabet` counts from 0 to below `len(names)`.
    """

    images: NDArray[np.float32]
    character: NDArray[np.int64]
    alphabet: NDArray[np.int64]
    names: tuple[str, ...]


def load_characters(name: str) -> Characters:
    """The collection of that name: "digits", "omniglot", or the stem of an npz file in `$FEDBILEVEL_DATA`.

    "omniglot" is omniglot.npz or else omniglot_small.npz in that folder, or all of Omniglot by download. A file holds
    images [n, side, side] (uint8, or floats in [0, 1]; ink bright), character [n], alphabet [n] and alphabet_names.

    Raises:
        BadInput: `problem.images` is unknown, the file cannot be used, or the download failed.

    >>> digits = load_characters("digits")
    >>> digits.images.shape, digits.names
    ((1797, 8, 8), ('0 1 2 3 4 5 7', '6 8 9'))
    """
    files = local_files()
    for stem in (name, "omniglot_small") if name == "omniglot" else (name,):
        if stem in files:
            arrays = read_arrays(KEY, name, files[stem], ("images", "character", "alphabet", "alphabet_names"))
            return _checked(name, arrays, str(files[stem]))
    if name == "digits":
        return _digits()
    if name == "omniglot":
        return _omniglot()
    raise unknown(KEY, name, {"digits", "omniglot", *files})


def _checked(name: str, arrays: Mapping[str, NDArray[Any]], source: str) -> Characters:
    """Raw arrays as a collection, or the error that says what is wrong with them."""

    def require(good: bool, allowed: str) -> None:
        if not good:
            raise BadInput(KEY, name, f"{allowed}; in {source}")

    missing = [key for key in ("images", "character", "alphabet", "alphabet_names") if key not in arrays]
    require(not missing, f"an npz file with images, character, alphabet, alphabet_names; absent: {', '.join(missing)}")
    images, character, alphabet, names = (arrays[key] for key in ("images", "character", "alphabet", "alphabet_names"))
    require(
        images.ndim == 3 and images.shape[1] == images.shape[2] and images.size > 0,
        f"images of shape [n, side, side], nowhere empty, not {list(images.shape)}",
    )
    require(images.dtype == np.uint8 or images.dtype.kind == "f", f"images of uint8 or floats, not {images.dtype}")
    for key in ("character", "alphabet"):
        good = arrays[key].dtype.kind in "iu" and arrays[key].shape == images.shape[:1]
        require(good, f"{key} of integers, one per image, not {arrays[key].dtype} {list(arrays[key].shape)}")
    require(names.ndim == 1 and names.dtype.kind == "U", f"alphabet_names of strings, not {names.dtype}")
    there = np.unique(alphabet).tolist() == list(range(len(names)))
    require(there, f"alphabets from 0 to below {len(names)}, the number of alphabet_names, none without images")
    pairs = np.unique(np.stack([character.astype(np.int64), alphabet.astype(np.int64)]), axis=1)
    require(len(np.unique(pairs[0])) == pairs.shape[1], "characters of one alphabet each")
    pixels = pixels_of(images)
    require(bool(np.isfinite(pixels).all()), "finite numbers, where images holds NaN or infinity")
    return Characters(pixels, character.astype(np.int64), alphabet.astype(np.int64), tuple(map(str, names)))


def _digits() -> Characters:
    """scikit-learn's digits. 6, 8 and 9 are the alphabet to hold out: a 6 that is turned by 180 degrees is a 9."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pixels = (images / 16).reshape(-1, 8, 8).astype(np.float32)
    held_out = np.isin(labels, (6, 8, 9)).astype(np.int64)
    return Characters(pixels, labels.astype(np.int64), held_out, ("0 1 2 3 4 5 7", "6 8 9"))


def _omniglot() -> Characters:
    """All of Omniglot, from the cache of Hugging Face's downloads where it was downloaded before."""
    from datasets import DownloadConfig, DownloadManager

    config = DownloadConfig(use_etag=False, max_retries=0, disable_tqdm=True)
    with quiet():
        try:
            files = DownloadManager(download_config=config).download(list(ARCHIVES))
            return read_archives([Path(file) for file in files])
        except Exception as error:  # network, disk, decoding: the library raises almost anything
            raise BadInput(KEY, "omniglot", absent("omniglot", ARCHIVES[0], reason(error))) from error


def read_archives(archives: Sequence[Path]) -> Characters:
    """Omniglot's own archives: `.../ALPHABET/characterNN/*.png`, dark ink, brought to 28x28 pixels."""
    from PIL import Image

    images, characters = [], []
    for path in archives:
        with zipfile.ZipFile(path) as archive:
            for entry in sorted(name for name in archive.namelist() if name.endswith(".png")):
                with archive.open(entry) as file, Image.open(file) as picture:
                    small = picture.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
                    images.append(255 - np.asarray(small))
                characters.append("/".join(entry.split("/")[-3:-1]))
    labels, character = np.unique(np.array(characters), return_inverse=True)
    names, alphabet = np.unique([label.split("/")[0] for label in labels], return_inverse=True)
    arrays = {"images": np.stack(images), "character": character, "alphabet": alphabet[character]}
    return _checked("omniglot", arrays | {"alphabet_names": names}, FOLDER)
