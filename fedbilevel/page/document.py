"""The chart: a Bokeh document without numbers, and the part of Bokeh's own script that shows it.

The page's script fills its sources, so that one document serves every history. Bokeh is imported when it is needed.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

from fedbilevel.figures.canvas import INK, QUIET

if TYPE_CHECKING:
    from bokeh.plotting import figure

ELEMENT = "chart"
"""The element of the page that holds the chart."""
_FONT = "system-ui, sans-serif"
_ROW = f'<span style="color: {QUIET}">@{{0}}_name</span><span>@{{0}}_text</span>'
_GRID = "display: grid; grid-template-columns: auto auto; justify-content: start; column-gap: 10px"
_TIP = f"""<div style="font: 13px/1.5 {_FONT}; color: {INK}; max-width: 280px; overflow-wrap: anywhere">
<b style="color: @colour">@label</b> <span style="color: {QUIET}">@whose</span>
<div style="{_GRID}">{"".join(_ROW.format(name) for name in ("y", "more", "x"))}</div></div>"""
_REACH = 18
"""A line answers to a pointer within half of so many pixels."""


@functools.cache
def script() -> str:
    """Bokeh's script that draws, without its widgets, tables or WebGL."""
    from bokeh.resources import Resources

    return "\n".join(Resources(mode="inline", components=["bokeh"], minified=True).js_raw)


@functools.cache
def document() -> str:
    """The chart as JSON for `Bokeh.embed.embed_item`: the same bytes in every process.

    The page's script finds its parts by their names: the sources `bands`, `lines`, `points` (which answer to the
    pointer), `dots`, `crosses` and `targets`; the axes `x`, `linear` and `log`, with their grids.
    """
    from bokeh.embed import json_item

    item = json_item(_chart(), ELEMENT)  # type: ignore[arg-type]  # the name of an element, as its docstring says
    return json.dumps(_renumbered(item, {}), separators=(",", ":"))


def _renumbered(value: Any, names: dict[str, str]) -> Any:
    """The same with the parts named in their order: Bokeh's own count goes on from whatever was made before."""
    if isinstance(value, dict):
        for key in ("id", "root_id"):
            if isinstance(value.get(key), str):
                names.setdefault(value[key], f"part{len(names)}")
        return {key: _renumbered(each, names) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_renumbered(each, names) for each in value]
    return names.get(value, value) if isinstance(value, str) else value


def _chart() -> figure:
    from bokeh.models import Range1d
    from bokeh.plotting import figure

    chart = figure(
        name="chart",
        height=440,
        sizing_mode="stretch_width",
        x_range=Range1d(start=0.0, end=1.0),
        y_range=Range1d(start=0.1, end=1.0),
        x_axis_location=None,
        y_axis_location=None,
        tools="box_zoom,pan,wheel_zoom,reset,save",
        active_drag="box_zoom",
        active_scroll=None,
        toolbar_location="above",
        outline_line_color=None,
    )
    chart.toolbar.logo = None
    _axes(chart)
    _glyphs(chart)
    return chart


def _axes(chart: figure) -> None:
    """One axis below; two on the left, of which one is seen at a time."""
    from bokeh.models import FixedTicker, Grid, LinearAxis, LogAxis

    text: dict[str, Any] = {
        "axis_label_text_font": _FONT,
        "axis_label_text_font_size": "13px",
        "axis_label_text_font_style": "normal",
        "axis_label_text_color": INK,
        "major_label_text_font": _FONT,
        "major_label_text_font_size": "12px",
        "major_label_text_color": "#444444",
        "axis_line_color": "#888888",
        "major_tick_line_color": "#888888",
        "minor_tick_line_color": None,
        "major_tick_in": 0,
    }
    decades = LogAxis(name="log")
    decades.update(ticker=FixedTicker(ticks=[]))  # the page's script sets them
    for axis in (LinearAxis(name="x"), LinearAxis(name="linear"), decades):
        below = axis.name == "x"
        axis.update(**text, visible=below)  # until there is something to show
        chart.add_layout(axis, "below" if below else "left")
        grid = Grid(name=f"{axis.name}-grid", dimension=0 if below else 1, axis=axis, grid_line_color="#e9e9e9")
        chart.add_layout(grid, "center")


def _glyphs(chart: figure) -> None:
    """Few glyphs for all curves: what belongs to one of them is a column."""
    from bokeh.models import ColumnDataSource, HoverTool

    def source(name: str, *columns: str) -> ColumnDataSource:
        return ColumnDataSource({column: [] for column in columns}, name=name)

    ends = ("x", "y", "colour")
    chart.hspan(y="y", source=source("targets", "y"), line_color="#808080", line_dash=[1, 3], line_width=1)
    bands = source("bands", "xs", "ys", "colour", "alpha")
    chart.patches("xs", "ys", source=bands, fill_color="colour", fill_alpha="alpha", line_color=None)
    lines = source("lines", "xs", "ys", "colour", "dash", "width", "alpha")
    chart.multi_line(
        *("xs", "ys"),
        source=lines,
        line_color="colour",
        line_dash="dash",
        line_width="width",
        line_alpha="alpha",
        line_join="round",
    )
    chart.scatter("x", "y", source=source("dots", *ends), color="colour", size=6)
    chart.scatter("x", "y", source=source("crosses", *ends), color="colour", marker="x", size=11, line_width=2.5)
    texts = ("label", "whose", "colour", "x_name", "x_text", "y_name", "y_text", "more_name", "more_text")
    points = chart.line("x", "y", source=source("points", "x", "y", *texts), line_width=_REACH, line_alpha=0.0)
    chart.add_tools(HoverTool(renderers=[points], tooltips=_TIP, line_policy="nearest", visible=False))
