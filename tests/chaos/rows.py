"""The results as rows of a table: `python -m tests.chaos.rows RESULTS [README]` puts them into the README."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = "CHAOS_RESULTS"
BEGIN, END = "<!-- chaos:begin -->", "<!-- chaos:end -->"
HEAD = ("fault", "runs", "requests", "lost", "repeated handler calls", "duplicate outcomes", "seconds to recover")


@dataclass(frozen=True)
class Row:
    """What one scenario came to. `runs` is how often the fault was made; `recovery` in seconds, the longest of all."""

    fault: str
    runs: int
    requests: int
    lost: int
    repeated: int
    duplicates: int
    recovery: float | None = None

    def cells(self) -> list[str]:
        recovery = "-" if self.recovery is None else f"{self.recovery:.1f}"
        numbers = (self.runs, self.requests, self.lost, self.repeated, self.duplicates)
        return [self.fault, *(f"{number:,}" for number in numbers), recovery]


def write(row: Row) -> None:
    """Print the row and append it to the results of this run, where a file for them is named."""
    print("\n" + " | ".join(f"{name}: {cell}" for name, cell in zip(HEAD, row.cells(), strict=True)))
    if path := os.environ.get(RESULTS):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")


def read(path: Path) -> list[Row]:
    return [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [HEAD, ["---", *["--:"] * (len(HEAD) - 1)], *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def put_between_markers(text: str, found: str) -> str:
    """Return `text` with `found` between the markers. Raises ValueError where it has none."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no {BEGIN} and {END} in the text")
    return f"{before}{BEGIN}\n{found}\n{END}{after}"


def main(arguments: Sequence[str]) -> None:
    found = table(read(Path(arguments[0])))
    print(found)
    for readme in map(Path, arguments[1:]):
        readme.write_text(put_between_markers(readme.read_text(encoding="utf-8"), found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
