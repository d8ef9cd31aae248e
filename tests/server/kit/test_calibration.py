"""The calibration error at the borders of its bins, which are equal parts of (0, 1], closed above."""

from __future__ import annotations

import pytest
import torch

from server.kit.measures import calibration_error


@pytest.mark.parametrize(
    ("confidence", "correct", "bins", "expected"),
    [
        ([0.5, 0.75], [1, 0], 2, (0.5 + 0.75) / 2),  # 0.5 is the first bin's, so nothing cancels
        ([0.5, 0.25], [1, 0], 2, 0.25 / 2),  # both in the first
        ([1.0, 0.75], [1, 0], 2, 0.75 / 2),  # 1 is the last bin's
        ([0.0, 0.25], [0, 1], 2, 0.75 / 2),  # 0 is the first bin's
        ([0.25, 0.5, 0.75, 1.0], [0, 1, 0, 1], 4, (0.25 + 0.5 + 0.75 + 0) / 4),  # one in each
    ],
)
def test_a_border_belongs_to_the_bin_below(
    confidence: list[float], correct: list[int], bins: int, expected: float
) -> None:
    found = calibration_error(torch.tensor(confidence).double(), torch.tensor(correct).double(), bins)
    assert found == pytest.approx(expected, rel=1e-14)
