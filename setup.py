"""What pyproject.toml cannot say: the README as a package index shows it, where nothing stands beside it.

Links lead below the address that `[project.urls]` gives as Source. As long as it gives none, they become plain paths of
the repository, and pictures their text.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).resolve().parent
LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?![a-z]+:|#)(?P<path>[^)\s]+)\)")


def for_an_index(readme: str, source: str | None) -> str:
    """Return the README with links to `source`, the repository's address on its code host, or without any."""

    def outside(found: re.Match[str]) -> str:
        picture, text, path = found.group("picture", "text", "path")
        if source:
            return f"{picture}[{text}]({source.rstrip('/')}/{'raw' if picture else 'blob'}/HEAD/{path})"
        return text if text == path or picture else f"{text} ({path})"

    return LINK.sub(outside, readme)


if __name__ == "__main__":
    project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    setup(
        long_description=for_an_index(
            (HERE / "README.md").read_text(encoding="utf-8"), project.get("urls", {}).get("Source")
        ),
        long_description_content_type="text/markdown",
    )
