"""A log record as one bounded, printable line: values made plain, secrets hidden, control characters escaped.

Whatever is logged, a line comes out: nothing in here raises, and nothing in a value can make a JSON line longer than
`MAX_LINE` bytes, break it in two, or reach a terminal as a control sequence.
"""

from __future__ import annotations

import json
import re
import sys
import traceback
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, date, datetime, time
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from itertools import islice
from pathlib import PurePath
from typing import Any
from urllib.parse import quote
from uuid import UUID

from gigaoffice_worker.core.visible import escape_json, visible

MAX_LINE = 32 * 1024  # bytes; journald splits what is longer than 48 KiB
MASK = "********"

_MAX_TEXT = 2_048
_MAX_TRACEBACK = 16_384
_MAX_EVENT = 256
_MAX_KEY = 64
_MAX_FACTS = 40  # with the longest keys, escaped, this still fits into a line
_MAX_ITEMS = 50
_MAX_DEPTH = 5
_MAX_VALUES = 500  # in one record, however they are nested
_MAX_FRAMES = 20
_MIN_SECRET = 4  # a shorter one occurs everywhere: hiding it would destroy the log and give the secret away

_LONG_TEXTS = {"traceback": _MAX_TRACEBACK, "stack": _MAX_TRACEBACK}
_RESERVED = frozenset({"timestamp", "level", "event"})
_PRINTED_AS_TEXT = (Decimal, UUID, PurePath, datetime, date, time)

# What our own messages say behind a variable's name and a colon is no secret: "KAFKA_SASL_PASSWORD: must be set".
# `token(?!s)` spares the token counts of a language model. The payload names are not secret, but never logged either.
_SECRET_KEY = re.compile(
    r"password|passwd|secret|token(?!s)|authorization|credential|api[-_]?key|private[-_]?key|cookie"
    r"|^payload$|^input_data$",
    re.IGNORECASE,
)
_SECRET_IN_TEXT = re.compile(
    r"(?P<scheme>\b(?:bearer|basic)\s+)[\w.~+/=-]{8,}"
    r"|(?P<user>://[^/\s:@]*:)[^/\s@]+(?=@)"
    r"|(?P<name>(?:password|passwd|secret|token|api[-_]?key|authorization)['\"]?\s*[=:]\s*['\"]?"
    r"(?:(?:bearer|basic)\s+)?)(?!(?<=: )(?:must|only|cannot|there)\s)[^\s'\",;&)}]+",
    re.IGNORECASE,
)
_SECRET_HINTS = ("bearer", "basic", "://", "passw", "secret", "token", "key", "authorization")
_NEEDS_NO_QUOTES = re.compile(r"[\w.,:;/@+*#%()<>\[\]-]+")
_COLOURS = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "1;31"}

_to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(", ", ": ")).encode


class LineFormat:
    """Render records as JSON objects, or for people when `console` is true. Safe to use from any thread."""

    def __init__(self, *, console: bool = False, colour: bool = False) -> None:
        self._console = console
        self._colour = colour
        self._secrets: tuple[str, ...] = ()

    def hide(self, secret: str) -> None:
        """Never print `secret` again, whatever it is part of, nor its escaped and its URL-encoded form."""
        if len(secret) < _MIN_SECRET:
            return
        forms = {secret, repr(secret)[1:-1], _to_json(secret)[1:-1], quote(secret, safe="")}
        self._secrets = tuple(sorted({*self._secrets, *forms}, key=len, reverse=True))

    def line(self, level: str, event: object, facts: Mapping[Any, object], created: float) -> str:
        """Render one record of the moment `created` (Unix seconds); the line break is included."""
        try:
            record = self._record(level, event, facts, created)
            return self._text(record) if self._console else _json_line(record)
        except Exception as error:  # noqa: BLE001 - a record that can't be rendered must not fail the code that logged it
            return _last_resort(created, error)

    def _record(self, level: str, event: object, facts: Mapping[Any, object], created: float) -> dict[str, Any]:
        plain = _Plain(self._secrets)
        record: dict[str, Any] = {
            "timestamp": _timestamp(created),
            "level": level,
            "event": plain.key(event, _MAX_EVENT),
        }
        for key, value in islice(facts.items(), _MAX_FACTS):
            if key == "exc_info":
                _describe_exception(record, plain, value)
                continue
            name = plain.key(key)
            record[name + "_" if name in _RESERVED else name] = plain.fact(name, value)
        if len(facts) > _MAX_FACTS:
            record["facts_left_out"] = len(facts) - _MAX_FACTS
        return record

    def _text(self, record: dict[str, Any]) -> str:
        at, level, event = record.pop("timestamp")[11:23], record.pop("level"), record.pop("event")
        blocks = [record.pop(key) for key in _LONG_TEXTS if key in record]
        facts = " ".join(f"{visible(key)}={_console_value(value)}" for key, value in record.items())
        shown = f"\x1b[{_COLOURS.get(level, '0')}m{level:<8}\x1b[0m" if self._colour else f"{level:<8}"
        lines = [f"{at} {shown} {visible(str(event))}  {facts[: MAX_LINE // 4]}".rstrip()]
        lines += [f"    {visible(part)}" for block in blocks for part in str(block).split("\n") if part]
        return "\n".join(lines) + "\n"


class _Plain:
    """Turn the values of one record into bounded JSON values without secrets."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = secrets
        self._left = _MAX_VALUES

    def key(self, key: object, limit: int = _MAX_KEY) -> str:
        return self.text(key if isinstance(key, str) else str(self.value(key)), limit)

    def fact(self, key: str, value: object, depth: int = 0) -> object:
        if _names_secret(key) and not (value is None or isinstance(value, bool)):
            return MASK
        if key in _LONG_TEXTS and isinstance(value, str):
            return self.text(value, _LONG_TEXTS[key])
        return self.value(value, depth)

    def value(self, value: object, depth: int = 0) -> object:
        self._left -= 1
        if self._left < 0:
            return "(left out)"
        if value is None or value is True or value is False:
            return value
        try:
            return self._plain(value, depth)
        except Exception as error:  # noqa: BLE001 - foreign code: __repr__, __iter__, a container changed meanwhile
            return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"

    def text(self, text: str, limit: int = _MAX_TEXT) -> str:
        for secret in self._secrets:
            if secret in text:
                text = text.replace(secret, MASK)
        length = len(text)
        if length > 4 * limit:
            text = text[: 2 * limit] + text[-2 * limit :]
        if ("=" in text or ":" in text or " " in text) and _hints_at_secret(text.lower()):
            text = _SECRET_IN_TEXT.sub(_mask, text)
        if length > limit:  # both ends tell something: the first cause of a traceback, and the last
            text = f"{text[: limit // 2]} … ({length} characters) … {text[-(limit // 2) :]}"
        return text

    def _plain(self, value: object, depth: int) -> object:
        if isinstance(value, str):
            return self.text(str.__str__(value))
        if isinstance(value, int):
            return _plain_int(int.__int__(value))
        if isinstance(value, float):
            return _plain_float(float.__float__(value))
        if isinstance(value, Mapping | list | tuple | set | frozenset | deque):
            return self._container(value, depth)
        return self.text(_printed(value))

    def _container(self, value: Mapping[object, object] | Collection[object], depth: int) -> object:
        if depth >= _MAX_DEPTH:
            return f"<{type(value).__name__} of {len(value)}>"
        more = len(value) - _MAX_ITEMS
        if isinstance(value, Mapping):
            shown: dict[str, object] = {}
            for key, item in islice(value.items(), _MAX_ITEMS):
                name = self.key(key)
                shown[name] = self.fact(name, item, depth + 1)
            return shown if more <= 0 else {**shown, "…": f"({more} more)"}
        items = [self.value(item, depth + 1) for item in islice(value, _MAX_ITEMS)]
        return items if more <= 0 else [*items, f"({more} more)"]


def _printed(value: object) -> str:
    if isinstance(value, bytes | bytearray | memoryview):  # most bytes here are payloads
        return f"<{len(value)} bytes>"
    if isinstance(value, BaseException):
        return ": ".join(filter(None, (type(value).__name__, str(value))))
    if isinstance(value, Enum):
        return str(value.value)
    return str(value) if isinstance(value, _PRINTED_AS_TEXT) else repr(value)


@lru_cache(maxsize=1024)
def _names_secret(key: str) -> bool:
    return _SECRET_KEY.search(key) is not None


def _hints_at_secret(text: str) -> bool:
    # Looking for words first makes a text without any ten times cheaper than the regular expression does.
    return any(hint in text for hint in _SECRET_HINTS)


def _mask(found: re.Match[str]) -> str:
    return (found["scheme"] or found["user"] or found["name"]) + MASK


def _plain_int(number: int) -> int | str:
    if number.bit_length() <= 64:
        return number
    # Python refuses to print what has more than 4,300 digits, and readers keep 64 bits at most.
    return str(number) if number.bit_length() <= 1024 else f"<integer of {number.bit_length()} bits>"


def _plain_float(number: float) -> float | str:
    finite = number - number == 0.0
    return number if finite else str(number)


def _timestamp(created: float) -> str:
    return datetime.fromtimestamp(created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def _describe_exception(record: dict[str, Any], plain: _Plain, exc_info: object) -> None:
    error = _exception(exc_info)
    if error is None:
        return
    record.setdefault("error_type", type(error).__name__)
    record.setdefault("error", plain.text(_message(error)))
    record["traceback"] = plain.text(format_traceback(error), _MAX_TRACEBACK)


def _exception(exc_info: object) -> BaseException | None:
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple):
        return exc_info[1] if len(exc_info) == 3 and isinstance(exc_info[1], BaseException) else None
    return sys.exc_info()[1] if exc_info else None


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as failure:  # noqa: BLE001 - an exception's own __str__ is foreign code
        return f"<message that cannot be shown: {type(failure).__name__}>"


def format_traceback(error: BaseException) -> str:
    """Print an exception and its causes: the last frames of each, no local variables."""
    printed = traceback.TracebackException(type(error), error, error.__traceback__, limit=-_MAX_FRAMES, compact=True)
    return "".join(printed.format()).rstrip()


def _json_line(record: dict[str, Any]) -> str:
    line = escape_json(_to_json(record))
    if len(line) * 4 > MAX_LINE and len(line.encode()) >= MAX_LINE:
        line = _shortened(record)
    return line + "\n"


def _shortened(record: dict[str, Any]) -> str:
    """Leave out the largest facts, one after the other, until the line fits."""
    sizes = {key: len(escape_json(_to_json(value)).encode()) for key, value in record.items() if key not in _RESERVED}
    excess = len(escape_json(_to_json(record)).encode()) - MAX_LINE + 1
    for key, size in sorted(sizes.items(), key=lambda item: item[1], reverse=True):
        record[key] = f"(left out: {size} bytes)"
        excess -= size - len(record[key]) - 2
        if excess <= 0:
            break
    return escape_json(_to_json(record))


def _console_value(value: object) -> str:
    if isinstance(value, str) and _NEEDS_NO_QUOTES.fullmatch(value):
        return value
    return visible(_to_json(value))


def _last_resort(created: float, error: Exception) -> str:
    try:
        record = {
            "timestamp": _timestamp(created),
            "level": "error",
            "event": "Log record could not be rendered",
            "error_type": type(error).__name__,
        }
        return _json_line(record)
    except Exception:  # noqa: BLE001 - out of stack or memory
        return '{"level": "error", "event": "Log record could not be rendered"}\n'
