"""Privacy: clipping by hand, the variance of the noise, adaptive clips, and epsilon by the accountant's own tools."""

from __future__ import annotations

import logging
import math
from typing import Any

import dp_accounting as dp
import numpy as np
import pytest
import torch
from dp_accounting.rdp import RdpAccountant
from pydantic import ValidationError

from fedbilevel.conditions.privacy import Adaptive, Privacy, PrivacyTable

Z, DELTA = 1.1, 1e-6
NEIGHBOURS = dp.NeighboringRelation


def private(z: float = 0.0, clip: float = 2.0, *, expected: float = 5.0, seed: int = 3, **more: Any) -> Privacy:
    table = {key: more.pop(key) for key in ("adaptive", "delta") if key in more}
    who = {"clients": 100, "asked": None, **more}
    return Privacy(PrivacyTable(clip=clip, noise_multiplier=z, **table), seed, expected=expected, **who)


def rows_of(*norms: float, d: int = 3) -> torch.Tensor:
    """Rows of these norms, in directions of their own."""
    draw = np.random.default_rng(len(norms)).normal(size=(len(norms), d))
    return torch.from_numpy(draw / np.linalg.norm(draw, axis=1, keepdims=True) * np.array(norms)[:, None])


def test_long_answers_are_shortened_and_the_sum_is_divided_by_the_expected_number() -> None:
    rows = rows_of(0.0, 1.0, 1.999, 4.0, 1e6)
    u = rows.numpy()
    expected = (u[1] + u[2] + u[3] / 2 + u[4] * 2e-6) / 7.5
    np.testing.assert_allclose(private(expected=7.5).mean(rows, 0, "y").numpy(), expected, rtol=1e-12)


def test_single_precision_is_summed_in_double() -> None:
    rows = rows_of(1.0, 3.0).float()
    got = private().mean(rows, 0, "y")
    assert got.dtype == torch.float64
    u = rows.double().numpy()
    np.testing.assert_allclose(got.numpy(), (u[0] + u[1] * 2 / np.linalg.norm(u[1])) / 5, rtol=1e-12)


def test_the_noise_of_a_thousand_rounds_has_the_deviation_that_is_claimed() -> None:
    """Of the mean: z c / expected in every coordinate, whatever the answers and their number."""
    made, rows = private(0.7, clip=2.0, expected=5.0), rows_of(1.0, 9.0, d=40)
    quiet = private(0.0, clip=2.0, expected=5.0).mean(rows, 0, "y")
    noise = torch.stack([made.mean(rows, round, "y") - quiet for round in range(1000)]).numpy()
    assert noise.var() == pytest.approx((0.7 * 2.0 / 5.0) ** 2, rel=0.03)
    assert abs(noise.mean()) < 5 * noise.std() / math.sqrt(noise.size)
    assert abs(noise.mean(0)).max() < 5 * noise.std() / math.sqrt(1000)
    assert abs(np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]) < 5 / math.sqrt(noise.size)


def test_noise_is_drawn_for_seed_round_and_output() -> None:
    def noise(round: int = 0, output: str = "y", seed: int = 3) -> list[float]:
        found: list[float] = private(1.0, seed=seed).mean(rows_of(1.0), round, output).tolist()
        return found

    assert noise() == noise()
    others = [noise(), noise(round=1), noise(output="x"), noise(seed=4)]
    assert len({value for each in others for value in each}) == 12


# ---- epsilon ----


def of_the_accountant(events: list[tuple[dp.DpEvent, int]], relation: Any) -> float:
    logging.getLogger("absl").setLevel(logging.ERROR)
    accountant = RdpAccountant(neighboring_relation=relation)
    for event, times in events:
        accountant.compose(event, times)
    return float(accountant.get_epsilon(DELTA))


def told(made: Privacy, sets: list[int]) -> Privacy:
    """A run that tells so many outputs of one drawn set, one iteration after another."""
    for round, outputs in enumerate(sets):
        made.begun()
        made.drawn("")
        for output in range(outputs):
            made.mean(rows_of(1.0), round, str(output))
    return made


def several(outputs: int) -> dp.DpEvent:
    """Outputs of one set are told together, so their noise adds up as that of one Gaussian with z / sqrt(outputs)."""
    return dp.GaussianDpEvent(Z / math.sqrt(outputs))


@pytest.mark.parametrize("sets", [[1], 50 * [1], 20 * [3], 7 * [2, 3]])
def test_epsilon_is_the_accountants_for_all_three_schedules(sets: list[int]) -> None:
    counts = [(k, sets.count(k)) for k in sorted(set(sets))]
    everyone = [(several(k), n) for k, n in counts]
    got = told(private(Z, delta=DELTA), sets).epsilon()
    assert got == pytest.approx(of_the_accountant(everyone, NEIGHBOURS.ADD_OR_REMOVE_ONE), rel=1e-9)
    poisson = [(dp.PoissonSampledDpEvent(0.1, several(k)), n) for k, n in counts]
    got = told(private(Z, delta=DELTA, asked=10, poisson=True), sets).epsilon()
    assert got == pytest.approx(of_the_accountant(poisson, NEIGHBOURS.ADD_OR_REMOVE_ONE), rel=1e-9)
    fixed = [(dp.SampledWithoutReplacementDpEvent(100, 10, several(k)), n) for k, n in counts]
    got = told(private(Z, delta=DELTA, asked=10), sets).epsilon()
    assert got == pytest.approx(of_the_accountant(fixed, NEIGHBOURS.REPLACE_ONE), rel=1e-9)


def test_a_sample_of_everybody_is_full_participation_and_sampling_amplifies() -> None:
    everyone = told(private(Z, delta=DELTA), 9 * [1]).epsilon()
    assert told(private(Z, delta=DELTA, asked=100), 9 * [1]).epsilon() == pytest.approx(everyone, rel=1e-12)
    assert told(private(Z, delta=DELTA, asked=10), 9 * [1]).epsilon() < everyone / 2


def test_a_set_that_an_iteration_comes_back_to_is_one_set() -> None:
    """Two outputs, one of another set, and a third of the first: a group of three and one of one."""
    made = private(Z, delta=DELTA, asked=10, poisson=True)
    for purpose in ("", "", "other", ""):
        made.drawn(purpose)
        made.mean(rows_of(1.0), 0, "y")
    assert made.told() == {3: 1, 1: 1}
    events = [(dp.PoissonSampledDpEvent(0.1, several(k)), 1) for k in (1, 3)]
    expected = of_the_accountant(events, NEIGHBOURS.ADD_OR_REMOVE_ONE)
    assert made.epsilon() == pytest.approx(expected, rel=1e-9)
    made.begun()
    made.drawn("")
    made.mean(rows_of(1.0), 1, "y")
    assert made.told() == {3: 1, 1: 2}


def test_nothing_told_costs_nothing_and_without_noise_nothing_is_private() -> None:
    assert private(Z).epsilon() == 0.0
    assert told(private(0.0), [1]).epsilon() == math.inf


# ---- adaptive clips ----


def test_a_clip_follows_the_share_of_answers_within_it() -> None:
    """Two of five are within 2: it grows by exp(-rate (2/5 - 0.7)); then three are. Each output has its own."""
    made = private(adaptive=Adaptive(quantile=0.7, rate=0.5))
    rows = rows_of(1.0, 2.0 - 1e-9, 2.1, 5.0, 9.0)
    made.mean(rows, 0, "y")
    first = 2.0 * math.exp(0.5 * 0.3)
    assert made.clips == {"y": pytest.approx(first, rel=1e-12)}
    made.mean(rows, 1, "y")
    assert made.clips["y"] == pytest.approx(first * math.exp(0.5 * 0.1), rel=1e-12)
    made.mean(rows_of(5.0), 1, "x")
    # one answer where five are expected, not within: it counts -1/2
    assert made.clips["x"] == pytest.approx(2.0 * math.exp(-0.5 * (-0.5 / 5 + 0.5 - 0.7)), rel=1e-12)


def test_the_clip_that_shortens_is_the_one_before_the_step() -> None:
    made = private(adaptive=Adaptive())
    made.clips["y"] = 0.5
    rows = rows_of(4.0)
    np.testing.assert_allclose(made.mean(rows, 0, "y").numpy(), rows[0].numpy() / 8 / 5, rtol=1e-12)


def test_a_client_more_or_less_moves_the_count_by_half_of_one() -> None:
    """Which is what its share of the noise is reckoned from."""

    def clip(*norms: float) -> float:
        made = private(adaptive=Adaptive(rate=1.0), expected=4.0)
        made.mean(rows_of(*norms), 0, "y")
        return -4.0 * math.log(made.clips["y"] / 2.0)

    assert clip(1.0, 1.0, 9.0) - clip(1.0, 9.0) == pytest.approx(0.5)
    assert clip(1.0, 1.0, 9.0) - clip(1.0, 1.0) == pytest.approx(-0.5)


def test_a_clip_ends_at_the_quantile_of_the_norms() -> None:
    made = private(adaptive=Adaptive(quantile=0.8, rate=0.2), clip=0.01, expected=100.0)
    rows = rows_of(*np.linspace(0.1, 10.0, 100).tolist())
    for round in range(300):
        made.mean(rows, round, "y")
    assert made.clips["y"] == pytest.approx(8.0, abs=0.15)


def test_the_count_takes_its_share_of_the_noise() -> None:
    """z^-2 = z_sum^-2 + (2 s)^-2: both together are one Gaussian of multiplier z; s = expected / 20 unless told."""
    made = private(1.0, adaptive=Adaptive(count_noise=0.8))
    assert 1 / made.multiplier**2 + 1 / (2 * 0.8) ** 2 == pytest.approx(1.0, rel=1e-12)
    assert private(1.0, adaptive=Adaptive(), expected=60.0).count_noise == 3.0
    rows = rows_of(1.0, d=40)
    noise, counts = [], []
    for round in range(1000):
        made.clips.clear()
        noise.append((made.mean(rows, round, "y") - rows[0] / 5).numpy())
        counts.append(-5.0 * math.log(made.clips["y"] / 2.0) / 0.2)
    assert np.var(noise) == pytest.approx((made.multiplier * 2.0 / 5.0) ** 2, rel=0.03)
    assert np.std(counts) == pytest.approx(0.8, rel=5 / math.sqrt(2000))
    assert np.mean(counts) == pytest.approx(0.5, abs=5 * 0.8 / math.sqrt(1000))


def test_adaptive_clips_cost_what_the_noise_multiplier_says() -> None:
    fixed, adaptive = (
        told(private(Z, delta=DELTA, asked=10, **more), 9 * [2])
        for more in ({}, {"adaptive": Adaptive(count_noise=2.0)})
    )
    assert adaptive.epsilon() == pytest.approx(fixed.epsilon(), rel=1e-12)


@pytest.mark.parametrize(
    "changed",
    [
        {"clip": 0.0},
        {"clip": -1.0},
        {"clip": math.inf},
        {"noise_multiplier": -0.1},
        {"delta": 0.0},
        {"delta": 1.0},
        {"adaptive": {"quantile": 1.0}},
        {"adaptive": {"rate": 0.0}},
        {"adaptive": {"count_noise": 0.0}},
    ],
)
def test_what_protects_nobody_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PrivacyTable.model_validate({"clip": 1.0, "noise_multiplier": 1.0, **changed})
