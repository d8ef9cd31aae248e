"""What came out of the runs, as tables: what each algorithm spent until each target, and where it ended."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from fedbilevel.results.history import PRIVACY_COLUMNS, Row, number
from fedbilevel.results.spread import QUARTILES_FROM, spread
from fedbilevel.results.summary import PARTS, runs
from fedbilevel.results.targets import Target, has_accuracy, measured, named
from fedbilevel.tables.sheet import Sheet

Line = dict[str, Any]
"""A row of the summary; of a comparison, with `ratio` and `ratio_is` too."""

NEVER = "—"
LATER = "> : more than that; the median seed had not arrived when it ended"
_BYTES = ("B", "kB", "MB", "GB", "TB", "PB")
_UNSEEN = {
    "metric_unadapted_loss": "loss before",
    "test_loss": "loss after",
    "metric_nll": "NLL",
    "metric_ece": "calibration error",
    "metric_uncertainty_auroc": "AUROC of the entropy",
    "metric_uncertainty_spearman": "rank correlation of deviation and error",
}


def digits(value: float) -> str:
    """Three digits or more of a number.

    >>> [digits(v) for v in (0.0, 3.14159e-7, 0.0123456, 0.5, 12.34, 692.3, 123456.0)]
    ['0', '3.14e-07', '0.0123', '0.500', '12.3', '692', '123456']
    """
    if value == 0.0 or not math.isfinite(value):
        return f"{value:g}"
    size = abs(value)
    if size < 1e-3 or size >= 1e7:
        return f"{value:.2e}"
    return f"{value:#.3g}" if size < 1.0 else f"{value:.{max(0, 2 - int(math.log10(size)))}f}"


def share(value: float) -> str:
    """An accuracy."""
    return f"{value:.4f}"


def count(value: float, *beside: float) -> str:
    """A number of rounds: whole where it is, as what stands beside it is, or where it is large.

    >>> count(60.0), count(46.4), count(60.0, 46.4), count(692.3)
    ('60', '46.4', '60.0', '692')
    """
    return f"{value:.0f}" if value >= 100 or all(each.is_integer() for each in (value, *beside)) else f"{value:.1f}"


def results(summary: Sequence[Line], rows: Sequence[Row]) -> list[Sheet]:
    """All tables of what came out of these rows, of which this is the summary."""
    last = unseen(rows)
    return [*sheets(summary), *([last] if last else [])]


def sheets(summary: Sequence[Line]) -> list[Sheet]:
    """The tables of a summary: one for each target, and one of the ends."""
    levels = list(dict.fromkeys(_target(line) for line in summary))
    found = [_spent(summary, level) for level in levels if level is not None]
    return [*found, _ended(summary, levels)] if summary else []


def _target(line: Line) -> Target | None:
    if line["target_column"] is None:
        return None
    return Target.model_validate({"column": line["target_column"], line["target_direction"]: line["target_threshold"]})


def _spent(summary: Sequence[Line], target: Target) -> Sheet:
    lines = [line for line in summary if _target(line) == target]
    compared = "ratio" in lines[0]
    sizes = [line[name] or 0.0 for line in summary for name in ("uplink_bytes", "downlink_bytes")]
    power = min(int(math.log10(max(*sizes, 1.0)) / 3), len(_BYTES) - 1)
    rows = []
    for line in lines:
        cells = [str(line["algorithm"]), _reached(line), _with_range(line), *([_ratio(line)] if compared else [])]
        cells += [_median(line, name, 1000.0**power) for name in ("uplink_bytes", "downlink_bytes")]
        cells += [_median(line, name) for name in ("simulated_seconds", "wall_seconds")]
        rows.append(cells)
    unit = _BYTES[power]
    columns = ["algorithm", "seeds", "rounds", *(["ratio"] if compared else [])]
    columns += [f"{unit} up", f"{unit} down", "sim. s", "wall s"]
    title = f"Spent until {target.text}{_over(lines)}"
    note = LATER if any(line["censored"] for line in lines) else ""
    return Sheet(title, columns, rows, note)


def _over(lines: Sequence[Line]) -> str:
    """What the numbers are of the seeds: nothing needs saying of one."""
    counts = {line["seeds"] for line in lines}
    if counts == {1}:
        return ""
    kinds = {"quartiles" if n >= QUARTILES_FROM else "lowest–highest" for n in counts if n > 1}
    of = f"{counts.pop()}" if len(counts) == 1 else "the"
    return f": median of {of} seeds ({' or '.join(sorted(kinds))})"


def _reached(line: Line) -> str:
    return NEVER if line["seeds_reached"] is None else f"{line['seeds_reached']}/{line['seeds']}"


def _median(line: Line, name: str, unit: float = 1.0) -> str:
    if line[name] is None:
        return NEVER
    return f"{'> ' if line['censored'] else ''}{digits(line[name] / unit)}"


def _with_range(line: Line) -> str:
    """Rounds with their spread, which has no upper end where that is at seeds that never arrived."""
    if line["rounds"] is None:
        return NEVER
    three = [line[f"rounds{part}"] for part in PARTS]
    median, low, high = (count(value, *three) for value in three)
    text = f"{'> ' if line['censored'] else ''}{median}"
    if line["low_censored"] or (three[1] == three[2] and not line["high_censored"]):
        return text
    return f"{text} ({low}–{'' if line['high_censored'] else high})"


def _ratio(line: Line) -> str:
    if line["ratio"] is None:
        return NEVER
    side = {"at_least": "> ", "at_most": "< "}.get(str(line["ratio_is"]), "")
    return f"{side}{line['ratio']:.2f}"


def _ended(summary: Sequence[Line], levels: Sequence[Target | None]) -> Sheet:
    lines = list({line["algorithm"]: line for line in summary}.values())
    table = {"algorithm": [str(line["algorithm"]) for line in lines]}
    if len({line["seeds"] for line in lines}) > 1:
        table["seeds"] = [str(line["seeds"]) for line in lines]
    if len({line[f"final_round{part}"] for line in lines for part in PARTS}) > 1:
        table["rounds"] = [_value(line, "final_round", count) for line in lines]
    bounded = [level.column for level in levels if level is not None]
    accurate = any(line["final_test_accuracy"] is not None for line in lines)
    main = ("test_accuracy", "best_test_accuracy", "upper_loss") if accurate else ("upper_loss", "test_loss")
    for column in dict.fromkeys([*main, *bounded, *PRIVACY_COLUMNS]):
        best, form = column.startswith("best_"), share if "accuracy" in column else digits
        cells = [_value(line, column if best else f"final_{column}", form, not best) for line in lines]
        if any(cell != NEVER for cell in cells):
            table["best" if best else named(column)] = cells
    if "ratio" in lines[0] and levels == [None]:
        table["ratio"] = [_ratio(line) for line in lines]
    return Sheet(f"Where the runs ended{_over(lines)}", list(table), list(zip(*table.values(), strict=True)))


def _value(line: Line, name: str, form: Callable[[float], str], ranged: bool = True) -> str:
    middle, low, high = (line.get(f"{name}{part}") for part in PARTS)
    if middle is None or low is None or high is None:
        return NEVER
    return form(middle) if low == high or not ranged else f"{form(middle)} ({form(low)}–{form(high)})"


def unseen(rows: Sequence[Row]) -> Sheet | None:
    """The measures of adaptation to unseen tasks at the end of the runs, medians over seeds; None where there are none.

    Behind the accuracy (or the loss) stands half the 95 % interval of its mean over the tasks, of one seed.
    """
    ended: dict[str, list[Row]] = {}
    for name, by_seed in runs(rows).items():
        last = [run[-1] for run in by_seed.values() if number(run[-1], "metric_test_interval") is not None]
        if last:
            ended[name] = last
    if not ended:
        return None
    main = "test_accuracy" if has_accuracy(rows) else "test_loss"
    there = measured((row for last in ended.values() for row in last), _UNSEEN)
    columns = {key: _UNSEEN[key] for key in there if key != main}
    if "metric_unadapted_loss" not in columns:
        columns.pop("test_loss", None)

    def median(last: Sequence[Row], key: str, form: str) -> str:
        found = spread([value for row in last if (value := number(row, key)) is not None])
        return NEVER if found is None else f"{found.median.value:{form}}"

    lines = [
        [name, f"{median(last, main, '.4f')} ± {median(last, 'metric_test_interval', '.4f')}"]
        + [median(last, key, ".3f") for key in columns]
        for name, last in ended.items()
    ]
    seeds = {len(by_seed) for by_seed in runs(rows).values()}
    of = "" if seeds == {1} else ": medians over seeds"
    return Sheet(f"Adapted to unseen tasks, at the end{of}", ["algorithm", named(main), *columns.values()], lines)
