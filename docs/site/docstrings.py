"""Docstrings as Markdown: parameters as a list, examples in fences, stars (y*, F(x*)) that are no emphasis."""

from __future__ import annotations

import re
from typing import Any

import griffe

_PARAMETERS = re.compile(r"^Parameters\n-{10}\n((?:\S.*\n(?:    .*(?:\n|$))+)+)", flags=re.MULTILINE)
_ENTRY = re.compile(r"^(\S.*)\n((?:    .*(?:\n|$))+)", flags=re.MULTILINE)
_EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", flags=re.MULTILINE)
_CODE = re.compile(r"(```.*?```|`[^`\n]+`)", flags=re.DOTALL)


class Plain(griffe.Extension):
    """Rewrites every docstring before it is shown."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """One object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    """A docstring of this project as Markdown: Parameters in numpy's style, doctests, and otherwise plain text."""
    text = _PARAMETERS.sub(lambda found: _ENTRY.sub(_entry, found[1]), text)
    text = _EXAMPLE.sub(lambda found: f"```pycon\n{found[0]}\n```", text)
    parts = _CODE.split(text)
    return "".join(part if at % 2 else re.sub(r"(?<=\S)\*", r"\\*", part) for at, part in enumerate(parts))


def _entry(found: re.Match[str]) -> str:
    return f"* `{found[1]}`: {' '.join(found[2].split())}\n"
