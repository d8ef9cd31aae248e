"""`fedbilevel uncertainty`: how far the predictions of finished runs can be trusted on unseen tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from experiments.reading.formats import print_sheets
from experiments.reading.report import print_files
from experiments.runs.trust import hold_trusted
from experiments.terminal import say
from fedbilevel.figures.predictions import RELIABILITY, RISK_COVERAGE, Lines, draw_reliability, draw_risk_coverage
from fedbilevel.results.files import write_csv
from fedbilevel.statistics.clusters import clustered
from fedbilevel.tables.predictions import PREDICTION_COLUMNS, Prediction, prediction_sheet
from server.running.load import load
from server.uncertainty.scores import LEVELS, Scores
from server.uncertainty.study import Judged, Study, judged

if TYPE_CHECKING:
    from rich.console import Console

RARE = 0.01
"""A bin with a smaller share of the predictions is left out of the figure."""
COVERAGES = np.arange(1, 101) / 100
WORDS = {
    "classification": ("confidence in the predicted class", "accuracy", "error rate"),
    "regression": ("level of the central interval", "share of labels within it", "squared error"),
}


def run_uncertainty(folder: Path, study: Study, console: Console, *, trust: bool) -> None:
    """Judge every run of a directory; print the table, and write `uncertainty.csv` and the figures with their numbers.

    Raises BadInput for a folder that is no run directory or whose runs cannot be judged.
    """
    loaded = load(folder)
    for file in hold_trusted(loaded.config, folder, trust=trust):
        say(console, f"executes {file}")
    found = judged(loaded, study, lambda text: say(console, text))
    ways = {_name(each): each for each in found}
    table = [_prediction(name, each) for name, each in ways.items()]
    write_csv(folder / "uncertainty.csv", (row for each in table for row in each.lines()), PREDICTION_COLUMNS)
    _draw(folder, ways, loaded.config.title)
    say(console, "")
    print_sheets(console, [prediction_sheet(table)])
    print_files(console, folder)


def _name(of: Judged) -> str:
    members = f" × {of.members}" if of.members > 1 else ""
    return f"{of.label}{members}{', scaled' if of.scaled else ''}"


def _prediction(name: str, of: Judged) -> Prediction:
    def middle(values: tuple[float, ...]) -> float | None:
        return median(values) if values else None

    seeds, tasks = np.unique(of.scores.seed, return_counts=True)
    return Prediction(
        name,
        of.label,
        of.members,
        of.scaled,
        len(seeds),
        int(tasks[0]),
        middle(of.temperatures),
        middle(of.factors),
        of.training_nll,
        clustered(of.scores.measures, of.scores.seed),
    )


def _draw(folder: Path, ways: Mapping[str, Judged], title: str) -> None:
    """Both figures, and their numbers as csv."""
    kind = next(iter(ways.values())).scores.kind
    said, is_so, risk = WORDS[kind]
    bins = {name: list(reliability(each.scores)) for name, each in ways.items()}
    rows = [
        {"prediction": name, "said": x, "found": y, "share": share}
        for name, each in bins.items()
        for x, y, share in each
    ]
    write_csv(folder / f"{RELIABILITY}.csv", rows, ("prediction", "said", "found", "share"))
    lines: Lines = {
        name: ([x for x, _, share in each if share >= RARE], [y for _, y, share in each if share >= RARE])
        for name, each in bins.items()
    }
    about = "unseen tasks of all seeds; below the dashed line: too sure"
    if kind == "classification":
        about += f"; bins of {100 * RARE:g} % and more"
    draw_reliability(lines, folder, title=title, about=about, of=(said, is_so))
    risks = {
        name: (COVERAGES.tolist(), each.scores.risk_coverage(COVERAGES).tolist())
        for name, each in ways.items()
        if not each.scaled  # which leaves the order of the doubts, or nearly so
    }
    curve = [
        {"prediction": name, "coverage": x, "risk": y}
        for name, (shares, losses) in risks.items()
        for x, y in zip(shares, losses, strict=True)
    ]
    write_csv(folder / f"{RISK_COVERAGE}.csv", curve, ("prediction", "coverage", "risk"))
    about = "unseen tasks, mean over seeds; level: doubt that tells nothing"
    draw_risk_coverage(risks, folder, title=title, about=about, risk=risk)


def reliability(scores: Scores) -> Iterable[tuple[float, float, float]]:
    """What is said, what is so, and the share of the predictions, from the least confidence or level to the highest."""
    if scores.kind == "classification":
        return zip(*(each.tolist() for each in scores.bins()), strict=True)
    covered = scores.coverage(LEVELS, np.ones_like(scores.level))
    return zip(LEVELS.tolist(), covered.tolist(), [1.0] * len(LEVELS), strict=True)
