"""The one place that draws random numbers.

Every draw is a pure function of (seed, client, round, purpose), so a result does not depend on the order in which
clients are visited nor on how they are spread over workers. Draws for many clients are made at once.
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np
from numpy.typing import NDArray

SERVER = -1
"""The client number under which the server draws."""

_STEP = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood, 2014): a bijection of 64-bit words, element by element."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@functools.lru_cache(maxsize=4096)
def _purpose(purpose: str) -> int:
    return int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")


def _keys(
    seed: int, clients: NDArray[np.int64], round: int, purpose: str, laps: NDArray[np.int64] | int = 0
) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        word = _mix(np.asarray([seed], dtype=np.int64).view(np.uint64) + _STEP)
        word = _mix(word ^ np.uint64(_purpose(purpose)))
        word = _mix(word + np.asarray([round + 1], dtype=np.int64).view(np.uint64) * _STEP)
        word = _mix(word + (np.asarray(clients, dtype=np.int64) + 2).view(np.uint64) * _STEP)
        return _mix(word + np.asarray(laps, dtype=np.int64).astype(np.uint64) * _STEP)


def bits(
    seed: int, clients: NDArray[np.int64], round: int, purpose: str, size: int, laps: NDArray[np.int64] | int = 0
) -> NDArray[np.uint64]:
    """`size` random 64-bit words for each client, shape [clients, size].

    laps: how often a client has drawn for this purpose in this round, from 0; one number per client, or one for all.

    >>> import numpy as np
    >>> both = bits(0, np.array([3, 7]), 5, "minibatch", 4)
    >>> bool((both[1] == bits(0, np.array([7]), 5, "minibatch", 4)[0]).all())
    True
    """
    keys = _keys(seed, clients, round, purpose, laps)
    with np.errstate(over="ignore"):
        counters = np.arange(1, size + 1, dtype=np.uint64) * _STEP
        return _mix(keys[:, None] + counters[None, :])


def uniform(seed: int, clients: NDArray[np.int64], round: int, purpose: str, size: int = 1) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), shape [clients, size]."""
    return (bits(seed, clients, round, purpose, size) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(seed: int, clients: NDArray[np.int64], round: int, purpose: str) -> NDArray[np.float64]:
    """One standard normal number for each client, shape [clients]."""
    return normal_of(uniform(seed, clients, round, purpose, 2))


def normal_of(u: NDArray[np.float64]) -> NDArray[np.float64]:
    """One standard normal number [...] of two uniform ones in [0, 1) each, [..., 2] (Box and Muller, 1958)."""
    return np.asarray(np.sqrt(-2.0 * np.log1p(-u[..., 0])) * np.cos(2.0 * np.pi * u[..., 1]), dtype=np.float64)


def permutations(
    seed: int,
    clients: NDArray[np.int64],
    round: int,
    purpose: str,
    sizes: NDArray[np.int64],
    laps: NDArray[np.int64] | int = 0,
) -> NDArray[np.int64]:
    """A random order of 0..size-1 for each client, shape [clients, max(sizes)].

    Row i starts with a permutation of `range(sizes[i])`; what follows it are the numbers from sizes[i] on.
    """
    words = bits(seed, clients, round, purpose, int(sizes.max(initial=0)), laps)
    # random bits above, the position below: sorting words is several times faster than argsort, and the same everywhere
    low = np.uint64((1 << words.shape[1].bit_length()) - 1)
    positions = np.arange(words.shape[1], dtype=np.uint64)
    words >>= np.uint64(1)
    words[positions[None, :] >= sizes[:, None].astype(np.uint64)] = np.uint64(2**64 - 1)
    words = (words & ~low) | positions
    words.sort(axis=1)
    return (words & low).astype(np.int64)


def generator(seed: int, client: int, round: int, purpose: str) -> np.random.Generator:
    """A numpy generator for draws that are not made for many clients at once (client `SERVER`: the server's own)."""
    key = _keys(seed, np.array([client]), round, purpose)
    return np.random.Generator(np.random.Philox(key=int(key[0])))
