"""Collections of characters: files, archives, and what is wrong with them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedbilevel.data.characters import load_characters, read_archives
from fedbilevel.errors import BadInput


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
