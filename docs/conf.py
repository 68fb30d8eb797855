"""The documents as a site: `make docs` runs Sphinx over the whole repository, so a link leads where it leads in there.

A link to a file that is no document becomes a download of it. A link to nothing, or to a heading that is not there, is
a warning, and every warning fails the build.
"""

from __future__ import annotations

import shutil
from importlib.metadata import version as version_of
from pathlib import Path

from sphinx.application import Sphinx

project = "gigaoffice-worker"
version = version_of(project)
author = "GigaOffice worker contributors"

extensions = ["myst_parser", "sphinxcontrib.mermaid"]
root_doc = "README"
include_patterns = ["*.md", "docs/**.md"]
exclude_patterns = [".*", "build"]

myst_heading_anchors = 4
# The reader's browser fetches Mermaid from a public host to draw with; without that it shows the text of the picture.
myst_fence_as_directive = ["mermaid"]

html_theme = "furo"
html_title = f"{project} {version}"
html_show_sourcelink = html_copy_source = html_show_copyright = False

# What the menu lists below a document, by caption.
MENU = {
    "README": {
        "Use": [
            "docs/configuration",
            "docs/first-hour",
            "docs/handlers",
            "docs/limits",
            "docs/gigaoffice",
            "docs/dead-letters",
            "docs/operations",
            "docs/runbook",
        ],
        "Judge": ["docs/reliability", "docs/performance", "docs/compatibility", "docs/security", "SECURITY"],
        "Change": ["docs/architecture", "docs/decisions/README", "CONTRIBUTING", "CHANGELOG"],
    },
    "docs/decisions/README": {"": ["*-*"]},
}


def add_the_menu(_app: Sphinx, document: str, source: list[str]) -> None:
    """Put the menu into the site's copy of a document: a code host would show it as code."""
    for caption, pages in MENU.get(document, {}).items():
        options = f":hidden:\n:glob:\n:caption: {caption}" if caption else ":hidden:\n:glob:"
        listed = "\n".join(page if "*" in page else f"/{page}" for page in pages)
        source[0] += f"\n\n```{{toctree}}\n{options}\n\n{listed}\n```\n"


def begin_with_the_readme(app: Sphinx, error: Exception | None) -> None:
    """Give the site the page that a folder is opened with."""
    if error is None and app.builder.format == "html":
        shutil.copy(Path(app.outdir, "README.html"), Path(app.outdir, "index.html"))


def setup(app: Sphinx) -> None:
    """Register the two steps."""
    app.connect("source-read", add_the_menu)
    app.connect("build-finished", begin_with_the_readme)
