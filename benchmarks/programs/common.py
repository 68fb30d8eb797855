"""What the peers share: where to read and write, how to answer, when to stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from types import FrameType
from typing import Any, NamedTuple

import msgspec

from benchmarks.handlers import answer

COMPRESSION = "lz4"
LINGER_MS = 1  # this worker's default
MAX_POLL_RECORDS = 500  # the same

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class Place(NamedTuple):
    """Where a peer works, out of the variables that this worker is configured with too."""

    bootstrap: str
    requests: str
    responses: str
    group: str
    concurrency: int

    @classmethod
    def from_environment(cls) -> Place:
        return cls(
            os.environ["KAFKA_BOOTSTRAP_SERVERS"],
            os.environ["KAFKA_TOPIC_REQUESTS"],
            os.environ["KAFKA_TOPIC_RESPONSES"],
            os.environ["KAFKA_CONSUMER_GROUP"],
            int(os.environ["WORKER_CONCURRENCY"]),
        )


def respond(value: bytes) -> bytes:
    """Return the response to a request: this worker's six fields, by the same JSON library."""
    payload: dict[str, Any] = _decode(value)
    result = answer(payload)
    return _encode(
        {
            "request_id": payload["id"],
            "status": "completed",
            "result": result,
            "error": None,
            "processing_time": round(result["ended"] - result["started"], 6),
            "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
    )


def termination() -> threading.Event:
    """Return an event that SIGTERM sets."""
    asked = threading.Event()
    on_termination(asked.set)
    return asked


def on_termination(do: Callable[[], object]) -> None:
    """Call a function when SIGTERM comes."""

    def ask(_number: int, _frame: FrameType | None) -> None:
        do()

    signal.signal(signal.SIGTERM, ask)
