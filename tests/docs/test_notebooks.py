# Every notebook runs from top to bottom, and its page shows what it gave.

from __future__ import annotations

import warnings
from pathlib import Path

import nbformat
import pytest

from tests.processes.console import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.beside
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the notebook's machinery, on its own imports and event loops
        from nbclient import NotebookClient

        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
        book = nbformat.read(notebook, as_version=4)
        kept = [cell.get("outputs", []) for cell in book.cells]
        folder = {"metadata": {"path": str(tmp_path)}}
        NotebookClient(book, timeout=240, kernel_name="python3", resources=folder).execute()
    for before, cell in zip(kept, book.cells, strict=True):
        kinds = [[output["output_type"] for output in outputs] for outputs in (before, cell.get("outputs", []))]
        assert kinds[0] == kinds[1], cell["source"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_has_what_it_gave(notebook: Path) -> None:
    assert notebook.stat().st_size < 100_000
    book = nbformat.read(notebook, as_version=4)
    assert all(cell["outputs"] for cell in book.cells if cell["cell_type"] == "code")
