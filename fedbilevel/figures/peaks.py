"""The figure of peak memory against inner steps, one line per algorithm, and its table."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedbilevel.figures.canvas import Name, framed, look, name_lines, save
from fedbilevel.figures.colours import styles
from fedbilevel.results.files import PathLike, write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Peaks = Mapping[str, Sequence[tuple[int, int]]]
"""Per algorithm: (inner steps, bytes), in increasing steps."""
_STEM = "memory_vs_inner_steps"
_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))


def write_peaks(path: PathLike, peaks: Peaks) -> None:
    """Write `memory.csv`. Raises BadInput if it cannot be written."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["algorithm", "inner_steps", "peak_bytes"])
    writer.writerows((name, steps, size) for name, line in peaks.items() for steps, size in line)
    write_whole(path, text.getvalue().encode())


def draw_peaks(peaks: Peaks, folder: PathLike, *, title: str, about: str) -> list[Path]:
    """Write `memory_vs_inner_steps` as `.png`, `.svg` and `.pdf` into an existing folder.

    The same numbers give the same bytes. about: what stands small below the title.

    Raises BadInput if a file cannot be written.
    """
    with look():
        return save(_figure({name: line for name, line in peaks.items() if line}, title, about), folder, _STEM)


def _figure(peaks: Peaks, title: str, about: str) -> Figure:
    figure, axes = framed(title, about, len(peaks))
    axes.set_xlabel("inner steps", labelpad=7)
    axes.set_ylabel("peak memory of a meta-gradient", labelpad=7)
    axes.set_xscale("log")
    axes.set_yscale("log")
    chosen = styles(peaks)
    names = []
    for name, line in peaks.items():
        steps, sizes = zip(*line, strict=True)
        drawn = chosen[name]
        axes.plot(steps, sizes, color=drawn.colour, linestyle=drawn.dash, linewidth=1.9, marker="o", markersize=4.5)
        names.append(Name(name, steps[-1], max(sizes[-1], 1), drawn))
    if peaks:
        _scale(axes, peaks)
        name_lines(axes, names)
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


def size_text(size: float) -> str:
    """Bytes in the largest unit that they fill.

    >>> size_text(3_264_048), size_text(10_000), size_text(8)
    ('3.26 MB', '10 kB', '8 B')
    """
    unit, name = next((unit for unit in _UNITS if size >= unit[0]), _UNITS[-1])
    return f"{size / unit:.3g} {name}"
