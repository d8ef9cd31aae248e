"""How classes are dealt and tasks drawn, by hand."""

from __future__ import annotations

import numpy as np
import torch

from fedbilevel.data.episodes import Episodes, dealt, held_out
from fedbilevel.problem import Ragged

NAMES = ("Balinese", "Greek", "Japanese_(katakana)", "Korean", "Latin", "Sanskrit", "Tagalog", "Zulu")


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
