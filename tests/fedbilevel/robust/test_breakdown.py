# How many Byzantine vectors each rule takes: with so many the answer stays among the honest, with more it need not.

from __future__ import annotations

import pytest
import torch

from fedbilevel.robust.rules import RULES, aggregate, most_byzantine

FAR = (1e6, 1e12, 1e30, 3.4e38)
D = 6


def attacked(n, byzantine, far, dtype=torch.float32):
    """Honest vectors about 1, and Byzantine ones, the first, all at the same far place."""
    rows = 1.0 + 0.1 * torch.randn(n, D, generator=torch.Generator().manual_seed(n), dtype=dtype)
    rows[:byzantine] = far
    return rows, rows[byzantine:].double()


def among(found, honest):
    """Whether every coordinate is within those of the honest vectors."""
    slack = 1e-12
    return bool(((found >= honest.amin(0) - slack) & (found <= honest.amax(0) + slack)).all())


def test_most_byzantine_at_its_edges():
    most = {
        "mean": [0, 0, 0, 0, 0, 0, 0],
        "median": [0, 0, 1, 1, 2, 2, 3],
        "trimmed_mean": [0, 0, 1, 1, 2, 2, 3],
        "geometric_median": [0, 0, 1, 1, 2, 2, 3],
        "krum": [-1, -1, 0, 0, 1, 1, 2],
        "multi_krum": [-1, -1, 0, 0, 1, 1, 2],
        "centred_clipping": [0, 0, 1, 1, 2, 2, 3],
    }
    assert set(most) == set(RULES)
    for rule, numbers in most.items():
        assert [most_byzantine(rule, n, None, 2) for n in range(1, 8)] == numbers
        assert [most_byzantine(rule, n, "nnm", 2) for n in range(1, 8)] == numbers
        for n in range(1, 8):
            f = numbers[n - 1]
            if f > 0:  # the inequalities as they are written, and that one more breaks them
                spare = 2 if "krum" in rule else 0
                assert 2 * f + spare < n <= 2 * (f + 1) + spare


def test_most_byzantine_of_buckets():
    assert [most_byzantine("median", n, "bucketing", 2) for n in (1, 2, 4, 5, 8, 9, 10, 11)] == [0, 0, 0, 1, 1, 2, 2, 2]
    assert [most_byzantine("krum", n, "bucketing", 3) for n in (6, 7, 12, 13)] == [-1, 0, 0, 1]
    assert [most_byzantine("median", n, "bucketing", 1) for n in (3, 4, 5)] == [1, 1, 2]
    assert most_byzantine("mean", 10, "bucketing", 2) == 0


@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize("n", [3, 4, 5, 10, 11])
@pytest.mark.parametrize("rule", ["median", "trimmed_mean", "krum", "multi_krum"])
def test_with_as_many_as_it_takes_the_answer_is_among_the_honest(rule, n, far):
    f = most_byzantine(rule, n, None, 2)
    for sign in (1, -1):
        rows, honest = attacked(n, f, sign * far)
        assert among(aggregate(rows, rule, f), honest)


@pytest.mark.parametrize("n", [10, 11])
def test_one_more_breaks_median_trimmed_mean_and_multi_krum(n):
    """Of 2f + 1 or 2f + 2 values f + 1 far ones reach the middle; a trimmed mean, and the n - f best, hold one."""
    far = 1e30
    rows, _ = attacked(n, 1, far)
    assert aggregate(rows, "mean", 0)[0].item() == pytest.approx(far / n, rel=1e-6)
    f = most_byzantine("median", n, None, 2)
    rows, _ = attacked(n, f + 1, far)
    assert aggregate(rows, "median", f)[0].item() == pytest.approx(far if n % 2 else far / 2, rel=1e-6)
    for f in range(most_byzantine("trimmed_mean", n, None, 2) + 1):
        rows, _ = attacked(n, f + 1, far)
        assert aggregate(rows, "trimmed_mean", f)[0].item() == pytest.approx(far / (n - 2 * f), rel=1e-6)
    for f in range(most_byzantine("multi_krum", n, None, 2) + 1):
        rows, _ = attacked(n, f + 1, far)
        assert aggregate(rows, "multi_krum", f)[0].item() == pytest.approx(far / (n - f), rel=1e-6)


@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize("n", [5, 9, 12])
def test_krum_breaks_once_the_byzantine_are_each_others_neighbours(n, far):
    """A far one needs n - f - 2 others beside it: n - f - 1 in all, which is more than f + 1 where 2f + 2 < n."""
    for f in range(most_byzantine("krum", n, None, 2) + 1):
        rows, honest = attacked(n, n - f - 2, far)
        if n - f - 2 <= f + 1:
            assert among(aggregate(rows, "krum", f), honest)
        rows, _ = attacked(n, n - f - 1, far)
        assert aggregate(rows, "krum", f)[0].item() == rows[0, 0].item()


@pytest.mark.parametrize(("n", "f"), [(3, 1), (10, 3), (11, 2), (30, 9)])
@pytest.mark.parametrize("far", FAR[:3])
def test_geometric_median_stays_in_its_ball(n, f, far):
    """|z - c| <= 2 (n - f) / (n - 2f) max |u_i - c| of the honest; what is left of the start is (f / (n - f))^100."""
    rows, honest = attacked(n, f, far)
    centre = honest.mean(0)
    radius = float((honest - centre).norm(dim=1).max())
    left = far * D**0.5 * (f / (n - f)) ** 100
    found = aggregate(rows, "geometric_median", f)
    assert float((found - centre).norm()) <= 2 * (n - f) / (n - 2 * f) * radius + left
    assert left < 2.0


@pytest.mark.parametrize("n", [10, 11])
def test_geometric_median_as_its_most_and_with_one_more(n):
    f = most_byzantine("geometric_median", n, None, 2)
    rows, honest = attacked(n, f, 1e6)
    assert float((aggregate(rows, "geometric_median", f) - 1.0).norm()) < 20.0
    rows, _ = attacked(n, f + 1, 1e6)
    assert float(aggregate(rows, "geometric_median", f).amin()) > 0.4e6
    assert len(honest) == n - f


@pytest.mark.parametrize("far", FAR)
def test_centred_clipping_over_many_rounds(far):
    """Honest ones at c and f far: z rests where (n - f) |z - c| = f radius; a majority of far ones drags it on."""
    n, f, radius = 11, 5, 0.5
    rows = torch.ones(n, D)
    rows[:f] = far
    z = torch.ones(D, dtype=torch.float64)
    for _ in range(60):
        z = aggregate(rows, "centred_clipping", f, radius=radius, last=z)
        assert float((z - 1.0).norm()) <= f / (n - f) * radius + 1e-9
    assert float((z - 1.0).norm()) == pytest.approx(f / (n - f) * radius, rel=1e-6)
    rows[f] = far
    for _ in range(60):
        z = aggregate(rows, "centred_clipping", f, radius=radius, last=z)
    assert float((z - 1.0).norm()) > 60 * 3 * radius / n  # a net one of n in each of 3 steps a round


@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize("n", [5, 10, 11])
@pytest.mark.parametrize("rule", ["median", "trimmed_mean", "krum"])
def test_mixed_with_far_ones_the_answer_is_the_mean_of_the_honest(rule, n, far):
    """All n - f nearest to an honest vector are honest; with one more Byzantine vector one of them is not."""
    f = most_byzantine(rule, n, "nnm", 2)
    rows, honest = attacked(n, f, far)
    assert torch.allclose(aggregate(rows, rule, f, before="nnm"), honest.mean(0), rtol=1e-12, atol=0)
    rows, _ = attacked(n, f + 1, far)
    assert float(aggregate(rows, rule, f, before="nnm").amin()) > far / n / 2


@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize("rule", ["median", "trimmed_mean", "krum"])
def test_buckets_with_as_many_as_the_rule_takes_of_them(rule, far):
    """Each Byzantine vector spoils a bucket of its own, of ceil(11 / 2) = 6."""
    n = 11
    f = most_byzantine(rule, n, "bucketing", 2)
    for byzantine in (f, f + 1, f + 2):
        rows, _ = attacked(n, 0, far)
        rows[torch.arange(0, 2 * byzantine, 2)] = far
        found = aggregate(rows, rule, f, before="bucketing")
        if byzantine == f:
            pairs = torch.stack([rows[i : i + 2].double().mean(0) for i in range(2 * f, n, 2)])
            assert among(found, pairs)
        elif rule != "krum" or byzantine == 6 - f - 1:
            assert float(found.amin()) > far / 13
