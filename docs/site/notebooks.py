"""Notebooks as pages: their text, their code, and what the code gave when they were last run."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

Cell = dict[str, Any]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every notebook in `docs/notebooks`, and its pictures."""
    for notebook in sorted((Path(config.docs_dir) / "notebooks").glob("*.ipynb")):
        pictures: dict[str, bytes] = {}
        cells: list[Cell] = json.loads(notebook.read_text())["cells"]
        lines = [line for cell in cells for line in _cell(cell, notebook.stem, pictures)]
        files.append(File.generated(config, f"notebooks/{notebook.stem}.md", content="\n".join(lines)))
        for name, content in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def _cell(cell: Cell, stem: str, pictures: dict[str, bytes]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield f"{source}\n"
        return
    yield f"```python\n{source}\n```\n"
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            name = f"{stem}-{len(pictures) + 1}.png"
            pictures[name] = base64.b64decode(data["image/png"])
            yield f"![What the code above draws]({name})\n"
        else:
            text = "".join(output.get("text") or data["text/plain"])
            yield f"```text\n{text.rstrip()}\n```\n"
