"""The figures of predictions: every line with its name, on axes that say what is shown."""

from __future__ import annotations

from pathlib import Path

from fedbilevel.figures.predictions import draw_reliability, draw_risk_coverage

LINES = {"imaml": ([0.1, 0.5, 0.9], [0.1, 0.2, 0.4]), "imaml, scaled": ([0.1, 0.9], [0.2, 0.9]), "a $b": ([0.5], [1.0])}


def test_reliability_has_its_lines_and_the_diagonal(tmp_path: Path) -> None:
    made = draw_reliability(LINES, tmp_path, title="Curves", about="so it is", of=("said", "found"))
    assert sorted(path.name for path in made) == [f"reliability.{kind}" for kind in ("pdf", "png", "svg")]
    text = (tmp_path / "reliability.svg").read_text()
    assert all(f">{word}<" in text for word in ("Curves", "so it is", "said", "found", *LINES))
    first = [path.read_bytes() for path in made]
    draw_reliability(LINES, tmp_path, title="Curves", about="so it is", of=("said", "found"))
    assert [path.read_bytes() for path in made] == first


def test_risk_begins_at_nothing(tmp_path: Path) -> None:
    draw_risk_coverage(LINES, tmp_path, title="Curves", about="so it is", risk="error rate")
    text = (tmp_path / "risk_coverage.svg").read_text()
    assert ">error rate of these<" in text
    assert ">0.0<" in text
