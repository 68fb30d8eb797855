"""The wire: what a request is, and how responses and dead letters are written.

JSON is read and written by msgspec: as fast as the fastest, strict (no NaN, no byte order mark, no lone surrogates),
and it keeps integers beyond 64 bits exact where others silently make floats of them.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import msgspec

from gigaoffice_worker.core.decoded_size import decode_at_once
from gigaoffice_worker.core.documents import ErrorDocument, ResponseDocument
from gigaoffice_worker.core.records import Answer, Failure, Headers, Outcome, OutgoingRecord, Reason, Record
from gigaoffice_worker.core.trace import TRACEPARENT, TRACESTATE

MAX_REQUEST_BYTES: Final = 8 * 1024 * 1024
"""How large a value may be, unless WORKER_MAX_REQUEST_BYTES says otherwise."""
LARGEST_REQUEST: Final = 64 * 1024 * 1024
"""The most that WORKER_MAX_REQUEST_BYTES may say."""
TRACE_HEADERS: Final = frozenset({TRACEPARENT, TRACESTATE})
REPLAYS: Final = "dlq-replays"
MOST_REPLAYS: Final = 1000
NULL_HEADERS: Final = "dlq-null-headers"
# What the worker adds to a dead letter must fit into the room that its topic has beyond a request.
_LONGEST_MESSAGE: Final = 1000
_LONGEST_NAME: Final = 200
_LONGEST_NULL_NAMES: Final = 4096
_DIGEST_LENGTH: Final = 32


class _Named(msgspec.Struct):
    id: msgspec.Raw = msgspec.Raw(b"null")


_decode = msgspec.json.Decoder().decode
_decode_id = msgspec.json.Decoder(_Named).decode
_encode = msgspec.json.Encoder().encode


class InvalidRequestError(ValueError):
    """A record's value is not a request. `answerable_id` is the id that a failed response can carry, if any."""

    def __init__(self, message: str, answerable_id: str | None) -> None:
        super().__init__(message)
        self.answerable_id = answerable_id


def decode_request(record: Record, most: int = MAX_REQUEST_BYTES) -> tuple[str, dict[str, Any]]:
    """Return the request's id and payload. Raises InvalidRequestError with a message that quotes no data.

    A value of more than `most` bytes is not decoded: it may take forty times as much memory.
    """
    if record.value is None:
        message = "the value is null"
        raise InvalidRequestError(message, _text(record.key))
    if len(record.value) > most:
        message = f"the value has {len(record.value)} bytes, more than the {most} of WORKER_MAX_REQUEST_BYTES"
        raise InvalidRequestError(message, _text(record.key))
    try:
        payload = decode_at_once(_decode, record.value)
    except RecursionError:
        message = "the value is nested too deeply"
        raise InvalidRequestError(message, _text(record.key)) from None
    except (ValueError, msgspec.MsgspecError) as error:
        message = f"the value is not JSON: {_where(error)}"
        raise InvalidRequestError(message, _text(record.key)) from None
    if not isinstance(payload, dict):
        message = f"the value is a JSON {_kind(payload)}, not an object"
        raise InvalidRequestError(message, _text(record.key))
    request_id = payload.get("id")
    if isinstance(request_id, str) and request_id:
        return request_id, payload
    fallback = _text(record.key) or str(record.source)
    if "id" not in payload:
        return fallback, payload
    found = "an empty string" if request_id == "" else f"a JSON {_kind(request_id)}"
    message = f"the id is {found}, not a non-empty string"
    raise InvalidRequestError(message, fallback)


def answerable_id(record: Record, most: int) -> str:
    """Return the id that a response to a record can carry, empty if there is none.

    That is the one that `decode_request` finds with the same `most`, but for little memory: all else is passed over,
    and a number among it that is too large for a float goes unnoticed.
    """
    key = _text(record.key) or ""
    if record.value is None or len(record.value) > most:
        return key
    try:
        found = bytes(_decode_id(record.value.decode()).id)
        request_id = msgspec.json.decode(found) if found.startswith(b'"') else ""
    except (ValueError, RecursionError, msgspec.MsgspecError):
        return key
    return request_id or key or str(record.source)


def encode_response(request_id: str, outcome: Outcome, seconds: float, at: float) -> bytes:
    """Return the JSON value of a response that is written `at`, in seconds since the epoch."""
    failed = outcome.reason is not None or outcome.failure is not None
    failure = outcome.failure
    result = outcome.result if outcome.reason is None else None
    return _encode(
        ResponseDocument(
            request_id,
            "failed" if failed else "completed",
            msgspec.Raw(result) if result is not None else None,
            ErrorDocument(_printable(failure.type), _printable(failure.message)) if failure else None,
            round(seconds, 6),
            _iso(at),
        )
    )


@dataclass(frozen=True, slots=True)
class RecordEncoder:
    """Where responses and dead letters go, and what their headers say.

    `echoed` are names of request headers that the response carries too. With `digests` a response tells which value it
    answers, so that a later worker knows one request from another of the same id.
    """

    responses: str
    dlq: str
    group: str
    version: str
    echoed: frozenset[str] = frozenset()
    digests: bool = False

    def outgoing(
        self,
        record: Record,
        request_id: str,
        outcome: Outcome,
        *,
        seconds: float,
        attempts: int,
        at: float,
        partition: int | None = None,
    ) -> list[OutgoingRecord]:
        """Return what an outcome is written as, in this order: its dead letter, and its response to `partition`.

        An outcome without a reason has no dead letter, and an empty `request_id` no response.
        """
        if outcome.copied is not None:
            return [self._copy(record, outcome.copied, partition)]
        written: list[OutgoingRecord] = []
        if outcome.reason is not None:
            failure = outcome.failure or Failure("Unknown", "")
            written.append(self.dead_letter(record, outcome.reason, failure, attempts, at))
        if request_id:
            value = encode_response(request_id, outcome, seconds, at)
            written.append(self.response(record, value, partition, outcome.usage))
        return written

    def response(
        self, record: Record, value: bytes, partition: int | None = None, usage: bytes | None = None
    ) -> OutgoingRecord:
        """Return the response to `record` with the encoded `value`; `usage` is what its calls used, as JSON."""
        # What the requester wrote stands first: where a name repeats, the last counts.
        headers = self._carried_over(record.headers) if record.headers else []
        headers += _origin(record)
        if self.digests:
            headers.append(("request-digest", digest(record.value)))
        if usage is not None:
            headers.append(("usage", usage))
        return OutgoingRecord(self.responses, record.key, value, headers, partition)

    def _copy(self, record: Record, answer: Answer, partition: int | None) -> OutgoingRecord:
        """Return the response to another request as the one to `record`."""
        copy = self.response(record, answer.value, partition)
        copy.headers.append(("duplicate-of", str(answer.source).encode()))
        return copy

    def _carried_over(self, headers: Headers) -> list[tuple[str, bytes]]:
        return [
            (name, value)
            for name, value in headers
            if value is not None and (name in TRACE_HEADERS or name in self.echoed)
        ]

    def dead_letter(self, record: Record, reason: Reason, failure: Failure, attempts: int, at: float) -> OutgoingRecord:
        """Return the dead letter: the record byte for byte, and behind its headers why it is here."""
        headers = [(name, value if value is not None else b"") for name, value in record.headers]
        about: list[tuple[str, str | None]] = [
            ("dlq-reason", reason.value),
            ("dlq-error-type", failure.type[:_LONGEST_NAME]),
            ("dlq-error-message", failure.message[:_LONGEST_MESSAGE]),
            ("dlq-error-at", failure.at[:_LONGEST_NAME] or None),
            ("dlq-attempts", str(attempts)),
            ("dlq-timestamp", _iso(at)),
            ("dlq-consumer-group", self.group),
            ("dlq-worker-version", self.version),
            (REPLAYS, _replays_told(record.headers)),
            (NULL_HEADERS, _null_names(record.headers)),
        ]
        headers += [(name, _bytes(text)) for name, text in about if text is not None]
        return OutgoingRecord(self.dlq, record.key, record.value, headers + _origin(record))


def _replays_told(headers: Headers) -> str | None:
    """Return how often the request has been replayed, None for never; the last of several headers counts."""
    found = [value for name, value in headers if name == REPLAYS]
    return str(replays_in(found[-1])) if found else None


def replays_in(value: bytes | None) -> int:
    """Read a `dlq-replays` header; what is no number from 0 to 1,000 counts as 0."""
    text = (value or b"")[: len(str(MOST_REPLAYS)) + 1]
    number = int(text) if text.isdigit() else 0
    return number if number <= MOST_REPLAYS else 0


def _null_names(headers: Headers) -> str | None:
    """Name the headers without a value, separated by commas; behind 4 KiB of names, how many more there are.

    `a,b,+3 of 5` are five headers, three of which are not named.
    """
    names = [name for name, value in headers if value is None]
    if not names:
        return None
    told, size = 0, 0
    for name in names:
        size += len(_bytes(name)) + 1
        if size > _LONGEST_NULL_NAMES:
            break
        told += 1
    untold = [f"+{len(names) - told} of {len(names)}"] if told < len(names) else []
    return ",".join(names[:told] + untold)


def digest(value: bytes | None) -> bytes:
    """Return what tells a request's value from another: the first 32 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(value or b"").hexdigest()[:_DIGEST_LENGTH].encode()


@lru_cache(maxsize=4096)
def _partition_headers(topic: str, partition: int) -> tuple[tuple[str, bytes], ...]:
    return (("source-topic", topic.encode()), ("source-partition", b"%d" % partition))


def _origin(record: Record) -> list[tuple[str, bytes]]:
    """Return the identity of the delivery: where the request stood, and its timestamp in milliseconds."""
    return [
        *_partition_headers(record.topic, record.partition),
        ("source-offset", b"%d" % record.offset),
        ("source-timestamp", b"%d" % round(record.timestamp * 1000)),
    ]


def last_values(headers: Headers) -> dict[str, bytes]:
    """Return the headers as a handler sees them: the last of a repeated name, and `b""` for none."""
    return {name: value if value is not None else b"" for name, value in headers}


def _text(value: bytes | None) -> str | None:
    """Return non-empty UTF-8 text, or None."""
    try:
        return value.decode() or None if value else None
    except UnicodeDecodeError:
        return None


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _printable(text: str) -> str:
    """Replace what UTF-8 cannot hold (lone surrogates), so that an error message can always be written."""
    return text.encode("utf-8", "replace").decode()


def _iso(at: float) -> str:
    return _iso_of_milliseconds(int(at * 1000))


@lru_cache(maxsize=4)
def _iso_of_milliseconds(at: int) -> str:
    second, milliseconds = divmod(at, 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(second))}.{milliseconds:03}Z"


def _where(error: Exception) -> str:
    # UnicodeDecodeError quotes the offending bytes; the codec's short reason says enough.
    return f"{error.reason} at byte {error.start}" if isinstance(error, UnicodeDecodeError) else str(error)


def _kind(value: object) -> str:
    kinds: dict[type, str] = {str: "string", bool: "boolean", int: "number", float: "number", list: "array"}
    return "null" if value is None else kinds.get(type(value), "object")
