"""Handlers for tests: each request says what its handler is to do, and every call is written to a journal.

The journal is the file named by TEST_JOURNAL: one JSON line at the start of a call and one at its end, each written
with a single append, so that several processes may share it and a kill loses nothing that was said before.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from typing import Any

from gigaoffice_worker import RejectedError, Request, TransientError


def handle(request: Request) -> Any:
    """Do, after `seconds`, what the payload's `do` says: answer (the default) or one of the cases in `_act`.

    From attempt `until_attempt` on it answers, and `while_file` does `then` only as long as `file` is there.
    """
    _write("start", request)
    try:
        time.sleep(float(request.payload.get("seconds", 0.0)))
        return _act(request)
    finally:
        _write("end", request)


def _act(request: Request) -> Any:  # noqa: C901, PLR0912  # a list of deeds
    payload = request.payload
    do = payload.get("do", "answer")
    until = payload.get("until_attempt")
    if until is not None and request.attempt >= until:
        do = "answer"
    if do == "while_file" and os.path.exists(payload["file"]):  # noqa: PTH110  # hot path of a test double
        do = payload.get("then", "fail")
    match do:
        case "reject":
            raise RejectedError(payload.get("message", "rejected by the test") * payload.get("times", 1))
        case "fail":
            raise ValueError(payload.get("message", "failed by the test"))
        case "transient":
            raise TransientError("transient", retry_after=payload.get("retry_after"))
        case "shared":
            raise TransientError("rate limited", retry_after=payload.get("retry_after"), shared=True)
        case "exit":
            raise SystemExit(3)
        case "die":
            os.unlink(payload["file"])  # noqa: PTH108  # with `while_file`: only once
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            _hang(payload.get("file"), float(payload.get("hang_seconds", 600.0)))
        case "describe":
            return _described(request)
        case "unsuccessful":
            return {"success": False, "error": "the handler said no"}
        case "unserialisable":
            return {"answer": object()}
        case "misbehave":
            return _misbehave(payload["when"])
        case "use":
            request.usage(**payload["usage"])
        case "large":
            return {"answer": "x" * int(payload["bytes"])}
    return {"answer": payload.get("query"), "attempt": request.attempt, "pid": os.getpid()}


def _described(request: Request) -> dict[str, Any]:
    return {
        "id": request.id,
        "payload": request.payload,
        "key": request.key.decode("latin-1") if request.key is not None else None,
        "headers": {name: value.decode("latin-1") for name, value in request.headers.items()},
        "attempt": request.attempt,
        "remaining": request.deadline.remaining(),
        "source": [request.topic, request.partition, request.offset],
        "age": time.time() - request.timestamp,
    }


def _misbehave(when: str) -> Any:
    """Return a result, or raise an error, that breaks in some way when somebody looks at it."""

    def breaks(*_: object) -> Any:
        raise SystemExit("looked at")

    match when:
        case "result.get":
            return type("Odd", (dict,), {"get": breaks, "items": breaks, "__iter__": breaks})(success=False)
        case "result.property":
            return dataclasses.make_dataclass("Odd", ["a"], namespace={"a": property(breaks, lambda *_: None)})(1)
        case "str":
            raise type("Odd", (ValueError,), {"__str__": breaks})
        case "retry_after":
            raise type("Odd", (TransientError,), {"retry_after": property(breaks, lambda *_: None)})
        case "shared":
            raise type("Odd", (TransientError,), {"shared": property(breaks, lambda *_: None)})
        case "class":
            raise type("Odd", (ValueError,), {"__class__": property(breaks)})
    raise LookupError(when)


def _hang(file: str | None, seconds: float) -> None:
    """Wait, deaf to every deadline, until `file` is gone or the time is up."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and (file is None or os.path.exists(file)):  # noqa: PTH110
        time.sleep(0.02)


def _write(moment: str, request: Request) -> None:
    journal = os.environ.get("TEST_JOURNAL")
    if not journal:
        return
    line = {
        "moment": moment,
        "id": request.id,
        "key": request.key.decode("latin-1") if request.key is not None else None,
        "partition": request.partition,
        "offset": request.offset,
        "attempt": request.attempt,
        "pid": os.getpid(),
        "at": time.time(),
    }
    fd = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(fd, json.dumps(line).encode() + b"\n")
    finally:
        os.close(fd)
