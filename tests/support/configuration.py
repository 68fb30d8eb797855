"""The table of variables in the documents, filled from the declarations: `python -m tests.support.configuration`."""

from __future__ import annotations

from pathlib import Path

from gigaoffice_worker.config import markdown_table
from tests.support.tables import put_between_markers

ROOT = Path(__file__).resolve().parents[2]
TABLE = "configuration"


def documents() -> list[Path]:
    """Return the documents that have a place for the table."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [path for path in found if f"<!-- {TABLE}:begin -->" in path.read_text(encoding="utf-8")]


def with_table(text: str) -> str:
    """Return a document's text with the table as the code declares it."""
    return put_between_markers(text, TABLE, markdown_table())


def main() -> None:
    for path in documents():
        path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
