"""The figure of peak memory against inner steps, one line per algorithm, and its table."""

from __future__ import annotations

import csv
import functools
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedbilevel.results import figure as look
from fedbilevel.results.files import PathLike, write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Peaks = Mapping[str, Sequence[tuple[int, int]]]
"""Per algorithm: (inner steps, bytes), in increasing steps."""
_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))


def write_peaks(path: PathLike, peaks: Peaks) -> None:
    """Write `memory.csv`. Raises BadInput if it cannot be written."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["algorithm", "inner_steps", "peak_bytes"])
    writer.writerows((name, steps, size) for name, line in peaks.items() for steps, size in line)
    write_whole(path, text.getvalue().encode())


def draw_peaks(peaks: Peaks, folder: PathLike, *, title: str, about: str) -> list[Path]:
    """Write `memory_vs_inner_steps.png` and `.svg` into an existing folder; the same numbers give the same bytes.

    about: what stands small below the title. Raises BadInput if a file cannot be written.
    """
    from matplotlib import style  # slow to import

    written = []
    with style.context(["default", look._STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        drawn = _figure({name: line for name, line in peaks.items() if line}, title, about)
        for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            path = Path(folder) / f"memory_vs_inner_steps.{suffix}"
            write_whole(path, functools.partial(look._save, drawn, suffix, metadata))
            written.append(path)
    return written


def _figure(peaks: Peaks, title: str, about: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.5))
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold", pad=24, parse_math=False)
    axes.text(0, 1.03, about, transform=axes.transAxes, fontsize=9, color=look._QUIET, parse_math=False)
    axes.set_xlabel("inner steps", labelpad=7)
    axes.set_ylabel("peak memory of a meta-gradient", labelpad=7)
    axes.grid(True, color="#e9e9e9", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=3, pad=4)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for i, (name, line) in enumerate(peaks.items()):
        steps, sizes = zip(*line, strict=True)
        colour, dashes = look._COLOURS[i % 7], look._DASHES[i % 4]
        axes.plot(steps, sizes, color=colour, linestyle=dashes, linewidth=1.9, marker="o", markersize=4.5, label=name)
    if peaks:
        _scale(axes, peaks)
        _label(axes, peaks)
    return figure


def _scale(axes: Axes, peaks: Peaks) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    found = sorted({steps for line in peaks.values() for steps, _ in line})
    sizes = [max(size, 1) for line in peaks.values() for _, size in line]
    axes.xaxis.set_major_locator(FixedLocator(found))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(FixedLocator([]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda size, position: size_text(size)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    low, high = min(sizes), max(sizes)
    if high < 30 * low:  # little more than a decade would have one tick
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda size, position: size_text(size)))
    axes.set_ylim(low / 1.6, high * 1.6)


def _label(axes: Axes, peaks: Peaks) -> None:
    """Each line's name at its right end, moved up where two would lie on each other, with a thin line to its end."""
    bottom, top = (math.log10(limit) for limit in axes.get_ylim())
    place = -1.0
    for name in sorted(peaks, key=lambda name: peaks[name][-1][1]):
        steps, size = peaks[name][-1]
        height = (math.log10(max(size, 1)) - bottom) / (top - bottom)
        place = max(height, place + 0.052)
        colour = look._COLOURS[list(peaks).index(name) % 7]
        axes.annotate(
            name,
            (steps, size),
            xytext=(1.045, place),
            textcoords="axes fraction",
            color=colour,
            va="center_baseline",
            fontsize=9,
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.5, "shrinkA": 1, "shrinkB": 4},
        )


def size_text(size: float) -> str:
    """Bytes in the largest unit that they fill.

    >>> size_text(3_264_048), size_text(10_000), size_text(8)
    ('3.26 MB', '10 kB', '8 B')
    """
    unit, name = next((unit for unit in _UNITS if size >= unit[0]), _UNITS[-1])
    return f"{size / unit:.3g} {name}"
