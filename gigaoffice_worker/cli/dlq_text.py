"""How dead letters look: as rows of a table, as a sheet of their own, as JSON; never with control characters.

What stands in a dead letter was written by anybody: it must neither move a terminal's cursor nor forge a line of ours.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from gigaoffice_worker.core.dead_letters import Facts, number, request_headers
from gigaoffice_worker.core.records import Record
from gigaoffice_worker.core.visible import visible, visible_json

_INDENT = "  "
_HEADINGS = ("DEAD LETTER", "WRITTEN", "REASON", "ERROR TYPE", "REPLAYS", "REQUEST", "MESSAGE")


def time_of(seconds: float) -> str:
    """Return a time as the commands take it, in UTC."""
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    except (OverflowError, OSError, ValueError):  # a timestamp is whatever its writer says
        return "-"


def table(dead_letters: Iterable[Facts], width: int | None) -> list[str]:
    """Return a line for each dead letter and one above them, none longer than `width`."""
    rows = [_HEADINGS, *(_row(each) for each in dead_letters)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = ("  ".join(cell.ljust(wide) for cell, wide in zip(row, widths, strict=True)).rstrip() for row in rows)
    return [line if width is None or len(line) <= width else f"{line[: max(1, width - 1)]}…" for line in lines]


def counts(found: Sequence[tuple[str, int]]) -> list[str]:
    """Return a line for each name and its count."""
    widest = max((len(str(count)) for _, count in found), default=0)
    return [f"{_INDENT}{count:>{widest}}  {visible(name)}" for name, count in found]


def sheet(dead_letter: Record, said: Facts, *, payload: bool) -> list[str]:
    """Return all that is known of a dead letter, a line each; its payload only if asked for."""
    known = {
        "dead letter": said.place,
        "written": time_of(said.timestamp),
        "request": said.request_id,
        "key": "none" if dead_letter.key is None else _text(dead_letter.key),
        "came from": str(said.source or ""),
        "reason": said.reason,
        "error type": said.error_type,
        "message": said.error_message,
        "raised at": said.error_at,
        "attempts": said.attempts,
        "replays": str(said.replays),
        "group": said.consumer_group,
        "worker": said.worker_version,
    }
    lines = [f"{name:<12}{visible(value)}" for name, value in known.items() if value]
    headers = request_headers(dead_letter)
    lines.append(f"{'headers':<12}{'none' if not headers else ''}".rstrip())
    lines += [
        f"{_INDENT}{visible(name)}: {'null' if value is None else visible(_text(value))}" for name, value in headers
    ]
    size = "null" if dead_letter.value is None else f"{len(dead_letter.value)} bytes"
    lines.append(f"{'payload':<12}{size}{'' if payload else '; shown with --payload'}")
    return lines + (payload_lines(dead_letter.value) if payload and dead_letter.value else [])


def payload_lines(value: bytes) -> list[str]:
    """Return a payload in lines, JSON with one value a line."""
    try:
        text = json.dumps(json.loads(value), ensure_ascii=False, indent=2)
    except (ValueError, RecursionError):
        text = _text(value)
    return [_INDENT + visible(line) for line in text.split("\n")]


def document(dead_letter: Record, said: Facts, *, payload: bool = False) -> dict[str, Any]:
    """Return a dead letter as JSON has it; what is not UTF-8 comes in base64, under a name that says so."""
    known = said._asdict()
    del known["timestamp"]
    known["attempts"] = number(said.attempts)
    return {
        "dead_letter": said.place,
        "written": time_of(said.timestamp),
        **known,
        "source": said.source and said.source._asdict(),
        **_value("key", dead_letter.key),
        "payload_bytes": None if dead_letter.value is None else len(dead_letter.value),
        **(_value("payload", dead_letter.value) if payload else {}),
    }


def with_headers(dead_letter: Record, said: Facts, *, payload: bool) -> dict[str, Any]:
    """Return a dead letter as JSON has it, with the headers of its request."""
    headers = [{"name": name, **_value("value", value)} for name, value in request_headers(dead_letter)]
    return {**document(dead_letter, said, payload=payload), "headers": headers}


def json_line(found: dict[str, Any]) -> str:
    """Return one line of JSON."""
    return visible_json(found)


def _row(dead_letter: Facts) -> tuple[str, ...]:
    cells = (
        dead_letter.place,
        time_of(dead_letter.timestamp),
        dead_letter.reason,
        dead_letter.error_type,
        str(dead_letter.replays),
        dead_letter.request_id,
        dead_letter.error_message,
    )
    return tuple(visible(each) or "-" for each in cells)


def _value(name: str, value: bytes | None) -> dict[str, str | None]:
    try:
        return {name: None if value is None else value.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(value or b"").decode()}


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")
