"""How characters are dealt to clients for few-shot learning, and the draw of N-way K-shot tasks.

A client owns whole *units* where it can, a unit being an alphabet turned by 0, 90, 180 or 270 degrees: a turned
character is a class of its own (Santoro et al., ICML 2016). Alphabets that are held out are nobody's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedbilevel.data.characters import UNSEEN, Characters
from fedbilevel.errors import BadInput
from fedbilevel.problem import Ragged

Class = tuple[int, int]
"""A character and its quarter turns."""


@dataclass(frozen=True)
class Pools:
    """Images of each client and of each pool for testing, class by class: `input` [n, side, side], `class` [n]."""

    clients: Ragged
    unseen: Ragged


@dataclass(frozen=True)
class Episodes:
    """N-way K-shot tasks: `ways` classes, `shots` support and `queries` query images of each.

    classes, images: the most classes of a pool, and the most images of a class; so many random numbers order them.
    """

    ways: int
    shots: int
    queries: int
    classes: int
    images: int

    @property
    def draws(self) -> int:
        """Random numbers of one task."""
        return self.classes + self.ways * self.images

    def draw(self, pool: Ragged, numbers: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of the support [S * T, ways * shots] and the query set [S * T, ways * queries] of T tasks of S owners.

        The order of uniform numbers [S, T, draws] chooses classes, and images of each, without replacement. Rows are
        class by class, in the order of the choice: the k-th class chosen has the label k.
        """
        label = pool.values["class"].cpu().numpy()
        first = np.diff(label, prepend=-1) != 0
        first[pool.offsets[:-1]] = True
        starts = np.flatnonzero(first)
        counts = np.diff(starts, append=len(label))
        owned = np.searchsorted(starts, pool.offsets)

        def chosen(numbers: NDArray[np.float64], of: NDArray[np.int64], many: int) -> NDArray[np.int64]:
            possible = np.arange(numbers.shape[-1]) < of[..., None]
            return np.argsort(np.where(possible, numbers, np.inf), axis=-1, kind="stable")[..., :many]

        classes = chosen(numbers[..., : self.classes], np.diff(owned)[:, None], self.ways) + owned[:-1, None, None]
        within = numbers[..., self.classes :].reshape(*classes.shape, self.images)
        rows = chosen(within, counts[classes], self.shots + self.queries) + starts[classes][..., None]
        tasks = classes.shape[0] * classes.shape[1]
        return rows[..., : self.shots].reshape(tasks, -1), rows[..., self.shots :].reshape(tasks, -1)


def held_out(names: Sequence[str], share: float) -> list[int]:
    """The alphabets for testing: at least one and not all; those of `UNSEEN` first, then the last by name."""
    number = min(max(1, round(share * len(names))), len(names) - 1)
    order = sorted(range(len(names)), key=lambda a: (names[a] in UNSEEN, names[a]), reverse=True)
    return sorted(order[:number])


def dealt(units: Sequence[Sequence[Class]], clients: int) -> list[list[Class]]:
    """The classes of each client: whole units, or a part of one where there are more clients than units."""
    n = len(units)
    if clients <= n:
        return [[each for unit in units[i::clients] for each in unit] for i in range(clients)]
    sharers = [-(-(clients - u) // n) for u in range(n)]
    return [list(units[i % n][i // n :: sharers[i % n]]) for i in range(clients)]


def deal(
    characters: Characters,
    *,
    clients: int,
    ways: int,
    shots: int,
    queries: int,
    unseen: float,
    mixed: bool,
    rotations: int,
    test_turns: int = 0,
    side: int | None,
) -> tuple[Pools, Episodes]:
    """Split a collection of characters over clients and what is held out for testing.

    unseen: the share of the alphabets that is held out; mixed: they are one pool, not one pool each; rotations: how
    many of the four turns the clients' alphabets take; test_turns: by how many quarter turns those held out are turned;
    side: of the images, which shrink by averaging (default: their own).

    Raises:
        BadInput: `problem.ways`, `problem.shots` or `problem.clients` asks for more than there is.
    """
    if len(characters.names) < 2:
        raise BadInput("problem.images", characters.names, "at least two alphabets: one is held out for testing")
    order = np.argsort(characters.character, kind="stable")
    images = _shrunk(characters.images, side)[order]
    _, starts, counts = np.unique(characters.character[order], return_index=True, return_counts=True)
    if shots + queries > counts.min():
        allowed = f"together with problem.queries ({queries}) at most {counts.min()}, the images of a class"
        raise BadInput("problem.shots", shots, allowed)
    alphabet = characters.alphabet[order][starts]
    test = held_out(characters.names, unseen)
    members = {a: np.flatnonzero(alphabet == a).tolist() for a in np.unique(alphabet).tolist()}
    units = [[(c, turns) for c in members[a]] for turns in range(rotations) for a in members if a not in test]
    testing = [[(c, test_turns) for c in members[a]] for a in test]
    testing = [[each for own in testing for each in own]] if mixed else testing
    most = sum(map(len, units)) // ways
    owned = dealt(units, max(1, min(clients, most)))
    fewest = min(len(own) for own in (*dealt(units, min(clients, len(units))), *testing))
    if ways > fewest:
        raise BadInput("problem.ways", ways, f"at most {fewest}, the classes of the smallest alphabet")
    if clients > most or min(map(len, owned)) < ways:
        most = next(m for m in range(min(clients, most), 0, -1) if min(map(len, dealt(units, m))) >= ways)
        raise BadInput("problem.clients", clients, f"at most {most}, so that each has {ways} classes of its own")

    def pool(owners: Sequence[Sequence[Class]]) -> Ragged:
        parts = [
            (np.rot90(images[starts[c] : starts[c] + counts[c]], turns, axes=(1, 2)), np.full(counts[c], 4 * c + turns))
            for own in owners
            for c, turns in own
        ]
        values = {"input": np.concatenate([part[0] for part in parts]), "class": np.concatenate([p[1] for p in parts])}
        sizes = [sum(int(counts[c]) for c, _ in own) for own in owners]
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        return Ragged({name: torch.from_numpy(array) for name, array in values.items()}, offsets)

    found = Pools(pool(owned), pool(testing))
    widest = max(len(own) for own in (*owned, *testing))
    return found, Episodes(ways, shots, queries, widest, int(counts.max()))


def _shrunk(images: NDArray[np.float32], side: int | None) -> NDArray[np.float32]:
    """The images at another side, by the mean over squares."""
    own = images.shape[1]
    if side is None:
        return images
    if side < 1 or own % side:
        fits = ", ".join(str(s) for s in range(1, own + 1) if own % s == 0)
        raise BadInput("problem.side", side, f"a divisor of the images' own side: {fits}")
    return np.ascontiguousarray(images.reshape(-1, side, own // side, side, own // side).mean((2, 4)))
