"""The figure: accuracy (or upper loss) against what was spent, one line per algorithm, a band over its seeds."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from fedbilevel.errors import unknown
from fedbilevel.results.files import PathLike, write_whole
from fedbilevel.results.history import Row, number
from fedbilevel.results.summary import has_accuracy, resolve_targets, runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

XAxis = Literal["rounds", "bytes", "seconds"]
Vector = NDArray[np.float64]

# Okabe and Ito's colours that hold on white (without the yellow). Seven colours and four dashes are coprime, so that
# 28 algorithms differ and neighbours differ in both.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
_DASHES: tuple[Any, ...] = ("solid", (0, (6, 2)), (0, (6, 2, 1.2, 2)), (0, (2, 1.4)))
_INK, _QUIET = "#222222", "#6b6b6b"
_LARGEST = 1e200  # a run that diverged past this has no place on a figure, and its squares and ratios would overflow
_STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters on every machine
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": "#888888",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": False,
    "svg.fonttype": "none",  # text stays text: it can be searched, selected and edited
    "svg.hashsalt": "fedbilevel",
}


@dataclass(frozen=True)
class Curve:
    """One algorithm: the mean, lowest and highest of its seeds at the points `x` where every seed has a value."""

    algorithm: str
    seeds: int
    x: Vector
    mean: Vector
    low: Vector
    high: Vector


def draw(
    rows: Sequence[Row],
    folder: PathLike,
    *,
    title: str,
    targets: Sequence[float] | None = None,
    x_axis: XAxis = "rounds",
) -> list[Path]:
    """Write `{x_axis}_vs_accuracy.png` and `.svg` into the folder and return their paths.

    A problem without accuracy shows its upper loss instead. The same rows give the same bytes.

    Args:
        rows: the history.
        folder: an existing folder.
        title: the heading.
        targets: accuracies to mark; None marks common levels that some run reached.
        x_axis: `rounds`; `bytes` (uplink and downlink of the whole federation); `seconds` (simulated).

    Raises:
        BadInput: an unknown `x_axis`, a target outside (0, 1], or a file that cannot be written.
    """
    if x_axis not in ("rounds", "bytes", "seconds"):
        raise unknown("x_axis", x_axis, ("rounds", "bytes", "seconds"))
    from matplotlib import style  # slow to import, and most commands draw nothing

    written = []
    # The default style first: a person's own matplotlibrc must not change the bytes.
    with style.context(["default", _STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in letters that the font lacks
        figure = _figure(rows, title, targets, x_axis)
        for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            path = Path(folder) / f"{x_axis}_vs_accuracy.{suffix}"
            write_whole(path, functools.partial(_save, figure, suffix, metadata))
            written.append(path)
    return written


def curves(rows: Sequence[Row], x_axis: XAxis, column: str) -> list[Curve]:
    """The curve of each algorithm that has at least one finite value, in order of first appearance.

    Seeds need not share their evaluation points: each holds its last value on the union of all points. A curve spans
    only what every one of its seeds covers, so that nothing is extrapolated and no seed silently leaves the mean.
    """
    found = []
    for algorithm, by_seed in runs(rows).items():
        lines = [line for run in by_seed.values() if (line := _points(run, x_axis, column))]
        if not lines:
            continue
        first, last = max(min(line) for line in lines), min(max(line) for line in lines)
        if first > last:  # one seed ends before another begins: no point is covered by all
            continue
        grid = np.array(sorted({x for line in lines for x in line if first <= x <= last}))
        values = np.stack([_hold(line, grid) for line in lines])
        found.append(Curve(algorithm, len(lines), grid, values.mean(0), values.min(0), values.max(0)))
    return found


def _points(run: list[Row], x_axis: XAxis, column: str) -> dict[float, float]:
    """The finite points of one run; of several values at one x, the last."""
    points = {}
    for row in run:
        x, y = _spent(row, x_axis), number(row, column)
        if x is not None and y is not None and math.isfinite(x) and abs(y) < _LARGEST:
            points[x] = y if abs(y) > 1.0 / _LARGEST else 0.0
    return points


def _spent(row: Row, x_axis: XAxis) -> float | None:
    if x_axis == "rounds":
        return number(row, "round")
    if x_axis == "seconds":
        return number(row, "simulated_seconds")
    up, down = number(row, "uplink_bytes"), number(row, "downlink_bytes")
    return None if up is None or down is None else up + down


def _hold(line: dict[float, float], grid: Vector) -> Vector:
    """The line's last value at or before each point of the grid, which begins at or after the line does."""
    x = np.array(sorted(line))
    y = np.array([line[point] for point in x.tolist()])
    held: Vector = y[np.searchsorted(x, grid, side="right") - 1]
    return held


def _save(figure: Figure, suffix: str, metadata: dict[str, None], file: BinaryIO) -> None:
    figure.savefig(file, format=suffix, dpi=160, bbox_inches="tight", pad_inches=0.15, metadata=metadata)


def _figure(rows: Sequence[Row], title: str, targets: Sequence[float] | None, x_axis: XAxis) -> Figure:
    from matplotlib.figure import Figure

    accuracy = has_accuracy(rows)
    lines = curves(rows, x_axis, "test_accuracy" if accuracy else "upper_loss")
    figure = Figure(figsize=(7.2, 4.5))
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold", pad=24, parse_math=False)
    unit, label = _unit(lines, x_axis)
    axes.set_xlabel(label, labelpad=7)
    axes.set_ylabel("test accuracy" if accuracy or not rows else "upper loss", labelpad=7)
    axes.grid(True, color="#e9e9e9", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=3, pad=4)
    if not lines:
        axes.set(xticks=[], yticks=[])
        text = "no evaluations yet" if not rows else "nothing finite to show on these axes"
        axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=_QUIET)
        return figure
    axes.text(0, 1.03, _subtitle(lines), transform=axes.transAxes, fontsize=9, color=_QUIET)
    styles = {name: (_COLOURS[i % 7], _DASHES[i % 4]) for i, name in enumerate(runs(rows))}
    for line in lines:
        _draw_curve(axes, line, unit, *styles[line.algorithm])
    _scale(axes, lines, unit, x_axis, accuracy)
    levels = resolve_targets(rows, targets) if accuracy else []
    _draw_targets(axes, levels, asked=targets is not None)
    _draw_legend(axes, lines, styles, left=1.08 if levels else 1.03)
    return figure


def _draw_curve(axes: Axes, line: Curve, unit: float, colour: str, dashes: Any) -> None:
    x = line.x / unit
    if line.seeds > 1:
        axes.fill_between(x, line.low, line.high, color=colour, alpha=0.16, linewidth=0)
    axes.plot(x, line.mean, color=colour, linestyle=dashes, linewidth=1.9, solid_capstyle="round")
    axes.plot(x[-1:], line.mean[-1:], "o", color=colour, markersize=4.5, clip_on=False, zorder=4)  # here it ends


def _draw_targets(axes: Axes, targets: Sequence[float], asked: bool) -> None:
    low, high = axes.get_ylim()
    if asked:  # a target that someone asked for is shown even where no run came near
        low, high = min([low, *(0.99 * t for t in targets)]), max([high, *(1.01 * t for t in targets)])
        axes.set_ylim(low, high)
    labelled = -math.inf
    for target in sorted(target for target in targets if target > low):
        axes.axhline(target, color="#808080", linestyle=(0, (1, 2.2)), linewidth=0.9, zorder=1)
        if target - labelled > 0.035 * (high - low):  # else the label would lie on the one below
            axes.annotate(
                f"{target:g}",
                (1, target),
                xycoords=axes.get_yaxis_transform(),
                xytext=(6, 0),
                textcoords="offset points",
                va="center_baseline",
                fontsize=8,
                color=_QUIET,
            )
            labelled = target


def _draw_legend(axes: Axes, lines: list[Curve], styles: dict[str, tuple[str, Any]], left: float) -> None:
    """Beside the axes, where it covers no curve, in the order in which the curves end."""
    from matplotlib.lines import Line2D

    ordered = sorted(lines, key=lambda line: -line.mean[-1])
    handles = []
    for line in ordered:
        colour, dashes = styles[line.algorithm]
        handles.append(Line2D([], [], color=colour, linestyle=dashes, linewidth=1.9))
    legend = axes.legend(
        handles,
        [" "] * len(ordered),
        loc="upper left",
        bbox_to_anchor=(left, 1.02),
        borderaxespad=0,
        frameon=False,
        handlelength=2.9,
        labelspacing=0.65,
    )
    for text, line in zip(legend.get_texts(), ordered, strict=True):
        text.set_parse_math(False)  # a name is a name, also with a dollar sign or a leading underscore
        text.set_text(line.algorithm)


def _subtitle(lines: list[Curve]) -> str:
    seeds = sorted({line.seeds for line in lines})
    if seeds == [1]:
        return "one seed"
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return f"line: mean of {count} seeds; band: lowest to highest seed"


def _unit(lines: list[Curve], x_axis: XAxis) -> tuple[float, str]:
    """What to divide x by, and the label that says so."""
    most = max((float(line.x[-1]) for line in lines), default=0.0)
    if x_axis == "rounds":
        return 1.0, "communication rounds"
    if x_axis == "bytes":
        units = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
        size, name = next((unit for unit in units if most >= unit[0]), (1.0, "bytes"))
        return size, f"communication of the whole federation, uplink + downlink ({name})"
    size, name = next((u for u in ((3600.0, "hours"), (60.0, "minutes")) if most >= 2 * u[0]), (1.0, "seconds"))
    return size, f"simulated time ({name})"


def _scale(axes: Axes, lines: list[Curve], unit: float, x_axis: XAxis, accuracy: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    least, most = min(float(c.x[0]) for c in lines) / unit, max(float(c.x[-1]) for c in lines) / unit
    least = min(least, 0.0)
    axes.set_xlim(least, most + 0.02 * (most - least) if most > least else least + 1.0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=x_axis == "rounds", steps=[1, 2, 5, 10]))
    low, high = min(float(c.low.min()) for c in lines), max(float(c.high.max()) for c in lines)
    if accuracy:
        if low >= 0.0 and high <= 1.0:  # room above and below, but none where no accuracy can be
            pad = 0.04 * (high - low) or 0.02
            axes.set_ylim(max(low - pad, -0.01), min(high + pad, 1.01))
        return
    if low > 0.0:
        axes.set_yscale("log")
        if high < 10.0 * low:  # within a decade plain numbers read better than powers of ten
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")
        return
    sizes = np.abs(np.concatenate([np.concatenate([c.low, c.high]) for c in lines]))
    if high > 0.0 and low >= -0.01 * high:  # runs into zero: linear around it, logarithmic above
        smallest = max(float(sizes[sizes > 0.0].min()), 1e-8 * high)
        threshold = 10.0 ** math.floor(math.log10(smallest))
        axes.set_yscale("symlog", linthresh=threshold)
        axes.set_ylim(2.0 * low, 2.0 * high)  # no room for negative powers that no run shows
    # else a loss that goes well below zero: the linear scale
