"""Requests as the API service writes them, for trying out a worker."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import cycle, islice
from typing import Any, Final

from gigaoffice_worker.cli.outgoing import Request

Table = list[list[Any]]

_SALES: Final[Table] = [
    ["month", "region", "sales"],
    ["May", "north", 1200],
    ["May", "south", 950],
    ["June", "north", 1310],
]
_PEOPLE: Final[Table] = [
    ["name", "e-mail", "joined"],
    ["Ada Byron", "ada@example.org", "1843-09-05"],
    ["A. Turing", "", "1936"],
]

_QUESTIONS: Final[tuple[tuple[str, str, str, Table], ...]] = (
    ("Sum the sales by month", "A1:C4", "spreadsheet-analysis", _SALES),
    ("Which region grew most from May to June?", "A1:C4", "spreadsheet-analysis", _SALES),
    ("Write a formula for the share of each row in the total of column C", "A1:C4", "spreadsheet-assistance", _SALES),
    ("Draw the sales by region as a bar chart", "A1:C4", "data-chart", _SALES),
    ("Mark the rows without an e-mail address", "A1:C3", "spreadsheet-transformation", _PEOPLE),
    ("Write all dates in column C as YYYY-MM-DD", "A1:C3", "spreadsheet-formatting", _PEOPLE),
)


def sample_requests(count: int) -> Iterator[Request]:
    """Yield `count` questions about small spreadsheets, each with an id of its own."""
    for number, question in enumerate(islice(cycle(_QUESTIONS), count), start=1):
        payload = _payload(number, *question)
        yield Request(payload["id"], json.dumps(payload).encode())


def _payload(number: int, query: str, input_range: str, category: str, data: Table) -> dict[str, Any]:
    return {
        "id": str(uuid.uuid4()),
        "user_id": f"sample-user-{number % 3 + 1}",
        "priority": 0,
        "query": query,
        "input_range": input_range,
        "category": category,
        "input_data": data,
        "created_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
