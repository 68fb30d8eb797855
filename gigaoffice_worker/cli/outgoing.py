"""Requests out of what somebody typed or wrote into a file."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from gigaoffice_worker.cli import terminal
from gigaoffice_worker.core.errors import WorkerError


class Request(NamedTuple):
    """What is to be sent: `value` is JSON."""

    id: str
    value: bytes


def read_requests(lines: Iterable[bytes]) -> Iterator[Request | WorkerError]:
    """Read a request from each line that is not blank; a wrong one comes as the error that says so.

    So does the end of lines that cannot be read to it: nothing here may end what is under way for the requests before.
    """
    number = 0
    try:
        for number, line in enumerate(lines, start=1):
            try:
                text = _decoded(line)
                if text.strip():
                    yield read_request(text)
            except WorkerError as error:
                yield terminal.UsageError(f"line {number}: {error}")
    except OSError as error:
        yield _unreadable(f"what follows line {number}", error)


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
    if request is None or request == "-":
        # Python has no standard input where it was closed before it started.
        if sys.stdin is None or (request is None and sys.stdin.isatty()):
            raise terminal.UsageError("there is no request", hint="Give a REQUEST, as in: 'Sum column A'")
        return _text("standard input", sys.stdin.buffer.read)
    if request.startswith("@"):
        path = Path(request[1:])
        return _text(str(path), path.read_bytes)
    return request


def opened(path: Path) -> BinaryIO:
    """Open a file. Raises UsageError where it cannot be read."""
    try:
        return path.open("rb")
    except OSError as error:
        raise _unreadable(str(path), error) from error


def _text(name: str, read: Callable[[], bytes]) -> str:
    try:
        return _decoded(read())
    except OSError as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: OSError) -> WorkerError:
    return terminal.UsageError(f"{name} cannot be read: {error.strerror}")


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise terminal.UsageError("the request is not UTF-8 text") from error
