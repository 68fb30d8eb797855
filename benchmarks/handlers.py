"""What every contestant does with a request: sleep as long as the payload says, and tell when it did."""

from __future__ import annotations

import time
from typing import Any

from gigaoffice_worker import Request


def answer(payload: dict[str, Any]) -> dict[str, Any]:
    """Sleep for the payload's `seconds` and return the request's number with the call's start and end.

    The moments are seconds of the monotonic clock, which all processes of a machine share.
    """
    started = time.monotonic()
    if seconds := payload["seconds"]:
        time.sleep(seconds)
    return {"number": payload["number"], "started": started, "ended": time.monotonic()}


def handle(request: Request) -> dict[str, Any]:
    """Answer as a handler of this worker."""
    return answer(request.payload)
