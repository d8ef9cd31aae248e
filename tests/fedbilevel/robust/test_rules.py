# The robust rules: cases by hand, and random inputs against rules written once more in numpy.

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedbilevel.robust.rules import RULES, aggregate, most_byzantine
from tests.fedbilevel.robust import naive

BEFORE = (None, "nnm", "bucketing")


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def of_column(values, rule, f, **options):
    return aggregate(column(*values), rule, f, **options).item()


def test_coordinate_wise_rules_by_hand():
    assert of_column([5, 1, 9], "mean", 0) == 5
    assert of_column([5, 1, 90], "median", 1) == 5
    assert of_column([5, 1, 90, 2], "median", 1) == 3.5  # between 2 and 5
    assert of_column([5, 1, 90, 2, -70, 3], "trimmed_mean", 0) == 31 / 6
    assert of_column([5, 1, 90, 2, -70, 3], "trimmed_mean", 1) == 11 / 4  # 1, 2, 3, 5
    assert of_column([5, 1, 90, 2, -70, 3], "trimmed_mean", 2) == 5 / 2  # 2, 3
    rows = torch.tensor([[1.0, 30.0], [2.0, 20.0], [3.0, 10.0]])
    assert aggregate(rows, "median", 1).tolist() == [2.0, 20.0]  # no row is both


def test_krum_by_hand():
    """Of 0, 1, 3, 10 and 90 with f = 1, two others each: 1 + 9, 1 + 4, 4 + 9, 49 + 81 and 80^2 + 87^2."""
    values = [90, 10, 3, 1, 0]
    assert of_column(values, "krum", 1) == 1
    assert of_column(values, "multi_krum", 1) == (0 + 1 + 3 + 10) / 4
    assert of_column([0, 1, 10, 11], "krum", 0) == 1  # two others: 1 + 100, 1 + 81, 81 + 1, 1 + 100
    assert of_column([10, 11, 0, 1], "krum", 0) == 10


def test_geometric_median_by_hand():
    """Of four corners it is where the diagonals meet; of three with an angle of over 120 degrees the corner there."""
    corners = torch.tensor([[-1.0, 0.0], [0.0, -2.0], [3.0, 0.0], [0.0, 5.0]], dtype=torch.float64)
    found = aggregate(corners + 7.0, "geometric_median", 1)
    assert found.tolist() == pytest.approx([7.0, 7.0], abs=1e-8)
    obtuse = torch.tensor([[-5.0, 0.0], [0.0, 1.0], [5.0, 0.0]], dtype=torch.float64)
    assert aggregate(obtuse, "geometric_median", 1).tolist() == pytest.approx([0.0, 1.0], abs=1e-5)


def test_centred_clipping_by_hand():
    """Along (3, 4): from 0 by (1 + 0) / 2, by (1 - 1/2) / 2 and by (1 - 3/4) / 2: 7/8; from 5 by -1/2 thrice over."""
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    along = torch.tensor([0.6, 0.8], dtype=torch.float64)
    assert torch.allclose(aggregate(rows, "centred_clipping", 0), 7 / 8 * along, rtol=1e-15, atol=0)
    back = aggregate(rows, "centred_clipping", 0, last=5.0 * along)  # 5, 4.5, 4.25, 4.125
    assert torch.allclose(back, 4.125 * along, rtol=1e-15, atol=0)
    wide = aggregate(rows, "centred_clipping", 0, radius=100.0, last=5.0 * along)
    assert torch.allclose(wide, 2.5 * along, rtol=1e-15, atol=0)  # nothing is clipped: the mean


def test_nearest_neighbour_mixing_by_hand():
    """With f = 1 of 0, 1, 3 and 10: thrice the mean of 0, 1 and 3, and of 10, 3 and 1."""
    assert of_column([0, 1, 3, 10], "trimmed_mean", 1, before="nnm") == pytest.approx(4 / 3, rel=1e-15)
    assert of_column([0, 1, 3, 10, 12], "trimmed_mean", 1, before="nnm") == 4.5  # of 3.5 thrice and 6.5 twice


def test_buckets_by_hand():
    values = [1, 2, 30, 40, 500]
    assert of_column(values, "median", 1, before="bucketing") == 35  # 1.5, 35, 500
    assert of_column(values, "median", 0, before="bucketing", bucket=3) == (11 + 270) / 2  # 11, 270
    assert of_column(values, "mean", 0, before="bucketing") == (1.5 + 35 + 500) / 3
    assert of_column(values, "median", 2, before="bucketing", bucket=1) == 30
    order = torch.tensor([4, 0, 3, 1, 2])  # 500, 1 | 40, 2 | 30
    assert of_column(values, "median", 1, before="bucketing", order=order) == 30


def drawn(rng):
    """Rows as clients may send them: all alike, some twice, f of them huge, whole numbers with many ties."""
    n, d = int(rng.integers(3, 31)), int(rng.integers(1, 41))
    dtype = rng.choice(["float32", "float64"])
    rows = (rng.normal(size=d) * 3 + rng.normal(size=(n, d))).astype(dtype)
    kind = rng.choice(["plain", "twice", "huge", "whole"])
    if kind == "twice":
        rows[rng.permutation(n)[: n // 2]] = rows[rng.integers(n)]
    if kind == "whole":
        rows = rng.integers(-2, 3, size=(n, d)).astype(dtype)
    return rows, kind


def in_doubt(rows, f, chosen):
    """Whether rounding may change which vectors have the lowest `chosen` scores: different ones with the same score."""
    scores = np.array(naive.krum_scores(rows, f))
    last = np.sort(scores)[chosen - 1]
    equal = rows[np.abs(scores - last) <= 1e-10 * last]
    return np.ptp(equal, axis=0).max() > 1e-12 * np.abs(equal).max()


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("rule", RULES)
def test_random_inputs_as_the_naive_rules(rule, before):
    rng = np.random.default_rng([RULES.index(rule), BEFORE.index(before)])
    compared = 0
    for _ in range(150):
        rows, kind = drawn(rng)
        n, d = rows.shape
        bucket = int(rng.integers(1, 4))
        most = most_byzantine(rule, n, before, bucket)
        if most < 0:
            continue
        f = int(rng.integers(most + 1))
        scale = np.abs(rows).max()
        if kind == "huge":
            rows[rng.permutation(n)[:f]] *= 10.0 ** rng.integers(6, 31)
        order = rng.permutation(n) if rng.integers(2) else None
        last = rng.normal(size=d) if rng.integers(2) else None
        radius = float(rng.choice([0.1, 1.0, 10.0]))
        prepared = naive.prepared(rows, f, before, bucket, order)
        if before and "krum" in rule and in_doubt(prepared, f, 1 if rule == "krum" else len(prepared) - f):
            continue
        expected = naive.aggregate(prepared, rule, f, radius, last)
        given = torch.from_numpy(rows)
        found = aggregate(
            given,
            rule,
            f,
            before=before,
            bucket=bucket,
            radius=radius,
            last=None if last is None else torch.from_numpy(last),
            order=None if order is None else torch.from_numpy(order),
        )
        assert found.dtype == torch.float64
        assert found.shape == (d,)
        bound = 1e-12 * max(scale, np.abs(expected).max())
        assert np.abs(found.numpy() - expected).max() <= bound, (n, d, f, kind, rows.dtype)
        compared += 1
    assert compared >= 100


@pytest.mark.parametrize("before", [None, "nnm"])
@pytest.mark.parametrize("rule", RULES)
def test_the_order_of_the_clients_changes_nothing(rule, before):
    rng = np.random.default_rng(3)
    rows = torch.from_numpy(rng.normal(size=(17, 23)))
    for f in range(most_byzantine(rule, 17, before, 2) + 1):
        one = aggregate(rows, rule, f, before=before)
        other = aggregate(rows[torch.from_numpy(rng.permutation(17))], rule, f, before=before)
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("rule", RULES)
def test_what_is_given_stays_as_it_is(rule, before):
    kept = torch.randn(7, 600, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    last = torch.ones(600, dtype=torch.float64)
    f = most_byzantine(rule, 7, before, 2)
    for rows in (kept.clone(), kept.t().clone(memory_format=torch.contiguous_format).t()):  # by rows and by columns
        aggregate(rows, rule, f, before=before, last=last)
        assert torch.equal(rows, kept)
        assert bool((last == 1.0).all())


@pytest.mark.parametrize("rule", RULES)
def test_wide_rows_are_taken_block_by_block(rule):
    """More columns than one block holds, and a view whose rows do not lie side by side: as columns by themselves."""
    rows = torch.randn(9, 80_001, generator=torch.Generator().manual_seed(5))
    f = most_byzantine(rule, 9, None, 2)
    whole = aggregate(rows, rule, f, radius=50.0)
    assert torch.allclose(whole, aggregate(rows.t().contiguous().t(), rule, f, radius=50.0), rtol=1e-12, atol=1e-12)
    expected = naive.aggregate(rows.double().numpy(), rule, f, 50.0, None)
    assert np.abs(whole.numpy() - expected).max() <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rule", RULES)
def test_short_floats_and_rows_with_a_graph(rule, dtype):
    rows = torch.randn(7, 5, generator=torch.Generator().manual_seed(2)).to(dtype)
    f = most_byzantine(rule, 7, None, 2)
    found = aggregate(rows.clone().requires_grad_(), rule, f)
    assert not found.requires_grad
    assert torch.equal(found, aggregate(rows.double(), rule, f))


def test_what_is_not_taken():
    rows = torch.zeros(5, 2)
    for given, rule, f, options, said in (
        (rows, "mean", 1, {}, "f: got 1; mean"),
        (rows, "median", 3, {}, "from 0 to 2"),
        (rows, "median", -1, {}, "f: got -1"),
        (rows, "krum", 2, {}, "from 0 to 1"),
        (
            rows,
            "median",
            2,
            {"before": "bucketing"},
            "median after bucketing allows of 5 vectors: an integer from 0 to 1",
        ),
        (rows[:2], "krum", 0, {}, "too few"),
        (rows[:0], "mean", 0, {}, "rows: got torch.float32"),
        (rows[0], "mean", 0, {}, "rows: got"),
        (rows.long(), "mean", 0, {}, "rows: got torch.int64"),
        (rows, "medoid", 0, {}, "rule: got 'medoid'"),
        (rows, "mean", 0, {"before": "nmm"}, "before: got 'nmm'"),
        (rows, "mean", 0, {"bucket": 0}, "bucket: got 0"),
        (rows, "mean", 0, {"radius": 0.0}, "radius: got 0.0"),
        (rows, "mean", 0, {"last": torch.zeros(3)}, "last: got"),
        (rows, "mean", 0, {"order": torch.tensor([0, 1, 2, 3, 3])}, "order: allowed: a permutation of 0 to 4"),
    ):
        with pytest.raises(ValueError, match=said):
            aggregate(given, rule, f, **options)
