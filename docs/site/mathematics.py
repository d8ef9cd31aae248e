r"""Equations as MathML, made when the site is built: a browser draws them without scripts, fonts or a network.

`$...$` and `$$...$$` are found by pymdownx.arithmatex, which leaves `\(...\)` and `\[...\]` in elements of its class.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

_FOUND = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\s*\\[(\[](?P<latex>.*?)\\[)\]]\s*</(?P=tag)>', flags=re.DOTALL
)


def on_page_content(content: str, **kwargs: Any) -> str:
    """Replace every equation of a page."""
    return _FOUND.sub(_mathml, content)


def _mathml(found: re.Match[str]) -> str:
    latex = html.unescape(found["latex"]).strip()
    block = found["tag"] == "div"
    made = convert(latex, display="block" if block else "inline")
    return f'<div class="equation">{made}</div>' if block else made
