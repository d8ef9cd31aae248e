"""Pages and pictures of the site that live outside of `docs/`: the README, the changelog, the figures."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

FIGURES = "experiments/figures"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README as the first page, the changelog, and every figure below `figures/`."""
    root = Path(config.config_file_path).parent
    readme = (root / "README.md").read_text().replace("](docs/", "](").replace("](CHANGELOG.md", "](changelog.md")
    readme = readme.replace(f"]({FIGURES}/", "](figures/")
    readme = re.sub(r"(\]\(notebooks/\w+)\.ipynb\)", r"\1.md)", readme)
    files.append(File.generated(config, "index.md", content=readme))
    files.append(File.generated(config, "changelog.md", content=(root / "CHANGELOG.md").read_text()))
    files.append(File.generated(config, "CITATION.cff", content=(root / "CITATION.cff").read_text()))
    for figure in sorted((root / FIGURES).glob("*.png")):
        files.append(File.generated(config, f"figures/{figure.name}", abs_src_path=str(figure)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to the figures, which hold in the repository, hold in the site."""
    depth = page.file.src_uri.count("/")
    return re.sub(rf"\]\((?:\.\./){{{depth + 1}}}{FIGURES}/", f"]({'../' * depth}figures/", markdown)
