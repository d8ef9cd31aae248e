"""The page as text: headings, controls, tables and data around the chart, with everything of the user's escaped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from fedbilevel.page.document import ELEMENT, document, script
from fedbilevel.page.script import SCRIPT
from fedbilevel.page.style import STYLE
from fedbilevel.tables.sheet import Sheet

# Nothing of the page comes from anywhere else, and a browser is told so.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


@dataclass(frozen=True)
class Section:
    """A part of the page: its heading, which is also its link, and its HTML."""

    heading: str
    content: str

    @property
    def id(self) -> str:
        """What the link points to."""
        return self.heading.lower().replace(" ", "-")


def page(title: str, about: str, data: Mapping[str, Any], sections: Sequence[Section]) -> str:
    """The whole page; title and about are plain text, data what `payload` gives."""
    parts = [Section("Curves", curves(data)), *sections]
    links = "".join(f'<a href="#{each.id}">{escape(each.heading)}</a>' for each in parts)
    body = "".join(
        f'<section aria-labelledby="{each.id}"><h2 id="{each.id}">{escape(each.heading)}</h2>{each.content}</section>\n'
        for each in parts
    )
    chart = document().replace("<", "\\u003c") if data["y"] else "null"
    scripts = f"<script>{script()}</script>\n<script>{SCRIPT}</script>\n" if data["y"] else ""
    return f"""<!DOCTYPE html>
<html lang="en-GB">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="fedbilevel">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p class="about">{escape(about)}</p>
<nav aria-label="Sections">{links}</nav>
</header>
<main>
{body}</main>
<script type="application/json" id="data">{_json(data)}</script>
<script type="application/json" id="document">{chart}</script>
{scripts}</body>
</html>
"""


def _json(value: object) -> str:
    """JSON that no end of a script and no comment can be in."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def curves(data: Mapping[str, Any]) -> str:
    """The controls, the legend, the chart, and its numbers as a table; or that there is nothing to draw."""
    if not data["y"] or not data["x"]:
        return '<p class="note">No evaluations yet.</p>'
    options = "".join(_option(each["key"], each["label"], data["main"]) for each in data["y"])
    axes = "".join(_option(each["key"], each["name"], "rounds") for each in data["x"])
    several = any(len(method["seeds"]) > 1 for method in data["methods"])
    modes = (
        '<fieldset><legend>curves</legend><label><input type="radio" name="mode" id="median" checked> median and band'
        '</label><label><input type="radio" name="mode" id="each"> each seed</label></fieldset>'
    )
    legend = "".join(_button(method) for method in data["methods"])
    thinned = f" Every {_ordinal(data['step'])} evaluation of a run is shown, and its last." if data["step"] > 1 else ""
    return f"""
<div class="controls">
<label><span>y</span> <select id="y">{options}</select></label>
<label><span>against</span> <select id="x">{axes}</select></label>
<label class="check"><input type="checkbox" id="log"> logarithmic y</label>
{modes if several else modes.replace("<fieldset>", "<fieldset hidden>")}
<span class="zoom" role="group" aria-label="Zoom"><button type="button" id="closer" aria-label="Zoom in">+</button>
<button type="button" id="farther" aria-label="Zoom out">−</button>
<button type="button" id="reset">Reset view</button></span>
</div>
<div id="legend" role="group" aria-label="Methods shown">{legend}</div>
<figure><div id="{ELEMENT}" role="group" aria-label="Line chart"></div><div id="paper"></div>
<figcaption class="about">{_said(data["methods"])}{thinned}
<span id="nothing" role="status" hidden>Nothing to show on these axes.</span></figcaption></figure>
<details><summary>The numbers at the ends of the curves</summary>
<div class="table" role="region" tabindex="0" aria-labelledby="numbers-title"><table>
<caption><span id="numbers-title">Where each curve ends</span></caption>
<thead><tr><th scope="col">method</th><th scope="col">seeds</th><th scope="col">x</th><th scope="col">y</th>
<th scope="col">low–high</th></tr></thead><tbody id="numbers"></tbody></table></div></details>
<noscript><p class="note">The curves need JavaScript; the tables below do not.</p></noscript>
"""


def _option(key: str, label: str, chosen: str) -> str:
    return f'<option value="{escape(key)}"{" selected" if key == chosen else ""}>{escape(label)}</option>'


def _button(method: Mapping[str, Any]) -> str:
    dash = " ".join(f"{length:g}" for length in method["dash"])
    line = (
        f'<line x1="0" y1="6" x2="34" y2="6" stroke="{method["colour"]}" stroke-width="2.5" stroke-dasharray="{dash}"/>'
    )
    sample = f'<svg width="34" height="12" aria-hidden="true">{line}</svg>'
    return f'<button type="button" aria-pressed="true">{sample}{escape(method["label"])}</button>'


def _ordinal(number: int) -> str:
    return {2: "second", 3: "third"}.get(number, f"{number}th")


def _said(methods: Sequence[Mapping[str, Any]]) -> str:
    said = '<span class="hint">A click on a name takes its method off the page. Numbers show under the pointer.</span>'
    if any(len(method["seeds"]) > 1 for method in methods):
        said += (
            " Lines are medians over seeds, thin where some have ended; bands are quartiles of four seeds and more, "
            "of fewer the lowest to the highest."
        )
    if any(method["early"] for method in methods):
        said += " A seed that a target or a budget has ended stays in its median with its last value."
    if any(method["broken"] for method in methods):
        said += " A cross marks where a run broke off."
    return said


def table(sheet: Sheet, methods: Sequence[str] = (), kind: str = "") -> str:
    """A sheet as a table that scrolls by itself where it is too wide; rows of these methods go with their curves.

    kind: a class of the page's style, `failed` or `words`.
    """
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in sheet.columns)
    rows = "".join(_row(cells, methods) for cells in sheet.rows)
    note = f'<p class="note">{escape(sheet.note)}</p>' if sheet.note else ""
    return (
        f'<div class="table" role="region" tabindex="0" aria-label="{escape(sheet.title)}"><table class="{kind}">'
        f"<caption><span>{escape(sheet.title)}</span></caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{note}"
    )


def _row(cells: Sequence[str], methods: Sequence[str]) -> str:
    first, *others = cells
    of = f' data-method="{escape(first)}"' if first in methods else ""
    return f'<tr{of}><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(each)}</td>" for each in others)}</tr>'


def text(content: str, name: str = "") -> str:
    """Text with its lines and spaces as they are; under its name it is folded."""
    whole = f'<pre tabindex="0">{escape(content)}</pre>'
    return f"<details><summary>{escape(name)}</summary>{whole}</details>" if name else whole
