"""What every figure shares: its look, its head, names at the ends of its lines, and the files it becomes."""

from __future__ import annotations

import functools
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from fedbilevel.figures.colours import Style
from fedbilevel.results.files import PathLike, write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET = "#222222", "#6b6b6b"
_WIDTH, _HEIGHT = 7.6, 4.5  # inches, with the room for names on the right and for the head
_LEFT, _RIGHT, _BOTTOM, _TOP = 0.62, 1.84, 0.55, 0.75  # inches around the axes
_LINE = 13.0 / 72.0  # inches from one name to the next
_LOOK = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters on every machine
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#888888",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": False,
    "lines.scale_dashes": True,
    "svg.fonttype": "none",  # text stays text: it can be searched, selected and edited
    "svg.hashsalt": "fedbilevel",
    "pdf.fonttype": 42,
}
# Without dates and versions, the same figure is the same bytes.
_METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


KINDS = tuple(_METADATA)
"""The files that a figure becomes, by their suffixes."""


@dataclass(frozen=True)
class Name:
    """A line's name: where the line ends (in data), and how it is drawn."""

    text: str
    x: float
    y: float
    style: Style


@contextmanager
def look() -> Iterator[None]:
    """The style of all figures while this lasts: a person's own matplotlibrc must not change the bytes."""
    from matplotlib import style  # slow to import, and most commands draw nothing

    with style.context(["default", _LOOK]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in letters that the font lacks
        yield


def framed(title: str, about: str, lines: int) -> tuple[Figure, Axes]:
    """A figure with its head above empty axes that have room for the names of so many lines on their right.

    about: what stands small below the title.
    """
    from matplotlib.figure import Figure

    top = _TOP + head_height(title, about)
    inside = max(_HEIGHT - _BOTTOM - _TOP, 1.06 * _LINE * lines)
    width, height = _WIDTH, _BOTTOM + inside + top
    figure = Figure(figsize=(width, height))
    place = (_LEFT / width, _BOTTOM / height, (width - _LEFT - _RIGHT) / width, inside / height)
    axes = figure.add_axes(place)
    head(figure, title, about, _LEFT, _BOTTOM + inside)
    rule(axes)
    axes.tick_params(length=3, pad=4)
    axes.tick_params(which="minor", length=2, pad=5)  # where they have numbers, these stand in line with the others
    return figure, axes


def rule(axes: Axes) -> None:
    """Draw the thin lines of the grid, behind everything."""
    axes.grid(True, color="#e9e9e9", linewidth=0.7)
    axes.set_axisbelow(True)


def _wrapped(title: str, about: str, width: float) -> tuple[list[str], list[str]]:
    """Title and what is below it, in lines that fit a figure of this width in inches."""
    titles = textwrap.wrap(title, round(58 * width / _WIDTH), break_on_hyphens=False) or [""]
    return titles, textwrap.wrap(about, round(96 * width / _WIDTH), break_on_hyphens=False)


def head_height(title: str, about: str, width: float = _WIDTH) -> float:
    """How many inches a head needs beyond that of one line each."""
    titles, abouts = _wrapped(title, about, width)
    return 0.22 * (len(titles) - 1) + 0.17 * max(len(abouts) - 1, 0)


def head(figure: Figure, title: str, about: str, left: float, base: float) -> None:
    """Write the title, and `about` small below it, above a height of the figure; both places in inches."""
    width, height = figure.get_size_inches()
    titles, abouts = _wrapped(title, about, width)
    drawn: dict[str, Any] = {"ha": "left", "va": "baseline", "parse_math": False}
    for count, text in enumerate(reversed(abouts)):
        place = base + 0.14 + 0.17 * count
        figure.text(left / width, place / height, text, fontsize=9, color=QUIET, **drawn)
    for count, text in enumerate(reversed(titles)):
        place = base + 0.24 + 0.17 * len(abouts) + 0.22 * count
        figure.text(left / width, place / height, text, fontsize=13, fontweight="bold", **drawn)


def name_lines(axes: Axes, names: Sequence[Name]) -> None:
    """Write each line's name at the right of the axes, with a sample of the line and a thin lead from its end.

    Names keep the order of the ends, as near to them as they can be without touching. To be called when the limits and
    the scales of the axes stand.
    """
    to_axes = axes.transAxes.inverted()
    ends = [to_axes.transform(axes.transData.transform((name.x, name.y))) for name in names]
    inside = axes.get_figure().get_size_inches()[1] * axes.get_position().height  # type: ignore[union-attr]  # it has one
    order = sorted(range(len(names)), key=lambda i: (ends[i][1], -i))
    wanted = [min(max(float(ends[i][1]), 0.0), 1.0) for i in order]
    for i, height in zip(order, spaced(wanted, _LINE / inside), strict=True):
        name, (x, y) = names[i], ends[i]
        drawn: dict[str, Any] = {"transform": axes.transAxes, "color": name.style.colour, "clip_on": False}
        axes.plot([x, 1.03], [min(max(y, 0.0), 1.0), height], linewidth=0.7, linestyle=(0, (1, 2)), alpha=0.7, **drawn)
        axes.plot([1.03, 1.105], [height, height], linestyle=name.style.dash, linewidth=1.9, **drawn)
        drawn |= {"va": "center_baseline", "fontsize": 9, "parse_math": False}  # a name is a name, also with a $
        axes.text(1.12, height, name.text, **drawn)


def spaced(wanted: Sequence[float], gap: float) -> list[float]:
    """Places in the order of `wanted`, which ascends, at least `gap` apart, as near to it as the squares say.

    Neighbours that are too close become a block around the mean of what they want, and blocks that touch become one.
    All lie within [0, 1] if there is room.

    >>> [round(place, 3) for place in spaced([0.5, 0.5, 0.9], 0.1)], spaced([1.0, 1.0], 0.25)
    ([0.45, 0.55, 0.9], [0.75, 1.0])
    """
    blocks: list[tuple[float, int]] = []  # where the first of a block would best lie, and how many are in it
    for i, place in enumerate(wanted):
        best, count = place - i * gap, 1
        while blocks and blocks[-1][0] >= best:
            before, more = blocks.pop()
            best, count = (before * more + best * count) / (more + count), more + count
        blocks.append((best, count))
    last = max(1.0 - (len(wanted) - 1) * gap, 0.0)
    firsts = [min(max(best, 0.0), last) for best, count in blocks for _ in range(count)]
    return [first + i * gap for i, first in enumerate(firsts)]


def save(figure: Figure, folder: PathLike, stem: str) -> list[Path]:
    """Write a figure as PNG, SVG and PDF; returns the paths. Raises BadInput for a file that cannot be written."""
    written = []
    for suffix, metadata in _METADATA.items():
        path = Path(folder) / f"{stem}.{suffix}"
        write_whole(path, functools.partial(_write, figure, suffix, metadata))
        written.append(path)
    return written


def _write(figure: Figure, suffix: str, metadata: dict[str, None], file: BinaryIO) -> None:
    figure.savefig(file, format=suffix, dpi=160, bbox_inches="tight", pad_inches=0.15, metadata=metadata)
