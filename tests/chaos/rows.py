"""The results as rows of a table: `python -m tests.chaos.rows RESULTS [DOCUMENT [TABLE]]` puts them into a document."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.support.tables import put_between_markers

RESULTS = "CHAOS_RESULTS"
TABLE = "chaos"
LEGEND = (
    "Seconds to recover count from the end of the last fault until every partition had outcomes again; where faults\n"
    "follow each other without a pause, they are the longest time for which a partition had none. A dead worker is\n"
    "noticed after its session, which is 6 s here."
)
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

    def and_(self, other: Row) -> Row:
        """Return this and another row of the same fault as one."""
        recoveries = [recovery for recovery in (self.recovery, other.recovery) if recovery is not None]
        return Row(
            self.fault,
            self.runs + other.runs,
            self.requests + other.requests,
            self.lost + other.lost,
            self.repeated + other.repeated,
            self.duplicates + other.duplicates,
            max(recoveries, default=None),
        )


def write(row: Row) -> None:
    """Print the row and append it to the results of this run, where a file for them is named."""
    print("\n" + " | ".join(f"{name}: {cell}" for name, cell in zip(HEAD, row.cells(), strict=True)))
    if path := os.environ.get(RESULTS):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")


def read(path: Path) -> list[Row]:
    return [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def merged(rows: Iterable[Row]) -> list[Row]:
    """Add up the rows of one fault, which may be tried by a quick scenario and a long one."""
    found: dict[str, Row] = {}
    for row in rows:
        found[row.fault] = found[row.fault].and_(row) if row.fault in found else row
    return list(found.values())


def table(rows: Iterable[Row]) -> str:
    """Return the rows as a Markdown table, by fault: scenarios run side by side end in any order."""
    found = sorted(merged(rows), key=lambda row: row.fault)
    lines = [HEAD, ["---", *["--:"] * (len(HEAD) - 1)], *(row.cells() for row in found)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: Sequence[str]) -> None:
    results, *places = arguments
    name = places[1] if len(places) > 1 else TABLE
    found = table(read(Path(results))) + (f"\n\n{LEGEND}" if name == TABLE else "")
    print(found)
    if places:
        document = Path(places[0])
        text = document.read_text(encoding="utf-8")
        document.write_text(put_between_markers(text, name, found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
