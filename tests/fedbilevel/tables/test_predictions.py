"""The table of ways of predicting, and its csv."""

from __future__ import annotations

from fedbilevel.statistics.clusters import Interval
from fedbilevel.tables.predictions import PREDICTION_COLUMNS, Prediction, prediction_sheet

POINT = Prediction("maml", "maml", 1, False, 5, 600, None, None, 1.25, {"nll": Interval(2.0, 1.5, 2.25)})
SCALED = Prediction("ibaml, scaled", "ibaml", 1, True, 5, 600, 3.0, 0.1, 0.5, {"nll": Interval(1.0, 0.5, 1.75)})


def test_a_row_says_what_there_is() -> None:
    sheet = prediction_sheet([POINT, SCALED])
    assert list(sheet.columns) == ["prediction", "seeds", "tasks", "NLL", "T", "posterior", "NLL in training"]
    assert sheet.rows[0] == ["maml", "5", "600", "2.000 (1.500–2.250)", "—", "—", "1.25"]
    assert sheet.rows[1] == ["ibaml, scaled", "5", "600", "1.000 (0.500–1.750)", "3", "0.1", "0.500"]


def test_the_csv_has_a_row_for_every_measure() -> None:
    (row,) = SCALED.lines()
    assert list(row) == list(PREDICTION_COLUMNS)
    assert (row["measure"], row["value"], row["low"], row["high"]) == ("nll", 1.0, 0.5, 1.75)
