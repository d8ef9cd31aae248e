"""What ways of predicting are worth on unseen tasks, as a table: measures with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedbilevel.statistics.clusters import Interval
from fedbilevel.tables.outcome import NEVER, digits
from fedbilevel.tables.sheet import Sheet

_SHOWN = {
    "nll": "NLL",
    "calibration_error": "calibration error",
    "accuracy": "accuracy",
    "squared_error": "squared error",
    "risk_coverage_area": "risk-coverage area",
    "coverage_50": "50 % covers",
    "coverage_80": "80 % covers",
    "coverage_95": "95 % covers",
}
PREDICTION_COLUMNS = (
    *("prediction", "algorithm", "members", "scaled", "seeds", "tasks", "temperature", "posterior_factor"),
    *("training_nll", "measure", "value", "low", "high"),
)
"""Of `uncertainty.csv`. temperature: fitted on tasks of training, the median over seeds; posterior_factor likewise."""


@dataclass(frozen=True)
class Prediction:
    """What one way of predicting is worth. name: of it; temperature, factor: medians over seeds, None where there are
    none.
    """

    name: str
    algorithm: str
    members: int
    scaled: bool
    seeds: int
    tasks: int
    temperature: float | None
    factor: float | None
    training_nll: float
    measures: Mapping[str, Interval]

    def lines(self) -> list[dict[str, object]]:
        """The rows of `uncertainty.csv`, one for each measure."""
        of = {
            "prediction": self.name,
            "algorithm": self.algorithm,
            "members": self.members,
            "scaled": self.scaled,
            "seeds": self.seeds,
            "tasks": self.tasks,
            "temperature": self.temperature,
            "posterior_factor": self.factor,
            "training_nll": self.training_nll,
        }
        return [of | {"measure": key, **vars(interval)} for key, interval in self.measures.items()]


def prediction_sheet(found: Sequence[Prediction]) -> Sheet:
    """The table of all ways of predicting."""
    there = [key for key in _SHOWN if key in found[0].measures]
    columns = ["prediction", "seeds", "tasks", *(_SHOWN[key] for key in there), "T", "posterior", "NLL in training"]
    rows = [
        [each.name, str(each.seeds), str(each.tasks)]
        + [_interval(each.measures[key]) for key in there]
        + [NEVER if value is None else f"{value:.3g}" for value in (each.temperature, each.factor)]
        + [digits(each.training_nll)]
        for each in found
    ]
    title = "On unseen tasks: 95 % intervals by the bootstrap over seeds and their tasks"
    note = (
        "T: temperature fitted on tasks of training; posterior: what they multiply its variance by; medians over seeds"
    )
    return Sheet(title, columns, rows, note)


def _interval(of: Interval) -> str:
    return f"{of.value:.3f} ({of.low:.3f}–{of.high:.3f})"
