"""A response as a type: for whoever writes it and for whoever reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from gigaoffice_worker.core.records import Headers


class ErrorDocument(msgspec.Struct, frozen=True):
    """Why a request failed."""

    type: str
    message: str


class ResponseDocument(msgspec.Struct, frozen=True):
    """The value of a response. `result` is what the handler returned, `processing_time` its seconds in all attempts."""

    request_id: str
    status: Literal["completed", "failed"]
    result: Any
    error: ErrorDocument | None
    processing_time: float
    timestamp: str


@dataclass(frozen=True, slots=True)
class Response:
    """A response as its reader gets it.

    `status` is `completed` or `failed`, `error` has `type` and `message` with `failed`, `timestamp` is ISO 8601 in UTC.
    `headers` has the last value of a repeated name.
    """

    request_id: str
    status: str
    result: Any
    error: dict[str, str] | None
    processing_time: float
    timestamp: str
    headers: dict[str, bytes]

    @property
    def completed(self) -> bool:
        """Whether there is a result; else `error` says why not."""
        return self.status == "completed"


def read_response(value: bytes | None, headers: Headers) -> Response | None:
    """Return a response out of its record, or None for what is none: others may write to the topic too."""
    try:
        said = _decode_response(value or b"")
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    error = None if said.error is None else {"type": said.error.type, "message": said.error.message}
    return Response(
        said.request_id,
        said.status,
        said.result,
        error,
        said.processing_time,
        said.timestamp,
        {name: text or b"" for name, text in headers},
    )


_decode_response = msgspec.json.Decoder(ResponseDocument).decode
