"""Requests out of what somebody typed or wrote into a file."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from gigaoffice_worker.cli import terminal
from gigaoffice_worker.core.errors import WorkerError


class Request(NamedTuple):
    """What is to be sent: `value` is JSON."""

    id: str
    value: bytes


def read_requests(lines: Iterable[str]) -> Iterator[Request | WorkerError]:
    """Read a request from each line that is not blank; a wrong one comes as the error that says so."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield read_request(line)
            except WorkerError as error:
                yield terminal.UsageError(f"line {number}: {error}")


def read_request(text: str) -> Request:
    """Make a request of a JSON object or of plain text. Raises UsageError if it is neither."""
    payload = _payload(text)
    payload.setdefault("id", str(uuid.uuid4()))
    if not isinstance(payload["id"], str) or not payload["id"]:
        raise terminal.UsageError("the request's id must be a non-empty string")
    try:
        return Request(payload["id"], json.dumps(payload, ensure_ascii=False, allow_nan=False).encode())
    except ValueError as error:
        raise terminal.UsageError(f"the request cannot be written as JSON: {error}") from error


def _payload(text: str) -> dict[str, Any]:
    stripped = text.strip()
    if not stripped:
        raise terminal.UsageError("the request is empty")
    if not stripped.startswith("{"):
        return {"query": stripped}
    try:
        payload: dict[str, Any] = json.loads(stripped)
    except (ValueError, RecursionError) as error:
        raise terminal.UsageError(
            f"the request begins like a JSON object but is none: {error}",
            hint="A shell takes double quotes away: put the request in single quotes.",
        ) from error
    return payload


def given(request: str | None) -> str:
    """Return the text of a request: an argument, `@FILE`, or what standard input holds. Raises UsageError."""
    if request is None and sys.stdin.isatty():
        raise terminal.UsageError("there is no request", hint="Give a REQUEST, as in: 'Sum column A'")
    if request is None or request == "-":
        return sys.stdin.read()
    if request.startswith("@"):
        with opened(Path(request[1:])) as file:
            return file.read()
    return request


def opened(path: Path) -> TextIO:
    """Open a text file. Raises UsageError where it cannot be read."""
    try:
        return path.open(encoding="utf-8-sig")
    except OSError as error:
        raise terminal.UsageError(f"{path} cannot be read: {error.strerror}") from error
