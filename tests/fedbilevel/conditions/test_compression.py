"""Thin wires: what is left of a vector, unbiased where it is claimed, and its bytes by hand."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fedbilevel.conditions.compression import ChannelTable, compressed

U = np.array([0.3, -1.0, 0.0, 0.55, -0.1, 0.72])
D = len(U)
DRAWS = 10_000


def sent(wire: Any, rows: Any = U, clients: Any = None, round: int = 0, purpose: str = "g.0", **told: Any) -> Any:
    rows = np.atleast_2d(rows)
    clients = np.arange(len(rows)) if clients is None else np.asarray(clients)
    seed, scaled = told.pop("seed", 3), told.pop("scaled", True)
    table = ChannelTable(uplink=wire, **told)
    result = compressed(torch.from_numpy(rows), wire, table, seed, clients, round, purpose, scaled=scaled)
    assert result.dtype == torch.float64
    return result.numpy()


def drawn(wire: Any, **told: Any) -> Any:
    """What arrives of the same vector of 10,000 clients."""
    return sent(wire, np.tile(U, (DRAWS, 1)), **told)


def assert_unbiased(got: Any) -> None:
    """Every coordinate's mean within five of its own deviations."""
    error = got.std(0) / np.sqrt(len(got))
    assert (abs(got.mean(0) - U) <= 5 * error + 1e-15).all()


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_quantised_numbers_are_neighbouring_levels_and_right_in_the_mean(bits: int) -> None:
    """Of b bits one is the sign: 2^(b-1) - 1 levels between 0 and the largest."""
    levels = 2 ** (bits - 1) - 1
    got = drawn("quantise", bits=bits) * levels
    np.testing.assert_allclose(got, np.round(got), atol=1e-9)
    below, above = np.floor(U * levels), np.ceil(U * levels)
    assert (np.round(got.max(0)) == above).all()
    assert (np.round(got.min(0)) == below).all()
    assert_unbiased(got / levels)


def test_two_bits_leave_the_sign_of_the_largest_by_a_chance() -> None:
    """One level: u_j becomes +-max|u| with the chance |u_j| / max|u|, so the variance is |u_j| (1 - |u_j|)."""
    got = drawn("quantise", bits=2)
    assert set(np.unique(got)) == {-1.0, 0.0, 1.0}
    variance = abs(U) * (1 - abs(U))
    assert np.allclose(got.var(0), variance, atol=5 * np.sqrt(1 / DRAWS))


def test_quantised_rows_have_their_own_largest_and_zeros_stay() -> None:
    got = sent("quantise", np.stack([U, 1000 * U, 0 * U]), bits=4)
    assert got[0, 1] == -1.0
    assert got[1, 1] == -1000.0
    assert not got[2].any()


@pytest.mark.parametrize(("keep", "k"), [(2, 2), (0.5, 3), (1, 1), (0.01, 1), (5, 5)])
def test_random_coordinates_are_scaled_and_right_in_the_mean(keep: float, k: int) -> None:
    got = drawn("random_k", keep=keep)
    kept = np.isclose(got, U * D / k) & (U != 0)
    assert (kept | (got == 0)).all()
    others = np.delete(got, 2, axis=1)
    assert set(np.count_nonzero(others, axis=1).tolist()) <= {k, k - 1}
    assert abs(kept.mean(0)[U != 0] - k / D).max() < 5 * np.sqrt(k / D * (1 - k / D) / DRAWS)
    assert_unbiased(got)


def test_every_set_of_places_is_as_likely() -> None:
    """Two of four: six pairs, chi-square with five degrees of freedom, 0.1 %."""
    got = sent("random_k", np.ones((DRAWS, 4)), keep=2)
    pairs = [tuple(np.flatnonzero(row)) for row in got]
    counts = np.array([pairs.count(pair) for pair in itertools.combinations(range(4), 2)])
    assert counts.sum() == DRAWS
    assert float(((counts - DRAWS / 6) ** 2 / (DRAWS / 6)).sum()) < 20.5


def test_downlink_random_coordinates_stay_as_they_are() -> None:
    got = drawn("random_k", keep=2, scaled=False)
    assert ((got == 0) | (got == U)).all()
    assert abs((got[:, [0, 1, 3, 4, 5]] != 0).mean() - 1 / 3) < 0.01


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_largest_coordinates_are_kept_as_they_are(k: int) -> None:
    largest = np.argsort(-abs(U))[:k]
    got = sent("top_k", keep=k)[0]
    assert np.array_equal(got, np.where(np.isin(np.arange(D), largest), U, 0.0))


def test_half_precision_is_numpys_and_large_numbers_become_the_largest() -> None:
    rows = np.array([[0.1, -1 / 3, 1e-9, 65504.0], [70000.0, -1e300, 2048.5, 3.0]])
    with np.errstate(over="ignore"):
        expected = np.clip(rows, -65504.0, 65504.0).astype(np.float16).astype(np.float64)
    assert np.array_equal(sent("float16", rows), expected)


@pytest.mark.parametrize("wire", ["exact", "top_k", "random_k"])
def test_what_keeps_every_coordinate_keeps_it_as_it_is(wire: Any) -> None:
    told = {} if wire == "exact" else {"keep": 1.0}
    assert np.array_equal(sent(wire, **told)[0], U)


@pytest.mark.parametrize("wire", ["exact", "float16", "quantise", "top_k"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_arrives_and_spoils_no_other_row(wire: Any, bad: float) -> None:
    rows = np.stack([U, U])
    rows[0, 3] = bad
    got = sent(wire, rows, **({"keep": 2} if wire == "top_k" else {}))
    assert not np.isfinite(got[0]).all()
    assert np.array_equal(got[1], sent(wire, rows[1], [1], **({"keep": 2} if wire == "top_k" else {}))[0])


@pytest.mark.parametrize(("wire", "told"), [("quantise", {"bits": 4}), ("random_k", {"keep": 20})])
def test_draws_are_of_seed_client_round_and_output(wire: Any, told: dict[str, Any]) -> None:
    """Each client's own, whoever is sampled beside it."""
    rows = np.tile(np.linspace(0.01, 1.0, 64), (3, 1))
    got = sent(wire, rows, **told)
    assert np.array_equal(got[2], sent(wire, rows[2], [2], **told)[0])
    assert not np.array_equal(got[0], got[1])
    others: list[dict[str, Any]] = [{"seed": 4}, {"round": 1}, {"purpose": "g.1"}]
    for changed in others:
        assert not np.array_equal(got, sent(wire, rows, **told, **changed)), changed


@pytest.mark.parametrize(
    ("wire", "told", "d", "itemsize", "total"),
    [
        ("exact", {}, 100, 8, 800),
        ("float16", {}, 100, 8, 200),
        ("quantise", {"bits": 8}, 100, 4, 104),
        ("quantise", {"bits": 3}, 10, 8, 4 + 8),  # 30 bits in 4 bytes
        ("random_k", {"keep": 7}, 100, 4, 28),
        ("random_k", {"keep": 0.1}, 104, 8, 80),
        ("random_k", {"keep": 7}, 5, 8, 40),
        ("top_k", {"keep": 7}, 100, 4, 56),
        ("top_k", {"keep": 0.25}, 100, 8, 300),
        ("top_k", {"keep": 0.9}, 100, 4, 400),  # with places it would be 720
    ],
)
def test_bytes(wire: Any, told: dict[str, Any], d: int, itemsize: int, total: int) -> None:
    assert ChannelTable(uplink=wire, **told).bytes(wire, d, itemsize) == total


@pytest.mark.parametrize(
    "told",
    [
        {"uplink": "zip"},
        {"uplink": "top_k", "keep": 0},
        {"uplink": "top_k", "keep": 0.0},
        {"uplink": "top_k", "keep": 1.5},
        {"uplink": "top_k", "keep": -1},
        {"uplink": "quantise", "bits": 1},
        {"uplink": "quantise", "bits": 17},
        {"uplink": "quantise", "keep": 3},
        {"downlink": "top_k", "bits": 4},
        {"bits": 4},
    ],
)
def test_what_is_no_wire_or_is_read_by_none_is_refused(told: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ChannelTable(**told)
