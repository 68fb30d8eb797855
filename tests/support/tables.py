"""Tables in documents, filled by the tests that tried what stands in them.

With TABLES_RESULTS=FILE in the environment tests append their rows to FILE; `python -m tests.support.tables FILE
DOCUMENT` puts them between `<!-- NAME:begin -->` and `<!-- NAME:end -->` of a document, in the order in which they
came.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

RESULTS = "TABLES_RESULTS"


def write(table: str, **cells: str) -> None:
    """Append a row to the results of this run, where a file for them is named."""
    if path := os.environ.get(RESULTS):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"table": table, "cells": cells}) + "\n")


def put_between_markers(text: str, name: str, found: str) -> str:
    """Return `text` with `found` between the markers of that name. Raises ValueError where it has none."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, opened, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not opened or not closed:
        raise ValueError(f"no {begin} and {end} in the text")
    return f"{before}{begin}\n{found}\n{end}{after}"


def filled(text: str, table: str, rows: Sequence[dict[str, str]]) -> str:
    """Return `text` with the rows between the table's markers. Raises ValueError where it has none."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    shown = "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
    return put_between_markers(text, table, shown)


def first_cells(text: str, table: str) -> list[str]:
    """Return the first column of a document's table, without its head."""
    inner = text.partition(f"<!-- {table}:begin -->")[2].partition(f"<!-- {table}:end -->")[0]
    return [line.split("|")[1].strip() for line in inner.strip().splitlines()[2:]]


def main(arguments: Sequence[str]) -> None:
    results, document = map(Path, arguments)
    found: dict[str, dict[str, dict[str, str]]] = {}
    for line in results.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found.setdefault(row["table"], {})[next(iter(row["cells"].values()))] = row["cells"]
    text = document.read_text(encoding="utf-8")
    for table, rows in found.items():
        text = filled(text, table, list(rows.values()))
    document.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
